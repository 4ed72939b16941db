//! A relay that says nothing more, at any stage: before the final dot the message was certainly not taken and is tried again; after it nobody
//! can know, and the policy decides.

use postrider_schemas::topology::HOLD_QUEUE;
use postrider_schemas::{Job, Lane};
use postrider_tests::deadline;
use postrider_tests::quiet_relay::{QuietRelay, Silence};
use postrider_tests::story::{self, ROUTE, SOON};
use postrider_tests::world::{Parts, Server, World};

/// Where the relay falls silent, the name of that stage in logs, and the policy for what may have been sent.
const STAGES: [(Silence, &str, &str); 9] = [
    (Silence::Greeting, "connect", "hold"),
    (Silence::Hello, "hello", "hold"),
    (Silence::StartTls, "tls", "hold"),
    (Silence::Auth, "auth", "hold"),
    (Silence::Mail, "mail_from", "hold"),
    (Silence::Rcpt, "rcpt_to", "hold"),
    (Silence::Data, "data", "hold"),
    (Silence::Dot, "body", "resend"),
    (Silence::Dot, "body", "hold"),
];

/// A transport for each relay, and a route that leads the tenant `t<n>` to it.
fn config(world: &World, relays: &[QuietRelay]) -> String {
    let way = |(n, (relay, (silence, _, policy))): (usize, (&QuietRelay, (Silence, &str, &str)))| {
        let login = match silence {
            Silence::Auth => "username = \"app\"\npassword = \"s3cret\"\n",
            _ => "",
        };
        let tls = if silence == Silence::StartTls { "starttls" } else { "none" };
        format!(
            "[transport.t{n}]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"{tls}\"\nport = {}\n{login}\
             connect_timeout = \"2s\"\ncommand_timeout = \"1s\"\nfinal_timeout = \"1s\"\n\
             [[route]]\nname = \"t{n}\"\nsend = [\"t{n}\"]\non_unknown = \"{policy}\"\nwhen = {{ tenants = [\"t{n}\"] }}\n",
            relay.port()
        )
    };
    let more: String = relays.iter().zip(STAGES).enumerate().map(way).collect();
    story::config(&world.amqp_url(), &world.redis_url(), 9, &format!("{more}{ROUTE}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_falls_silent_gets_the_message_again_unless_it_may_have_it_already() {
    let world = World::start(&Parts { sink: None, redis: Server::Shared, ..Parts::usual() }).unwrap();
    story::declare(&world).unwrap();
    let relays: Vec<QuietRelay> = STAGES.iter().map(|(silence, ..)| QuietRelay::start(*silence, 1).unwrap()).collect();
    let config = config(&world, &relays);
    let jobs: Vec<Job> = (0..STAGES.len())
        .map(|n| {
            story::job_with(|job| {
                job.lane = Lane::Bulk;
                job.tenant = Some(format!("t{n}"));
            })
        })
        .collect();
    let worker = story::start(config.clone()).unwrap();
    story::publish(&world.amqp_url(), &jobs).await.unwrap();
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
        let is_sent_twice = (*silence, *policy) == (Silence::Dot, "resend");
        let wanted = match (silence, *policy) {
            (Silence::Dot, "hold") => 1,
            _ => 2,
        };
        let seen = deadline::wait_for(&format!("{wanted} outcomes after silence at {stage}"), SOON, || {
            Some(outcomes(job)).filter(|seen| seen.len() >= wanted)
        })
        .unwrap();
        let class = match *stage {
            _ if *silence == Silence::Dot => "unknown",
            "connect" | "tls" | "hello" | "auth" => "unavailable",
            _ => "transient",
        };
        let follows = if wanted == 1 { "hold" } else { "again" };
        assert_eq!((&seen[0]["class"], &seen[0]["follows"]), (&class.into(), &follows.into()), "{stage}: {seen:#?}");
        let answer = seen[0]["answer"].as_str().unwrap();
        assert!(answer.starts_with(&format!("{stage}: ")), "{stage}: {answer}");
        // It has no certificate: after its silence it says "not now" to STARTTLS.
        let kept = if *silence == Silence::StartTls { 0 } else { 1 + usize::from(is_sent_twice) };
        deadline::wait_for(&format!("{kept} messages after silence at {stage}"), SOON, || {
            (relay.kept().len() == kept).then_some(())
        })
        .unwrap();
        assert!(relay.kept().iter().all(|message| message.contains(&job.message_id())));
    }
    story::wait_for_depth(&world, HOLD_QUEUE, 1).unwrap();
    let held = story::rest("hold", &config).unwrap();
    assert_eq!(
        (&held[0]["id"], &held[0]["reason"]),
        (&jobs.last().unwrap().id().to_string().into(), &"unknown".into())
    );
    drop(worker);
    let kept: Vec<usize> = relays.iter().map(|relay| relay.kept().len()).collect();
    assert_eq!(kept, [1, 1, 0, 1, 1, 1, 1, 2, 1], "nobody else got it twice");
}
