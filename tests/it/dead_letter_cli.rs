//! What a person does with jobs at rest and with jobs that wait: list, retry, resend, drop, cancel.

use std::time::{Duration, Instant};

use postrider_schemas::{
    Job, Lane,
    topology::{DEAD_QUEUE, HOLD_QUEUE},
};
use postrider_tests::{
    deadline,
    events::Events,
    postrider::{Finished, Postrider},
    sink::{SinkFault, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use serde_json::Value;

/// The tenant `dies` is refused at once and for good, `vanishes` never hears an answer after the dot; all others arrive.
fn config(env: &TestEnv, refusing: &SmtpSink, mute: &SmtpSink) -> String {
    let way = |tenant: &str, port: u16| {
        format!(
            "[transport.{tenant}]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {port}\n\
             [[route]]\nname = \"{tenant}\"\nsend = [\"{tenant}\"]\non_unknown = \"hold\"\nwhen = {{ tenants = [\"{tenant}\"] }}\n"
        )
    };
    let more = format!("{}{}{ROUTE}", way("dies", refusing.port()), way("vanishes", mute.port()));
    story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &more).replace(story::SCHEDULE, "[]")
}

fn job_of(tenant: &str) -> Job {
    story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.tenant = Some(tenant.to_owned());
    })
}

fn run(config: &str, arguments: &[&str]) -> Finished {
    Postrider::command(arguments.iter().copied()).config(config).run(SOON).unwrap()
}

/// The counts that a command reports as JSON.
#[track_caller]
fn counts(config: &str, arguments: &[&str]) -> Value {
    let done = run(config, &[arguments, &["--format", "json"]].concat());
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

fn times(config: &str, which: &str) -> Vec<u64> {
    story::rest(which, config).unwrap().iter().map(|row| row["times"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_at_rest_are_listed_retried_at_a_pace_and_dropped() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let (refusing, mute) =
        (SmtpSink::start(SinkFault::Soft("RCPT")).unwrap(), SmtpSink::start(SinkFault::DropAfter(".")).unwrap());
    let config = config(&env, &refusing, &mute);
    let worker = story::start(config.clone()).unwrap();
    let dying: Vec<Job> = (0..3).map(|_| job_of("dies")).collect();
    let held: Vec<Job> = (0..2).map(|_| job_of("vanishes")).collect();
    story::publish(&env.amqp_url(), &[dying.clone(), held.clone()].concat()).await.unwrap();
    story::wait_for_depth(&env, DEAD_QUEUE, 3).unwrap();
    story::wait_for_depth(&env, HOLD_QUEUE, 2).unwrap();

    let rows = story::rest("dead", &config).unwrap();
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert_eq!((&row["reason"], &row["tenant"]), (&"retries-exhausted".into(), &"dies".into()), "{row}");
        assert_eq!((&row["attempts"], &row["times"]), (&1.into(), &1.into()), "{row}");
        assert!(row["detail"].as_str().unwrap().contains("450") && row["at"].is_string(), "{row}");
    }
    for (selection, count) in [
        (vec!["--tenant", "dies", "--reason", "retries-exhausted"], 3),
        (vec!["--tenant", "shop"], 0),
        (vec!["--reason", "conflict"], 0),
        (vec!["--older", "1h"], 0),
    ] {
        let done = run(&config, &[&["dead", "ls", "--format", "json"], selection.as_slice()].concat());
        assert_eq!(done.stdout.lines().count(), count, "{selection:?}: {}", done.stdout);
    }

    // Three at two a second take a second at least; what dies again says so.
    let start = Instant::now();
    let again = counts(&config, &["dead", "retry", "--tenant", "dies", "--rate", "2"]);
    assert_eq!(again["again"], 3, "{again}");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    deadline::wait_for("three that died twice", SOON, || (times(&config, "dead") == [2, 2, 2]).then_some(())).unwrap();
    let text = run(&config, &["dead", "ls"]).stdout;
    let wide = run(&config, &["dead", "ls", "--wide"]).stdout;
    assert_eq!(wide.matches("for the second time").count(), 3, "{wide}");

    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for selection in [["--transport", "dies"], ["--domain", "customer.example"], ["--newer", "1h"]] {
        let would = counts(&config, &[&["dead", "drop", "--dry-run"], &selection[..]].concat());
        assert_eq!((&would["dropped"], &would["dry_run"]), (&3.into(), &true.into()), "{selection:?}");
    }
    assert_eq!(counts(&config, &["dead", "drop", "--dry-run", "--transport", "other"])["dropped"], 0);

    let (first, second) = (dying[0].id().to_string(), dying[1].id().to_string());
    assert!(!run(&config, &["dead", "drop"]).status.success(), "nothing is dropped by a slip");
    assert_eq!(counts(&config, &["dead", "drop", &first])["dropped"], 1);
    let shown = Postrider::command(["dead", "show", &second, "--format", "json"]).config(config.as_str());
    let shown = shown.may_print_addresses().run(SOON).unwrap();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert!(shown["body"].as_str().unwrap().contains("ada@customer.example"), "{shown}");
    assert!(!run(&config, &["dead", "show", &first]).status.success(), "it is gone");
    assert_eq!(counts(&config, &["dead", "drop", "--all"])["dropped"], 2);
    story::wait_for_depth(&env, DEAD_QUEUE, 0).unwrap();

    // One did arrive, a person knows; the other is sent again, and nobody hears of it again.
    let (arrived, unclear) = (held[0].id().to_string(), held[1].id().to_string());
    assert_eq!(counts(&config, &["hold", "drop", &arrived])["dropped"], 1);
    assert_eq!(counts(&config, &["hold", "resend", &unclear])["again"], 1);
    deadline::wait_for("a second time in hold", SOON, || (times(&config, "hold") == [2]).then_some(())).unwrap();
    assert_eq!(story::rest("hold", &config).unwrap()[0]["id"], unclear);
    drop(worker);
    assert_eq!((mute.count().unwrap(), env.sink().count().unwrap()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_called_back_by_its_key_or_its_id_and_its_tenant_is_told() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let mut events = Events::listen(&env.amqp_url()).await.unwrap();
    let later = jiff::Timestamp::now() + Duration::from_secs(10);
    let waiting = |key: Option<&str>| {
        story::job_with(|job| {
            job.tenant = Some("shop".to_owned());
            job.idempotency_key = key.map(str::to_owned);
            job.send_at = Some(later);
        })
    };
    let (by_key, by_id, kept) = (waiting(Some("order:1/receipt")), waiting(Some("order:2/receipt")), waiting(None));
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let worker = story::start(config.clone()).unwrap();
    story::publish(&env.amqp_url(), &[by_key.clone(), by_id.clone(), kept.clone()]).await.unwrap();
    // A job is known by its key and its id once a worker had it in hand.
    for job in [&by_key, &by_id] {
        let alias = format!("*i:shop:{}", job.id());
        deadline::wait_for("an alias in the ledger", SOON, || {
            env.redis_cli(&["--scan", "--pattern", &alias]).ok().filter(|found| !found.is_empty())
        })
        .unwrap();
    }
    let id = by_id.id().to_string();
    let named: [&[&str]; 2] = [&["--key", "order:1/receipt", "--tenant", "shop"], &[&id, "--tenant", "shop"]];
    for name in named {
        let done = run(&config, &[&["cancel"], name].concat());
        let said = done.stdout.contains("will not be sent; tenant shop was told\n");
        assert!(done.status.success() && said, "{}{}", done.stdout, done.stderr);
        let told = events.until("postrider.job.cancelled.v1").await.unwrap();
        let last = told.last().unwrap();
        assert_eq!((&last["routing_key"], &last["data"]["tenant"]), (&"cancelled.shop".into(), &"shop".into()));
    }
    assert!(!run(&config, &["cancel", "--key", "order:3/receipt"]).status.success(), "a key has a tenant");
    // Without a tenant it is the default one's; a job that nobody has seen is cancelled only where that is meant.
    let nobody = story::job(Lane::Bulk, "ada@dest.test").id().to_string();
    let done = run(&config, &["cancel", &nobody]);
    assert_eq!(done.status.code(), Some(1), "{}", done.stdout);
    let is_told = done.stdout.contains("nothing was cancelled") && done.stderr.contains("cancel it with --tenant");
    assert!(is_told, "{}{}", done.stdout, done.stderr);
    for wrong in [["dead", "retry"], ["dead", "drop"], ["hold", "resend"]] {
        let done = run(&config, &[&wrong[..], &[&nobody]].concat());
        assert_eq!(done.status.code(), Some(1), "{wrong:?}: {}", done.stdout);
    }
    let done = run(&config, &["cancel", &nobody, "--unseen"]);
    let is_told = done.status.success() && done.stdout.contains("tenant default was told");
    assert!(is_told, "{}{}", done.stdout, done.stderr);
    let told = events.until("postrider.job.cancelled.v1").await.unwrap();
    assert_eq!(told.last().unwrap()["routing_key"], "cancelled.default");
    let again = run(&config, &["cancel", &nobody, "--format", "json"]).stdout;
    assert_eq!(
        again.trim(),
        "{\"answer\":\"cancelled\",\"known\":true,\"told\":null}",
        "nothing happened, so nobody was told"
    );
    let stored = env.sink().wait_for(1, SOON).unwrap();
    assert!(String::from_utf8_lossy(&stored[0].raw).contains(&kept.message_id()));
    let ended = || (worker.stderr().matches("came again after its end").count() == 2).then_some(());
    deadline::wait_for("the end of the two that were called back", SOON, ended).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 1);
}
