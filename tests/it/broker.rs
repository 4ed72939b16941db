//! A broker in trouble: publishers get an answer, consumers come back, nothing is lost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use postrider_producer::{
    PublishError, Publisher,
    rabbitmq::{connect, topology},
};
use postrider_schemas::{Job, Lane, topology::Topology};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    world::{Parts, Server, World},
};

async fn declare(url: &str) {
    let connection = connect(url, "story").await.unwrap();
    topology::apply(&connection, &Topology::v1(1)).await.unwrap();
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_is_called_busy_and_takes_messages_again_afterwards() {
    let Some(mut world) =
        World::start_or_skip("a blocked broker", &Parts { rabbit: Server::Own, ..Parts::default() }).unwrap()
    else {
        return;
    };
    let url = world.amqp_url();
    declare(&url).await;
    let publisher = Publisher::connect(&url).await.unwrap();
    let job = story::job(Lane::Bulk, "ada@customer.example");
    world.rabbit().block().unwrap();
    // The first message makes the broker tell the connection that it is blocked.
    let (start, first) = (Instant::now(), publisher.publish(&job).await);
    assert_eq!(first, Err(PublishError::Busy));
    assert!(start.elapsed() < Duration::from_secs(20));
    world.rabbit().unblock().unwrap();
    deadline::wait_for_async("a publish that works again", SOON, async || publisher.publish(&job).await.ok())
        .await
        .unwrap();
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_or_queue_is_named_at_once() {
    let world = World::start(&Parts { rabbit: Server::Shared, ..Parts::default() }).unwrap();
    let url = world.amqp_url();
    let publisher = Publisher::connect(&url).await.unwrap();
    let job = story::job(Lane::Bulk, "ada@customer.example");
    let error = publisher.publish(&job).await.unwrap_err();
    assert!(matches!(&error, PublishError::Unroutable(reason) if reason.contains("postrider.submit")), "{error}");
    assert!(error.to_string().contains("postrider topology apply"), "{error}");
    declare(&url).await;
    publisher.publish(&job).await.unwrap();
    // A queue that is missing does not lose the message: it goes to the unroutable queue.
    world.vhost().delete_queue("postrider.v1.jobs.bulk.00").unwrap();
    publisher.publish(&job).await.unwrap();
    deadline::wait_for("the message in unroutable", SOON, || {
        (world.vhost().queue_depths().ok()?.get("postrider.v1.unroutable")?.total() == 1).then_some(())
    })
    .unwrap();
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_drops_every_connection_loses_nothing_and_doubles_nothing() {
    let parts = Parts { rabbit: Server::Own, ..Parts::usual() };
    let Some(mut world) = World::start_or_skip("dropped connections", &parts).unwrap() else { return };
    let url = world.amqp_url();
    declare(&url).await;
    story::remember(&world).unwrap();
    let config = story::config(&url, &world.redis_url(), world.sink().port(), ROUTE);
    let mut worker = Postrider::worker(config).unwrap();
    worker.wait_for_output("Consuming", SOON).unwrap();
    let jobs = jobs(600);
    let publisher = Publisher::connect(&url).await.unwrap();
    let (publisher, all) = (Arc::new(publisher), jobs.clone());
    let publishing = {
        let publisher = Arc::clone(&publisher);
        tokio::spawn(async move { publisher.publish_all(stream::iter(all)).collect::<Vec<_>>().await })
    };
    for count in [20, 200] {
        world.sink().wait_for(count, SOON).unwrap();
        world.rabbit().close_all_connections().unwrap();
    }
    let published = publishing.await.unwrap();
    assert!(published.iter().all(|(_, result)| result.is_ok()), "a publish is repeated on a new connection");
    world.sink().wait_for(jobs.len(), SOON).unwrap();
    publisher.close().await;
    drop(worker);
    assert_eq!(world.sink().count().unwrap(), jobs.len(), "nothing twice");
}
