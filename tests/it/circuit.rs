//! The circuit of a transport: one contract for every store.

use std::time::Duration;

use anyhow::Result;
use postrider_tests::{deadline::wait_for_async, redis::Database};
use postrider_workers::store::{
    Store, StoreOptions,
    circuit::{CircuitAnswer, CircuitCall},
};

const SOON: Duration = Duration::from_secs(20);

fn open(wait_ms: u64) -> CircuitCall {
    CircuitCall::Open { reason: "auth: 535 5.7.8 bad credentials".to_owned(), wait: Duration::from_millis(wait_ms) }
}

async fn an_incident_opens_once_is_probed_by_one_and_healed_once(url: &str) -> Result<()> {
    let (one, other) =
        (Store::connect(url, StoreOptions::default()).await?, Store::connect(url, StoreOptions::default()).await?);
    assert_eq!(one.circuit("relay", &CircuitCall::Probe).await?, CircuitAnswer::Closed);
    assert_eq!(one.circuits(&["relay".to_owned(), "api".to_owned()]).await?, [None, None]);
    let CircuitAnswer::Opened(opened) = one.circuit("relay", &open(300)).await? else { panic!("not opened") };
    assert_eq!((opened.failures, opened.probe_ms), (1, 0));
    assert_eq!(opened.until_ms - opened.opened_ms, 300);
    assert_eq!(other.circuit("relay", &open(300)).await?, CircuitAnswer::Open(opened.clone()), "one incident");
    let seen = other.circuits(&["relay".to_owned(), "api".to_owned()]).await?;
    assert_eq!(seen, [Some(opened.clone()), None]);
    // Once its time is over one of the two may probe; the other waits for what it finds.
    let probing =
        wait_for_async("the right to probe", SOON, async || match one.circuit("relay", &CircuitCall::Probe).await {
            Ok(CircuitAnswer::Open(_)) => None,
            other => Some(other),
        });
    let CircuitAnswer::Probe(first) = probing.await?? else { panic!("no probe") };
    let CircuitAnswer::Open(probed) = other.circuit("relay", &CircuitCall::Probe).await? else { panic!("two probes") };
    assert!(probed.probe_ms > probed.until_ms);
    assert_eq!(probed.probe_ms, first);
    // The probe was not made: the next one may be at once. What the first one says from now on is late.
    let CircuitAnswer::Open(released) = one.circuit("relay", &CircuitCall::Release { probe: first }).await? else {
        panic!("closed")
    };
    assert_eq!((released.probe_ms, released.failures), (0, 1));
    let CircuitAnswer::Probe(second) = other.circuit("relay", &CircuitCall::Probe).await? else {
        panic!("no second probe")
    };
    assert!(second >= first);
    let late =
        |probe| CircuitCall::Fail { probe, reason: "connect: refused".to_owned(), wait: Duration::from_millis(300) };
    let CircuitAnswer::Open(kept) = one.circuit("relay", &late(first - 1)).await? else { panic!("closed") };
    assert_eq!((kept.probe_ms, kept.failures), (second, 1), "another probe's failure changes nothing");
    // It fails, in whatever way: its lease ends, and the wait doubles.
    let CircuitAnswer::Open(failed) = other.circuit("relay", &late(second)).await? else { panic!("closed") };
    assert_eq!((failed.probe_ms, failed.failures, failed.opened_ms), (0, 2, opened.opened_ms));
    assert_eq!(failed.reason, "connect: refused");
    assert!(failed.until_ms >= opened.until_ms + 600, "{failed:?}");
    let again = wait_for_async("the right to probe again", SOON, async || {
        match one.circuit("relay", &CircuitCall::Probe).await {
            Ok(CircuitAnswer::Open(_)) => None,
            other => Some(other),
        }
    });
    assert!(matches!(again.await??, CircuitAnswer::Probe(_)));
    // It is still broken: the wait doubles, the incident is the same.
    let CircuitAnswer::Open(again) = one.circuit("relay", &open(300)).await? else { panic!("another incident") };
    assert_eq!((again.opened_ms, again.failures, again.probe_ms), (opened.opened_ms, 3, 0));
    assert!(again.until_ms >= failed.until_ms + 1200, "{again:?}");
    for late in [late(second), CircuitCall::Release { probe: second }] {
        assert_eq!(one.circuit("relay", &late).await?, CircuitAnswer::Open(again.clone()));
    }
    // A success heals, and one of the two is told.
    assert_eq!(other.circuit("relay", &CircuitCall::Close).await?, CircuitAnswer::Healed(again));
    assert_eq!(one.circuit("relay", &CircuitCall::Close).await?, CircuitAnswer::Closed);
    assert_eq!(one.circuits(&["relay".to_owned()]).await?, [None]);
    Ok(())
}

async fn unexplained_refusals_count_over_workers_until_somebody_is_accepted(url: &str) -> Result<()> {
    let (one, other) =
        (Store::connect(url, StoreOptions::default()).await?, Store::connect(url, StoreOptions::default()).await?);
    let keys = ["relay".to_owned(), "api".to_owned()];
    assert_eq!(one.have_refusals(&keys).await?, [false, false]);
    assert_eq!(one.note_refusals("relay", &["a 1".to_owned()]).await?, ["a 1"]);
    let mut all = other.note_refusals("relay", &["a 2".to_owned(), "a 1".to_owned()]).await?;
    all.sort_unstable();
    assert_eq!(all, ["a 1", "a 2"], "each recipient once");
    assert_eq!(other.have_refusals(&keys).await?, [true, false]);
    other.forget_refusals("relay").await?;
    assert_eq!(one.have_refusals(&keys).await?, [false, false]);
    Ok(())
}

#[tokio::test]
async fn unexplained_refusals_in_redis() -> Result<()> {
    unexplained_refusals_count_over_workers_until_somebody_is_accepted(&Database::fresh()?.url()).await
}

#[tokio::test]
async fn unexplained_refusals_in_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    unexplained_refusals_count_over_workers_until_somebody_is_accepted(&url).await
}

#[tokio::test]
async fn in_redis() -> Result<()> {
    an_incident_opens_once_is_probed_by_one_and_healed_once(&Database::fresh()?.url()).await
}

#[tokio::test]
async fn in_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    an_incident_opens_once_is_probed_by_one_and_healed_once(&url).await
}

#[tokio::test]
async fn redis_whose_clock_was_set_back_keeps_nobody_away_for_as_long() -> Result<()> {
    let database = Database::fresh()?;
    let store = Store::connect(&database.url(), StoreOptions::default()).await?;
    store.circuit("relay", &open(300)).await?;
    // As a clock leaves it that was a day ahead.
    let far =
        "return redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', redis.call('TIME')[1] * 1000 + 86400000))";
    for field in ["u", "p"] {
        database.cli(&["EVAL", far, "1", "postrider:{circuit}:relay", field])?;
        assert!(matches!(store.circuit("relay", &CircuitCall::Probe).await?, CircuitAnswer::Probe(_)), "{field}");
    }
    Ok(())
}
