//! The configuration as it is written. Nothing is checked here but types.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, IntoDeserializer as _, value::StrDeserializer},
};

use super::{Mechanism, Tls};

#[derive(Deserialize)]
pub(super) struct Settings {
    pub(super) queue: QueueSettings,
    pub(super) store: StoreSettings,
    pub(super) worker: WorkerSettings,
    pub(super) retry: RetrySettings,
    pub(super) job: JobSettings,
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
    pub(super) line_octets_max: usize,
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
    pub(super) username: Option<String>,
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

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A size such as `512MiB`; nothing for `auto`.
fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "auto" { Ok(None) } else { parse_bytes(&text).map(Some).map_err(D::Error::custom) }
}

/// Reads `512MiB`, `2 GiB`, `64KiB`, `1048576`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let shift = match text[digits..].trim() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("expected a size such as 512MiB or 2GiB, or \"auto\"".to_owned()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "expected a number before the unit".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}

/// One of the words that a setting takes, in any case.
pub(super) fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    read_word(&String::deserialize(deserializer)?)
}

pub(super) fn some_word<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

pub(super) fn words<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    texts(deserializer)?.iter().map(|text| read_word(text)).collect()
}

/// The error names the words that there are.
fn read_word<T: DeserializeOwned, E: serde::de::Error>(text: &str) -> Result<T, E> {
    let lower = text.to_lowercase();
    let word: StrDeserializer<'_, serde::de::value::Error> = lower.as_str().into_deserializer();
    T::deserialize(word).map_err(|error| E::custom(error.to_string().replacen("unknown variant", "unknown word", 1)))
}

/// A text, several of them in a list, or separated by commas as the environment writes them.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum List {
        Many(Vec<String>),
        One(String),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Many(list) => list,
        List::One(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
    })
}

fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of durations such as [\"30s\", \"2m\"]")]
    enum List {
        Many(Vec<String>),
        /// From the environment: separated by commas.
        One(String),
    }
    let texts = match List::deserialize(deserializer)? {
        List::Many(list) => list,
        List::One(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
    };
    texts.iter().map(|text| parse_duration(text).map_err(D::Error::custom)).collect()
}

/// Beyond it clocks and stores overflow.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);

/// `500ms`, `30s`, `2m`, `12h`, `7d`: a number and one unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || "expected a duration such as 500ms, 30s, 2m, 12h or 7d".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(bad);
    let duration = match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => Err(bad()),
    }?;
    if duration > DURATION_MAX { Err("at most 3650d".to_owned()) } else { Ok(duration) }
}

/// A duration as it is written: in the longest unit of which it is a whole number.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let whole = units.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{ms}ms"), |(name, unit)| format!("{}{name}", ms / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for text in ["500ms", "30s", "90s", "30m", "90m", "12h", "7d"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(Duration::from_mins(60)), "1h");
    }
}
