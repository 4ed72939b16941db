//! What gateways note of requests, so that each of them knows what the others took. A service, not a promise: losing notes sends nothing twice.

use std::time::Duration;

use postrider_schemas::Tenant;

use super::{Store, StoreBackend, StoreError};

impl Store {
    /// Notes texts under names of a tenant for so long, each unless its name has one already. Gives what each name has then, in order.
    pub async fn note(
        &self,
        tenant: &Tenant,
        notes: Vec<(String, String)>,
        life: Duration,
    ) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.note(tenant, notes, life).await,
            StoreBackend::Embedded(store) => store.note(tenant, notes, life).await,
        }
    }

    /// What was noted under a name of a tenant.
    pub async fn noted(&self, tenant: &Tenant, name: &str) -> Result<Option<String>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.noted(tenant, name).await,
            StoreBackend::Embedded(store) => store.noted(tenant, name).await,
        }
    }
}
