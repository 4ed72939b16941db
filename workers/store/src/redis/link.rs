//! Keeps one connection to Redis and knows whether it works: a supervisor that dials anew after any failure, with the breaker
//! that lets calls fail fast meanwhile. A manager of the redis crate is not used, because it neither asks Sentinel again nor says when
//! Redis is back, and makes each command wait for its own tries.
//!
//! "Up" means: dialled, and the epochs are there (see [`super`]).

use futures_util::future::BoxFuture;
use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ScriptInvocation, ServerErrorKind};
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use super::{
    acl,
    address::{Address, Conn, LIMIT},
    scripts::Scripts,
};
use crate::StoreError;

/// What a call waits for Redis that is known to be down.
const PATIENCE: Duration = Duration::from_millis(100);
/// What a call that lost its connection waits for another before it gives up.
const REDIAL_PATIENCE: Duration = Duration::from_millis(500);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The wait before a user is tried again who may not do what is needed.
const FORBIDDEN_PAUSE: Duration = Duration::from_secs(5);

/// One connection, repaired in the background until the last clone is dropped.
#[derive(Clone)]
pub struct Link {
    shared: Arc<RedisLinkInner>,
    _supervisor: Arc<RedisSupervisor>,
}

struct RedisLinkInner {
    address: Address,
    scripts: Scripts,
    create: bool,
    status: watch::Sender<RedisLinkStatus>,
    last_error: RwLock<String>,
    /// The connection was given up because the user may not do what is asked.
    is_forbidden: AtomicBool,
}

#[derive(Clone)]
enum RedisLinkStatus {
    Down,
    Up { conn: Conn, serial: u64 },
}

struct RedisSupervisor(AbortHandle);

impl Drop for RedisSupervisor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Dials once. Redis that cannot be reached is no error, Redis that refuses us is.
    /// Where `create` is false, the epochs are not written.
    pub async fn open(address: Address, scripts: Scripts, create: bool) -> Result<Self, StoreError> {
        let shared = Arc::new(RedisLinkInner {
            status: watch::Sender::new(RedisLinkStatus::Down),
            last_error: RwLock::new("not tried yet".to_owned()),
            is_forbidden: AtomicBool::new(false),
            address,
            scripts,
            create,
        });
        match shared.dial().await {
            Ok(conn) => drop(shared.status.send_replace(RedisLinkStatus::Up { conn, serial: 0 })),
            Err(error @ StoreError::Broken(_)) => return Err(error),
            Err(StoreError::Down(_)) => {}
        }
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, _supervisor: Arc::new(RedisSupervisor(supervisor)) })
    }

    /// The scripts.
    pub fn scripts(&self) -> &Scripts {
        &self.shared.scripts
    }

    /// Whether keys of different slots cannot be named in one call.
    pub fn is_cluster(&self) -> bool {
        self.shared.address.is_cluster()
    }

    /// False while calls fail fast.
    pub fn is_up(&self) -> bool {
        matches!(*self.shared.status.borrow(), RedisLinkStatus::Up { .. })
    }

    /// Resolves when Redis answers.
    pub async fn back(&self) {
        let mut status = self.shared.status.subscribe();
        // The sender lives in `self`, so that the channel cannot close.
        let _ = status.wait_for(|status| matches!(status, RedisLinkStatus::Up { .. })).await;
    }

    /// Waits a moment for a connection, as a call does.
    pub async fn there(&self) -> Result<(), StoreError> {
        self.conn(PATIENCE).await.map(drop)
    }

    /// Runs `call`; once more on a new connection where the first one was lost, which is why every call must bear repetition.
    async fn run<'a, T>(&self, call: impl Fn(Conn) -> BoxFuture<'a, Result<T, RedisError>>) -> Result<T, StoreError> {
        let (conn, serial) = self.conn(PATIENCE).await?;
        let error = match call(conn).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let known = self.shared.while_running(&error);
        if !known.is_down() {
            return Err(known);
        }
        self.shared.failed(serial, &known);
        if error.is_timeout() || acl::is_forbidden(&error) {
            return Err(known);
        }
        let (conn, serial) = self.conn(REDIAL_PATIENCE).await?;
        call(conn).await.map_err(|error| {
            let error = self.shared.while_running(&error);
            if error.is_down() {
                self.shared.failed(serial, &error);
            }
            error
        })
    }

    /// Runs a script.
    pub async fn invoke<T: FromRedisValue + Send>(&self, call: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        self.run(|mut conn| Box::pin(async move { call.invoke_async(&mut conn).await })).await
    }

    /// Runs a command.
    pub async fn query<T: FromRedisValue + Send>(&self, call: &Cmd) -> Result<T, StoreError> {
        self.run(|mut conn| Box::pin(async move { call.query_async(&mut conn).await })).await
    }

    /// Runs commands together.
    pub async fn pipe<T: FromRedisValue + Send>(&self, calls: &Pipeline) -> Result<T, StoreError> {
        self.run(|mut conn| Box::pin(async move { calls.query_async(&mut conn).await })).await
    }

    async fn conn(&self, patience: Duration) -> Result<(Conn, u64), StoreError> {
        if !self.is_up() {
            // Whether it came in time is what the next lines look at.
            let _ = timeout(patience, self.back()).await;
        }
        match &*self.shared.status.borrow() {
            RedisLinkStatus::Up { conn, serial } => Ok((conn.clone(), *serial)),
            RedisLinkStatus::Down => {
                let text = self.shared.last_error.read().unwrap_or_else(PoisonError::into_inner).clone();
                Err(StoreError::Down(text))
            }
        }
    }
}

impl RedisLinkInner {
    async fn dial(&self) -> Result<Conn, StoreError> {
        let dialled = timeout(3 * LIMIT, async {
            let mut conn = self.address.dial().await?;
            if self.create {
                self.scripts.probe(&mut conn).await?;
                self.scripts.write_epochs(&mut conn, self.address.is_cluster()).await?;
            }
            Ok(conn)
        });
        let error = match dialled.await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(error)) => self.explain(&error),
            Err(_) => StoreError::Down(format!(
                "Redis at {} does not answer; check store.url and the network",
                self.address.shown()
            )),
        };
        self.remember(&error);
        Err(error)
    }

    fn remember(&self, error: &StoreError) {
        *self.last_error.write().unwrap_or_else(PoisonError::into_inner) = error.to_string();
    }

    /// Closes the way for all, unless another connection has come meanwhile.
    fn failed(&self, failed: u64, error: &StoreError) {
        self.status.send_if_modified(|status| match status {
            RedisLinkStatus::Up { serial, .. } if *serial == failed => {
                self.remember(error);
                *status = RedisLinkStatus::Down;
                true
            }
            _ => false,
        });
    }

    /// The same for a call of a worker that runs. What the user may not do nobody may do: the store is away until somebody mends that.
    fn while_running(&self, error: &RedisError) -> StoreError {
        match self.explain(error) {
            StoreError::Broken(text) if acl::is_forbidden(error) => {
                self.is_forbidden.store(true, Ordering::Relaxed);
                StoreError::Down(text)
            }
            known => known,
        }
    }

    /// Says what is wrong and what to do, with Redis's own words. Never repeats an address with a password: the crate's errors do not hold one, and
    /// ours show hosts and ports only.
    fn explain(&self, error: &RedisError) -> StoreError {
        let at = self.address.shown();
        let down = |what: &str| StoreError::Down(format!("Redis at {at} {what}"));
        let broken = |what: String| StoreError::Broken(format!("Redis at {at} {what}"));
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                broken(format!("refuses the password; check the one in store.url{}", words(error)))
            }
            ErrorKind::Server(ServerErrorKind::BusyLoading) => down("still reads its data"),
            ErrorKind::Server(ServerErrorKind::ReadOnly) => down("is a replica now; another one becomes master"),
            ErrorKind::Server(
                ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask,
            )
            | ErrorKind::ClusterConnectionNotFound => {
                let advice = match (self.address.is_cluster(), error.kind()) {
                    (false, ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                        return broken(format!(
                            "is a cluster; write store.url as redis+cluster://HOST:PORT{}",
                            words(error)
                        ));
                    }
                    _ => "has a part that is down; the cluster repairs itself or needs a person",
                };
                down(&format!("{advice}{}", words(error)))
            }
            ErrorKind::MasterNameNotFoundBySentinel => {
                down("names no live master of this name; check the name in store.url")
            }
            ErrorKind::RESP3NotSupported => broken("is older than version 6; use a newer one".to_owned()),
            _ => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => {
                    broken(format!("refuses the password; check the one in store.url{}", words(error)))
                }
                _ if acl::is_forbidden(error) => {
                    broken(format!("does not let this user do what is needed; `{}` does{}", acl::rule(), words(error)))
                }
                Some("WRONGTYPE") => broken(format!(
                    "holds a key postrider:* of another program; use a database of its own{}",
                    words(error)
                )),
                Some("OOM") => down(&format!("is out of memory; raise maxmemory (policy noeviction){}", words(error))),
                Some("MISCONF" | "NOREPLICAS") => down(&format!(
                    "takes no writes: it cannot save them as it is told to; look into its log{}",
                    words(error)
                )),
                Some("MASTERDOWN" | "BUSY" | "LOADING" | "UNKILLABLE") => {
                    down(&format!("cannot answer now{}", words(error)))
                }
                _ if error.is_timeout() => down("did not answer in time"),
                _ if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() => {
                    down(&format!(
                        "cannot be reached ({}); check that it runs and that store.url is right: rediss:// where it speaks TLS, \
                         redis+sentinel:// or redis+cluster:// where it is one of several",
                        reason(error)
                    ))
                }
                _ if error.is_unrecoverable_error() => down("closed the connection"),
                _ => broken(format!("answers with an error that is not expected{}", words(error))),
            },
        }
    }
}

/// What Redis said itself, where it said something.
fn words(error: &RedisError) -> String {
    let said = [error.code(), error.detail()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    if said.is_empty() { format!(" ({})", error.category()) } else { format!("; it says: {said}") }
}

/// Why there is no connection: of a certificate that is not trusted its own words.
fn reason(error: &RedisError) -> String {
    let text = error.to_string();
    if text.contains("ertificate") {
        format!("{text}; the setting `store.ca_file` names the authority of a private certificate")
    } else {
        error.category().to_owned()
    }
}

async fn supervise(shared: Arc<RedisLinkInner>) {
    let mut status = shared.status.subscribe();
    let mut serial = 0;
    let mut pause = PAUSE_MIN;
    // The sender lives in `shared`.
    while status.wait_for(|status| matches!(status, RedisLinkStatus::Down)).await.is_ok() {
        if shared.is_forbidden.swap(false, Ordering::Relaxed) {
            // A person has to mend that: no use in trying at once.
            tokio::time::sleep(FORBIDDEN_PAUSE).await;
        }
        match shared.dial().await {
            Ok(conn) => {
                serial += 1;
                pause = PAUSE_MIN;
                shared.status.send_replace(RedisLinkStatus::Up { conn, serial });
                tracing::info!(server = shared.address.shown(), "The store answers");
            }
            Err(error) => {
                if pause == PAUSE_MIN {
                    tracing::warn!(%error, "The store is down");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
