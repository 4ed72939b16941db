//! What limits cost the store, and what they leave behind there.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use postrider_tests::{
    deadline,
    fault_proxy::{FaultProxy, Faults},
    redis::Redis,
};
use postrider_workers::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest},
        shaping_rule::RuleCall,
    },
    store::{Store, StoreOptions, redis::RedisStore},
};

use crate::limiter::{LIMIT, START, ask, demand, in_a_file, in_redis};

#[tokio::test]
async fn scopes_that_redis_has_forgotten_leave_its_index_without_anybody_looking() -> Result<()> {
    let (store, database) = in_redis().await?;
    let of =
        |from: usize, to: usize| (from..to).map(|n| ask(vec![demand(&format!("group:r:d{n}.example"), &["20/s"])]));
    for ask in of(0, 300) {
        store.admit(&ask).await?;
    }
    // As time does.
    for n in 0..300 {
        database.cli(&["DEL", &format!("postrider:{{limits}}:group:r:d{n}.example")])?;
    }
    for ask in of(300, 700) {
        store.admit(&ask).await?;
    }
    let index: usize = database.cli(&["ZCARD", "postrider:{limits}"])?.trim().parse()?;
    ensure!(index == 400, "{index}");
    let without_end: usize = database.cli(&["EVAL", ETERNAL, "0"])?.trim().parse()?;
    ensure!(without_end == 1, "only the index itself has no end: {without_end}");
    Ok(())
}

#[tokio::test]
async fn only_scopes_of_which_nothing_is_left_leave_the_index() -> Result<()> {
    let (store, database) = in_redis().await?;
    for name in ["hash", "line", "gone"] {
        store.admit(&ask(vec![demand(name, &["20/s"])])).await?;
    }
    database.cli(&["DEL", "postrider:{limits}:line", "postrider:{limits}:gone"])?;
    database.cli(&["ZADD", "postrider:{limits}:ends:b:line", "1", "a"])?;
    let names = ["hash", "line", "gone", "never"].map(str::to_owned);
    RedisStore::connect(&database.url(), StoreOptions::default()).await?.forget(&names).await?;
    let listed = database.cli(&["ZRANGE", "postrider:{limits}", "0", "-1"])?;
    let mut listed: Vec<&str> = listed.split_whitespace().collect();
    listed.sort_unstable();
    ensure!(listed == ["hash", "line"], "{listed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_comes_while_somebody_looks_for_it_keeps_its_place_in_the_index() -> Result<()> {
    let Some(redis) = Redis::start_or_skip("a scope that comes during a look")? else { return Ok(()) };
    let near = Store::connect(&redis.url(), StoreOptions::default()).await?;
    let proxy = FaultProxy::start(redis.port())?;
    let far = Store::connect(&format!("redis://127.0.0.1:{}/0", proxy.port()), StoreOptions::default()).await?;
    let one = ask(vec![demand("group:r:one.example", &["20/s"])]);
    near.admit(&one).await?;
    // The scripts are known to the server from here on.
    ensure!(far.overview(None).await?.scopes.len() == 1);
    // As time does.
    redis.cli(&["DEL", "postrider:{limits}:group:r:one.example"])?;
    let (_, calls) = cost(&redis)?;
    proxy.set(Faults::delay_replies(Duration::from_millis(800)));
    let looking = tokio::spawn(async move { far.overview(None).await });
    let looked = || cost(&redis).is_ok_and(|(_, now)| now > calls).then_some(());
    deadline::wait_for("the look that does not find it", LIMIT, looked)?;
    near.admit(&one).await?;
    ensure!(looking.await??.scopes.is_empty(), "the look was earlier");
    ensure!(near.overview(None).await?.scopes.len() == 1, "it is there and nobody sees it");
    Ok(())
}

/// Keys of the limiter that never expire.
const ETERNAL: &str = "local n = 0 for _, key in ipairs(redis.call('KEYS', 'postrider:{limits}*')) do \
                       if redis.call('PTTL', key) < 0 then n = n + 1 end end return n";

#[tokio::test]
async fn scopes_that_are_over_leave_the_file_while_workers_live() -> Result<()> {
    let (store, _folder) = in_a_file().await?;
    let clock = Arc::new(AtomicU64::new(START));
    let store = store.with_limiter_clock(Arc::clone(&clock));
    for n in 0..300 {
        store.admit(&ask(vec![demand(&format!("group:r:d{n}.example"), &["20/s"])])).await?;
    }
    // By the machine's clock, which is far beyond the test's.
    store.presence("somebody", Duration::from_secs(20)).await?;
    let Admission::Go { .. } = store.admit(&ask(vec![demand("group:r:new.example", &["20/s"])])).await? else {
        anyhow::bail!("not free")
    };
    let names: Vec<String> = store.overview(Some(&all_of(300))).await?.scopes.into_iter().map(|one| one.0).collect();
    ensure!(names.is_empty(), "{names:?}");
    Ok(())
}

fn all_of(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("group:r:d{n}.example")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tenants_in_one_line_are_cheap_and_leave_nothing_behind() -> Result<()> {
    let (store, database) = in_redis().await?;
    let mut narrow = AdmissionRequest { weight: 3.0, ..ask(vec![demand("group:r:g", &["200/s"])]) };
    for _ in 0..100 {
        store.admit(&narrow).await?;
    }
    narrow.weight = 1.0;
    let spent = || -> Result<(f64, f64)> {
        let stats = database.cli(&["INFO", "commandstats"])?;
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).context("no scripts")?;
        let number = |n: usize| line.split(['=', ',']).nth(n).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Ok((number(1), number(3)))
    };
    for (from, to) in [(0, 500), (500, 5_000)] {
        for n in from..to {
            narrow.tenant = format!("tenant-{n}");
            store.admit(&narrow).await?;
        }
        let (calls, before) = spent()?;
        for n in 0..100 {
            narrow.tenant = format!("tenant-{n}");
            store.admit(&narrow).await?;
        }
        let (more, after) = spent()?;
        println!("{to} tenants: {:.0} us a call", (after - before) / (more - calls));
    }
    let fields: usize = database.cli(&["HLEN", "postrider:{limits}:group:r:g"])?.trim().parse()?;
    let size = database.cli(&["MEMORY", "USAGE", "postrider:{limits}:ends:b:group:r:g"])?;
    println!("{fields} fields, {} bytes of line", size.trim());
    ensure!(fields < 20, "{fields}");
    Ok(())
}

/// Processor time of the server so far, in microseconds, and calls of scripts.
pub(crate) fn cost(database: &Redis) -> Result<(f64, f64)> {
    let cpu = database.cli(&["INFO", "cpu"])?;
    let field = |text: &str, name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.trim().parse().unwrap_or(0.0)
    };
    let used = field(&cpu, "used_cpu_user:") + field(&cpu, "used_cpu_sys:");
    let stats = database.cli(&["INFO", "commandstats"])?;
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    let calls = line.split(['=', ',']).nth(1).and_then(|number| number.parse().ok()).unwrap_or(0.0);
    Ok((used * 1e6, calls))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_costs_redis_is_printed() -> Result<()> {
    if Redis::start_or_skip("the cost of limits")?.is_none() {
        return Ok(());
    }
    let redis = Redis::start()?;
    let store = Store::connect(&redis.url(), StoreOptions::default()).await?;
    let messages = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { 50_000 } else { 2_000 };
    for buckets in [1, 3, 6] {
        for want in [1_u32, 50] {
            // Two rates a scope from three buckets on, and never in the way.
            let rates: &[&str] = if buckets == 1 { &["1_000_000/s"] } else { &["1_000_000/s", "60_000_000/min"] };
            let scopes = if buckets == 1 { 1 } else { buckets / 2 + buckets % 2 };
            let demands = (0..scopes)
                .map(|n| {
                    let rates = if n == 0 && buckets % 2 == 1 { &rates[..1] } else { rates };
                    demand(&format!("cost:{buckets}:{want}:{n}"), rates)
                })
                .collect();
            let ask = AdmissionRequest { want, ..ask(demands) };
            let (cpu, calls) = cost(&redis)?;
            let mut tokens = 0;
            while tokens < messages {
                match store.admit(&ask).await? {
                    Admission::Go { tokens: more, .. } => tokens += more,
                    other => anyhow::bail!("{other:?}"),
                }
            }
            let (cpu_after, calls_after) = cost(&redis)?;
            println!(
                "{buckets} buckets, batches of {want}: {:.1} us of Redis and {:.3} calls a message",
                (cpu_after - cpu) / f64::from(tokens),
                (calls_after - calls) / f64::from(tokens)
            );
            ensure!(calls_after - calls <= f64::from(tokens) / f64::from(want) + 2.0, "one call a batch");
        }
    }
    Ok(())
}

#[tokio::test]
async fn calls_for_a_reaction_are_remembered_for_as_long_as_they_count() -> Result<()> {
    let (store, database) = in_redis().await?;
    let call = RuleCall {
        reaction: "rare".to_owned(),
        count: 3,
        within_us: 24.0 * 3.6e9,
        pause_us: 1e6,
        keep: 1e6,
        floor: 1e5,
        recovery: 1.0,
        incident_us: 1e6,
        seen_interval_us: 0.0,
        why: "rare: 450".to_owned(),
    };
    ensure!(!store.react("group:r:quiet", &call).await?.fired);
    // A message in between must not shorten it.
    store.admit(&ask(vec![demand("group:r:quiet", &["20/s"])])).await?;
    let life: u64 = database.cli(&["TTL", "postrider:{limits}:group:r:quiet"])?.trim().parse()?;
    ensure!(life > 24 * 3600, "{life}");
    Ok(())
}
