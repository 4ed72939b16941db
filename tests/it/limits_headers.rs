//! What providers say of their windows in the headers of answers that refuse nothing: heard before anything is refused.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{FakeProvider, Reaction},
    folder::Folder,
    postrider::Postrider,
    story::{self, SOON},
    test_env::{EnvSpec, TestEnv},
};

/// What the provider lets through in a window.
const WINDOW: usize = 5;

/// A worker's configuration: one provider, one call at a time.
fn config(queue: &str, store: &str, api: &FakeProvider, more: &str) -> String {
    format!(
        "[queue]\nurl = \"{queue}\"\n[store]\nurl = \"{store}\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [transport.api]\nkind = \"resend\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\nconnections = 1\n{more}\
         [[route]]\nname = \"all\"\nsend = [\"api\"]\n",
        api.url()
    )
}

fn yes(headers: &'static str) -> Reaction {
    Reaction::Answer(200, headers, "{\"id\":\"49a3999c\"}".to_owned())
}

/// An API that lets [`WINDOW`] calls through, says with the last of them that nothing is left for two seconds, and counts the windows and the
/// calls that came too early. It refuses nothing.
struct Windows {
    api: FakeProvider,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    calls: usize,
    used_up: Option<Instant>,
    windows: usize,
    early: usize,
}

impl Windows {
    fn start() -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let api = FakeProvider::start({
            let seen = Arc::clone(&seen);
            move |call| {
                let is_left = seen.lock().unwrap().call();
                let headers = if is_left {
                    "RateLimit-Limit: 5\r\nRateLimit-Remaining: 1\r\nRateLimit-Reset: 2"
                } else {
                    "RateLimit-Limit: 5\r\nRateLimit-Remaining: 0\r\nRateLimit-Reset: 2"
                };
                // A shared call is a list, and gets one.
                let messages = call.json().unwrap_or_default().as_array().map(Vec::len);
                let ids = |count: usize| vec!["{\"id\":\"49a3999c\"}"; count].join(",");
                let body = messages.map_or_else(|| ids(1), |count| format!("{{\"data\":[{}]}}", ids(count)));
                Reaction::Answer(200, headers, body)
            }
        })
        .unwrap();
        Self { api, seen }
    }
}

impl Seen {
    /// One more call; whether anything is left after it.
    fn call(&mut self) -> bool {
        if self.used_up.is_some_and(|at| at.elapsed() < Duration::from_secs(2)) {
            self.early += 1;
            return false;
        }
        if self.used_up.take().is_some() {
            self.calls = 0;
        }
        self.calls += 1;
        if self.calls < WINDOW {
            return true;
        }
        self.windows += 1;
        self.used_up = Some(Instant::now());
        false
    }
}

/// Jobs by so many workers; calls, windows, and calls that came when nothing was left.
async fn windows(workers: usize, jobs: &[Job], more: &str) -> (usize, usize, usize) {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let windows = Windows::start();
    let config = config(&env.amqp_url(), &env.redis_url(), &windows.api, more);
    let workers: Vec<_> = (0..workers).map(|_| story::start(config.clone()).unwrap()).collect();
    story::publish(&env.amqp_url(), jobs).await.unwrap();
    let sent = || workers.iter().map(|one| one.stderr().matches("\"Sent job").count()).sum::<usize>();
    deadline::wait_for("all jobs", 2 * SOON, || (sent() == jobs.len()).then_some(())).unwrap();
    let told: String = workers.iter().map(Postrider::stderr).collect();
    drop(workers);
    assert!(told.contains("transport:api says that nothing is left"), "{told}");
    assert!(!told.contains("asks for patience"), "nobody was refused, so nothing is cut");
    let seen = windows.seen.lock().unwrap();
    println!("{} calls in {} windows, {} of them too early", windows.api.calls().len(), seen.windows, seen.early);
    (windows.api.calls().len(), seen.windows, seen.early)
}

fn jobs(lane: Lane, count: usize) -> Vec<Job> {
    (0..count).map(|n| story::job(lane, &format!("n{n}@dest.test"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_an_accepted_answer_says_is_used_up_gets_no_call_before_the_next_one() {
    let (calls, _, early) = windows(1, &jobs(Lane::Transactional, 3 * WINDOW), "batch = false\n").await;
    assert_eq!((calls, early), (3 * WINDOW, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_jobs_share_wait_for_the_next_window_as_well() {
    // 100 jobs a call at most.
    let (calls, windows, early) = windows(1, &jobs(Lane::Bulk, 1000), "batch = true\n").await;
    assert!(early == 0 && windows >= 1 && calls < 1000, "{calls} calls, {windows} windows, {early} early");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_workers_hear_of_it_by_the_store_or_by_their_own_next_call() {
    let (_, windows, early) = windows(2, &jobs(Lane::Transactional, 4 * WINDOW), "").await;
    assert!(early <= windows, "one call of the other worker is under way at most: {early} in {windows} windows");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_headers_are_not_to_be_heeded_nothing_waits_for_a_window() {
    let folder = Folder::new("unheeded").unwrap();
    let url = format!("embedded:{}", folder.path().join("queue.db").display());
    let api = FakeProvider::start(|_| yes("RateLimit-Remaining: 0\r\nRateLimit-Reset: 3600")).unwrap();
    let _worker = story::start_any(&config(&url, &url, &api, "rate_headers = false\n")).unwrap();
    story::publish(&url, &jobs(Lane::Transactional, 3 * WINDOW)).await.unwrap();
    deadline::wait_for("all calls", SOON, || (api.taken() == 3 * WINDOW).then_some(())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_such_a_pause_and_ends_it_and_a_hostile_header_pauses_nothing() {
    let folder = Folder::new("headers").unwrap();
    let url = format!("embedded:{}", folder.path().join("queue.db").display());
    let api = FakeProvider::start(|call| match call.number {
        0 => yes("X-RateLimit-Remaining: -1\r\nX-RateLimit-Reset: -99999999999999999999"),
        1 => yes("X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 99999999"),
        _ => yes(""),
    })
    .unwrap();
    let config = config(&url, &url, &api, "");
    let _worker = story::start_any(&config).unwrap();
    let publish = async || story::publish(&url, &[story::job(Lane::Transactional, "ada@dest.test")]).await.unwrap();
    let calls = |count: usize| deadline::wait_for("a call", SOON, || (api.taken() == count).then_some(())).unwrap();
    publish().await;
    calls(1);
    publish().await;
    calls(2);
    let row = || -> serde_json::Value {
        let arguments = ["limits", "ls", "transport:api", "--format", "json"];
        let done = Postrider::command(arguments).config(config.clone()).run(SOON).unwrap();
        done.stdout.lines().next().map_or(serde_json::Value::Null, |line| serde_json::from_str(line).unwrap())
    };
    let paused = || Some(row()).filter(|row| row["paused_for_s"].is_number());
    let paused = deadline::wait_for("a pause", SOON, paused).unwrap();
    let seconds = paused["paused_for_s"].as_f64().unwrap();
    assert!((3000.0..=3600.0).contains(&seconds), "an hour at most: {paused}");
    assert!(paused["why"].as_str().unwrap().starts_with("used up:"), "{paused}");
    publish().await;
    let waits = || (row()["tenants_waiting"] == 1).then_some(());
    deadline::wait_for("a job that waits for the end of the pause", SOON, waits).unwrap();
    assert_eq!(api.calls().len(), 2);
    let resumed = Postrider::command(["limits", "resume", "transport:api"]).config(config.clone()).run(SOON).unwrap();
    assert!(resumed.status.success(), "{}", resumed.stderr);
    publish().await;
    calls(3);
}
