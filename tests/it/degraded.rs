//! With a part missing or a message that is none, the rest goes on: Redis away, a queue deleted, unreadable messages.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use postrider_schemas::topology::{DEAD_QUEUE, SUBMIT_EXCHANGE, jobs_queue, submit_key};
use postrider_schemas::{Job, Lane, wire};
use postrider_tests::deadline;
use postrider_tests::story::{self, ROUTE, SOON};
use postrider_tests::world::{Parts, Server, World};

/// Mail that nothing is in the way of is there after this, slow machine included.
const NOT_DELAYED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_transactional_mail_goes_out_and_bulk_mail_waits_and_nothing_comes_twice() {
    let parts = Parts { redis: Server::Own, ..Parts::usual() };
    let Some(mut world) = World::start_or_skip("without Redis", &parts).unwrap() else { return };
    story::declare(&world).unwrap();
    let worker = story::worker(&world, "").unwrap();
    world.redis().kill9().unwrap();
    let bulk = [story::job(Lane::Bulk, "newsletter@dest.example")];
    story::publish(&world.amqp_url(), &bulk).await.unwrap();
    let urgent: Vec<Job> = (0..5).map(|n| story::job(Lane::Transactional, &format!("code-{n}@dest.example"))).collect();
    for (n, job) in urgent.iter().enumerate() {
        // One after the other: bulk mail has had its chance all the while.
        story::publish(&world.amqp_url(), std::slice::from_ref(job)).await.unwrap();
        world.sink().wait_for(n + 1, SOON).unwrap();
    }
    let to = |address: &str| {
        let stored = world.sink().messages().unwrap();
        stored.iter().filter(|one| one.recipients().contains(&address)).count()
    };
    assert_eq!((to("newsletter@dest.example"), world.sink().count().unwrap()), (0, 5));
    let untold = || (worker.stderr().matches("told again when it is back").count() == 5).then_some(());
    deadline::wait_for("five successes that the store did not hear of", SOON, untold).unwrap();
    world.redis().restart().unwrap();
    let stored = world.sink().wait_for(6, SOON).unwrap();
    assert_eq!(stored.iter().filter(|one| one.recipients() == ["newsletter@dest.example"]).count(), 1);

    // The store is told what went out without it, so a second publish is recognised.
    let told = || (worker.stderr().matches("recorded after all").count() == 5).then_some(());
    deadline::wait_for("five successes told to the store", SOON, told).unwrap();
    story::publish(&world.amqp_url(), &urgent).await.unwrap();
    story::publish(&world.amqp_url(), &bulk).await.unwrap();
    let dropped = || (worker.stderr().matches("came again after its end").count() == 6).then_some(());
    deadline::wait_for("six jobs that came again", SOON, dropped).unwrap();
    drop(worker);
    assert_eq!(world.sink().count().unwrap(), 6, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_its_consumer_is_declared_again_and_consumed() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    let worker = story::worker(&world, "").unwrap();
    let queue = jobs_queue(Lane::Transactional, 0);
    world.vhost().delete_queue(&queue).unwrap();
    // The log line comes after the declarations, so the queue is a new one by then.
    let again = || (worker.stderr().matches("\"Consuming\"").count() >= 2).then_some(());
    deadline::wait_for("consumers after the deletion", SOON, again).unwrap();
    assert!(story::depth(&world, &queue).is_some());
    let jobs = Lane::ALL.map(|lane| story::job(lane, "ada@customer.example"));
    story::publish(&world.amqp_url(), &jobs).await.unwrap();
    world.sink().wait_for(jobs.len(), NOT_DELAYED).unwrap();
    drop(worker);
    assert_eq!(world.sink().count().unwrap(), jobs.len());
}

/// Publishes bytes as a producer that does not use our library might.
async fn publish_raw(world: &World, kind: &str, body: &[u8]) {
    let connection = Connection::connect(&world.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let key = submit_key(Lane::Transactional, 0);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2).with_type(kind.into());
    let confirm =
        channel.basic_publish(SUBMIT_EXCHANGE.into(), key.as_str().into(), options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_no_jobs_rest_in_dead_with_their_reason_and_delay_nothing() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    let worker = story::worker(&world, "").unwrap();
    let good = wire::encode(&story::job(Lane::Transactional, "ada@customer.example"));
    let mut huge: serde_json::Value = serde_json::from_slice(&good).unwrap();
    huge["text"] = "x".repeat(11 << 20).into();
    let mut wrong: serde_json::Value = serde_json::from_slice(&good).unwrap();
    wrong["to"] = 7.into();
    let bad: [(&str, Vec<u8>, &str); 4] = [
        ("postrider.job.v1", b"{\"id\": ".to_vec(), "EOF"),
        ("postrider.job.v1", wrong.to_string().into_bytes(), "field `to`"),
        ("postrider.job.v9", good.to_vec(), "message type `postrider.job.v9` is not known here"),
        ("postrider.job.v1", huge.to_string().into_bytes(), "more than the 10485760 allowed"),
    ];
    for (kind, body, _) in &bad {
        publish_raw(&world, kind, body).await;
    }
    let job = story::job(Lane::Transactional, "bob@customer.example");
    story::publish(&world.amqp_url(), &[job]).await.unwrap();
    let stored = world.sink().wait_for(1, NOT_DELAYED).unwrap();
    assert_eq!(stored[0].recipients(), ["bob@customer.example"]);

    story::wait_for_depth(&world, DEAD_QUEUE, bad.len() as u64).unwrap();
    let config = story::config(&world.amqp_url(), &world.redis_url(), world.sink().port(), ROUTE);
    let rows = story::rest("dead", &config).unwrap();
    assert_eq!(rows.len(), bad.len(), "{rows:#?}");
    for (_, body, detail) in &bad {
        let row = rows.iter().find(|row| row["detail"].as_str().unwrap().contains(detail));
        let row = row.unwrap_or_else(|| panic!("{detail:?} is not in {rows:#?}"));
        assert_eq!((&row["reason"], &row["bytes"]), (&"unreadable".into(), &body.len().into()), "kept whole: {row}");
    }
    drop(worker);
    assert_eq!(world.sink().count().unwrap(), 1);
}
