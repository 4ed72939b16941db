//! Whether the headers of a message can be those of a copy that a worker made. A message whose headers cannot is not tried: it rests in `dead`, whole.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::Meta;

/// No copy of a job gets this far: one a second for 68 years. Below the end of the number, so that counting on never overflows, here or in a store.
pub const GENERATION_MAX: u32 = i32::MAX as u32;
/// No provider recognises a repeated call for longer.
const PIN_MAX: Duration = Duration::from_hours(31 * 24);
/// How far the clocks of two workers may differ.
const SKEW_MAX: Duration = Duration::from_hours(24);

/// What is wrong with the headers of a message about a job with this many recipients; nothing where they can be ours.
pub fn flaw(meta: &Meta, recipients: usize, now: Timestamp) -> Option<String> {
    if let Some(name) = meta.damaged {
        return Some(format!("header {name}: cannot be read"));
    }
    if meta.generation > GENERATION_MAX {
        return Some(format!("header postrider-generation: above {GENERATION_MAX}"));
    }
    if let Some(pending) = &meta.pending {
        if pending.is_empty() {
            return Some("header postrider-pending: not a list of recipients".to_owned());
        }
        if pending.iter().any(|index| usize::from(*index) >= recipients) {
            return Some(format!("header postrider-pending: the job has {recipients} recipients"));
        }
    }
    if let Some(part) = meta.part
        && (meta.pending.is_none() || !(1..=recipients).contains(&usize::from(part)))
    {
        return Some("header postrider-part: not a part of this job".to_owned());
    }
    if let Some(pin) = &meta.pin {
        let life = Duration::try_from(pin.until.duration_since(pin.since));
        let is_ahead = pin.since.duration_since(now) > jiff::SignedDuration::try_from(SKEW_MAX).unwrap_or_default();
        if is_ahead || life.is_err() || life.is_ok_and(|life| life > PIN_MAX) {
            return Some("header postrider-pin: times that no call has".to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use postrider_schemas::meta::Pin;

    use super::*;

    const NOW: &str = "2026-11-23T10:00:00Z";

    #[track_caller]
    fn check(meta: &Meta, expected: Option<&str>) {
        let found = flaw(meta, 3, NOW.parse().unwrap());
        match (&found, expected) {
            (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => assert_eq!(found.as_deref(), expected),
        }
    }

    #[test]
    fn copies_that_workers_make_pass() {
        check(&Meta::default(), None);
        check(&Meta { generation: GENERATION_MAX, attempt: u32::MAX, parks: u32::MAX, ..Meta::default() }, None);
        check(&Meta { pending: Some(vec![2, 0]), part: Some(3), ..Meta::default() }, None);
        check(&Meta { pending: Some(vec![1]), ..Meta::default() }, None);
    }

    #[test]
    fn what_no_worker_writes_does_not() {
        check(&Meta { damaged: Some("postrider-part"), ..Meta::default() }, Some("postrider-part: cannot be read"));
        for generation in [GENERATION_MAX + 1, u32::MAX] {
            check(&Meta { generation, ..Meta::default() }, Some("postrider-generation"));
        }
        check(&Meta { pending: Some(vec![]), ..Meta::default() }, Some("not a list"));
        check(&Meta { pending: Some(vec![0, 3]), ..Meta::default() }, Some("has 3 recipients"));
        for (part, pending) in [(1, None), (0, Some(vec![0])), (4, Some(vec![0]))] {
            check(&Meta { part: Some(part), pending, ..Meta::default() }, Some("postrider-part"));
        }
    }

    #[test]
    fn a_pin_has_the_times_of_a_call() {
        let pin = |since: &str, until: &str| Meta {
            pin: Some(Pin { transport: "p".into(), since: since.parse().unwrap(), until: until.parse().unwrap() }),
            ..Meta::default()
        };
        check(&pin("2026-11-23T09:00:00Z", "2026-11-24T09:00:00Z"), None);
        check(&pin("2026-11-22T09:00:00Z", "2026-11-23T09:00:00Z"), None);
        for (since, until) in [
            ("2026-11-23T09:00:00Z", "2026-11-23T08:00:00Z"),
            ("2026-11-23T09:00:00Z", "2030-11-23T08:00:00Z"),
            ("2030-11-23T09:00:00Z", "2030-11-23T10:00:00Z"),
        ] {
            check(&pin(since, until), Some("postrider-pin"));
        }
    }
}
