//! What a person is told of a running installation, and of one job.

use postrider_schemas::{Job, Lane, wire::TemplateV1};
use postrider_tests::{
    deadline,
    folder::Folder,
    ports,
    postrider::Postrider,
    sink::{self, SmtpSink},
    story::{self, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// The world's relay for all but one tenant, whose relay is not there.
fn config(queue: &str, store: &str, relay: u16) -> String {
    let wall = format!(
        "[transport.wall]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\n\
         [[route]]\nname = \"wall\"\nwhen = {{ tenants = [\"unlucky\"] }}\nsend = [\"wall\"]\n{}",
        ports::free().unwrap(),
        story::ROUTE
    );
    story::config(queue, store, relay, &wall)
}

/// One that arrives, one that cannot be made, one whose relay is not there.
fn jobs() -> [Job; 3] {
    let good = story::job(Lane::Transactional, "ada@dest.test");
    let bad = story::job_with(|job| {
        job.template = Some(TemplateV1 { text: Some("{{ missing }}".to_owned()), ..TemplateV1::default() });
        job.text = None;
    });
    [good, bad, story::job_with(|job| job.tenant = Some("unlucky".to_owned()))]
}

fn status(config: &str) -> serde_json::Value {
    let done = Postrider::command(["status", "--format", "json"]).config(config).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

fn trace(config: &str, job: &Job) -> (serde_json::Value, String) {
    let id = job.id().to_string();
    let named = ["trace", &id, "--tenant", job.tenant().as_str()];
    let json = Postrider::command([&named[..], &["--format", "json"]].concat()).config(config).run(SOON).unwrap();
    let text = Postrider::command(named).config(config).run(SOON).unwrap();
    assert!(json.status.success() && text.status.success(), "{}{}", json.stderr, text.stderr);
    (serde_json::from_str(&json.stdout).unwrap(), text.stdout)
}

fn wait_for_status(config: &str, what: &str, is_it: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    deadline::wait_for(what, SOON, || Some(status(config)).filter(|seen| is_it(seen)))
        .unwrap_or_else(|error| panic!("{error}: {:#}", status(config)))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_trace_tell_what_is_known_on_rabbitmq() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let config = config(&env.amqp_url(), &env.redis_url(), env.sink().port());
    assert_eq!(status(&config)["workers"].as_array().unwrap().len(), 0);
    let (mut one, other) = (story::start(config.clone()).unwrap(), story::start(config.clone()).unwrap());
    let jobs = jobs();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let seen = wait_for_status(&config, "two workers, a dead job and a failure", |seen| {
        let failures = seen["failures"].as_array().unwrap();
        let count = |name: &str| failures.iter().filter(|one| one["transport"] == name).count();
        let sent = seen["lanes"][0]["accepted_in_a_minute"] == 1;
        seen["workers"].as_array().unwrap().len() == 2
            && seen["dead"] == 1
            && sent
            && count("wall") >= 1
            && count("relay") == 1
    });
    let worker = &seen["workers"][0];
    assert!(worker["consumes"] == true && worker["pid"].is_u64() && worker["version"].is_string(), "{worker:#}");
    assert_eq!(seen["lanes"][0]["lane"], "transactional");
    let circuits: Vec<_> =
        seen["circuits"].as_array().unwrap().iter().map(|one| (&one["transport"], &one["state"])).collect();
    assert_eq!(circuits, [(&"relay".into(), &"closed".into()), (&"wall".into(), &"open".into())]);
    let text = Postrider::command(["status"]).config(config.clone()).run(SOON).unwrap().stdout;
    for part in
        ["2 workers", "dead 1", "transport wall: circuit open", "failures of the last minutes", "wall unavailable"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }

    let (json, text) = trace(&config, &jobs[0]);
    assert_eq!(json["ledger"][0]["state"], "sent", "{text}");
    assert!(text.contains("ledger: sent") && text.contains("not known: RabbitMQ does not show"), "{text}");
    let (json, text) = trace(&config, &jobs[1]);
    assert_eq!(
        (&json["messages"][0]["place"], &json["ledger"][0]["state"]),
        (&"dead".into(), &"dead".into()),
        "{text}"
    );
    assert!(json["messages"][0]["reason"].as_str().unwrap().starts_with("cannot-be-sent"), "{text}");
    let nobody = story::job(Lane::Bulk, "ada@dest.test").id().to_string();
    let done = Postrider::command(["trace", &nobody]).config(config.clone()).run(SOON).unwrap();
    assert!(
        !done.status.success() && done.stdout.contains("no record of tenant default under this id"),
        "{}",
        done.stdout
    );

    // Who says goodbye is not alive any more.
    one.terminate().unwrap();
    assert!(one.wait(SOON).unwrap().success());
    let pid = u64::from(other.pid());
    wait_for_status(&config, "one worker", |seen| {
        let workers = seen["workers"].as_array().unwrap();
        workers.len() == 1 && workers[0]["pid"].as_u64() == Some(pid)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_trace_tell_more_of_a_file() {
    let sink = SmtpSink::start(sink::Options::default()).unwrap();
    let folder = Folder::new("status").unwrap();
    let url = format!("embedded:{}", folder.path().join("postrider.db").display());
    let config = config(&url, &url, sink.port());
    let worker = story::start(config.clone()).unwrap();
    let jobs = jobs();
    story::publish(&url, &jobs).await.unwrap();
    let seen = wait_for_status(&config, "a dead job and a failure", |seen| {
        seen["workers"].as_array().unwrap().len() == 1
            && seen["dead"] == 1
            && seen["failures"].as_array().unwrap().len() >= 2
    });
    assert!(seen["parked"].is_u64(), "{seen:#}");
    let (json, text) = trace(&config, &jobs[0]);
    assert_eq!(json["events"][0]["type"], "postrider.job.accepted.v1", "{text}");
    assert_eq!(json["unknown"].as_array().unwrap().len(), 0);
    let (json, text) = trace(&config, &jobs[2]);
    assert_eq!(
        (&json["events"][0]["type"], &json["messages"][0]["place"]),
        (&"postrider.job.deferred.v1".into(), &"due".into())
    );
    assert!(text.contains("wall unavailable connect:"), "{text}");
    drop(worker);
}
