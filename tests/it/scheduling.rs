//! Jobs with times: what is due beyond the ladder is parked again and again, and what is too late ends as expired.

use std::time::Duration;

use jiff::Timestamp;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_schemas::{
    Lane, ladder,
    topology::{DUE_EXCHANGE, jobs_queue},
};
use postrider_tests::{
    deadline,
    events::Events,
    story::{self, SOON},
    test_env::{EnvSpec, TestEnv},
    throttling_relay::ThrottlingRelay,
};

/// Takes the only message of the ladder's longest queue and hands it on to the due exchange, as the ladder would in 24 days, its headers
/// unchanged. Gives its headers.
async fn let_24_days_pass(env: &TestEnv, queue: &str) -> std::collections::BTreeMap<String, String> {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().unwrap().delivery;
    let headers = got.properties.headers().clone().unwrap_or_default();
    let headers = headers.inner().iter().map(|(name, value)| {
        let text = value.as_long_string().map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        (name.to_string(), text.unwrap_or_default())
    });
    let headers = headers.collect();
    let confirm = channel
        .basic_publish(
            DUE_EXCHANGE.into(),
            got.routing_key.clone(),
            BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
            &got.data,
            got.properties.clone(),
        )
        .await
        .unwrap();
    assert!(confirm.await.unwrap().take_message().is_none(), "it finds its way to the due queue");
    channel.basic_ack(got.delivery_tag, BasicAckOptions::default()).await.unwrap();
    connection.close(200, "passed".into()).await.unwrap();
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_beyond_the_ladder_is_waited_for_in_several_parks() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    // A little more than two turns of 24 days.
    let send_at = Timestamp::now() + 2 * ladder::WAIT_MAX + Duration::from_hours(1);
    let job = story::job_with(|job| job.send_at = Some(send_at));
    story::publish(&env.amqp_url(), &[job]).await.unwrap();
    let longest = ladder::queue_name(6, 7);
    for parks in 1..=2 {
        story::wait_for_depth(&env, &longest, 1).unwrap();
        let headers = let_24_days_pass(&env, &longest).await;
        assert_eq!(headers.get("postrider-parks"), Some(&parks.to_string()), "{headers:?}");
        assert_eq!(headers.get("postrider-generation"), Some(&parks.to_string()), "{headers:?}");
        let not_before: Timestamp = headers["postrider-not-before"].parse().unwrap();
        assert_eq!(not_before, send_at, "the time itself is not cut");
    }
    story::wait_for_depth(&env, &longest, 1).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 0, "waiting is not sending");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_time_is_not_sent_and_its_sender_is_told() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let mut events = Events::listen(&env.amqp_url()).await.unwrap();
    let now = Timestamp::now();
    let code = |expires_at: Timestamp| {
        story::job_with(|job| {
            job.tenant = Some("shop".to_owned());
            job.expires_at = Some(expires_at);
        })
    };
    let (late, in_time) = (code(now), code(now + Duration::from_hours(1)));
    story::publish(&env.amqp_url(), &[late.clone(), in_time.clone()]).await.unwrap();
    let worker = story::worker(&env, "").unwrap();
    let told = events.until("postrider.job.expired.v1").await.unwrap();
    let last = told.last().unwrap();
    assert_eq!((&last["routing_key"], &last["subject"]), (&"expired.shop".into(), &late.id().to_string().into()));
    let stored = env.sink().wait_for(1, SOON).unwrap();
    assert!(String::from_utf8_lossy(&stored[0].raw).contains(&in_time.message_id()));
    story::wait_for_depth(&env, &jobs_queue(Lane::Transactional, 0), 0).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_time_ends_while_it_waits_for_a_connection_is_not_sent() {
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let mut events = Events::listen(&env.amqp_url()).await.unwrap();
    let relay = ThrottlingRelay::start(1000).unwrap();
    relay.answer_after(Duration::from_secs(6));
    let more = format!("host = \"127.0.0.1\"\ntls = \"none\"\n{}", story::ROUTE);
    let config = story::relay_config(&env.amqp_url(), &env.redis_url(), relay.port(), &more)
        .replace("connections = 8", "connections = 1");
    let worker = story::start(config).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    let busy = || (relay.connections().0 == 1).then_some(());
    deadline::wait_for("the only connection in use", SOON, busy).unwrap();
    let late = story::job_with(|job| job.expires_at = Some(Timestamp::now() + Duration::from_secs(2)));
    story::publish(&env.amqp_url(), std::slice::from_ref(&late)).await.unwrap();
    let told = events.until("postrider.job.expired.v1").await.unwrap();
    assert_eq!(told.last().unwrap()["subject"], late.id().to_string());
    drop(worker);
    assert_eq!(relay.taken().len(), 1);
}
