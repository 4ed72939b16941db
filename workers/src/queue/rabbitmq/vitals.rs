//! What the supervisor of the consumers shows of itself: how many of them run, and that it does something.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// So long nothing that the supervisor does may take. Each of its calls ends within ten seconds, a whole setup within a minute.
pub const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Signs of life. Times are since the beginning, in milliseconds.
#[derive(Debug)]
pub struct Vitals {
    begun: Instant,
    last_beat: AtomicU64,
    expected: AtomicUsize,
    running: AtomicUsize,
}

impl Vitals {
    /// Of a supervisor that was not started.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            last_beat: AtomicU64::new(0),
            expected: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
        }
    }

    /// So many consumers are to run from now on.
    pub fn expect(&self, consumers: usize) {
        self.expected.store(consumers, Ordering::Relaxed);
        self.beat();
    }

    /// The supervisor got somewhere.
    pub fn beat(&self) {
        self.beat_at(self.begun.elapsed());
    }

    fn beat_at(&self, now: Duration) {
        self.last_beat.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// So many more consumers run, until what this returns is dropped.
    pub fn run(&self, consumers: usize) -> Running<'_> {
        self.running.fetch_add(consumers, Ordering::Relaxed);
        self.beat();
        Running { vitals: self, consumers }
    }

    /// True while all consumers run.
    pub fn all_run(&self) -> bool {
        let expected = self.expected.load(Ordering::Relaxed);
        expected > 0 && self.running.load(Ordering::Relaxed) == expected
    }

    /// False once the supervisor did nothing for too long. One that was not started has nothing to do.
    pub fn is_alive(&self) -> bool {
        self.is_alive_at(self.begun.elapsed())
    }

    fn is_alive_at(&self, now: Duration) -> bool {
        let since = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        self.expected.load(Ordering::Relaxed) == 0 || now.saturating_sub(since) < SILENCE_MAX
    }
}

/// Consumers that run.
pub struct Running<'a> {
    vitals: &'a Vitals,
    consumers: usize,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.vitals.running.fetch_sub(self.consumers, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_does_nothing_is_noticed() {
        let vitals = Vitals::new();
        assert!(vitals.is_alive_at(2 * SILENCE_MAX) && !vitals.all_run(), "it was not started");
        vitals.expect(2);
        vitals.beat_at(2 * SILENCE_MAX);
        assert!(vitals.is_alive_at(2 * SILENCE_MAX + SILENCE_MAX / 2));
        assert!(!vitals.is_alive_at(3 * SILENCE_MAX), "it said nothing for too long");
        vitals.beat_at(3 * SILENCE_MAX);
        assert!(vitals.is_alive_at(3 * SILENCE_MAX));
    }

    #[test]
    fn consumers_count_for_as_long_as_they_run() {
        let vitals = Vitals::new();
        vitals.expect(2);
        let some = vitals.run(1);
        assert!(!vitals.all_run());
        let others = vitals.run(1);
        assert!(vitals.all_run());
        drop((some, others));
        assert!(!vitals.all_run());
    }
}
