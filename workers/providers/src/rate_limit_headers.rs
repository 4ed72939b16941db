//! What the headers of an answer say of the window that a provider counts calls in: whether anything is left of it, and when the next one begins. Pure.
//!
//! The vendors' fields are read wherever they appear: `RateLimit-*` and `RateLimit` (the IETF's drafts, Resend), `X-RateLimit-*` (SendGrid, Mailgun, and
//! many a gateway), `X-Sib-RateLimit-*` (Brevo). Some name a Unix time, others seconds from now; nobody's window is 30 years long, so the
//! number tells which.

use std::time::Duration;

use jiff::Timestamp;

use super::reply::{ProviderReply, ReplyVerdict};
use postrider_policy::outcome::Class;

/// The longest pause that is made of an answer which refused nothing. Where it was too short, the refusal that follows asks for the rest.
pub const PAUSE_MAX: Duration = Duration::from_hours(1);

/// Fields with what is left and with the end of the window.
const FIELDS: [(&str, &str); 3] = [
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-sib-ratelimit-remaining", "x-sib-ratelimit-reset"),
];
/// From this number on it is a Unix time in seconds, from its thousandfold on in milliseconds.
const UNIX_TIME: f64 = 1e9;

/// For so long nothing is left, where an answer says so of any of its windows. Never longer than [`PAUSE_MAX`].
pub fn used_up(reply: &ProviderReply, now: Timestamp) -> Option<Duration> {
    let empty = windows(reply, now).filter(|(left, _)| *left == Some(0));
    empty.map(|(_, reset)| reset.min(PAUSE_MAX)).filter(|wait| !wait.is_zero()).max()
}

/// A verdict that asks for patience and does not say for how long: until the next window.
#[must_use]
pub fn patient(verdict: ReplyVerdict, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    match verdict {
        ReplyVerdict::Refused { class: Class::Throttled, text, retry_after: None, basis } => {
            let empty = windows(reply, now).filter(|(left, _)| *left == Some(0)).map(|(_, reset)| reset).max();
            let wait = empty.or_else(|| windows(reply, now).map(|(_, reset)| reset).min());
            ReplyVerdict::Refused { class: Class::Throttled, text, retry_after: wait, basis }
        }
        other => other,
    }
}

/// Every window that has an end: what is left of it, where that is a number, and the time until the next one.
fn windows(reply: &ProviderReply, now: Timestamp) -> impl Iterator<Item = (Option<u64>, Duration)> {
    let window = move |left: Option<&str>, reset: Option<&str>| {
        Some((left.and_then(|left| left.trim().parse().ok()), end(reset?.trim(), now)?))
    };
    let fields = FIELDS.into_iter().filter_map(move |(left, reset)| window(reply.header(left), reply.header(reset)));
    let whole = reply.header("ratelimit").unwrap_or_default();
    // Of the draft that has one window and names its parts in full; the later ones have a list of windows with short names.
    let one = window(parameter(whole, "remaining"), parameter(whole, "reset"));
    let list = whole.split(',').filter_map(move |item| window(parameter(item, "r"), parameter(item, "t")));
    fields.chain(one).chain(list)
}

/// `name=value` among what commas and semicolons separate.
fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split([',', ';']).find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Until the end of a window: nothing for what is no number, and for what is over.
fn end(text: &str, now: Timestamp) -> Option<Duration> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0)?;
    if number < UNIX_TIME {
        return Duration::try_from_secs_f64(number).ok().map(bounded);
    }
    let seconds = if number < UNIX_TIME * 1e3 { number } else { number / 1e3 };
    let at = Timestamp::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?).ok()?;
    Duration::try_from(at.duration_since(now)).ok().filter(|wait| !wait.is_zero()).map(bounded)
}

/// A day at most, as with `Retry-After`.
fn bounded(wait: Duration) -> Duration {
    wait.min(Duration::from_hours(24))
}

#[cfg(test)]
mod tests {
    use super::{
        super::reply::testing::{now, reply, shown},
        *,
    };

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], expected: Option<u64>) {
        let wait = used_up(&reply(200, headers, ""), now());
        assert_eq!(wait.map(|wait| wait.as_millis()), expected.map(u128::from), "{headers:?}");
    }

    #[test]
    fn an_answer_that_says_that_nothing_is_left_says_for_how_long() {
        check(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "1")], Some(1000));
        check(&[("x-sib-ratelimit-remaining", "0"), ("x-sib-ratelimit-reset", "2.5")], Some(2500));
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "30")], Some(30_000));
        // 10:01:00 in seconds, with a fraction, and in milliseconds.
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1795428060")], Some(60_000));
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1795428060.5")], Some(60_500));
        check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1795428060000")], Some(60_000));
        check(&[("ratelimit", "limit=10, remaining=0, reset=4")], Some(4000));
        check(&[("ratelimit", "\"burst\";r=0;t=5, \"daily\";r=20;t=3600")], Some(5000));
        check(&[("ratelimit", "\"burst\";r=0;t=5, \"daily\";r=0;t=60")], Some(60_000));
    }

    #[test]
    fn an_answer_that_has_something_left_or_no_end_says_nothing() {
        check(&[], None);
        check(&[("ratelimit-remaining", "1"), ("ratelimit-reset", "30")], None);
        check(&[("ratelimit-remaining", "0")], None);
        check(&[("ratelimit-reset", "30")], None);
        check(&[("ratelimit-limit", "0"), ("ratelimit-reset", "30")], None);
        check(&[("x-ratelimit-remaining", "0"), ("ratelimit-reset", "30")], None);
        check(&[("ratelimit", "\"burst\";r=3;t=5")], None);
    }

    #[test]
    fn what_nobody_can_mean_is_ignored_and_what_is_too_long_is_cut() {
        for reset in ["-1", "0", "", "soon", "NaN", "inf", "-inf", "Mon, 23 Nov 2026 10:02:00 GMT", "1795428000", "12"]
        {
            let expected = (reset == "12").then_some(12_000);
            check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)], expected);
        }
        for left in ["-1", "-0.5", "", "none", "0x0", "0, 5", "99999999999999999999999"] {
            check(&[("x-ratelimit-remaining", left), ("x-ratelimit-reset", "12")], None);
        }
        for reset in ["86400", "999999999", "1e300", "2795428060", "9999999999999999"] {
            check(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)], far(reset));
        }
        check(&[("ratelimit", "r=0;t=,;;==, remaining=, reset=,")], None);
    }

    /// What is beyond any time is nothing, all else an hour.
    fn far(reset: &str) -> Option<u64> {
        (reset != "1e300" && reset != "9999999999999999").then_some(3_600_000)
    }

    #[track_caller]
    fn check_refusal(class: Class, retry_after: Option<u64>, headers: &[(&'static str, &str)], expected: &str) {
        let verdict = ReplyVerdict::refused(class, "text").after(retry_after.map(Duration::from_secs));
        assert_eq!(shown(&patient(verdict, &reply(429, headers, ""), now())), expected);
    }

    #[test]
    fn a_refusal_for_the_pace_without_a_time_waits_for_the_next_window() {
        let reset = [("x-ratelimit-reset", "40")];
        check_refusal(Class::Throttled, None, &reset, "throttled after 40");
        check_refusal(Class::Throttled, Some(3), &reset, "throttled after 3");
        check_refusal(Class::Throttled, None, &[("x-ratelimit-reset", "soon")], "throttled");
        check_refusal(Class::Throttled, None, &[("x-ratelimit-reset", "99999999")], "throttled after 86400");
        check_refusal(Class::Throttled, None, &[("ratelimit", "\"a\";r=9;t=2, \"b\";r=0;t=7")], "throttled after 7");
        check_refusal(Class::Throttled, None, &[("ratelimit", "\"a\";t=2, \"b\";t=7")], "throttled after 2");
        // What is about the pace says nothing of a quota, nor of what is wrong with a message.
        check_refusal(Class::Quota, None, &reset, "quota");
        check_refusal(Class::Message, None, &reset, "message");
    }
}
