//! Messages as producers in other languages publish them, and jobs that bring a whole message.

use flate2::{Compression, write::GzEncoder};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_schemas::{
    JobLimits, Lane, examples,
    topology::{DEAD_QUEUE, HOLD_QUEUE, SUBMIT_EXCHANGE, due_queue, submit_key},
    wire,
};
use postrider_tests::{
    events::Events,
    rabbitmq::Depth,
    story::{self, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};
use serde_json::{Value, json};
use std::io::Write as _;

/// A random id: it holds no time.
const RANDOM: &str = "5f0c8f0e-9d51-4c3e-8a10-00000000000";

fn document(id: &str, fields: &Value) -> Vec<u8> {
    let mut document = json!({ "id": id, "tenant": "shop", "from": "orders@shop.example", "to": "ada@customer.example",
                               "subject": "Hello", "text": "Hello." });
    document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    document.to_string().into_bytes()
}

fn packed(body: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(body).unwrap();
    packer.finish().unwrap()
}

async fn publish(env: &TestEnv, lane: Lane, messages: Vec<(Vec<u8>, BasicProperties)>) {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for (body, properties) in messages {
        let properties = properties.with_delivery_mode(2);
        let key = submit_key(lane, 0);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = channel.basic_publish(SUBMIT_EXCHANGE.into(), key.as_str().into(), options, &body, properties);
        assert!(sent.await.unwrap().await.unwrap().is_ack());
    }
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_publish_is_read_served_and_told_of() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let mut told = Events::listen(&env.amqp_url()).await.unwrap();
    let worker = story::worker(&env, "").unwrap();
    let id = |n: u32| format!("{RANDOM}{n}");
    let plain = BasicProperties::default;
    let some_are_bad = json!({ "to": ["nobody", "Ada <ada@customer.example>, \u{200b}bob@customer.example"],
                               "cc": "eve@customer.example", "subject": "Some are bad" });
    publish(
        &env,
        Lane::Transactional,
        vec![
            (packed(&document(&id(1), &json!({ "subject": "Packed" }))), plain().with_content_encoding("gzip".into())),
            (document(&id(2), &some_are_bad), plain().with_timestamp(0)),
            (b"{\"tenant\":\"shop\",\"metadata\":{\"order\":\"4711\"},\"subject\":".to_vec(), plain()),
            (b"{\"tenant\":\"shop\",\"metadata\":{\"order\":\"4711\"},\"subject\":".to_vec(), plain()),
            (b"\x0bnot gzip".to_vec(), plain().with_content_encoding("br".into()).with_app_id("till".into())),
        ],
    )
    .await;

    let stored = env.sink().wait_for(2, SOON).unwrap();
    let of = |subject: &str| {
        stored.iter().find(|one| String::from_utf8_lossy(&one.raw).contains(&format!("Subject: {subject}\r\n")))
    };
    assert!(of("Packed").is_some());
    assert_eq!(of("Some are bad").unwrap().recipients(), ["ada@customer.example", "eve@customer.example"]);

    story::wait_for_depth(&env, DEAD_QUEUE, 3).unwrap();
    let mut events = Vec::new();
    while events.len() < 6 {
        events.push(told.next().await.unwrap());
    }
    let kind = |name: &'static str| events.iter().filter(move |one| one["type"] == format!("postrider.job.{name}.v1"));
    let places = |event: &Value| {
        let list = event["data"]["recipients"].as_array().unwrap();
        list.iter().map(|one| format!("{}{}", one["field"].as_str().unwrap(), one["position"])).collect::<Vec<_>>()
    };
    let rejected: Vec<&Value> = kind("rejected").collect();
    assert_eq!(rejected.len(), 1, "{events:#?}");
    assert_eq!(places(rejected[0]), ["to0", "to2"]);
    assert!(rejected[0]["data"]["recipients"][1]["answer"].as_str().unwrap().contains("zero-width"), "{rejected:#?}");
    let taken = kind("accepted").find(|one| one["data"]["job_id"] == id(2)).unwrap();
    assert_eq!(places(taken), ["to1", "cc0"]);
    let dead: Vec<&Value> = kind("dead").collect();
    let mut ids: Vec<&str> = dead.iter().map(|one| one["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has an id of its own: {dead:#?}");
    let of_shop: Vec<&&Value> = dead.iter().filter(|one| one["data"]["tenant"] == "shop").collect();
    assert!(of_shop.len() == 2 && of_shop.iter().all(|one| one["data"]["metadata"]["order"] == "4711"), "{dead:#?}");

    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let got = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
        kept.push((got.delivery.data.clone(), got.delivery.properties.clone()));
    }
    let (_, properties) = kept.iter().find(|(body, _)| body.starts_with(b"\x0b")).unwrap();
    let text = |value: Option<&lapin::types::ShortString>| value.map(ToString::to_string);
    assert_eq!(text(properties.content_encoding().as_ref()).as_deref(), Some("br"));
    assert_eq!(text(properties.app_id().as_ref()).as_deref(), Some("till"));
    connection.close(200, "looked".into()).await.unwrap();
    drop(worker);
}

/// Bulk mail whose producers say no time waits for the store in a worker that is killed: nothing was begun with it, so all of it is sent, and once.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_without_a_publish_time_survive_a_worker_that_only_waited_with_them() {
    const COUNT: usize = 20;
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("jobs without a time", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let mut worker = story::worker(&env, "").unwrap();
    env.redis().freeze();
    let id = |n: usize| format!("5f0c8f0e-9d51-4c3e-8a10-{n:012}");
    let jobs = (0..COUNT).map(|n| (document(&id(n), &json!({ "lane": "bulk" })), BasicProperties::default()));
    publish(&env, Lane::Bulk, jobs.collect()).await;
    story::wait_for_depth(&env, &due_queue(Lane::Bulk, 0), COUNT as u64).unwrap();
    worker.kill9().unwrap();
    env.redis().thaw();
    let worker = story::worker(&env, "").unwrap();
    env.sink().wait_for(COUNT, SOON).unwrap();
    assert_eq!(story::depth(&env, HOLD_QUEUE).map(Depth::total), Some(0));
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_message_arrives_octet_by_octet_for_its_envelope() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    let (_, document) = examples::WHOLE_MESSAGE;
    let job = wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap();
    story::publish(&env.amqp_url(), std::slice::from_ref(&job)).await.unwrap();
    let stored = env.sink().wait_for(1, SOON).unwrap();
    assert_eq!(stored[0].sender(), "bounces@shop.example");
    assert_eq!(stored[0].recipients(), ["ada@customer.example", "books@shop.example"]);
    assert!(stored[0].mail_args.contains("BODY=8BITMIME"), "{}", stored[0].mail_args);
    let given = String::from_utf8(job.raw().unwrap().as_given().to_vec()).unwrap();
    let without_blind_copies = given.replace("Bcc: books@shop.example\r\n", "");
    assert_ne!(given, without_blind_copies);
    assert_eq!(String::from_utf8_lossy(&stored[0].raw), without_blind_copies);
    drop(worker);
}
