//! The limiter's calls: admission, shaping rules, orders, and a look at what there is. Each is one atomic step of the store by the
//! store's clock; the rules are those of [`postrider_policy::rate_limit`].
//!
//! A call whose answer was lost is made again: at worst a token or a slot is given out that nobody uses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use postrider_policy::rate_limit::{
    admit::{Admission, AdmissionRequest},
    connections::LeaseRequest,
    scope::Scope,
    shaping_rule::{LimitCommand, RuleCall, ShapingEffect},
};

use super::{Claim, ClaimRequest, Store, StoreBackend, StoreError};

/// Every scope that the store knows, at a time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overview {
    /// The store's clock in microseconds.
    pub now: f64,
    /// Name and state, by name.
    pub scopes: Vec<(String, Scope)>,
}

impl Store {
    /// The same store with a clock of the caller's for the limiter, in microseconds: for tests that compare stores step by step.
    #[must_use]
    pub fn with_limiter_clock(self, clock: Arc<AtomicU64>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// Asks whether a message may go now, and charges every scope or none.
    pub async fn admit(&self, ask: &AdmissionRequest) -> Result<Admission, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.admit(ask, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.admit(ask, self.limiter_now()).await,
        }
    }

    /// Asks for the right to attempt a job, and where it is granted whether the job may go now: one round trip, but in a cluster. No
    /// admission where nothing was asked, the right was not granted, or the question has to be a call of its own.
    pub async fn claim_and_admit(
        &self,
        request: &ClaimRequest,
        ask: Option<&AdmissionRequest>,
    ) -> Result<(Claim, Option<Admission>), StoreError> {
        match (&self.backend, ask) {
            (StoreBackend::Redis(store), Some(ask)) if store.asks_in_one_call() => {
                store.claim_and_admit(request, self.holder(), ask, self.limiter_now()).await
            }
            _ => Ok((self.claim(request).await?, None)),
        }
    }

    /// Slows a scope down after an answer.
    pub async fn react(&self, scope: &str, call: &RuleCall) -> Result<ShapingEffect, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.react(scope, call, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.react(scope, call, self.limiter_now()).await,
        }
    }

    /// Carries an operator's order out.
    pub async fn order(&self, scope: &str, order: &LimitCommand) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.order(scope, order, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.order(scope, order, self.limiter_now()).await,
        }
    }

    /// What is known of these scopes, or of all.
    pub async fn overview(&self, only: Option<&[String]>) -> Result<Overview, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.overview(only, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.overview(only, self.limiter_now()).await,
        }
    }

    /// What was used of these scopes, and whether they are paused, cut or held to another rate; who waits and the buckets may be left out. Costs the
    /// same however many wait.
    pub async fn counts(&self, names: &[String]) -> Result<Overview, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.counts(names, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.counts(names, self.limiter_now()).await,
        }
    }

    /// The scopes that are paused, cut, or held to an operator's rate at present.
    pub async fn overrides(&self) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.overrides(self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.overrides(self.limiter_now()).await,
        }
    }

    /// Says that a worker lives for so long, and gives how many do.
    pub async fn presence(&self, worker: &str, life: Duration) -> Result<u32, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.presence(worker, life).await,
            StoreBackend::Embedded(store) => store.presence(worker, life).await,
        }
    }

    /// Renews a worker's lease on connections to a transport and gives its part.
    pub async fn connections(&self, transport: &str, want: &LeaseRequest) -> Result<u32, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.connections(transport, want, self.limiter_now()).await,
            StoreBackend::Embedded(store) => store.connections(transport, want, self.limiter_now()).await,
        }
    }

    fn limiter_now(&self) -> Option<u64> {
        self.clock.as_ref().map(|clock| clock.load(Ordering::Relaxed))
    }
}
