//! Limited mail while servers and workers fail: never past the limit by more than a second's worth, nothing lost, nothing twice.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::{collections::HashSet, time::Duration};

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    redis::Redis,
    redis_fleet::{RedisCluster, RedisSentinel},
    sink::SmtpSink,
    story::{self, ROUTE},
    test_env::{EnvSpec, Server, TestEnv},
};

use crate::{
    limiter_servers::move_slot,
    limits::{busiest, is_long, jobs, throttle, times},
};

const LONG: Duration = Duration::from_mins(3);

/// Waits until a tenth part of the mail, times so many, was sent.
fn wait_for_tenths(sink: &SmtpSink, count: usize, tenths: usize) {
    let enough = || (times(sink, "slow").len() >= count * tenths / 10).then_some(());
    deadline::wait_for("a part of the mail", LONG, enough).unwrap();
}

/// Everything was sent once, or is held for a person because nobody can know; and at no time too fast.
fn check(sink: &SmtpSink, count: usize, held: impl Fn() -> usize) {
    let all = || {
        let sent = times(sink, "slow").len();
        (sent >= count || sent + held() >= count).then_some(())
    };
    deadline::wait_for("everything sent or held", LONG, all).unwrap();
    let slow = times(sink, "slow");
    println!("{} sent, {} held, busiest 10 s {}", slow.len(), held(), busiest(&slow, 10.0));
    assert!(busiest(&slow, 10.0) <= 220, "more than a second's worth above the limit");
    let stored = sink.messages().unwrap();
    let once: HashSet<String> = stored.iter().map(|one| one.recipients()[0].to_owned()).collect();
    assert_eq!(once.len(), stored.len(), "nothing twice");
}

fn count() -> usize {
    if is_long() { 1200 } else { 300 }
}

/// Two workers with a store of this address, while something happens to it.
async fn while_the_store(url: &str, breaks: impl FnOnce()) {
    let env = TestEnv::start(&EnvSpec { redis: Server::Absent, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let more = format!("{}{ROUTE}", throttle("slow", "20/s"));
    let config = story::config(&env.amqp_url(), url, env.sink().port(), &more);
    let _workers = [story::start(config.clone()).unwrap(), story::start(config.clone()).unwrap()];
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "slow", count())).await.unwrap();
    wait_for_tenths(env.sink(), count(), 3);
    breaks();
    check(env.sink(), count(), || story::rest("hold", &config).map_or(0, |rows| rows.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinel_loses_and_doubles_no_limited_mail() {
    if Redis::start_or_skip("limited mail over a failover").unwrap().is_none() {
        return;
    }
    let mut fleet = RedisSentinel::start(1).unwrap();
    let url = fleet.url();
    while_the_store(&url, || fleet.failover().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_the_slot_of_the_limits_loses_and_doubles_no_mail() {
    if Redis::start_or_skip("limited mail over a resharding").unwrap().is_none() {
        return;
    }
    let mut cluster = RedisCluster::start().unwrap();
    let (url, ports) = (cluster.url(), cluster.nodes().iter().map(Redis::port).collect::<Vec<u16>>());
    while_the_store(&url, || move_slot(&ports, "postrider:{limits}").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_of_an_embedded_queue_lets_nobody_past_the_limit() {
    let env = TestEnv::start(&EnvSpec { rabbit: Server::Absent, redis: Server::Absent, ..EnvSpec::usual() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let more = format!("{}{ROUTE}", throttle("slow", "20/s"));
    let config = story::config(&file, &file, env.sink().port(), &more);
    let (mut first, _second) = (story::start_any(&config).unwrap(), story::start_any(&config).unwrap());
    story::publish(&file, &jobs(Lane::Bulk, "slow", count())).await.unwrap();
    for tenths in [3, 5] {
        wait_for_tenths(env.sink(), count(), tenths);
        first.kill9().unwrap();
        first.start_again().unwrap();
    }
    check(env.sink(), count(), || story::rest("hold", &config).map_or(0, |rows| rows.len()));
}
