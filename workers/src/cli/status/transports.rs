//! How each transport does, in words.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::output::span, store::circuit::Circuit, telemetry::transport_stats::TransportStats, worker::heartbeat::Beat,
};

/// A transport that was asked and accepted nothing for so long is said to accept nobody.
const SILENCE: Duration = Duration::from_secs(60);

/// What is told of a transport.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct TransportStatus {
    pub(in crate::cli) transport: String,
    /// `closed`, `open`, `half_open`; `unknown` where its credentials are not here and no worker told.
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_in_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How often it was asked since it accepted a message last, over all workers.
    asked_since_accepted: u64,
    /// For how long it is asked and accepts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepts_nobody_for_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_accepted: Option<Timestamp>,
    /// The same in words.
    pub(in crate::cli) says: String,
}

impl TransportStatus {
    /// Whether it takes what it is asked to take, as far as is known.
    pub(in crate::cli) fn takes_mail(&self) -> bool {
        !matches!(self.state, "open" | "half_open") && self.accepts_nobody_for_seconds.is_none()
    }
}

/// What the store says of a circuit.
#[derive(Clone, Copy)]
pub(super) enum StoredCircuit<'a> {
    Closed,
    Open(&'a Circuit),
    /// It was not asked: its name there needs the credentials.
    NotAsked,
}

/// What is told of this transport.
pub(super) fn of(
    name: &str,
    circuit: StoredCircuit<'_>,
    workers: &[Beat],
    now_ms: u64,
    now: Timestamp,
) -> TransportStatus {
    let seen = TransportStats::together(name, workers.iter().flat_map(|one| &one.transports));
    let told = seen.circuit.as_ref().map(|one| (one.since, one.probe_in_seconds, one.reason.clone()));
    let stored = |one: &Circuit| (one.opened(), one.until_ms.saturating_sub(now_ms).div_ceil(1000), one.reason.clone());
    let open = match circuit {
        StoredCircuit::Open(circuit) => Some(stored(circuit)),
        StoredCircuit::Closed => None,
        StoredCircuit::NotAsked => told,
    };
    let state = match &open {
        Some((_, 0, _)) => "half_open",
        Some(_) => "open",
        None if matches!(circuit, StoredCircuit::NotAsked) && workers.is_empty() => "unknown",
        None => "closed",
    };
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let silent = seen.asked_since.map(age).filter(|age| *age >= SILENCE && seen.asked > 0);
    let says = match (&open, silent) {
        (Some((since, wait, reason)), _) => {
            let next = if *wait > 0 { format!("tried again in {}", span(*wait)) } else { "being tried".to_owned() };
            format!("circuit {state} for {}, {next}; it said: {reason}", span(age(*since).as_secs()))
        }
        (None, Some(silent)) => format!(
            "accepts nobody for {}: asked {} since, last success {}",
            span(silent.as_secs()),
            super::super::output::count(seen.asked, "time"),
            seen.last_accepted.map_or_else(|| "never".to_owned(), |at| format!("{} ago", span(age(at).as_secs()))),
        ),
        (None, None) if state == "unknown" => "not known: its credentials are not here, and no worker runs".to_owned(),
        (None, None) => match seen.last_accepted {
            Some(at) => format!("circuit closed, accepted a message {} ago", span(age(at).as_secs())),
            None if seen.last_asked.is_some() => "circuit closed, asked for the first time".to_owned(),
            None => "circuit closed, not asked yet".to_owned(),
        },
    };
    let (since, probe_in_seconds, reason) = match open {
        Some((since, wait, reason)) => (Some(since), Some(wait), Some(reason)),
        None => (None, None, None),
    };
    TransportStatus {
        transport: name.to_owned(),
        state,
        since,
        probe_in_seconds,
        reason,
        asked_since_accepted: seen.asked,
        accepts_nobody_for_seconds: silent.map(|age| age.as_secs()),
        last_accepted: seen.last_accepted,
        says,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn at(ago: i64) -> Timestamp {
        Timestamp::from_second(NOW - ago).unwrap()
    }

    fn beat(asked: u64, since: i64, accepted: Option<i64>) -> Beat {
        let stats = TransportStats {
            transport: "relay".to_owned(),
            asked,
            asked_since: Some(at(since)).filter(|_| asked > 0),
            last_asked: Some(at(1)),
            last_accepted: accepted.map(at),
            circuit: None,
        };
        Beat {
            id: String::new(),
            host: String::new(),
            pid: 1,
            version: String::new(),
            since: at(1000),
            at: at(0),
            consumes: true,
            in_hand: [0; 2],
            accepted: [0; 2],
            oldest: [None; 2],
            unfinished: [None; 2],
            waiting_for: std::collections::BTreeMap::new(),
            transports: vec![stats],
            failures: Vec::new(),
        }
    }

    #[track_caller]
    fn check(circuit: StoredCircuit<'_>, workers: &[Beat], state: &str, says: &str) {
        let told = of("relay", circuit, workers, NOW.unsigned_abs() * 1000, at(0));
        assert_eq!((told.state, told.says.as_str()), (state, says));
    }

    #[test]
    fn each_transport_says_in_words_how_it_does() {
        let open = Circuit {
            opened_ms: (NOW.unsigned_abs() - 300) * 1000,
            until_ms: (NOW.unsigned_abs() + 40) * 1000,
            failures: 2,
            probe_ms: 0,
            reason: "auth: 535 who are you".to_owned(),
        };
        check(StoredCircuit::Closed, &[], "closed", "circuit closed, not asked yet");
        check(StoredCircuit::Closed, &[beat(0, 0, Some(5))], "closed", "circuit closed, accepted a message 5s ago");
        check(StoredCircuit::Closed, &[beat(3, 20, None)], "closed", "circuit closed, asked for the first time");
        check(
            StoredCircuit::Closed,
            &[beat(300, 180, Some(200)), beat(112, 90, None)],
            "closed",
            "accepts nobody for 3m: asked 412 times since, last success 3m ago",
        );
        check(
            StoredCircuit::Open(&open),
            &[beat(300, 180, None)],
            "open",
            "circuit open for 5m, tried again in 40s; it said: auth: 535 who are you",
        );
        check(StoredCircuit::NotAsked, &[], "unknown", "not known: its credentials are not here, and no worker runs");
    }
}
