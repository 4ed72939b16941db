//! What only real servers show of the ledger: outages, a failover, a cluster, passwords.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use postrider_schemas::fields::{JobId, Tenant};
use postrider_tests::{
    deadline::wait_for_async,
    redis::{Database, Redis},
    redis_fleet::{RedisCluster, RedisSentinel},
};
use postrider_workers::store::{Claim, ClaimRequest, Final, Finished, Store};

use crate::ledger::{LIMIT, LONG, fresh, go, options, says};

#[tokio::test]
async fn what_was_sent_shrinks_and_is_forgotten_after_its_retention() -> Result<()> {
    let database = Database::fresh()?;
    let well = Store::connect(&database.url(), options(LONG)).await?;
    let job = fresh();
    let lease = go(&well, &job).await?;
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    let key = database.cli(&["KEYS", &format!("postrider:*{}", job.key.as_str())])?;
    let life: i64 = database.cli(&["TTL", key.trim()])?.trim().parse()?;
    assert!((3000..=3600).contains(&life), "{life}");
    let text = database.cli(&["GET", key.trim()])?;
    let kept: Vec<bool> = text.trim().split('|').map(|field| !field.is_empty()).collect();
    assert_eq!(kept, [true, false, true, false, false, true, false], "state, fence and payload hash of {text}");
    Ok(())
}

#[tokio::test]
async fn calls_fail_fast_while_redis_is_down_and_work_when_it_is_back() -> Result<()> {
    let Some(mut redis) = Redis::start_or_skip("ledger: redis down")? else { return Ok(()) };
    let store = Store::connect(&redis.url(), options(LONG)).await?;
    let job = fresh();
    let lease = go(&store, &job).await?;
    redis.kill9()?;
    let error = store.ping().await.err().context("down")?;
    assert!(error.is_down() && !store.is_up(), "{error}");
    let start = Instant::now();
    let unfinished = store.finish(lease, Final::Sent).await.err().context("still down")?;
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    redis.restart()?;
    tokio::time::timeout(LIMIT, store.back()).await?;
    assert_eq!(store.finish(unfinished.lease, Final::Sent).await?, Finished::Recorded);
    says(&store.claim(&job).await?, "Settled(Sent)");
    // A restart that nobody noticed costs no call.
    redis.restart()?;
    store.ping().await?;
    Ok(())
}

#[tokio::test]
async fn a_silent_redis_is_left_alone_until_it_speaks() -> Result<()> {
    let Some(redis) = Redis::start_or_skip("ledger: redis silent")? else { return Ok(()) };
    let store = Store::connect(&redis.url(), options(LONG)).await?;
    redis.freeze();
    assert!(store.ping().await.is_err_and(|error| error.is_down()));
    let start = Instant::now();
    assert!(store.ping().await.is_err_and(|error| error.is_down()));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    redis.thaw();
    tokio::time::timeout(LIMIT, store.back()).await?;
    store.ping().await?;
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_down_at_start_is_found_when_it_comes() -> Result<()> {
    let Some(mut redis) = Redis::start_or_skip("ledger: redis late")? else { return Ok(()) };
    redis.kill9()?;
    let store = Store::connect(&redis.url(), options(LONG)).await?;
    assert!(!store.is_up());
    redis.restart()?;
    tokio::time::timeout(LIMIT, store.back()).await?;
    go(&store, &fresh()).await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_said_at_once_and_not_repeated() -> Result<()> {
    let Some(redis) = Redis::start_or_skip("ledger: redis password")? else { return Ok(()) };
    redis.cli(&["CONFIG", "SET", "requirepass", "right"])?;
    for login in ["", ":hunter2@"] {
        let url = format!("redis://{login}127.0.0.1:{}", redis.port());
        let error = Store::connect(&url, options(LONG)).await.err().context("connected")?;
        let text = error.to_string();
        assert!(!error.is_down() && text.contains("password") && !text.contains("hunter2"), "{text}");
    }
    Store::connect(&format!("redis://:right@127.0.0.1:{}", redis.port()), options(LONG)).await?.ping().await?;
    Ok(())
}

#[tokio::test]
async fn a_failover_by_sentinel_is_followed() -> Result<()> {
    let mut fleet = RedisSentinel::start(1)?;
    let store = Store::connect(&fleet.url(), options(LONG)).await?;
    let job = fresh();
    let lease = go(&store, &job).await?;
    fleet.failover()?;
    wait_for_async("the new master", LIMIT, async || store.ping().await.ok()).await?;
    assert!(store.submitting(&lease, "").await?);
    assert_eq!(store.finish(lease, Final::Sent).await?, Finished::Recorded);
    says(&store.claim(&job).await?, "Settled(Sent)");
    Ok(())
}

#[tokio::test]
async fn a_cluster_serves_every_slot_and_comes_back_after_a_loss() -> Result<()> {
    let mut cluster = RedisCluster::start()?;
    let store = Store::connect(&cluster.url(), options(LONG)).await?;
    assert!(store.is_up());
    let mut jobs = Vec::new();
    for _ in 0..60 {
        let job = fresh();
        let lease = go(&store, &job).await?;
        assert!(store.submitting(&lease, "").await?);
        assert_eq!(store.alias(&Tenant::default(), JobId(uuid::Uuid::now_v7()), &job.key).await?, None);
        jobs.push((job, lease));
    }
    // One master comes back empty: what it held is unknown where it was delivered before, the rest is as it was.
    cluster.nodes()[0].restart()?;
    wait_for_async("a whole cluster", LIMIT, async || store.ping().await.ok()).await?;
    let (mut unknown, mut busy) = (0, 0);
    for (job, _) in &jobs {
        let again = ClaimRequest { redelivered: true, published_at: Some(Timestamp::now()), ..job.clone() };
        let claim = wait_for_async("an answer", LIMIT, async || store.claim(&again).await.ok()).await?;
        match claim {
            Claim::Unknown { .. } => unknown += 1,
            Claim::Busy { .. } => busy += 1,
            other => bail!("{other:?}"),
        }
    }
    assert!(unknown > 0 && busy > 0, "{unknown} unknown, {busy} busy");
    Ok(())
}
