//! Successes that the store did not hear of because it was away. They are told again when it is back; meanwhile the messages are
//! acknowledged, so that nothing turns a yes into another try.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::store::{Final, Lease, Store, Unfinished};

/// Most marks kept. Beyond it a mark is dropped: what it protects against is a second publish of the same job.
const KEPT_MAX: usize = 100_000;

/// The marks that are still to be told.
pub struct PendingReceipts {
    store: Store,
    open: TaskTracker,
}

impl PendingReceipts {
    /// Nothing to tell yet.
    pub fn new(store: Store) -> Self {
        Self { store, open: TaskTracker::new() }
    }

    /// Tells the store of a success as soon as it can be told.
    pub fn sent(&self, lease: Lease) {
        if self.open.len() >= KEPT_MAX {
            warn!(kept = KEPT_MAX, "Too many successes wait for the store; one is not recorded");
            return;
        }
        let store = self.store.clone();
        self.open.spawn(async move {
            let mut lease = lease;
            loop {
                store.back().await;
                match store.finish(lease, Final::Sent).await {
                    Ok(_) => return info!("A success is recorded after all"),
                    Err(Unfinished { lease: back, error }) if error.is_down() => lease = back,
                    Err(Unfinished { error, .. }) => return warn!(%error, "A success is not recorded"),
                }
            }
        });
    }

    /// How many successes the store has yet to hear of.
    pub fn pending(&self) -> usize {
        self.open.len()
    }

    /// Waits for what is left, up to a limit.
    pub async fn flush(&self, limit: Duration) {
        self.open.close();
        if timeout(limit, self.open.wait()).await.is_err() {
            info!(left = self.open.len(), "Successes that the store never heard of");
        }
    }
}
