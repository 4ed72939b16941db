//! One SQLite file and the handle to it. Knows nothing of messages: its users bring their tables ([`Db::ensure`]) and operations.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    actor::{self, Actor, Request, Signals},
    clock::FileClock,
    error::DbError,
    file::canonical,
};

/// Operations that may wait for the thread; further callers wait for room.
const WAITING_MAX: usize = 1024;

/// A handle to one file. Clones share the thread that owns the file; it ends with the last of them.
#[derive(Clone)]
pub struct Db(Arc<Shared>);

struct Shared {
    path: PathBuf,
    requests: mpsc::Sender<Request>,
    signals: Signals,
    clock: FileClock,
}

/// The files open in this process, by canonical path.
static OPEN: Mutex<Option<HashMap<PathBuf, Weak<Shared>>>> = Mutex::new(None);

impl Db {
    /// Opens the file, makes it where it is missing (for its user alone), and refuses one that is not ours, or a symbolic link. Blocks for as long as that takes (a few
    /// milliseconds; at most [`actor::BUSY_LIMIT`] where another process is at it).
    ///
    /// The same path opened twice in a process gives two handles to the same thread.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DbError> {
        let path = canonical(path.as_ref())?;
        let mut guard = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = guard.get_or_insert_default();
        open.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(Self(shared));
        }
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        let signals = Signals::new();
        let clock = FileClock::default();
        let actor = Actor::open(path.clone(), receiver, signals.clone(), clock.clone())?;
        thread::Builder::new()
            .name("postrider-db".to_owned())
            .spawn(move || actor.run())
            .map_err(|error| DbError::Open { path: path.clone(), detail: error.to_string() })?;
        let shared = Arc::new(Shared { path: path.clone(), requests, signals, clock });
        open.insert(path, Arc::downgrade(&shared));
        Ok(Self(shared))
    }

    /// Opens a file that is there and holds this table; makes nothing.
    pub async fn open_existing(path: impl AsRef<Path>, table: &'static str) -> Result<Self, DbError> {
        let missing = |what| DbError::Missing { path: path.as_ref().to_owned(), what };
        if !path.as_ref().exists() {
            return Err(missing("does not exist: no queue or store is there"));
        }
        let db = Self::open(&path)?;
        let holds = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1)";
        if db.look(move |db| Ok(db.query_row(holds, [table], |row| row.get(0))?)).await? {
            return Ok(db);
        }
        Err(missing(if table == "message" { "holds no queue" } else { "holds no store: no worker has used it yet" }))
    }

    /// The canonical path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The time of the file, the same for every process at it.
    pub fn clock(&self) -> &FileClock {
        &self.0.clock
    }

    /// Makes tables: statements that change nothing when they run again (`CREATE TABLE IF NOT EXISTS ..`).
    pub async fn ensure(&self, ddl: &'static str) -> Result<(), DbError> {
        self.call(move |db| Ok(db.execute_batch(ddl)?)).await
    }

    /// Runs an operation and answers once it is on the disk. Either all of it is kept or nothing.
    ///
    /// Operations that wait at the same time share one transaction and so one `fsync`. Where one of them fails, all are run again, each in
    /// a savepoint of its own; where the whole transaction is undone even so (a full disk), each is run again by itself. An operation
    /// must therefore have no effect but on the connection. It must not begin or end transactions, nor wait for anything.
    ///
    /// An operation whose caller gave up before its turn is not run; one whose caller gives up later is.
    pub async fn call<T, F>(&self, operation: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, DbError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.ask(Box::new(actor::Call::new(operation, reply)), answer).await
    }

    /// Runs an operation that changes nothing. It does not wait for other processes that write, nor keep them from it; each of its
    /// statements sees the file as it is then.
    pub async fn look<T, F>(&self, operation: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, DbError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.ask(Box::new(actor::Call::look(operation, reply)), answer).await
    }

    async fn ask<T>(&self, work: Request, answer: oneshot::Receiver<Result<T, DbError>>) -> Result<T, DbError> {
        self.0.requests.send(work).await.map_err(|_| DbError::Closed)?;
        answer.await.unwrap_or(Err(DbError::Closed))
    }

    /// Changes whenever this process, or another one, committed something. Another process's commits are seen within
    /// [`actor::POLL`], and only while somebody holds such a receiver.
    pub fn commits(&self) -> watch::Receiver<u64> {
        self.0.signals.commits.subscribe()
    }

    /// Changes whenever [`Db::arrived`] was called in this process, or another one committed something (seen as with [`Db::commits`]). For
    /// those who wait for work: the steps of work that is under way commit all the time and bring them nothing.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.0.signals.arrivals.subscribe()
    }

    /// Tells this process that something was committed that others wait for.
    pub fn arrived(&self) {
        self.0.signals.arrivals.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
#[path = "db_tests.rs"]
mod tests;
