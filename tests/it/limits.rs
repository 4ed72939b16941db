//! Limits hold over all workers: what real workers send, by the time stamps of the sink. Short versions run always; `POSTRIDER_TEST_LONG=1` runs
//! the long ones, whose bounds are those of a machine that does little else.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and times of a test are small")]

use std::time::Duration;

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    sink::{Options, SmtpSink},
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, Server, TestEnv},
};

pub(crate) fn is_long() -> bool {
    std::env::var_os("POSTRIDER_TEST_LONG").is_some()
}

/// A group per name: its domain is `NAME.example`.
pub(crate) fn throttle(name: &str, rate: &str) -> String {
    format!("[[throttle]]\nname = \"{name}\"\ndomains = [\"{name}.example\"]\nrate = \"{rate}\"\n")
}

pub(crate) fn jobs(lane: Lane, domain: &str, count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(lane, &format!("customer-{n}@{domain}.example"))).collect()
}

/// Times of arrival of a domain's mail.
pub(crate) fn times(sink: &SmtpSink, domain: &str) -> Vec<f64> {
    let end = format!("@{domain}.example");
    sink.arrivals().unwrap().into_iter().filter(|(_, to)| to.ends_with(&end)).map(|(at, _)| at).collect()
}

/// The most that arrived in any window of so many seconds.
pub(crate) fn busiest(times: &[f64], seconds: f64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (n, at) in times.iter().enumerate() {
        while times[first] + seconds <= *at {
            first += 1;
        }
        most = most.max(n + 1 - first);
    }
    most
}

/// What came in so many seconds after the first second, a second.
fn pace(times: &[f64], seconds: f64) -> f64 {
    let start = times.first().copied().unwrap_or_default() + 1.0;
    times.iter().filter(|at| **at >= start && **at < start + seconds).count() as f64 / seconds
}

/// Workers at one queue and store, two groups of different rates with more to do than they may.
async fn accuracy(queue: &str, store: &str, sink: &SmtpSink, workers: usize, fast: f64, seconds: f64) {
    let limits = format!("{}{}", throttle("fast", &format!("{fast}/s")), throttle("slow", "5/s"));
    let config = story::config(queue, store, sink.port(), &format!("{limits}{ROUTE}"));
    let mut workers: Vec<Postrider> = (0..workers).map(|_| story::start_any(&config).unwrap()).collect();
    let lanes = jobs(Lane::Bulk, "fast", (fast * seconds * 1.3) as usize);
    let mut all = jobs(Lane::Bulk, "slow", (5.0 * seconds * 1.3) as usize);
    all.extend(lanes);
    story::publish(queue, &all).await.unwrap();
    let end = Duration::from_secs_f64(seconds * 1.2 + 30.0);
    deadline::wait_for("enough time at the sink", end, || {
        let slow = times(sink, "slow");
        (slow.last()? - slow.first()? > seconds + 2.0).then_some(())
    })
    .unwrap();
    for worker in &mut workers {
        worker.terminate().unwrap();
    }
    let (tight, loose) = if is_long() { (0.98, 1.01) } else { (0.85, 1.02) };
    let seen = [("fast", fast), ("slow", 5.0)].map(|(group, rate)| {
        let times = times(sink, group);
        let (pace, most) = (pace(&times, seconds), busiest(&times, 10.0));
        println!("{group} at {rate}/s: {:.1} % used, busiest 10 s {most}, {} in all", pace / rate * 100.0, times.len());
        (group, rate, pace, most)
    });
    for (group, rate, pace, most) in seen {
        assert!(pace >= rate * tight, "{group}: {pace}");
        assert!(most as f64 <= rate * 10.0 * loose + 2.0, "{group}: {most} in 10 s");
    }
    for worker in workers {
        worker.finish(SOON).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_together_use_a_limit_and_do_not_pass_it() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let (workers, fast, seconds) = if is_long() { (4, 200.0, 60.0) } else { (2, 60.0, 12.0) };
    accuracy(&env.amqp_url(), &env.redis_url(), env.sink(), workers, fast, seconds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_workers_together_use_a_limit_and_do_not_pass_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let sink = SmtpSink::start(Options::default()).unwrap();
    let (workers, fast, seconds) = if is_long() { (4, 200.0, 60.0) } else { (2, 40.0, 12.0) };
    accuracy(&file, &file, &sink, workers, fast, seconds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_is_served_beside_a_large_one() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, &throttle("slow", "10/s")).unwrap();
    let (large, small) = if is_long() { (10_000, 100) } else { (400, 20) };
    let of = |tenant: &'static str, count: usize| -> Vec<Job> {
        (0..count)
            .map(|n| {
                story::job_with(|job| {
                    job.lane = Lane::Bulk;
                    job.tenant = Some(tenant.to_owned());
                    job.to = vec![format!("{tenant}-{n}@slow.example").as_str().into()];
                })
            })
            .collect()
    };
    story::publish(&env.amqp_url(), &of("large", large)).await.unwrap();
    let begun = || (!times(env.sink(), "slow").is_empty()).then_some(());
    deadline::wait_for("the first message", SOON, begun).unwrap();
    let since = std::time::Instant::now();
    story::publish(&env.amqp_url(), &of("small", small)).await.unwrap();
    let ideal = small as f64 / 5.0;
    let count = |tenant: &str| {
        let all = env.sink().arrivals().unwrap();
        all.iter().filter(|(_, to)| to.starts_with(tenant)).count()
    };
    let limit = Duration::from_secs_f64(ideal * 3.0 + 30.0);
    deadline::wait_for("the small tenant's mail", limit, || (count("small-") == small).then_some(())).unwrap();
    let took = since.elapsed().as_secs_f64();
    println!("{took:.1} s, ideal {ideal:.1}; the large tenant had {} of {large}", count("large-"));
    assert!(took <= ideal * 3.0, "{took}");
    assert!(count("large-") < large);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_and_a_restart_of_redis_let_nobody_past_the_limit() {
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("limits under failures", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let limits = throttle("slow", "20/s");
    let mut first = story::worker(&env, &limits).unwrap();
    let second = story::worker(&env, &limits).unwrap();
    let count = if is_long() { 1200 } else { 300 };
    story::publish(&env.amqp_url(), &jobs(Lane::Bulk, "slow", count)).await.unwrap();
    let wait_for = |env: &TestEnv, part: usize| {
        let enough = || (times(env.sink(), "slow").len() >= count * part / 10).then_some(());
        deadline::wait_for("a part of the mail", Duration::from_secs(120), enough).unwrap();
    };
    wait_for(&env, 2);
    first.kill9().unwrap();
    first.start_again().unwrap();
    wait_for(&env, 4);
    env.redis().restart().unwrap();
    let held = |env: &TestEnv| {
        let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
        story::rest("hold", &config).map_or(0, |rows| rows.len())
    };
    deadline::wait_for("everything sent or held", Duration::from_secs(180), || {
        let sent = times(env.sink(), "slow").len();
        (sent >= count || sent + held(&env) >= count).then_some(())
    })
    .unwrap();
    let slow = times(env.sink(), "slow");
    println!(
        "{} sent, {} held, busiest 1 s {}, 10 s {}",
        slow.len(),
        held(&env),
        busiest(&slow, 1.0),
        busiest(&slow, 10.0)
    );
    assert!(busiest(&slow, 10.0) <= 220, "more than a second's worth above the limit");
    drop((first, second));
    let stored = env.sink().messages().unwrap();
    let once: std::collections::HashSet<String> = stored.iter().map(|one| one.recipients()[0].to_owned()).collect();
    assert_eq!(once.len(), stored.len(), "nothing twice");
}

/// Until so many workers are there and each has given a sign of life, and looked at what is paused, after that.
fn wait_for_signs_of_life(env: &TestEnv, workers: usize) {
    let mut all = None::<f64>;
    let given = || {
        let shown = env.redis_cli(&["ZRANGE", "postrider:{limits}:workers", "0", "-1", "WITHSCORES"]).ok()?;
        let lives: Vec<f64> = shown.lines().skip(1).step_by(2).filter_map(|life| life.parse().ok()).collect();
        if lives.len() < workers {
            return None;
        }
        let last = *all.get_or_insert(lives.iter().copied().fold(0.0, f64::max));
        lives.iter().all(|life| *life > last).then_some(())
    };
    deadline::wait_for("workers that gave a sign of life", SOON, given).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_transactional_mail_keeps_to_the_limit() {
    const BURST: usize = 20;
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("limits without Redis", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    let limit = throttle("slow", &format!("5/s burst {BURST}"));
    let workers = [story::worker(&env, &limit).unwrap(), story::worker(&env, &limit).unwrap()];
    wait_for_signs_of_life(&env, 2);
    env.redis().kill9().unwrap();
    let codes = |from: usize, to: usize| -> Vec<Job> {
        (from..to).map(|n| story::job(Lane::Transactional, &format!("code-{n}@slow.example"))).collect()
    };
    story::publish(&env.amqp_url(), &codes(0, 60)).await.unwrap();
    let there = || (times(env.sink(), "slow").len() >= BURST + 15).then_some(());
    deadline::wait_for("mail without Redis", SOON, there).unwrap();
    for worker in &workers {
        assert!(worker.stderr().contains("goes on with a share of the limits"));
    }
    // What comes now would find the whole burst in a store that nobody told what went out.
    env.redis().restart().unwrap();
    story::publish(&env.amqp_url(), &codes(60, 90)).await.unwrap();
    env.sink().wait_for(90, Duration::from_secs(90)).unwrap();
    drop(workers);
    let times = times(env.sink(), "slow");
    let (after, ten) = (busiest(&times[BURST..], 1.0), busiest(&times, 10.0));
    println!("busiest 1 s after the burst {after}, busiest 10 s {ten}");
    // The limit and a second's worth, and two for a machine that is busy.
    assert!(after <= 12, "{times:?}");
    assert!(ten <= BURST + 57, "{times:?}");
    assert_eq!(env.sink().count().unwrap(), 90);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_without_redis_knows_no_share_of_a_limit_and_takes_none() {
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("a start without Redis", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    env.redis().kill9().unwrap();
    let worker = story::worker(&env, &throttle("slow", "100/s")).unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Transactional, "slow", 3)).await.unwrap();
    let said = || worker.stderr().contains("does not know its share of the limits").then_some(());
    deadline::wait_for("a line of log", SOON, said).unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Transactional, "free", 3)).await.unwrap();
    env.sink().wait_for(3, SOON).unwrap();
    assert_eq!(times(env.sink(), "free").len(), 3, "what has no limit goes, and nothing else");
    env.redis().restart().unwrap();
    env.sink().wait_for(6, Duration::from_secs(90)).unwrap();
    drop(worker);
    assert_eq!(times(env.sink(), "slow").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_without_redis() {
    let parts = EnvSpec { redis: Server::Own, ..EnvSpec::usual() };
    let Some(mut env) = TestEnv::start_or_skip("a pause without Redis", &parts).unwrap() else { return };
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let pause = ["limits", "pause", "transport:relay", "--for", "2h", "--reason", "maintenance"];
    let done = Postrider::command(pause).config(config).run(SOON).unwrap();
    assert!(done.status.success(), "{}", done.stderr);
    wait_for_signs_of_life(&env, 1);
    env.redis().kill9().unwrap();
    story::publish(&env.amqp_url(), &jobs(Lane::Transactional, "any", 1)).await.unwrap();
    let put_away = || worker.stderr().contains("limited by transport:relay").then_some(());
    deadline::wait_for("a job that waits for the pause", SOON, put_away).unwrap();
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 0);
}
