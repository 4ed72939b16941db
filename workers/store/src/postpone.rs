//! Postponing a job that waits. The ledger gives the right to attempt it to nobody before the new time; its copy comes back to the queue until then. That works
//! in one direction only: a copy that waits in the queue cannot be called earlier.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    ALIAS_HOPS, Store, StoreBackend, StoreError, cut,
    ledger::{LedgerKey, Postponed},
    transitions::PostponeTransition,
};

impl Store {
    /// Has a job wait until a later time that waits anyway, or that no worker has seen yet, and notes for people why.
    pub async fn postpone(&self, key: &LedgerKey, until: Timestamp, note: &str) -> Result<Postponed, StoreError> {
        let ahead = Duration::try_from(until.duration_since(self.now())).unwrap_or_default();
        let mut key = key.clone();
        for _ in 0..ALIAS_HOPS {
            let answer = match &self.backend {
                StoreBackend::Redis(store) => store.postpone(&key, until, ahead, cut(note)).await?,
                StoreBackend::Embedded(store) => store.postpone(&key, until, ahead, cut(note)).await?,
            };
            match answer {
                PostponeTransition::Answer(answer) => return Ok(answer),
                PostponeTransition::Follow(target) => key = LedgerKey::noted(target),
            }
        }
        Err(StoreError::Broken("the store holds aliases that lead nowhere; another program writes into it".to_owned()))
    }
}
