//! Wall clocks that step under running workers, forward and back, and workers whose clock was wrong from the start.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_clock::{FakeClock, STEP_LIMIT},
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use rusqlite::Connection;

const DAY: i64 = 86_400;
const RATE: usize = 60;

fn is_long() -> bool {
    std::env::var_os("POSTRIDER_TEST_LONG").is_some()
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect()
}

fn limited(more: &str) -> String {
    format!("[[throttle]]\nname = \"dest\"\ndomains = [\"dest.example\"]\nrate = \"{RATE}/s\"\n{more}")
}

/// Message ids that arrived, with repetitions.
fn arrived(sink: &SmtpSink) -> Vec<String> {
    let id = |raw: &[u8]| {
        let text = String::from_utf8_lossy(raw);
        let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <").map(str::to_owned));
        line.unwrap_or_default().split('@').next().unwrap_or_default().to_owned()
    };
    sink.messages().unwrap().iter().map(|one| id(&one.raw)).collect()
}

/// Ids of the jobs that are held.
fn held(file: &Path) -> Vec<String> {
    let db = Connection::open(file).unwrap();
    let mut rows = db.prepare("SELECT message_id FROM message WHERE queue = 'hold'").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// What is left in a queue's file but what is held, by its place.
fn left(file: &Path) -> String {
    let db = Connection::open(file).unwrap();
    let mut rows = db
        .prepare("SELECT queue || ' ' || count(*) || ' in hand ' || count(owner) FROM message WHERE queue <> 'hold' GROUP BY queue")
        .unwrap();
    let lines: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    lines.join(", ")
}

/// So many workers at one file; the clock of the first one steps in the middle, and is set right again later. Every job is delivered once or held, and
/// none waits for as long as the clock was off.
async fn step(seconds: i64, workers: usize, count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let route = format!("{}[[route]]\nname = \"all\"\nsend = [\"relay\"]\non_unknown = \"hold\"\n", limited(""));
    let config = story::config(&file, &file, sink.port(), &route);
    let clock = FakeClock::new().unwrap();
    let stepping = clock.under(Postrider::command(["worker"]).config(config.clone())).start().unwrap();
    let others: Vec<_> = (1..workers).map(|_| Postrider::worker(config.clone()).unwrap()).collect();
    for worker in others.iter().chain([&stepping]) {
        deadline::wait_for("a worker that consumes", SOON, || worker.stderr().contains("Consuming").then_some(()))
            .unwrap();
    }
    let jobs = jobs(count);
    story::publish(&file, &jobs).await.unwrap();
    sink.wait_for(count / 6, 3 * SOON).unwrap();
    clock.set(seconds).unwrap();
    sink.wait_for(count * 2 / 3, 3 * SOON).unwrap();
    clock.set(0).unwrap();
    let all: HashSet<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    let begun = Instant::now();
    let ended = deadline::wait_for("every job delivered or held", 3 * SOON, || {
        let ended: HashSet<String> = arrived(&sink).into_iter().chain(held(&path)).collect();
        all.is_subset(&ended).then_some(())
    });
    let (arrived, held) = (arrived(&sink), held(&path));
    let once: HashSet<&String> = arrived.iter().collect();
    println!(
        "{seconds:+} s, {workers} workers: published {count}, delivered {} ({} twice), held {}, lost or waiting {}, {:.1} s after the last step",
        once.len(),
        arrived.len() - once.len(),
        held.len(),
        count.saturating_sub(once.len() + held.iter().filter(|id| !once.contains(id)).count()),
        begun.elapsed().as_secs_f64(),
    );
    assert!(ended.is_ok(), "{}", left(&path));
    assert_eq!(arrived.len(), once.len(), "nothing twice");
    assert!(held.is_empty(), "a step of a clock leaves nobody in doubt");
    drop(stepping);
    drop(others);
    assert_eq!(left(&path), "", "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_loses_and_delays_nothing_of_a_shared_file() {
    if !is_long() {
        tokio::join!(step(20, 3, 600), step(DAY, 2, 600));
        return;
    }
    for _ in 0..10 {
        for seconds in [20, -20, 60, DAY, -DAY] {
            tokio::join!(step(seconds, 2, 600), step(seconds, 3, 600));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_a_day_off_parks_limited_mail_no_longer_than_others_do() {
    for seconds in [DAY, -DAY] {
        let env = TestEnv::start(&EnvSpec::usual()).unwrap();
        story::declare(&env).unwrap();
        let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &limited(ROUTE));
        let clock = FakeClock::new().unwrap();
        clock.set(seconds).unwrap();
        let wrong = clock.under(Postrider::command(["worker"]).config(config.clone())).start().unwrap();
        let right = Postrider::worker(config).unwrap();
        let jobs = jobs(600);
        story::publish(&env.amqp_url(), &jobs).await.unwrap();
        env.sink().wait_for(600, Duration::from_secs(60)).unwrap();
        let told = || wrong.stderr().contains("the store's").then_some(());
        deadline::wait_for("a warning about the clock", SOON + STEP_LIMIT, told).unwrap();
        let arrived = arrived(env.sink());
        let once: HashSet<&String> = arrived.iter().collect();
        assert_eq!((arrived.len(), once.len()), (600, 600));
        drop((wrong, right));
    }
}
