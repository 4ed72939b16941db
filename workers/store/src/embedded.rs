//! The ledger in a SQLite file, shared by the processes of one machine. Every call is one operation of the file's writer thread:
//! it reads a record, asks [`super::transitions`] and writes what they say, all in one transaction. Decides nothing itself.
//!
//! # A file that was made anew
//! The epoch is the time at which the ledger began to remember, written with its tables. As in Redis, a message that was delivered
//! before, has no record and was not published after the epoch is `Unknown`. A file does not lose records by itself: this holds
//! for a file that somebody removed or emptied while the queue kept its messages. Not covered: an older copy of the file put in its place.
//!
//! # Space
//! Records live as long as in Redis. What is past its life counts as absent at once and is removed in small batches, on opening
//! and now and then with claims; the file keeps its size and uses the room again.

mod begun;
mod circuits;
mod limits;
mod notes;
mod records;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use postrider_producer::embedded::{Db, DbError};
use rusqlite::{Connection, OptionalExtension as _, params};

use self::records::{read, sweep, write};
use super::{
    BEAT_LIFE, StoreError, StoreOptions,
    ledger::{
        Claim, ClaimRequest, Final, Lease, LeaseFacts, LedgerKey, LedgerStep, LedgerStepResult, Record, Reopened,
    },
    millis,
    transitions::{self, CancelTransition, ClaimInput, ClaimVerdict, PostponeTransition, RecordChange},
};

const DDL: &str = "
CREATE TABLE IF NOT EXISTS ledger (
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    generation INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    holder TEXT NOT NULL,
    lease_end_ms INTEGER NOT NULL,
    payload_hash TEXT NOT NULL,
    note TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_by_expiry ON ledger (expires_ms);
CREATE TABLE IF NOT EXISTS worker_alive (
    worker TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    text TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger_epoch (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    since_ms INTEGER NOT NULL,
    alive_ms INTEGER NOT NULL
);
";

/// So many claims from one removal to the next. A job leaves two records at most, so that removal is faster than growth.
const SWEEP_EVERY: u64 = 1000;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The ledger in a file. Clones share it.
#[derive(Clone)]
pub struct EmbeddedStore {
    db: Db,
    options: StoreOptions,
    shared: Arc<EmbeddedStoreInner>,
}

struct EmbeddedStoreInner {
    up: AtomicBool,
    claims: AtomicU64,
}

impl EmbeddedStore {
    /// Opens the ledger in `file` (what follows `embedded:`), and makes it where it is missing. Its folder must exist.
    pub async fn connect(file: &str, options: StoreOptions) -> Result<Self, StoreError> {
        if file.is_empty() {
            return Err(StoreError::Broken("store.url: the file is missing: embedded:FILE".to_owned()));
        }
        let file = file.to_owned();
        if !options.create {
            let db = Db::open_existing(&file, "ledger").await.map_err(|error| explain(&error))?;
            let shared = EmbeddedStoreInner { up: AtomicBool::new(true), claims: AtomicU64::new(0) };
            return Ok(Self { db, options, shared: Arc::new(shared) });
        }
        let opened = tokio::task::spawn_blocking(move || Db::open(&file)).await;
        let db = opened.unwrap_or(Err(DbError::Panicked)).map_err(|error| explain(&error))?;
        let shared = EmbeddedStoreInner { up: AtomicBool::new(true), claims: AtomicU64::new(0) };
        let store = Self { db, options, shared: Arc::new(shared) };
        store.run(make_tables).await?;
        store.run(sweep).await?;
        Ok(store)
    }

    /// The file's clock, in ms.
    pub fn now_ms(&self) -> u64 {
        uint(self.db.clock().now_ms())
    }

    /// False from a call that failed to one that did not. Calls are made nevertheless.
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// Resolves when the file can be written.
    pub async fn back(&self) {
        let mut pause = PAUSE_MIN;
        while !self.is_up() {
            // First: whoever repeats a call that fails while pings do not must not run hot.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            // A success is what the loop looks at.
            let _ = self.ping().await;
        }
    }

    /// See [`super::Store::claim`].
    pub async fn claim(&self, request: &ClaimRequest, holder: String) -> Result<Claim, StoreError> {
        let facts = LeaseFacts {
            holder,
            fence: 0,
            generation: request.generation,
            payload_hash: request.payload_hash.to_hex(),
        };
        let asking = facts.clone();
        let redelivered = request.redelivered;
        let published_ms = request.published_at.map(|time| self.told_by_the_file(time));
        let lease_ms = millis(self.options.lease);
        let (verdict, fence) = self
            .change(&request.key, self.options.working_life(), move |record, db, now_ms| {
                let ask = ClaimInput {
                    payload_hash: &asking.payload_hash,
                    generation: asking.generation,
                    redelivered,
                    published_ms,
                    holder: &asking.holder,
                    lease_ms,
                };
                // Only a claim without a record asks for it.
                let epoch_ms = if record.is_none() { epoch(db, now_ms)? } else { 0 };
                let (written, verdict) = transitions::claim(record, &ask, epoch_ms, now_ms);
                let fence = written.as_ref().map_or(0, |record| record.fence);
                Ok((written, (verdict, fence)))
            })
            .await?;
        self.sweep_now_and_then().await;
        let lease = || Lease { key: request.key.clone(), facts: LeaseFacts { fence, ..facts } };
        Ok(match verdict {
            ClaimVerdict::Go => Claim::Go(lease()),
            ClaimVerdict::Unknown(call) => Claim::Unknown { lease: lease(), call },
            ClaimVerdict::Decided(decision) => Claim::Decided { lease: lease(), decision },
            ClaimVerdict::Busy(ms) => Claim::Busy { retry_in: Duration::from_millis(ms) },
            ClaimVerdict::Settled(end) => Claim::Settled(end),
            ClaimVerdict::Stale => Claim::Stale,
            ClaimVerdict::Conflict => Claim::Conflict,
        })
    }

    /// See [`transitions::step`].
    pub async fn step(&self, lease: &Lease, step: LedgerStep<'_>) -> Result<LedgerStepResult, StoreError> {
        let life = match step {
            LedgerStep::Finish(end, _) => self.options.life_of(end),
            _ => self.options.working_life(),
        };
        let (step, text) = apart(step);
        let (facts, lease_ms) = (lease.facts.clone(), millis(self.options.lease));
        self.change(&lease.key, life, move |record, _, now_ms| {
            let step = match step {
                LedgerStep::Decide(_) => LedgerStep::Decide(&text),
                LedgerStep::Submitting(_) => LedgerStep::Submitting(&text),
                LedgerStep::Parked(_) => LedgerStep::Parked(&text),
                LedgerStep::Finish(end, _) => LedgerStep::Finish(end, &text),
                other => other,
            };
            Ok(transitions::step(record, &facts, step, lease_ms, now_ms))
        })
        .await
    }

    /// See [`transitions::cancel`].
    pub async fn cancel(&self, key: &LedgerKey) -> Result<CancelTransition, StoreError> {
        self.change(key, self.options.working_life(), |record, _, _| Ok(transitions::cancel(record))).await
    }

    /// See [`transitions::postpone`].
    pub async fn postpone(
        &self,
        key: &LedgerKey,
        until: Timestamp,
        ahead: Duration,
        note: &str,
    ) -> Result<PostponeTransition, StoreError> {
        let (until_ms, note) = (self.told_by_the_file(until), note.to_owned());
        self.change(key, self.options.life_of_postponed(ahead), move |record, _, now_ms| {
            Ok(transitions::postpone(record, until_ms, &note, now_ms))
        })
        .await
    }

    /// See [`transitions::alias`].
    pub async fn alias(&self, id: &LedgerKey, target: &LedgerKey) -> Result<Option<Final>, StoreError> {
        let target = target.as_str().to_owned();
        self.change(id, self.options.working_life(), move |record, _, _| Ok(transitions::alias(record, &target))).await
    }

    /// See [`transitions::reopen`].
    pub async fn reopen(&self, key: &LedgerKey, generation: u32) -> Result<Reopened, StoreError> {
        self.change(key, self.options.working_life(), move |record, _, now_ms| {
            Ok(transitions::reopen(record, generation, now_ms))
        })
        .await
    }

    /// What is remembered of a job.
    pub async fn get(&self, key: &LedgerKey) -> Result<Option<Record>, StoreError> {
        let key = key.as_str().to_owned();
        self.run(move |db, now_ms| read(db, &key, now_ms)).await
    }

    /// See [`super::Store::beat`].
    pub async fn beat(&self, worker: &str, text: &str) -> Result<(), StoreError> {
        let (worker, text) = (worker.to_owned(), text.to_owned());
        self.run(move |db, now_ms| {
            db.prepare_cached("DELETE FROM worker_alive WHERE at_ms < ?1")?
                .execute([int(now_ms.saturating_sub(millis(BEAT_LIFE)))])?;
            db.prepare_cached("INSERT OR REPLACE INTO worker_alive (worker, at_ms, text) VALUES (?1, ?2, ?3)")?
                .execute(params![worker, int(now_ms), text])?;
            Ok(())
        })
        .await
    }

    /// See [`super::Store::beats`].
    pub async fn beats(&self) -> Result<Vec<String>, StoreError> {
        self.run(|db, now_ms| {
            let mut statement = db.prepare_cached("SELECT text FROM worker_alive WHERE at_ms >= ?1")?;
            let rows = statement.query_map([int(now_ms.saturating_sub(millis(BEAT_LIFE)))], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// See [`super::Store::unbeat`].
    pub async fn unbeat(&self, worker: &str) -> Result<(), StoreError> {
        let worker = worker.to_owned();
        self.run(move |db, _| {
            db.prepare_cached("DELETE FROM worker_alive WHERE worker = ?1")?.execute([&worker])?;
            Ok(())
        })
        .await
    }

    /// Asks for a sign of life: a write, because a full disk can still be read.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.run(|db, now_ms| {
            epoch(db, now_ms)?;
            db.prepare_cached("UPDATE ledger_epoch SET alive_ms = ?1")?.execute([int(now_ms)])?;
            Ok(())
        })
        .await
    }

    /// Reads the record, asks `transition`, writes what it says.
    async fn change<T: Send + 'static>(
        &self,
        key: &LedgerKey,
        life: Duration,
        transition: impl Fn(Option<&Record>, &Connection, u64) -> Result<RecordChange<T>, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (key, life_ms) = (key.as_str().to_owned(), millis(life));
        self.run(move |db, now_ms| {
            let record = read(db, &key, now_ms)?;
            let (written, answer) = transition(record.as_ref(), db, now_ms)?;
            if let Some(record) = written {
                write(db, &key, &record, now_ms.saturating_add(life_ms))?;
            }
            Ok(answer)
        })
        .await
    }

    /// Runs an operation, with the time of the file in ms.
    async fn run<T: Send + 'static>(
        &self,
        mut operation: impl FnMut(&Connection, u64) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_us(move |db, now_us| operation(db, now_us / 1000)).await
    }

    /// The same with microseconds. The clock is read when its turn has come: what waited must not give out a lease that is half over.
    async fn run_us<T: Send + 'static>(
        &self,
        mut operation: impl FnMut(&Connection, u64) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let clock = self.db.clock().clone();
        let result = self.db.call(move |db| operation(db, uint(clock.now_us()))).await.map_err(|error| explain(&error));
        match &result {
            Ok(_) => self.shared.up.store(true, Ordering::Relaxed),
            Err(StoreError::Down(_)) => self.shared.up.store(false, Ordering::Relaxed),
            Err(StoreError::Broken(_)) => {}
        }
        result
    }

    /// The same for what changes nothing. It waits for nobody, and its success does not say that the file can be written.
    async fn look<T: Send + 'static>(
        &self,
        mut operation: impl FnMut(&Connection, u64) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let clock = self.db.clock().clone();
        self.db.look(move |db| operation(db, uint(clock.now_ms()))).await.map_err(|error| explain(&error))
    }

    /// A time of the wall clock as the file's clock tells it, in ms. Before 1970 is before every epoch.
    fn told_by_the_file(&self, time: Timestamp) -> u64 {
        let age_ms = Timestamp::now().as_millisecond().saturating_sub(time.as_millisecond());
        uint(self.db.clock().now_ms().saturating_sub(age_ms))
    }

    async fn sweep_now_and_then(&self) {
        let before = self.shared.claims.fetch_add(1, Ordering::Relaxed);
        if before % SWEEP_EVERY == SWEEP_EVERY - 1
            && let Err(error) = self.run(sweep).await
        {
            // The claim that came before it stands; the next removal takes more.
            tracing::debug!(%error, "Old records of the ledger were not removed");
        }
    }
}

/// A step that borrows nothing, and its text.
fn apart(step: LedgerStep<'_>) -> (LedgerStep<'static>, String) {
    let bare = match step {
        LedgerStep::Decide(text) => return (LedgerStep::Decide(""), text.to_owned()),
        LedgerStep::Submitting(call) => return (LedgerStep::Submitting(""), call.to_owned()),
        LedgerStep::Withdraw => LedgerStep::Withdraw,
        LedgerStep::Renew => LedgerStep::Renew,
        LedgerStep::Parked(note) => return (LedgerStep::Parked(""), note.to_owned()),
        LedgerStep::Release => LedgerStep::Release,
        LedgerStep::Finish(end, note) => return (LedgerStep::Finish(end, ""), note.to_owned()),
    };
    (bare, String::new())
}

/// Says what is wrong and what to do.
fn explain(error: &DbError) -> StoreError {
    let text = |advice: &str| format!("embedded store: {error}; {advice}");
    match error {
        DbError::Full => StoreError::Down(text("make room on the disk of the file in store.url")),
        DbError::Busy => StoreError::Down(text("end the program that keeps the file in store.url locked")),
        DbError::Io(_) => StoreError::Down(text("check the disk and the rights of the file in store.url")),
        DbError::Open { .. } => {
            StoreError::Broken(text("check the path in store.url, that its folder exists, and its rights"))
        }
        DbError::Missing { .. } => StoreError::Broken(error.to_string()),
        DbError::Foreign { .. } => StoreError::Broken(text("name another file in store.url")),
        DbError::Newer { .. } => StoreError::Broken(text("use the newer version, or another file in store.url")),
        DbError::Sql(_) => StoreError::Broken(text("are processes of different versions at the file in store.url?")),
        DbError::Panicked | DbError::Closed => StoreError::Broken(text("start this process again")),
    }
}

/// SQLite has no unsigned numbers; none of ours comes near the limit.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn uint(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn make_tables(db: &Connection, now_ms: u64) -> Result<(), DbError> {
    let found: bool = db.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'ledger')",
        [],
        |row| row.get(0),
    )?;
    db.execute_batch(DDL)?;
    db.execute_batch(begun::DDL)?;
    db.execute_batch(circuits::DDL)?;
    db.execute_batch(limits::DDL)?;
    db.execute_batch(notes::DDL)?;
    if !found {
        // An epoch that outlived its records would vouch for what nobody remembers.
        db.execute("DELETE FROM ledger_epoch", [])?;
    }
    epoch(db, now_ms).map(drop)
}

/// When the ledger began to remember: now, where nothing says otherwise.
fn epoch(db: &Connection, now_ms: u64) -> Result<u64, DbError> {
    let found = db.prepare_cached("SELECT since_ms FROM ledger_epoch")?.query_row([], |row| row.get(0)).optional()?;
    if let Some(since_ms) = found {
        return Ok(uint(since_ms));
    }
    db.prepare_cached("INSERT INTO ledger_epoch (one, since_ms, alive_ms) VALUES (1, ?1, ?1)")?
        .execute([int(now_ms)])?;
    Ok(now_ms)
}

#[cfg(test)]
#[path = "embedded_tests.rs"]
mod tests;
