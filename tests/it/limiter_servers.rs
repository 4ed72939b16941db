//! Limits while servers are restarted, replaced and moved: nobody gets past them.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use postrider_tests::{
    deadline::wait_for_async,
    redis::Redis,
    redis_fleet::{RedisCluster, RedisSentinel},
};
use postrider_workers::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest},
        rate::Rate,
    },
    store::{Store, StoreOptions},
};

use crate::limiter::{LIMIT, ask, demand, in_a_file, in_redis, same_as_the_rules};

/// How many messages four workers at one store are let through in `seconds`, by the store's own clock, from the first to the last.
async fn let_through(url: &str, ask: &AdmissionRequest, seconds: f64) -> Result<f64> {
    let begin = Instant::now();
    let workers = (0..4).map(|_| async move {
        let store = Store::connect(url, StoreOptions::default()).await?;
        let mut tokens = 0;
        while begin.elapsed().as_secs_f64() < seconds {
            match store.admit(ask).await? {
                Admission::Go { wait_us, tokens: more, .. } => {
                    tokens += more;
                    tokio::time::sleep(Duration::from_micros(wait_us as u64)).await;
                }
                Admission::Full { wait_us, .. } => tokio::time::sleep(Duration::from_micros(wait_us as u64 / 2)).await,
                other => anyhow::bail!("{other:?}"),
            }
        }
        anyhow::Ok(tokens)
    });
    let tokens: u32 = try_join_all(workers).await?.into_iter().sum();
    Ok(f64::from(tokens) / begin.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_together_get_what_the_rate_allows_and_no_more() -> Result<()> {
    let (_store, database) = in_redis().await?;
    let (_file_store, folder) = in_a_file().await?;
    let file = format!("embedded:{}", folder.path().join("store.db").display());
    for url in [database.url(), file] {
        for (want, rate) in [(1, "200/s"), (10, "1000/s")] {
            let scope = format!("group:r:{rate}");
            let ask = AdmissionRequest {
                want,
                queue: false,
                ..ask(vec![demand(&scope, &[rate]), demand("transport:r", &[])])
            };
            let pace = let_through(&url, &ask, 3.0).await?;
            let allowed = rate.parse::<Rate>()?.per_second();
            println!("{rate}, {want} tokens a time: {pace:.1} a second");
            // Tokens of the last quarter of a second are counted before their time.
            ensure!(pace <= allowed * 1.12 && pace >= allowed * 0.4, "{pace}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn slots_survive_a_restart_of_redis() -> Result<()> {
    if Redis::start_or_skip("slots over a restart")?.is_none() {
        return Ok(());
    }
    let mut redis = Redis::start_durable()?;
    let store = Store::connect(&redis.url(), StoreOptions::default()).await?;
    let narrow = ask(vec![demand("group:r:g", &["1/s"])]);
    for _ in 0..100 {
        store.admit(&narrow).await?;
    }
    redis.kill9()?;
    redis.restart()?;
    store.back().await;
    let Admission::Park { slot_us, .. } = store.admit(&narrow).await? else { anyhow::bail!("no line") };
    ensure!(slot_us > 60e6, "{slot_us}");
    let Admission::Full { wait_us, .. } =
        store.admit(&AdmissionRequest { queue: false, fresh: false, ..narrow }).await?
    else {
        return Ok(());
    };
    ensure!(wait_us <= 2e6, "nothing was booked: {wait_us}");
    Ok(())
}

#[tokio::test]
async fn a_cluster_asks_all_scopes_in_one_step() -> Result<()> {
    if Redis::start_or_skip("limits in a cluster")?.is_none() {
        return Ok(());
    }
    let cluster = RedisCluster::start()?;
    let store = Store::connect(&cluster.url(), StoreOptions::default()).await?;
    same_as_the_rules(store, 9).await
}

/// Asks until told to stop; a store that is away is asked again. How many tokens came, and the times at which they could be used.
async fn keep_asking(store: Store, ask: AdmissionRequest, stop: Arc<AtomicBool>) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match store.admit(&ask).await {
            Ok(Admission::Go { wait_us, .. }) => {
                let wait = Duration::from_micros(wait_us as u64);
                times.push(Instant::now() + wait);
                tokio::time::sleep(wait).await;
            }
            Ok(Admission::Full { wait_us, .. }) => tokio::time::sleep(Duration::from_micros(wait_us as u64 / 2)).await,
            Ok(other) => anyhow::bail!("{other:?}"),
            Err(error) if error.is_down() => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(times)
}

/// Two workers ask while `break_it` runs, and until half as many tokens as could be came after it. The most in any ten seconds must be
/// within a second's worth of the limit.
async fn never_past_the_limit(url: &str, break_it: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let ask = AdmissionRequest {
        queue: false,
        ..ask(vec![demand("group:r:g", &["50/s"]), demand("transport:r", &["1000/s"])])
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut askers = Vec::new();
    for _ in 0..2 {
        let store = Store::connect(url, StoreOptions::default()).await?;
        askers.push(tokio::spawn(keep_asking(store, ask.clone(), Arc::clone(&stop))));
    }
    let store = Store::connect(url, StoreOptions::default()).await?;
    let used = || async {
        let overview = store.overview(Some(&["group:r:g".to_owned()])).await.ok()?;
        overview.scopes.first().map(|(_, scope)| scope.used.count + scope.used.before)
    };
    let at_least = |count: f64| {
        let used = &used;
        wait_for_async("tokens", Duration::from_secs(60), async move || used().await.filter(|n| *n >= count))
    };
    let before = at_least(100.0).await?;
    tokio::task::spawn_blocking(break_it).await??;
    // A replica may have missed the last counts.
    at_least(before * 0.5).await?;
    let after = used().await.unwrap_or_default();
    at_least(after + 100.0).await?;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for asker in askers {
        times.extend(asker.await??);
    }
    times.sort_unstable();
    let within = |window: Duration| {
        let held = |n: usize| times[n..].iter().take_while(|at| **at < times[n] + window).count();
        (0..times.len()).map(held).max().unwrap_or_default()
    };
    let most = within(Duration::from_secs(10));
    println!("{} tokens, busiest 1 s {}, busiest 10 s {most}", times.len(), within(Duration::from_secs(1)));
    ensure!(most <= 550, "{most}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinel_lets_nobody_past_the_limit() -> Result<()> {
    if Redis::start_or_skip("limits over a failover")?.is_none() {
        return Ok(());
    }
    let mut fleet = RedisSentinel::start(1)?;
    let url = fleet.url();
    never_past_the_limit(&url, move || {
        fleet.failover()?;
        // Lives until the story is over.
        Box::leak(Box::new(fleet));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_the_slot_of_a_cluster_lets_nobody_past_the_limit() -> Result<()> {
    if Redis::start_or_skip("limits over a resharding")?.is_none() {
        return Ok(());
    }
    let mut cluster = RedisCluster::start()?;
    let url = cluster.url();
    let ports: Vec<u16> = cluster.nodes().iter().map(Redis::port).collect();
    let moved = never_past_the_limit(&url, move || move_slot(&ports, "postrider:{limits}")).await;
    drop(cluster);
    moved
}

/// Moves the slot of a key from its node to another one, key by key, as `redis-cli --cluster reshard` does.
pub(crate) fn move_slot(ports: &[u16], key: &str) -> Result<()> {
    let cli = |port: u16, args: &[&str]| -> Result<String> {
        let port = port.to_string();
        let all = ["-e", "-p", port.as_str()].into_iter().chain(args.iter().copied());
        Ok(postrider_tests::process::run("redis-cli", all, &[], LIMIT)?.trim().to_owned())
    };
    let slot = cli(ports[0], &["CLUSTER", "KEYSLOT", key])?;
    let holds = |port: u16| cli(port, &["CLUSTER", "COUNTKEYSINSLOT", &slot]).is_ok_and(|count| count != "0");
    let from = ports.iter().copied().find(|port| holds(*port)).context("nobody holds the slot")?;
    let to = ports.iter().copied().find(|port| *port != from).context("no other node")?;
    let (from_id, to_id) = (cli(from, &["CLUSTER", "MYID"])?, cli(to, &["CLUSTER", "MYID"])?);
    cli(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
    cli(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
    loop {
        let keys = cli(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "100"])?;
        if keys.is_empty() {
            break;
        }
        let target = to.to_string();
        let mut migrate = vec!["MIGRATE", "127.0.0.1", &target, "", "0", "5000", "REPLACE", "KEYS"];
        migrate.extend(keys.lines());
        cli(from, &migrate)?;
    }
    for port in ports {
        cli(*port, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id])?;
    }
    Ok(())
}
