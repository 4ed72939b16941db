//! The thread that owns a file in this process: takes waiting operations in batches and commits each batch once.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    time,
};

use super::{clock::FileClock, error::DbError, file};

/// Operations in one transaction, at most.
const BATCH_MAX: usize = 256;
/// How long another process may keep the file before [`DbError::Busy`].
pub const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How often a process that wants to write looks whether the file is free, ...
const LOCK_POLL: Duration = Duration::from_millis(1);
/// ... for so long; then less often.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the commits of other processes are looked for while somebody wants to know.
pub const POLL: Duration = Duration::from_millis(25);
/// "PRdr": says in the file's header that it is ours.
const APPLICATION_ID: i64 = 0x5052_6472;
/// The format of the file.
const FORMAT: i64 = 2;

/// An operation with its answer.
pub(super) type Request = Box<dyn Work>;

/// What the thread does with an operation.
pub(super) trait Work: Send {
    /// Whether it changes nothing, and so need not wait for those who write.
    fn is_look(&self) -> bool;
    /// Whether the caller gave up.
    fn is_abandoned(&self) -> bool;
    /// Runs it, keeps the result for the answer and says whether it is to be kept.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Answers with the result, or with what undid it.
    fn answer(self: Box<Self>, undone: Option<DbError>);
}

/// An operation of any result.
pub(super) struct Call<T, F> {
    operation: F,
    is_look: bool,
    /// `None`: it did not come to run.
    result: Option<Result<T, DbError>>,
    reply: oneshot::Sender<Result<T, DbError>>,
}

impl<T, F> Call<T, F> {
    pub(super) fn new(operation: F, reply: oneshot::Sender<Result<T, DbError>>) -> Self {
        Self { operation, is_look: false, result: None, reply }
    }

    pub(super) fn look(operation: F, reply: oneshot::Sender<Result<T, DbError>>) -> Self {
        Self { operation, is_look: true, result: None, reply }
    }
}

impl<T, F> Work for Call<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T, DbError> + Send,
{
    fn is_look(&self) -> bool {
        self.is_look
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(&mut self, connection: &Connection) -> bool {
        let operation = &mut self.operation;
        let result = catch_unwind(AssertUnwindSafe(|| operation(connection))).unwrap_or(Err(DbError::Panicked));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, undone: Option<DbError>) {
        let result = match (self.result, undone) {
            (Some(Ok(_)) | None, Some(error)) => Err(error),
            (Some(result), _) => result,
            (None, None) => Err(DbError::Closed),
        };
        // A caller that gave up has no use for it.
        let _ = self.reply.send(result);
    }
}

/// What the handles of a file may wait for.
#[derive(Clone)]
pub(super) struct Signals {
    /// Somebody committed something.
    pub(super) commits: watch::Sender<u64>,
    /// Something came that others wait for, or another process committed something, which may be that.
    pub(super) arrivals: watch::Sender<u64>,
}

impl Signals {
    pub(super) fn new() -> Self {
        Self { commits: watch::Sender::new(0), arrivals: watch::Sender::new(0) }
    }

    fn is_watched(&self) -> bool {
        self.commits.receiver_count() + self.arrivals.receiver_count() > 0
    }
}

/// How the operations of a batch are kept apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// Not at all: one that fails undoes all. Operations hardly ever fail, and a savepoint costs two statements and a copy of every
    /// page that its operation changes.
    No,
    /// Each in a savepoint of its own.
    Savepoints,
}

pub(super) struct Actor {
    path: PathBuf,
    /// `None` after an I/O error: a fresh one is opened for the next batch.
    connection: Option<Connection>,
    requests: mpsc::Receiver<Request>,
    signals: Signals,
    clock: FileClock,
    /// `PRAGMA data_version` as last seen: moves with the commits of others.
    seen: i64,
}

impl Actor {
    pub(super) fn open(
        path: PathBuf,
        requests: mpsc::Receiver<Request>,
        signals: Signals,
        clock: FileClock,
    ) -> Result<Self, DbError> {
        let connection = connect(&path, &clock)?;
        Ok(Self { path, connection: Some(connection), requests, signals, clock, seen: 0 })
    }

    /// Serves until the last handle is gone.
    pub(super) fn run(mut self) {
        let Ok(clock) = runtime::Builder::new_current_thread().enable_time().build() else { return };
        loop {
            let request = if !self.signals.is_watched() {
                clock.block_on(self.requests.recv())
            } else if let Ok(request) = self.requests.try_recv() {
                Some(request)
            } else {
                let Ok(request) = clock.block_on(async { time::timeout(POLL, self.requests.recv()).await }) else {
                    self.look_for_others();
                    continue;
                };
                request
            };
            let Some(request) = request else { return };
            let mut batch = vec![request];
            while batch.len() < BATCH_MAX
                && let Ok(request) = self.requests.try_recv()
            {
                batch.push(request);
            }
            batch.retain(|request| !request.is_abandoned());
            let (looks, batch) = batch.into_iter().partition(|request| request.is_look());
            self.look(looks);
            self.serve(batch);
            self.look_for_others();
        }
    }

    /// Runs what changes nothing, each on the file as it is then.
    fn look(&mut self, looks: Vec<Request>) {
        for mut request in looks {
            let connected = self.connection.take().map_or_else(|| connect(&self.path, &self.clock), Ok);
            let undone = match connected {
                Ok(connection) => {
                    // An error is its own answer. Whether the connection is still of use is found out by the next one that writes.
                    request.run(&connection);
                    self.connection = Some(connection);
                    None
                }
                Err(error) => Some(error),
            };
            request.answer(undone);
        }
    }

    fn serve(&mut self, mut batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        let kept = match self.transact(&mut batch, Apart::No) {
            Err(_) if batch.len() > 1 => self.transact(&mut batch, Apart::Savepoints),
            kept => kept,
        };
        match kept {
            Ok(()) => batch.into_iter().for_each(|request| request.answer(None)),
            // One of them, or all together, undid the whole transaction. By itself each gets the answer that it deserves.
            Err(_) if batch.len() > 1 => {
                for request in batch {
                    let mut alone = vec![request];
                    let undone = self.transact(&mut alone, Apart::No).err();
                    alone.into_iter().for_each(|request| request.answer(undone.clone()));
                }
            }
            Err(error) => batch.into_iter().for_each(|request| request.answer(Some(error.clone()))),
        }
    }

    /// One transaction. An error means that nothing of it was kept.
    fn transact(&mut self, batch: &mut [Request], apart: Apart) -> Result<(), DbError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.path, &self.clock)?,
        };
        let before = connection.total_changes();
        let done = in_transaction(&mut connection, batch, apart, &self.clock);
        let changed = connection.total_changes() != before;
        // After an I/O error the connection is thrown away: a fresh one reads the file as it is.
        if !matches!(done, Err(DbError::Io(_))) {
            self.connection = Some(connection);
        }
        if done.is_ok() && changed {
            self.signals.commits.send_modify(|count| *count += 1);
        }
        done
    }

    fn look_for_others(&mut self) {
        let Some(connection) = &self.connection else { return };
        // A failure here fails the next operation too, which has somebody to tell.
        let version = connection
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)));
        if let Ok(version) = version
            && version != self.seen
        {
            self.seen = version;
            self.signals.commits.send_modify(|count| *count += 1);
            self.signals.arrivals.send_modify(|count| *count += 1);
        }
    }
}

fn in_transaction(
    connection: &mut Connection,
    batch: &mut [Request],
    apart: Apart,
    clock: &FileClock,
) -> Result<(), DbError> {
    if batch.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Not `Io`: the connection is sound, a statement's failure (a full disk, say) undid more than itself.
    let undone = || DbError::Sql("the transaction was undone".to_owned());
    let is_alone = batch.len() == 1;
    for request in batch.iter_mut() {
        if apart == Apart::Savepoints {
            transaction.prepare_cached("SAVEPOINT operation")?.execute([])?;
        }
        let keep = request.run(&transaction);
        if transaction.is_autocommit() {
            return Err(undone());
        }
        match apart {
            Apart::No if keep => {}
            // Its own answer stands; dropping the transaction undoes it.
            Apart::No if is_alone => return Ok(()),
            Apart::No => return Err(undone()),
            Apart::Savepoints => {
                if !keep {
                    transaction.prepare_cached("ROLLBACK TO operation")?.execute([])?;
                }
                transaction.prepare_cached("RELEASE operation")?.execute([])?;
            }
        }
    }
    clock.note(&transaction)?;
    Ok(transaction.commit()?)
}

fn connect(path: &std::path::Path, clock: &FileClock) -> Result<Connection, DbError> {
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => DbError::Foreign { path: path.to_owned() },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DbError::Busy,
        Some(ErrorCode::DiskFull) => DbError::Full,
        _ => DbError::Open { path: path.to_owned(), detail: error.to_string() },
    };
    file::prepare(path)?;
    // It was made above: SQLite would make it for everybody to read.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_handler(Some(wait_for_others)).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(128);
    claim(&mut connection, path, failed)?;
    file::close_to_others(path).map_err(|error| DbError::Open { path: path.to_owned(), detail: error.to_string() })?;
    write_ahead(&connection).map_err(failed)?;
    set_clock(&mut connection, clock).map_err(failed)?;
    // FULL: a confirmed publish must survive a power cut, not only a crash of the process.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024).map_err(failed)?;
    Ok(connection)
}

/// Reads the file's clock. Only the first process after a start of the machine changes anything.
fn set_clock(connection: &mut Connection, clock: &FileClock) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    clock.set(&transaction)?;
    transaction.commit()
}

/// Waits a little for another process that has the file; false once that went on for too long.
///
/// SQLite's own handler sleeps longer and longer, up to a tenth of a second a time, while the others hold the file for a few milliseconds: whoever
/// missed its turn a few times then misses it for a second, and what its messages were to do at that time is done in a burst.
fn wait_for_others(tries: i32) -> bool {
    thread_local!(static SINCE: Cell<Option<Instant>> = const { Cell::new(None) });
    let now = Instant::now();
    if tries == 0 {
        SINCE.set(Some(now));
    }
    let waited = SINCE.get().map_or(Duration::ZERO, |since| now.duration_since(since));
    thread::sleep(if waited < PATIENCE { LOCK_POLL } else { 10 * LOCK_POLL });
    waited < BUSY_LIMIT
}

/// Makes an empty file ours, and one of an earlier format one of this: programs that know only that one must not come to it any more. Refuses one that
/// belongs to something else before anything in it was touched.
fn claim(
    connection: &mut Connection,
    path: &std::path::Path,
    failed: impl Fn(rusqlite::Error) -> DbError + Copy,
) -> Result<(), DbError> {
    if is_ours(connection, path, failed)? {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Another process may have been faster.
    if !is_ours(&transaction, path, failed)? {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// `false`: empty or of an earlier format, free to be claimed.
fn is_ours(
    connection: &Connection,
    path: &std::path::Path,
    failed: impl Fn(rusqlite::Error) -> DbError,
) -> Result<bool, DbError> {
    let (application, format, tables): (i64, i64, i64) = connection
        .query_row(
            "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                    (SELECT count(*) FROM sqlite_schema)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .map_err(failed)?;
    match (application, format, tables) {
        (0, 0, 0) => Ok(false),
        (APPLICATION_ID, format, _) if format <= FORMAT => Ok(format == FORMAT),
        (APPLICATION_ID, found, _) => Err(DbError::Newer { path: path.to_owned(), found, known: FORMAT }),
        _ => Err(DbError::Foreign { path: path.to_owned() }),
    }
}

/// The change to WAL needs the file alone for a moment and does not wait for it by itself.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other.map(drop),
        }
    }
}
