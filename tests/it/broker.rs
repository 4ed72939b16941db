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
    aiosmtpd::Tls,
    deadline,
    fault_proxy::{FaultProxy, Faults},
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
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
    let Some(mut env) =
        TestEnv::start_or_skip("a blocked broker", &EnvSpec { rabbit: Server::Own, ..EnvSpec::default() }).unwrap()
    else {
        return;
    };
    let url = env.amqp_url();
    declare(&url).await;
    let publisher = Publisher::connect(&url).await.unwrap();
    let job = story::job(Lane::Bulk, "ada@customer.example");
    env.rabbit().block().unwrap();
    // The first message makes the broker tell the connection that it is blocked.
    let (start, first) = (Instant::now(), publisher.publish(&job).await);
    assert_eq!(first, Err(PublishError::Busy));
    assert!(start.elapsed() < Duration::from_secs(20));
    env.rabbit().unblock().unwrap();
    deadline::wait_for_async("a publish that works again", SOON, async || publisher.publish(&job).await.ok())
        .await
        .unwrap();
    publisher.close().await;
}

/// An alarm stops publishing only. What needs no copy goes on; what does waits with its worker, and a stop ends in time.
#[tokio::test(flavor = "multi_thread")]
async fn workers_of_a_blocked_broker_go_on_and_what_they_could_not_put_away_follows() {
    let parts = EnvSpec { rabbit: Server::Own, aiosmtpd: Some(Tls::None), ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("workers of a blocked broker", &parts).unwrap() else { return };
    let url = env.amqp_url();
    declare(&url).await;
    story::remember(&env).unwrap();
    let relay = FaultProxy::start(env.aiosmtpd().port()).unwrap();
    let config = story::config(&url, &env.redis_url(), relay.port(), ROUTE);
    let mut worker = story::start(config.clone()).unwrap();
    let jobs =
        |name: &str| (0..3).map(|n| story::job(Lane::Bulk, &format!("{name}-{n}@dest.example"))).collect::<Vec<_>>();
    // Slow replies: everything is in hand when the alarm goes off, and nothing has an outcome yet.
    // So slowly that no message is on its way before the alarm is raised, also where that takes a busy machine its time.
    let slowly = Faults::delay_replies(Duration::from_secs(30));
    let under_alarm = async |env: &mut TestEnv, name: &str, more: &[Job]| {
        // A connection of before would be used again and not show.
        relay.cut_all();
        relay.set(slowly);
        let before = relay.connections();
        // Greylisted once: the first try of each asks for a copy.
        story::publish(&url, &[jobs(name).as_slice(), more].concat()).await.unwrap();
        deadline::wait_for("tries under way", SOON, || (relay.connections() > before).then_some(())).unwrap();
        env.rabbit().block().unwrap();
        relay.set(Faults::default());
        relay.cut_all();
    };
    let waiting = |worker: &Postrider| worker.stderr().matches("is published until it is").count();

    under_alarm(&mut env, "once-a", &jobs("well")).await;
    deadline::wait_for("copies that cannot be published", SOON, || (waiting(&worker) > 0).then_some(())).unwrap();
    assert!(worker.is_running().unwrap());
    env.rabbit().unblock().unwrap();
    env.aiosmtpd().wait_for(6, SOON).unwrap();

    under_alarm(&mut env, "once-b", &[]).await;
    worker.terminate().unwrap();
    worker.wait(SOON).unwrap();
    env.rabbit().unblock().unwrap();
    let worker = story::start(config).unwrap();
    env.aiosmtpd().wait_for(9, SOON).unwrap();
    drop(worker);
    let stored = env.aiosmtpd().messages().unwrap();
    let mut recipients: Vec<String> =
        stored.iter().flat_map(|one| one.recipients()).map(|one| one.split('@').next().unwrap().to_owned()).collect();
    recipients.sort_unstable();
    let wanted = ["once-a-0", "once-a-1", "once-a-2", "once-b-0", "once-b-1", "once-b-2", "well-0", "well-1", "well-2"];
    assert_eq!(recipients, wanted, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_or_queue_is_named_at_once() {
    let env = TestEnv::start(&EnvSpec { rabbit: Server::Shared, ..EnvSpec::default() }).unwrap();
    let url = env.amqp_url();
    let publisher = Publisher::connect(&url).await.unwrap();
    let job = story::job(Lane::Bulk, "ada@customer.example");
    let error = publisher.publish(&job).await.unwrap_err();
    assert!(matches!(&error, PublishError::Unroutable(reason) if reason.contains("postrider.submit")), "{error}");
    assert!(error.to_string().contains("postrider topology apply"), "{error}");
    declare(&url).await;
    publisher.publish(&job).await.unwrap();
    // A queue that is missing does not lose the message: it goes to the unroutable queue.
    env.vhost().delete_queue("postrider.v1.jobs.bulk.00").unwrap();
    publisher.publish(&job).await.unwrap();
    deadline::wait_for("the message in unroutable", SOON, || {
        (env.vhost().queue_depths().ok()?.get("postrider.v1.unroutable")?.total() == 1).then_some(())
    })
    .unwrap();
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_drops_every_connection_loses_nothing_and_doubles_nothing() {
    let parts = EnvSpec { rabbit: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("dropped connections", &parts).unwrap() else { return };
    let url = env.amqp_url();
    declare(&url).await;
    story::remember(&env).unwrap();
    let config = story::config(&url, &env.redis_url(), env.sink().port(), ROUTE);
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
        env.sink().wait_for(count, SOON).unwrap();
        env.rabbit().close_all_connections().unwrap();
    }
    let published = publishing.await.unwrap();
    assert!(published.iter().all(|(_, result)| result.is_ok()), "a publish is repeated on a new connection");
    env.sink().wait_for(jobs.len(), SOON).unwrap();
    publisher.close().await;
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), jobs.len(), "nothing twice");
}
