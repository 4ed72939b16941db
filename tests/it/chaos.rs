//! Workers killed at random, the broker and the store restarted: nothing is lost, and what is doubled was counted as unknown.
//!
//! `POSTRIDER_TEST_LONG` asks for 20,000 jobs and 20 kills, `POSTRIDER_TEST_SEED` for the moments of an earlier run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    postrider::Postrider,
    story,
    test_env::{EnvSpec, Server, TestEnv},
};

/// All limits of these stories: generous, because a run waits for leases of lost workers and for the broker's boot.
const LIMIT: Duration = Duration::from_mins(5);
const WORKERS: usize = 3;
/// In the line of an attempt that may have been sent.
const UNKNOWN: &str = "\"class\":\"unknown\"";

/// What happens when the sink holds a certain number of messages.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL to this worker, which starts again at once.
    Worker(usize),
    /// SIGKILL to the broker, which starts again on its data.
    Broker,
    /// SIGKILL to the store, which starts again on its log.
    Store,
}

/// What came of a run.
#[derive(Debug)]
struct Counts {
    jobs: usize,
    delivered: usize,
    duplicates: usize,
    held: usize,
    lost: usize,
    dead: usize,
    unknown: usize,
}

/// Splitmix64: moments need no better dice, only the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound).unwrap();
        usize::try_from((z ^ (z >> 31)) % bound).unwrap()
    }
}

/// The blows in the order of their moments, a moment being a number of messages at the sink.
fn plan(jobs: usize, kills: usize, dice: &mut Dice) -> Vec<(usize, Fault)> {
    let span = jobs * 8 / 10;
    let mut plan: Vec<(usize, Fault)> =
        (0..kills).map(|_| (dice.below(span), Fault::Worker(dice.below(WORKERS)))).collect();
    plan.push((dice.below(span), Fault::Broker));
    plan.push((dice.below(span), Fault::Store));
    plan.sort_by_key(|(moment, _)| *moment);
    plan
}

fn count(workers: &[Postrider], text: &str) -> usize {
    workers.iter().map(|worker| worker.stderr().matches(text).count()).sum()
}

/// Without a store, somebody's transactional mail goes out all the same, and who dies before the store knows that has two
/// failures at once, of which nothing is promised. So the next blow waits until the store has been told.
fn wait_until_told(env: &TestEnv, workers: &[Postrider], jobs: usize) {
    // By then everything that was under way while the store was away has ended.
    let enough = (env.sink().count().unwrap() + 100).min(jobs * 9 / 10);
    env.sink().wait_for(enough, LIMIT).unwrap();
    deadline::wait_for("successes told to the store", LIMIT, || {
        let told = count(workers, "recorded after all");
        (told == count(workers, "told again when it is back")).then_some(())
    })
    .unwrap();
}

fn deliver(env: &mut TestEnv, workers: &mut [Postrider], jobs: usize, plan: &[(usize, Fault)]) {
    for (moment, blow) in plan {
        env.sink().wait_for(*moment, LIMIT).unwrap();
        match blow {
            Fault::Worker(n) => {
                workers[*n].kill9().unwrap();
                workers[*n].start_again().unwrap();
            }
            Fault::Broker => {
                env.rabbit().kill9().unwrap();
                env.rabbit().restart().unwrap();
            }
            Fault::Store => {
                env.redis().kill9().unwrap();
                env.redis().restart().unwrap();
                wait_until_told(env, workers, jobs);
            }
        }
    }
}

/// Every queue of work is empty. Counts are half a second old, so one look is not enough: see its caller.
fn nothing_left_to_do(env: &TestEnv) -> bool {
    env.vhost().queue_depths().is_ok_and(|depths| {
        depths
            .iter()
            .filter(|(name, _)| !name.ends_with(".hold") && !name.ends_with(".dead"))
            .all(|(_, one)| one.total() == 0)
    })
}

/// How often each job arrived.
fn arrivals(env: &TestEnv) -> BTreeMap<String, usize> {
    let mut arrivals = BTreeMap::new();
    for message in env.sink().messages().unwrap() {
        let text = String::from_utf8_lossy(&message.raw).into_owned();
        let id = text.lines().find_map(|line| line.strip_prefix("Message-ID: ")).unwrap().to_owned();
        *arrivals.entry(id).or_default() += 1;
    }
    arrivals
}

/// The jobs in `hold`.
fn held(config: &str) -> BTreeSet<String> {
    let rows = story::rest("hold", config).unwrap();
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

async fn run(test: &str, on_unknown: &str) -> Option<Counts> {
    let parts = EnvSpec { rabbit: Server::Own, redis: Server::Own, ..EnvSpec::usual() };
    let mut env = TestEnv::start_or_skip(test, &parts).unwrap()?;
    let long = std::env::var_os("POSTRIDER_TEST_LONG").is_some();
    let (total, kills) = if long { (20_000, 20) } else { (1_500, 6) };
    let seed = std::env::var("POSTRIDER_TEST_SEED").ok().map(|text| text.parse().unwrap());
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let plan = plan(total, kills, &mut Dice(seed));
    println!("{test}: POSTRIDER_TEST_SEED={seed} {plan:?}");

    story::declare(&env).unwrap();
    story::remember(&env).unwrap();
    let jobs: Vec<Job> =
        (0..total).map(|n| story::job(Lane::ALL[n % 2], &format!("customer-{n}@dest.example"))).collect();
    story::publish(&env.amqp_url(), &jobs).await.unwrap();
    let route = format!("{}on_unknown = \"{on_unknown}\"\n", story::ROUTE);
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), &route);
    let mut workers: Vec<Postrider> = (0..WORKERS).map(|_| Postrider::worker(config.as_str()).unwrap()).collect();
    deliver(&mut env, &mut workers, total, &plan);

    let mut quiet = 0;
    deadline::wait_for("an end of the work", LIMIT, || {
        quiet = if nothing_left_to_do(&env) { quiet + 1 } else { 0 };
        (quiet > 30).then_some(())
    })
    .unwrap();
    // RabbitMQ's dead-letter worker holds messages that no count shows: the end is judged by what became of each job.
    let accounted_for = || {
        let (arrivals, held) = (arrivals(&env), held(&config));
        let is_over = |job: &Job| arrivals.contains_key(&job.message_id()) || held.contains(&job.id().to_string());
        jobs.iter().all(is_over).then_some(())
    };
    // What is missing then is counted below.
    let _ = deadline::wait_for("every job delivered or held", LIMIT, accounted_for);
    let arrivals = arrivals(&env);
    let held = held(&config);
    let dead = story::rest("dead", &config).unwrap();
    let missing: Vec<&Job> = jobs.iter().filter(|job| !arrivals.contains_key(&job.message_id())).collect();
    let counts = Counts {
        jobs: total,
        delivered: arrivals.len(),
        duplicates: arrivals.values().map(|times| times - 1).sum(),
        held: held.len(),
        lost: missing.iter().filter(|job| !held.contains(&job.id().to_string())).count(),
        dead: dead.len(),
        unknown: count(&workers, UNKNOWN),
    };
    println!("{test}: {counts:?}");
    let said: Vec<String> = workers.iter().map(Postrider::stderr).collect();
    for (id, times) in arrivals.iter().filter(|(_, times)| **times > 1) {
        let id = id.trim_start_matches('<').split('@').next().unwrap();
        let history: Vec<&str> = said.iter().flat_map(|said| said.lines()).filter(|line| line.contains(id)).collect();
        let unknown = history.iter().filter(|line| line.contains(UNKNOWN)).count();
        assert!(times - 1 <= unknown, "{id} arrived {times} times:\n{}", history.join("\n"));
    }
    Some(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_resend_nothing_is_lost_and_only_what_was_unknown_may_come_twice() {
    let Some(counts) = run("chaos with resend", "resend").await else { return };
    assert_eq!((counts.lost, counts.dead), (0, 0), "{counts:?}");
    // Sent again once; what is unknown a second time is a person's.
    assert!(counts.held <= counts.unknown && counts.delivered + counts.held >= counts.jobs, "{counts:?}");
    assert!(counts.duplicates <= counts.unknown, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hold_nothing_comes_twice_and_every_job_is_delivered_or_held() {
    let Some(counts) = run("chaos with hold", "hold").await else { return };
    assert_eq!((counts.lost, counts.duplicates, counts.dead), (0, 0, 0), "{counts:?}");
    assert!(counts.held <= counts.unknown, "{counts:?}");
}
