//! The circuit of a transport: one contract for every store.

use std::time::Duration;

use anyhow::Result;
use postrider_tests::{deadline::wait_for_async, redis::Database};
use postrider_workers::store::{
    Options, Store,
    circuit::{Ask, Told},
};

const SOON: Duration = Duration::from_secs(20);

fn open(wait_ms: u64) -> Ask {
    Ask::Open { reason: "auth: 535 5.7.8 bad credentials".to_owned(), wait: Duration::from_millis(wait_ms) }
}

async fn an_incident_opens_once_is_probed_by_one_and_healed_once(url: &str) -> Result<()> {
    let (one, other) = (Store::connect(url, Options::default()).await?, Store::connect(url, Options::default()).await?);
    assert_eq!(one.circuit("relay", &Ask::Probe).await?, Told::Closed);
    assert_eq!(one.circuits(&["relay".to_owned(), "api".to_owned()]).await?, [None, None]);
    let Told::Opened(opened) = one.circuit("relay", &open(300)).await? else { panic!("not opened") };
    assert_eq!((opened.failures, opened.probe_ms), (1, 0));
    assert_eq!(opened.until_ms - opened.opened_ms, 300);
    assert_eq!(other.circuit("relay", &open(300)).await?, Told::Open(opened.clone()), "one incident");
    let seen = other.circuits(&["relay".to_owned(), "api".to_owned()]).await?;
    assert_eq!(seen, [Some(opened.clone()), None]);
    // Once its time is over one of the two may probe; the other waits for what it finds.
    let probing = wait_for_async("the right to probe", SOON, async || match one.circuit("relay", &Ask::Probe).await {
        Ok(Told::Open(_)) => None,
        other => Some(other),
    });
    assert_eq!(probing.await??, Told::Probe);
    let Told::Open(probed) = other.circuit("relay", &Ask::Probe).await? else { panic!("two probes") };
    assert!(probed.probe_ms > probed.until_ms);
    // It is still broken: the wait doubles, the incident is the same.
    let Told::Open(again) = one.circuit("relay", &open(300)).await? else { panic!("another incident") };
    assert_eq!((again.opened_ms, again.failures, again.probe_ms), (opened.opened_ms, 2, 0));
    assert!(again.until_ms >= opened.until_ms + 600, "{again:?}");
    // A success heals, and one of the two is told.
    assert_eq!(other.circuit("relay", &Ask::Close).await?, Told::Healed(again));
    assert_eq!(one.circuit("relay", &Ask::Close).await?, Told::Closed);
    assert_eq!(one.circuits(&["relay".to_owned()]).await?, [None]);
    Ok(())
}

async fn doubts_count_over_workers_until_somebody_is_accepted(url: &str) -> Result<()> {
    let (one, other) = (Store::connect(url, Options::default()).await?, Store::connect(url, Options::default()).await?);
    let keys = ["relay".to_owned(), "api".to_owned()];
    assert_eq!(one.doubted(&keys).await?, [false, false]);
    assert_eq!(one.doubt("relay", &["a 1".to_owned()]).await?, ["a 1"]);
    let mut all = other.doubt("relay", &["a 2".to_owned(), "a 1".to_owned()]).await?;
    all.sort_unstable();
    assert_eq!(all, ["a 1", "a 2"], "each recipient once");
    assert_eq!(other.doubted(&keys).await?, [true, false]);
    other.trust("relay").await?;
    assert_eq!(one.doubted(&keys).await?, [false, false]);
    Ok(())
}

#[tokio::test]
async fn doubts_in_redis() -> Result<()> {
    doubts_count_over_workers_until_somebody_is_accepted(&Database::fresh()?.url()).await
}

#[tokio::test]
async fn doubts_in_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    doubts_count_over_workers_until_somebody_is_accepted(&url).await
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
