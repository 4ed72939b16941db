//! See [`crate::notes`].

use std::time::Duration;

use postrider_schemas::Tenant;
use rusqlite::{OptionalExtension as _, params};

use super::{EmbeddedStore, int};
use crate::{StoreError, millis};

pub(super) const DDL: &str = "
CREATE TABLE IF NOT EXISTS note (
    name TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS note_by_end ON note (expires_ms);
";

/// Notes past their life that one call takes away, at most: more than it may add, so that they do not grow.
const SWEEP_MAX: u32 = 4000;

fn key(tenant: &Tenant, name: &str) -> String {
    format!("{}/{name}", tenant.as_str())
}

impl EmbeddedStore {
    /// See [`crate::Store::note`].
    pub async fn note(
        &self,
        tenant: &Tenant,
        notes: Vec<(String, String)>,
        life: Duration,
    ) -> Result<Vec<String>, StoreError> {
        let notes: Vec<(String, String)> = notes.into_iter().map(|(name, text)| (key(tenant, &name), text)).collect();
        let life_ms = millis(life);
        self.run(move |db, now_ms| {
            let sweep = "DELETE FROM note WHERE name IN (SELECT name FROM note WHERE expires_ms < ?1 LIMIT ?2)";
            db.prepare_cached(sweep)?.execute(params![int(now_ms), SWEEP_MAX])?;
            let mut write = db.prepare_cached(
                "INSERT INTO note (name, text, expires_ms) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (name) DO UPDATE SET text = excluded.text, expires_ms = excluded.expires_ms \
                 WHERE expires_ms < ?4",
            )?;
            let mut read = db.prepare_cached("SELECT text FROM note WHERE name = ?1")?;
            let mut found = Vec::with_capacity(notes.len());
            for (name, text) in &notes {
                write.execute(params![name, text, int(now_ms.saturating_add(life_ms)), int(now_ms)])?;
                found.push(read.query_row([name], |row| row.get(0))?);
            }
            Ok(found)
        })
        .await
    }

    /// See [`crate::Store::noted`].
    pub async fn noted(&self, tenant: &Tenant, name: &str) -> Result<Option<String>, StoreError> {
        let name = key(tenant, name);
        self.look(move |db, now_ms| {
            let mut statement = db.prepare_cached("SELECT text FROM note WHERE name = ?1 AND expires_ms >= ?2")?;
            Ok(statement.query_row(params![name, int(now_ms)], |row| row.get(0)).optional()?)
        })
        .await
    }
}
