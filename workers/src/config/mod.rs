//! The configuration: compiled-in defaults, then a file, then the environment; checked once into [`Config`], which cannot name a
//! transport that does not exist or lack a catch-all route.

mod answers;
mod check;
mod credentials;
mod gateway;
mod limits;
mod load;
mod names;
mod provider;
mod ramp;
mod reading;
mod routes;
mod settings;
mod shaping_rules;
mod transport_limits;
mod words;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use postrider_schemas::JobLimits;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::{
    memory::{self, Budget},
    policy::{
        answers::Answers,
        capabilities::{Capabilities, TransportType},
        publisher::Publishers,
        retry::RetrySchedule,
        route::Routes,
    },
    redact,
};

pub use postrider_providers::{
    Account,
    ses::{SesAccount, SesCredentials},
};

pub use provider::{HttpConfig, ProviderConfig};

pub use self::transport_limits::{Covers, Doubt, GroupRatesAt, MailboxProviderLimit};
pub use answers::shipped as shipped_answers;
pub use limits::{DnsConfig, LimitsConfig, TenantLimits, TransportLimits};
pub use load::{load, load_from, load_text, load_without_credentials, to_catcher};
pub use ramp::Ramp;
pub(crate) use reading::{parse_duration, show_duration};
pub use words::{DEFAULTS, strays};

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The queue.
    pub queue: QueueConfig,
    /// The store.
    pub store: StoreConfig,
    /// The worker.
    pub worker: WorkerConfig,
    /// The retry schedule.
    pub retry: RetrySchedule,
    /// The wait while a transport needs a person.
    pub config_wait: Duration,
    /// Limits on a job.
    pub job: JobLimits,
    /// Where `/healthz` and `/readyz` listen.
    pub admin: Option<SocketAddr>,
    /// The gateway.
    pub gateway: postrider_gateway::GatewayConfig,
    /// Logging.
    pub log: LogConfig,
    /// The ways out, in the order of their names. Routes name them by position.
    pub transports: Vec<TransportConfig>,
    /// Files beside the configuration that it names: secrets and authorities.
    pub files: Vec<PathBuf>,
    /// The rules; the last one takes everything. Empty only where a command needs none.
    pub routes: Routes,
    /// How fast mail may go.
    pub limits: LimitsConfig,
    /// What is asked of DNS.
    pub dns: DnsConfig,
    /// Transports without credentials, because those are not here: only for commands that look.
    pub without_credentials: Vec<String>,
    /// Rates that grow by the calendar: they stand in the limits as they are now.
    pub ramps: Vec<Ramp>,
    /// Whom an SMTP reply is about: the configured entries, then those that ship.
    pub answers: Arc<Answers>,
}

impl Config {
    /// What may be meant otherwise than it is written, for people.
    pub fn warnings(&self) -> Vec<String> {
        let port = |one: &TransportConfig| {
            let TransportKind::Smtp(smtp) = &one.kind else { return None };
            let usual = match (smtp.port, smtp.tls) {
                (465, Tls::Starttls | Tls::None) => "implicit",
                (587, Tls::Implicit) => "starttls",
                _ => return None,
            };
            let (name, port) = (&one.name, smtp.port);
            Some(format!(
                "transport {name}: port {port} usually speaks tls = \"{usual}\"; a relay that waits for the other says nothing"
            ))
        };
        let throttles = self.limits.throttles.iter().filter_map(MailboxProviderLimit::warning);
        throttles.chain(self.transports.iter().filter_map(port)).collect()
    }

    /// Everything in it that no answer, error or log line may hold.
    pub fn unspeakable(&self) -> Vec<SecretString> {
        let urls = [&self.queue.url, &self.store.url].into_iter().flat_map(|url| redact::of_url(url.expose_secret()));
        urls.chain(self.transports.iter().flat_map(TransportConfig::unspeakable)).collect()
    }
}

/// The queue.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// `amqp(s)://...` or `embedded:FILE`. A secret, because it may hold a password.
    pub url: SecretString,
    /// Whether workers declare what is missing.
    pub topology: TopologyMode,
    /// Queues per lane.
    pub shards: u16,
    /// Which user of the broker may publish for which tenants.
    pub publishers: Publishers,
}

/// What a worker does about the topology at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyMode {
    /// Declares what is missing.
    Apply,
    /// Looks, and names the command that mends what is missing.
    Verify,
    /// Does not look.
    LeaveAlone,
}

/// The store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `redis://...` and its kin, or `embedded:FILE`. A secret, because it may hold a password.
    pub url: SecretString,
    /// How long a claim lasts when its worker dies.
    pub lease: Duration,
    /// How long a finished job is remembered.
    pub retention: Duration,
    /// Every worker of the queue runs on this machine, with this file.
    pub single_machine: bool,
    /// Authorities that Redis is trusted by instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Refuses a queue that many machines share beside a ledger that this machine keeps for itself.
    pub fn store_is_shared(&self) -> Result<(), ConfigError> {
        let is_local = |url: &SecretString| url.expose_secret().starts_with("embedded:");
        if is_local(&self.queue.url) || !is_local(&self.store.url) || self.store.single_machine {
            return Ok(());
        }
        Err(ConfigError::value(
            "store.url",
            "is a SQLite file, which no other machine sees, but RabbitMQ gives jobs to every worker: two workers with two files would send a \
             job twice. Set store.url to a Redis that all workers share, such as redis://host:6379/0; or, if every worker of this queue \
             runs on this machine and uses this very file, set store.single_machine = true",
        ))
    }
}

/// The worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Threads of the runtime.
    pub threads: usize,
    /// Transactional jobs in hand at once.
    pub transactional: u16,
    /// Bulk jobs in hand at once.
    pub bulk: u16,
    /// How long a stop waits.
    pub drain: Duration,
    /// Lost workers before quarantine.
    pub poison_after: u32,
    /// Bytes that the process may take; nothing: as its surroundings say.
    pub memory: Option<u64>,
}

impl WorkerConfig {
    /// How the memory of a worker is divided.
    pub fn budget(&self) -> Budget {
        Budget::of(self.memory.unwrap_or_else(|| memory::limit(|path| std::fs::read_to_string(path).ok())))
    }
}

/// Logging.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Level or directives.
    pub level: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// JSON.
    Json,
    /// For people.
    Pretty,
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
}

/// A way out.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// Its name.
    pub name: String,
    /// Its kind and settings.
    pub kind: TransportKind,
}

/// The kinds of transport.
#[derive(Debug, Clone)]
pub enum TransportKind {
    /// An SMTP relay.
    Smtp(Box<SmtpConfig>),
    /// A provider's Web API.
    Provider(Box<ProviderConfig>),
}

impl TransportConfig {
    /// Which kind it is.
    pub fn kind(&self) -> TransportType {
        match &self.kind {
            TransportKind::Smtp(_) => TransportType::Smtp,
            TransportKind::Provider(provider) => TransportType::Provider(provider.account.description().kind),
        }
    }

    /// Differs, all but certainly, where the settings differ. Sixteen bits: enough to tell a mended transport from a broken one, too few to find
    /// out a password from them.
    pub fn fingerprint(&self) -> u16 {
        let mut hasher = Sha256::new();
        // `Debug` shows everything but the secrets.
        hasher.update(format!("{:?}", self.kind));
        for secret in self.secrets() {
            hasher.update([0]);
            hasher.update(secret.expose_secret());
        }
        let hash = hasher.finalize();
        u16::from_be_bytes([hash[0], hash[1]])
    }

    /// True where nothing is different, secrets included.
    pub fn is_same(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.secrets(), other.secrets());
        let is_same = |(one, other): (&SecretString, &SecretString)| one.expose_secret() == other.expose_secret();
        self.name == other.name
            && format!("{:?}", self.kind) == format!("{:?}", other.kind)
            && ours.len() == theirs.len()
            && ours.into_iter().zip(theirs).all(is_same)
    }

    /// Most connections, or calls, at once.
    pub fn connections(&self) -> usize {
        match &self.kind {
            TransportKind::Smtp(smtp) => smtp.connections,
            TransportKind::Provider(provider) => provider.http.connections,
        }
    }

    /// Its credentials.
    pub fn secrets(&self) -> Vec<&SecretString> {
        match &self.kind {
            TransportKind::Smtp(smtp) => smtp.login.iter().map(|login| &login.password).collect(),
            TransportKind::Provider(provider) => provider.account.secrets(),
        }
    }

    /// Everything of it that no text may hold: its credentials, and those in its addresses.
    pub fn unspeakable(&self) -> Vec<SecretString> {
        let mut list: Vec<SecretString> = self.secrets().into_iter().cloned().collect();
        if let TransportKind::Provider(provider) = &self.kind {
            list.extend(redact::of_url(provider.base_url.as_str()));
            list.extend(provider.http.proxy.iter().flat_map(|proxy| redact::of_url(proxy.as_str())));
            // The whole address of a webhook is in the settings, and often what stands behind the host is the key.
            if matches!(provider.account, Account::Webhook(_)) {
                let path = provider.base_url.path().trim_matches('/');
                list.extend(path.rsplit('/').next().filter(|part| part.len() >= 16).map(SecretString::from));
                list.extend(provider.base_url.query_pairs().map(|(_, value)| SecretString::from(value.into_owned())));
            }
        }
        list
    }

    /// What it can carry: the table, widened by what the account's settings say.
    pub fn capabilities(&self) -> Capabilities {
        let TransportKind::Provider(provider) = &self.kind else { return Capabilities::SMTP };
        let table = provider.account.api().capabilities(provider.account.description().capabilities);
        let tracks = provider.tracking;
        let batch_max = if provider.batch { table.batch_max } else { 1 };
        Capabilities { opens: table.opens || tracks, clicks: table.clicks || tracks, batch_max, ..table }
    }
}

/// An SMTP relay.
#[derive(Debug, Clone)]
pub struct SmtpConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: Tls,
    /// Trusted besides the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Name said in EHLO; the host name where absent.
    pub hello: Option<String>,
    /// Credentials.
    pub login: Option<Login>,
    /// Allow credentials on a connection without TLS.
    pub plaintext_auth: bool,
    /// Most connections at once.
    pub connections: usize,
    /// Messages after which a connection is closed.
    pub messages_per_connection: u32,
    /// Time after which an unused connection is closed.
    pub idle: Duration,
    /// Limit on connecting.
    pub connect_timeout: Duration,
    /// Limit on each command and on writing the message.
    pub command_timeout: Duration,
    /// Limit on the answer to the final dot.
    pub final_timeout: Duration,
    /// Send the envelope in one go where the relay offers that.
    pub pipelining: bool,
    /// Whom a reply is about.
    pub answers: Arc<Answers>,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Not at all.
    None,
    /// Upgraded before anything else is said.
    Starttls,
    /// From the first byte.
    Implicit,
}

/// Credentials.
#[derive(Debug, Clone)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: SecretString,
    /// SASL mechanism.
    pub mechanism: Mechanism,
}

/// SASL mechanisms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// PLAIN where offered, else LOGIN.
    #[default]
    Auto,
    /// PLAIN
    Plain,
    /// LOGIN
    Login,
    /// XOAUTH2
    Xoauth2,
}

/// Why a configuration was refused. The text names the key and where it came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The layers do not fit together.
    #[error("{}", words::in_words(&.0.to_string()))]
    Source(#[from] config::ConfigError),
    /// The file cannot be read, or is not TOML.
    #[error("{place}: {reason}")]
    Text {
        /// Which file, and which line.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A value has the wrong type.
    #[error("setting `{path}`: {reason}")]
    Value {
        /// The key.
        path: String,
        /// What is wrong and, where known, in which file.
        reason: String,
    },
    /// Keys that do not exist.
    #[error("unknown setting{} {}", if .0.len() == 1 { "" } else { "s" }, .0.join(", "))]
    Unknown(Vec<String>),
}

impl ConfigError {
    fn value(path: impl Into<String>, reason: impl ToString) -> Self {
        Self::Value { path: path.into(), reason: reason.to_string() }
    }
}

/// The variables of this process.
pub fn process_environment() -> Environment {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// Variables that stand for the process environment.
pub type Environment = BTreeMap<String, String>;
