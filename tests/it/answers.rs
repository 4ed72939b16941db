//! Whom a refusal is blamed on: nobody is rejected for what is about us.

use postrider_schemas::Lane;
use postrider_tests::{
    deadline::wait_for,
    events::Events,
    sink::{self, SinkFault},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_unknown_words_for_everybody_pause_the_transport_and_reject_nobody() {
    let refusing = sink::Options::from(SinkFault::HardReply("RCPT", "550 pink elephants"));
    let env = TestEnv::start(&EnvSpec { sink: Some(refusing), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let mut told = Events::listen(&env.amqp_url()).await.unwrap();
    let config = |port| story::config(&env.amqp_url(), &env.redis_url(), port, ROUTE);
    let worker = story::start(config(env.sink().port())).unwrap();
    let jobs: Vec<_> = (0..8).map(|n| story::job(Lane::Transactional, &format!("u{n}@dest.test"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let events = told.until("postrider.circuit.opened.v1").await.unwrap();
    assert!(events.iter().all(|event| event["type"] != "postrider.job.rejected.v1"), "{events:#?}");
    let opened = &events.last().unwrap()["data"]["answer"];
    assert!(opened.as_str().unwrap().contains("several recipients were told the same"), "{opened}");
    drop(worker);
    // The relay behind it takes everybody: nobody was lost on the way.
    let healthy = sink::SmtpSink::start(sink::Options::default()).unwrap();
    let worker = story::start(config(healthy.port())).unwrap();
    wait_for("everybody's mail", SOON, || Some(healthy.count().unwrap()).filter(|count| *count == 8)).unwrap();
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_recipient_that_is_refused_in_unknown_words_is_rejected_after_a_second_try() {
    let refusing = sink::Options::from(SinkFault::HardReply("RCPT", "550 pink elephants"));
    let env = TestEnv::start(&EnvSpec { sink: Some(refusing), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let mut told = Events::listen(&env.amqp_url()).await.unwrap();
    let worker = story::start(story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE)).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    let events = told.until("postrider.job.rejected.v1").await.unwrap();
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["postrider.job.deferred.v1", "postrider.job.rejected.v1"]);
    drop(worker);
}
