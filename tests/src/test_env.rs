//! One verb starts what a story needs; dropping it asserts that nothing is left.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};

use crate::aiosmtpd::{Aiosmtpd, Tls};
use crate::postfix::{self, Postfix};
use crate::process;
use crate::rabbitmq::{Broker, Rabbit, Vhost};
use crate::redis::{Database, Redis};
use crate::say_skipped;
use crate::sink::{self, SmtpSink};

/// Whose server a story uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Server {
    /// None.
    #[default]
    Absent,
    /// A part of the one that all stories of this program share: quick, and not to be broken.
    Shared,
    /// One of its own, to be killed and restarted.
    Own,
}

/// What a story needs.
#[derive(Clone, Debug, Default)]
pub struct EnvSpec {
    /// The broker.
    pub rabbit: Server,
    /// The store.
    pub redis: Server,
    /// A relay that stores what it gets.
    pub sink: Option<sink::Options>,
    /// A real relay that hands on to the sink, which it needs.
    pub postfix: bool,
    /// A scripted relay.
    pub aiosmtpd: Option<Tls>,
}

impl EnvSpec {
    /// Shared broker and store, and a sink without faults.
    pub fn usual() -> Self {
        Self { rabbit: Server::Shared, redis: Server::Shared, sink: Some(sink::Options::default()), ..Self::default() }
    }
}

/// A started world. Its accessors panic for a part that was not asked for: that is a mistake in the story.
#[derive(Debug, Default)]
pub struct TestEnv {
    postfix: Option<Postfix>,
    aiosmtpd: Option<Aiosmtpd>,
    sink: Option<SmtpSink>,
    vhost: OnceLock<Vhost>,
    /// A virtual host of the broker that all share is taken when somebody wants it.
    on_shared_broker: bool,
    rabbit: Option<Rabbit>,
    database: Option<Database>,
    redis: Option<Redis>,
}

impl TestEnv {
    /// Starts the parts side by side and returns when all are ready.
    pub fn start(parts: &EnvSpec) -> Result<Self> {
        std::thread::scope(|scope| {
            let broker = scope.spawn(|| start_broker(parts.rabbit));
            let store = scope.spawn(|| start_store(parts.redis));
            let relays = scope.spawn(|| start_relays(parts));
            let (rabbit, vhost) = joined(broker)?;
            let (redis, database) = joined(store)?;
            let (sink, postfix, aiosmtpd) = joined(relays)?;
            let on_shared_broker = parts.rabbit == Server::Shared;
            Ok(Self { postfix, aiosmtpd, sink, vhost, on_shared_broker, rabbit, database, redis })
        })
    }

    /// The same, or says loudly that `test` is skipped: it wants a server of its own, and this machine only has the one that the
    /// environment names.
    pub fn start_or_skip(test: &str, parts: &EnvSpec) -> Result<Option<Self>> {
        let wanted = [
            (parts.rabbit, "POSTRIDER_TEST_AMQP_URL", "rabbitmq-server"),
            (parts.redis, "POSTRIDER_TEST_REDIS_URL", "redis-server"),
        ];
        for (server, variable, program) in wanted {
            if server == Server::Own && process::only_foreign(variable, program) {
                say_skipped(test, &format!("it has to break its {program}, and the one of {variable} is not ours"));
                return Ok(None);
            }
        }
        Self::start(parts).map(Some)
    }

    /// Address of the story's virtual host.
    pub fn amqp_url(&self) -> String {
        self.vhost().url()
    }

    /// Address of the story's store.
    pub fn redis_url(&self) -> String {
        match (&self.database, &self.redis) {
            (Some(database), _) => database.url(),
            (None, redis) => asked("redis", redis.as_ref()).url(),
        }
    }

    /// The story's virtual host.
    pub fn vhost(&self) -> &Vhost {
        if self.on_shared_broker {
            let fresh = || Broker::shared().and_then(|broker| broker.vhost());
            return self.vhost.get_or_init(|| fresh().unwrap_or_else(|error| panic!("no virtual host: {error:#}")));
        }
        asked("rabbit", self.vhost.get())
    }

    /// Takes a virtual host in which the topology is declared already. False where there is none, or the story has one.
    pub(crate) fn takes_declared(&self) -> bool {
        self.on_shared_broker
            && self.vhost.get().is_none()
            && Vhost::declared().is_some_and(|vhost| self.vhost.set(vhost).is_ok())
    }

    /// The broker, to be broken ([`Server::Own`]).
    pub fn rabbit(&mut self) -> &mut Rabbit {
        asked("rabbit of its own", self.rabbit.as_mut())
    }

    /// The store, to be broken ([`Server::Own`]).
    pub fn redis(&mut self) -> &mut Redis {
        asked("redis of its own", self.redis.as_mut())
    }

    /// `redis-cli ARGS` on the story's store.
    pub fn redis_cli(&self, args: &[&str]) -> Result<String> {
        match (&self.database, &self.redis) {
            (Some(database), _) => database.cli(args),
            (None, redis) => asked("redis", redis.as_ref()).cli(args),
        }
    }

    /// The sink.
    pub fn sink(&self) -> &SmtpSink {
        asked("sink", self.sink.as_ref())
    }

    /// The sink, to be stopped and started.
    pub fn sink_mut(&mut self) -> &mut SmtpSink {
        asked("sink", self.sink.as_mut())
    }

    /// The real relay.
    pub fn postfix(&self) -> &Postfix {
        asked("postfix", self.postfix.as_ref())
    }

    /// The scripted relay.
    pub fn aiosmtpd(&self) -> &Aiosmtpd {
        asked("aiosmtpd", self.aiosmtpd.as_ref())
    }

    /// Folders of everything that was started for this world alone.
    pub fn folders(&self) -> Vec<PathBuf> {
        [
            self.postfix.as_ref().map(Postfix::folder),
            self.aiosmtpd.as_ref().map(Aiosmtpd::folder),
            self.sink.as_ref().map(SmtpSink::folder),
            self.rabbit.as_ref().map(Rabbit::folder),
            self.redis.as_ref().map(Redis::folder),
        ]
        .into_iter()
        .flatten()
        .map(Path::to_owned)
        .collect()
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        let folders = self.folders();
        // The relay before its sink, the virtual host before its broker.
        drop((self.postfix.take(), self.aiosmtpd.take()));
        drop((self.sink.take(), self.vhost.take(), self.database.take()));
        drop((self.rabbit.take(), self.redis.take()));
        if !std::thread::panicking() {
            for folder in folders {
                assert_nothing_left(&folder);
            }
        }
    }
}

/// Panics when a process still works for a folder that should be gone, or when the folder is still there.
pub fn assert_nothing_left(folder: &Path) {
    let alive = process::leftovers(folder);
    assert!(alive.is_empty(), "still alive in {}: {alive:?}", folder.display());
    let kept = std::env::var_os("POSTRIDER_TEST_KEEP").is_some();
    assert!(kept || !folder.exists(), "still there: {}", folder.display());
}

fn start_broker(server: Server) -> Result<(Option<Rabbit>, OnceLock<Vhost>)> {
    match server {
        Server::Absent => Ok((None, OnceLock::new())),
        Server::Shared => Broker::start_shared().map(|()| (None, OnceLock::new())),
        Server::Own => {
            let rabbit = Rabbit::start()?;
            let vhost = rabbit.broker().vhost()?;
            Ok((Some(rabbit), OnceLock::from(vhost)))
        }
    }
}

fn start_store(server: Server) -> Result<(Option<Redis>, Option<Database>)> {
    match server {
        Server::Absent => Ok((None, None)),
        Server::Shared => Ok((None, Some(Database::fresh()?))),
        Server::Own => Ok((Some(Redis::start_durable()?), None)),
    }
}

fn start_relays(parts: &EnvSpec) -> Result<(Option<SmtpSink>, Option<Postfix>, Option<Aiosmtpd>)> {
    let sink = parts.sink.clone().map(SmtpSink::start).transpose()?;
    let postfix = if parts.postfix {
        let delivery = sink.as_ref().context("a world with a Postfix needs a sink")?.port();
        Some(Postfix::start_with(&postfix::Options::to(delivery))?)
    } else {
        None
    };
    let aiosmtpd = parts.aiosmtpd.map(Aiosmtpd::start).transpose()?;
    Ok((sink, postfix, aiosmtpd))
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("starting a part of the world panicked")))
}

#[track_caller]
fn asked<T>(part: &str, value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => panic!("this world was started without {part}"),
    }
}
