//! Records of the ledger as rows.

use rusqlite::{Connection, OptionalExtension as _, Row, params, types::Type};

use super::{DbError, int, uint};
use crate::ledger::{Final, Record, RecordState};

/// Rows that one removal takes away at most: some milliseconds of the writer thread.
pub(super) const SWEEP_MAX: u32 = 4000;

/// The record, where there is one that is not past its life.
pub(super) fn read(db: &Connection, key: &str, now_ms: u64) -> Result<Option<Record>, DbError> {
    let mut statement = db.prepare_cached(
        "SELECT state, generation, fence, holder, lease_end_ms, payload_hash, note FROM ledger
         WHERE key = ?1 AND expires_ms > ?2",
    )?;
    Ok(statement.query_row(params![key, int(now_ms)], record_of).optional()?)
}

fn record_of(row: &Row<'_>) -> rusqlite::Result<Record> {
    let word: String = row.get(0)?;
    let unreadable = || {
        let what = "a state that this version does not know".into();
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, what)
    };
    Ok(Record {
        state: state_of(&word).ok_or_else(unreadable)?,
        generation: row.get(1)?,
        fence: uint(row.get(2)?),
        holder: row.get(3)?,
        lease_end_ms: uint(row.get(4)?),
        payload_hash: row.get(5)?,
        note: row.get(6)?,
    })
}

/// Writes a record that lives until then.
pub(super) fn write(db: &Connection, key: &str, record: &Record, expires_ms: u64) -> Result<(), DbError> {
    db.prepare_cached(
        "INSERT INTO ledger
         (key, state, generation, fence, holder, lease_end_ms, payload_hash, note, expires_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (key) DO UPDATE SET state = ?2, generation = ?3, fence = ?4, holder = ?5, lease_end_ms = ?6,
         payload_hash = ?7, note = ?8, expires_ms = ?9",
    )?
    .execute(params![
        key,
        word_of(record.state),
        record.generation,
        int(record.fence),
        record.holder,
        int(record.lease_end_ms),
        record.payload_hash,
        record.note,
        int(expires_ms),
    ])?;
    Ok(())
}

/// Removes a batch of what is past its life; how many rows.
pub(super) fn sweep(db: &Connection, now_ms: u64) -> Result<usize, DbError> {
    let mut statement = db.prepare_cached(
        "DELETE FROM ledger WHERE key IN (SELECT key FROM ledger WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2)",
    )?;
    Ok(statement.execute(params![int(now_ms), SWEEP_MAX])?)
}

fn word_of(state: RecordState) -> &'static str {
    match state {
        RecordState::Claimed => "claimed",
        RecordState::Submitting => "submitting",
        RecordState::Decided => "decided",
        RecordState::Parked => "parked",
        RecordState::Alias => "alias",
        RecordState::Final(end) => end.as_str(),
    }
}

fn state_of(word: &str) -> Option<RecordState> {
    Some(match word {
        "claimed" => RecordState::Claimed,
        "submitting" => RecordState::Submitting,
        "decided" => RecordState::Decided,
        "parked" => RecordState::Parked,
        "alias" => RecordState::Alias,
        word => RecordState::Final(Final::parse(word)?),
    })
}
