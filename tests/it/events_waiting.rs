//! Those who listen for events take none for a while: mail goes on, and no event of what became of it is lost.

use std::collections::BTreeSet;

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicGetOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_schemas::{
    Job, Lane,
    topology::{EVENTS_EXCHANGE, EVENTS_WAITING_QUEUE},
};
use postrider_tests::{
    deadline,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// What the queue of those who listen holds at most.
const ROOM: i64 = 10;
const LISTENERS: &str = "shop.events";

async fn listen_for_few(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(ROOM));
    arguments.insert("x-overflow".into(), AMQPValue::LongString(LongString::from("reject-publish")));
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
    channel.queue_declare(LISTENERS.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(LISTENERS.into(), EVENTS_EXCHANGE.into(), "#".into(), bind, FieldTable::default())
        .await
        .unwrap();
    (connection, channel)
}

/// Jobs by how they ended: what was being sent when a worker was killed may be held.
#[derive(Debug, Default)]
struct Told {
    accepted: BTreeSet<String>,
    held: BTreeSet<String>,
}

/// Takes what is there and adds the jobs of events about an end.
async fn drain(channel: &Channel, told: &mut Told) {
    while let Some(got) = channel.basic_get(LISTENERS.into(), BasicGetOptions::default()).await.unwrap() {
        let event: serde_json::Value = serde_json::from_slice(&got.delivery.data).unwrap();
        let ended = match event["type"].as_str().unwrap() {
            "postrider.job.accepted.v1" => &mut told.accepted,
            "postrider.job.held.v1" => &mut told.held,
            _ => &mut BTreeSet::new(),
        };
        ended.extend(event["data"]["job_id"].as_str().map(ToOwned::to_owned));
        channel.basic_ack(got.delivery.delivery_tag, BasicAckOptions::default()).await.unwrap();
    }
}

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_nobody_takes_wait_over_a_restart_and_a_kill_and_mail_goes_on() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let url = env.amqp_url();
    let (connection, channel) = listen_for_few(&url).await;
    let jobs = jobs(300);
    let mut worker = story::worker(&env, "").unwrap();
    story::publish(&url, &jobs[..150]).await.unwrap();
    env.sink().wait_for(100, SOON).unwrap();
    worker.kill9().unwrap();
    let mut worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(130, SOON).unwrap();
    story::publish(&url, &jobs[150..]).await.unwrap();
    env.sink().wait_for(200, SOON).unwrap();
    worker.terminate().unwrap();
    worker.wait(SOON).unwrap();
    let worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(280, SOON).unwrap();
    assert!(!worker.stderr().contains("An event is dropped"), "{}", worker.stderr());
    deadline::wait_for("events that wait", SOON, || {
        (story::depth(&env, EVENTS_WAITING_QUEUE)?.total() > 200).then_some(())
    })
    .unwrap();

    let mut told = Told::default();
    deadline::wait_for_async("an event of each job", 4 * SOON, async || {
        drain(&channel, &mut told).await;
        (told.accepted.union(&told.held).count() == jobs.len()).then_some(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}: {} and {}", told.accepted.len(), told.held.len()));
    let config = story::config(&url, &env.redis_url(), env.sink().port(), ROUTE);
    let held = story::rest("hold", &config).unwrap();
    let held: BTreeSet<String> = held.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told.held, held, "what is held and nothing else is told as held");
    let wanted: BTreeSet<String> =
        jobs.iter().map(|job| job.id().to_string()).filter(|id| !held.contains(id)).collect();
    assert_eq!(told.accepted, wanted);
    // What was published twice, for a worker that was killed, follows.
    deadline::wait_for_async("an end of what waits", SOON, async || {
        drain(&channel, &mut told).await;
        (story::depth(&env, EVENTS_WAITING_QUEUE)?.total() == 0).then_some(())
    })
    .await
    .unwrap();
    drop(worker);
    connection.close(200, "done".into()).await.unwrap();
}
