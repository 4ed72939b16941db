//! Circuits of transports, and the refusals that may open them.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{DbError, EmbeddedStore, int, uint};
use crate::{
    CIRCUIT_LIFE, REFUSALS_LIFE, REFUSALS_MAX, StoreError,
    circuit::{Circuit, CircuitAnswer, CircuitCall as AskCircuit, apply_call},
    millis,
};

pub(super) const DDL: &str = "
CREATE TABLE IF NOT EXISTS circuits (
    transport TEXT PRIMARY KEY,
    opened_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    probe_ms INTEGER NOT NULL,
    reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS systemic_refusals (
    transport TEXT NOT NULL,
    mark TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (transport, mark)
) WITHOUT ROWID;
";

impl EmbeddedStore {
    /// See [`crate::circuit::apply_call`].
    pub async fn circuit(&self, transport: &str, ask: &AskCircuit) -> Result<CircuitAnswer, StoreError> {
        let (transport, ask) = (transport.to_owned(), ask.clone());
        self.run(move |db, now_ms| {
            let (record, answer) = apply_call(read_circuit(db, &transport, now_ms)?, &ask, now_ms);
            write_circuit(db, &transport, record.as_ref())?;
            Ok(answer)
        })
        .await
    }

    /// The circuits of these transports.
    pub async fn circuits(&self, transports: &[String]) -> Result<Vec<Option<Circuit>>, StoreError> {
        let transports = transports.to_vec();
        self.look(move |db, now_ms| transports.iter().map(|one| read_circuit(db, one, now_ms)).collect()).await
    }

    /// See [`crate::Store::note_refusals`].
    pub async fn note_refusals(&self, transport: &str, marks: &[String]) -> Result<Vec<String>, StoreError> {
        let (transport, marks) = (transport.to_owned(), marks.to_vec());
        self.run(move |db, now_ms| {
            db.prepare_cached("DELETE FROM systemic_refusals WHERE at_ms < ?1")?
                .execute([int(now_ms.saturating_sub(millis(REFUSALS_LIFE)))])?;
            for mark in &marks {
                db.prepare_cached(
                    "INSERT OR REPLACE INTO systemic_refusals (transport, mark, at_ms) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![transport, mark, int(now_ms)])?;
            }
            let mut statement = db.prepare_cached("SELECT mark FROM systemic_refusals WHERE transport = ?1")?;
            let all: Vec<String> = statement.query_map([&transport], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if all.len() > REFUSALS_MAX {
                db.prepare_cached("DELETE FROM systemic_refusals WHERE transport = ?1")?.execute([&transport])?;
            }
            Ok(all)
        })
        .await
    }

    /// See [`crate::Store::forget_refusals`].
    pub async fn forget_refusals(&self, transport: &str) -> Result<(), StoreError> {
        let transport = transport.to_owned();
        self.run(move |db, _| {
            db.prepare_cached("DELETE FROM systemic_refusals WHERE transport = ?1")?.execute([&transport])?;
            Ok(())
        })
        .await
    }

    /// See [`crate::Store::have_refusals`].
    pub async fn have_refusals(&self, transports: &[String]) -> Result<Vec<bool>, StoreError> {
        let transports = transports.to_vec();
        self.look(move |db, _| {
            let mut statement =
                db.prepare_cached("SELECT EXISTS (SELECT 1 FROM systemic_refusals WHERE transport = ?1)")?;
            transports.iter().map(|one| Ok(statement.query_row([one], |row| row.get(0))?)).collect()
        })
        .await
    }
}

fn read_circuit(db: &Connection, transport: &str, now_ms: u64) -> Result<Option<Circuit>, DbError> {
    let mut statement = db.prepare_cached(
        "SELECT opened_ms, until_ms, failures, probe_ms, reason FROM circuits WHERE transport = ?1 AND until_ms > ?2",
    )?;
    let read = |row: &Row<'_>| {
        Ok(Circuit {
            opened_ms: uint(row.get(0)?),
            until_ms: uint(row.get(1)?),
            failures: row.get(2)?,
            probe_ms: uint(row.get(3)?),
            reason: row.get(4)?,
        })
    };
    let forgotten = now_ms.saturating_sub(millis(CIRCUIT_LIFE));
    Ok(statement.query_row(params![transport, int(forgotten)], read).optional()?)
}

fn write_circuit(db: &Connection, transport: &str, circuit: Option<&Circuit>) -> Result<(), DbError> {
    let Some(circuit) = circuit else {
        db.prepare_cached("DELETE FROM circuits WHERE transport = ?1")?.execute([transport])?;
        return Ok(());
    };
    db.prepare_cached(
        "INSERT OR REPLACE INTO circuits (transport, opened_ms, until_ms, failures, probe_ms, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        transport,
        int(circuit.opened_ms),
        int(circuit.until_ms),
        circuit.failures,
        int(circuit.probe_ms),
        circuit.reason,
    ])?;
    Ok(())
}
