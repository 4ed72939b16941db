//! The store comes and goes: what is asked of this worker alone meanwhile, and what the store hears when it is back.

use std::{collections::HashSet, time::Duration};

use postrider_schemas::Lane;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Limiter;
use crate::{
    policy::rate_limit::admit::{Admission, AdmissionRequest, HOLD_US},
    store::{StoreError, limiter::Overview},
};

/// Scopes whose states one look learns: two calls. Where more are not as configured, the next looks learn the others.
const LEARNED_MAX: usize = 200;

impl Limiter {
    /// A share of the limits for transactional mail while the store is away, for a bounded time. Bulk mail waits for the store.
    pub(super) fn alone(&self, ask: &AdmissionRequest, error: &StoreError) -> Option<Admission> {
        let now = Instant::now();
        if ask.lane == Lane::Bulk {
            self.0.fallback.begun(now);
            return None;
        }
        self.0.fallback.admit(ask, error, now)
    }

    /// While a store that was away for long hears what every worker sent without it, nobody asks it: its buckets are too full.
    pub(super) fn while_it_settles(&self, ask: &AdmissionRequest) -> Option<Admission> {
        let now = Instant::now();
        let left = self.settles(now)?;
        if ask.lane == Lane::Transactional {
            return self.0.fallback.admit_meanwhile(ask, now);
        }
        let wait_us = left.as_secs_f64() * 1e6;
        Some(if ask.queue {
            let park_us = wait_us.min(HOLD_US);
            Admission::Park { park_us, slot_us: park_us, scope: 0 }
        } else {
            Admission::Full { wait_us, scope: 0 }
        })
    }

    /// Whether the store is better not asked along with a claim: this worker has something to tell it first, or others have.
    pub(super) fn has_to_settle(&self) -> bool {
        !self.0.store.is_up() || self.settles(Instant::now()).is_some() || self.0.fallback.has_unreported()
    }

    /// For how long the store settles. One that was away and seems to be there begins to.
    fn settles(&self, now: Instant) -> Option<Duration> {
        if self.0.store.is_up() {
            self.0.fallback.ended(now);
        }
        self.0.fallback.settles(now)
    }

    /// Tells the store what went out without it.
    pub(super) async fn settle(&self) {
        if !self.0.fallback.has_unreported() || !self.0.store.is_up() {
            return;
        }
        let _teller = self.0.teller.lock().await;
        if !self.0.fallback.has_unreported() || !self.0.store.is_up() {
            return;
        }
        let unreported = self.0.fallback.unreported(Instant::now());
        match if unreported.is_empty() { Ok(()) } else { self.0.store.reconcile(&unreported).await } {
            Ok(()) => debug!(scopes = unreported.len(), "The store heard what went out without it"),
            Err(error) if error.is_down() => return,
            // As with a question that it refuses: it must not stop the mail.
            Err(error) => warn!(%error, "The store refused to hear what went out without it"),
        }
        self.0.fallback.reported();
    }

    /// Learns how the scopes that are not as configured differ, for a time without the store. One call more where there are any.
    pub(super) async fn learn(&self, overrides: &HashSet<String>) {
        let names = self.0.fallback.to_be_learned(overrides.iter().cloned().collect(), LEARNED_MAX);
        let overview = if names.is_empty() { Ok(Overview::default()) } else { self.0.store.counts(&names).await };
        // What is not told now is asked for again with the next look.
        if let Ok(overview) = overview {
            self.0.fallback.learn(overview, |name| overrides.contains(name), Instant::now());
        }
    }

    /// For a rate over all workers: how many there are, or one where nobody knows.
    pub(super) fn workers(&self) -> f64 {
        self.0.fallback.known_workers().unwrap_or(1.0)
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
