//! What a store keeps about one scope: a transport, a group at a transport, a tenant, a sender's domain at a transport. Its buckets,
//! whether it is paused or cut, and who waits for it.

use std::collections::BTreeMap;

use postrider_schemas::Lane;
use serde::{Deserialize, Serialize};

use super::rate::Rate;

/// Tokens are given out no further ahead than this, and transactional mail overdraws by no more than bulk mail may be ahead besides.
pub const REACH_US: f64 = 1e6;
/// For so long are slots and shares remembered that are over.
const OVER_FOR_US: f64 = 6e8;
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
pub struct ScopeLimits {
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
    pub cut: Option<RateReduction>,
    /// What an operator set.
    pub set: Option<RateOverride>,
    /// Why it was set, for people: a pause or a cut meanwhile has a reason of its own.
    pub set_why: String,
    /// How often each shaping rule was called for, and since when.
    pub calls: BTreeMap<String, RuleCalls>,
    /// Messages of the present minute and the one before.
    pub used: MinuteCounts,
    /// Those who wait, by lane.
    pub lines: BTreeMap<String, WaitQueue>,
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
    /// How far the bucket could run ahead then. Its times less this are when there is room for one more.
    #[serde(default)]
    pub tolerance_us: f64,
}

/// A rate that was cut after an answer, and recovers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RateReduction {
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateOverride {
    /// The name of the configured bucket whose place it takes, and that of those for shorter times.
    #[serde(default)]
    pub bucket: String,
    /// Time between two messages.
    pub interval_us: f64,
    /// How far the bucket may run ahead.
    pub tolerance_us: f64,
    /// Until then.
    pub until: f64,
}

/// Calls for a shaping rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RuleCalls {
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
pub struct MinuteCounts {
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
pub struct WaitQueue {
    /// The end of each one's line.
    pub ends: BTreeMap<String, TenantPosition>,
    /// Until when each one has had its fair share.
    pub shares: BTreeMap<String, f64>,
}

/// The end of a tenant's line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TenantPosition {
    /// The last slot that was given out.
    pub end: f64,
    /// The tenant's weight.
    pub weight: f64,
}

/// Places of the times that rates are counted over, from the shortest; nothing for other buckets.
fn length(bucket: &str) -> Option<usize> {
    ["s", "min", "h", "d"].iter().position(|one| *one == bucket)
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

    /// The limits that hold now. An operator's takes the place of the configured ones for the same time and for shorter ones: a quota of a day holds
    /// beside a rate by the second. The pace that was seen where none is configured and the scope is cut.
    pub fn limits(&self, configured: &[Limit], now: f64) -> Vec<Limit> {
        if let Some(set) = self.set.as_ref().filter(|set| set.until > now) {
            let longer = configured.iter().filter(|one| length(one.bucket) > length(&set.bucket)).cloned();
            let own = Limit { bucket: SET, interval_us: set.interval_us, tolerance_us: set.tolerance_us };
            return std::iter::once(own).chain(longer).collect();
        }
        match self.cut {
            Some(cut) if configured.is_empty() && cut.seen_interval_us > 0.0 && self.left(now) < WHOLE => {
                vec![Limit { bucket: SEEN, interval_us: cut.seen_interval_us, tolerance_us: 0.0 }]
            }
            _ => configured.to_vec(),
        }
    }

    /// A bucket in terms of `limit`, with the interval that a cut left of it now. When there is room for one more is what stays: whoever waits for it
    /// waits for as many messages as before, and neither a smaller burst nor a larger one makes anybody wait for longer, or lets a second burst
    /// through. Nor does a clock that was set back: no bucket has room later than its rate can bring about.
    pub fn bucket(&self, limit: &Limit, now: f64) -> Bucket {
        self.turned(limit, now).0
    }

    /// Keeps what [`Self::bucket`] says where a clock that was ahead of this one left its times behind: who is only told so hears the same until the
    /// clock has caught up.
    pub fn mend(&mut self, limit: &Limit, now: f64) {
        let (bucket, is_to_be_mended) = self.turned(limit, now);
        if is_to_be_mended {
            self.buckets.insert(limit.bucket.to_owned(), bucket);
        }
    }

    fn turned(&self, limit: &Limit, now: f64) -> (Bucket, bool) {
        let bucket = self.buckets.get(limit.bucket).copied().unwrap_or_default();
        let (interval_us, tolerance_us) = (limit.interval_us * WHOLE / self.left(now), limit.tolerance_us);
        let from = now.max(self.paused_until);
        let most = from + 2.0 * (REACH_US + interval_us);
        let room = |time: f64| {
            let room = time - bucket.tolerance_us;
            let is_other = bucket.interval_us > 0.0 && bucket.interval_us != interval_us;
            if is_other && room > from { from + (room - from) * interval_us / bucket.interval_us } else { room }
        };
        let (all, urgent) = (room(bucket.all), room(bucket.urgent));
        let turned = Bucket {
            all: all.min(most) + tolerance_us,
            urgent: urgent.min(most) + tolerance_us,
            interval_us,
            tolerance_us,
        };
        (turned, all > most || urgent > most)
    }

    /// Counts messages that may go.
    pub fn count(&mut self, messages: f64, now: f64) {
        let minute = (now / 6e7).floor();
        if self.used.minute != minute {
            let before = if self.used.minute == minute - 1.0 { self.used.count } else { 0.0 };
            self.used = MinuteCounts { minute, count: 0.0, before };
        }
        self.used.count += messages;
    }

    /// The line of a lane.
    pub fn line(&mut self, lane: Lane) -> &mut WaitQueue {
        self.lines.entry(lane.as_str().to_owned()).or_default()
    }

    /// Forgets whose slots and shares are over. No rule reads them, unless the clock is set back, but whoever keeps a scope as a whole keeps them
    /// with every message.
    pub fn forget_tenants(&mut self, now: f64) {
        let before = now - OVER_FOR_US;
        for line in self.lines.values_mut() {
            line.ends.retain(|_, place| place.end > before);
            line.shares.retain(|_, until| *until > before);
        }
    }

    /// Until when it is paused, cut, or held to an operator's rate; a time that has passed where it is as configured.
    pub fn disturbed_until(&self) -> f64 {
        let cut = self.cut.map_or(0.0, |cut| cut.at + (WHOLE - cut.left) / cut.recovery.max(1.0) * 1e6);
        let set = self.set.as_ref().map_or(0.0, |set| set.until);
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
        let (interval_us, tolerance_us) = (limit.interval_us, limit.tolerance_us);
        let bucket = Bucket { all: NOW + ahead_us, urgent: NOW, interval_us, tolerance_us };
        Scope { buckets: [(limit.bucket.to_owned(), bucket)].into(), ..Scope::default() }
    }

    /// A bucket that was ahead by so much, by its first rate; what it is ahead by another one.
    #[track_caller]
    fn check_changed(from: &str, ahead_us: f64, to: &str, expected_us: f64) {
        assert_eq!(used_up(from, ahead_us).bucket(&limit(to), NOW).all - NOW, expected_us, "{from} to {to}");
    }

    #[test]
    fn when_there_is_room_for_one_more_stays_by_another_rate() {
        check_changed("10/s burst 10", 500_000.0, "10/s burst 10", 500_000.0);
        check_changed("10/s", 500_000.0, "50/s", 100_000.0);
        check_changed("50/s", 100_000.0, "10/s", 500_000.0);
        // Used up stays used up, whatever the burst.
        check_changed("1/s burst 3600", 3599e6, "1/s", 0.0);
        check_changed("1000/h burst 1000", 3596.4e6, "2000/h", 0.0);
        check_changed("10/s", 0.0, "10/s burst 10", 900_000.0);
        check_changed("100/s burst 10", 90_000.0, "10/s burst 10", 900_000.0);
    }

    #[test]
    fn an_operators_rate_takes_the_place_of_those_for_its_time_and_for_shorter_ones() {
        let configured = [limit("14/s"), limit("100/min"), limit("50_000/d burst 50_000")];
        let rates = |bucket: &str| -> Vec<&str> {
            let bucket = bucket.to_owned();
            let set = RateOverride { bucket, interval_us: 1e5, tolerance_us: 0.0, until: NOW + 1.0 };
            let scope = Scope { set: Some(set), ..Scope::default() };
            scope.limits(&configured, NOW).iter().map(|one| one.bucket).collect()
        };
        assert_eq!(rates("s"), [SET, "min", "d"]);
        assert_eq!(rates("min"), [SET, "d"]);
        assert_eq!(rates("h"), [SET, "d"]);
        assert_eq!(rates("d"), [SET]);
    }

    #[test]
    fn slots_and_shares_that_are_over_are_forgotten() {
        let line = WaitQueue {
            ends: [("a", NOW), ("b", NOW + 1.0)]
                .map(|(name, end)| (name.to_owned(), TenantPosition { end, weight: 1.0 }))
                .into(),
            shares: [("a", NOW), ("b", NOW + 1.0)].map(|(name, until)| (name.to_owned(), until)).into(),
        };
        let mut scope = Scope { lines: [("bulk".to_owned(), line)].into(), ..Scope::default() };
        scope.forget_tenants(NOW + OVER_FOR_US);
        let line = &scope.lines["bulk"];
        assert!(line.ends.keys().eq(["b"]) && line.shares.keys().eq(["b"]), "{line:?}");
    }

    #[test]
    fn a_cut_recovers_and_applies_to_the_pace_that_was_seen_where_there_is_no_rate() {
        let cut = RateReduction { left: 250_000.0, at: NOW, recovery: 10_000.0, seen_interval_us: 20_000.0 };
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
