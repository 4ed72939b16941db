//! What a worker's page says of limits and of a store that is away.

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    http::Endpoint,
    ports,
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

use crate::limits::{jobs, throttle};

/// A worker's admin address.
struct Admin(Endpoint);

impl Admin {
    /// At a free port, and the settings for it.
    fn free() -> (Self, String) {
        let address = format!("127.0.0.1:{}", ports::free().unwrap());
        let settings = format!("[admin]\nlisten = \"{address}\"\n");
        (Self(Endpoint { address, credentials: String::new() }), settings)
    }

    /// What a series is at, by its whole name with labels.
    fn value(&self, series: &str) -> Option<f64> {
        let page = self.0.expect("GET", "/metrics", "").ok()?;
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Status and text of `/readyz`.
    fn ready(&self) -> Option<(u16, String)> {
        self.0.request("GET", "/readyz", "").ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_a_limit_holds_back_are_no_work_for_more_workers_and_the_page_says_that_the_limit_is_used() {
    const JOBS: usize = 500;
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let (admin, settings) = Admin::free();
    let more = format!("{settings}{}{}{ROUTE}", throttle("slow", "1/s"), throttle("idle", "1/s"));
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &more);
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "slow", JOBS)).await.unwrap();
    let _worker = story::start(config.clone()).unwrap();
    let deliverable = "postrider_backlog_deliverable{lane=\"bulk\"}";
    let bucket = |group: &str| {
        admin.value(&format!("postrider_bucket_use_ratio{{group=\"{group}\",scope=\"group\",transport=\"relay\"}}"))
    };
    // The line is known after a few looks; until then a use is that of a few seconds.
    let settled = || {
        let (left, used) = (admin.value(deliverable)?, bucket("slow")?);
        (left <= 5.0 && (0.8..=1.1).contains(&used)).then_some((left, used))
    };
    let (left, used) = deadline::wait_for("a backlog that is held back", 3 * SOON, settled)
        .unwrap_or_else(|error| panic!("{error}: {:?}, {:?}", admin.value(deliverable), bucket("slow")));
    let status = Postrider::command(["status", "--format", "json"]).config(config).run(SOON).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let bulk = &status["lanes"][1];
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let waiting = number(&bulk["jobs"]) + number(&bulk["due"]) + number(&bulk["in_hand"]) + number(&status["parked"]);
    let sent = env.sink().count().unwrap();
    println!("{sent} sent, {waiting} wait, {left} of them deliverable, the limit is used at {used:.2}");
    // Jobs on their way between two queues are counted in neither.
    assert!(waiting + 30 >= (JOBS - sent) as u64 && sent < JOBS / 2, "{status}");
    assert!(bucket("idle").unwrap_or_default() < 0.1, "nobody uses it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_said_by_readiness_and_the_page_until_it_is_back() {
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("readiness without Redis", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    let (admin, settings) = Admin::free();
    let more = format!("{settings}{}{ROUTE}", throttle("some", "100/s"));
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &more);
    let worker = story::start(config.clone()).unwrap();
    let is = |text: &str, degraded: f64| {
        let (status, said) = admin.ready()?;
        (status == 200 && said.starts_with(text) && admin.value("postrider_store_degraded") == Some(degraded))
            .then_some(())
    };
    deadline::wait_for("a worker that is ready", SOON, || is("ready\n", 0.0)).unwrap();
    env.redis().kill9().unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Transactional, "some", 3)).await.unwrap();
    deadline::wait_for("a worker without its store", SOON, || is("ready, degraded: the store is away", 1.0))
        .unwrap_or_else(|error| panic!("{error}: {:?}", admin.ready()));
    let health = Postrider::command(["health", "--ready"]).config(config).run(SOON).unwrap();
    assert!(health.status.success() && health.stdout.contains("degraded"), "{}{}", health.stdout, health.stderr);
    env.sink().wait_for(3, SOON).unwrap();
    let said = || worker.stderr().contains("goes on with a share of the limits").then_some(());
    deadline::wait_for("a line of log", SOON, said).unwrap();
    env.redis().restart().unwrap();
    deadline::wait_for("a store that is back", SOON, || is("ready\n", 0.0)).unwrap();
}
