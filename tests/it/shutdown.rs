//! A stop hands back at once what only waits: for the store, or in line for a connection. None of it counts as delivered, however often workers stop.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lapin::{Connection, ConnectionProperties, options::BasicGetOptions};
use postrider_schemas::{
    Job, Lane,
    topology::{SUSPECT_QUEUE, due_queue, jobs_queue},
};
use postrider_tests::{
    deadline, ports,
    postrider::Postrider,
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

use crate::limits::jobs;

/// Well below the drain of these workers.
const AT_ONCE: Duration = Duration::from_secs(5);
/// More than it takes to make a message suspect.
const STOPS: u32 = 4;

/// Rows by queue, whether somebody has them in hand, and how often they were delivered.
fn rows(file: &Path) -> BTreeMap<(String, bool, u32), usize> {
    let db = rusqlite::Connection::open(file).unwrap();
    db.busy_timeout(SOON).unwrap();
    let mut statement = db.prepare("SELECT queue, owner IS NOT NULL, deliveries FROM message").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let mut counts = BTreeMap::new();
    rows.for_each(|row| *counts.entry(row.unwrap()).or_default() += 1);
    counts
}

/// Waits until a worker has so many rows of a file in hand.
fn wait_in_hand(file: &Path, count: usize) {
    let in_hand = || rows(file).iter().filter(|((_, owned, _), _)| *owned).map(|(_, count)| count).sum::<usize>();
    deadline::wait_for(&format!("{count} jobs in hand"), SOON, || (in_hand() == count).then_some(())).unwrap();
}

/// Stops a worker; gives its exit code and how long that took.
fn stop(worker: &mut Postrider) -> (Option<i32>, Duration) {
    let begun = Instant::now();
    worker.terminate().unwrap();
    let status = worker.wait(SOON).unwrap();
    (status.code(), begun.elapsed())
}

fn expected(rows: &[(&str, u32, usize)]) -> BTreeMap<(String, bool, u32), usize> {
    rows.iter().map(|(queue, deliveries, count)| (((*queue).to_owned(), false, *deliveries), *count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_while_the_store_is_away_cost_no_job_of_a_file_its_good_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    let nobody = format!("redis://127.0.0.1:{}", ports::free().unwrap());
    let urgent = story::job(Lane::Transactional, "ada@dest.example");
    story::publish(&file, &[jobs(Lane::Bulk, "news", 5), vec![urgent]].concat()).await.unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    // A worker was lost that may have begun it: without the store nobody can know.
    db.execute("UPDATE message SET deliveries = 1 WHERE lane = 'transactional'", []).unwrap();
    let mut worker = story::start_any(&story::config(&file, &nobody, 9, ROUTE)).unwrap();
    for round in 0..STOPS {
        if round > 0 {
            worker.start_again().unwrap();
        }
        wait_in_hand(&path, 6);
        let (code, took) = stop(&mut worker);
        assert!(code == Some(0) && took < AT_ONCE, "stop {round}: {code:?} after {took:?}: {}", worker.stderr());
        assert_eq!(rows(&path), expected(&[("jobs", 0, 5), ("jobs", 1, 1)]), "stop {round}");
    }
}

/// The messages of a queue with their losses, as headers tell them and as the broker counts them, and whether they are told to be of this second or an
/// earlier one. They go back when this ends.
async fn losses(env: &TestEnv, queue: &str, until: u64) -> Vec<(Option<String>, bool, bool)> {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut found = Vec::new();
    while let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap() {
        let headers = got.delivery.properties.headers().clone().unwrap_or_default();
        let losses = headers.inner().get("postrider-losses").and_then(|value| value.as_long_string().cloned());
        let losses = losses.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        let is_old = got.delivery.properties.timestamp().is_some_and(|time| time <= until);
        found.push((losses, got.delivery.redelivered, is_old));
    }
    connection.close(200, "seen".into()).await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_while_the_store_is_away_cost_no_job_of_a_broker_its_good_name() {
    let env = TestEnv::start(&EnvSpec { redis: Server::Absent, sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let nobody = format!("redis://127.0.0.1:{}", ports::free().unwrap());
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "news", 5)).await.unwrap();
    let published = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut worker = story::start(story::config(&env.amqp_url(), &nobody, 9, ROUTE)).unwrap();
    let (jobs, due) = (jobs_queue(Lane::Bulk, 0), due_queue(Lane::Bulk, 0));
    let depths = || [&jobs, &due].map(|queue| story::depth(&env, queue).unwrap_or_default());
    let wait_for = |ready: u64, unacked: u64| {
        let there = || {
            let [jobs, due] = depths();
            ((jobs.ready + due.ready, jobs.unacked + due.unacked) == (ready, unacked)).then_some(())
        };
        let what = format!("{ready} jobs that are free and {unacked} in hand");
        deadline::wait_for(&what, SOON, there).unwrap_or_else(|error| panic!("{error:#}: {:?}", depths()));
    };
    // One worker is lost with them. From then on they are those that were delivered before.
    wait_for(0, 5);
    worker.kill9().unwrap();
    wait_for(5, 0);
    for round in 0..STOPS {
        worker.start_again().unwrap();
        wait_for(0, 5);
        let (code, took) = stop(&mut worker);
        assert!(code == Some(0) && took < AT_ONCE, "stop {round}: {code:?} after {took:?}: {}", worker.stderr());
        wait_for(5, 0);
    }
    assert_eq!(story::depth(&env, SUSPECT_QUEUE).unwrap().total(), 0);
    assert_eq!(
        losses(&env, &due, published).await,
        vec![(Some("1".to_owned()), false, true); 5],
        "the lost worker counts, no stop does, and they are as old as they were"
    );
}

/// A worker with four connections to a relay that falls silent, and its file.
fn config(file: &str, relay: &StallingRelay, drain: &str) -> String {
    story::config(file, file, relay.port(), ROUTE)
        .replace("connections = 8", "connections = 4")
        .replace("lease = \"2s\"", "lease = \"60s\"")
        .replace("drain = \"10s\"", &format!("drain = \"{drain}\""))
}

async fn sixteen(file: &str) -> Vec<Job> {
    let jobs = jobs(Lane::Bulk, "news", 16);
    story::publish(file, &jobs).await.unwrap();
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_back_who_is_in_line_at_once_and_leaves_time_to_who_is_under_way() {
    let relay = StallingRelay::start(StallPoint::Dot, 4).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    sixteen(&file).await;
    let config = config(&file, &relay, "25s");
    let mut worker = story::start_any(&config).unwrap();
    deadline::wait_for("four under way", SOON, || (relay.kept().len() == 4).then_some(())).unwrap();
    wait_in_hand(&path, 16);
    let begun = Instant::now();
    worker.terminate().unwrap();
    let back = || rows(&path).get(&("jobs".to_owned(), false, 0)).is_some_and(|count| *count == 12).then_some(());
    deadline::wait_for("twelve handed back", AT_ONCE, back).unwrap();
    // Their claims, too: another worker has them long before a lease ends, and while the first one still waits for its answers.
    let second = story::start_any(&config).unwrap();
    deadline::wait_for("the twelve", AT_ONCE, || (relay.kept().len() == 16).then_some(())).unwrap();
    assert!(worker.is_running().unwrap());
    assert_eq!(worker.wait(2 * SOON).unwrap().code(), Some(1), "four were under way to the end: {}", worker.stderr());
    assert!(begun.elapsed() >= Duration::from_secs(25), "{:?}", begun.elapsed());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_a_moment_for_a_relay_that_has_not_greeted_and_then_hands_its_jobs_back() {
    let relay = StallingRelay::start(StallPoint::Greeting, u32::MAX).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    let file = format!("embedded:{}", path.display());
    sixteen(&file).await;
    let mut worker = story::start_any(&config(&file, &relay, "10s")).unwrap();
    wait_in_hand(&path, 16);
    let (code, took) = stop(&mut worker);
    assert!(code == Some(0) && took < Duration::from_secs(10), "{code:?} after {took:?}: {}", worker.stderr());
    assert_eq!(rows(&path), expected(&[("jobs", 0, 16)]));
}
