//! The limiter keeps its word: every store does what the pure rules say, step by step, and what only real servers can show.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use postrider_schemas::{Lane, fields::JobId, job::Identity, payload_hash::PayloadHash};
use postrider_tests::{
    deadline::wait_for_async,
    redis::{Database, Redis},
    redis_fleet::{RedisCluster, RedisSentinel},
};
use postrider_workers::{
    decide::limits::{
        admit::{Admission, Ask, admit},
        connections::{Want, share},
        rate::Rate,
        reaction::{Call, Order, order, react},
        scope::{Demand, Limit, Scope},
    },
    store::{Claim, ClaimRequest, LedgerKey, Options, Store},
};

const LIMIT: Duration = Duration::from_secs(20);
const START: u64 = 1_760_000_000_000_000;

fn demand(scope: &str, rates: &[&str]) -> Demand {
    let limit = |rate: &&str| Limit::from(&rate.parse::<Rate>().unwrap());
    Demand { scope: scope.to_owned(), limits: rates.iter().map(limit).collect() }
}

fn ask(demands: Vec<Demand>) -> Ask {
    Ask { demands, lane: Lane::Bulk, tenant: "a".to_owned(), weight: 1.0, fresh: true, want: 1, queue: true }
}

async fn in_redis() -> Result<(Store, Database)> {
    let database = Database::fresh()?;
    Ok((Store::connect(&database.url(), Options::default()).await?, database))
}

async fn in_a_file() -> Result<(Store, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Ok((Store::connect(&url, Options::default()).await?, folder))
}

/// Small and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[usize::try_from(self.roll(list.len() as u64)).unwrap()]
    }
}

/// The answer as numbers, to be compared.
fn numbers(admission: Admission) -> (&'static str, [f64; 3]) {
    let place = |scope: usize| scope as f64;
    match admission {
        Admission::Free => ("free", [0.0; 3]),
        Admission::Go { wait_us, tokens, step_us } => ("go", [wait_us, f64::from(tokens), step_us]),
        Admission::Park { park_us, slot_us, scope } => ("park", [park_us, slot_us, place(scope)]),
        Admission::Full { wait_us, scope } => ("full", [wait_us, place(scope), 0.0]),
    }
}

/// A hundred thousandth of a second is less than any decision depends on; times in JSON may be a quarter of a microsecond off.
#[track_caller]
fn check_same(what: &str, is: Admission, expected: Admission) {
    let ((word, is_numbers), (expected_word, expected_numbers)) = (numbers(is), numbers(expected));
    let same = word == expected_word && is_numbers.iter().zip(expected_numbers).all(|(a, b)| (a - b).abs() <= 10.0);
    assert!(same, "{what}: {is:?}, but the rules say {expected:?}");
}

/// Odd seeds keep to what is usual; the others have rates that are slow, clocks that jump and weights that are far apart.
fn rates(seed: u64) -> [&'static [&'static str]; 6] {
    if seed.is_multiple_of(2) {
        let many = &["200/s", "100/min burst 50", "5000/h", "9/d burst 9"];
        return [&[], &["20/s"], &["2/min"], many, &["1/h burst 2"], &["40/s"]];
    }
    [&[], &["20/s"], &["5/s burst 3"], &["200/s", "100/min burst 50"], &["1/s"], &["40/s"]]
}

fn later(dice: &mut Dice, before: u64, seed: u64) -> u64 {
    match dice.roll(40) {
        0 if seed.is_multiple_of(2) => before - dice.roll(5_000_000),
        1 if seed.is_multiple_of(2) => before + dice.roll(200_000_000),
        _ => before + dice.roll(120_000),
    }
}

fn weight(tenant: &str, seed: u64) -> f64 {
    match tenant {
        "b" if seed.is_multiple_of(2) => 1000.0,
        "c" if seed.is_multiple_of(4) => 0.1,
        _ => 1.0,
    }
}

/// Random questions, reactions and orders, to a store and to the pure rules.
async fn same_as_the_rules(store: Store, seed: u64) -> Result<()> {
    let clock = Arc::new(AtomicU64::new(START));
    let store = store.with_limiter_clock(Arc::clone(&clock));
    let mut model: BTreeMap<String, Scope> = BTreeMap::new();
    let mut dice = Dice(seed);
    let mut words: BTreeMap<&str, u32> = BTreeMap::new();
    let rates = rates(seed);
    for step in 0..1500 {
        let now = later(&mut dice, clock.load(Ordering::Relaxed), seed);
        clock.store(now, Ordering::Relaxed);
        let scope = dice.pick(&["transport:r", "group:r:g", "tenant:a"]).to_owned();
        match dice.roll(60) {
            0 => {
                let call = Call {
                    reaction: dice.pick(&["slow", "other"]).to_owned(),
                    count: u32::try_from(1 + dice.roll(3))?,
                    within_us: 2e6,
                    pause_us: dice.roll(3) as f64 * 3e5,
                    keep: 5e5,
                    floor: 1e5,
                    recovery: 2e4,
                    incident_us: 1e6,
                    seen_interval_us: dice.roll(2) as f64 * 1e4,
                    why: "slow: 421".to_owned(),
                };
                let is = store.react(&scope, &call).await?;
                let expected = react(model.entry(scope).or_default(), &call, now as f64);
                assert_eq!(is, expected, "step {step}");
            }
            1 => {
                let one = match dice.roll(4) {
                    0 => Order::Pause { for_us: 4e5, why: "maintenance".to_owned() },
                    1 => {
                        let set = Limit::from(&"30/s burst 2".parse::<Rate>()?);
                        let why = "on trial".to_owned();
                        Order::Set { interval_us: set.interval_us, tolerance_us: set.tolerance_us, for_us: 2e6, why }
                    }
                    _ => Order::Resume,
                };
                store.order(&scope, &one).await?;
                order(model.entry(scope).or_default(), &one, now as f64);
            }
            _ => {
                let demands: Vec<Demand> = ["transport:r", "group:r:g", "tenant:a"]
                    .into_iter()
                    .filter_map(|scope| {
                        let rates = rates[usize::try_from(dice.roll(6)).unwrap()];
                        (dice.roll(4) > 0).then(|| demand(scope, rates))
                    })
                    .collect();
                if demands.is_empty() {
                    continue;
                }
                let tenant = dice.pick(&["a", "b", "c"]).to_owned();
                let weight = weight(&tenant, seed);
                let lane = Lane::ALL[usize::try_from(dice.roll(2))?];
                let (fresh, want, queue) = (dice.roll(2) == 0, u32::try_from(1 + dice.roll(5))?, dice.roll(8) > 0);
                let ask = Ask { demands, lane, tenant, weight, fresh, want, queue };
                let is = store.admit(&ask).await?;
                let names: Vec<&String> = ask.demands.iter().map(|one| &one.scope).collect();
                let mut scopes: Vec<Scope> =
                    names.iter().map(|name| model.get(*name).cloned().unwrap_or_default()).collect();
                let expected = admit(&mut scopes, &ask, now as f64);
                model.extend(names.into_iter().cloned().zip(scopes));
                check_same(&format!("step {step}, {ask:?}"), is, expected);
                *words.entry(numbers(expected).0).or_default() += 1;
            }
        }
    }
    println!("{words:?}");
    assert_eq!(words.len(), 4, "every kind of answer was given");
    let now = clock.load(Ordering::Relaxed) as f64;
    let mut disturbed = store.disturbed().await?;
    disturbed.sort_unstable();
    let expected = model.iter().filter(|(_, scope)| scope.disturbed_until() > now);
    assert_eq!(disturbed, expected.map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let names: Vec<String> = model.keys().cloned().collect();
    let counts = store.counts(&names).await?;
    assert!(!counts.scopes.is_empty() && (counts.now - now).abs() < 1.0);
    for (name, scope) in counts.scopes {
        let expected = &model[&name];
        let of = |scope: &Scope| (scope.used, scope.cut, scope.set, scope.paused_until);
        assert_eq!(of(&scope), of(expected), "{name}");
    }
    let overview = store.overview(None).await?;
    for (name, scope) in overview.scopes {
        let expected = &model[&name];
        assert_eq!((scope.used, scope.cut, &scope.why), (expected.used, expected.cut, &expected.why), "{name}");
        assert_eq!(scope.buckets.keys().collect::<Vec<_>>(), expected.buckets.keys().collect::<Vec<_>>());
        let waiting = |scope: &Scope| -> usize {
            let now = clock.load(Ordering::Relaxed) as f64;
            let lines = scope.lines.values();
            lines.map(|line| line.ends.values().filter(|place| place.end > now).count()).sum()
        };
        assert_eq!(waiting(&scope), waiting(expected), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_does_what_the_rules_say() -> Result<()> {
    for seed in 1..=6 {
        let (store, _database) = in_redis().await?;
        same_as_the_rules(store, seed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_file_does_what_the_rules_say() -> Result<()> {
    for seed in 1..=2 {
        let (store, _folder) = in_a_file().await?;
        same_as_the_rules(store, seed).await?;
    }
    Ok(())
}

/// How many messages four workers at one store are let through in `seconds`, by the store's own clock, from the first to the last.
async fn let_through(url: &str, ask: &Ask, seconds: f64) -> Result<f64> {
    let begin = Instant::now();
    let workers = (0..4).map(|_| async move {
        let store = Store::connect(url, Options::default()).await?;
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
            let ask = Ask { want, queue: false, ..ask(vec![demand(&scope, &[rate]), demand("transport:r", &[])]) };
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
    let store = Store::connect(&redis.url(), Options::default()).await?;
    let narrow = ask(vec![demand("group:r:g", &["1/s"])]);
    for _ in 0..100 {
        store.admit(&narrow).await?;
    }
    redis.kill9()?;
    redis.restart()?;
    store.back().await;
    let Admission::Park { slot_us, .. } = store.admit(&narrow).await? else { anyhow::bail!("no line") };
    ensure!(slot_us > 60e6, "{slot_us}");
    let Admission::Full { wait_us, .. } = store.admit(&Ask { queue: false, fresh: false, ..narrow }).await? else {
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
    let store = Store::connect(&cluster.url(), Options::default()).await?;
    same_as_the_rules(store, 9).await
}

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
    let mut narrow = Ask { weight: 3.0, ..ask(vec![demand("group:r:g", &["200/s"])]) };
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
fn cost(database: &Redis) -> Result<(f64, f64)> {
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
    let store = Store::connect(&redis.url(), Options::default()).await?;
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
            let ask = Ask { want, ..ask(demands) };
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
async fn both_stores_share_connections_as_the_rules_say() -> Result<()> {
    let (redis, _database) = in_redis().await?;
    let (file, _folder) = in_a_file().await?;
    let clock = Arc::new(AtomicU64::new(START));
    let stores = [redis, file].map(|store| store.with_limiter_clock(Arc::clone(&clock)));
    let (mut holders, mut dice, mut open) = (BTreeMap::new(), Dice(5), [0_u32; 4]);
    for step in 0..400 {
        let now = clock.load(Ordering::Relaxed) + dice.roll(3_000_000);
        clock.store(now, Ordering::Relaxed);
        let worker = usize::try_from(dice.roll(4))?;
        let closed = u32::try_from(dice.roll(4))?;
        open[worker] = open[worker].saturating_sub(closed);
        let want = Want {
            worker: format!("worker-{worker}"),
            wanted: u32::try_from(dice.roll(12))?,
            using: open[worker],
            total: 10,
            life_us: 8e6,
        };
        let expected = share(&mut holders, &want, now as f64);
        for store in &stores {
            ensure!(store.connections("relay", &want).await? == expected, "step {step}: {want:?}");
        }
        open[worker] = open[worker].max(expected);
    }
    Ok(())
}

/// Asks until told to stop; a store that is away is asked again. How many tokens came, and the times at which they could be used.
async fn keep_asking(store: Store, ask: Ask, stop: Arc<AtomicBool>) -> Result<Vec<Instant>> {
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
    let ask = Ask { queue: false, ..ask(vec![demand("group:r:g", &["50/s"]), demand("transport:r", &["1000/s"])]) };
    let stop = Arc::new(AtomicBool::new(false));
    let mut askers = Vec::new();
    for _ in 0..2 {
        let store = Store::connect(url, Options::default()).await?;
        askers.push(tokio::spawn(keep_asking(store, ask.clone(), Arc::clone(&stop))));
    }
    let store = Store::connect(url, Options::default()).await?;
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
fn move_slot(ports: &[u16], key: &str) -> Result<()> {
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

#[tokio::test]
async fn a_claim_and_its_limits_are_one_round_trip_and_nothing_is_charged_without_the_right() -> Result<()> {
    if Redis::start_or_skip("claims with limits")?.is_none() {
        return Ok(());
    }
    let redis = Redis::start()?;
    let store = Store::connect(&redis.url(), Options::default()).await?;
    let request = ClaimRequest {
        key: LedgerKey::of(&Identity::of_id(JobId(uuid::Uuid::now_v7()))),
        payload_hash: PayloadHash::default(),
        generation: 0,
        redelivered: false,
        published_at: None,
    };
    let narrow = ask(vec![demand("group:r:g", &["1/s"]), demand("transport:r", &["10/s", "100/min"])]);
    let (_, calls) = cost(&redis)?;
    let (claim, admission) = store.claim_and_admit(&request, Some(&narrow)).await?;
    ensure!(matches!(claim, Claim::Go(_)), "{claim:?}");
    ensure!(matches!(admission, Some(Admission::Go { wait_us: 0.0, tokens: 1, .. })), "{admission:?}");
    let (claim, admission) = store.claim_and_admit(&request, Some(&narrow)).await?;
    ensure!(matches!(claim, Claim::Busy { .. }) && admission.is_none(), "{claim:?} {admission:?}");
    ensure!(cost(&redis)?.1 - calls <= 3.0, "one call each, and the first one's text");
    let overview = store.overview(None).await?;
    ensure!(overview.scopes.iter().all(|(_, scope)| scope.used.count < 1.5), "charged once: {overview:?}");
    let other = ClaimRequest { key: LedgerKey::of(&Identity::of_id(JobId(uuid::Uuid::now_v7()))), ..request };
    let mut waits = Vec::new();
    for n in 0..3 {
        let key = LedgerKey::of(&Identity::of_id(JobId(uuid::Uuid::now_v7())));
        let one = ClaimRequest { key, ..other.clone() };
        let (claim, admission) = store.claim_and_admit(&one, Some(&narrow)).await?;
        ensure!(matches!(claim, Claim::Go(_)), "{n}: {claim:?}");
        waits.push(admission);
    }
    ensure!(matches!(waits.last(), Some(Some(Admission::Park { scope: 0, .. }))), "{waits:?}");
    let (file, _folder) = in_a_file().await?;
    let (claim, admission) = file.claim_and_admit(&other, Some(&narrow)).await?;
    ensure!(matches!(claim, Claim::Go(_)) && admission.is_none(), "the file is asked twice");
    Ok(())
}
