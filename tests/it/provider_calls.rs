//! Calls of Web APIs from the queue to the answer: calls that a provider recognises, and calls that jobs share.

use std::collections::BTreeSet;

use postrider_schemas::{Job, JobId, Lane};
use postrider_tests::{
    deadline::wait_for,
    fake_provider::{Call, FakeProvider, Reaction},
    rabbitmq::Depth,
    story::{self, SCHEDULE, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// A worker's configuration: an API of this kind first, then the context's sink.
fn config(env: &TestEnv, api: &FakeProvider, kind: &str, more: &str) -> String {
    format!(
        "[queue]\nurl = \"{}\"\n[store]\nurl = \"{}\"\nlease = \"2s\"\n[retry]\nschedule = {SCHEDULE}\nconfig_wait = \"1s\"\n\
         [log]\nlevel = \"debug\"\nformat = \"json\"\n[worker]\ntransactional = 32\nbulk = 256\ndrain = \"10s\"\n\
         [transport.api]\nkind = \"{kind}\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\n{more}\n\
         [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\nconnections = 8\n\
         [[route]]\nname = \"all\"\nsend = [\"api\", \"relay\"]\non_unknown = \"hold\"\n",
        env.amqp_url(),
        env.redis_url(),
        api.url(),
        env.sink().port(),
    )
}

fn resend_yes() -> Reaction {
    Reaction::Answer(200, "", "{\"id\":\"49a3999c\"}".to_owned())
}

fn held(env: &TestEnv) -> u64 {
    story::depth(env, "postrider.v1.hold").map_or(0, Depth::total)
}

/// Every call carries the same key and the same bytes.
#[track_caller]
fn assert_repeated(calls: &[Call]) {
    let keys: BTreeSet<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
    let bodies: BTreeSet<_> = calls.iter().map(|call| &call.body).collect();
    assert_eq!((keys.len(), bodies.len()), (1, 1), "{keys:?}");
    assert!(keys.iter().all(Option::is_some));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_the_provider_recognises_is_repeated_there_until_it_says_yes() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    // Taken and cut; then refused for the pace; then the answer of the first call.
    let api = FakeProvider::start(|call| match call.number {
        0 => Reaction::CutAfter,
        1 => Reaction::Answer(429, "Retry-After: 1", "{\"name\":\"rate_limit_exceeded\"}".to_owned()),
        _ => resend_yes(),
    })
    .unwrap();
    let worker = story::start(config(&env, &api, "resend", "")).unwrap();
    let job = story::job(Lane::Transactional, "ada@dest.test");
    story::publish(&env.amqp_url(), std::slice::from_ref(&job)).await.unwrap();
    wait_for("the third call", SOON, || (api.calls().len() == 3).then_some(())).unwrap();
    story::wait_for_depth(&env, "postrider.v1.due.transactional.00", 0).unwrap();
    drop(worker);
    assert_repeated(&api.calls());
    assert!(api.calls()[0].header("idempotency-key").is_some_and(|key| key.parse::<JobId>().is_ok()));
    assert_eq!((env.sink().count().unwrap(), held(&env)), (0, 0), "no other transport, and nobody has to decide");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_have_been_taken_does_not_expire_for_want_of_a_token() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    // Taken and cut; then the pace is too fast for longer than the next wait, which pauses the transport.
    let api = FakeProvider::start(|call| match call.number {
        0 => Reaction::CutAfter,
        1 => Reaction::Answer(429, "Retry-After: 5", "{\"name\":\"rate_limit_exceeded\"}".to_owned()),
        _ => resend_yes(),
    })
    .unwrap();
    let config = format!("{}on_limit = \"expire\"\n", config(&env, &api, "resend", ""));
    let worker = story::start(config).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    wait_for("the answer", SOON, || worker.stderr().contains("\"Sent job").then_some(())).unwrap();
    drop(worker);
    assert_repeated(&api.calls());
    assert_eq!((api.calls().len(), env.sink().count().unwrap(), held(&env)), (3, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_the_middle_of_such_a_call_leaves_no_unknown() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::remember(&env).unwrap();
    let api = FakeProvider::start(|call| if call.number == 0 { Reaction::Silent } else { resend_yes() }).unwrap();
    let mut worker = story::start(config(&env, &api, "resend", "")).unwrap();
    story::publish(&env.amqp_url(), &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    wait_for("the first call", SOON, || (api.calls().len() == 1).then_some(())).unwrap();
    worker.kill9().unwrap();
    worker.start_again().unwrap();
    wait_for("the same call again", SOON, || (api.calls().len() == 2).then_some(())).unwrap();
    story::wait_for_depth(&env, "postrider.v1.due.transactional.00", 0).unwrap();
    drop(worker);
    assert_repeated(&api.calls());
    assert_eq!((env.sink().count().unwrap(), held(&env)), (0, 0));
}

fn bulk(count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(Lane::Bulk, &format!("n{n}@dest.test"))).collect()
}

/// The job ids that calls which were taken name, with repetitions.
fn taken(api: &FakeProvider) -> Vec<String> {
    api.calls().iter().filter(|call| call.taken).flat_map(Call::job_ids).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_address_among_a_hundred_that_share_calls_is_found_and_the_others_get_their_mail() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|call| {
        if String::from_utf8_lossy(&call.body).contains("n37@dest.test") {
            Reaction::no(400, "Does not contain a valid address.")
        } else {
            Reaction::yes()
        }
    })
    .unwrap();
    let jobs = bulk(100);
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let worker = story::start(config(&env, &api, "sendgrid", "batch_linger = \"50ms\"")).unwrap();
    wait_for("the others", SOON, || (taken(&api).len() == 99).then_some(())).unwrap();
    story::wait_for_depth(&env, "postrider.v1.jobs.bulk.00", 0).unwrap();
    drop(worker);
    let once: BTreeSet<String> = taken(&api).into_iter().collect();
    println!("100 jobs, one bad: {} calls", api.calls().len());
    assert_eq!((once.len(), taken(&api).len()), (99, 99), "nobody twice");
    assert!(!once.contains(&jobs[37].id().to_string()));
    assert!(api.calls().len() < 60, "they did share calls: {}", api.calls().len());
    assert_eq!((env.sink().count().unwrap(), held(&env)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_call_without_an_answer_is_unknown_for_each_of_its_jobs_also_when_the_worker_is_killed() {
    const JOBS: usize = 60;
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::Silent).unwrap();
    story::publish(&env.amqp_url(), &bulk(JOBS)).await.unwrap();
    let mut worker =
        story::start(config(&env, &api, "sendgrid", "batch_linger = \"50ms\"\ntimeout = \"60s\"")).unwrap();
    wait_for("every job in a call", SOON, || (taken(&api).len() == JOBS).then_some(())).unwrap();
    worker.kill9().unwrap();
    worker.start_again().unwrap();
    story::wait_for_depth(&env, "postrider.v1.hold", JOBS as u64).unwrap();
    drop(worker);
    println!("{JOBS} jobs in {} calls, a worker killed: {} held", api.calls().len(), held(&env));
    assert_eq!(taken(&api).len(), JOBS, "nobody twice");
    assert_eq!(env.sink().count().unwrap(), 0, "and no other transport saw them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_job_never_waits_for_company() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let api = FakeProvider::start(|_| Reaction::yes()).unwrap();
    let jobs: Vec<Job> = (0..20).map(|n| story::job(Lane::Transactional, &format!("n{n}@dest.test"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let worker = story::start(config(&env, &api, "sendgrid", "batch_linger = \"50ms\"")).unwrap();
    wait_for("every job", SOON, || (taken(&api).len() == 20).then_some(())).unwrap();
    drop(worker);
    assert!(api.calls().iter().all(|call| call.job_ids().len() == 1));
}
