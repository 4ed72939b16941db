//! What a worker knows of each transport: how often it was asked, and since when it accepts nobody. Told to the store with each heartbeat.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Most transports that are remembered.
const TRANSPORTS_MAX: usize = 256;

/// How one transport behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransportStats {
    /// Its name.
    pub transport: String,
    /// Messages that it was asked to take since it accepted one last.
    pub asked: u64,
    /// When the first of these was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_since: Option<Timestamp>,
    /// When it was asked last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_asked: Option<Timestamp>,
    /// When it accepted a message last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_accepted: Option<Timestamp>,
    /// Its circuit, where it is not closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit: Option<OpenCircuit>,
}

/// A circuit that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCircuit {
    /// When it opened.
    pub since: Timestamp,
    /// How long until somebody tries the transport.
    pub probe_in_seconds: u64,
    /// What the transport said.
    pub reason: String,
}

/// All transports by name.
#[derive(Debug, Default)]
pub struct Transports(BTreeMap<String, TransportStats>);

impl Transports {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// A transport is asked to take a message.
    pub fn asked(&mut self, name: &str, now: Timestamp) {
        if let Some(one) = self.entry(name) {
            one.asked += 1;
            one.asked_since.get_or_insert(now);
            one.last_asked = Some(now);
        }
    }

    /// A transport took one.
    pub fn accepted(&mut self, name: &str, now: Timestamp) {
        if let Some(one) = self.entry(name) {
            (one.asked, one.asked_since, one.last_accepted) = (0, None, Some(now));
        }
    }

    /// All of them.
    pub fn list(&self) -> Vec<TransportStats> {
        self.0.values().cloned().collect()
    }

    fn entry(&mut self, name: &str) -> Option<&mut TransportStats> {
        if !self.0.contains_key(name) {
            if self.0.len() >= TRANSPORTS_MAX {
                return None;
            }
            self.0.insert(name.to_owned(), TransportStats { transport: name.to_owned(), ..TransportStats::default() });
        }
        self.0.get_mut(name)
    }
}

impl TransportStats {
    /// What several workers know of one transport together.
    pub fn together<'a>(name: &str, workers: impl Iterator<Item = &'a Self>) -> Self {
        let mut all = Self { transport: name.to_owned(), ..Self::default() };
        let mut waiting: Vec<&Self> = Vec::new();
        for one in workers.filter(|one| one.transport == name) {
            all.last_asked = all.last_asked.max(one.last_asked);
            all.last_accepted = all.last_accepted.max(one.last_accepted);
            all.circuit = all.circuit.or_else(|| one.circuit.clone());
            waiting.push(one);
        }
        // A worker that was asked before another one's success says nothing about now.
        for one in waiting.into_iter().filter(|one| one.last_asked > all.last_accepted) {
            all.asked += one.asked;
            let since = one.asked_since.max(all.last_accepted);
            all.asked_since = [all.asked_since, since].into_iter().flatten().min();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_transport_that_accepts_nobody_is_known_by_what_it_was_asked_since_its_last_success() {
        let mut transports = Transports::new();
        transports.asked("relay", at(1));
        transports.accepted("relay", at(2));
        for second in 10..20 {
            transports.asked("relay", at(second));
        }
        let one = &transports.list()[0];
        assert_eq!((one.asked, one.asked_since, one.last_accepted), (10, Some(at(10)), Some(at(2))));
    }

    #[test]
    fn what_one_worker_sees_counts_unless_another_one_had_a_success_since() {
        let stats = |asked, since, last, accepted: Option<i64>| TransportStats {
            transport: "relay".to_owned(),
            asked,
            asked_since: Some(at(since)),
            last_asked: Some(at(last)),
            last_accepted: accepted.map(at),
            circuit: None,
        };
        let silent = TransportStats::together("relay", [stats(3, 10, 20, None), stats(4, 12, 22, Some(5))].iter());
        assert_eq!((silent.asked, silent.asked_since, silent.last_accepted), (7, Some(at(10)), Some(at(5))));
        let works = TransportStats::together("relay", [stats(3, 10, 20, None), stats(0, 12, 22, Some(30))].iter());
        assert_eq!((works.asked, works.asked_since), (0, None));
        assert_eq!(TransportStats::together("other", [stats(3, 10, 20, None)].iter()).last_asked, None);
    }

    #[test]
    fn names_are_bounded() {
        let mut transports = Transports::new();
        for n in 0..1000 {
            transports.asked(&format!("relay-{n}"), at(n));
        }
        assert_eq!(transports.list().len(), TRANSPORTS_MAX);
    }
}
