//! The circuit of a transport, shared by all workers: what each call does to its record, as pure functions. The embedded store runs these; `circuit.lua`
//! says the same, and one contract suite holds the two together.
//!
//! A circuit without a record is closed. One that is open keeps everybody away until a time; after it, one worker at a time may probe. An
//! incident that many workers see opens the circuit once.

use std::time::Duration;

use jiff::Timestamp;

/// The longest wait between two probes.
pub const WAIT_MAX: Duration = Duration::from_mins(10);
/// How long a probe keeps others away when its worker dies.
pub const PROBE: Duration = Duration::from_secs(60);
/// Longest reason that is kept, in bytes.
pub const REASON_MAX: usize = 250;

/// An open circuit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// When it opened, in ms.
    pub opened_ms: u64,
    /// Until when nobody tries, in ms.
    pub until_ms: u64,
    /// How often it was found to be still broken.
    pub failures: u32,
    /// Until when a probe is under way, in ms; 0 for none.
    pub probe_ms: u64,
    /// What the transport said.
    pub reason: String,
}

impl Circuit {
    /// When it opened.
    pub fn opened(&self) -> Timestamp {
        i64::try_from(self.opened_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
    }
}

/// What a call asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CircuitCall {
    /// The transport needs a person, and said this. The wait doubles with each probe that fails.
    Open {
        /// What it said.
        reason: String,
        /// The first wait.
        wait: Duration,
    },
    /// May I try it?
    Probe,
    /// The probe found out nothing good: the circuit stays open, and waits longer.
    Fail {
        /// The probe, as [`CircuitAnswer::Probe`] named it. Another one than the record's says nothing.
        probe: u64,
        /// What happened.
        reason: String,
        /// The first wait.
        wait: Duration,
    },
    /// The probe was not made. The next one may be at once.
    Release {
        /// The probe, as [`CircuitAnswer::Probe`] named it.
        probe: u64,
    },
    /// It works.
    Close,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CircuitAnswer {
    /// The circuit is closed, and was before.
    Closed,
    /// Try it, and say what came of it. The number names this probe: it is the fencing token of its lease.
    Probe(u64),
    /// Leave it alone.
    Open(Circuit),
    /// This call opened it.
    Opened(Circuit),
    /// This call closed it.
    Healed(Circuit),
}

/// The record after the call (nothing: closed), and the answer.
pub fn apply_call(record: Option<Circuit>, ask: &CircuitCall, now_ms: u64) -> (Option<Circuit>, CircuitAnswer) {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    // What is further ahead than a wait lasts was written before the store's clock was set back: it is over.
    let ahead = |end: u64, longest: Duration| if end > now_ms + ms(longest) { 0 } else { end };
    let record = record.map(|record| Circuit {
        until_ms: ahead(record.until_ms, WAIT_MAX),
        probe_ms: ahead(record.probe_ms, PROBE),
        ..record
    });
    match (ask, record) {
        (CircuitCall::Open { reason, wait }, None) => {
            let opened = Circuit {
                opened_ms: now_ms,
                until_ms: now_ms + ms(*wait).min(ms(WAIT_MAX)),
                failures: 1,
                probe_ms: 0,
                reason: reason.clone(),
            };
            (Some(opened.clone()), CircuitAnswer::Opened(opened))
        }
        // Whoever still was at it when it opened tells nothing new.
        (CircuitCall::Open { .. }, Some(record)) if record.until_ms > now_ms => {
            (Some(record.clone()), CircuitAnswer::Open(record))
        }
        (CircuitCall::Open { reason, wait }, Some(record)) => longer(record, reason, ms(*wait), now_ms),
        (CircuitCall::Fail { probe, reason, wait }, Some(record)) if record.probe_ms == *probe => {
            longer(record, reason, ms(*wait), now_ms)
        }
        (CircuitCall::Release { probe }, Some(record)) if record.probe_ms == *probe => {
            let released = Circuit { probe_ms: 0, ..record };
            (Some(released.clone()), CircuitAnswer::Open(released))
        }
        // The lease of that probe ended before, and another one took its place.
        (CircuitCall::Fail { .. } | CircuitCall::Release { .. }, Some(record)) => {
            (Some(record.clone()), CircuitAnswer::Open(record))
        }
        (CircuitCall::Probe | CircuitCall::Close | CircuitCall::Fail { .. } | CircuitCall::Release { .. }, None) => {
            (None, CircuitAnswer::Closed)
        }
        (CircuitCall::Probe, Some(record)) if record.until_ms.max(record.probe_ms) > now_ms => {
            (Some(record.clone()), CircuitAnswer::Open(record))
        }
        (CircuitCall::Probe, Some(record)) => {
            let probe_ms = now_ms + ms(PROBE);
            (Some(Circuit { probe_ms, ..record }), CircuitAnswer::Probe(probe_ms))
        }
        (CircuitCall::Close, Some(record)) => (None, CircuitAnswer::Healed(record)),
    }
}

/// The circuit once it was found to be still broken: each time the wait doubles.
fn longer(record: Circuit, reason: &str, wait_ms: u64, now_ms: u64) -> (Option<Circuit>, CircuitAnswer) {
    let longest = u64::try_from(WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
    let doubled = wait_ms.saturating_mul(1 << record.failures.min(16)).min(longest);
    let again = Circuit {
        until_ms: now_ms + doubled,
        failures: record.failures.saturating_add(1),
        probe_ms: 0,
        reason: reason.to_owned(),
        ..record
    };
    (Some(again.clone()), CircuitAnswer::Open(again))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn open(wait: u64) -> CircuitCall {
        CircuitCall::Open { reason: "535".to_owned(), wait: Duration::from_millis(wait) }
    }

    fn record(until_ms: u64, failures: u32, probe_ms: u64) -> Circuit {
        Circuit { opened_ms: NOW - 500, until_ms, failures, probe_ms, reason: "535".to_owned() }
    }

    #[test]
    fn the_first_failure_opens_and_the_others_of_the_incident_change_nothing() {
        let (opened, told_opened) = apply_call(None, &open(100), NOW);
        assert!(matches!(told_opened, CircuitAnswer::Opened(_)));
        let (again, answer) = apply_call(opened.clone(), &open(100), NOW + 99);
        assert_eq!((again.clone(), answer), (opened, CircuitAnswer::Open(again.unwrap())));
    }

    #[test]
    fn one_probe_at_a_time_once_the_wait_is_over() {
        assert!(matches!(apply_call(Some(record(NOW + 1, 1, 0)), &CircuitCall::Probe, NOW).1, CircuitAnswer::Open(_)));
        let (probed, answer) = apply_call(Some(record(NOW, 1, 0)), &CircuitCall::Probe, NOW);
        let lease = u64::try_from(PROBE.as_millis()).unwrap();
        assert_eq!(answer, CircuitAnswer::Probe(NOW + lease));
        assert!(matches!(apply_call(probed.clone(), &CircuitCall::Probe, NOW + 1).1, CircuitAnswer::Open(_)));
        let next = apply_call(probed, &CircuitCall::Probe, NOW + lease).1;
        assert_eq!(next, CircuitAnswer::Probe(NOW + 2 * lease), "a probe whose worker died ends");
    }

    #[test]
    fn a_probe_that_fails_in_any_way_ends_its_lease_and_the_wait_grows_up_to_a_limit() {
        let fail = |probe| CircuitCall::Fail { probe, reason: "refused".to_owned(), wait: Duration::from_secs(1) };
        let mut record = record(NOW, 1, 0);
        let (mut now, mut waits) = (NOW, Vec::new());
        for _ in 0..12 {
            let (probed, answer) = apply_call(Some(record.clone()), &CircuitCall::Probe, now);
            let CircuitAnswer::Probe(probe) = answer else { panic!("{answer:?}") };
            record = apply_call(probed, &fail(probe), now + 3).0.unwrap();
            assert_eq!((record.probe_ms, record.reason.as_str(), record.opened_ms), (0, "refused", NOW - 500));
            waits.push((record.until_ms - now - 3) / 1000);
            now = record.until_ms;
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]);
    }

    #[test]
    fn a_probe_whose_lease_went_to_another_one_says_nothing() {
        let fail = CircuitCall::Fail { probe: NOW + 1, reason: "late".to_owned(), wait: Duration::from_secs(1) };
        for late in [fail, CircuitCall::Release { probe: NOW + 1 }] {
            let current = record(NOW, 2, NOW + 700);
            assert_eq!(
                apply_call(Some(current.clone()), &late, NOW),
                (Some(current.clone()), CircuitAnswer::Open(current))
            );
            assert_eq!(apply_call(None, &late, NOW), (None, CircuitAnswer::Closed));
        }
    }

    #[test]
    fn a_probe_that_is_not_made_lets_the_next_one_go_at_once() {
        let (probed, answer) = apply_call(Some(record(NOW, 3, 0)), &CircuitCall::Probe, NOW);
        let CircuitAnswer::Probe(probe) = answer else { panic!("{answer:?}") };
        let (released, _) = apply_call(probed, &CircuitCall::Release { probe }, NOW + 1);
        assert_eq!(released, Some(record(NOW, 3, 0)), "no longer wait");
        assert!(matches!(apply_call(released, &CircuitCall::Probe, NOW + 2).1, CircuitAnswer::Probe(_)));
    }

    #[test]
    fn a_probe_that_fails_doubles_the_wait_up_to_a_limit() {
        let wait =
            |failures| apply_call(Some(record(NOW, failures, NOW + 5)), &open(1000), NOW).0.unwrap().until_ms - NOW;
        assert_eq!((wait(1), wait(2), wait(3), wait(30)), (2000, 4000, 8000, 600_000));
        let again = apply_call(Some(record(NOW, 1, NOW + 5)), &open(1000), NOW).0.unwrap();
        assert_eq!((again.opened_ms, again.failures, again.probe_ms), (NOW - 500, 2, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_away_for_as_long() {
        let day = 86_400_000;
        assert!(matches!(
            apply_call(Some(record(NOW + day, 3, 0)), &CircuitCall::Probe, NOW).1,
            CircuitAnswer::Probe(_)
        ));
        assert!(matches!(
            apply_call(Some(record(NOW, 3, NOW + day)), &CircuitCall::Probe, NOW).1,
            CircuitAnswer::Probe(_)
        ));
        assert_eq!(apply_call(Some(record(NOW + day, 1, 0)), &open(1000), NOW).0.unwrap().until_ms, NOW + 2000);
    }

    #[test]
    fn one_success_closes_and_one_call_is_told_so() {
        assert_eq!(
            apply_call(Some(record(NOW, 1, 0)), &CircuitCall::Close, NOW),
            (None, CircuitAnswer::Healed(record(NOW, 1, 0)))
        );
        assert_eq!(apply_call(None, &CircuitCall::Close, NOW), (None, CircuitAnswer::Closed));
        assert_eq!(apply_call(None, &CircuitCall::Probe, NOW), (None, CircuitAnswer::Closed));
    }
}
