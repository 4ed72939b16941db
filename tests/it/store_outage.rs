//! With a part missing, the rest goes on: Redis away, a queue deleted.

use std::time::Duration;

use postrider_schemas::{Job, Lane, topology::jobs_queue};
use postrider_tests::{
    deadline,
    redis::Redis,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

use crate::limits::{jobs, throttle, times};

/// Mail that nothing is in the way of is there after this, slow machine included.
const NOT_DELAYED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_transactional_mail_goes_out_and_bulk_mail_waits_and_nothing_comes_twice() {
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("without Redis", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    env.redis().kill9().unwrap();
    let bulk = [story::job(Lane::Bulk, "newsletter@dest.example")];
    story::publish(&env.amqp_url(), &bulk).await.unwrap();
    let urgent: Vec<Job> = (0..5).map(|n| story::job(Lane::Transactional, &format!("code-{n}@dest.example"))).collect();
    for (n, job) in urgent.iter().enumerate() {
        // One after the other: bulk mail has had its chance all the while.
        story::publish(&env.amqp_url(), std::slice::from_ref(job)).await.unwrap();
        env.sink().wait_for(n + 1, SOON).unwrap();
    }
    let to = |address: &str| {
        let stored = env.sink().messages().unwrap();
        stored.iter().filter(|one| one.recipients().contains(&address)).count()
    };
    assert_eq!((to("newsletter@dest.example"), env.sink().count().unwrap()), (0, 5));
    let untold = || (worker.stderr().matches("told again when it is back").count() == 5).then_some(());
    deadline::wait_for("five successes that the store did not hear of", SOON, untold).unwrap();
    env.redis().restart().unwrap();
    let stored = env.sink().wait_for(6, SOON).unwrap();
    assert_eq!(stored.iter().filter(|one| one.recipients() == ["newsletter@dest.example"]).count(), 1);

    // The store is told what went out without it, so a second publish is recognised.
    let told = || (worker.stderr().matches("recorded after all").count() == 5).then_some(());
    deadline::wait_for("five successes told to the store", SOON, told).unwrap();
    story::publish(&env.amqp_url(), &urgent).await.unwrap();
    story::publish(&env.amqp_url(), &bulk).await.unwrap();
    let dropped = || (worker.stderr().matches("came again after its end").count() == 6).then_some(());
    deadline::wait_for("six jobs that came again", SOON, dropped).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 6, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_its_consumer_is_declared_again_and_consumed() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    let queue = jobs_queue(Lane::Transactional, 0);
    env.vhost().delete_queue(&queue).unwrap();
    // The log line comes after the declarations, so the queue is a new one by then.
    let again = || (worker.stderr().matches("\"Consuming\"").count() >= 2).then_some(());
    deadline::wait_for("consumers after the deletion", SOON, again).unwrap();
    assert!(story::depth(&env, &queue).is_some());
    let jobs = Lane::ALL.map(|lane| story::job(lane, "ada@customer.example"));
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    env.sink().wait_for(jobs.len(), NOT_DELAYED).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), jobs.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_mail_that_has_to_wait_for_redis_keeps_no_other_mail_from_being_fetched() {
    let Some(mut redis) = Redis::start_or_skip("limited mail without Redis").unwrap() else { return };
    let env = TestEnv::start(&EnvSpec { rabbit: Server::Absent, redis: Server::Absent, ..EnvSpec::usual() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    redis.kill9().unwrap();
    // More than the worker has in hand of what comes back.
    story::publish(&file, &jobs(Lane::Transactional, "a", 100)).await.unwrap();
    story::publish(&file, &jobs(Lane::Transactional, "b", 5)).await.unwrap();
    // Due when those that were deferred have come back once.
    let later = jiff::Timestamp::now() + Duration::from_secs(22);
    let later = story::job_with(|job| {
        (job.lane, job.to, job.send_at) = (Lane::Transactional, vec!["ada@c.example".into()], Some(later));
    });
    story::publish(&file, &[later]).await.unwrap();
    let config = story::config(&file, &redis.url(), env.sink().port(), &format!("{}{ROUTE}", throttle("a", "50/s")));
    // It never heard how many workers there are, so it knows no share of a limit.
    let worker = story::start_any(&config.replace("transactional = 32", "transactional = 16")).unwrap();
    let arrived = |domain: &str, count: usize| (times(env.sink(), domain).len() == count).then_some(());
    deadline::wait_for("mail that is not limited", NOT_DELAYED, || arrived("b", 5)).unwrap();
    assert_eq!(times(env.sink(), "a").len(), 0, "nobody may send what is limited");
    let db = rusqlite::Connection::open(folder.path().join("queue.db")).unwrap();
    db.busy_timeout(SOON).unwrap();
    let count = |which: &str| {
        let text = format!("SELECT count(*) FROM message WHERE {which}");
        db.query_row(&text, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(count("queue = 'due'") > 0 && count("meta LIKE '%postrider-attempt%'") == 0, "waiting is no try");
    deadline::wait_for("mail that comes back", SOON + NOT_DELAYED, || arrived("c", 1)).unwrap();
    assert_eq!(times(env.sink(), "a").len(), 0, "the store is away yet");
    redis.restart().unwrap();
    deadline::wait_for("mail that is", SOON, || arrived("a", 100)).unwrap();
    deadline::wait_for("an empty queue", SOON, || (count("true") == 0).then_some(())).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 106, "each once");
}
