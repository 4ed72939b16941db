//! The limiter keeps its word: every store does what the pure rules say, step by step.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use postrider_schemas::{JobId, Lane, Tenant, job::Identity, payload_hash::PayloadHash};
use postrider_tests::redis::{Database, Redis};
use postrider_workers::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest, admit},
        connections::{LeaseRequest, share},
        rate::Rate,
        scope::{Limit, Scope, ScopeLimits},
        shaping_rule::{LimitCommand, RuleCall, order, react},
    },
    store::{Claim, ClaimRequest, LedgerKey, Store, StoreOptions},
};

use crate::limiter_growth::cost;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const START: u64 = 1_760_000_000_000_000;

pub(crate) fn demand(scope: &str, rates: &[&str]) -> ScopeLimits {
    let limit = |rate: &&str| Limit::from(&rate.parse::<Rate>().unwrap());
    ScopeLimits { scope: scope.to_owned(), limits: rates.iter().map(limit).collect() }
}

pub(crate) fn ask(demands: Vec<ScopeLimits>) -> AdmissionRequest {
    AdmissionRequest::fresh(demands, Lane::Bulk, "a")
}

pub(crate) async fn in_redis() -> Result<(Store, Database)> {
    let database = Database::fresh()?;
    Ok((Store::connect(&database.url(), StoreOptions::default()).await?, database))
}

pub(crate) async fn in_a_file() -> Result<(Store, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Ok((Store::connect(&url, StoreOptions::default()).await?, folder))
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
        2 if seed.is_multiple_of(4) && dice.roll(5) == 0 => before - 300_000_000,
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

fn slower(dice: &mut Dice) -> Result<RuleCall> {
    Ok(RuleCall {
        reaction: dice.pick(&["slow", "other"]).to_owned(),
        count: u32::try_from(1 + dice.roll(3))?,
        within_us: 2e6,
        pause_us: dice.roll(3) as f64 * 3e5,
        keep: 5e5,
        floor: [1e5, 2e4, 7e5][usize::try_from(dice.roll(3))?],
        recovery: [2e4, 500.0][usize::try_from(dice.roll(2))?],
        incident_us: 1e6,
        seen_interval_us: dice.roll(2) as f64 * 1e4,
        why: "slow: 421".to_owned(),
    })
}

/// Random questions, shaping rules and orders, to a store and to the pure rules.
pub(crate) async fn same_as_the_rules(store: Store, seed: u64) -> Result<()> {
    let clock = Arc::new(AtomicU64::new(START));
    let store = store.with_limiter_clock(Arc::clone(&clock));
    let mut model: BTreeMap<String, Scope> = BTreeMap::new();
    let mut dice = Dice(seed);
    let mut words: BTreeMap<&str, u32> = BTreeMap::new();
    let rates = rates(seed);
    let mut latest = START;
    for step in 0..1500 {
        let now = later(&mut dice, clock.load(Ordering::Relaxed), seed);
        clock.store(now, Ordering::Relaxed);
        latest = latest.max(now);
        let scope = dice.pick(&["transport:r", "group:r:g", "tenant:a"]).to_owned();
        match dice.roll(60) {
            0 => {
                let call = slower(&mut dice)?;
                let is = store.react(&scope, &call).await?;
                let expected = react(model.entry(scope).or_default(), &call, now as f64);
                assert_eq!(is, expected, "step {step}");
            }
            1 => {
                let one = match dice.roll(4) {
                    0 => LimitCommand::Pause { for_us: 4e5, why: "maintenance".to_owned() },
                    1 => {
                        let set =
                            Limit::from(&dice.pick(&["30/s burst 2", "900/min burst 3", "1000/h"]).parse::<Rate>()?);
                        let why = "on trial".to_owned();
                        let (interval_us, tolerance_us) = (set.interval_us, set.tolerance_us);
                        LimitCommand::Set { bucket: set.bucket.to_owned(), interval_us, tolerance_us, for_us: 2e6, why }
                    }
                    _ => LimitCommand::Resume,
                };
                store.order(&scope, &one).await?;
                order(model.entry(scope).or_default(), &one, now as f64);
            }
            _ => {
                let demands: Vec<ScopeLimits> = ["transport:r", "group:r:g", "tenant:a"]
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
                let hold = dice.roll(5) > 0;
                let ask = AdmissionRequest { demands, lane, tenant, weight, fresh, want, queue, hold };
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
    // What was over before the clock was set back is forgotten there, and may not be over by the rules.
    clock.store(latest, Ordering::Relaxed);
    let now = clock.load(Ordering::Relaxed) as f64;
    let mut disturbed = store.overrides().await?;
    disturbed.sort_unstable();
    let expected = model.iter().filter(|(_, scope)| scope.disturbed_until() > now);
    assert_eq!(disturbed, expected.map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let names: Vec<String> = model.keys().cloned().collect();
    let counts = store.counts(&names).await?;
    assert!(!counts.scopes.is_empty() && (counts.now - now).abs() < 1.0);
    for (name, scope) in counts.scopes {
        let expected = &model[&name];
        let of = |scope: &Scope| (scope.used, scope.cut, scope.set.clone(), scope.paused_until);
        assert_eq!(of(&scope), of(expected), "{name}");
    }
    let overview = store.overview(None).await?;
    for (name, scope) in overview.scopes {
        let expected = &model[&name];
        let of = |scope: &Scope| (scope.used, scope.cut, scope.why.clone(), scope.set_why.clone());
        assert_eq!(of(&scope), of(expected), "{name}");
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
    for seed in 1..=12 {
        let (store, _database) = in_redis().await?;
        same_as_the_rules(store, seed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_file_does_what_the_rules_say() -> Result<()> {
    for seed in 1..=4 {
        let (store, _folder) = in_a_file().await?;
        same_as_the_rules(store, seed).await?;
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
    let mut scarce = 0;
    for step in 0..800 {
        // Enough for all of them at first, and then not.
        let total = if step < 400 { 10 } else { 1 + step / 50 % 3 };
        // Some pauses are longer than a lease.
        let pause = if dice.roll(20) == 0 { 9_000_000 } else { dice.roll(3_000_000) };
        let now = clock.load(Ordering::Relaxed) + pause;
        clock.store(now, Ordering::Relaxed);
        let worker = usize::try_from(dice.roll(4))?;
        let closed = u32::try_from(dice.roll(4))?;
        open[worker] = open[worker].saturating_sub(closed);
        let want = LeaseRequest {
            worker: format!("worker-{worker}"),
            wanted: u32::try_from(dice.roll(12).saturating_sub(3))?,
            spare: u32::try_from(dice.roll(2))?,
            using: open[worker],
            total,
            life_us: 8e6,
        };
        let expected = share(&mut holders, &want, now as f64);
        scarce += u32::from(holders.values().filter(|held| held.wanted > 0).count() > total as usize);
        for store in &stores {
            ensure!(store.connections("relay", &want).await? == expected, "step {step}: {want:?}");
        }
        open[worker] = open[worker].max(expected);
    }
    ensure!(scarce > 100, "{scarce} times somebody had to wait for a turn");
    Ok(())
}

#[tokio::test]
async fn a_claim_and_its_limits_are_one_round_trip_and_nothing_is_charged_without_the_right() -> Result<()> {
    if Redis::start_or_skip("claims with limits")?.is_none() {
        return Ok(());
    }
    let redis = Redis::start()?;
    let store = Store::connect(&redis.url(), StoreOptions::default()).await?;
    let request = ClaimRequest {
        key: LedgerKey::of(&Identity::of_id(&Tenant::default(), JobId(uuid::Uuid::now_v7()))),
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
    let other = ClaimRequest {
        key: LedgerKey::of(&Identity::of_id(&Tenant::default(), JobId(uuid::Uuid::now_v7()))),
        ..request
    };
    let mut waits = Vec::new();
    for n in 0..3 {
        let key = LedgerKey::of(&Identity::of_id(&Tenant::default(), JobId(uuid::Uuid::now_v7())));
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
