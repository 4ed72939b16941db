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
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat.store(now, Ordering::Relaxed);
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
        let since = Duration::from_millis(self.last_beat.load(Ordering::Relaxed));
        self.expected.load(Ordering::Relaxed) == 0 || self.begun.elapsed().saturating_sub(since) < SILENCE_MAX
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

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_does_nothing_is_noticed() {
        let vitals = Vitals::new();
        tokio::time::advance(2 * SILENCE_MAX).await;
        assert!(vitals.is_alive() && !vitals.all_run(), "it was not started");
        vitals.expect(2);
        tokio::time::advance(SILENCE_MAX / 2).await;
        assert!(vitals.is_alive());
        let some = vitals.run(1);
        assert!(!vitals.all_run());
        let others = vitals.run(1);
        assert!(vitals.all_run());
        tokio::time::advance(SILENCE_MAX).await;
        assert!(!vitals.is_alive(), "it said nothing for too long");
        vitals.beat();
        assert!(vitals.is_alive());
        drop((some, others));
        assert!(!vitals.all_run());
    }
}
