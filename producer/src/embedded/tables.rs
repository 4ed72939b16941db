//! The shared layout of messages and events in the file, and the one way in for a fresh job.
//!
//! Times are milliseconds since 1970 (UTC) by the file's clock. `meta` is a JSON object of the pairs of `Meta::to_pairs`. A free message has no `owner`;
//! a message of an owner whose `lease_until` passed is free again, to others. `fence` counts how often it was taken: who took it before
//! changes nothing any more, whatever clocks say.

use postrider_schemas::{Job, Meta, wire};
use rusqlite::{Connection, params};

use super::{db::Db, error::DbError};

/// Makes the tables of the queue; changes nothing where they are, but for an index of earlier files that others took the place of.
pub const DDL: &str = "
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL CHECK (queue IN ('jobs', 'due', 'dead', 'hold', 'suspect')),
    lane TEXT,
    due_at INTEGER NOT NULL DEFAULT 0,
    message_id TEXT,
    type TEXT,
    meta TEXT NOT NULL DEFAULT '{}',
    published_at INTEGER NOT NULL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    lease_until INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    body BLOB NOT NULL
);
DROP INDEX IF EXISTS message_by_turn;
CREATE INDEX IF NOT EXISTS message_free ON message (queue, lane, due_at, id) WHERE owner IS NULL;
CREATE INDEX IF NOT EXISTS message_in_hand ON message (owner) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS message_by_lease ON message (queue, lane, lease_until) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    json BLOB NOT NULL,
    at INTEGER NOT NULL
);
";

/// Makes the tables, and adds what files of earlier versions lack.
pub async fn ensure(db: &Db) -> Result<(), DbError> {
    db.call(|db| {
        db.execute_batch(DDL)?;
        let has_fence: bool = db.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_table_info('message') WHERE name = 'fence')",
            [],
            |row| row.get(0),
        )?;
        if !has_fence {
            db.execute_batch("ALTER TABLE message ADD COLUMN fence INTEGER NOT NULL DEFAULT 0")?;
        }
        Ok(())
    })
    .await
}

/// Meta data as the `meta` column holds it.
pub fn meta_text(meta: &Meta) -> String {
    let pairs = meta.to_pairs().into_iter().map(|(name, value)| (name.to_owned(), value.into()));
    serde_json::Value::Object(pairs.collect()).to_string()
}

/// Reads the `meta` column. What cannot be read counts as absent, as with headers.
pub fn meta_of(text: &str) -> Meta {
    let pairs: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    Meta::from_pairs(pairs.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
}

/// A fresh job as a row, encoded before the writer thread sees it.
pub(super) struct Fresh {
    lane: &'static str,
    message_id: String,
    meta: String,
    body: bytes::Bytes,
}

impl Fresh {
    pub(super) fn new(job: &Job, meta: &Meta) -> Self {
        Self {
            lane: job.lane().as_str(),
            message_id: job.id().to_string(),
            meta: meta_text(meta),
            body: wire::encode(job),
        }
    }

    pub(super) fn insert(&self, db: &Connection, now_ms: i64) -> Result<(), DbError> {
        db.prepare_cached(
            "INSERT INTO message (queue, lane, message_id, type, meta, published_at, body)
             VALUES ('jobs', ?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            self.lane,
            self.message_id,
            wire::JOB_TYPE,
            self.meta,
            now_ms,
            self.body.as_ref()
        ])?;
        Ok(())
    }
}
