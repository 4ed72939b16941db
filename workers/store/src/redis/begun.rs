//! See [`crate::begun`].

use super::{RedisStore, scripts::keys};
use crate::{StoreError, millis};

/// The key of a message's count.
fn key(message: &str) -> String {
    keys(&format!("b:{message}")).0
}

impl RedisStore {
    /// See [`crate::Store::begun`].
    pub async fn begun(&self, message: &str) -> Result<u32, StoreError> {
        let mut call = redis::cmd("GET");
        call.arg(key(message));
        Ok(self.link.query::<Option<u32>>(&call).await?.unwrap_or(0))
    }

    /// See [`crate::Store::begin`].
    pub async fn begin(&self, message: &str) -> Result<u32, StoreError> {
        let mut calls = redis::pipe();
        calls.cmd("INCR").arg(key(message));
        calls.cmd("PEXPIRE").arg(key(message)).arg(millis(self.options.working_life())).ignore();
        let (count,): (u32,) = self.link.pipe(&calls).await?;
        Ok(count)
    }

    /// See [`crate::Store::ended`].
    pub async fn ended(&self, message: &str) -> Result<(), StoreError> {
        let mut call = redis::cmd("DEL");
        call.arg(key(message));
        self.link.query(&call).await
    }
}
