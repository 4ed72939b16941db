//! Whether a message may be tried now.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Job, Meta};

/// A message that is early by less waits in the worker. More than [`postrider_schemas::ladder::WAIT_MIN`]: the shortest trip through the ladder takes two seconds and
/// would be late.
pub const HERE_MAX: Duration = Duration::from_millis(2500);
/// No job is put away for longer, but by its own `send_at`. A copy that says so is damaged, and waits for nothing.
const AWAY_MAX: Duration = Duration::from_hours(400 * 24);

/// What the clock says about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Try it.
    Now,
    /// Too early by less than a hop of the ladder: wait in the worker.
    Wait(Duration),
    /// Too early: park it until then (or park it again, where the time is beyond the ladder's range).
    Park(Timestamp),
    /// Past its `expires_at`.
    Expired,
}

/// Looks at `send_at`, `expires_at` and the time the message was parked for.
pub fn due(job: &Job, meta: &Meta, now: Timestamp) -> Due {
    if is_over(job, now) {
        return Due::Expired;
    }
    let horizon = now.checked_add(AWAY_MAX).unwrap_or(Timestamp::MAX);
    let not_before = meta.not_before.filter(|start| *start <= horizon);
    let Some(start) = job.send_at().max(not_before).filter(|start| *start > now) else {
        return Due::Now;
    };
    let wait = Duration::try_from(start.duration_since(now)).unwrap_or_default();
    if wait < HERE_MAX { Due::Wait(wait) } else { Due::Park(start) }
}

/// Whether a job is past its `expires_at`.
pub fn is_over(job: &Job, now: Timestamp) -> bool {
    job.expires_at().is_some_and(|expires| expires <= now)
}

/// The time to park until, cut so that the job wakes up to expire rather than long after.
pub fn park_until(job: &Job, until: Timestamp) -> Timestamp {
    job.expires_at().map_or(until, |expires| until.min(expires))
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;

    const NOW: &str = "2026-11-23T10:00:00Z";

    #[track_caller]
    fn check(send_at: Option<&str>, expires_at: Option<&str>, not_before: Option<&str>, expected: Due) {
        let time = |text: Option<&str>| text.map(|text| text.parse::<Timestamp>().unwrap());
        let job = JobV1 {
            from: "a@shop.example".into(),
            to: vec!["b@dest.example".into()],
            text: Some(String::new()),
            send_at: time(send_at),
            expires_at: time(expires_at),
            ..JobV1::default()
        }
        .parse(&JobLimits::DEFAULT)
        .unwrap();
        let meta = Meta { not_before: time(not_before), ..Meta::default() };
        assert_eq!(due(&job, &meta, NOW.parse().unwrap()), expected);
    }

    #[test]
    fn a_job_without_times_is_due() {
        check(None, None, None, Due::Now);
        check(Some("2026-11-23T09:59:59Z"), None, None, Due::Now);
    }

    #[test]
    fn a_job_waits_for_the_later_of_its_two_starts() {
        let later = "2026-11-23T11:00:00Z".parse().unwrap();
        check(Some("2026-11-23T11:00:00Z"), None, None, Due::Park(later));
        check(Some("2026-11-23T10:30:00Z"), None, Some("2026-11-23T11:00:00Z"), Due::Park(later));
        check(Some("2026-11-23T10:00:01Z"), None, None, Due::Wait(Duration::from_secs(1)));
    }

    #[test]
    fn a_copy_waits_for_no_time_that_no_wait_of_ours_reaches() {
        let far = "2226-11-23T10:00:00Z";
        check(None, None, Some(far), Due::Now);
        check(Some("2026-11-23T11:00:00Z"), None, Some(far), Due::Park("2026-11-23T11:00:00Z".parse().unwrap()));
        check(Some(far), None, Some(far), Due::Park(far.parse().unwrap()));
    }

    #[test]
    fn a_job_past_its_end_expires_even_if_it_should_wait() {
        check(None, Some(NOW), None, Due::Expired);
        check(None, Some("2026-11-23T09:00:00Z"), Some("2026-11-23T11:00:00Z"), Due::Expired);
    }
}
