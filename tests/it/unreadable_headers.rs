//! Headers that no frame holds, or that are not UTF-8: the message that has them takes no consumer, no tool and no other mail with it.

use std::time::{Duration, Instant};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_producer::rabbitmq::connect;
use postrider_schemas::{
    Job, Lane,
    topology::{DEAD_EXCHANGE, DEAD_QUEUE, SUBMIT_EXCHANGE, jobs_queue, submit_key},
    wire::{self, JOB_CONTENT_TYPE, JOB_TYPE},
};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// The frame size that brokers and clients agree upon where nobody asks for another one.
const FRAME_MAX: usize = 131_072;
/// Other mail must not take longer.
const OTHERS: Duration = Duration::from_secs(10);

/// Publishes what other clients can: headers that fill a frame to the last octet.
async fn publish_full(channel: &Channel, exchange: &str, key: &str, job: &Job) {
    let properties = |filler: usize| {
        let mut headers = FieldTable::default();
        headers.insert("x-stack".into(), AMQPValue::LongString(LongString::from("e".repeat(filler))));
        BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(JOB_CONTENT_TYPE.into())
            .with_type(JOB_TYPE.into())
            .with_message_id(job.id().to_string().into())
            // Without its time a message that was delivered before counts as one that may have been sent.
            .with_timestamp(u64::try_from(jiff::Timestamp::now().as_second()).unwrap())
            .with_headers(headers)
    };
    // 8 octets around a frame; class, weight, size of the body and flags are 14. Short strings have one octet in front, tables four; a
    // timestamp is 8.
    let names =
        [JOB_CONTENT_TYPE.len(), JOB_TYPE.len(), job.id().to_string().len()].iter().map(|one| one + 1).sum::<usize>();
    let around = 8 + 14 + names + 1 + 8 + 4 + 1 + "x-stack".len() + 1 + 4;
    let body = wire::encode(job);
    let sent = channel
        .basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions::default(),
            &body,
            properties(FRAME_MAX - around),
        )
        .await
        .unwrap();
    assert_eq!(sent.await.unwrap(), Confirmation::Ack(None));
}

async fn open(url: &str) -> (Connection, Channel) {
    // Another client could not take the message away: its own connection would end.
    let connection = connect(url, "story").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

/// Takes a message away with its connection, so that the broker adds its count of deliveries to the headers.
async fn lose_once(url: &str, queue: &str) {
    let (connection, channel) = open(url).await;
    deadline::wait_for_async("the message", SOON, async || {
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()
    })
    .await
    .unwrap();
    connection.close(200, "lost".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_outgrow_a_frame_stop_nobody() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let url = env.amqp_url();
    let (connection, channel) = open(&url).await;
    let full = Lane::ALL.map(|lane| story::job(lane, &format!("full-{lane}@dest.example")));
    for job in &full {
        publish_full(&channel, SUBMIT_EXCHANGE, &submit_key(job.lane(), 0), job).await;
        lose_once(&url, &jobs_queue(job.lane(), 0)).await;
        lose_once(&url, &jobs_queue(job.lane(), 0)).await;
    }
    let others = Lane::ALL.map(|lane| story::job(lane, &format!("behind-{lane}@dest.example")));
    story::publish(&url, &others).await.unwrap();
    let started = Instant::now();
    let worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(4, OTHERS).unwrap();
    assert!(started.elapsed() < 2 * OTHERS, "{:?}", started.elapsed());
    assert!(worker.stderr().contains("do not fit a frame"), "the queue and the cause are named");
    assert!(!worker.stderr().contains("connecting again"), "no connection ended");
    drop(worker);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_with_such_headers_is_listed_and_dropped() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let url = env.amqp_url();
    let (connection, channel) = open(&url).await;
    let job = story::job(Lane::Bulk, "ada@dest.example");
    publish_full(&channel, DEAD_EXCHANGE, "dead.bulk.00", &job).await;
    lose_once(&url, DEAD_QUEUE).await;
    lose_once(&url, DEAD_QUEUE).await;
    let config = story::config(&url, &env.redis_url(), env.sink().port(), ROUTE);
    let rows = story::rest("dead", &config).unwrap();
    assert_eq!((rows.len(), &rows[0]["id"]), (1, &job.id().to_string().into()), "{rows:#?}");
    assert!(rows[0]["detail"].as_str().unwrap().contains("do not fit a frame"), "{rows:#?}");
    let done = Postrider::command(["dead", "drop", &job.id().to_string()]).config(config).run(SOON).unwrap();
    assert!(done.status.success() && done.stdout.contains("dropped 1"), "{}{}", done.stdout, done.stderr);
    story::wait_for_depth(&env, DEAD_QUEUE, 0).unwrap();
    connection.close(200, "done".into()).await.unwrap();
}
