//! See [`crate::notes`].

use std::time::Duration;

use postrider_schemas::Tenant;

use super::RedisStore;
use crate::{StoreError, millis};

/// The notes of a tenant share a slot of a cluster: those of a request are written in one call.
fn key(tenant: &Tenant, name: &str) -> String {
    format!("postrider:{{note/{}}}:{name}", tenant.as_str())
}

impl RedisStore {
    /// See [`crate::Store::note`].
    pub async fn note(
        &self,
        tenant: &Tenant,
        notes: Vec<(String, String)>,
        life: Duration,
    ) -> Result<Vec<String>, StoreError> {
        let mut calls = redis::pipe();
        for (name, text) in &notes {
            let key = key(tenant, name);
            calls.cmd("SET").arg(&key).arg(text).arg("NX").arg("PX").arg(millis(life)).ignore();
            calls.cmd("GET").arg(&key);
        }
        let found: Vec<Option<String>> = self.link.pipe(&calls).await?;
        // Nothing where it ended between the two commands: then it is what was just said.
        Ok(found.into_iter().zip(notes).map(|(found, (_, text))| found.unwrap_or(text)).collect())
    }

    /// See [`crate::Store::noted`].
    pub async fn noted(&self, tenant: &Tenant, name: &str) -> Result<Option<String>, StoreError> {
        let mut call = redis::cmd("GET");
        call.arg(key(tenant, name));
        self.link.query(&call).await
    }
}
