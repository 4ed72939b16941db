//! What a relay turned out to be like, remembered for as long as it is used: how many recipients it takes in one transaction, and
//! whether it really can do what it offers.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// So many failures in a row make sure that a relay cannot do PIPELINING; one reply out of order counts that much.
const STRIKES: u32 = 2;

/// What is known of one relay.
#[derive(Debug)]
pub struct LearnedLimits {
    recipients_max: AtomicUsize,
    strikes: AtomicU32,
}

impl Default for LearnedLimits {
    fn default() -> Self {
        Self { recipients_max: AtomicUsize::new(usize::MAX), strikes: AtomicU32::new(0) }
    }
}

impl LearnedLimits {
    /// Most recipients in one transaction.
    pub fn recipients_max(&self) -> usize {
        self.recipients_max.load(Ordering::Relaxed)
    }

    /// It took so many, and not one more. True where that is news.
    pub fn takes_at_most(&self, recipients: usize) -> bool {
        recipients > 0 && self.recipients_max.fetch_min(recipients, Ordering::Relaxed) > recipients
    }

    /// Whether the envelope goes in steps.
    pub fn is_serial(&self) -> bool {
        self.strikes.load(Ordering::Relaxed) >= STRIKES
    }

    /// In one go the envelope failed, in steps it did not. Certain where commands were lost, less so where the connection went away. True where
    /// it is known from now on.
    pub fn failed_in_one_go(&self, is_certain: bool) -> bool {
        let more = if is_certain { STRIKES } else { 1 };
        let before = self.strikes.fetch_add(more, Ordering::Relaxed);
        before < STRIKES && before + more >= STRIKES
    }

    /// In one go it went well.
    pub fn went_well_in_one_go(&self) {
        if !self.is_serial() && self.strikes.load(Ordering::Relaxed) > 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
    }
}
