//! What a store keeps about one scope: a transport, a group at a transport, a tenant, a sender's domain at a transport. Its buckets,
//! whether it is paused or cut, and who waits for it.

use std::collections::BTreeMap;

use postrider_schemas::Lane;
use serde::{Deserialize, Serialize};

use super::{rate::Rate, tally::Tally};

/// Tokens are given out no further ahead than this, and transactional mail overdraws by no more than bulk mail may be ahead besides.
pub const REACH_US: f64 = 1e6;
/// A whole rate; cuts are parts per million of it.
pub const WHOLE: f64 = 1e6;
/// The bucket of a rate that an operator set for a time.
pub const SET: &str = "set";
/// The bucket of a scope without a configured rate, while it is cut: a part of the pace that was seen.
pub const SEEN: &str = "seen";

/// One rate that a message is counted against.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// The name of its bucket: the unit of the rate.
    pub bucket: &'static str,
    /// Time between two messages.
    pub interval_us: f64,
    /// How far the bucket may run ahead.
    pub tolerance_us: f64,
}

impl From<&Rate> for Limit {
    fn from(rate: &Rate) -> Self {
        Self { bucket: rate.period().as_str(), interval_us: rate.interval_us(), tolerance_us: rate.tolerance_us() }
    }
}

/// A scope that a message is counted against, with what is configured for it. No limit: it may still be paused or cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// The scope's name.
    pub scope: String,
    /// Its limits.
    pub limits: Vec<Limit>,
}

/// What a store keeps about a scope. The default: nothing happened yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Scope {
    /// By name.
    pub buckets: BTreeMap<String, Bucket>,
    /// Nothing goes before this time.
    pub paused_until: f64,
    /// Why it is paused or cut, for people.
    pub why: String,
    /// The last cut.
    pub cut: Option<Cut>,
    /// What an operator set.
    pub set: Option<Set>,
    /// Why it was set, for people: a pause or a cut meanwhile has a reason of its own.
    pub set_why: String,
    /// How often each reaction was called for, and since when.
    pub calls: BTreeMap<String, Calls>,
    /// Messages of the present minute and the one before.
    pub used: Used,
    /// Those who wait, by lane.
    pub lines: BTreeMap<String, Line>,
}

/// One rate's state: the theoretical arrival time of the generic cell rate algorithm, twice.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// When the bucket is even again, over all lanes.
    pub all: f64,
    /// The same, counting transactional messages alone: bulk mail cannot make them wait by more than their debt.
    pub urgent: f64,
    /// The interval that these times were made with: what a cut had left of the rate then.
    pub interval_us: f64,
}

/// A rate that was cut after an answer, and recovers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// What was left of the rate, in millionths.
    pub left: f64,
    /// When.
    pub at: f64,
    /// What comes back each second, in millionths.
    pub recovery: f64,
    /// Without a configured rate: the interval of the pace that was seen. 0 where there was one.
    pub seen_interval_us: f64,
}

/// A rate that an operator set for a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Set {
    /// Time between two messages.
    pub interval_us: f64,
    /// How far the bucket may run ahead.
    pub tolerance_us: f64,
    /// Until then.
    pub until: f64,
}

/// Calls for a reaction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// How many.
    pub count: u32,
    /// Since when.
    pub since: f64,
    /// Until when they count.
    #[serde(default)]
    pub until: f64,
}

/// Messages counted by the minute.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Used {
    /// The present minute, counted from 1970.
    pub minute: f64,
    /// Messages in it.
    pub count: f64,
    /// Messages in the one before.
    pub before: f64,
}

/// Tenants that wait, by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// The end of each one's line.
    pub ends: BTreeMap<String, Place>,
    /// Until when each one has had its fair share.
    pub shares: BTreeMap<String, f64>,
    /// How many they are.
    pub tally: Tally,
}

/// The end of a tenant's line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The last slot that was given out.
    pub end: f64,
    /// The tenant's weight.
    pub weight: f64,
}

impl Scope {
    /// What is left of the rate now, in millionths.
    pub fn left(&self, now: f64) -> f64 {
        match self.cut {
            // A clock that was set back takes nothing away.
            Some(cut) => WHOLE.min(cut.left + cut.recovery * (now - cut.at).max(0.0) / 1e6),
            None => WHOLE,
        }
    }

    /// The limits that hold now: an operator's before the configured ones; the pace that was seen where there are none and the
    /// scope is cut.
    pub fn limits(&self, configured: &[Limit], now: f64) -> Vec<Limit> {
        if let Some(set) = self.set.filter(|set| set.until > now) {
            return vec![Limit { bucket: SET, interval_us: set.interval_us, tolerance_us: set.tolerance_us }];
        }
        match self.cut {
            Some(cut) if configured.is_empty() && cut.seen_interval_us > 0.0 && self.left(now) < WHOLE => {
                vec![Limit { bucket: SEEN, interval_us: cut.seen_interval_us, tolerance_us: 0.0 }]
            }
            _ => configured.to_vec(),
        }
    }

    /// A bucket in terms of `limit`, with the interval that a cut left of it now: times that were made with another interval count as many
    /// messages as they did. No bucket is ahead by more than its rate can bring about, whatever the clock did: nobody waits for longer.
    pub fn bucket(&self, limit: &Limit, now: f64) -> Bucket {
        let bucket = self.buckets.get(limit.bucket).copied().unwrap_or_default();
        let interval_us = limit.interval_us * WHOLE / self.left(now);
        let from = now.max(self.paused_until);
        let most = from + limit.tolerance_us + 2.0 * (REACH_US + interval_us);
        let turned = |time: f64| {
            let is_same = bucket.interval_us == interval_us || bucket.interval_us == 0.0;
            let time =
                if is_same || time <= from { time } else { from + (time - from) * interval_us / bucket.interval_us };
            time.min(most)
        };
        Bucket { all: turned(bucket.all), urgent: turned(bucket.urgent), interval_us }
    }

    /// Counts messages that may go.
    pub fn count(&mut self, messages: f64, now: f64) {
        let minute = (now / 6e7).floor();
        if self.used.minute != minute {
            let before = if self.used.minute == minute - 1.0 { self.used.count } else { 0.0 };
            self.used = Used { minute, count: 0.0, before };
        }
        self.used.count += messages;
    }

    /// The line of a lane.
    pub fn line(&mut self, lane: Lane) -> &mut Line {
        self.lines.entry(lane.as_str().to_owned()).or_default()
    }

    /// Until when it is paused, cut, or held to an operator's rate; a time that has passed where it is as configured.
    pub fn disturbed_until(&self) -> f64 {
        let cut = self.cut.map_or(0.0, |cut| cut.at + (WHOLE - cut.left) / cut.recovery.max(1.0) * 1e6);
        let set = self.set.map_or(0.0, |set| set.until);
        self.paused_until.max(cut).max(set)
    }

    /// When everything in here is history.
    pub fn ends(&self, now: f64) -> f64 {
        let buckets = self.buckets.values().map(|bucket| bucket.all);
        let lines = self.lines.values().flat_map(|line| line.ends.values().map(|place| place.end));
        let calls = self.calls.values().map(|calls| calls.until);
        buckets.chain(lines).chain(calls).chain([now, self.disturbed_until()]).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1.76e15;

    fn limit(rate: &str) -> Limit {
        Limit::from(&rate.parse::<Rate>().unwrap())
    }

    fn used_up(rate: &str, ahead_us: f64) -> Scope {
        let limit = limit(rate);
        let bucket = Bucket { all: NOW + ahead_us, urgent: NOW, interval_us: limit.interval_us };
        Scope { buckets: [(limit.bucket.to_owned(), bucket)].into(), ..Scope::default() }
    }

    #[test]
    fn a_changed_rate_counts_in_messages_not_in_time() {
        let scope = used_up("10/s burst 10", 500_000.0);
        let bucket = scope.bucket(&limit("100/s burst 10"), NOW);
        assert_eq!(bucket.all - NOW, 50_000.0, "five messages ahead stay five messages ahead");
        assert_eq!(scope.bucket(&limit("10/s burst 10"), NOW).all, NOW + 500_000.0);
    }

    #[test]
    fn a_slow_rate_that_was_used_up_does_not_keep_its_successor_waiting() {
        let scope = used_up("1/s burst 3600", 3.6e9);
        let bucket = scope.bucket(&limit("1/s"), NOW);
        assert_eq!(bucket.all - NOW, 4e6);
    }

    #[test]
    fn a_cut_recovers_and_applies_to_the_pace_that_was_seen_where_there_is_no_rate() {
        let cut = Cut { left: 250_000.0, at: NOW, recovery: 10_000.0, seen_interval_us: 20_000.0 };
        let scope = Scope { cut: Some(cut), ..Scope::default() };
        assert_eq!(scope.left(NOW + 30e6), 550_000.0);
        assert_eq!(scope.limits(&[], NOW)[0].bucket, SEEN);
        assert_eq!(scope.limits(&[limit("5/s")], NOW), [limit("5/s")]);
        assert_eq!(scope.left(NOW + 80e6), WHOLE);
        assert!(scope.limits(&[], NOW + 80e6).is_empty());
    }

    #[test]
    fn messages_are_counted_by_the_minute() {
        let mut scope = Scope::default();
        scope.count(2.0, 60e6);
        scope.count(3.0, 119e6);
        scope.count(1.0, 121e6);
        assert_eq!((scope.used.count, scope.used.before), (1.0, 5.0));
        scope.count(1.0, 600e6);
        assert_eq!((scope.used.count, scope.used.before), (1.0, 0.0));
    }
}
