//! A user of Redis who may do what is advised, and one who may not any more.

use std::time::Duration;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline, ports,
    postrider::Postrider,
    redis::Redis,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
};
use postrider_workers::store::redis::acl_rule;

#[test]
fn the_rule_that_is_advised_stands_in_the_documents() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deployment.md");
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (text, rule) = (words(&std::fs::read_to_string(file).unwrap()), words(&acl_rule()));
    assert!(text.windows(rule.len()).any(|part| part == rule), "{}", acl_rule());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_is_a_store_that_is_away_and_said_once() {
    let Some(redis) = Redis::start_or_skip("a user of Redis").unwrap() else { return };
    let folder = tempfile::tempdir().unwrap();
    let queue = format!("embedded:{}", folder.path().join("queue.db").display());
    let rule = acl_rule().replace("PASSWORD", "s3cret-s3cret");
    let set = |rule: &str| redis.cli(&rule.split_whitespace().collect::<Vec<_>>()).unwrap();
    set(&rule);
    let store = format!("redis://postrider:s3cret-s3cret@127.0.0.1:{}/0", redis.port());
    let (sink, admin) = (SmtpSink::start(Options::default()).unwrap(), ports::free().unwrap());
    let config =
        story::config(&queue, &store, sink.port(), &format!("{ROUTE}[admin]\nlisten = \"127.0.0.1:{admin}\"\n"));
    let worker = Postrider::worker(config.clone()).unwrap();
    let jobs = |lane, count| (0..count).map(|n| story::job(lane, &format!("{n}@dest.example"))).collect::<Vec<Job>>();
    story::publish(&queue, &jobs(Lane::Bulk, 5)).await.unwrap();
    sink.wait_for(5, SOON).unwrap();
    let status = Postrider::command(["limits", "pause", "transport:relay", "--for", "1s", "--reason", "x"])
        .config(config.clone());
    assert!(status.run(SOON).unwrap().status.success(), "tools need no more than workers");

    set("ACL SETUSER postrider -hset -evalsha");
    story::publish(&queue, &jobs(Lane::Bulk, 50)).await.unwrap();
    let health = || {
        let done = Postrider::command(["health", "--ready"]).config(config.clone()).run(SOON).unwrap();
        done.stdout.contains("the store is away").then_some(())
    };
    deadline::wait_for("readiness that tells", SOON, health).unwrap();
    // Longer than a job would be handed back and claimed again.
    let quiet = std::time::Instant::now() + Duration::from_secs(8);
    deadline::wait_for("a while without the right", SOON, || (std::time::Instant::now() > quiet).then_some(()))
        .unwrap();
    let log = worker.stderr();
    assert_eq!(log.matches("\"The store is down\"").count(), 1, "{log}");
    assert!(log.contains("has no permissions to run the 'evalsha' command") && log.contains("ACL SETUSER"), "{log}");
    assert_eq!(log.matches("The store refused a claim").count(), 0, "{log}");
    assert_eq!(sink.count().unwrap(), 5);
    // A worker that starts now says so and does not.
    let done = Postrider::command(["worker"]).config(config.clone()).run(SOON).unwrap();
    assert!(!done.status.success() && done.stderr.contains("ACL SETUSER postrider on"), "{}", done.stderr);

    set(&rule);
    sink.wait_for(55, SOON).unwrap();
}
