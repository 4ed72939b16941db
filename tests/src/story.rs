//! What stories share: configurations, jobs, and publishing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use postrider_producer::Publisher;
use postrider_schemas::{Job, JobLimits, JobV1, Lane, examples, wire};

use crate::{deadline, postrider::Postrider, rabbitmq::Depth, test_env::TestEnv};

/// The waits of [`config`] between tries.
pub const SCHEDULE: &str = "[\"1s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]";

/// A worker's configuration for one relay without TLS, with quick retries.
pub fn config(queue: &str, store: &str, relay_port: u16, more: &str) -> String {
    relay_config(queue, store, relay_port, &format!("host = \"127.0.0.1\"\ntls = \"none\"\n{more}"))
}

/// The same for any relay: `more` begins with the rest of its table (`host` and `tls` at least).
pub fn relay_config(queue: &str, store: &str, relay_port: u16, more: &str) -> String {
    format!(
        "[queue]\nurl = \"{queue}\"\n[store]\nurl = \"{store}\"\nlease = \"2s\"\n[retry]\nschedule = {SCHEDULE}\n\
         config_wait = \"2s\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n[worker]\ntransactional = 32\nbulk = 32\ndrain = \"10s\"\n\
         [transport.relay]\nkind = \"smtp\"\nport = {relay_port}\nconnections = 8\n{more}\n"
    )
}

/// The catch-all route.
pub const ROUTE: &str = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

/// A small job to one recipient.
pub fn job(lane: Lane, to: &str) -> Job {
    job_with(|job| {
        job.lane = lane;
        job.to = vec![to.into()];
    })
}

/// A small job, changed as the story wants it.
pub fn job_with(change: impl FnOnce(&mut JobV1)) -> Job {
    let mut job = JobV1 {
        from: "The Shop <orders@shop.example>".into(),
        to: vec!["ada@customer.example".into()],
        subject: "Hello".to_owned(),
        text: Some("Hello.\n".to_owned()),
        ..JobV1::default()
    };
    change(&mut job);
    #[expect(clippy::expect_used, reason = "a story with a bad job is a mistake in the story")]
    job.parse(&JobLimits::DEFAULT).expect("a job")
}

/// Every example as a job that is due now.
pub fn examples() -> Result<Vec<(&'static str, Job)>> {
    examples::ALL
        .iter()
        .map(|(name, document)| Ok((*name, wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT)?)))
        .collect()
}

/// Publishes jobs and waits for their confirms.
pub async fn publish(url: &str, jobs: &[Job]) -> Result<()> {
    let publisher = Publisher::connect(url).await?;
    let mut results = publisher.publish_all(stream::iter(jobs.to_vec()));
    while let Some((_, result)) = results.next().await {
        result?;
    }
    drop(results);
    publisher.close().await;
    Ok(())
}

/// Declares the topology before anything is published.
pub fn declare(env: &TestEnv) -> Result<()> {
    if env.takes_declared() {
        return Ok(());
    }
    let done = Postrider::command(["topology", "apply", "--queue", &env.amqp_url()]).run(SOON)?;
    ensure!(done.status.success(), "{}", done.stderr);
    env.vhost().keep_for_others()
}

/// A worker that delivers to the context's sink by [`ROUTE`], consuming.
pub fn worker(env: &TestEnv, more: &str) -> Result<Postrider> {
    start(config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &format!("{more}\n{ROUTE}")))
}

/// A worker with this configuration, consuming.
pub fn start(config: impl Into<String>) -> Result<Postrider> {
    let mut worker = Postrider::worker(config)?;
    worker.wait_for_output("Consuming", SOON)?;
    Ok(worker)
}

/// A worker with this configuration on any queue. The embedded one says nothing when it consumes.
pub fn start_any(config: &str) -> Result<Postrider> {
    if config.contains("amqp") { start(config) } else { Postrider::worker(config) }
}

/// What a queue holds; nothing while it is not there or the broker does not answer.
pub fn depth(env: &TestEnv, queue: &str) -> Option<Depth> {
    env.vhost().queue_depths().ok()?.get(queue).copied()
}

/// Waits until a queue at rest holds so many messages.
pub fn wait_for_depth(env: &TestEnv, queue: &str, count: u64) -> Result<()> {
    let there = || (depth(env, queue)?.total() == count).then_some(());
    deadline::wait_for(&format!("{count} messages in {queue}"), SOON, there)
        .with_context(|| format!("it holds {:?}", depth(env, queue)))
}

/// The rows of `postrider dead ls` or `postrider hold ls`: `which` is `dead` or `hold`.
pub fn rest(which: &str, config: &str) -> Result<Vec<serde_json::Value>> {
    let done = Postrider::command([which, "ls", "--format", "json"]).config(config).run(SOON)?;
    ensure!(done.status.success(), "{}", done.stderr);
    done.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// As long as a slow machine may take for something that is quick.
pub const SOON: Duration = Duration::from_secs(30);

/// Makes the store one that has remembered for an hour, as in any installation but a new one. What was published before a store began to
/// remember, or within its allowance for clocks, counts as unknown when it is redelivered. The names are those of `store/redis`, where a
/// test keeps them from changing.
pub fn remember(env: &TestEnv) -> Result<()> {
    const SCRIPT: &str = "local hour_ago = string.format('%.0f', redis.call('TIME')[1] * 1000 - 3600000) \
                          for n = 0, 255 do redis.call('SET', string.format('postrider:{%02x}:epoch', n), hour_ago) end \
                          return 'ok'";
    env.redis_cli(&["EVAL", SCRIPT, "0"]).map(drop)
}
