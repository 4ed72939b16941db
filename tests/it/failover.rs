//! Failover never gambles: what the second transport sees after each kind of outcome at the first one.

use std::collections::{BTreeMap, BTreeSet};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline::wait_for,
    fake_provider::{Call, FakeProvider, Reaction},
    postrider::Postrider,
    story::{self, SCHEDULE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// A worker's configuration: a scripted API first, then the context's sink as a relay. `route` are lines of the only route.
fn config(env: &TestEnv, api: &FakeProvider, route: &str) -> String {
    format!(
        "[queue]\nurl = \"{}\"\n[store]\nurl = \"{}\"\nlease = \"2s\"\n[retry]\nschedule = {SCHEDULE}\nconfig_wait = \"1s\"\n\
         [log]\nlevel = \"debug\"\nformat = \"json\"\n[worker]\ntransactional = 32\nbulk = 32\ndrain = \"10s\"\n\
         [transport.api]\nkind = \"sendgrid\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\ntimeout = \"2s\"\nbatch = false\n\
         [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\nconnections = 8\n\
         [[route]]\nname = \"all\"\nsend = [\"api\", \"relay\"]\n{route}\n",
        env.amqp_url(),
        env.redis_url(),
        api.url(),
        env.sink().port(),
    )
}

/// Publishes one bulk job through an API with this shaping rule; gives the events about it once `kind` is among them.
async fn one(reaction: Reaction, route: &str, kind: &str) -> (TestEnv, FakeProvider, Vec<serde_json::Value>) {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(move |_| reaction.clone()).unwrap();
    let config = config(&env, &api, route);
    let mut events = Postrider::command(["events"]).config(config.clone()).may_print_addresses().start().unwrap();
    events.wait_for_output("listening", SOON).unwrap();
    let worker = story::start(config).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Bulk, "ada@dest.test")]).await.unwrap();
    let seen = wait_for(kind, SOON, || {
        let seen = read(&events.stdout());
        seen.iter().any(|event| event["type"] == format!("postrider.job.{kind}.v1")).then_some(seen)
    })
    .unwrap();
    assert!(!worker.stderr().contains("s3cret"), "a secret in the log");
    drop(worker);
    (env, api, seen)
}

fn read(stdout: &str) -> Vec<serde_json::Value> {
    stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn event<'a>(events: &'a [serde_json::Value], kind: &str) -> &'a serde_json::Value {
    let kind = format!("postrider.{kind}.v1");
    events.iter().find(|event| event["type"] == kind.as_str()).unwrap_or_else(|| panic!("no {kind} in {events:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_yes_the_second_sees_nothing() {
    let (env, api, events) = one(Reaction::yes(), "", "accepted").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (1, 0));
    let data = &event(&events, "job.accepted")["data"];
    assert_eq!((&data["transport"], &data["passed_over"]), (&"api".into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_temporary_refusal_the_second_delivers_and_the_event_says_why() {
    let (env, api, events) = one(Reaction::no(503, "busy"), "", "accepted").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (0, 1));
    let data = &event(&events, "job.accepted")["data"];
    assert_eq!(data["transport"], "relay");
    let passed = &data["passed_over"][0];
    assert_eq!((&passed["transport"], &passed["reason"]), (&"api".into(), &"transient".into()));
    assert!(passed["answer"].as_str().unwrap().contains("503 busy"), "{passed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_provider_does_not_take_the_second_delivers() {
    let (env, api, events) = one(Reaction::no(400, "not a mail"), "", "accepted").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (0, 1));
    assert_eq!(event(&events, "job.accepted")["data"]["passed_over"][0]["reason"], "unsupported");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_transport_needs_a_person_the_second_delivers_and_the_circuit_opens() {
    let (env, api, events) = one(Reaction::no(401, "bad key"), "", "accepted").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (0, 1));
    let opened = &event(&events, "circuit.opened")["data"];
    assert_eq!(opened["transport"], "api");
    assert!(opened["answer"].as_str().unwrap().contains("401"), "{opened}");
    assert_eq!(event(&events, "job.accepted")["data"]["passed_over"][0]["reason"], "config");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_limit_the_route_decides_whether_the_second_delivers() {
    let limited = || Reaction::Answer(429, "Retry-After: 3600", "{}".to_owned());
    let (env, api, events) = one(limited(), "on_limit = \"next\"", "accepted").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (0, 1));
    assert_eq!(event(&events, "job.accepted")["data"]["passed_over"][0]["reason"], "throttled");
    let (env, api, events) = one(limited(), "", "deferred").await;
    assert_eq!((api.taken(), env.sink().count().unwrap()), (0, 0));
    let data = &event(&events, "job.deferred")["data"];
    assert_eq!((&data["class"], &data["attempt"]), (&"throttled".into(), &0.into()), "waiting is not failing");
    let (env, _, events) = one(limited(), "on_limit = \"expire\"", "expired").await;
    assert_eq!(env.sink().count().unwrap(), 0);
    assert_eq!(event(&events, "job.expired")["data"]["class"], "throttled");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_unknown_the_second_sees_nothing_in_many_runs_with_random_cuts() {
    const JOBS: usize = 1000;
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    // A third is taken, a third taken and cut, a third cut before; by the number of the call, which the order of jobs scatters.
    let api = FakeProvider::start(|call: &Call| match call.number * 7919 % 3 {
        0 => Reaction::yes(),
        1 => Reaction::CutAfter,
        _ => Reaction::CutBefore,
    })
    .unwrap();
    let worker = story::start(config(&env, &api, "on_unknown = \"hold\"")).unwrap();
    let jobs: Vec<Job> = (0..JOBS).map(|n| story::job(Lane::Bulk, &format!("n{n}@dest.test"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let said_yes = || api.calls().iter().filter(|call| call.number * 7919 % 3 == 0).count() as u64;
    let held = || story::depth(&env, "postrider.v1.hold").map_or(0, postrider_tests::rabbitmq::Depth::total);
    wait_for("every job delivered or held", SOON * 3, || (said_yes() + held() == JOBS as u64).then_some(())).unwrap();
    drop(worker);
    let calls = api.calls();
    let mut per_job = BTreeMap::<String, usize>::new();
    for id in calls.iter().flat_map(Call::job_ids) {
        *per_job.entry(id).or_default() += 1;
    }
    println!(
        "{JOBS} jobs: {} calls, {} taken, {} held, second transport {}",
        calls.len(),
        api.taken(),
        held(),
        env.sink().count().unwrap()
    );
    assert_eq!(env.sink().count().unwrap(), 0, "the second transport saw a job that may have been sent");
    assert_eq!((per_job.len(), per_job.values().max()), (JOBS, Some(&1)), "each job was tried exactly once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transport_is_left_alone_probed_by_one_and_used_again_once_it_is_mended() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::no(401, "bad key")).unwrap();
    let config = config(&env, &api, "");
    let mut events = Postrider::command(["events"]).config(config.clone()).may_print_addresses().start().unwrap();
    events.wait_for_output("listening", SOON).unwrap();
    let workers = [story::start(config.clone()).unwrap(), story::start(config).unwrap()];
    let batch = |count: usize, name: &str| -> Vec<Job> {
        (0..count).map(|n| story::job(Lane::Transactional, &format!("{name}{n}@dest.test"))).collect()
    };
    story::publish(&env.amqp_url(), &batch(200, "a")).await.unwrap();
    env.sink().wait_for(200, SOON).unwrap();
    // Those under way when it opened, and a few probes; not two hundred.
    let asked = api.calls().len();
    assert!((1..=100).contains(&asked), "{asked} calls");
    let opened =
        |events: &str| read(events).iter().filter(|event| event["type"] == "postrider.circuit.opened.v1").count();
    assert_eq!(wait_for("the event", SOON, || Some(opened(&events.stdout())).filter(|n| *n > 0)).unwrap(), 1);
    api.set(|_| Reaction::yes());
    // Jobs keep coming; one of them is the probe that heals it.
    wait_for("the transport in use again", SOON, || {
        let more = batch(5, "b");
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(story::publish(&env.amqp_url(), &more))).unwrap();
        (api.taken() > 0).then_some(())
    })
    .unwrap();
    wait_for("the event", SOON, || events.stdout().contains("postrider.circuit.closed.v1").then_some(())).unwrap();
    assert_eq!(opened(&events.stdout()), 1, "one incident");
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_that_route_differently_become_parts_and_nobody_gets_it_twice() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let rule = "[[route]]\nname = \"gmail\"\nwhen = { recipient_domains = [\"gmail.test\"] }\nsend = [\"api\"]\n";
    let config = config(&env, &api, "")
        .replacen("[[route]]", &format!("{rule}[[route]]"), 1)
        .replace("[\"api\", \"relay\"]", "[\"relay\"]");
    let worker = story::start(config).unwrap();
    let job = story::job_with(|job| {
        job.to = vec!["ann@gmail.test".into(), "bob@other.test".into()];
        job.cc = vec!["cy@gmail.test".into()];
        job.bcc = vec!["dee@other.test".into()];
    });
    let published = [job.clone(), job.clone(), job];
    story::publish(&env.amqp_url(), &published).await.unwrap();
    let stored = env.sink().wait_for(1, SOON).unwrap();
    wait_for("the other part", SOON, || (api.taken() == 1).then_some(())).unwrap();
    assert_eq!(stored[0].recipients(), ["bob@other.test", "dee@other.test"]);
    let body = api.calls()[0].json().unwrap();
    let own = &body["personalizations"][0];
    assert_eq!((&own["to"][0]["email"], &own["cc"][0]["email"]), (&"ann@gmail.test".into(), &"cy@gmail.test".into()));
    assert!(own["bcc"].is_null() && own["to"][1].is_null(), "{own}");
    story::wait_for_depth(&env, "postrider.v1.jobs.transactional.00", 0).unwrap();
    story::wait_for_depth(&env, "postrider.v1.due.transactional.00", 0).unwrap();
    drop(worker);
    assert_eq!((api.taken(), env.sink().count().unwrap()), (1, 1), "published three times, sent once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_half_of_the_time_beside_a_relay_loses_and_doubles_nothing_while_workers_are_killed() {
    let long = std::env::var_os("POSTRIDER_TEST_LONG").is_some();
    let (count, kills) = if long { (10_000, 20) } else { (800, 4) };
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::remember(&env).unwrap();
    // Half of the calls succeed; the other half end in each class in turn.
    let api = FakeProvider::start(|call: &Call| match call.number % 12 {
        1 => Reaction::no(503, "busy"),
        3 => Reaction::Answer(429, "Retry-After: 1", "{}".to_owned()),
        5 => Reaction::no(401, "bad key"),
        7 => Reaction::CutAfter,
        9 => Reaction::CutBefore,
        11 => Reaction::no(500, "oops"),
        _ => Reaction::yes(),
    })
    .unwrap();
    let config = config(&env, &api, "on_unknown = \"hold\"\non_limit = \"next\"");
    let mut workers = [story::start(config.clone()).unwrap(), story::start(config.clone()).unwrap()];
    let jobs: Vec<Job> = (0..count).map(|n| story::job(Lane::Bulk, &format!("n{n}@dest.test"))).collect();
    let publishing = tokio::spawn({
        let (url, jobs) = (env.amqp_url(), jobs.clone());
        async move { story::publish(&url, &jobs).await }
    });
    for kill in 0..kills {
        let before = api.calls().len() + env.sink().count().unwrap();
        let goal = before + count / (kills * 2);
        // Killed in the middle of work, wherever that is.
        wait_for("some work", SOON, || {
            (api.calls().len() + env.sink().count().unwrap() >= goal.min(count)).then_some(())
        })
        .unwrap();
        let victim = &mut workers[kill % 2];
        victim.kill9().unwrap();
        victim.start_again().unwrap();
    }
    publishing.await.unwrap().unwrap();
    let ids: BTreeSet<String> = jobs.iter().map(|job| job.id().to_string()).collect();
    let by_sink = || -> Vec<String> {
        let stored = env.sink().messages().unwrap();
        let text = |raw: &[u8]| String::from_utf8_lossy(raw).into_owned();
        stored.iter().filter_map(|one| ids.iter().find(|id| text(&one.raw).contains(id.as_str())).cloned()).collect()
    };
    let delivered = || -> Vec<String> {
        let mut all = by_sink();
        all.extend(api.calls().iter().filter(|call| call.taken).flat_map(Call::job_ids));
        all
    };
    let held = || -> BTreeSet<String> {
        story::rest("hold", &config)
            .unwrap()
            .iter()
            .filter_map(|row| Some(row["job_id"].as_str().or(row["id"].as_str())?.to_owned()))
            .collect()
    };
    wait_for("every job delivered or held", SOON * 4, || {
        let done = api.taken() as u64 + env.sink().count().unwrap() as u64;
        let resting = story::depth(&env, "postrider.v1.hold").map_or(0, postrider_tests::rabbitmq::Depth::total);
        (done + resting >= count as u64).then_some(())?;
        let mut seen = held();
        seen.extend(delivered());
        (seen.len() == count).then_some(())
    })
    .unwrap();
    drop(workers);
    let delivered = delivered();
    let once: BTreeSet<&String> = delivered.iter().collect();
    println!(
        "{count} jobs, {kills} kills: delivered {} ({} by the relay), held {}, calls {}",
        delivered.len(),
        by_sink().len(),
        held().len(),
        api.calls().len()
    );
    assert_eq!(delivered.len(), once.len(), "nobody twice");
}
