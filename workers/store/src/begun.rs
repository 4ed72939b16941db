//! Attempts that begin with messages which were delivered before. A worker that is lost leaves its mark here: so a message with which workers are lost is
//! told from one that waited in the hands of workers when they were lost. Messages that come for the first time leave no mark, and cost nothing.

use super::{Store, StoreBackend, StoreError};

impl Store {
    /// Attempts with this message that began and did not end.
    pub async fn begun(&self, message: &str) -> Result<u32, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.begun(message).await,
            StoreBackend::Embedded(store) => store.begun(message).await,
        }
    }

    /// One more begins. Gives how many there are with it.
    pub async fn begin(&self, message: &str) -> Result<u32, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.begin(message).await,
            StoreBackend::Embedded(store) => store.begin(message).await,
        }
    }

    /// An attempt came to an end: what was lost before is told by the copy, if there is one.
    pub async fn ended(&self, message: &str) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.ended(message).await,
            StoreBackend::Embedded(store) => store.ended(message).await,
        }
    }
}
