//! Redis: a private server that a test may break, or one shared by all tests of a program, a database each.
//!
//! On machines without the Debian package `POSTRIDER_TEST_REDIS_URL` names a running server to share (databases 1 to 15
//! of it are emptied). Cluster and Sentinel are in [`crate::redis_fleet`].

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::folder::Folder;
use crate::process::{self, Process, Spec};
use crate::{ports, say_skipped};

const START_LIMIT: Duration = Duration::from_secs(30);
const CLI_LIMIT: Duration = Duration::from_secs(20);
/// Databases of a server of ours: one a test.
const DATABASES: u32 = 2048;

/// A private server.
#[derive(Debug)]
pub struct Redis {
    server: Process,
    folder: Folder,
    port: u16,
}

impl Redis {
    /// A server that keeps nothing over its end.
    pub fn start() -> Result<Self> {
        Self::start_with(&["--appendonly", "no"])
    }

    /// A server that has written every command to disk before it answers.
    pub fn start_durable() -> Result<Self> {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server with these arguments, on loopback, without snapshots.
    pub fn start_with(args: &[&str]) -> Result<Self> {
        let folder = Folder::new("redis")?;
        let port = ports::free()?;
        let spec = Spec::new("server", "redis-server", folder.path())?
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--databases", &DATABASES.to_string(), "--dir"])
            .arg(folder.path())
            .args(args);
        let server = Process::start_ready(spec, START_LIMIT, || answers(port))?;
        Ok(Self { server, folder, port })
    }

    /// Starts one, or says loudly that `test` is skipped because only a foreign server is at hand.
    pub fn start_or_skip(test: &str) -> Result<Option<Self>> {
        if process::only_foreign("POSTRIDER_TEST_REDIS_URL", "redis-server") {
            say_skipped(test, "it has to break a Redis server, and the one of POSTRIDER_TEST_REDIS_URL is not ours");
            return Ok(None);
        }
        Self::start().map(Some)
    }

    /// Its address, database 0.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `redis-cli ARGS`.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        cli(self.port, args)
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.server.kill9()
    }

    /// Kills it if it runs and starts it on the same folder and port; returns when it answers.
    pub fn restart(&mut self) -> Result<()> {
        let port = self.port;
        self.server.start_again()?;
        self.server.wait_ready(START_LIMIT, || answers(port))
    }

    /// Forgets everything, as a failover to an empty replica would.
    pub fn flush(&self) -> Result<()> {
        self.cli(&["FLUSHALL"]).map(drop)
    }

    /// Alive and silent (SIGSTOP): commands run into their limits.
    pub fn freeze(&self) {
        self.server.freeze();
    }

    /// Ends a [`Redis::freeze`].
    pub fn thaw(&self) {
        self.server.thaw();
    }
}

/// One test's database on a server shared with other tests; emptied on drop.
#[derive(Debug)]
pub struct Database {
    server: String,
    number: u32,
}

impl Database {
    /// An empty database on the server of this test program: started by the first who asks, or named by the environment.
    pub fn fresh() -> Result<Self> {
        static SHARED: OnceLock<Result<(String, Option<Redis>), String>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let shared = SHARED.get_or_init(|| shared_server().map_err(|error| format!("{error:#}")));
        let (server, own) = shared.as_ref().map_err(|error| anyhow!("{error}"))?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        if number >= if own.is_some() { DATABASES } else { 16 } {
            bail!("no Redis database left for one more test");
        }
        let database = Self { server: server.clone(), number };
        database.flush()?;
        Ok(database)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("{}/{}", self.server, self.number)
    }

    /// `redis-cli -n NUMBER ARGS`.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let url = self.url();
        process::run("redis-cli", ["-e", "-u", url.as_str()].into_iter().chain(args.iter().copied()), &[], CLI_LIMIT)
    }

    /// Forgets everything in it.
    pub fn flush(&self) -> Result<()> {
        self.cli(&["FLUSHDB"]).map(drop)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that is gone has nothing left to forget.
        let _ = self.flush();
    }
}

/// Runs `redis-cli` against a port of 127.0.0.1; an error reply is an error.
pub(crate) fn cli(port: u16, args: &[&str]) -> Result<String> {
    let port = port.to_string();
    let text =
        process::run("redis-cli", ["-e", "-p", port.as_str()].into_iter().chain(args.iter().copied()), &[], CLI_LIMIT)?;
    Ok(text.trim_end().to_owned())
}

/// Whether a server answers commands, which it does not while it reads its log after a restart.
pub(crate) fn answers(port: u16) -> bool {
    ports::is_open(port) && cli(port, &["PING"]).is_ok_and(|answer| answer == "PONG")
}

fn shared_server() -> Result<(String, Option<Redis>)> {
    let Ok(url) = std::env::var("POSTRIDER_TEST_REDIS_URL") else {
        let redis = Redis::start()?;
        return Ok((format!("redis://127.0.0.1:{}", redis.port), Some(redis)));
    };
    let (scheme, rest) = url.split_once("://").context("POSTRIDER_TEST_REDIS_URL is not an address")?;
    Ok((format!("{scheme}://{}", rest.split('/').next().unwrap_or(rest)), None))
}
