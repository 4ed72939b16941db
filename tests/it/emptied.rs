//! A store that forgets everything while mail is on its way: nothing is lost, and what may have been sent before is not sent again.

use std::collections::BTreeSet;

use postrider_schemas::{Job, Lane};
use postrider_tests::deadline;
use postrider_tests::fault_proxy::{FaultProxy, Faults};
use postrider_tests::redis::Redis;
use postrider_tests::story::{self, ROUTE, SOON};
use postrider_tests::world::{Parts, Server, World};

/// Ids of the jobs that arrived, with repetitions.
fn arrived(world: &World) -> Vec<String> {
    let id = |raw: &[u8]| {
        let text = String::from_utf8_lossy(raw);
        let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <").map(str::to_owned));
        line.unwrap_or_default().split('@').next().unwrap_or_default().to_owned()
    };
    world.sink().messages().unwrap().iter().map(|one| id(&one.raw)).collect()
}

/// Delivers jobs, empties the store by `forget` when some are delivered and some are in hand, and then loses the worker.
async fn run(world: &World, store: &str, forget: impl FnOnce()) {
    story::declare(world).unwrap();
    let relay = FaultProxy::start(world.sink().port()).unwrap();
    let route = format!("{ROUTE}on_unknown = \"hold\"\n");
    let config = story::config(&world.amqp_url(), store, relay.port(), &route);
    let jobs: Vec<Job> = (0..300).map(|n| story::job(Lane::Bulk, &format!("customer-{n}@dest.example"))).collect();
    story::publish(&world.amqp_url(), &jobs).await.unwrap();
    // Slow enough that there is always something in hand.
    relay.set(Faults::delay_replies(std::time::Duration::from_millis(50)));
    let mut worker = story::start(config.clone()).unwrap();
    world.sink().wait_for(60, SOON).unwrap();
    forget();
    let after = world.sink().count().unwrap() + 20;
    world.sink().wait_for(after, SOON).unwrap();
    worker.kill9().unwrap();
    worker.start_again().unwrap();
    let all: BTreeSet<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    let held = || -> BTreeSet<String> {
        story::rest("hold", &config).unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    deadline::wait_for("every job delivered or held", SOON * 2, || {
        let ended: BTreeSet<String> = arrived(world).into_iter().chain(held()).collect();
        all.is_subset(&ended).then_some(())
    })
    .unwrap();
    drop(worker);
    let (list, held) = (arrived(world), held());
    let once: BTreeSet<&String> = list.iter().collect();
    println!("published {}, delivered {}, held {}", all.len(), once.len(), held.len());
    assert_eq!(list.len(), once.len(), "nothing twice");
    assert!(!held.is_empty(), "the worker was lost with something in hand that nobody remembers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_forgot_under_load_is_held_where_it_may_have_been_sent() {
    let world = World::start(&Parts::usual()).unwrap();
    let store = world.redis_url();
    run(&world, &store, || drop(world.redis_cli(&["FLUSHDB"]).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_without_persistence_has_forgotten_too() {
    let Some(mut redis) = Redis::start_or_skip("a Redis without persistence").unwrap() else { return };
    let world = World::start(&Parts { redis: Server::Absent, ..Parts::usual() }).unwrap();
    let store = redis.url();
    run(&world, &store, || redis.restart().unwrap()).await;
}
