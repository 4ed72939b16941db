//! Providers in the configuration: as they are written, and checked into an [`Account`]. What an account is made of says the provider itself, in
//! [`postrider_providers`].

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use postrider_providers::{
    Account,
    description::{Description, SettingValue, Settings},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use super::{ConfigError, Environment, credentials::secret, reading::duration, settings::Secret};
use crate::policy::answers::Answers;

/// A provider's Web API.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Whose account, with its credentials.
    pub account: Account,
    /// Where the API is; without a path of its own for all but the webhook.
    pub base_url: Url,
    /// How calls are made.
    pub http: HttpConfig,
    /// The account tracks every message by a setting of its own, so that a job which asks for tracking fits.
    pub tracking: bool,
    /// Jobs of the bulk lane may share a call.
    pub batch: bool,
    /// How long a job waits at most for others to share a call with.
    pub batch_linger: Duration,
    /// An answer whose headers say that nothing is left of a window pauses the transport until the next one.
    pub rate_headers: bool,
    /// Whom a refusal is about.
    pub answers: Arc<Answers>,
}

/// How calls are made.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Limit on connecting, TLS included.
    pub connect_timeout: Duration,
    /// Limit on a whole call.
    pub timeout: Duration,
    /// Largest answer that is read, in bytes.
    pub answer_max: usize,
    /// Calls under way at once.
    pub connections: usize,
    /// An HTTP or SOCKS proxy. The environment's is not used.
    pub proxy: Option<Url>,
    /// Trusted besides the system's authorities.
    pub ca_file: Option<PathBuf>,
}

/// A setting of an account, as it is written.
#[derive(Clone)]
pub(super) enum OwnSetting {
    /// A secret.
    Secret(Secret),
    /// A text, which may stand elsewhere as a secret may: a key id, for example.
    Text(Secret),
    /// Anything else.
    Plain(SettingValue),
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub(super) struct ProviderSettings {
    /// Read before; here so that it is known.
    #[serde(rename = "kind")]
    _kind: String,
    base_url: Option<Secret>,
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    connect_timeout: Duration,
    #[serde(default = "timeout", deserialize_with = "duration")]
    timeout: Duration,
    #[serde(default = "answer_max")]
    answer_max: usize,
    #[serde(default = "connections")]
    connections: usize,
    proxy: Option<Secret>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    plaintext_auth: bool,
    #[serde(default)]
    tracking: bool,
    #[serde(default = "batch")]
    batch: bool,
    #[serde(default = "batch_linger", deserialize_with = "duration")]
    batch_linger: Duration,
    #[serde(default = "rate_headers")]
    rate_headers: bool,
}

fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}
fn timeout() -> Duration {
    Duration::from_secs(30)
}
fn answer_max() -> usize {
    1024 * 1024
}
fn connections() -> usize {
    32
}
fn batch() -> bool {
    true
}
fn batch_linger() -> Duration {
    Duration::from_millis(20)
}
fn rate_headers() -> bool {
    true
}

/// Longest linger: a job must not wait noticeably for company.
const LINGER_MAX: Duration = Duration::from_millis(50);

pub(super) fn check(
    name: &str,
    kind: &'static Description,
    settings: ProviderSettings,
    own: BTreeMap<&'static str, OwnSetting>,
    answers: &Arc<Answers>,
    environment: &Environment,
) -> Result<ProviderConfig, ConfigError> {
    let key = |field: &str| format!("transport.{name}.{field}");
    let missing = |field: &str| ConfigError::value(key(field), format!("is required for a {} transport", kind.kind));
    if settings.connections == 0 || settings.answer_max == 0 {
        let field = if settings.connections == 0 { "connections" } else { "answer_max" };
        return Err(ConfigError::value(key(field), "must be at least 1"));
    }
    if settings.batch_linger > LINGER_MAX {
        return Err(ConfigError::value(key("batch_linger"), "must be at most 50ms"));
    }
    let mut addresses: Vec<(&str, Url)> = Vec::new();
    let mut values = Settings::default();
    for (field, value) in own {
        let value = match value {
            OwnSetting::Secret(value) => {
                SettingValue::Secret(not_empty(&key(field), secret(&key(field), value, environment)?)?)
            }
            OwnSetting::Text(value) => {
                SettingValue::Text(secret(&key(field), value, environment)?.expose_secret().to_owned())
            }
            OwnSetting::Plain(value) => value,
        };
        if let SettingValue::Url(url) = &value {
            addresses.push((field, url.clone()));
        }
        values.0.insert(field, value);
    }
    // Found before what the account is made of: it is the whole address of a webhook.
    if kind.base_url.is_none() && settings.base_url.is_none() && !kind.settings.iter().any(|one| one.name == "region") {
        return Err(missing("base_url"));
    }
    let account = Account::read(kind.kind, &mut values).ok_or_else(|| missing("kind"))?;
    let account = account.map_err(|error| match error.reason {
        Some(reason) => ConfigError::value(key(error.field), reason),
        None => missing(error.field),
    })?;
    // An address may hold a key: in its path, or as the login of a proxy.
    let url = |field: &str, value: Option<Secret>| {
        let read = |value| {
            let text = secret(&key(field), value, environment)?;
            Url::parse(text.expose_secret())
                .map_err(|_| ConfigError::value(key(field), "expected an address such as https://api.example.com"))
        };
        value.map(read).transpose()
    };
    let proxy = url("proxy", settings.proxy.clone())?;
    let own_url = || account.api().base_url().or_else(|| kind.base_url.map(str::to_owned));
    let base_url = match url("base_url", settings.base_url.clone())?.or_else(|| Url::parse(&own_url()?).ok()) {
        Some(url) if matches!(url.scheme(), "https" | "http") && url.host_str().is_some() => url,
        _ => return Err(ConfigError::value(key("base_url"), "expected an address such as https://api.example.com")),
    };
    addresses.push(("base_url", base_url.clone()));
    if let Some((field, _)) = addresses.iter().find(|(_, url)| !settings.plaintext_auth && is_clear(url)) {
        let reason = "is http:// on another machine: credentials and mail would cross the network in clear. Use https://, \
                      or set `plaintext_auth = true` where the network is trusted";
        return Err(ConfigError::value(key(field), reason));
    }
    Ok(ProviderConfig {
        account,
        base_url,
        http: HttpConfig {
            connect_timeout: settings.connect_timeout,
            timeout: settings.timeout,
            answer_max: settings.answer_max,
            connections: settings.connections,
            proxy,
            ca_file: settings.ca_file,
        },
        tracking: settings.tracking,
        batch: settings.batch,
        batch_linger: settings.batch_linger,
        rate_headers: settings.rate_headers,
        answers: Arc::clone(answers),
    })
}

/// Whether what is sent there crosses a network without encryption.
fn is_clear(url: &Url) -> bool {
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    url.scheme() == "http" && !is_here
}

fn not_empty(path: &str, value: SecretString) -> Result<SecretString, ConfigError> {
    if value.expose_secret().is_empty() { Err(ConfigError::value(path, "is empty")) } else { Ok(value) }
}
