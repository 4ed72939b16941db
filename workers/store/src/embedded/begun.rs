//! See [`crate::begun`].

use rusqlite::{OptionalExtension as _, params};

use super::{EmbeddedStore, int};
use crate::{StoreError, millis};

pub(super) const DDL: &str = "
CREATE TABLE IF NOT EXISTS begun (
    message TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
";

impl EmbeddedStore {
    /// See [`crate::Store::begun`].
    pub async fn begun(&self, message: &str) -> Result<u32, StoreError> {
        let message = message.to_owned();
        self.look(move |db, _| {
            let mut statement = db.prepare_cached("SELECT count FROM begun WHERE message = ?1")?;
            Ok(statement.query_row([&message], |row| row.get(0)).optional()?.unwrap_or(0))
        })
        .await
    }

    /// See [`crate::Store::begin`].
    pub async fn begin(&self, message: &str) -> Result<u32, StoreError> {
        let (message, life_ms) = (message.to_owned(), millis(self.options.working_life()));
        self.run(move |db, now_ms| {
            // There are as many as messages were lost with workers: few.
            db.prepare_cached("DELETE FROM begun WHERE expires_ms < ?1")?.execute([int(now_ms)])?;
            let mut statement = db.prepare_cached(
                "INSERT INTO begun (message, count, expires_ms) VALUES (?1, 1, ?2) \
                 ON CONFLICT (message) DO UPDATE SET count = count + 1, expires_ms = ?2 RETURNING count",
            )?;
            let expires = int(now_ms.saturating_add(life_ms));
            Ok(statement.query_row(params![message, expires], |row| row.get(0))?)
        })
        .await
    }

    /// See [`crate::Store::ended`].
    pub async fn ended(&self, message: &str) -> Result<(), StoreError> {
        let message = message.to_owned();
        self.run(move |db, _| {
            db.prepare_cached("DELETE FROM begun WHERE message = ?1")?.execute([&message])?;
            Ok(())
        })
        .await
    }
}
