//! A disk that is full under the embedded queue and store: who publishes is told, workers live on, and when there is room again every job is
//! delivered once.

use std::time::{Duration, Instant};

use postrider_producer::{PublishError, Publisher};
use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fault_proxy::{FaultProxy, Faults},
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    tmpfs::Tmpfs,
};

/// With room for all that SQLite leaves in its log before it writes it back: 1,000 pages and what the last commits add, some 5 MB. The room that is
/// made on a smaller disk may go to the log alone, and the file finds none.
const KIB: u32 = 16 * 1024;

fn jobs(count: usize, name: &str) -> Vec<Job> {
    (0..count).map(|n| story::job(Lane::ALL[n % 2], &format!("{name}-{n}@dest.example"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_survived_and_nothing_is_lost() {
    let Some(disk) = Tmpfs::mount_or_skip("a full disk", KIB).unwrap() else { return };
    let file = format!("embedded:{}", disk.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let relay = FaultProxy::start(sink.port()).unwrap();
    let config = story::config(&file, &file, relay.port(), ROUTE);
    let mut worker = story::start(config.clone()).unwrap();
    let publisher = Publisher::connect(&file).await.unwrap();

    // One becomes due when the disk is full, and some are on their way while it fills: their answers come late.
    let rows = |queue: &str| -> Option<i64> {
        let file = rusqlite::Connection::open(disk.path().join("queue.db")).ok()?;
        file.query_row("SELECT count(*) FROM message WHERE queue LIKE ?1", [queue], |row| row.get(0)).ok()
    };
    let soon = jiff::Timestamp::now() + Duration::from_secs(8);
    publisher.publish(&story::job_with(|job| job.send_at = Some(soon))).await.unwrap();
    deadline::wait_for("a parked job", SOON, || (rows("due") == Some(1)).then_some(())).unwrap();
    relay.set(Faults::delay_replies(Duration::from_millis(200)));
    let under_way = jobs(40, "early");
    for job in &under_way {
        publisher.publish(job).await.unwrap();
    }
    sink.wait_for(1, SOON).unwrap();
    disk.fill().unwrap();
    let late = jobs(40, "late");
    let refused =
        deadline::wait_for_async("a publish that is refused", SOON, async || publisher.publish(&late[0]).await.err());
    let refused = refused.await.unwrap();
    assert!(matches!(&refused, PublishError::Embedded(reason) if reason.contains("disk")), "{refused}");
    let lines = serde_json::to_string(&postrider_schemas::JobV1::from(&late[0])).unwrap();
    let done = Postrider::command(["send", "--queue", &file]).input(lines).run(SOON).unwrap();
    assert!(!done.status.success() && done.stderr.contains("disk"), "{}", done.stderr);
    // It says so now and then, not as fast as it can.
    let said = || worker.stderr().matches("Nothing can be taken from the queue's file now").count();
    deadline::wait_for("a first line about it", SOON, || (said() > 0).then_some(())).unwrap();
    let (start, before) = (Instant::now(), said());
    deadline::wait_for("three more of them", SOON, || (said() >= before + 3).then_some(())).unwrap();
    assert!(start.elapsed() > Duration::from_secs(1), "{} lines at once", said() - before);
    assert!(worker.is_running().unwrap());

    disk.make_room().unwrap();
    relay.set(Faults::default());
    for job in &late {
        publisher.publish(job).await.unwrap();
    }
    let all = under_way.len() + late.len() + 1;
    sink.wait_for(all, SOON).unwrap();
    // What was delivered while nothing could be written is settled now, and by this worker.
    deadline::wait_for("an empty queue", SOON, || (rows("%") == Some(0)).then_some(())).unwrap();
    publisher.close().await;
    worker.terminate().unwrap();
    assert!(worker.wait(SOON).unwrap().success());
    assert_eq!(sink.count().unwrap(), all, "nothing twice");
}
