//! What the limiter hears of calls that several jobs share: the provider's answers, not the jobs that have them.

use futures_util::future::join_all;
use postrider_schemas::Job;
use postrider_workers::{
    config::load_text,
    dns::DomainAnswers,
    policy::outcome::{Class, Outcome},
    rate_limit::{Limiter, Subject},
    store::{Store, StoreOptions},
};
use serde_json::{Value, json};

use crate::{
    batches::{deliver_all, jobs},
    refused,
    server::{Server, answer, ok},
    transport,
};

/// A limiter that pauses the provider at the third refusal with this status or class.
async fn limiter(folder: &tempfile::TempDir, on: &str) -> (Limiter, Store) {
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    let config = format!(
        "[queue]\nurl = \"{url}\"\n[store]\nurl = \"{url}\"\n[transport.provider]\nkind = \"postmark\"\napi_key = \"k\"\n\
         [[shaping_rule]]\nname = \"often\"\nmatch = {{ {on} }}\ntrigger = \"3/10m\"\npause = \"1h\"\ntarget = \"transport\"\n\
         [[route]]\nname = \"all\"\nsend = [\"provider\"]\n"
    );
    let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
    (Limiter::new(&load_text(&config).unwrap(), store.clone()).unwrap(), store)
}

/// Every job tells the limiter what it heard, all at once.
async fn hear(limiter: &Limiter, jobs: &[Job], outcomes: &[Outcome]) {
    let (groups, domains) = (["dest.example".to_owned()], DomainAnswers::default());
    let heard = jobs.iter().zip(outcomes).map(|(job, outcome)| {
        limiter
            .heard(Subject { job, transport: 0, groups: &groups, domains: &domains, fresh: true, hold: false }, outcome)
    });
    join_all(heard).await;
}

#[tokio::test]
async fn one_refusal_of_a_shared_call_is_one_whatever_the_number_of_its_jobs() {
    for (status, class) in [(429, Class::Throttled), (503, Class::Transient)] {
        let server = Server::start(move |_, _| answer(status, "")).await;
        let folder = tempfile::tempdir().unwrap();
        let (limiter, store) = limiter(&folder, &format!("codes = [\"{status}\"]")).await;
        let (transport, jobs) = (transport("postmark", server.port), jobs(20));
        for call in 1..=3 {
            let outcomes = deliver_all(&transport, &jobs).await;
            assert_eq!((server.seen().len(), outcomes.len()), (call, 20));
            assert!(outcomes.iter().all(|outcome| refused(outcome) == class));
            hear(&limiter, &jobs, &outcomes).await;
            let expected: &[&str] = if call < 3 { &[] } else { &["transport:provider"] };
            assert_eq!(store.overrides().await.unwrap(), expected, "{status} after call {call}");
        }
    }
}

#[tokio::test]
async fn what_an_answer_says_of_each_message_counts_each() {
    let slowly = json!({ "ErrorCode": 429, "Message": "slowly" });
    let server = Server::start(move |_, seen| {
        let messages = seen.body.as_array().unwrap().len();
        ok(vec![slowly.clone(); messages].into_iter().collect::<Value>())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (limiter, store) = limiter(&folder, "classes = [\"throttled\"]").await;
    let jobs = jobs(3);
    let outcomes = deliver_all(&transport("postmark", server.port), &jobs).await;
    assert_eq!(server.seen().len(), 1);
    hear(&limiter, &jobs[..2], &outcomes[..2]).await;
    assert!(store.overrides().await.unwrap().is_empty());
    hear(&limiter, &jobs[2..], &outcomes[2..]).await;
    assert_eq!(store.overrides().await.unwrap(), ["transport:provider"]);
}

#[tokio::test]
async fn each_half_of_a_call_is_a_call_with_an_answer_of_its_own() {
    // Refused for the sake of one of them until two are left.
    let server = Server::start(|_, seen| {
        let status = if seen.body["personalizations"].as_array().unwrap().len() > 2 { 400 } else { 429 };
        answer(status, json!({ "errors": [{ "message": "no" }] }))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (limiter, store) = limiter(&folder, "codes = [\"429\"]").await;
    let jobs = jobs(6);
    let outcomes = deliver_all(&transport("sendgrid", server.port), &jobs).await;
    assert!(outcomes.iter().all(|outcome| refused(outcome) == Class::Throttled));
    // 6, then 3, 1 and 2, and again 3, 1 and 2.
    assert_eq!(server.seen().len(), 7);
    hear(&limiter, &jobs[..3], &outcomes[..3]).await;
    assert!(store.overrides().await.unwrap().is_empty(), "two answers");
    hear(&limiter, &jobs[3..], &outcomes[3..]).await;
    assert_eq!(store.overrides().await.unwrap(), ["transport:provider"], "four");
}
