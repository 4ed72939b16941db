//! The delay ladder on a real broker: delays are kept, and what comes back once can come back again.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions},
    types::FieldTable,
};
use postrider_producer::rabbitmq::{
    connect,
    link::{ForeignProperties, Link, LinkLimits, Outgoing},
    short, topology,
};
use postrider_schemas::{
    Lane, Meta, ladder,
    topology::{Topology, due_queue},
};
use postrider_tests::test_env::{EnvSpec, Server, TestEnv};

#[tokio::test(flavor = "multi_thread")]
async fn delays_are_kept_within_a_second_and_a_second_pass_comes_back_too() {
    let env = TestEnv::start(&EnvSpec { rabbit: Server::Shared, ..EnvSpec::default() }).unwrap();
    let connection = connect(&env.amqp_url(), "story").await.unwrap();
    topology::apply(&connection, &Topology::v1(1)).await.unwrap();
    let link = Link::connect(&env.amqp_url(), "story", LinkLimits::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = short(&due_queue(Lane::Bulk, 0));
    let mut due = channel
        .basic_consume(queue, short("story"), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let waits: [u64; 3] = [2, 9, 65];
    let start = Instant::now();
    for wait in waits {
        park(&link, wait, 1).await;
    }
    let mut passes = Vec::new();
    let mut left = waits.len() + 1;
    while left > 0 {
        let next = tokio::time::timeout(Duration::from_secs(90), due.next()).await.expect("a message comes back");
        let delivery = next.unwrap().unwrap();
        let id = delivery.properties.message_id().as_ref().unwrap().to_string();
        let (wait, pass) = id.split_once('/').unwrap();
        let (wait, pass): (u64, u64) = (wait.parse().unwrap(), pass.parse().unwrap());
        let late = start.elapsed().as_secs_f64() - (wait * pass) as f64;
        assert!((-0.01..1.0).contains(&late), "a wait of {wait} s, pass {pass}: late by {late} s");
        if wait == 2 && pass == 1 {
            // A retry's retry: the copy is made from scratch, or the broker would take it for a cycle.
            park(&link, 2, 2).await;
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.unwrap();
        passes.push(id);
        left -= 1;
    }
    assert!(passes.contains(&"2/2".to_owned()), "{passes:?}");
    connection.close(200, short("done")).await.unwrap();
    link.close().await;
}

async fn park(link: &Link, wait: u64, pass: u64) {
    let rung = ladder::rung(Duration::from_secs(wait), Lane::Bulk, 0);
    let message = Outgoing {
        exchange: rung.exchange,
        routing_key: rung.routing_key,
        message_id: format!("{wait}/{pass}"),
        kind: "postrider.job.v1".to_owned(),
        content_type: "application/json",
        headers: Meta { parks: 1, ..Meta::default() }.to_pairs(),
        body: bytes::Bytes::from_static(b"{}"),
        mandatory: true,
        user_id: None,
        published_at: None,
        foreign: ForeignProperties::default(),
    };
    link.publish(&message).await.unwrap();
}
