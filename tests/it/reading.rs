//! Commands that only look: they make nothing, need no credentials of transports, find the configuration, and show the half that answers.

use postrider_schemas::Lane;
use postrider_tests::{
    folder::Folder,
    ports,
    postrider::{Finished, Postrider},
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

fn run(arguments: &[&str], config: &str) -> Finished {
    Postrider::command(arguments).config(config).run(SOON).unwrap()
}

#[test]
fn commands_that_look_make_no_file_and_say_which_configuration_they_used() {
    let folder = Folder::new("reading").unwrap();
    let file = folder.path().join("queue.db");
    let url = format!("embedded:{}", file.display());
    let config = story::config(&url, &url, 9, ROUTE);
    let id = "0190a5c0-7a10-7c3e-9d51-000000000001";
    for command in [
        &["status"][..],
        &["dead", "ls"],
        &["hold", "ls"],
        &["dead", "retry", "--all"],
        &["trace", id],
        &["cancel", id],
        &["limits", "ls"],
        &["events", "--count", "1"],
    ] {
        let done = run(command, &config);
        assert_eq!(done.status.code(), Some(1), "{command:?}: {}{}", done.stdout, done.stderr);
        let all = format!("{}{}", done.stdout, done.stderr);
        assert!(all.contains("does not exist"), "{command:?}: {all}");
        assert!(!file.exists(), "{command:?} made a file");
    }
    // Without any configuration nothing is made either, and it is said what was looked for.
    let done = Postrider::command(["status"]).run(SOON).unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("built-in defaults") && done.stderr.contains("./postrider.toml"), "{}", done.stderr);
}

#[test]
fn commands_that_look_declare_nothing_on_a_broker_and_write_nothing_to_redis() {
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), 9, ROUTE);
    let keys = || env.redis_cli(&["DBSIZE"]).unwrap();
    let before = keys();
    for command in [&["status"][..], &["dead", "ls"], &["hold", "ls"], &["limits", "ls"]] {
        let done = run(command, &config);
        let all = format!("{}{}", done.stdout, done.stderr);
        if command != ["limits", "ls"] {
            assert_eq!(done.status.code(), Some(1), "{command:?}: {all}");
            assert!(all.contains("does not exist") && all.contains("postrider topology apply"), "{command:?}: {all}");
        }
    }
    assert!(env.vhost().queue_depths().unwrap().is_empty(), "something was declared");
    assert_eq!(keys(), before, "something was written");
}

#[test]
fn status_shows_the_half_that_answers_and_needs_no_password_of_a_relay() {
    let env = TestEnv::start(&EnvSpec { sink: None, redis: Server::Own, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let login = format!("username = \"app\"\npassword = {{ env = \"NOWHERE_SET\" }}\nplaintext_auth = true\n{ROUTE}");
    let (broker, store) = (env.amqp_url(), env.redis_url());
    let nobody = ports::free().unwrap();
    let whole = run(&["status"], &story::config(&broker, &store, 9, &login));
    assert!(whole.status.success(), "{}{}", whole.stdout, whole.stderr);
    assert!(whole.stdout.contains("transport relay: not known: its credentials are not here"), "{}", whole.stdout);
    let half = run(&["status"], &story::config(&broker, &format!("redis://127.0.0.1:{nobody}/0"), 9, &login));
    assert_eq!(half.status.code(), Some(1));
    assert!(half.stdout.contains("not known: the store: ") && half.stdout.contains("dead 0"), "{}", half.stdout);
    let half = run(&["status"], &story::config(&format!("amqp://127.0.0.1:{nobody}"), &store, 9, &login));
    assert_eq!(half.status.code(), Some(1));
    assert!(half.stdout.contains("not known: the queue: ") && half.stdout.contains("0 workers"), "{}", half.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_mail_behind_a_silent_relay_is_seen_in_status_and_metrics() {
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let relay = StallingRelay::start(StallPoint::Greeting, u32::MAX).unwrap();
    let port = ports::free().unwrap();
    let more = format!("connect_timeout = \"60s\"\n{ROUTE}[admin]\nlisten = \"127.0.0.1:{port}\"\n");
    let config = story::config(&env.amqp_url(), &env.redis_url(), relay.port(), &more);
    let _worker = story::start(config.clone()).unwrap();
    let jobs: Vec<_> = (0..100).map(|_| story::job(Lane::Transactional, "ada@dest.test")).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    postrider_tests::deadline::wait_for("an age above 5 s", SOON, || {
        let done = run(&["status", "--format", "json"], &config);
        let seen: serde_json::Value = serde_json::from_str(&done.stdout).ok()?;
        (seen["lanes"][0]["oldest_seconds"].as_u64()? >= 5 && seen["circuits"][0]["asked_since_accepted"].as_u64()? > 0)
            .then_some(())
    })
    .unwrap();
    let endpoint = postrider_tests::http::Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    let (_, page) = endpoint.request("GET", "/metrics", "").unwrap();
    for name in ["postrider_oldest_age_seconds", "postrider_oldest_untried_age_seconds"] {
        let start = format!("{name}{{lane=\"transactional\"");
        let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{name} in {page}"));
        let age: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(age >= 4.0, "{line}");
    }
}
