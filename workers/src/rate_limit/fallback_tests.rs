//! What a worker does by itself, by the second.

use postrider_schemas::Lane;

use super::*;
use crate::{
    config::load_text,
    policy::rate_limit::{
        rate::Rate,
        scope::{Bucket, Limit, ScopeLimits, WHOLE},
        shaping_rule::LimitCommand,
    },
    store::{Store, StoreOptions},
};

const SCOPE: &str = "transport:relay";
/// A store's clock, far from this worker's.
const STORE_NOW: f64 = 1.76e15;

struct Story {
    fallback: LocalFallback,
    start: Instant,
}

fn story(workers: impl Into<Option<u32>>) -> Story {
    let fallback = LocalFallback::new(Duration::from_mins(10));
    if let Some(count) = workers.into() {
        fallback.workers(count);
    }
    Story { start: fallback.shared.epoch, fallback }
}

fn ask(scope: &str, rates: &[&str]) -> AdmissionRequest {
    let limits = rates.iter().map(|rate| Limit::from(&rate.parse::<Rate>().unwrap()));
    AdmissionRequest {
        want: 5,
        ..AdmissionRequest::fresh(
            vec![ScopeLimits { scope: scope.to_owned(), limits: limits.collect() }],
            Lane::Transactional,
            "a",
        )
    }
}

fn away() -> StoreError {
    StoreError::Down("away".to_owned())
}

impl Story {
    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// Messages that go at once, or within the second that is waited for, when as many as may are sent at this time.
    fn sent(&self, seconds: f64, rates: &[&str]) -> u32 {
        self.sent_of(seconds, SCOPE, rates)
    }

    fn sent_of(&self, seconds: f64, scope: &str, rates: &[&str]) -> u32 {
        let mut sent = 0;
        while let Some(Admission::Go { tokens, .. }) =
            self.fallback.admit(&ask(scope, rates), &away(), self.at(seconds))
        {
            sent += tokens;
        }
        sent
    }

    fn is_answered(&self, seconds: f64) -> bool {
        self.fallback.admit(&ask(SCOPE, &["1000/s"]), &away(), self.at(seconds)).is_some()
    }

    fn learn(&self, seconds: f64, scope: Scope) {
        let overview = Overview { now: STORE_NOW, scopes: vec![(SCOPE.to_owned(), scope)] };
        self.fallback.learn(overview, |_| true, self.at(seconds));
    }
}

#[test]
fn a_worker_alone_keeps_to_its_share() {
    for (workers, rate, expected) in
        [(4, "20/s", 6), (1, "20/s", 21), (4, "1000/h burst 1000", 250), (4, "1/min", 1), (100, "5/s burst 50", 1)]
    {
        assert_eq!(story(workers).sent(0.0, &[rate]), expected, "{rate} for {workers}");
    }
}

#[test]
fn a_store_that_comes_and_goes_gives_no_burst_anew() {
    let story = story(4);
    let mut sent = 0;
    for blip in 0..120 {
        let now = f64::from(blip) * 0.5;
        sent += story.sent(now, &["1000/h burst 1000"]);
        story.fallback.ended(story.at(now + 0.25));
    }
    assert_eq!(sent, 250 + 4, "its part of the burst, and of a minute");
}

#[test]
fn a_bucket_that_is_not_even_outlives_a_time_in_which_the_store_is_well() {
    let story = story(4);
    assert_eq!(story.sent(0.0, &["1000/h burst 1000"]), 250);
    assert_eq!(story.sent_of(0.0, "group:relay:other", &["20/s"]), 6);
    for minute in 0..10 {
        story.fallback.ended(story.at(60.0 * f64::from(minute) + 1.0));
    }
    assert_eq!(story.fallback.state().own.len(), 1, "the other one is even");
    assert_eq!(story.sent(600.0, &["1000/h burst 1000"]), 42, "ten minutes' worth");
}

#[test]
fn the_time_alone_is_bounded_and_begins_anew_only_after_a_minute_of_a_store_that_is_well() {
    // Absent at the first times, answering at the second ones: is mail answered at the end?
    for (name, absent, answers, end, expected) in [
        ("without a break", vec![0.0], vec![], 599.0, true),
        ("for too long", vec![0.0], vec![], 601.0, false),
        ("for too long with breaks", vec![0.0, 200.0, 400.0], vec![199.0, 399.0, 590.0], 601.0, false),
        ("after a short break", vec![0.0, 601.0], vec![650.0, 700.0], 709.0, false),
        ("after a long break", vec![0.0, 601.0], vec![650.0, 700.0, 711.0], 712.0, true),
        ("after a long break without mail", vec![0.0, 601.0], vec![650.0], 712.0, true),
        ("a break that was none", vec![0.0, 601.0, 690.0], vec![650.0, 691.0], 720.0, false),
    ] {
        let story = story(4);
        let mut events: Vec<(f64, bool)> = absent.into_iter().map(|at| (at, false)).collect();
        events.extend(answers.into_iter().map(|at| (at, true)));
        events.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, is_answer) in events {
            if is_answer {
                story.fallback.ended(story.at(at));
            } else {
                story.is_answered(at);
            }
        }
        assert_eq!(story.is_answered(end), expected, "{name}");
    }
}

#[test]
fn a_worker_that_never_heard_how_many_there_are_has_no_share_of_what_is_limited() {
    let story = story(None);
    assert_eq!(story.fallback.known_workers(), None);
    assert_eq!(story.fallback.admit(&ask(SCOPE, &["20/s"]), &away(), story.at(0.0)), None);
    assert_eq!(story.fallback.admit(&ask(SCOPE, &[]), &away(), story.at(0.0)), Some(Admission::Free));
    let pause = Scope { paused_until: STORE_NOW + 60e6, ..Scope::default() };
    story.learn(0.0, pause);
    assert!(matches!(story.fallback.admit(&ask(SCOPE, &[]), &away(), story.at(0.0)), Some(Admission::Park { .. })));
    story.fallback.workers(2);
    assert_eq!(story.sent(61.0, &["20/s"]), 11);
}

#[test]
fn fewer_workers_are_believed_when_it_is_said_twice() {
    let fallback = LocalFallback::new(Duration::from_mins(1));
    for (said, known) in [(1, 1.0), (4, 4.0), (1, 4.0), (4, 4.0), (3, 4.0), (3, 3.0), (0, 3.0), (0, 1.0)] {
        fallback.workers(said);
        assert_eq!(fallback.known_workers(), Some(known), "{said}");
    }
}

#[test]
fn a_pause_an_operators_rate_and_a_cut_hold_by_this_workers_clock() {
    let set = |rate: &str, until: f64| {
        let limit = Limit::from(&rate.parse::<Rate>().unwrap());
        let (bucket, interval_us, tolerance_us) = (limit.bucket.to_owned(), limit.interval_us, limit.tolerance_us);
        Some(RateOverride { bucket, interval_us, tolerance_us, until })
    };
    let cut = |left: f64, seen_interval_us: f64| {
        Some(RateReduction { left: left * WHOLE, at: STORE_NOW, recovery: 1e4, seen_interval_us })
    };
    let none = Scope::default();
    let paused = Scope { paused_until: STORE_NOW + 60e6, ..none.clone() };
    let set_for_a_minute = Scope { set: set("4/s burst 4", STORE_NOW + 60e6), ..none.clone() };
    let cut_seen = Scope { cut: cut(0.5, 1e6 / 40.0), ..none.clone() };
    for (name, scope, rates, seconds, expected) in [
        ("paused", paused.clone(), &["20/s"][..], 59.0 - 2.0, 0),
        ("paused without a limit", paused.clone(), &[], 50.0, 0),
        ("not any more", paused, &["20/s"], 61.0, 11),
        ("a rate that was set", set_for_a_minute.clone(), &["20/s"], 30.0, 4),
        ("a rate that was set where there is none", set_for_a_minute.clone(), &[], 30.0, 4),
        ("not set any more", set_for_a_minute, &["20/s"], 61.0, 11),
        ("cut to a half", Scope { cut: cut(0.5, 0.0), ..none.clone() }, &["20/s"], 0.0, 6),
        ("recovering", Scope { cut: cut(0.5, 0.0), ..none.clone() }, &["20/s"], 30.0, 9),
        ("cut where there is no limit", cut_seen, &[], 0.0, 11),
        ("as configured", none, &["20/s"], 0.0, 11),
    ] {
        let story = story(2);
        story.learn(0.0, scope);
        assert_eq!(story.sent(seconds, rates), expected, "{name}");
    }
}

#[test]
fn what_is_as_configured_again_is_forgotten_and_the_oldest_knowledge_is_renewed_first() {
    let story = story(1);
    story.learn(0.0, Scope { paused_until: STORE_NOW + 60e6, ..Scope::default() });
    let names = ["a", SCOPE, "b"].map(str::to_owned).to_vec();
    assert_eq!(story.fallback.to_be_learned(names, 2), ["a", "b"]);
    story.fallback.learn(Overview::default(), |_| false, story.at(1.0));
    assert_eq!(story.sent(1.0, &["1/s"]), 2);
}

#[test]
fn what_a_worker_used_of_a_burst_by_itself_it_does_not_get_from_the_store_again() {
    let story = story(4);
    let rates = ["20/s", "1000/h burst 1000"];
    let question = ask(SCOPE, &rates);
    let less_us = |seconds: f64, ask: &AdmissionRequest| -> Vec<f64> {
        let asked = story.fallback.with_less_burst(ask, story.at(seconds));
        let whole = ask.demands[0].limits.iter().map(|limit| limit.tolerance_us);
        let limits = asked.demands[0].limits.iter().map(|limit| limit.tolerance_us);
        whole.zip(limits).map(|(whole, limit)| (whole - limit).round()).collect()
    };
    assert_eq!(less_us(0.0, &question), [0.0, 0.0]);
    assert_eq!(story.sent(0.0, &rates), 6, "of its quarter of 20 a second, and of the second that is waited for");
    let bucket_us = 6.0 * 4.0 * 3.6e6;
    assert_eq!(less_us(0.0, &question), [0.0, bucket_us], "24 of the thousand, as all four together");
    assert_eq!(less_us(10.0, &question), [0.0, bucket_us - 10e6], "it is made up for by time");
    assert_eq!(less_us(87.0, &question), [0.0, 0.0]);
    assert_eq!(story.sent_of(100.0, "group:relay:other", &["10/s burst 5"]), 4);
    let other = ask("group:relay:other", &["10/s burst 5"]);
    assert_eq!(less_us(100.0, &other), [4e5], "there is no less than none");
}

#[test]
fn what_is_even_makes_room_first_and_then_what_is_nearest_to_it() {
    let story = story(1);
    for n in 0..KEPT_MAX / 2 {
        story.sent_of(0.0, &format!("even-{n}"), &["1/s"]);
    }
    for n in 0..KEPT_MAX / 2 {
        story.sent_of(10.0, &format!("full-{n}"), &["100/h burst 2"]);
    }
    assert_eq!(story.sent_of(10.0, SCOPE, &["100/h burst 2"]), 2);
    assert_eq!(story.fallback.state().own.len(), KEPT_MAX / 2 + 1);
    for n in 0..KEPT_MAX / 2 {
        story.sent_of(20.0, &format!("more-{n}"), &["100/h burst 2"]);
    }
    let kept = story.fallback.state().own.len();
    assert!((KEPT_MAX * 9 / 10..=KEPT_MAX).contains(&kept), "{kept}");
    assert_eq!(story.sent_of(20.0, "more-4999", &["100/h burst 2"]), 0, "the youngest are the furthest from it");
}

#[test]
fn a_changed_configuration_does_not_change_what_was_sent() {
    let story = story(4);
    assert_eq!(story.sent(0.0, &["1000/h burst 1000"]), 250);
    let Story { fallback, start } = story;
    let story = Story { fallback: fallback.renewed(Duration::from_mins(20)), start };
    assert_eq!(story.sent(0.0, &["1000/h burst 1000"]), 0);
    assert!(story.is_answered(1199.0), "the new setting holds");
    let bucket: Bucket = story.fallback.state().own[SCOPE].buckets["h"];
    assert!(bucket.all > CLOCK_START_US);
}

const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
 [[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

async fn in_a_file(folder: &tempfile::TempDir) -> Limiter {
    let url = format!("embedded:{}", folder.path().join("store.db").display());
    Limiter::new(&load_text(CONFIG).unwrap(), Store::connect(&url, StoreOptions::default()).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_pause_that_the_last_look_saw_holds_without_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    limiter.0.fallback.workers(1);
    let answer = || limiter.0.fallback.admit(&ask("transport:relay", &["5/s"]), &away(), Instant::now());
    let pause = LimitCommand::Pause { for_us: 7.2e9, why: "maintenance".to_owned() };
    limiter.0.store.order("transport:relay", &pause).await.unwrap();
    limiter.look().await;
    assert!(matches!(answer(), Some(Admission::Park { park_us, .. }) if park_us > 1e9), "{:?}", answer());
    limiter.0.store.order("transport:relay", &LimitCommand::Resume).await.unwrap();
    limiter.look().await;
    assert!(matches!(answer(), Some(Admission::Go { .. })), "{:?}", answer());
}

#[tokio::test]
async fn what_went_out_without_the_store_is_missing_from_its_burst_when_it_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let limiter = in_a_file(&folder).await;
    limiter.0.fallback.workers(2);
    let ask = AdmissionRequest { want: 1, ..ask("transport:relay", &["1/h burst 10"]) };
    let mut sent = 0;
    while let Some(Admission::Go { .. }) = limiter.0.fallback.admit(&ask, &away(), Instant::now()) {
        sent += 1;
    }
    assert_eq!(sent, 5);
    let mut more = 0;
    while let Some(Admission::Go { .. }) = limiter.asked(&ask).await {
        more += 1;
    }
    assert_eq!(more, 1, "as if the other worker had sent as many");
}
