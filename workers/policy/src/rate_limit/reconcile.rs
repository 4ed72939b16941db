//! Messages that went out without the store, by a worker's share of the limits, are charged to the buckets of their scopes when it is back:
//! the burst that they used up is not there a second time.

use super::{
    admit::HOLD_US,
    scope::{Limit, Scope},
};

/// What went out of one scope.
#[derive(Debug, Clone, PartialEq)]
pub struct UnreportedUsage {
    /// The scope's name.
    pub scope: String,
    /// For each of its limits.
    pub charges: Vec<UnreportedCount>,
}

/// What went out by one limit.
#[derive(Debug, Clone, PartialEq)]
pub struct UnreportedCount {
    /// The limit, over all workers.
    pub limit: Limit,
    /// Messages that it has not made up for yet.
    pub messages: f64,
}

/// Charges them. Nobody waits longer for that than for a bucket which was used up and a token that was given out ahead.
pub fn reconcile(scope: &mut Scope, charges: &[UnreportedCount], now: f64) {
    for UnreportedCount { limit, messages } in charges {
        let mut bucket = scope.bucket(limit, now);
        let (more, most) = (messages * bucket.interval_us, now + limit.tolerance_us + HOLD_US);
        let later = |time: f64| time.max((time.max(now) + more).min(most));
        (bucket.all, bucket.urgent) = (later(bucket.all), later(bucket.urgent));
        scope.buckets.insert(limit.bucket.to_owned(), bucket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::{rate::Rate, scope::Bucket};

    const NOW: f64 = 1.76e15;

    /// A rate, how far its bucket is ahead, messages, and how far it is then.
    #[track_caller]
    fn check(rate: &str, ahead_us: f64, messages: f64, expected_us: f64) {
        let limit = Limit::from(&rate.parse::<Rate>().unwrap());
        let time = NOW + ahead_us;
        let (interval_us, tolerance_us) = (limit.interval_us, limit.tolerance_us);
        let bucket = Bucket { all: time, urgent: time, interval_us, tolerance_us };
        let mut scope = Scope { buckets: [(limit.bucket.to_owned(), bucket)].into(), ..Scope::default() };
        reconcile(&mut scope, &[UnreportedCount { limit, messages }], NOW);
        let bucket = scope.buckets.values().next().unwrap();
        assert_eq!((bucket.all - NOW, bucket.urgent - NOW), (expected_us, expected_us));
    }

    #[test]
    fn what_was_sent_is_missing_from_the_burst() {
        check("10/s burst 10", -5e6, 4.0, 4e5);
        check("10/s burst 10", 2e5, 4.0, 6e5);
        check("10/s burst 10", 2e5, 0.0, 2e5);
    }

    #[test]
    fn nobody_waits_longer_than_for_a_bucket_that_is_used_up() {
        check("10/s burst 10", 0.0, 1e6, 1.9e6);
        check("10/s burst 10", 3e6, 1e6, 3e6);
    }

    #[test]
    fn a_scope_that_the_store_does_not_know_begins_with_what_was_sent() {
        let (limit, mut scope) = (Limit::from(&"2/s".parse::<Rate>().unwrap()), Scope::default());
        reconcile(&mut scope, &[UnreportedCount { limit, messages: 1.0 }], NOW);
        assert_eq!(scope.buckets["s"].all, NOW + 5e5);
    }
}
