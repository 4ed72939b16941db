//! A transport that is slow, or silent, keeps no jobs from their turn that are for another one or of another tenant, however many wait for it.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    sink::{Options, SmtpSink},
    stalling_relay::{StallPoint, StallingRelay},
    story::{self, ROUTE, SOON},
    throttling_relay::ThrottlingRelay,
};

use crate::limits::{jobs, times};

/// Jobs for the transport that is in trouble: many times what a worker has in hand.
const WAITING: usize = 300;

fn relay(name: &str, port: u16) -> String {
    format!(
        "[transport.{name}]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nconnections = 4\n\
         connect_timeout = \"5s\"\ncommand_timeout = \"5s\"\n"
    )
}

/// A worker with few job slots, a transport that says nothing and a sound one.
fn config(file: &str, silent: &StallingRelay, sink: &SmtpSink, routes: &str) -> String {
    format!(
        "[queue]\nurl = \"{file}\"\n[store]\nurl = \"{file}\"\n[worker]\ntransactional = 16\nbulk = 16\n\
         [retry]\nschedule = [\"2s\", \"2s\", \"2s\", \"2s\", \"2s\", \"2s\"]\n{}{}{routes}",
        relay("silent", silent.port()),
        relay("sound", sink.port()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_answers_nobody_holds_up_no_other() {
    holds_up_no_other(4, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_answers_nobody_on_as_many_connections_as_there_are_seats_holds_up_no_other() {
    holds_up_no_other(32, 30).await;
}

/// So many connections may be open to the transport that answers nobody, and each gives up after so many seconds; each lane has sixteen job slots.
async fn holds_up_no_other(connections: usize, seconds: u64) {
    let silent = StallingRelay::start(StallPoint::Greeting, u32::MAX).unwrap();
    let sink = SmtpSink::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let routes = "[[route]]\nname = \"silent\"\nsend = [\"silent\"]\nwhen = { recipient_domains = [\".silent.example\"] }\n\
                  [[route]]\nname = \"all\"\nsend = [\"sound\"]\n";
    let config = config(&file, &silent, &sink, routes)
        .replace("connections = 4", &format!("connections = {connections}"))
        .replace("timeout = \"5s\"", &format!("timeout = \"{seconds}s\""));
    let worker = story::start_any(&config).unwrap();
    let begun = Instant::now();
    for lane in Lane::ALL {
        story::publish(&file, &jobs(lane, &format!("{lane}.silent"), WAITING)).await.unwrap();
    }
    for lane in Lane::ALL {
        story::publish(&file, &jobs(lane, lane.as_str(), 50)).await.unwrap();
    }
    // All those before them would take longer than that by far, and so would as many as a lane has in hand where they are given longer.
    let arrived = || Lane::ALL.iter().all(|lane| times(&sink, lane.as_str()).len() == 50).then_some(());
    let soon = if seconds > 5 { Duration::from_secs(seconds - 2) } else { 2 * SOON };
    deadline::wait_for("the mail of the other transport", soon, arrived).unwrap();
    println!("the mail of the other transport after {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(silent.kept().len(), 0);
    // Whoever was deferred meanwhile comes back, and is sent once.
    silent.speak();
    let count = || silent.kept().len();
    deadline::wait_for("all others", Duration::from_secs(120), || (count() >= 2 * WAITING).then_some(())).unwrap();
    println!("all after {:.1} s", begun.elapsed().as_secs_f64());
    drop(worker);
    let kept = silent.kept();
    let to = |message: &String| message.lines().find(|line| line.starts_with("To: ")).map(str::to_owned);
    let once: HashSet<_> = kept.iter().filter_map(to).collect();
    assert_eq!((kept.len(), once.len()), (2 * WAITING, 2 * WAITING), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_a_transport_that_answers_nobody_goes_to_the_next_one() {
    let silent = StallingRelay::start(StallPoint::Greeting, u32::MAX).unwrap();
    let sink = SmtpSink::start(Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let routes = "[[route]]\nname = \"all\"\nsend = [\"silent\", \"sound\"]\n";
    let config = config(&file, &silent, &sink, routes);
    let worker = story::start_any(&config).unwrap();
    story::publish(&file, &jobs(Lane::Transactional, "crowd", WAITING)).await.unwrap();
    // Four at a time that give up after five seconds, and then go to the next one, would be six minutes.
    let arrived = || (times(&sink, "crowd").len() == WAITING).then_some(());
    deadline::wait_for("the mail by the next transport", 3 * SOON, arrived).unwrap();
    drop(worker);
    let once: HashSet<String> = sink.arrivals().unwrap().into_iter().map(|(_, to)| to).collect();
    assert_eq!((once.len(), silent.kept().len()), (WAITING, 0), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_one_tenant_at_a_slow_transport_is_passed_by_another_one() {
    let slow = ThrottlingRelay::start(100_000).unwrap();
    slow.answer_after(Duration::from_secs(1));
    let folder = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", folder.path().join("queue.db").display());
    let config = story::config(&file, &file, slow.port(), ROUTE).replace("bulk = 32", "bulk = 16");
    let mut worker = story::start_any(&config).unwrap();
    story::publish(&file, &jobs(Lane::Bulk, "crowd", WAITING)).await.unwrap();
    story::publish(&file, &[of_another()]).await.unwrap();
    let arrived = || slow.domains().iter().position(|one| one == "other.example");
    let overtaken_by = deadline::wait_for("the job of the other tenant", 2 * SOON, arrived).unwrap();
    println!("{overtaken_by} of {WAITING} went before it");
    assert!(overtaken_by < WAITING / 2, "{overtaken_by}");
    worker.kill9().unwrap();
}

fn of_another() -> Job {
    story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.tenant = Some("other".to_owned());
        job.to = vec!["bea@other.example".into()];
    })
}
