//! What this machine lacks is not the mail's fault: a worker without file descriptors uses up no try of a job, and sends it when it has some again.

use std::{path::PathBuf, process::Command, time::Duration};

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
};

const JOBS: usize = 3;
/// Tries that a job has, and more waits than that.
const TRIES: usize = 3;

/// Sets the soft limit on file descriptors of a process; no greater one than it may raise itself.
fn limit_descriptors(pid: u32, count: usize) {
    let done =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={count}:")]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_file_descriptors_uses_up_no_try_and_sends_when_it_has_some_again() {
    let sink = SmtpSink::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = story::config(&file, &file, sink.port(), ROUTE);
    let schedule = config.lines().find(|line| line.starts_with("schedule = ")).unwrap().to_owned();
    let config = config.replace(&schedule, "schedule = [\"1s\", \"1s\"]");
    let mut worker = story::start_any(&config).unwrap();
    worker.wait_for_output("Consuming", SOON).unwrap();
    let descriptors = PathBuf::from(format!("/proc/{}/fd", worker.pid()));
    // Those that it has stay; it gets no other one.
    limit_descriptors(worker.pid(), 3);
    let jobs: Vec<_> = (0..JOBS).map(|n| story::job(Lane::ALL[n % 2], &format!("ada-{n}@dest.example"))).collect();
    story::publish(&file, &jobs).await.unwrap();
    let refused = || worker.stderr().lines().filter(|line| line.contains("\"class\":\"local\"")).count();
    let waits = Duration::from_secs(90);
    deadline::wait_for("more waits than tries", waits, || (refused() > JOBS * TRIES).then_some(())).unwrap();
    assert_eq!((sink.count().unwrap(), story::rest("dead", &config).unwrap().len()), (0, 0));
    let open = std::fs::read_dir(descriptors).unwrap().count();
    limit_descriptors(worker.pid(), open + 100);
    deadline::wait_for("the mail", SOON * 2, || (sink.count().ok()? == JOBS).then_some(())).unwrap();
    println!("sent after {} refusals of this machine", refused());
    assert!(worker.stderr().contains("\"follows\":\"again\""), "{}", worker.stderr());
}
