//! A blast to a group that is slow delays nobody else: the same load with and without it, side by side. `POSTRIDER_TEST_LONG=1` runs the long
//! version, whose bounds are those of a machine that does little else.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use postrider_producer::Publisher;
use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    fault_proxy::{FaultProxy, Faults},
    postrider::Postrider,
    sink::SmtpSink,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
    usage,
};

use crate::limits::{busiest, is_long, jobs, throttle, times};

/// Jobs to a limit that keeps them busy for more than ten seconds.
const BLAST: usize = 800;
const LONG: Duration = Duration::from_secs(120);

/// Runs of each kind in the long version.
const PAIRS: usize = 7;

/// What a second of the run looked like.
#[derive(Debug, Clone, Copy)]
struct Second {
    /// Messages at the broker, wherever they wait.
    depth: u64,
    /// Resident memory of the worker in KiB.
    memory: u64,
}

/// What a run came to.
struct Run {
    /// Seconds from the first to the last message to the others.
    others: f64,
    /// Seconds from publish to sink of each transactional message, in order.
    urgent: Vec<f64>,
    /// Since the others were done.
    seconds: Vec<Second>,
    /// Arrivals in the slow group.
    slow: Vec<f64>,
    /// Jobs that were deferred and have been sent, and how often all of them together.
    parked: (usize, usize),
    /// Messages that the broker delivered again.
    redelivered: u64,
}

/// A load: so many jobs to the slow group first, so many to others, one transactional job a second until the end.
async fn run(blast: usize, others: usize, watched: Duration) -> Run {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, &throttle("slow", "20/s")).unwrap();
    let publisher = Publisher::connect(&env.amqp_url()).await.unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "slow", blast)).await.unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "other", others)).await.unwrap();
    let limit = Instant::now() + Duration::from_secs(600);
    let (mut sent, mut seconds, mut done) = (BTreeMap::new(), Vec::new(), None::<Instant>);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while done.is_none_or(|done| done.elapsed() < watched) {
        tick.tick().await;
        assert!(Instant::now() < limit, "{} of {others} others", times(env.sink(), "other").len());
        let name = format!("code-{}@urgent.example", sent.len());
        sent.insert(name.clone(), now());
        publisher.publish(&story::job(Lane::Transactional, &name)).await.unwrap();
        if done.is_none() && times(env.sink(), "other").len() == others {
            done = Some(Instant::now());
        }
        if done.is_some() {
            seconds.push(Second { depth: depth(&env), memory: usage::memory(worker.pid()).unwrap() });
        }
    }
    publisher.close().await;
    let arrived = || (times(env.sink(), "urgent").len() == sent.len()).then_some(());
    deadline::wait_for("the last transactional message", SOON, arrived).unwrap();
    let redelivered = redelivered(&env);
    let run = Run {
        others: span(&times(env.sink(), "other")),
        urgent: waits(env.sink(), &sent),
        seconds,
        slow: times(env.sink(), "slow"),
        parked: parked(&worker),
        redelivered,
    };
    drop(worker);
    let stored = env.sink().messages().unwrap();
    let once: HashSet<String> = stored.iter().map(|one| one.recipients()[0].to_owned()).collect();
    assert_eq!(once.len(), stored.len(), "nothing twice");
    run
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn span(times: &[f64]) -> f64 {
    times.last().copied().unwrap_or_default() - times.first().copied().unwrap_or_default()
}

fn waits(sink: &SmtpSink, sent: &BTreeMap<String, f64>) -> Vec<f64> {
    let arrivals = sink.arrivals().unwrap();
    let mut waits: Vec<f64> = arrivals.iter().filter_map(|(at, to)| Some(at - sent.get(to)?)).collect();
    waits.sort_by(f64::total_cmp);
    waits
}

fn depth(env: &TestEnv) -> u64 {
    env.vhost().queue_depths().unwrap().values().map(|one| one.total()).sum()
}

/// Jobs that waited for their slot elsewhere and have been sent, and how often they did. Those that still wait would hide what comes back in vain.
fn parked(worker: &Postrider) -> (usize, usize) {
    let log = worker.stderr();
    let sent: HashSet<&str> = log.lines().filter_map(|line| word_after(line, "\"Sent job ")).collect();
    let waits = || {
        let lines = log.lines().filter(|line| line.contains(" limited by group:"));
        lines.filter_map(|line| word_after(line, "\"Job ")).filter(|id| sent.contains(id))
    };
    (waits().collect::<HashSet<_>>().len(), waits().count())
}

fn word_after<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.split(before).nth(1)?.split([' ', '"']).next()
}

/// By the broker's statistics, once they have caught up: everything was delivered, so they cannot be without deliveries.
fn redelivered(env: &TestEnv) -> u64 {
    let sum = |field: &str| -> u64 {
        let queues = env.vhost().list("queues").unwrap();
        queues.iter().filter_map(|queue| queue["message_stats"][field].as_u64()).sum()
    };
    deadline::wait_for("the broker's statistics", SOON, || (sum("deliver_get") > 0).then_some(())).unwrap();
    sum("redeliver")
}

fn p99(sorted: &[f64]) -> f64 {
    sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)]
}

/// The middle one of several.
fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blast_to_a_slow_group_delays_nobody_else_and_is_parked_once() {
    let (blast, others, watched) = if is_long() { (20_000, 2_000, 60) } else { (600, 300, 8) };
    let watched = Duration::from_secs(watched);
    let without = run(0, others, watched).await;
    let with = run(blast, others, watched).await;
    // The others take less than two seconds, most of which the sink spends on making files: one run of each says little. Pairs that take
    // turns are compared by their medians.
    let (mut times_without, mut times_with) = (vec![without.others], vec![with.others]);
    for _ in 1..if is_long() { PAIRS } else { 1 } {
        times_without.push(run(0, others, Duration::ZERO).await.others);
        times_with.push(run(blast, others, Duration::ZERO).await.others);
    }
    println!("the others without the blast {times_without:.2?} s, with it {times_with:.2?} s");
    let (others_without, others_with) = (median(times_without), median(times_with));
    for (name, run) in [("without", &without), ("with", &with)] {
        println!(
            "{name} the blast: others in {:.2} s, transactional p50 {:.3} s, p99 {:.3} s of {}",
            run.others,
            run.urgent[run.urgent.len() / 2],
            p99(&run.urgent),
            run.urgent.len()
        );
    }
    let (jobs, parks) = with.parked;
    let per_job = parks as f64 / jobs as f64;
    let (first, last) = (with.seconds[0], with.seconds[with.seconds.len() - 1]);
    let pace = with.slow.len() as f64 / span(&with.slow);
    println!(
        "{jobs} jobs parked {per_job:.3} times each, {} redelivered; slow group {pace:.2}/s, busiest 10 s {}; from {first:?} to {last:?}",
        with.redelivered,
        busiest(&with.slow, 10.0)
    );
    let (slower, later) = if is_long() { (1.1, 0.25) } else { (3.0, 1.5) };
    assert!(
        others_with <= others_without * slower + if is_long() { 0.0 } else { 2.0 },
        "{others_with} {others_without}"
    );
    assert!(p99(&with.urgent) <= p99(&without.urgent) + later, "{:.3?}", with.urgent);
    assert!(jobs > 0 && per_job <= 1.1, "{per_job}");
    assert_eq!(with.redelivered, 0, "nothing goes back and forth");
    assert!(busiest(&with.slow, 10.0) <= 212, "{}", busiest(&with.slow, 10.0));
    // What waits only goes down, and the worker keeps none of it.
    assert!(last.depth < first.depth, "{first:?}, {last:?}");
    let most = with.seconds.iter().map(|one| one.memory).max().unwrap();
    assert!(most <= first.memory + first.memory / 10 + 4096, "{first:?}, {most} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blast_to_a_limit_that_is_faster_than_a_worker_fetches_keeps_nobody_waiting_behind_it() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    // The worker has at most 32 or 48 jobs of a lane in hand: all of them could be waiting for their turn within a second and a half. A faster
    // limit would not hold back what a busy machine sends, and the order would be that of the queue.
    let _worker = story::worker(&env, &[throttle("first", "35/s"), throttle("second", "35/s")].concat()).unwrap();
    for (lane, blast, other) in [(Lane::Bulk, "first", "news"), (Lane::Transactional, "second", "code")] {
        let (many, few) = (BLAST, 100);
        story::publish(&env.amqp_url(), &jobs(lane, blast, many)).await.unwrap();
        story::publish(&env.amqp_url(), &jobs(lane, other, few)).await.unwrap();
        let all = || (times(env.sink(), other).len() == few).then_some(());
        deadline::wait_for("the others", LONG, all).unwrap();
        let last = times(env.sink(), other).into_iter().fold(0.0, f64::max);
        let before = times(env.sink(), blast).into_iter().filter(|at| *at < last).count();
        println!("{lane}: {before} of {many} went before the last of the others");
        // Behind them all it would be every one. How many it is goes by how busy the machine is.
        assert!(before < many * 3 / 4, "{before}");
    }
    let all = || (["first", "second"].iter().all(|name| times(env.sink(), name).len() == BLAST)).then_some(());
    deadline::wait_for("the blasts", LONG, all).unwrap();
    for name in ["first", "second"] {
        let times = times(env.sink(), name);
        println!("{name}: {:.1}/s, busiest 10 s {}", times.len() as f64 / span(&times), busiest(&times, 10.0));
        assert!(busiest(&times, 10.0) <= 390, "{}", busiest(&times, 10.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blast_to_a_limit_whose_tokens_come_in_batches_is_put_away_side_by_side_however_far_the_store_is() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let redis = env.redis_url();
    let port = redis.rsplit(':').next().unwrap().split('/').next().unwrap();
    let (far, away) = (FaultProxy::start(port.parse().unwrap()).unwrap(), Duration::from_millis(80));
    far.set(Faults::delay_replies(away));
    let config = |store: &str| {
        let more = format!("{}{ROUTE}", throttle("first", "120/s"));
        story::config(&env.amqp_url(), store, env.sink().port(), &more)
    };
    // Nothing of the blast goes, so all of it has to be deferred.
    let pause = ["limits", "pause", "group:relay:first", "--reason", "maintenance"];
    let paused = Postrider::command(pause).config(config(&redis)).run(SOON).unwrap();
    assert!(paused.status.success(), "{}", paused.stderr);
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "first", BLAST)).await.unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "news", 10)).await.unwrap();
    let start = Instant::now();
    let _worker = story::start(config(&redis.replace(&format!(":{port}"), &format!(":{}", far.port())))).unwrap();
    deadline::wait_for("the others", LONG, || (times(env.sink(), "news").len() == 10).then_some(())).unwrap();
    let (took, one_by_one) = (start.elapsed(), away * u32::try_from(BLAST).unwrap());
    println!(
        "the last of the others after {took:.1?}; the answers to the blast one after the other take {one_by_one:.1?}"
    );
    assert!(took < one_by_one * 3 / 4, "{took:?}");
    assert!(times(env.sink(), "first").is_empty());
}
