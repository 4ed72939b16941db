use postrider_schemas::{JobLimits, JobV1};
use postrider_store::{Claim, ClaimRequest, StoreOptions};

use super::*;

fn now() -> Timestamp {
    Timestamp::now()
}

fn tenants() -> [Tenant; 2] {
    ["shop", "news"].map(|name| Tenant::parse(name).unwrap())
}

async fn records(folder: &tempfile::TempDir) -> Records {
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Records::new(Store::connect(&url, StoreOptions::default()).await.unwrap())
}

fn job(tenant: &Tenant, key: Option<&str>, send_at: Option<Timestamp>) -> Job {
    let job = JobV1 {
        tenant: Some(tenant.as_str().to_owned()),
        idempotency_key: key.map(str::to_owned),
        from: "a@b.example".into(),
        to: vec!["c@d.example".into()],
        text: Some("t".to_owned()),
        send_at,
        ..JobV1::default()
    };
    job.parse(&JobLimits::DEFAULT).unwrap()
}

fn request(job: &Job, generation: u32) -> ClaimRequest {
    ClaimRequest {
        key: LedgerKey::of(&job.identity()),
        payload_hash: job.payload_hash(),
        generation,
        redelivered: false,
        published_at: None,
    }
}

#[tokio::test]
async fn a_key_stands_for_its_first_request_and_for_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder).await;
    let [shop, news] = tenants();
    let noted = Timestamp::from_millisecond(now().as_millisecond()).unwrap();
    // A clock is finer than what is noted.
    let first = noted + Duration::from_micros(300);
    let later = first + Duration::from_secs(60);
    assert_eq!(records.remember_key(&shop, "order:1", "aa", first).await, Ok(first), "its own request is no repeat");
    assert_eq!(records.remember_key(&shop, "order:1", "aa", later).await, Ok(noted));
    let reused = records.remember_key(&shop, "order:1", "bb", later).await.unwrap_err();
    assert_eq!(reused.kind, Kind::KeyReused);
    assert_eq!(records.remember_key(&news, "order:1", "bb", later).await, Ok(later), "keys belong to tenants");
}

#[tokio::test]
async fn a_job_that_no_worker_has_seen_is_known_to_its_tenant_and_can_be_called_back() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder).await;
    let [shop, news] = tenants();
    let (plain, keyed) = (job(&shop, None, None), job(&shop, Some("order:1"), None));
    records.remember_jobs(&shop, [&plain, &keyed], now()).await;
    for job in [&plain, &keyed] {
        let view = records.view(&shop, job.id(), now()).await.unwrap();
        assert_eq!((view.state.status, view.created_at.is_some(), view.state.due_at), ("queued", true, None));
        assert_eq!(records.view(&news, job.id(), now()).await.unwrap_err().kind, Kind::NotFound);
        assert!(records.cancel(&news, job.id(), now()).await.is_err());
        let event = records.cancel(&shop, job.id(), now()).await.unwrap().unwrap();
        assert_eq!(event.data.job_id, Some(job.id()));
        assert_eq!(records.view(&shop, job.id(), now()).await.unwrap().state.status, "cancelled");
        assert_eq!(records.cancel(&shop, job.id(), now()).await.unwrap(), None, "once is enough");
    }
}

#[tokio::test]
async fn a_job_that_waits_for_its_time_is_moved_to_a_later_one_whether_a_worker_saw_it_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder).await;
    let [shop, _] = tenants();
    let hour = |n: u64| now() + Duration::from_hours(n);
    let (unseen, seen) = (job(&shop, Some("order:1"), Some(hour(1))), job(&shop, None, Some(hour(1))));
    let plain = job(&shop, None, None);
    records.remember_jobs(&shop, [&unseen, &seen, &plain], now()).await;
    let Claim::Go(lease) = records.0.claim(&request(&seen, 0)).await.unwrap() else { panic!("not claimed") };
    let moved = records.postpone(&shop, seen.id(), hour(3), now()).await.unwrap_err();
    assert!(moved.detail.contains("in hand"), "{}", moved.detail);
    let note = LedgerNote { until: Some(hour(1)), why: "send_at".to_owned(), ..LedgerNote::default() };
    records.0.parked(lease, &note.encode()).await.unwrap();
    for (job, generation) in [(&unseen, 0), (&seen, 1)] {
        let (earlier, later) = (now() + Duration::from_secs(60), hour(3));
        let refused = records.postpone(&shop, job.id(), earlier, now()).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Conflict);
        records.postpone(&shop, job.id(), later, now()).await.unwrap();
        let state = records.view(&shop, job.id(), now()).await.unwrap().state;
        assert_eq!((state.status, state.due_at), ("scheduled", Some(later)));
        let claim = records.0.claim(&request(job, generation)).await.unwrap();
        assert!(matches!(claim, Claim::Busy { retry_in } if retry_in > Duration::from_hours(2)), "{claim:?}");
        records.postpone(&shop, job.id(), hour(2), now()).await.unwrap_err();
    }
    let refused = records.postpone(&shop, plain.id(), hour(1), now()).await.unwrap_err();
    assert!(refused.detail.contains("queued"), "{}", refused.detail);
}

#[tokio::test]
async fn a_view_tells_tries_and_the_last_answer() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(&folder).await;
    let [shop, _] = tenants();
    let one = job(&shop, None, None);
    let Claim::Go(lease) = records.0.claim(&request(&one, 0)).await.unwrap() else { panic!("not claimed") };
    assert_eq!(records.view(&shop, one.id(), now()).await.unwrap().state.status, "sending");
    let until = Some(now() + Duration::from_secs(60));
    let note = LedgerNote { until, why: "retry".to_owned(), last: "rcpt: 451 later".to_owned(), tries: 2 };
    records.0.parked(lease, &note.encode()).await.unwrap();
    let state = records.view(&shop, one.id(), now()).await.unwrap().state;
    assert_eq!((state.status, state.attempts, state.due_at), ("deferred", Some(2), until));
    assert_eq!((state.reason.as_deref(), state.last_answer.as_deref()), (Some("retry"), Some("rcpt: 451 later")));
    let document = serde_json::to_value(records.view(&shop, one.id(), now()).await.unwrap()).unwrap();
    assert_eq!((&document["status"], &document["attempts"]), (&serde_json::json!("deferred"), &serde_json::json!(2)));
}
