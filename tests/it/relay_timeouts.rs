//! A relay that says nothing more, at any stage: before the final dot the message was certainly not taken and is tried again; after it nobody
//! can know, and the policy decides.

use postrider_schemas::{Job, Lane, topology::HOLD_QUEUE};
use postrider_tests::{
    deadline,
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

/// Where the relay falls silent, the name of that stage in logs, and the policy for what may have been sent.
const STAGES: [(StallPoint, &str, &str); 9] = [
    (StallPoint::Greeting, "connect", "hold"),
    (StallPoint::Hello, "hello", "hold"),
    (StallPoint::StartTls, "tls", "hold"),
    (StallPoint::Auth, "auth", "hold"),
    (StallPoint::Mail, "mail_from", "hold"),
    (StallPoint::Rcpt, "rcpt_to", "hold"),
    (StallPoint::Data, "data", "hold"),
    (StallPoint::Dot, "body", "resend"),
    (StallPoint::Dot, "body", "hold"),
];

/// A transport for each relay, and a route that leads the tenant `t<n>` to it.
fn config(env: &TestEnv, relays: &[StallingRelay]) -> String {
    let way = |(n, (relay, (silence, _, policy))): (usize, (&StallingRelay, (StallPoint, &str, &str)))| {
        let login = match silence {
            StallPoint::Auth => "username = \"app\"\npassword = \"s3cret\"\n",
            _ => "",
        };
        let tls = if silence == StallPoint::StartTls { "starttls" } else { "none" };
        format!(
            "[transport.t{n}]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"{tls}\"\nport = {}\n{login}\
             connect_timeout = \"2s\"\ncommand_timeout = \"1s\"\nfinal_timeout = \"1s\"\n\
             [[route]]\nname = \"t{n}\"\nsend = [\"t{n}\"]\non_unknown = \"{policy}\"\nwhen = {{ tenants = [\"t{n}\"] }}\n",
            relay.port()
        )
    };
    let more: String = relays.iter().zip(STAGES).enumerate().map(way).collect();
    story::config(&env.amqp_url(), &env.redis_url(), 9, &format!("{more}{ROUTE}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_falls_silent_gets_the_message_again_unless_it_may_have_it_already() {
    let env = TestEnv::start(&EnvSpec { sink: None, redis: Server::Shared, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let relays: Vec<StallingRelay> =
        STAGES.iter().map(|(silence, ..)| StallingRelay::start(*silence, 1).unwrap()).collect();
    let config = config(&env, &relays);
    let jobs: Vec<Job> = (0..STAGES.len())
        .map(|n| {
            story::job_with(|job| {
                job.lane = Lane::Bulk;
                job.tenant = Some(format!("t{n}"));
            })
        })
        .collect();
    let worker = story::start(config.clone()).unwrap();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let outcomes = |job: &Job| -> Vec<serde_json::Value> {
        let id = job.id().to_string();
        let lines = worker.stderr();
        let parsed = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.filter(|line| line["job.id"] == id && line["attempt"].is_u64()).collect()
    };
    for ((silence, stage, policy), (relay, job)) in STAGES.iter().zip(relays.iter().zip(&jobs)) {
        // In the middle of an envelope in one write: it goes once more in steps, in the same try.
        if matches!(*stage, "rcpt_to" | "data") {
            let seen = deadline::wait_for(&format!("an outcome after silence at {stage}"), SOON, || {
                Some(outcomes(job)).filter(|seen| !seen.is_empty())
            })
            .unwrap();
            assert_eq!((&seen[0]["class"], relay.kept().len()), (&serde_json::Value::Null, 1), "{stage}: {seen:#?}");
            continue;
        }
        let is_sent_twice = (*silence, *policy) == (StallPoint::Dot, "resend");
        let wanted = match (silence, *policy) {
            (StallPoint::Dot, "hold") => 1,
            _ => 2,
        };
        let seen = deadline::wait_for(&format!("{wanted} outcomes after silence at {stage}"), SOON, || {
            Some(outcomes(job)).filter(|seen| seen.len() >= wanted)
        })
        .unwrap();
        let class = match *stage {
            _ if *silence == StallPoint::Dot => "unknown",
            "connect" | "tls" | "hello" | "auth" => "unavailable",
            _ => "transient",
        };
        let follows = if wanted == 1 { "hold" } else { "again" };
        assert_eq!((&seen[0]["class"], &seen[0]["follows"]), (&class.into(), &follows.into()), "{stage}: {seen:#?}");
        let answer = seen[0]["answer"].as_str().unwrap();
        assert!(answer.starts_with(&format!("{stage}: ")), "{stage}: {answer}");
        // It has no certificate: after its silence it says "not now" to STARTTLS.
        let kept = if *silence == StallPoint::StartTls { 0 } else { 1 + usize::from(is_sent_twice) };
        deadline::wait_for(&format!("{kept} messages after silence at {stage}"), SOON, || {
            (relay.kept().len() == kept).then_some(())
        })
        .unwrap();
        assert!(relay.kept().iter().all(|message| message.contains(&job.message_id())));
    }
    story::wait_for_depth(&env, HOLD_QUEUE, 1).unwrap();
    let held = story::rest("hold", &config).unwrap();
    assert_eq!(
        (&held[0]["id"], &held[0]["reason"]),
        (&jobs.last().unwrap().id().to_string().into(), &"unknown".into())
    );
    drop(worker);
    let kept: Vec<usize> = relays.iter().map(|relay| relay.kept().len()).collect();
    assert_eq!(kept, [1, 1, 0, 1, 1, 1, 1, 2, 1], "nobody else got it twice");
}
