//! What providers say of their windows in the headers of answers that refuse nothing: heard before anything is refused.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use postrider_schemas::Lane;
use postrider_tests::{
    api::{Api, Reaction},
    deadline,
    folder::Folder,
    postrider::Postrider,
    story::{self, SOON},
    world::{Parts, World},
};

/// What a provider lets through in a window.
const WINDOW: usize = 5;

/// A worker's configuration: one provider, one call at a time.
fn config(queue: &str, store: &str, api: &Api) -> String {
    format!(
        "[queue]\nurl = \"{queue}\"\n[store]\nurl = \"{store}\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [transport.api]\nkind = \"resend\"\napi_key = \"s3cret\"\nbase_url = \"{}\"\nconnections = 1\n\
         [[route]]\nname = \"all\"\nsend = [\"api\"]\n",
        api.url()
    )
}

fn yes(headers: &'static str) -> Reaction {
    Reaction::Answer(200, headers, "{\"id\":\"49a3999c\"}".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_an_accepted_answer_says_is_used_up_gets_no_call_before_the_next_one() {
    let world = World::start(&Parts::usual()).unwrap();
    story::declare(&world).unwrap();
    // Calls of the present window, when it was used up, and calls that came all the same.
    let seen = Arc::new(Mutex::new((0, None::<Instant>, 0)));
    let api = Api::start({
        let seen = Arc::clone(&seen);
        move |_| {
            let mut seen = seen.lock().unwrap();
            let (count, used_up, early) = &mut *seen;
            if used_up.is_some_and(|at| at.elapsed() < Duration::from_secs(2)) {
                *early += 1;
            } else if used_up.take().is_some() {
                *count = 0;
            }
            *count += 1;
            if *count < WINDOW {
                return yes("RateLimit-Limit: 5\r\nRateLimit-Remaining: 1\r\nRateLimit-Reset: 2");
            }
            *used_up = Some(Instant::now());
            yes("RateLimit-Limit: 5\r\nRateLimit-Remaining: 0\r\nRateLimit-Reset: 2")
        }
    })
    .unwrap();
    let worker = story::start(config(&world.amqp_url(), &world.redis_url(), &api)).unwrap();
    let jobs: Vec<_> = (0..3 * WINDOW).map(|_| story::job(Lane::Transactional, "ada@dest.test")).collect();
    story::publish(&world.amqp_url(), &jobs).await.unwrap();
    deadline::wait_for("all calls", SOON, || (api.taken() == jobs.len()).then_some(())).unwrap();
    let told = worker.stderr();
    drop(worker);
    let (_, _, early) = *seen.lock().unwrap();
    println!("{} calls, {early} of them in a window that was used up", api.calls().len());
    assert_eq!((early, api.calls().len()), (0, jobs.len()));
    assert!(told.contains("transport:api says that nothing is left"), "{told}");
    assert!(!told.contains("asks for patience"), "nobody was refused, so nothing is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_such_a_pause_and_ends_it_and_a_hostile_header_pauses_nothing() {
    let folder = Folder::new("headers").unwrap();
    let url = format!("embedded:{}", folder.path().join("queue.db").display());
    let api = Api::start(|call| match call.number {
        0 => yes("X-RateLimit-Remaining: -1\r\nX-RateLimit-Reset: -99999999999999999999"),
        1 => yes("X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 99999999"),
        _ => yes(""),
    })
    .unwrap();
    let config = config(&url, &url, &api);
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
