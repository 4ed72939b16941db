//! What the limiter makes of answers, with a store.

use std::time::Duration;

use postrider_schemas::{Job, JobLimits, Lane, wire};
use serde_json::json;

use super::*;
use crate::{
    concurrency::job_slots::JobSlots,
    config::load_text,
    dns::DomainAnswers,
    policy::outcome::{Answer, Class, Stage},
    rate_limit::LimitAnswer,
    store::{Store, StoreOptions},
};

const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.api]\nkind = \"postmark\"\napi_key = \"k\"\n\
                      [[shaping_rule]]\nname = \"often\"\nmatch = { codes = [\"429\"] }\ntrigger = \"3/10m\"\npause = \"1h\"\n\
                      [[shaping_rule]]\nname = \"of a group\"\nmatch = { codes = [\"420\"] }\npause = \"1h\"\ntarget = \"group\"\n\
                      [[shaping_rule]]\nname = \"half\"\nmatch = { codes = [\"430\"] }\ncut = 0.5\n\
                      [[throttle]]\nname = \"slow\"\ndomains = [\"slow.example\"]\nrate = \"1/min\"\n\
                      [[route]]\nname = \"all\"\nsend = [\"api\"]\n";

async fn limiter(folder: &tempfile::TempDir) -> Limiter {
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Limiter::new(&load_text(CONFIG).unwrap(), Store::connect(&url, StoreOptions::default()).await.unwrap()).unwrap()
}

fn refused(code: u16) -> Outcome {
    let answer = Answer::new(Stage::Call, Some(code), None, "slowly");
    let refusal = Refusal { class: Class::Throttled, answer, retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

fn job() -> Job {
    let job = json!({
        "id": "0190a5c0-7a10-7c3e-9d51-000000000001", "lane": "bulk",
        "from": "news@sender.example", "to": ["ada@dest.example"], "subject": "s", "text": "t",
    });
    wire::decode(job.to_string().as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

/// So many jobs hear these outcomes, all at once; their groups are `g0`, `g1` and `g2` in turns.
async fn hear(limiter: &Limiter, outcomes: &[Outcome]) {
    let job = job();
    let heard = outcomes.iter().enumerate().map(|(n, outcome)| {
        let (job, group) = (&job, format!("g{}", n % 3));
        async move {
            let (groups, domains) = (&[group], &DomainAnswers::default());
            let subject = Subject { job, transport: 0, groups, domains, fresh: true, hold: false };
            limiter.heard(subject, outcome).await;
        }
    });
    futures_util::future::join_all(heard).await;
}

async fn disturbed(limiter: &Limiter) -> Vec<String> {
    let mut scopes = limiter.0.store.overrides().await.unwrap();
    scopes.sort_unstable();
    scopes
}

#[tokio::test]
async fn an_answer_that_jobs_share_counts_once_for_a_trigger() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = limiter(&folder).await;
    for call in 1..=3 {
        hear(&limiter, &vec![refused(429).of_all(); 20]).await;
        let expected: &[&str] = if call < 3 { &[] } else { &["transport:api"] };
        assert_eq!(disturbed(&limiter).await, expected, "after call {call}");
    }
    assert!(limiter.overrides().contains("transport:api"));
}

#[tokio::test]
async fn answers_of_their_own_count_each() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = limiter(&folder).await;
    hear(&limiter, &[refused(429), refused(429)]).await;
    assert!(disturbed(&limiter).await.is_empty());
    hear(&limiter, &[refused(429)]).await;
    assert_eq!(disturbed(&limiter).await, ["transport:api"]);
}

#[tokio::test]
async fn an_answer_that_jobs_share_is_heard_by_every_group_that_it_is_about() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = limiter(&folder).await;
    hear(&limiter, &vec![refused(420).of_all(); 20]).await;
    assert_eq!(disturbed(&limiter).await, ["group:api:g0", "group:api:g1", "group:api:g2"]);
}

#[tokio::test]
async fn a_pause_that_was_heard_after_the_store_was_asked_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = limiter(&folder).await;
    let is_paused = || limiter.0.paused.borrow().contains_key("transport:api");
    let asked = Instant::now();
    limiter.note_pause("transport:api", 3.6e9);
    limiter.forget_pauses(asked, &HashSet::new());
    assert!(is_paused());
    limiter.forget_pauses(Instant::now() + Duration::from_nanos(1), &HashSet::from(["transport:api".to_owned()]));
    assert!(is_paused(), "the store says so too");
    limiter.forget_pauses(Instant::now() + Duration::from_nanos(1), &HashSet::new());
    assert!(!is_paused());
}

#[tokio::test]
async fn a_cut_without_a_rate_is_a_part_of_what_goes_and_not_of_what_another_limit_puts_away() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = limiter(&folder).await;
    let (job, job_slot) = (job(), JobSlots::new(1, 1).beside(Lane::Bulk));
    let (groups, domains) = (&["slow".to_owned()], &DomainAnswers::default());
    let subject = Subject { job: &job, transport: 0, groups, domains, fresh: true, hold: false };
    let mut gone = 0;
    for _ in 0..500 {
        gone += u32::from(matches!(limiter.admit(subject, true, &job_slot, None).await, LimitAnswer::Go(_)));
    }
    assert_eq!(gone, 1);
    limiter.heard(subject, &refused(430)).await;
    let overview = limiter.0.store.overview(None).await.unwrap();
    let (_, scope) = overview.scopes.iter().find(|(name, _)| name == "transport:api").unwrap();
    let per_second = 1e6 / scope.cut.as_ref().unwrap().seen_interval_us;
    assert!((0.1..=1.0).contains(&per_second), "{per_second}");
}
