//! The line under simulated arrivals: jobs ask, wait, come back a little late as from a delay ladder, and ask again. Checks that the
//! limit holds, that no capacity is wasted while somebody waits, how often jobs are deferred, and who gets what.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of a simulation are small"
)]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use postrider_schemas::Lane;

use super::{
    admit::{Admission, AdmissionRequest, HOLD_US, admit},
    rate::Rate,
    scope::{Limit, RateReduction, Scope, ScopeLimits},
};

const START: u64 = 1_760_000_000_000_000;

/// Who publishes how many jobs when.
struct Blast {
    tenant: &'static str,
    weight: f64,
    lane: Lane,
    times: Vec<u64>,
}

/// What became of them.
#[derive(Default)]
struct Run {
    sent: Vec<(u64, &'static str)>,
    parks: usize,
    asked: usize,
}

/// Small and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as f64) / f64::from(u32::MAX >> 1)
    }

    /// What the ladder and a busy worker add: little as a rule, up to 300 ms at times.
    fn lateness_us(&mut self) -> u64 {
        let most = if self.roll() < 0.1 { 300_000.0 } else { 10_000.0 };
        (self.roll() * most) as u64
    }
}

fn blast(tenant: &'static str, from_s: u64, count: usize) -> Blast {
    let times = (0..count as u64).map(|n| START + from_s * 1_000_000 + n * 300).collect();
    Blast { tenant, weight: 1.0, lane: Lane::Bulk, times }
}

/// Arrivals at random, at this mean rate.
fn stream(tenant: &'static str, per_second: f64, seconds: f64, dice: &mut Dice) -> Blast {
    let (mut at, mut times) = (0.0, Vec::new());
    loop {
        at -= (1.0 - dice.roll()).max(1e-9).ln() / per_second;
        if at > seconds {
            return Blast { tenant, weight: 1.0, lane: Lane::Bulk, times };
        }
        times.push(START + (at * 1e6) as u64);
    }
}

fn run(rate: &str, blasts: &[Blast]) -> Run {
    run_from(Scope::default(), rate, blasts)
}

fn run_from(scope: Scope, rate: &str, blasts: &[Blast]) -> Run {
    let limit = Limit::from(&rate.parse::<Rate>().unwrap());
    let mut scopes = [scope];
    let mut dice = Dice(7);
    let mut events = BinaryHeap::new();
    for (index, blast) in blasts.iter().enumerate() {
        events.extend(blast.times.iter().enumerate().map(|(n, at)| Reverse((*at, n, index, true))));
    }
    let mut run = Run::default();
    while let Some(Reverse((now, n, index, fresh))) = events.pop() {
        let blast = &blasts[index];
        let demands = vec![ScopeLimits { scope: "g".to_owned(), limits: vec![limit.clone()] }];
        let ask = AdmissionRequest {
            weight: blast.weight,
            fresh,
            ..AdmissionRequest::fresh(demands, blast.lane, blast.tenant)
        };
        run.asked += 1;
        match admit(&mut scopes, &ask, now as f64) {
            Admission::Go { wait_us, .. } => run.sent.push((now + wait_us as u64, blast.tenant)),
            Admission::Park { park_us, .. } => {
                let away = park_us > HOLD_US;
                run.parks += usize::from(away);
                let late = if away { dice.lateness_us() } else { (dice.roll() * 3_000.0) as u64 };
                events.push(Reverse((now + park_us as u64 + late, n, index, false)));
            }
            other => panic!("{other:?}"),
        }
    }
    run.sent.sort_unstable();
    run
}

impl Run {
    /// Seconds from the start to the last message, of one tenant or of all.
    fn end(&self, tenant: Option<&str>) -> f64 {
        let last = self.sent.iter().rfind(|(_, one)| tenant.is_none_or(|name| *one == name));
        (last.unwrap().0 - START) as f64 / 1e6
    }

    fn parks_per_job(&self) -> f64 {
        self.parks as f64 / self.sent.len() as f64
    }

    fn busiest(&self, window_s: u64) -> usize {
        let (mut first, mut most) = (0, 0);
        for (n, (at, _)) in self.sent.iter().enumerate() {
            while self.sent[first].0 + window_s * 1_000_000 <= *at {
                first += 1;
            }
            most = most.max(n + 1 - first);
        }
        most
    }

    fn first(&self, seconds: f64) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (_, tenant) in self.sent.iter().filter(|(at, _)| ((at - START) as f64) < seconds * 1e6) {
            *counts.entry(*tenant).or_default() += 1;
        }
        counts
    }
}

#[track_caller]
fn check_one(rate: &str, jobs: usize) {
    let per_second = rate.parse::<Rate>().unwrap().per_second();
    let run = run(rate, &[blast("a", 0, jobs)]);
    let ideal = jobs as f64 / per_second;
    let most = per_second * 10.0 * 1.01 + f64::from(rate.parse::<Rate>().unwrap().burst()) + 1.0;
    println!(
        "{rate}: {jobs} jobs in {:.1} s (ideal {ideal:.1}), {:.3} parks a job, {:.2} questions a job, busiest 10 s {}",
        run.end(None),
        run.parks_per_job(),
        run.asked as f64 / jobs as f64,
        run.busiest(10)
    );
    assert_eq!(run.sent.len(), jobs);
    assert!(run.end(None) <= ideal * 1.02 + 2.0, "{}", run.end(None));
    assert!(run.parks_per_job() <= 1.1, "{}", run.parks_per_job());
    assert!(run.busiest(10) as f64 <= most, "{}", run.busiest(10));
}

#[test]
fn a_blast_drains_at_the_rate_and_each_job_is_parked_once() {
    check_one("1/s", 300);
    check_one("5/s", 1000);
    check_one("20/s", 10_000);
    check_one("200/s", 20_000);
    check_one("100/min", 200);
}

#[test]
fn a_line_that_is_longer_than_the_longest_park_still_drains_at_the_rate() {
    for (rate, jobs, most) in [("20/s", 80_000, 2.0), ("1/min", 100, 3.5), ("2/h", 12, 20.0)] {
        let ideal = f64::from(jobs) / rate.parse::<Rate>().unwrap().per_second();
        let run = run(rate, &[blast("a", 0, jobs as usize)]);
        println!("{rate}: {:.1} s (ideal {ideal:.1}), {:.3} parks a job", run.end(None), run.parks_per_job());
        assert!(run.end(None) <= ideal * 1.02 + 2.0, "{}", run.end(None));
        assert!(run.parks_per_job() <= most, "{}", run.parks_per_job());
    }
}

#[test]
fn a_line_behind_a_cut_that_does_not_recover_drains_at_what_is_left() {
    let cut = RateReduction { left: 100_000.0, at: START as f64, recovery: 1e-9, seen_interval_us: 0.0 };
    let run = run_from(Scope { cut: Some(cut), ..Scope::default() }, "20/s", &[blast("a", 0, 1200)]);
    let ideal = 1200.0 / 2.0;
    println!("{:.1} s (ideal {ideal:.1}), {:.3} parks a job", run.end(None), run.parks_per_job());
    assert!(run.end(None) <= ideal * 1.03 + 2.0, "{}", run.end(None));
}

#[test]
fn a_line_behind_a_pause_and_a_cut_comes_back_when_it_could_go() {
    let cut = |left, recovery| Some(RateReduction { left, at: START as f64, recovery, seen_interval_us: 0.0 });
    for (left, recovery, pause_s, jobs) in
        [(500_000.0, 556.0, 300, 20_000), (500_000.0, 1e-9, 0, 10_000), (20_000.0, 1667.0, 60, 5000)]
    {
        let paused_until = (START + pause_s * 1_000_000) as f64;
        let run = run_from(
            Scope { paused_until, cut: cut(left, recovery), ..Scope::default() },
            "20/s",
            &[blast("a", 0, jobs)],
        );
        // Second by second, at what is left of the rate.
        let mut gone = 0.0;
        let seconds = (pause_s..10_000).find(|second| {
            gone += 20.0 * (left + recovery * *second as f64).min(1e6) / 1e6;
            gone >= jobs as f64
        });
        let ideal = seconds.unwrap() as f64;
        println!("{left}: {:.1} s (ideal {ideal:.1}), {:.3} parks a job", run.end(None), run.parks_per_job());
        assert!(run.end(None) <= ideal * 1.05 + 5.0, "{}", run.end(None));
        // Those who find the line full come back within a minute.
        assert!(run.parks_per_job() <= 10.0, "{}", run.parks_per_job());
    }
}

#[test]
fn a_small_tenant_is_served_beside_a_large_one_behind_a_cut_as_well() {
    let cut = RateReduction { left: 500_000.0, at: START as f64, recovery: 556.0, seen_interval_us: 0.0 };
    let scope = Scope { cut: Some(cut), ..Scope::default() };
    let run = run_from(scope, "20/s", &[blast("large", 0, 40_000), blast("small", 60, 1000)]);
    let took = run.end(Some("small")) - 60.0;
    println!("small {took:.1} s (ideal about 180), {:.3} parks a job", run.parks_per_job());
    assert!(took <= 360.0, "{took}");
}

#[test]
fn what_came_first_is_not_overtaken_for_ever_by_what_keeps_coming() {
    let mut dice = Dice(5);
    let run = run("2/s", &[blast("old", 0, 4000), stream("new", 1.2, 3600.0, &mut dice)]);
    let counts = run.first(3600.0);
    println!("{counts:?}, {:.3} parks a job", run.parks_per_job());
    assert!(counts["old"] > 3000, "{counts:?}");
}

#[test]
fn a_small_tenant_is_served_beside_a_large_one_whenever_it_comes() {
    for from_s in [0, 20] {
        let run = run("20/s", &[blast("large", 0, 4000), blast("small", from_s, 100)]);
        let took = run.end(Some("small")) - from_s as f64;
        println!(
            "from {from_s}: small {took:.1} s (ideal 10), all {:.1}, {:.3} parks a job",
            run.end(None),
            run.parks_per_job()
        );
        assert!(took <= 15.0, "twice the rate of its share is {took} s");
        assert!(run.end(None) <= 205.0 * 1.02 + 2.0, "{}", run.end(None));
        assert!(run.parks_per_job() <= 1.1, "{}", run.parks_per_job());
    }
}

#[test]
fn tenants_share_by_weight_even_where_one_came_first() {
    let heavy = Blast { weight: 3.0, ..blast("heavy", 0, 3000) };
    let run_of = run("20/s", &[blast("light", 0, 3000), heavy]);
    let counts = run_of.first(60.0);
    println!("{counts:?}");
    let share = counts["heavy"] as f64 / (counts["heavy"] + counts["light"]) as f64;
    assert!((0.70..0.80).contains(&share), "{share}");
    let second = run("20/s", &[blast("first", 0, 3000), blast("second", 5, 3000)]);
    let counts = second.first(65.0);
    println!("{counts:?}");
    let share = counts["second"] as f64 / (counts["second"] + counts["first"]) as f64;
    assert!((0.40..0.55).contains(&share), "{share}");
}

#[test]
fn random_arrivals_waste_nothing_and_pass_no_limit() {
    for (load, seed) in [(0.5, 1), (0.9, 2), (1.0, 3), (1.3, 4)] {
        let mut dice = Dice(seed);
        let streams = ["a", "b", "c"].map(|tenant| stream(tenant, 20.0 * load / 3.0, 600.0, &mut dice));
        let arrivals: usize = streams.iter().map(|one| one.times.len()).sum();
        let run = run("20/s", &streams);
        // The same arrivals at a server that never rests while somebody waits.
        let mut times: Vec<u64> = streams.iter().flat_map(|one| one.times.clone()).collect();
        times.sort_unstable();
        let ideal = times.iter().fold(0u64, |free, at| free.max(*at) + 50_000);
        let ideal = (ideal - START) as f64 / 1e6;
        println!(
            "load {load}: {arrivals} jobs, {:.3} parks a job, {:.2} questions a job, done in {:.1} s, at best {ideal:.1}",
            run.parks_per_job(),
            run.asked as f64 / arrivals as f64,
            run.end(None)
        );
        assert!(run.end(None) <= ideal * 1.02 + 3.0, "{} {ideal}", run.end(None));
        assert!(run.busiest(10) <= 203, "{}", run.busiest(10));
        assert!(run.parks_per_job() < 1.1);
    }
}

#[test]
fn transactional_mail_passes_a_saturating_blast() {
    let times: Vec<u64> = (0..60).map(|n| START + 5_000_000 + n * 1_000_000).collect();
    let few = Blast { tenant: "codes", weight: 1.0, lane: Lane::Transactional, times: times.clone() };
    let run = run("20/s", &[blast("news", 0, 2000), few]);
    let sent: Vec<u64> = run.sent.iter().filter(|(_, tenant)| *tenant == "codes").map(|(at, _)| *at).collect();
    let waits: Vec<f64> = sent.iter().zip(&times).map(|(sent, at)| (*sent as f64 - *at as f64) / 1e6).collect();
    let most = waits.iter().copied().fold(0.0, f64::max);
    println!("transactional waits: at most {most:.3} s; busiest 10 s {}", run.busiest(10));
    assert!(most <= 0.1, "{most}");
    assert!(run.busiest(10) <= 206);
}
