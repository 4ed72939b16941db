//! How fast messages go to scopes without a rate: what a cut is a part of. Counted in this worker alone.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

/// The length of a window. Two are kept: the present one and the one before.
const WINDOW: Duration = Duration::from_secs(5);
/// Scopes that are counted.
const KEPT_MAX: usize = 10_000;

/// Counts by scope.
#[derive(Default)]
pub struct ObservedRate(Mutex<HashMap<String, WindowCount>>);

struct WindowCount {
    since: Instant,
    present: u32,
    before: u32,
}

impl ObservedRate {
    /// One more message to each of these.
    pub fn count(&self, scopes: impl Iterator<Item = String>, now: Instant) {
        let mut counts = self.counts();
        for scope in scopes {
            if let Some(count) = counts.get_mut(&scope) {
                count.turn(now);
                count.present += 1;
                continue;
            }
            if counts.len() >= KEPT_MAX {
                counts.retain(|_, count| now.duration_since(count.since) < 2 * WINDOW);
            }
            if counts.len() < KEPT_MAX {
                counts.insert(scope, WindowCount { since: now, present: 1, before: 0 });
            }
        }
    }

    /// Messages a second of late; one in a window at least, because somebody asks.
    pub fn per_second(&self, scope: &str, now: Instant) -> f64 {
        let mut counts = self.counts();
        let least = 1.0 / WINDOW.as_secs_f64();
        let Some(count) = counts.get_mut(scope) else { return least };
        count.turn(now);
        let counted = if count.before > 0 { WINDOW } else { Duration::ZERO } + now.duration_since(count.since);
        (f64::from(count.present + count.before) / counted.as_secs_f64().max(1.0)).max(least)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, WindowCount>> {
        // Nothing in here can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WindowCount {
    fn turn(&mut self, now: Instant) {
        let age = now.duration_since(self.since);
        if age >= WINDOW {
            self.before = if age < 2 * WINDOW { self.present } else { 0 };
            self.present = 0;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let observed_rate = ObservedRate::default();
        let mut now = Instant::now();
        for _ in 0..120 {
            observed_rate.count(["a".to_owned()].into_iter(), now);
            now += Duration::from_millis(100);
        }
        let seen = observed_rate.per_second("a", now);
        assert!((8.0..=11.0).contains(&seen), "{seen}");
        now += Duration::from_secs(60);
        assert!(observed_rate.per_second("a", now) <= 0.2 && observed_rate.per_second("b", now) <= 0.2);
    }
}
