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
pub enum Ask {
    /// The transport needs a person, and said this. The wait doubles with each probe that fails.
    Open {
        /// What it said.
        reason: String,
        /// The first wait.
        wait: Duration,
    },
    /// May I try it?
    Probe,
    /// It works.
    Close,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The circuit is closed, and was before.
    Closed,
    /// Try it, and say what came of it.
    Probe,
    /// Leave it alone.
    Open(Circuit),
    /// This call opened it.
    Opened(Circuit),
    /// This call closed it.
    Healed(Circuit),
}

/// The record after the call (nothing: closed), and the answer.
pub fn told(record: Option<Circuit>, ask: &Ask, now_ms: u64) -> (Option<Circuit>, Told) {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    // What is further ahead than a wait lasts was written before the store's clock was set back: it is over.
    let ahead = |end: u64, longest: Duration| if end > now_ms + ms(longest) { 0 } else { end };
    let record = record.map(|record| Circuit {
        until_ms: ahead(record.until_ms, WAIT_MAX),
        probe_ms: ahead(record.probe_ms, PROBE),
        ..record
    });
    match (ask, record) {
        (Ask::Open { reason, wait }, None) => {
            let opened = Circuit {
                opened_ms: now_ms,
                until_ms: now_ms + ms(*wait).min(ms(WAIT_MAX)),
                failures: 1,
                probe_ms: 0,
                reason: reason.clone(),
            };
            (Some(opened.clone()), Told::Opened(opened))
        }
        // Whoever still was at it when it opened tells nothing new.
        (Ask::Open { .. }, Some(record)) if record.until_ms > now_ms => (Some(record.clone()), Told::Open(record)),
        (Ask::Open { reason, wait }, Some(record)) => {
            let doubled = ms(*wait).saturating_mul(1 << record.failures.min(16)).min(ms(WAIT_MAX));
            let again = Circuit {
                until_ms: now_ms + doubled,
                failures: record.failures + 1,
                probe_ms: 0,
                reason: reason.clone(),
                ..record
            };
            (Some(again.clone()), Told::Open(again))
        }
        (Ask::Probe | Ask::Close, None) => (None, Told::Closed),
        (Ask::Probe, Some(record)) if record.until_ms.max(record.probe_ms) > now_ms => {
            (Some(record.clone()), Told::Open(record))
        }
        (Ask::Probe, Some(record)) => (Some(Circuit { probe_ms: now_ms + ms(PROBE), ..record }), Told::Probe),
        (Ask::Close, Some(record)) => (None, Told::Healed(record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn open(wait: u64) -> Ask {
        Ask::Open { reason: "535".to_owned(), wait: Duration::from_millis(wait) }
    }

    fn record(until_ms: u64, failures: u32, probe_ms: u64) -> Circuit {
        Circuit { opened_ms: NOW - 500, until_ms, failures, probe_ms, reason: "535".to_owned() }
    }

    #[test]
    fn the_first_failure_opens_and_the_others_of_the_incident_change_nothing() {
        let (opened, told_opened) = told(None, &open(100), NOW);
        assert!(matches!(told_opened, Told::Opened(_)));
        let (again, answer) = told(opened.clone(), &open(100), NOW + 99);
        assert_eq!((again.clone(), answer), (opened, Told::Open(again.unwrap())));
    }

    #[test]
    fn one_probe_at_a_time_once_the_wait_is_over() {
        assert!(matches!(told(Some(record(NOW + 1, 1, 0)), &Ask::Probe, NOW).1, Told::Open(_)));
        let (probed, answer) = told(Some(record(NOW, 1, 0)), &Ask::Probe, NOW);
        assert_eq!(answer, Told::Probe);
        assert!(matches!(told(probed.clone(), &Ask::Probe, NOW + 1).1, Told::Open(_)));
        let lease = u64::try_from(PROBE.as_millis()).unwrap();
        assert_eq!(told(probed, &Ask::Probe, NOW + lease).1, Told::Probe, "a probe whose worker died ends");
    }

    #[test]
    fn a_probe_that_fails_doubles_the_wait_up_to_a_limit() {
        let wait = |failures| told(Some(record(NOW, failures, NOW + 5)), &open(1000), NOW).0.unwrap().until_ms - NOW;
        assert_eq!((wait(1), wait(2), wait(3), wait(30)), (2000, 4000, 8000, 600_000));
        let again = told(Some(record(NOW, 1, NOW + 5)), &open(1000), NOW).0.unwrap();
        assert_eq!((again.opened_ms, again.failures, again.probe_ms), (NOW - 500, 2, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nobody_away_for_as_long() {
        let day = 86_400_000;
        assert_eq!(told(Some(record(NOW + day, 3, 0)), &Ask::Probe, NOW).1, Told::Probe);
        assert_eq!(told(Some(record(NOW, 3, NOW + day)), &Ask::Probe, NOW).1, Told::Probe);
        assert_eq!(told(Some(record(NOW + day, 1, 0)), &open(1000), NOW).0.unwrap().until_ms, NOW + 2000);
    }

    #[test]
    fn one_success_closes_and_one_call_is_told_so() {
        assert_eq!(told(Some(record(NOW, 1, 0)), &Ask::Close, NOW), (None, Told::Healed(record(NOW, 1, 0))));
        assert_eq!(told(None, &Ask::Close, NOW), (None, Told::Closed));
        assert_eq!(told(None, &Ask::Probe, NOW), (None, Told::Closed));
    }
}
