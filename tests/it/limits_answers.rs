//! What a Web API's refusals are to the limits: each answer counts once, and is believed where it says how long it means.

use std::time::Duration;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{FakeProvider, Reaction},
    postrider::Postrider,
    story::{self, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// A worker's configuration: one provider, one call at a time.
fn config(env: &TestEnv, api: &FakeProvider, more: &str) -> String {
    format!(
        "[queue]\nurl = \"{}\"\n[store]\nurl = \"{}\"\n[retry]\nschedule = {}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [transport.api]\nkind = \"resend\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\nconnections = 1\nbatch_linger = \"50ms\"\n{more}\
         [[route]]\nname = \"all\"\nsend = [\"api\"]\n",
        env.amqp_url(),
        env.redis_url(),
        story::SCHEDULE,
        api.url()
    )
}

fn refusal(name: &str, headers: &'static str) -> Reaction {
    Reaction::Answer(429, headers, format!("{{\"name\":\"{name}\",\"message\":\"not now\"}}"))
}

/// The transport's row of `limits ls`.
fn row(config: &str) -> serde_json::Value {
    let done = Postrider::command(["limits", "ls", "transport:api", "--format", "json"]).config(config).run(SOON);
    done.unwrap().stdout.lines().next().map_or(serde_json::Value::Null, |line| serde_json::from_str(line).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_many_jobs_share_is_refused_once() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| refusal("rate_limit_exceeded", "")).unwrap();
    let often =
        "[[shaping_rule]]\nname = \"often\"\nmatch = { codes = [\"429\"] }\ntrigger = \"3/10m\"\npause = \"1h\"\n";
    let config = config(&env, &api, often);
    let mut worker = story::start(config.clone()).unwrap();
    let jobs: Vec<Job> = (0..20).map(|n| story::job(Lane::Bulk, &format!("n{n}@dest.test"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    worker.wait_for_output("asks for patience", 2 * SOON).unwrap();
    let calls = api.calls();
    let sizes: Vec<usize> = calls.iter().map(|call| call.json().unwrap().as_array().map_or(1, Vec::len)).collect();
    println!("paused after calls of {sizes:?} jobs");
    assert!(sizes[0] >= 3, "one call has more jobs than the trigger needs answers: {sizes:?}");
    assert!(sizes.len() >= 3, "each answer counts once: {sizes:?}");
    let row = row(&config);
    assert!(row["why"].as_str().unwrap().starts_with("often: ") && row["paused_for_s"].is_number(), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_quota_that_says_until_when_pauses_its_transport_until_then() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| refusal("daily_quota_exceeded", "Retry-After: 60")).unwrap();
    let config = config(&env, &api, "");
    let _worker = story::start(config.clone()).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    let paused = || row(&config)["paused_for_s"].as_f64().map(Duration::from_secs_f64);
    let paused = deadline::wait_for("a pause", SOON, paused).unwrap();
    assert!(paused <= Duration::from_mins(1), "{paused:?}");
}
