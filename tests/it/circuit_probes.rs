//! A probe that ends badly, in another way than the circuit was opened: nobody hurries, and a mended relay is found within the circuit's wait.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    talking_relay::{Manner, TalkingRelay},
};

const JOBS: usize = 40;
/// Of the relay, by the story's configuration.
const CONNECTIONS: usize = 8;
/// By the time that everybody is kept away, on a slow machine.
const PROBES: usize = 4;
/// `retry.config_wait` of the story.
const CONFIG_WAIT: Duration = Duration::from_secs(2);
/// Three probes fail meanwhile, or would if each job came for one.
const GONE: Duration = Duration::from_secs(12);

/// When each job was kept away because the circuit is open.
fn kept_away(worker: &Postrider) -> HashMap<String, Vec<Timestamp>> {
    let mut times = HashMap::<String, Vec<Timestamp>>::new();
    let stderr = worker.stderr();
    for line in stderr.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        if line["class"] == "config" && line["answer"].as_str().is_some_and(|answer| answer.contains("circuit open")) {
            let at = line["timestamp"].as_str().unwrap().parse().unwrap();
            times.entry(line["job.id"].as_str().unwrap().to_owned()).or_default().push(at);
        }
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_goes_away_while_its_circuit_is_open_is_probed_seldom_and_found_when_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let refuses = Manner { greeting: Some("554 5.7.1 You are not welcome".to_owned()), ..Manner::default() };
    let relay = TalkingRelay::start(refuses).unwrap();
    let mut worker = Postrider::worker(story::config(&file, &file, relay.port(), ROUTE)).unwrap();
    let jobs: Vec<Job> = (0..JOBS).map(|_| story::job(Lane::Bulk, "ada@dest.test")).collect();
    story::publish(&file, &jobs).await.unwrap();
    worker.wait_for_output("needs a person", SOON).unwrap();
    relay.change(Manner { is_gone: true, ..Manner::default() });
    // Time itself is what is looked at: how often jobs come back in it.
    tokio::time::sleep(GONE).await;
    worker.wait_for_output("still does not work", SOON).unwrap();
    let times = kept_away(&worker);
    assert!(!times.is_empty());
    for (job, times) in &times {
        for pair in times.windows(2) {
            let between = Duration::try_from(pair[1].duration_since(pair[0])).unwrap();
            assert!(between >= CONFIG_WAIT.mul_f64(0.95), "job {job} came back after {between:?}");
        }
    }
    let told: usize = times.values().map(Vec::len).sum();
    let most = JOBS * usize::try_from(GONE.as_secs() / CONFIG_WAIT.as_secs() + 1).unwrap();
    assert!(told <= most, "{told} times in {GONE:?}");
    // Three probes at most by now: 2, 4 and 8 seconds after each other; the next one is due 16 seconds later.
    relay.change(Manner::default());
    deadline::wait_for("the mended relay to be used", Duration::from_secs(40), || {
        (relay.taken() == JOBS).then_some(())
    })
    .unwrap();
    assert!(worker.stderr().contains("Transport relay works again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_are_refused_for_now_are_not_tried_again_by_everybody_who_waits_for_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let refuses = Manner { auth: Some("454 4.7.0 Too many login attempts".to_owned()), ..Manner::default() };
    let relay = TalkingRelay::start(refuses).unwrap();
    let login = format!("username = \"app\"\npassword = \"secret\"\nplaintext_auth = true\n{ROUTE}");
    let config = story::config(&file, &file, relay.port(), &login);
    let jobs: Vec<Job> = (0..JOBS).map(|_| story::job(Lane::Bulk, "ada@dest.test")).collect();
    story::publish(&file, &jobs).await.unwrap();
    let worker = Postrider::worker(config).unwrap();
    // All others are kept away: eight connections are open at once, of 32 jobs in hand.
    let told = || (kept_away(&worker).len() >= JOBS - CONNECTIONS).then_some(());
    deadline::wait_for("jobs that are kept away", SOON, told).unwrap();
    let greeted = relay.greeted();
    assert!(greeted <= CONNECTIONS + PROBES, "{greeted} logins");
}
