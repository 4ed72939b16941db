//! A relay that does not do its part: the job waits, and arrives when the trouble has ended.

use std::path::Path;
use std::time::Duration;

use postrider_schemas::Lane;
use postrider_tests::{
    aiosmtpd::{Aiosmtpd, TOKEN, Tls},
    deadline,
    fault_proxy::{FaultProxy, Faults},
    postfix::{PASSWORD, USER},
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// Configuration for a relay that wants STARTTLS and credentials.
fn secured(env: &TestEnv, port: u16, ca_file: &Path, password: &str) -> String {
    let relay = format!(
        "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{USER}\"\npassword = \"{password}\"\n{ROUTE}",
        ca_file.display()
    );
    story::relay_config(&env.amqp_url(), &env.redis_url(), port, &relay)
}

/// The worker's lines about outcomes of tries.
fn outcomes(worker: &Postrider) -> Vec<serde_json::Value> {
    let lines = worker.stderr();
    let parsed = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    parsed.filter(|line| line["attempt"].is_u64()).collect()
}

/// Waits for so many tries of this class, and asserts that there is no other outcome.
#[track_caller]
fn wait_for_class(worker: &Postrider, class: &str, count: usize) -> Vec<serde_json::Value> {
    let seen = deadline::wait_for(&format!("{count} tries of class {class}"), SOON, || {
        Some(outcomes(worker)).filter(|seen| seen.len() >= count)
    })
    .unwrap();
    assert!(seen.iter().all(|line| line["class"] == class && line["follows"] == "again"), "{seen:#?}");
    seen
}

/// Twice the relay needs a person, who then mends it (`good`): no try was counted meanwhile.
async fn waits_for_a_person(env: &TestEnv, bad: String, good: String, answer: &str) -> Postrider {
    story::declare(env).unwrap();
    let worker = story::start(bad).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    let seen = wait_for_class(&worker, "config", 2);
    for line in &seen {
        assert_eq!(line["attempt"], 1, "no retry is counted: {line}");
        assert!(line["answer"].as_str().unwrap().contains(answer), "{line}");
    }
    drop(worker);
    story::start(good).unwrap()
}

/// After the mending, the job goes out as its first try.
#[track_caller]
fn assert_sent_at_first_try(worker: &Postrider) {
    let seen =
        deadline::wait_for("an outcome", SOON, || Some(outcomes(worker)).filter(|seen| !seen.is_empty())).unwrap();
    assert_eq!(
        (seen.len(), &seen[0]["attempt"], &seen[0]["class"]),
        (1, &1.into(), &serde_json::Value::Null),
        "{seen:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wrong_credentials_the_job_waits_and_no_retry_is_counted() {
    let env = TestEnv::start(&EnvSpec { postfix: true, ..EnvSpec::usual() }).unwrap();
    let (port, ca) = (env.postfix().submission, env.postfix().ca_file());
    let (bad, good) = (secured(&env, port, &ca, "mistyped"), secured(&env, port, &ca, PASSWORD));
    let worker = waits_for_a_person(&env, bad, good, "535").await;
    env.sink().wait_for(1, SOON).unwrap();
    assert_sent_at_first_try(&worker);
    assert_eq!(env.sink().count().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_relay_for_us_costs_nobody_a_mail() {
    let env = TestEnv::start(&EnvSpec { postfix: true, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let config = |port: u16, more: &str| {
        let relay = format!("host = \"127.0.0.1\"\ntls = \"none\"\n{more}");
        story::relay_config(&env.amqp_url(), &env.redis_url(), port, &relay)
    };
    let (stranger, good) = (env.postfix().strangers, env.postfix().plain);
    let worker = story::start(config(stranger, ROUTE)).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    for line in wait_for_class(&worker, "sender", 2) {
        assert_eq!(line["attempt"], 1, "no retry is counted: {line}");
        assert!(line["answer"].as_str().unwrap().contains("Relay access denied"), "{line}");
    }
    drop(worker);
    // The same attempt goes on with a relay that does.
    let spare = format!(
        "[transport.spare]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {good}\n{}",
        ROUTE.replace("[\"relay\"]", "[\"relay\", \"spare\"]")
    );
    let worker = story::start(config(stranger, &spare)).unwrap();
    env.sink().wait_for(1, SOON).unwrap();
    let told = deadline::wait_for("both outcomes", SOON, || Some(outcomes(&worker)).filter(|seen| seen.len() >= 2));
    let told: Vec<_> = told.unwrap().iter().map(|line| (line["transport"].clone(), line["attempt"].clone())).collect();
    assert_eq!(told, [("relay".into(), 1.into()), ("spare".into(), 1.into())]);
    assert!(!worker.stderr().contains("needs a person"), "one address must not stop a relay's other mail");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_wrong_access_token_the_job_waits_and_with_the_right_one_it_goes_out() {
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::StartTls), sink: None, ..EnvSpec::usual() }).unwrap();
    let relay = env.aiosmtpd();
    let with_token = |token: &str| {
        secured(&env, relay.port(), &relay.ca_file(), token)
            .replace("password =", "mechanism = \"xoauth2\"\npassword =")
    };
    let worker = waits_for_a_person(&env, with_token("expired"), with_token(TOKEN), "535").await;
    relay.wait_for(1, SOON).unwrap();
    assert_sent_at_first_try(&worker);
    drop(worker);
    assert_eq!(relay.messages().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_gets_no_mail_and_no_password() {
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::StartTls), sink: None, ..EnvSpec::usual() }).unwrap();
    let stranger = Aiosmtpd::start_as(Tls::StartTls, &["other.test"]).unwrap();
    let bad = secured(&env, stranger.port(), &stranger.ca_file(), PASSWORD);
    let relay = env.aiosmtpd();
    let good = secured(&env, relay.port(), &relay.ca_file(), PASSWORD);
    let worker = waits_for_a_person(&env, bad, good, "tls: ").await;
    relay.wait_for(1, SOON).unwrap();
    assert_sent_at_first_try(&worker);
    assert_eq!((stranger.messages().unwrap().len(), relay.messages().unwrap().len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_starttls_gets_nothing_in_plain_text() {
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::StartTls), ..EnvSpec::usual() }).unwrap();
    let relay = env.aiosmtpd();
    let bad = secured(&env, env.sink().port(), &relay.ca_file(), PASSWORD);
    let good = secured(&env, relay.port(), &relay.ca_file(), PASSWORD);
    let worker = waits_for_a_person(&env, bad, good, "STARTTLS").await;
    relay.wait_for(1, SOON).unwrap();
    assert_sent_at_first_try(&worker);
    assert_eq!((env.sink().count().unwrap(), relay.messages().unwrap().len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_421_in_mid_session_costs_its_job_a_try_and_the_others_nothing() {
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::None), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let config = |port| {
        story::config(&env.amqp_url(), &env.redis_url(), port, &format!("connections = 1\n{ROUTE}"))
            .replace("connections = 8\n", "")
    };
    let mut worker = story::start(config(env.aiosmtpd().port())).unwrap();
    let names = ["ada@dest.test", "421@dest.test", "bob@dest.test"];
    story::publish(&env.amqp_url(), &names.map(|name| story::job(Lane::Transactional, name))).await.unwrap();
    env.aiosmtpd().wait_for(2, SOON).unwrap();
    worker.wait_for_output("421 4.3.2", SOON).unwrap();
    drop(worker);
    let worker = story::start(config(env.sink().port())).unwrap();
    let stored = env.sink().wait_for(1, SOON).unwrap();
    drop(worker);
    assert_eq!(stored.iter().flat_map(|one| one.recipients()).collect::<Vec<_>>(), ["421@dest.test"]);
    let mut first: Vec<String> = env
        .aiosmtpd()
        .messages()
        .unwrap()
        .iter()
        .flat_map(|one| one.recipients().into_iter().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    first.sort_unstable();
    assert_eq!(first, ["ada@dest.test", "bob@dest.test"], "nobody twice");
    assert_eq!(env.sink().count().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_falls_silent_delays_mail_and_doubles_none() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let proxy = FaultProxy::start(env.sink().port()).unwrap();
    let limits = format!("connect_timeout = \"1s\"\ncommand_timeout = \"1s\"\nfinal_timeout = \"5s\"\n{ROUTE}");
    let config = story::config(&env.amqp_url(), &env.redis_url(), proxy.port(), &limits);
    let worker = story::start(config).unwrap();
    let publish = async |name: &str| {
        story::publish(&env.amqp_url(), &[story::job(Lane::Bulk, name)]).await.unwrap();
    };
    // Silent from the first byte.
    proxy.set(Faults::black_hole());
    publish("first@dest.test").await;
    wait_for_class(&worker, "unavailable", 1);
    proxy.set(Faults::default());
    proxy.cut_all();
    env.sink().wait_for(1, SOON).unwrap();
    // Stored there is not yet answered here.
    deadline::wait_for("the relay's answer", SOON, || worker.stderr().contains("Sent job").then_some(())).unwrap();
    // Silent on a connection that has carried a message before.
    proxy.set(Faults::black_hole());
    publish("second@dest.test").await;
    deadline::wait_for("a second silence", SOON, || {
        let seen = outcomes(&worker);
        (seen.iter().filter(|line| line["class"] == "transient").count() >= 1).then_some(())
    })
    .unwrap();
    proxy.set(Faults::default());
    proxy.cut_all();
    env.sink().wait_for(2, Duration::from_secs(20)).unwrap();
    assert!(!worker.stderr().contains("\"class\":\"unknown\""), "the dot never left: {}", worker.stderr());
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 2);
}
