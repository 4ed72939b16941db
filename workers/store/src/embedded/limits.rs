//! The limiter in the file: a row per scope with its state as JSON. Every call is one operation of the file's writer thread, so that all
//! scopes are charged in one transaction or none. The rules are the pure functions themselves.

use std::{collections::BTreeMap, time::Duration};

use postrider_policy::rate_limit::{
    admit::{self, Admission, AdmissionRequest},
    connections::{self, ConnectionLease, LeaseRequest},
    scope::Scope,
    shaping_rule::{self, LimitCommand, RuleCall, ShapingEffect},
};
use postrider_producer::embedded::DbError;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::EmbeddedStore;
use crate::{StoreError, limiter::Overview};

pub(super) const DDL: &str = "
CREATE TABLE IF NOT EXISTS limits (
    scope TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    disturbed_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS limits_by_disturbance ON limits (disturbed_us);
CREATE INDEX IF NOT EXISTS limits_by_end ON limits (expires_us);
CREATE TABLE IF NOT EXISTS workers (
    worker TEXT PRIMARY KEY,
    alive_until_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    transport TEXT NOT NULL,
    worker TEXT NOT NULL,
    granted INTEGER NOT NULL,
    wanted INTEGER NOT NULL,
    spare INTEGER NOT NULL,
    since_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL,
    PRIMARY KEY (transport, worker)
) WITHOUT ROWID;
";

/// What is over lives on for an hour, so that a quiet scope keeps its counts.
const GRACE_US: f64 = 3.6e9;
/// Scopes that are forgotten at once: the file is not to be busy with it for long.
const GONE_MAX: i64 = 2000;

impl EmbeddedStore {
    /// See [`crate::Store::admit`].
    pub async fn admit(&self, ask: &AdmissionRequest, now: Option<u64>) -> Result<Admission, StoreError> {
        let ask = ask.clone();
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            let read_one = |demand: &postrider_policy::rate_limit::scope::ScopeLimits| read(db, &demand.scope, now);
            let mut scopes = ask.demands.iter().map(read_one).collect::<Result<Vec<_>, _>>()?;
            let before = scopes.clone();
            let admission = admit::admit(&mut scopes, &ask, now);
            for ((demand, mut scope), before) in ask.demands.iter().zip(scopes).zip(before) {
                if scope != before {
                    scope.forget_tenants(now);
                    write(db, &demand.scope, &scope, now)?;
                }
            }
            Ok(admission)
        })
        .await
    }

    /// See [`crate::Store::react`].
    pub async fn react(&self, scope: &str, call: &RuleCall, now: Option<u64>) -> Result<ShapingEffect, StoreError> {
        let (name, call) = (scope.to_owned(), call.clone());
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            let mut scope = read(db, &name, now)?;
            let reacted = shaping_rule::react(&mut scope, &call, now);
            write(db, &name, &scope, now)?;
            Ok(reacted)
        })
        .await
    }

    /// See [`crate::Store::order`].
    pub async fn order(&self, scope: &str, order: &LimitCommand, now: Option<u64>) -> Result<(), StoreError> {
        let (name, order) = (scope.to_owned(), order.clone());
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            let mut scope = read(db, &name, now)?;
            shaping_rule::order(&mut scope, &order, now);
            write(db, &name, &scope, now)
        })
        .await
    }

    /// See [`crate::Store::overview`]. Scopes that are forgotten are removed on the way.
    pub async fn overview(&self, only: Option<&[String]>, now: Option<u64>) -> Result<Overview, StoreError> {
        let only = only.map(<[String]>::to_vec);
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            db.prepare_cached("DELETE FROM limits WHERE expires_us <= ?1")?.execute([micros(now)])?;
            let mut statement = db.prepare_cached("SELECT scope, state FROM limits ORDER BY scope")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            let mut scopes = Vec::new();
            for row in rows {
                let (name, state) = row?;
                if only.as_ref().is_none_or(|names| names.contains(&name)) {
                    scopes.push((name, parse(&state)));
                }
            }
            Ok(Overview { now, scopes })
        })
        .await
    }

    /// See [`crate::Store::counts`].
    pub async fn counts(&self, names: &[String], now: Option<u64>) -> Result<Overview, StoreError> {
        let names = names.to_vec();
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            let scopes = names.iter().map(|name| Ok((name.clone(), read(db, name, now)?)));
            Ok(Overview { now, scopes: scopes.collect::<Result<_, DbError>>()? })
        })
        .await
    }

    /// See [`crate::Store::overrides`].
    pub async fn overrides(&self, now: Option<u64>) -> Result<Vec<String>, StoreError> {
        self.look(move |db, now_ms| {
            let mut statement = db.prepare_cached("SELECT scope FROM limits WHERE disturbed_us > ?1 ORDER BY scope")?;
            let rows = statement.query_map([micros(clock(now, now_ms * 1000))], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// See [`crate::Store::presence`].
    pub async fn presence(&self, worker: &str, life: Duration) -> Result<u32, StoreError> {
        let worker = worker.to_owned();
        self.run_us(move |db, now_us| {
            let now = clock(None, now_us);
            db.prepare_cached("DELETE FROM workers WHERE alive_until_us <= ?1")?.execute([micros(now)])?;
            // Every few seconds somebody passes here: a list of a million domains leaves nothing behind for ever.
            let gone = "DELETE FROM limits WHERE scope IN (SELECT scope FROM limits WHERE expires_us <= ?1 LIMIT ?2)";
            db.prepare_cached(gone)?.execute([micros(now), GONE_MAX])?;
            db.prepare_cached("INSERT OR REPLACE INTO workers (worker, alive_until_us) VALUES (?1, ?2)")?
                .execute(params![worker, micros(now + life.as_secs_f64() * 1e6)])?;
            Ok(db.prepare_cached("SELECT count(*) FROM workers")?.query_row([], |row| row.get(0))?)
        })
        .await
    }

    /// See [`crate::Store::connections`].
    pub async fn connections(&self, transport: &str, want: &LeaseRequest, now: Option<u64>) -> Result<u32, StoreError> {
        let (transport, want) = (transport.to_owned(), want.clone());
        self.run_us(move |db, now_us| {
            let now = clock(now, now_us);
            let mut holders = BTreeMap::new();
            let mut statement = db.prepare_cached(
                "SELECT worker, granted, wanted, spare, since_us, until_us FROM leases WHERE transport = ?1",
            )?;
            let rows = statement.query_map([&transport], |row| {
                #[expect(clippy::cast_precision_loss, reason = "exact until the year 2255")]
                let time = |column: usize| row.get::<_, i64>(column).map(|us| us as f64);
                let (granted, wanted, spare) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok((row.get(0)?, ConnectionLease { granted, wanted, spare, since: time(4)?, until: time(5)? }))
            })?;
            for row in rows {
                let (worker, held): (String, ConnectionLease) = row?;
                holders.insert(worker, held);
            }
            let part = connections::share(&mut holders, &want, now);
            db.prepare_cached("DELETE FROM leases WHERE transport = ?1 AND until_us <= ?2")?
                .execute(params![transport, micros(now)])?;
            if let Some(held) = holders.get(&want.worker) {
                let (since, until) = (micros(held.since), micros(held.until));
                db.prepare_cached("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                    .execute(params![transport, want.worker, held.granted, held.wanted, held.spare, since, until])?;
            }
            Ok(part)
        })
        .await
    }
}

fn clock(now: Option<u64>, file_us: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact until the year 2255")]
    let exact = |us: u64| us as f64;
    exact(now.unwrap_or(file_us))
}

fn micros(time: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    let whole = time as i64;
    whole
}

/// A state that cannot be read is that of another version: limits begin anew rather than stop the mail.
fn parse(state: &str) -> Scope {
    serde_json::from_str(state).unwrap_or_default()
}

fn read(db: &Connection, name: &str, now: f64) -> Result<Scope, DbError> {
    let mut statement = db.prepare_cached("SELECT state FROM limits WHERE scope = ?1 AND expires_us > ?2")?;
    let found: Option<String> = statement.query_row(params![name, micros(now)], |row| row.get(0)).optional()?;
    Ok(found.map(|state| parse(&state)).unwrap_or_default())
}

fn write(db: &Connection, name: &str, scope: &Scope, now: f64) -> Result<(), DbError> {
    let state = serde_json::to_string(scope).unwrap_or_default();
    let expires = micros(scope.ends(now) + GRACE_US);
    db.prepare_cached(
        "INSERT OR REPLACE INTO limits (scope, state, disturbed_us, expires_us) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![name, state, micros(scope.disturbed_until()), expires])?;
    Ok(())
}
