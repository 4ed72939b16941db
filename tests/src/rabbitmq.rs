//! RabbitMQ: a private node that a test may break, or one shared by all tests of a program, a virtual host each.
//!
//! A node has its own name, ports, name server (epmd), cookie and data folder. On machines without the Debian package,
//! `POSTRIDER_TEST_AMQP_URL` and `POSTRIDER_TEST_RABBITMQ_API` name a running broker to share.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::folder::Folder;
use crate::http::Endpoint;
use crate::process::{self, Process, Spec};
use crate::{deadline, ports, say_skipped};

pub use crate::vhost::{Broker, Depth, Vhost};

/// Seven seconds on a quiet machine.
const START_LIMIT: Duration = Duration::from_mins(5);
const CTL_LIMIT: Duration = Duration::from_mins(1);
/// A script of a dozen calls of `rabbitmqctl`, on a busy machine.
const SCRIPT_LIMIT: Duration = Duration::from_mins(5);

/// What a test may want of its node.
#[derive(Clone, Debug)]
pub struct Options {
    /// The management plugin: virtual hosts and queue depths by HTTP. Costs a second of start time.
    pub management: bool,
    /// `consumer_timeout`: how long a delivery may stay unacknowledged.
    pub consumer_timeout: Duration,
    /// The settings and plugins that `deploy/rabbitmq` ships instead of the harness's own.
    pub shipped: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { management: true, consumer_timeout: Duration::from_mins(2), shipped: false }
    }
}

/// A private node.
#[derive(Debug)]
pub struct Rabbit {
    // Fields drop in this order: the node, then its name server, then its folder.
    server: Process,
    _epmd: Process,
    folder: Folder,
    env: Vec<(String, String)>,
    node: String,
    broker: Broker,
    metrics: u16,
}

impl Rabbit {
    /// Starts a node with the management plugin and waits until it is ready.
    pub fn start() -> Result<Self> {
        Self::start_with(&Options::default())
    }

    /// Starts a node and waits until it is ready.
    pub fn start_with(options: &Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = Folder::new("rabbitmq")?;
        let (amqp, dist, api, epmd_port) = (ports::free()?, ports::free()?, ports::free()?, ports::free()?);
        let node = format!("postrider{}x{}@localhost", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let metrics = ports::free()?;
        write_configuration(&folder, options, amqp, api, metrics)?;

        let epmd =
            Spec::new("epmd", "epmd", folder.path())?.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Process::start_ready(epmd, START_LIMIT, || ports::is_open(epmd_port))?;

        let env = environment(folder.path(), &node, amqp, dist, epmd_port);
        let mut spec = Spec::new("server", "rabbitmq-server", folder.path())?;
        for (key, value) in &env {
            spec = spec.env(key, value);
        }
        let endpoint = options
            .management
            .then(|| Endpoint { address: format!("127.0.0.1:{api}"), credentials: "guest:guest".to_owned() });
        let broker = Broker {
            authority: format!("amqp://guest:guest@127.0.0.1:{amqp}"),
            default_vhost: "%2f".to_owned(),
            api: endpoint,
            is_ours: true,
        };
        let mut rabbit = Self { server: Process::start(spec)?, _epmd: epmd, folder, env, node, broker, metrics };
        rabbit.wait_ready(amqp)?;
        Ok(rabbit)
    }

    /// Starts a node, or says loudly that `test` is skipped because only a foreign broker is at hand.
    pub fn start_or_skip(test: &str) -> Result<Option<Self>> {
        if process::only_foreign("POSTRIDER_TEST_AMQP_URL", "rabbitmq-server") {
            say_skipped(test, "it has to break a RabbitMQ node, and the one of POSTRIDER_TEST_AMQP_URL is not ours");
            return Ok(None);
        }
        Self::start().map(Some)
    }

    /// AMQP address of the node's default virtual host.
    pub fn url(&self) -> String {
        self.broker.url()
    }

    /// The node as something to make virtual hosts on.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// What the node tells Prometheus of its queues, one series each. Only with [`Options::shipped`].
    pub fn queue_metrics(&self) -> Result<String> {
        let page = Endpoint { address: format!("127.0.0.1:{}", self.metrics), credentials: String::new() };
        page.expect("GET", "/metrics/detailed?family=queue_coarse_metrics", "")
    }

    /// The node's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `rabbitmqctl ARGS` on this node: 1.5 s a call.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let all = ["-n", self.node.as_str()].into_iter().chain(args.iter().copied());
        process::run("rabbitmqctl", all, &self.env, CTL_LIMIT)
    }

    /// Runs a shell script that calls `rabbitmqctl`, with these variables besides.
    pub fn script(&self, script: &Path, variables: &[(&str, &str)]) -> Result<String> {
        let more = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        // Not the one of the path, which on Debian runs as another user.
        let ctl = process::find(Path::new("rabbitmqctl"))?.display().to_string();
        let own = [("RABBITMQCTL".to_owned(), ctl)];
        let env: Vec<(String, String)> = self.env.iter().cloned().chain(own).chain(more).collect();
        let args = [script.display().to_string(), "-n".to_owned(), self.node.clone()];
        process::run("sh", args.iter().map(String::as_str), &env, SCRIPT_LIMIT)
    }

    /// SIGKILL. Waits first until every quorum queue is in the node's register on disk: RabbitMQ 3.10 flushes it only after
    /// half a second of quiet, and a queue that is not in it when the node dies comes back without a leader, for good.
    /// A node without the management plugin cannot be asked and is killed at once.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(api) = &self.broker.api {
            let queues: Vec<serde_json::Value> = serde_json::from_str(&api.expect(
                "GET",
                "/api/queues?disable_stats=true&enable_queue_totals=true",
                "",
            )?)?;
            let name =
                |queue: &serde_json::Value, key: &str| queue[key].as_str().unwrap_or_default().replace('/', "%2F");
            let quorum = queues.iter().filter(|queue| queue["type"] == "quorum");
            let names: Vec<String> =
                quorum.map(|queue| format!("{}_{}", name(queue, "vhost"), name(queue, "name"))).collect();
            let data = self.folder.path().join("data").join(&self.node).join("quorum").join(&self.node);
            deadline::wait_for("quorum queues in the register on disk", CTL_LIMIT, || {
                let register = std::fs::read(data.join("names.dets")).ok().unwrap_or_default();
                let holds = |name: &String| register.windows(name.len()).any(|window| window == name.as_bytes());
                names.iter().all(holds).then_some(())
            })?;
        }
        self.server.kill9()
    }

    /// Kills the node if it runs and starts it on the same data and ports; returns when it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.server.start_again()?;
        let port = self.broker.authority.rsplit(':').next().and_then(|port| port.parse().ok());
        self.wait_ready(port.context("the broker's address has no port")?)
    }

    /// Closes every client connection from the broker's side.
    pub fn close_all_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "closed by a test"]).map(drop)
    }

    /// Raises the memory alarm: publishing connections become blocked and are not read any more.
    pub fn block(&self) -> Result<()> {
        self.ctl(&["set_vm_memory_high_watermark", "0.00001"]).map(drop)
    }

    /// Clears the alarm of [`Rabbit::block`].
    pub fn unblock(&self) -> Result<()> {
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]).map(drop)
    }

    fn wait_ready(&mut self, amqp: u16) -> Result<()> {
        let api = self.broker.api.clone();
        self.server.wait_ready(START_LIMIT, || {
            let managed = |api: &Endpoint| matches!(api.request("GET", "/api/vhosts", ""), Ok((200, _)));
            speaks_amqp(amqp).is_ok() && api.as_ref().is_none_or(managed)
        })
    }
}

/// Brokers of this test program, the one in use last.
static SHARED: Mutex<Vec<(Broker, Option<Rabbit>)>> = Mutex::new(Vec::new());

impl Broker {
    /// The broker of this test program: started by the first who asks, or the one that the environment names.
    ///
    /// RabbitMQ 3.10 can come to a state, on a machine that is busy while many queues are made and deleted, in which it declares no
    /// quorum queue any more and answers `INTERNAL_ERROR` for good. A node of ours that is found so is followed by a fresh one.
    pub fn shared() -> Result<Self> {
        let mut nodes = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match nodes.last() {
            Some((broker, Some(_))) if !broker.makes_quorum_queues() => {
                crate::say(
                    "==== The shared broker declares no quorum queue any more; a fresh one takes its place ====",
                );
            }
            Some((broker, _)) => return Ok(broker.clone()),
            None => {}
        }
        // The one before stays for the stories that are under way.
        let node = shared_broker()?;
        nodes.push(node);
        nodes.last().map(|(broker, _)| broker.clone()).context("no broker")
    }

    /// Starts the broker that [`Broker::shared`] gives, unless it runs.
    pub(crate) fn start_shared() -> Result<()> {
        let mut nodes = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.is_empty() {
            nodes.push(shared_broker()?);
        }
        Ok(())
    }
}

fn shared_broker() -> Result<(Broker, Option<Rabbit>)> {
    let Ok(url) = std::env::var("POSTRIDER_TEST_AMQP_URL") else {
        let rabbit = Rabbit::start()?;
        return Ok((rabbit.broker.clone(), Some(rabbit)));
    };
    let (scheme, rest) = url.split_once("://").context("POSTRIDER_TEST_AMQP_URL is not an address")?;
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
    let api = std::env::var("POSTRIDER_TEST_RABBITMQ_API").ok().map(|url| Endpoint::parse(&url)).transpose()?;
    Ok((
        Broker { authority: format!("{scheme}://{authority}"), default_vhost: vhost.to_owned(), api, is_ours: false },
        None,
    ))
}

fn write_configuration(folder: &Folder, options: &Options, amqp: u16, api: u16, metrics: u16) -> Result<()> {
    let ours = format!("consumer_timeout = {}\n", options.consumer_timeout.as_millis());
    // The two limits of the dead-letter worker are what we ask of every installation; the tick only makes the
    // counts of quorum queues fresh (5 s otherwise).
    let advanced = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 20000},\n           \
         {dead_letter_worker_consumer_prefetch, 512},\n           {quorum_tick_interval, 500}]}].\n";
    let (settings, advanced) = if options.shipped {
        let page = format!("prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {metrics}\n");
        (page + &shipped("rabbitmq.conf")?, shipped("advanced.config")?)
    } else {
        (ours, advanced.to_owned())
    };
    let plugins = match options {
        Options { shipped: true, .. } => shipped("enabled_plugins")?,
        Options { management: true, .. } => "[rabbitmq_management].".to_owned(),
        _ => "[].".to_owned(),
    };
    folder.write("enabled_plugins", &plugins)?;
    let management = if options.management {
        format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {api}\n")
    } else {
        String::new()
    };
    folder.write(
        "rabbitmq.conf",
        &format!("listeners.tcp.1 = 127.0.0.1:{amqp}\n{management}log.file = false\nlog.console = true\n{settings}"),
    )?;
    folder.write("advanced.config", &advanced)?;
    let cookie = folder.write(".erlang.cookie", "POSTRIDERTESTS")?;
    std::fs::set_permissions(cookie, std::fs::Permissions::from_mode(0o400))?;
    Ok(())
}

/// A file of `deploy/rabbitmq`.
fn shipped(name: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq").join(name);
    std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
}

fn environment(folder: &Path, node: &str, amqp: u16, dist: u16, epmd: u16) -> Vec<(String, String)> {
    let path = |name: &str| folder.join(name).display().to_string();
    [
        ("HOME", path("")),
        ("RABBITMQ_HOME", path("")),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODENAME", node.to_owned()),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODE_PORT", amqp.to_string()),
        ("RABBITMQ_DIST_PORT", dist.to_string()),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_PID_FILE", path("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// The broker answers the protocol header with its first method: it has booted.
fn speaks_amqp(port: u16) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut frame = [0_u8; 1];
    stream.read_exact(&mut frame)?;
    if frame[0] != 1 {
        bail!("not a method frame");
    }
    Ok(())
}
