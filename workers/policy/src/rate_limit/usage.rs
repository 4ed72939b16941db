//! How much of a limit is used: what passed between two looks at a scope, against what its present rate lets through in that time.

use super::scope::MinuteCounts;

/// A look at a scope's counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CountSample {
    /// The store's clock in microseconds.
    pub at: f64,
    /// Its counts.
    pub used: MinuteCounts,
}

/// Messages that got a token between two looks. Counts are kept for two minutes: what lies further back is not seen.
pub fn passed(earlier: &CountSample, later: &CountSample) -> f64 {
    let (was, is) = (earlier.used, later.used);
    let passed = match is.minute - was.minute {
        0.0 => is.count - was.count,
        1.0 => is.before - was.count + is.count,
        gone if gone > 1.0 => is.before + is.count,
        // Another store, or one that was emptied.
        _ => is.count,
    };
    passed.max(0.0)
}

/// The share of `per_second` that was used between two looks: 1 where everything is. A scope that is paused has a rate of nothing, of which nothing is
/// left. Nothing where no time lies between the looks.
pub fn share(earlier: &CountSample, later: &CountSample, per_second: f64, is_paused: bool) -> Option<f64> {
    if is_paused {
        return Some(1.0);
    }
    let seconds = (later.at - earlier.at) / 1e6;
    // Of a slow limit less than one message may pass: one that does uses all of it.
    (seconds > 0.0).then(|| passed(earlier, later) / (per_second * seconds).max(1.0))
}

/// A limit that was looked at.
pub struct LimitUse {
    /// The scope's name.
    pub scope: String,
    /// Its counts.
    pub look: CountSample,
    /// Messages a second now, by its slowest rate.
    pub per_second: f64,
    /// Nothing goes at present.
    pub is_paused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::scope::Scope;

    /// A scope that lets one message through every so many seconds, looked at after so many.
    fn looks(every: u32, seconds: &[u32]) -> Vec<CountSample> {
        let start = 1.76e15;
        let mut scope = Scope::default();
        let mut looks = Vec::new();
        for second in 0..=300 {
            let at = start + f64::from(second) * 1e6;
            if second % every == 0 {
                scope.count(1.0, at);
            }
            if seconds.contains(&second) {
                looks.push(CountSample { at, used: scope.used });
            }
        }
        looks
    }

    #[track_caller]
    fn check(every: u32, from: u32, to: u32, per_second: f64, expected: f64) {
        let looks = looks(every, &[from, to]);
        let share = share(&looks[0], &looks[1], per_second, false).unwrap();
        assert!((share - expected).abs() < 0.01, "{share}");
    }

    #[test]
    fn what_passed_is_counted_over_the_turn_of_a_minute() {
        for from in [1, 10, 30, 45, 59, 61] {
            check(1, from, from + 30, 1.0, 1.0);
            check(1, from, from + 30, 4.0, 0.25);
            check(2, from, from + 30, 1.0, 0.5);
        }
    }

    #[test]
    fn of_a_slow_limit_one_message_is_all() {
        check(60, 50, 70, 1.0 / 60.0, 1.0);
        check(60, 5, 25, 1.0 / 60.0, 0.0);
    }

    #[test]
    fn a_pause_uses_all_and_two_looks_at_once_say_nothing() {
        let looks = looks(1, &[10]);
        assert_eq!(share(&looks[0], &looks[0], 1.0, true), Some(1.0));
        assert_eq!(share(&looks[0], &looks[0], 1.0, false), None);
    }

    #[test]
    fn a_store_that_was_emptied_counts_anew() {
        let at =
            |at: f64, minute: f64, count: f64| CountSample { at, used: MinuteCounts { minute, count, before: 0.0 } };
        assert_eq!(passed(&at(1.0, 100.0, 50.0), &at(2.0, 100.0, 3.0)), 0.0);
        assert_eq!(passed(&at(1.0, 100.0, 50.0), &at(2.0, 0.0, 0.0)), 0.0);
    }
}
