//! Messages with a routing key that is not quite right: the bare lane is taken, what no queue wants can be listed and moved.

use lapin::{
    BasicProperties, Channel,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_producer::rabbitmq::connect;
use postrider_schemas::{
    Job, Lane,
    topology::{DUE_EXCHANGE, SUBMIT_EXCHANGE, UNROUTABLE_QUEUE},
    wire::{self, JOB_CONTENT_TYPE, JOB_TYPE},
};
use postrider_tests::{
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

async fn publish(channel: &Channel, exchange: &str, key: &str, job: &Job) {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(JOB_CONTENT_TYPE.into())
        .with_type(JOB_TYPE.into())
        .with_message_id(job.id().to_string().into());
    let body = wire::encode(job);
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), key.into(), options, &body, properties).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bare_lane_is_a_routing_key_and_what_no_queue_wants_is_listed_moved_and_dropped() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let worker = story::start(config.clone()).unwrap();
    let connection = connect(&env.amqp_url(), "a producer by hand").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for lane in Lane::ALL {
        publish(&channel, SUBMIT_EXCHANGE, lane.as_str(), &story::job(lane, "ada@dest.test")).await;
    }
    env.sink().wait_for(2, SOON).unwrap();

    let [fresh, copy, dropped] = [(); 3].map(|()| story::job(Lane::Transactional, "ada@dest.test"));
    publish(&channel, SUBMIT_EXCHANGE, "transactional.77", &fresh).await;
    publish(&channel, DUE_EXCHANGE, "nowhere", &copy).await;
    publish(&channel, SUBMIT_EXCHANGE, "no such lane", &dropped).await;
    story::wait_for_depth(&env, UNROUTABLE_QUEUE, 3).unwrap();
    let run = |arguments: &[&str]| Postrider::command(arguments).config(config.clone()).run(SOON).unwrap();
    let rows = story::rest("unroutable", &config).unwrap();
    let keys: Vec<_> = rows.iter().map(|row| row["routing_key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["transactional.77", "nowhere", "no such lane"]);
    assert!(run(&["status"]).stdout.contains("3 without a queue: postrider unroutable ls"));
    let done = run(&["unroutable", "move", "--all", "--dry-run"]);
    assert!(
        done.status.success() && done.stdout.contains("3 messages selected; nothing was changed"),
        "{}",
        done.stdout
    );
    assert!(run(&["unroutable", "drop", &dropped.id().to_string()]).status.success());
    let done = run(&["unroutable", "move", "--all"]);
    assert!(done.status.success() && done.stdout.contains("again 2"), "{}{}", done.stdout, done.stderr);
    story::wait_for_depth(&env, UNROUTABLE_QUEUE, 0).unwrap();
    env.sink().wait_for(4, SOON).unwrap();
    let state = |job: &Job| {
        let done = run(&["trace", &job.id().to_string(), "--format", "json"]);
        serde_json::from_str::<serde_json::Value>(&done.stdout).unwrap()["ledger"][0]["state"].clone()
    };
    assert_eq!((state(&fresh), state(&copy)), ("sent".into(), "sent".into()));
    drop(worker);
}
