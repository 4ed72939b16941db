//! Without services: the same promises on one SQLite file, shared by several processes.

use std::{collections::HashSet, time::Duration};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, SOON},
};

/// Message ids that arrived, with repetitions.
fn arrived(sink: &SmtpSink) -> Vec<String> {
    let id = |raw: &[u8]| {
        let text = String::from_utf8_lossy(raw);
        let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <").map(str::to_owned));
        line.unwrap_or_default().split('@').next().unwrap_or_default().to_owned()
    };
    sink.messages().unwrap().iter().map(|one| id(&one.raw)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_a_file_and_one_may_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let route = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\non_unknown = \"hold\"\n";
    let config = story::config(&file, &file, sink.port(), route);
    let start = || Postrider::worker(config.clone()).unwrap();
    let (mut first, second) = (start(), start());
    // The ledger is older than the jobs, as in any installation but a new one.
    deadline::wait_for("the ledger", SOON, || folder.path().join("queue.db").exists().then_some(())).unwrap();
    let jobs: Vec<Job> =
        (0..800).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect();
    story::publish(&file, &jobs[..400]).await.unwrap();
    sink.wait_for(20, SOON).unwrap();
    first.kill9().unwrap();
    story::publish(&file, &jobs[400..]).await.unwrap();
    let all: HashSet<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    let held = || -> HashSet<String> {
        let done = Postrider::command(["hold", "ls", "--format", "json"]).config(config.clone()).run(SOON).unwrap();
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        done.stdout.lines().map(id).collect()
    };
    // What the killed worker had in hand is free again when its leases end.
    deadline::wait_for("every job delivered or held", Duration::from_secs(60), || {
        let ended: HashSet<String> = arrived(&sink).into_iter().chain(held()).collect();
        all.is_subset(&ended).then_some(())
    })
    .unwrap();
    let arrived = arrived(&sink);
    let once: HashSet<&String> = arrived.iter().collect();
    eprintln!("published {}, delivered {}, held {}", all.len(), once.len(), held().len());
    assert_eq!(arrived.len(), once.len(), "nothing twice");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_refuses_for_a_while_gets_the_job_later() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let refusing = SmtpSink::start(postrider_tests::sink::SinkFault::Soft("RCPT")).unwrap();
    let config = story::config(&file, &file, refusing.port(), story::ROUTE);
    let mut worker = Postrider::worker(config).unwrap();
    story::publish(&file, &[story::job(Lane::Transactional, "ada@customer.example")]).await.unwrap();
    worker.wait_for_output("\"follows\":\"again\"", SOON).unwrap();
    worker.terminate().unwrap();
    assert!(worker.wait(SOON).unwrap().success());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = story::config(&file, &file, sink.port(), story::ROUTE);
    let _worker = Postrider::worker(config).unwrap();
    sink.wait_for(1, SOON).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_never_goes_through_dies_and_can_be_retried() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let refusing = SmtpSink::start(postrider_tests::sink::SinkFault::Soft("RCPT")).unwrap();
    let quick = |port| {
        story::config(&file, &file, port, story::ROUTE)
            .replace("[\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]", "[\"1s\"]")
    };
    let worker = Postrider::worker(quick(refusing.port())).unwrap();
    let job = story::job(Lane::Bulk, "ada@customer.example");
    story::publish(&file, std::slice::from_ref(&job)).await.unwrap();
    let list = |config: &str| Postrider::command(["dead", "ls", "--wide"]).config(config).run(SOON).unwrap().stdout;
    let config = quick(refusing.port());
    let dead = |times: &str| {
        deadline::wait_for("the job in dead", SOON, || {
            let listed = list(&config);
            (listed.contains("retries-exhausted") && listed.contains(times)).then_some(())
        })
        .unwrap();
    };
    dead(&job.id().to_string());
    let retry = |config: &str| {
        let done =
            Postrider::command(["dead", "retry", "--reason", "retries-exhausted"]).config(config).run(SOON).unwrap();
        assert!(done.status.success() && done.stdout.contains("again 1"), "{}{}", done.stdout, done.stderr);
    };
    retry(&config);
    dead("for the second time");
    drop(worker);
    let sink = SmtpSink::start(Options::default()).unwrap();
    let config = quick(sink.port());
    let _worker = Postrider::worker(config.clone()).unwrap();
    retry(&config);
    sink.wait_for(1, SOON).unwrap();
    assert_eq!(list(&config), "");
}
