//! The store comes and goes, as a limiter sees it.

use super::*;
use crate::{
    config::load_text,
    policy::rate_limit::{
        rate::Rate,
        scope::{Limit, ScopeLimits},
        shaping_rule::LimitCommand,
    },
    store::{Store, StoreOptions},
};

const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
 [[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

fn ask(scope: &str, rate: &str) -> AdmissionRequest {
    let limits = vec![Limit::from(&rate.parse::<Rate>().unwrap())];
    AdmissionRequest::fresh(vec![ScopeLimits { scope: scope.to_owned(), limits }], Lane::Transactional, "a")
}

fn away() -> StoreError {
    StoreError::Down("away".to_owned())
}

async fn in_a_file(folder: &tempfile::TempDir) -> Limiter {
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Limiter::new(&load_text(CONFIG).unwrap(), Store::connect(&url, StoreOptions::default()).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_pause_that_the_last_look_saw_holds_without_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    limiter.0.fallback.workers(1);
    let answer = || limiter.0.fallback.admit(&ask("transport:relay", "5/s"), &away(), Instant::now());
    let pause = LimitCommand::Pause { for_us: 7.2e9, why: "maintenance".to_owned() };
    limiter.0.store.order("transport:relay", &pause).await.unwrap();
    limiter.look().await;
    assert!(matches!(answer(), Some(Admission::Park { park_us, .. }) if park_us > 1e9), "{:?}", answer());
    limiter.0.store.order("transport:relay", &LimitCommand::Resume).await.unwrap();
    limiter.look().await;
    assert!(matches!(answer(), Some(Admission::Go { .. })), "{:?}", answer());
}

#[tokio::test]
async fn what_went_out_without_the_store_is_missing_from_its_burst_when_it_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    limiter.0.fallback.workers(2);
    let ask = ask("transport:relay", "1/h burst 10");
    let mut sent = 0;
    while let Some(Admission::Go { .. }) = limiter.0.fallback.admit(&ask, &away(), Instant::now()) {
        sent += 1;
    }
    assert_eq!(sent, 5);
    let mut more = 0;
    while let Some(Admission::Go { .. }) = limiter.asked(&ask).await {
        more += 1;
    }
    assert_eq!(more, 5, "the other half of the burst");
}

#[tokio::test]
async fn nobody_asks_the_store_along_with_a_claim_while_it_is_away_or_has_yet_to_hear_something() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    assert!(!limiter.has_to_settle());
    limiter.0.fallback.workers(2);
    limiter.0.fallback.admit(&ask("transport:relay", "5/s"), &away(), Instant::now());
    assert!(limiter.has_to_settle());
    limiter.settle().await;
    assert!(!limiter.has_to_settle());
    // Nothing listens there.
    let store = Store::connect("redis://127.0.0.1:1/", StoreOptions::default()).await.unwrap();
    assert!(Limiter::new(&load_text(CONFIG).unwrap(), store).unwrap().has_to_settle());
}

#[tokio::test]
async fn bulk_mail_waits_a_little_while_the_store_settles() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    limiter.0.fallback.begun(Instant::now().checked_sub(Duration::from_secs(5)).unwrap());
    let bulk = AdmissionRequest { lane: Lane::Bulk, ..ask("transport:relay", "5/s") };
    let answer = limiter.asked(&bulk).await;
    assert!(matches!(answer, Some(Admission::Park { park_us, .. }) if park_us <= HOLD_US), "{answer:?}");
    let answer = limiter.asked(&AdmissionRequest { queue: false, ..bulk }).await;
    assert!(matches!(answer, Some(Admission::Full { .. })), "{answer:?}");
    limiter.0.fallback.workers(2);
    let answer = limiter.asked(&ask("transport:relay", "5/s")).await;
    assert!(matches!(answer, Some(Admission::Go { .. })) && limiter.0.fallback.has_unreported(), "{answer:?}");
}
