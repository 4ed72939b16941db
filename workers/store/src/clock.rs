//! The store's clock as this worker knows it: an answer of the store, carried on by the time that has passed here since. What the wall clock of this
//! machine says, and how it is set meanwhile, does not matter. Workers with wrong clocks so agree on `send_at`, `expires_at` and pauses.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;

/// An answer that took longer says too little about when it was given.
const TRIP_MAX: Duration = Duration::from_millis(500);
/// A wall clock that is off by more is told of.
const OFF_MAX_MS: u64 = 2000;

/// What is known of the store's clock.
#[derive(Debug, Default)]
pub struct StoreClock(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The store's time in ms, and when it was that.
    answer: Option<(u64, Instant)>,
    is_told: bool,
}

impl StoreClock {
    /// Now, in ms; by the wall clock as long as the store never answered.
    pub fn now_ms(&self) -> u64 {
        match self.known().answer {
            Some((ms, at)) => carried_on(ms, at.elapsed()),
            None => wall_ms(),
        }
    }

    /// The store answered this time, to a question that was asked at `asked`.
    pub fn heard(&self, ms: u64, asked: Instant) {
        let trip = asked.elapsed();
        if trip > TRIP_MAX {
            return;
        }
        let now_ms = carried_on(ms, trip / 2);
        let (wall_ms, mut known) = (wall_ms(), self.known());
        known.answer = Some((now_ms, Instant::now()));
        let is_off = now_ms.abs_diff(wall_ms) > OFF_MAX_MS;
        if is_off && !known.is_told {
            let seconds = now_ms.abs_diff(wall_ms) / 1000;
            let direction = if wall_ms > now_ms { "ahead of" } else { "behind" };
            tracing::warn!(
                "The clock of this machine is {seconds} s {direction} the store's; jobs go by the store's, calls and certificates by this one: \
                 set both by NTP"
            );
        }
        known.is_told = is_off;
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn carried_on(ms: u64, time: Duration) -> u64 {
    ms.saturating_add(super::millis(time))
}

fn wall_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_counts_only_until_the_store_answered() {
        let clock = StoreClock::default();
        assert!(clock.now_ms().abs_diff(wall_ms()) < 60_000);
        clock.heard(5_000_000, Instant::now());
        assert!((5_000_000..5_060_000).contains(&clock.now_ms()));
    }

    #[test]
    fn a_slow_answer_is_not_believed() {
        let clock = StoreClock::default();
        let long_ago = Instant::now().checked_sub(2 * TRIP_MAX).unwrap();
        clock.heard(5_000_000, long_ago);
        assert!(clock.now_ms() > 5_060_000);
    }
}
