//! Whether a message may be tried now.
//!
//! A delay is the queue's: it is a duration when the queue is told, and a message that comes back has waited it out. The time in its headers was
//! written by another worker's clock, and is believed for the last moment alone.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Job, Meta};

/// A message that is early by less waits in the worker. More than [`postrider_schemas::ladder::WAIT_MIN`]: the shortest trip through the ladder takes two seconds and
/// would be late.
pub const HERE_MAX: Duration = Duration::from_millis(2500);

/// What the clock says about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Try it.
    Now,
    /// Too early by less than a hop of the ladder: wait in the worker.
    Wait(Duration),
    /// Before its `send_at`: park it until then (or park it again, where that is beyond the ladder's range).
    Park(Timestamp),
    /// Past its `expires_at`.
    Expired,
}

/// Looks at `send_at`, `expires_at` and the time the message was parked for. The queue sends a message back a moment before that time, never long
/// before: a time further ahead was written by a clock that disagrees with this one, or by somebody else, and holds nothing up.
pub fn schedule(job: &Job, meta: &Meta, now: Timestamp) -> Schedule {
    if is_over(job, now) {
        return Schedule::Expired;
    }
    let left = |start: &Timestamp| Duration::try_from(start.duration_since(now)).unwrap_or_default();
    let parked_for = meta.not_before.filter(|start| left(start) < HERE_MAX);
    let Some(start) = job.send_at().max(parked_for).filter(|start| *start > now) else {
        return Schedule::Now;
    };
    let wait = left(&start);
    if wait < HERE_MAX { Schedule::Wait(wait) } else { Schedule::Park(start) }
}

/// Whether a job is past its `expires_at`.
pub fn is_over(job: &Job, now: Timestamp) -> bool {
    job.expires_at().is_some_and(|expires| expires <= now)
}

/// A wait from now on, cut so that the job wakes up to expire rather than long after.
pub fn cut(job: &Job, wait: Duration, now: Timestamp) -> Duration {
    let left = |expires: Timestamp| Duration::try_from(expires.duration_since(now)).unwrap_or_default();
    job.expires_at().map_or(wait, |expires| wait.min(left(expires)))
}

/// The time after a wait.
pub fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// When a job was published first, as far as its message tells: the time of a fresh message, that of a job id which holds one (UUIDv7), else now.
/// Never later than now. A copy's own time is that of its republish.
pub fn first_seen(job: &Job, meta: &Meta, published_at: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let fresh = published_at.filter(|_| meta.generation == 0);
    fresh.or_else(|| job.id().time()).unwrap_or(now).min(now)
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;

    const NOW: &str = "2026-11-23T10:00:00Z";

    #[test]
    fn a_first_publish_is_known_by_the_message_the_id_or_the_first_look() {
        let job = |id: &str| {
            let job = JobV1 {
                id: Some(id.parse().unwrap()),
                from: "a@shop.example".into(),
                to: vec!["b@dest.example".into()],
                text: Some(String::new()),
                ..JobV1::default()
            };
            job.parse(&JobLimits::DEFAULT).unwrap()
        };
        let (now, told): (Timestamp, Timestamp) = (NOW.parse().unwrap(), "2026-11-23T09:59:00Z".parse().unwrap());
        let (random, timed) =
            (job("0b5ab4a1-7a10-4c3e-9d51-000000000001"), job("0190a5c0-7a10-7c3e-9d51-000000000001"));
        let copy = Meta { generation: 2, ..Meta::default() };
        let of_id: Timestamp = "2024-07-12T07:02:53.2Z".parse().unwrap();
        assert_eq!(first_seen(&timed, &Meta::default(), Some(told), now), told);
        assert_eq!(first_seen(&timed, &Meta::default(), None, now), of_id);
        assert_eq!(first_seen(&timed, &copy, Some(told), now), of_id, "its time is that of the copy");
        assert_eq!(first_seen(&random, &Meta::default(), None, now), now);
        assert_eq!(first_seen(&timed, &Meta::default(), None, Timestamp::UNIX_EPOCH), Timestamp::UNIX_EPOCH);
    }

    #[track_caller]
    fn check(send_at: Option<&str>, expires_at: Option<&str>, not_before: Option<&str>, expected: Schedule) {
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
        assert_eq!(schedule(&job, &meta, NOW.parse().unwrap()), expected);
    }

    #[test]
    fn a_job_without_times_is_due() {
        check(None, None, None, Schedule::Now);
        check(Some("2026-11-23T09:59:59Z"), None, None, Schedule::Now);
    }

    #[test]
    fn a_job_waits_for_the_later_of_its_two_starts() {
        let later = "2026-11-23T11:00:00Z".parse().unwrap();
        check(Some("2026-11-23T11:00:00Z"), None, None, Schedule::Park(later));
        check(Some("2026-11-23T10:00:01Z"), None, None, Schedule::Wait(Duration::from_secs(1)));
        let (first, second) = (Some("2026-11-23T10:00:01Z"), Some("2026-11-23T10:00:02Z"));
        check(first, None, second, Schedule::Wait(Duration::from_secs(2)));
        check(second, None, first, Schedule::Wait(Duration::from_secs(2)));
    }

    #[test]
    fn a_time_that_the_clock_of_another_worker_wrote_holds_nothing_up() {
        for (written, expected) in [
            ("2026-11-23T10:00:02.4Z", Schedule::Wait(Duration::from_millis(2400))),
            ("2026-11-23T10:00:02.5Z", Schedule::Now),
            ("2026-11-24T10:00:00Z", Schedule::Now),
            ("9999-01-01T00:00:00Z", Schedule::Now),
            ("2026-11-22T10:00:00Z", Schedule::Now),
        ] {
            check(None, None, Some(written), expected);
        }
        let later = "2026-11-23T10:30:00Z".parse().unwrap();
        check(Some("2026-11-23T10:30:00Z"), None, Some("2026-11-23T11:00:00Z"), Schedule::Park(later));
    }

    #[test]
    fn the_end_of_all_times_is_a_time_like_others() {
        let job = |field: &str| {
            let document = format!(
                r#"{{"id":"0190a5c0-7a10-7c3e-9d51-000000000001","from":"a@shop.example","to":"b@dest.example",
                "subject":"s","text":"t","{field}":"9999-12-31T23:59:59Z"}}"#
            );
            postrider_schemas::wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap()
        };
        let (now, day): (Timestamp, _) = (NOW.parse().unwrap(), Duration::from_hours(24));
        let parked = schedule(&job("send_at"), &Meta::default(), now);
        assert_eq!(parked, Schedule::Park(Timestamp::MAX));
        assert_eq!(after(now, Duration::MAX), Timestamp::MAX);
        let never_over = job("expires_at");
        assert_eq!(schedule(&never_over, &Meta::default(), now), Schedule::Now);
        assert_eq!(cut(&never_over, day, now), day);
        assert_eq!(cut(&never_over, Duration::MAX, Timestamp::MAX), Duration::ZERO);
    }

    #[test]
    fn a_copy_waits_for_no_time_that_no_wait_of_ours_reaches() {
        let far = "2226-11-23T10:00:00Z";
        check(None, None, Some(far), Schedule::Now);
        check(Some("2026-11-23T11:00:00Z"), None, Some(far), Schedule::Park("2026-11-23T11:00:00Z".parse().unwrap()));
        check(Some(far), None, Some(far), Schedule::Park(far.parse().unwrap()));
    }

    #[test]
    fn a_job_past_its_end_expires_even_if_it_should_wait() {
        check(None, Some(NOW), None, Schedule::Expired);
        check(None, Some("2026-11-23T09:00:00Z"), Some("2026-11-23T11:00:00Z"), Schedule::Expired);
    }
}
