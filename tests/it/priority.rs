//! Somebody waits for transactional mail: a blast that keeps a slow relay busy lets it through. Told by the order of arrival, which a busy machine changes little.

use std::time::Duration;

use postrider_producer::Publisher;
use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    story::{self, ROUTE, SOON},
    throttling_relay::ThrottlingRelay,
};

use crate::limits::jobs;

/// Connections to the relay.
const CONNECTIONS: usize = 8;
/// A job that waits behind the blast is overtaken by all of it that is in hand: more than a hundred jobs. One that does not, by those that have a
/// connection already and by what goes out until the worker has the job in hand, for which it may take two seconds and a half.
const OVERTAKEN_MAX: usize = CONNECTIONS + 40;

#[tokio::test(flavor = "multi_thread")]
async fn transactional_mail_goes_before_a_blast_that_waits_for_connections() {
    let relay = ThrottlingRelay::start(100_000).unwrap();
    relay.answer_after(Duration::from_millis(500));
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = story::config(&file, &file, relay.port(), ROUTE).replace("bulk = 32", "bulk = 128");
    let mut worker = story::start_any(&config).unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "blast", 600)).await.unwrap();
    let count = |domain: &str| {
        let domain = format!("{domain}.example");
        relay.domains().into_iter().filter(|one| *one == domain).count()
    };
    deadline::wait_for("the blast", SOON, || (count("blast") >= 3 * CONNECTIONS).then_some(())).unwrap();
    let publisher = Publisher::connect(&file).await.unwrap();
    for n in 0..6 {
        let name = format!("urgent-{n}");
        let before = count("blast");
        publisher.publish(&story::job(Lane::Transactional, &format!("ada@{name}.example"))).await.unwrap();
        deadline::wait_for("the transactional job", SOON, || (count(&name) == 1).then_some(())).unwrap();
        let overtaken = count("blast") - before;
        println!("{name}: overtaken by {overtaken}");
        assert!(overtaken <= OVERTAKEN_MAX, "{overtaken}");
    }
    publisher.close().await;
    // The blast has every connection all the same.
    let before = count("blast");
    deadline::wait_for("the blast", SOON, || (count("blast") >= before + 3 * CONNECTIONS).then_some(())).unwrap();
    assert_eq!(relay.connections().1, CONNECTIONS);
    worker.kill9().unwrap();
}
