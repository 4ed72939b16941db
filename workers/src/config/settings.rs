//! The configuration as it is written. Nothing is checked here but types.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Mechanism, Tls,
    reading::{bytes, duration, durations, memory, some_word, word},
};

#[derive(Deserialize)]
pub(super) struct Settings {
    pub(super) queue: QueueSettings,
    pub(super) store: StoreSettings,
    pub(super) worker: WorkerSettings,
    pub(super) retry: RetrySettings,
    pub(super) job: JobSettings,
    pub(super) gateway: GatewaySettings,
    pub(super) admin: AdminSettings,
    pub(super) log: LogSettings,
    /// Groups of mailbox domains by name.
    #[serde(default)]
    pub(super) groups: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(super) route: Vec<RouteSettings>,
    pub(super) limits: super::limits::LimitsSettings,
    #[serde(default)]
    pub(super) throttle: Vec<super::transport_limits::MailboxProviderLimitSettings>,
    #[serde(default)]
    pub(super) shaping_rule: Vec<super::shaping_rules::ShapingRuleSettings>,
    #[serde(default)]
    pub(super) answer: Vec<super::answers::AnswerSettings>,
    pub(super) dns: super::limits::DnsSettings,
}

#[derive(Deserialize)]
pub(super) struct QueueSettings {
    pub(super) url: Secret,
    #[serde(deserialize_with = "word")]
    pub(super) topology: TopologySetting,
    pub(super) shards: u16,
    /// Users of the broker, each with its tenants.
    pub(super) tenants: Option<BTreeMap<String, Tenants>>,
}

/// The tenants of a user.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a tenant, a list of tenants, or \"*\" for every one")]
pub(super) enum Tenants {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TopologySetting {
    Apply,
    Verify,
}

#[derive(Deserialize)]
pub(super) struct StoreSettings {
    pub(super) url: Secret,
    #[serde(deserialize_with = "duration")]
    pub(super) lease: Duration,
    #[serde(deserialize_with = "duration")]
    pub(super) retention: Duration,
    pub(super) single_machine: bool,
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
pub(super) struct WorkerSettings {
    pub(super) threads: usize,
    pub(super) transactional: u16,
    pub(super) bulk: u16,
    #[serde(deserialize_with = "duration")]
    pub(super) drain: Duration,
    pub(super) poison_after: u32,
    #[serde(deserialize_with = "memory")]
    pub(super) memory: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct RetrySettings {
    #[serde(deserialize_with = "durations")]
    pub(super) schedule: Vec<Duration>,
    pub(super) jitter: f64,
    #[serde(deserialize_with = "duration")]
    pub(super) config_wait: Duration,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the settings")]
pub(super) struct JobSettings {
    pub(super) bytes_max: usize,
    pub(super) headers_max: usize,
    pub(super) field_octets_max: usize,
}

#[derive(Deserialize)]
pub(super) struct GatewaySettings {
    pub(super) listen: String,
    pub(super) keys: PathBuf,
    pub(super) signing_secret: Option<Secret>,
    #[serde(deserialize_with = "bytes")]
    pub(super) body_max: u64,
    #[serde(deserialize_with = "bytes")]
    pub(super) memory: u64,
    pub(super) connections: usize,
    #[serde(deserialize_with = "duration")]
    pub(super) read_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub(super) confirm_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub(super) drain: Duration,
    pub(super) smtp: SubmissionSettings,
}

#[derive(Deserialize)]
pub(super) struct SubmissionSettings {
    pub(super) listen: String,
    pub(super) listen_tls: String,
    pub(super) certificate: PathBuf,
    pub(super) private_key: PathBuf,
    pub(super) plaintext_auth: bool,
    pub(super) derive_key: bool,
}

#[derive(Deserialize)]
pub(super) struct AdminSettings {
    pub(super) listen: String,
}

#[derive(Deserialize)]
pub(super) struct LogSettings {
    pub(super) level: String,
    #[serde(deserialize_with = "word")]
    pub(super) format: LogFormatSetting,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormatSetting {
    Json,
    Pretty,
    Auto,
}

#[derive(Deserialize)]
pub(super) struct SmtpRelaySettings {
    /// Read before; here so that it is known.
    #[serde(rename = "kind")]
    _kind: String,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    #[serde(default = "starttls", deserialize_with = "word")]
    pub(super) tls: Tls,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) hello: Option<String>,
    pub(super) username: Option<Secret>,
    pub(super) password: Option<Secret>,
    #[serde(default, deserialize_with = "word")]
    pub(super) mechanism: Mechanism,
    #[serde(default)]
    pub(super) plaintext_auth: bool,
    #[serde(default = "connections")]
    pub(super) connections: usize,
    #[serde(default = "messages_per_connection")]
    pub(super) messages_per_connection: u32,
    #[serde(default = "idle", deserialize_with = "duration")]
    pub(super) idle: Duration,
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    pub(super) connect_timeout: Duration,
    #[serde(default = "command_timeout", deserialize_with = "duration")]
    pub(super) command_timeout: Duration,
    #[serde(default = "final_timeout", deserialize_with = "duration")]
    pub(super) final_timeout: Duration,
    #[serde(default = "pipelining")]
    pub(super) pipelining: bool,
}

fn pipelining() -> bool {
    true
}
fn starttls() -> Tls {
    Tls::Starttls
}
fn connections() -> usize {
    10
}
fn messages_per_connection() -> u32 {
    1000
}
fn idle() -> Duration {
    Duration::from_secs(30)
}
fn connect_timeout() -> Duration {
    Duration::from_secs(10)
}
fn command_timeout() -> Duration {
    Duration::from_secs(60)
}
fn final_timeout() -> Duration {
    Duration::from_mins(10)
}

#[derive(Deserialize)]
pub(super) struct RouteSettings {
    pub(super) name: String,
    #[serde(default)]
    pub(super) when: WhenSettings,
    pub(super) send: SendSetting,
    #[serde(default, deserialize_with = "word")]
    pub(super) on_limit: OnLimitSetting,
    #[serde(default, deserialize_with = "some_word")]
    pub(super) on_unknown: Option<OnUnknownSetting>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of transports, or weights such as { a = 90, b = 10 }")]
pub(super) enum SendSetting {
    Ordered(Vec<String>),
    Weighted(BTreeMap<String, u32>),
}

#[derive(Deserialize, Default)]
pub(super) struct WhenSettings {
    #[serde(default, deserialize_with = "some_word")]
    pub(super) lane: Option<postrider_schemas::Lane>,
    pub(super) tenants: Option<Vec<String>>,
    pub(super) tags: Option<TextsSetting>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, TextsSetting>,
    pub(super) sender_domains: Option<Vec<String>>,
    pub(super) recipient_domains: Option<Vec<String>>,
    pub(super) recipient_groups: Option<Vec<String>>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, TextsSetting>,
    pub(super) bytes_min: Option<usize>,
    pub(super) bytes_max: Option<usize>,
    pub(super) attachments: Option<bool>,
    pub(super) tracking: Option<bool>,
    pub(super) recipients_min: Option<usize>,
    pub(super) recipients_max: Option<usize>,
    pub(super) not: Option<Box<WhenSettings>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a list of texts, or { regex = \"..\" }")]
pub(super) enum TextsSetting {
    One(String),
    Many(Vec<String>),
    Regex(Regex),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Regex {
    pub(super) regex: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnLimitSetting {
    #[default]
    Wait,
    Next,
    Expire,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnUnknownSetting {
    Hold,
    Resend,
}

/// A secret: a text, or where to find one.
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "expected a text, { env = \"NAME\" } or { file = \"/path\" }")]
pub(super) enum Secret {
    Text(String),
    Env(SecretInEnv),
    File(SecretInFile),
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretInEnv {
    pub(super) env: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretInFile {
    pub(super) file: PathBuf,
}
