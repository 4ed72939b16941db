//! A store that forgets everything while mail is on its way: nothing is lost, and what may have been sent before is not sent again.

use std::collections::BTreeSet;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fault_proxy::{FaultProxy, Faults},
    redis::Redis,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

/// Ids of the jobs that arrived, with repetitions.
fn arrived(env: &TestEnv) -> Vec<String> {
    let id = |raw: &[u8]| {
        let text = String::from_utf8_lossy(raw);
        let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <").map(str::to_owned));
        line.unwrap_or_default().split('@').next().unwrap_or_default().to_owned()
    };
    env.sink().messages().unwrap().iter().map(|one| id(&one.raw)).collect()
}

/// Delivers jobs, empties the store by `forget` when some are delivered and some are in hand, and then loses the worker.
async fn run(env: &TestEnv, store: &str, forget: impl FnOnce()) {
    story::declare(env).unwrap();
    let relay = FaultProxy::start(env.sink().port()).unwrap();
    let route = format!("{ROUTE}on_unknown = \"hold\"\n");
    let config = story::config(&env.amqp_url(), store, relay.port(), &route);
    let jobs: Vec<Job> = (0..300).map(|n| story::job(Lane::Bulk, &format!("customer-{n}@dest.example"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    // Slow enough that there is always something in hand.
    relay.set(Faults::delay_replies(std::time::Duration::from_millis(50)));
    let mut worker = story::start(config.clone()).unwrap();
    env.sink().wait_for(60, SOON).unwrap();
    forget();
    let after = env.sink().count().unwrap() + 20;
    env.sink().wait_for(after, SOON).unwrap();
    worker.kill9().unwrap();
    worker.start_again().unwrap();
    let all: BTreeSet<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    let held = || -> BTreeSet<String> {
        story::rest("hold", &config).unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    deadline::wait_for("every job delivered or held", SOON * 2, || {
        let ended: BTreeSet<String> = arrived(env).into_iter().chain(held()).collect();
        all.is_subset(&ended).then_some(())
    })
    .unwrap();
    drop(worker);
    let (list, held) = (arrived(env), held());
    let once: BTreeSet<&String> = list.iter().collect();
    println!("published {}, delivered {}, held {}", all.len(), once.len(), held.len());
    assert_eq!(list.len(), once.len(), "nothing twice");
    assert!(!held.is_empty(), "the worker was lost with something in hand that nobody remembers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_forgot_under_load_is_held_where_it_may_have_been_sent() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    let store = env.redis_url();
    run(&env, &store, || drop(env.redis_cli(&["FLUSHDB"]).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_without_persistence_has_forgotten_too() {
    let Some(mut redis) = Redis::start_or_skip("a Redis without persistence").unwrap() else { return };
    let env = TestEnv::start(&EnvSpec { redis: Server::Absent, ..EnvSpec::usual() }).unwrap();
    let store = redis.url();
    run(&env, &store, || redis.restart().unwrap()).await;
}
