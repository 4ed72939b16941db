//! A relay that takes some recipients of a message and not the others: nobody is served twice, nobody is forgotten.

use std::time::Duration;

use postrider_schemas::Lane;
use postrider_tests::{
    deadline,
    events::Events,
    postfix::{PASSWORD, USER},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use serde_json::Value;

fn kind(event: &Value) -> &str {
    event["type"].as_str().unwrap()
}

fn of<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| kind(event) == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_recipients_get_it_once_greylisted_ones_are_tried_again_and_unknown_ones_are_reported() {
    let env = TestEnv::start(&EnvSpec { postfix: true, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let mut told = Events::listen(&env.amqp_url()).await.unwrap();
    let job = story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.to = vec!["ada@dest.test".into(), "nouser@dest.test".into()];
        job.cc = vec!["grey@dest.test".into()];
        job.bcc = vec!["bob@dest.test".into()];
        job.expires_at = Some(jiff::Timestamp::now() + Duration::from_secs(8));
    });
    let config = story::relay_config(
        &env.amqp_url(),
        &env.redis_url(),
        env.postfix().submission,
        &format!(
            "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\n{ROUTE}",
            env.postfix().ca_file().display()
        ),
    )
    .replace(story::SCHEDULE, "[\"1s\", \"1s\"]");
    let worker = story::start(config.clone()).unwrap();
    story::publish(&env.amqp_url(), std::slice::from_ref(&job)).await.unwrap();

    let events = told.until("postrider.job.expired.v1").await.unwrap();
    let accepted = of(&events, "postrider.job.accepted.v1");
    assert_eq!(accepted.len(), 1, "{events:#?}");
    let positions = |event: &Value| -> Vec<String> {
        let list = event["data"]["recipients"].as_array().unwrap();
        list.iter().map(|one| format!("{}{}", one["field"].as_str().unwrap(), one["position"])).collect()
    };
    assert_eq!(positions(accepted[0]), ["to0", "bcc0"]);
    let rejected = of(&events, "postrider.job.rejected.v1");
    assert_eq!(rejected.len(), 1, "{events:#?}");
    assert_eq!(positions(rejected[0]), ["to1"]);
    assert!(rejected[0]["data"]["recipients"][0]["answer"].as_str().unwrap().contains("550 5.1.1"), "{rejected:?}");
    // 451 4.7.1 asks for patience: the greylisted one is tried again until the job expires, and no try is used up.
    let deferred = of(&events, "postrider.job.deferred.v1");
    assert!(deferred.len() >= 2, "{events:#?}");
    assert!(deferred.iter().all(|event| event["data"]["attempt"] == 0), "{deferred:#?}");

    let count = |address: &str| {
        let log = std::fs::read_to_string(env.postfix().log_file()).unwrap_or_default();
        log.lines().filter(|line| line.contains(": reject: RCPT") && line.contains(address)).count()
    };
    deadline::wait_for("two refusals in the log of Postfix", SOON, || {
        (count("to=<grey@dest.test>") >= 2).then_some(())
    })
    .unwrap();
    assert_eq!(count("to=<nouser@dest.test>"), 1, "who is refused for good is not asked for again");

    let stored = env.sink().wait_for(1, SOON).unwrap();
    let mut recipients: Vec<&str> = stored.iter().flat_map(|one| one.recipients()).collect();
    recipients.sort_unstable();
    assert_eq!(recipients, ["ada@dest.test", "bob@dest.test"], "nobody twice");
    drop(worker);
}

/// Postfix answers twenty errors in one connection and hangs up: what it said until then counts, and the others are asked at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_hangs_up_after_too_many_errors_is_asked_for_each_recipient_once() {
    let env = TestEnv::start(&EnvSpec { postfix: true, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let mut told = Events::listen(&env.amqp_url()).await.unwrap();
    let job = story::job_with(|job| {
        let gone = (0..22).map(|n| format!("u{n}@gone.test"));
        let there = ["ada", "bob", "cid"].map(|name| format!("{name}@dest.test"));
        job.to = gone.chain(there).map(Into::into).collect();
    });
    let config = story::relay_config(
        &env.amqp_url(),
        &env.redis_url(),
        env.postfix().submission,
        &format!(
            "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\n{ROUTE}",
            env.postfix().ca_file().display()
        ),
    );
    let worker = story::start(config).unwrap();
    story::publish(&env.amqp_url(), std::slice::from_ref(&job)).await.unwrap();
    let events = told.until("postrider.job.rejected.v1").await.unwrap();
    assert!(of(&events, "postrider.job.deferred.v1").is_empty(), "{events:#?}");
    let rejected = of(&events, "postrider.job.rejected.v1");
    assert_eq!(rejected[0]["data"]["recipients"].as_array().unwrap().len(), 22);
    let stored = env.sink().wait_for(1, SOON).unwrap();
    let mut recipients: Vec<&str> = stored.iter().flat_map(|one| one.recipients()).collect();
    recipients.sort_unstable();
    assert_eq!(recipients, ["ada@dest.test", "bob@dest.test", "cid@dest.test"]);
    let log = std::fs::read_to_string(env.postfix().log_file()).unwrap();
    assert!(log.contains("too many errors"), "{log}");
    for n in 0..22 {
        let refusal = format!("to=<u{n}@gone.test>");
        let count = log.lines().filter(|line| line.contains(": reject: RCPT") && line.contains(&refusal)).count();
        assert_eq!(count, 1, "{refusal}");
    }
    drop(worker);
}

/// What is refused for the moment arrives when the relay has changed its mind, and then only there.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_who_is_greylisted_once_gets_it_later_and_alone() {
    let parts = EnvSpec { aiosmtpd: Some(postrider_tests::aiosmtpd::Tls::None), ..EnvSpec::usual() };
    let env = TestEnv::start(&parts).unwrap();
    story::declare(&env).unwrap();
    let job = story::job_with(|job| {
        job.to = vec!["ada@dest.test".into(), "once@dest.test".into(), "perm@dest.test".into()];
    });
    let worker = story::start(story::config(&env.amqp_url(), &env.redis_url(), env.aiosmtpd().port(), ROUTE)).unwrap();
    story::publish(&env.amqp_url(), &[job]).await.unwrap();
    let stored = env.aiosmtpd().wait_for(2, SOON).unwrap();
    let recipients: Vec<Vec<&str>> = stored.iter().map(|one| one.recipients()).collect();
    assert_eq!(recipients, [vec!["ada@dest.test"], vec!["once@dest.test"]]);
    drop(worker);
}
