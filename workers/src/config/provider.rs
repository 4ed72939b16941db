//! Providers in the configuration: as they are written, and checked into an [`Account`].

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use url::{Host, Url};

use super::{
    ConfigError, Environment,
    check::secret,
    settings::{Secret, duration},
};
use crate::policy::capabilities::TransportType;

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

/// An account at a provider.
#[derive(Debug, Clone)]
pub enum Account {
    /// `SendGrid`.
    Sendgrid {
        /// The API key.
        api_key: SecretString,
    },
    /// Amazon SES.
    Ses(SesAccount),
    /// Mailgun.
    Mailgun {
        /// The API key.
        api_key: SecretString,
        /// The sending domain, part of the address of the API.
        domain: String,
    },
    /// Postmark.
    Postmark {
        /// The server's token.
        api_key: SecretString,
        /// The message stream; the server's default where absent.
        message_stream: Option<String>,
    },
    /// Resend.
    Resend {
        /// The API key.
        api_key: SecretString,
    },
    /// Brevo.
    Brevo {
        /// The API key.
        api_key: SecretString,
    },
    /// `SparkPost`.
    Sparkpost {
        /// The API key.
        api_key: SecretString,
        /// The subaccount.
        subaccount: Option<String>,
        /// The account honours `Idempotency-Key`.
        idempotency: bool,
    },
    /// Mailjet.
    Mailjet {
        /// The API key.
        api_key: SecretString,
        /// The secret key.
        secret_key: SecretString,
    },
    /// An address of one's own.
    Webhook {
        /// The signing secret, `whsec_` and base64, or any text.
        secret: SecretString,
    },
}

impl Account {
    /// The kind of transport.
    pub fn kind(&self) -> TransportType {
        match self {
            Self::Sendgrid { .. } => TransportType::Sendgrid,
            Self::Ses(_) => TransportType::Ses,
            Self::Mailgun { .. } => TransportType::Mailgun,
            Self::Postmark { .. } => TransportType::Postmark,
            Self::Resend { .. } => TransportType::Resend,
            Self::Brevo { .. } => TransportType::Brevo,
            Self::Sparkpost { .. } => TransportType::Sparkpost,
            Self::Mailjet { .. } => TransportType::Mailjet,
            Self::Webhook { .. } => TransportType::Webhook,
        }
    }
}

impl Account {
    /// Every secret of the account.
    pub(super) fn secrets(&self) -> Vec<&SecretString> {
        match self {
            Self::Sendgrid { api_key }
            | Self::Mailgun { api_key, .. }
            | Self::Postmark { api_key, .. }
            | Self::Resend { api_key }
            | Self::Brevo { api_key }
            | Self::Sparkpost { api_key, .. } => vec![api_key],
            Self::Mailjet { api_key, secret_key } => vec![api_key, secret_key],
            Self::Webhook { secret } => vec![secret],
            Self::Ses(SesAccount { credentials, .. }) => match credentials {
                SesCredentials::Static { secret_access_key, session_token, .. } => {
                    std::iter::once(secret_access_key).chain(session_token).collect()
                }
                SesCredentials::WebIdentity { .. } => Vec::new(),
            },
        }
    }
}

/// An account at Amazon SES.
#[derive(Debug, Clone)]
pub struct SesAccount {
    /// For example `eu-central-1`.
    pub region: String,
    /// Where the keys come from.
    pub credentials: SesCredentials,
    /// The configuration set of every message.
    pub configuration_set: Option<String>,
    /// The one of messages that ask for tracking.
    pub tracking_configuration_set: Option<String>,
}

/// Where the keys come from.
#[derive(Debug, Clone)]
pub enum SesCredentials {
    /// From the configuration.
    Static {
        /// The access key id.
        access_key_id: String,
        /// The secret access key.
        secret_access_key: SecretString,
        /// The token of temporary keys.
        session_token: Option<SecretString>,
    },
    /// From STS, for the token in a file (Kubernetes service accounts).
    WebIdentity {
        /// The role to assume.
        role_arn: String,
        /// The file that holds the token; read again for each assumption.
        token_file: PathBuf,
        /// Where STS is.
        sts_url: Url,
    },
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub(super) struct ProviderSettings {
    /// Read before; here so that it is known.
    #[serde(rename = "kind")]
    _kind: String,
    base_url: Option<Url>,
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    connect_timeout: Duration,
    #[serde(default = "timeout", deserialize_with = "duration")]
    timeout: Duration,
    #[serde(default = "answer_max")]
    answer_max: usize,
    #[serde(default = "connections")]
    connections: usize,
    proxy: Option<Url>,
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

    api_key: Option<Secret>,
    secret_key: Option<Secret>,
    secret: Option<Secret>,
    domain: Option<String>,
    message_stream: Option<String>,
    subaccount: Option<String>,
    idempotency: Option<bool>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    session_token: Option<Secret>,
    role_arn: Option<String>,
    token_file: Option<PathBuf>,
    sts_url: Option<Url>,
    configuration_set: Option<String>,
    tracking_configuration_set: Option<String>,
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
    kind: TransportType,
    settings: ProviderSettings,
    environment: &Environment,
) -> Result<ProviderConfig, ConfigError> {
    let key = |field: &str| format!("transport.{name}.{field}");
    foreign(&settings, kind, &key)?;
    let needed = |field: &str, value: Option<Secret>| match value {
        Some(value) => not_empty(&key(field), secret(&key(field), value, environment)?),
        None => Err(ConfigError::value(key(field), format!("is required for a {kind} transport"))),
    };
    let text = |field: &str, value: Option<String>| {
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| ConfigError::value(key(field), format!("is required for a {kind} transport")))
    };
    if settings.connections == 0 || settings.answer_max == 0 {
        let field = if settings.connections == 0 { "connections" } else { "answer_max" };
        return Err(ConfigError::value(key(field), "must be at least 1"));
    }
    if settings.batch_linger > LINGER_MAX {
        return Err(ConfigError::value(key("batch_linger"), "must be at most 50ms"));
    }
    let default_url = || default_url(kind, settings.region.as_deref());
    let base_url = match settings.base_url.clone().or_else(default_url) {
        Some(url) if matches!(url.scheme(), "https" | "http") && url.host_str().is_some() => url,
        Some(_) => {
            return Err(ConfigError::value(key("base_url"), "expected an address such as https://api.example.com"));
        }
        None => {
            let field = if kind == TransportType::Ses { "region" } else { "base_url" };
            return Err(ConfigError::value(key(field), format!("is required for a {kind} transport")));
        }
    };
    let account = match kind {
        TransportType::Smtp => return Err(ConfigError::value(key("kind"), "is a relay")),
        TransportType::Sendgrid => Account::Sendgrid { api_key: needed("api_key", settings.api_key.clone())? },
        TransportType::Mailgun => Account::Mailgun {
            api_key: needed("api_key", settings.api_key.clone())?,
            domain: text("domain", settings.domain.clone())?,
        },
        TransportType::Postmark => Account::Postmark {
            api_key: needed("api_key", settings.api_key.clone())?,
            message_stream: settings.message_stream,
        },
        TransportType::Resend => Account::Resend { api_key: needed("api_key", settings.api_key.clone())? },
        TransportType::Brevo => Account::Brevo { api_key: needed("api_key", settings.api_key.clone())? },
        TransportType::Sparkpost => Account::Sparkpost {
            api_key: needed("api_key", settings.api_key.clone())?,
            subaccount: settings.subaccount,
            idempotency: settings.idempotency.unwrap_or(false),
        },
        TransportType::Mailjet => Account::Mailjet {
            api_key: needed("api_key", settings.api_key.clone())?,
            secret_key: needed("secret_key", settings.secret_key.clone())?,
        },
        TransportType::Webhook => Account::Webhook { secret: needed("secret", settings.secret.clone())? },
        TransportType::Ses => Account::Ses(ses(name, &settings, environment)?),
    };
    for (field, url) in [("base_url", Some(&base_url)), ("sts_url", settings.sts_url.as_ref())] {
        if !settings.plaintext_auth && url.is_some_and(is_clear) {
            let reason = "is http:// on another machine: credentials and mail would cross the network in clear. Use https://, \
                          or set `plaintext_auth = true` where the network is trusted";
            return Err(ConfigError::value(key(field), reason));
        }
    }
    Ok(ProviderConfig {
        account,
        base_url,
        http: HttpConfig {
            connect_timeout: settings.connect_timeout,
            timeout: settings.timeout,
            answer_max: settings.answer_max,
            connections: settings.connections,
            proxy: settings.proxy,
            ca_file: settings.ca_file,
        },
        tracking: settings.tracking,
        batch: settings.batch,
        batch_linger: settings.batch_linger,
        rate_headers: settings.rate_headers,
    })
}

fn ses(name: &str, settings: &ProviderSettings, environment: &Environment) -> Result<SesAccount, ConfigError> {
    let key = |field: &str| format!("transport.{name}.{field}");
    let missing = |field: &str| ConfigError::value(key(field), "is required for a ses transport");
    let text =
        |field: &str, value: &Option<String>| value.clone().filter(|v| !v.is_empty()).ok_or_else(|| missing(field));
    let region = text("region", &settings.region)?;
    let by_role = settings.role_arn.is_some() || settings.token_file.is_some();
    if by_role && settings.access_key_id.is_some() {
        return Err(ConfigError::value(key("role_arn"), "stands beside `access_key_id`: give one of the two"));
    }
    let credentials = if by_role {
        let sts_url =
            settings.sts_url.clone().or_else(|| Url::parse(&format!("https://sts.{region}.amazonaws.com")).ok());
        SesCredentials::WebIdentity {
            role_arn: text("role_arn", &settings.role_arn)?,
            token_file: settings.token_file.clone().ok_or_else(|| missing("token_file"))?,
            sts_url: sts_url
                .ok_or_else(|| ConfigError::value(key("region"), "expected a region such as eu-central-1"))?,
        }
    } else {
        let session_token = settings.session_token.clone();
        let secret_access_key = settings.secret_access_key.clone().ok_or_else(|| missing("secret_access_key"))?;
        SesCredentials::Static {
            access_key_id: text("access_key_id", &settings.access_key_id)?,
            secret_access_key: secret(&key("secret_access_key"), secret_access_key, environment)?,
            session_token: session_token.map(|token| secret(&key("session_token"), token, environment)).transpose()?,
        }
    };
    Ok(SesAccount {
        region,
        credentials,
        configuration_set: settings.configuration_set.clone(),
        tracking_configuration_set: settings.tracking_configuration_set.clone(),
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

fn default_url(kind: TransportType, region: Option<&str>) -> Option<Url> {
    let text = match kind {
        TransportType::Smtp | TransportType::Webhook => return None,
        TransportType::Sendgrid => "https://api.sendgrid.com".to_owned(),
        TransportType::Ses => format!("https://email.{}.amazonaws.com", region?),
        TransportType::Mailgun => "https://api.mailgun.net".to_owned(),
        TransportType::Postmark => "https://api.postmarkapp.com".to_owned(),
        TransportType::Resend => "https://api.resend.com".to_owned(),
        TransportType::Brevo => "https://api.brevo.com".to_owned(),
        TransportType::Sparkpost => "https://api.sparkpost.com".to_owned(),
        TransportType::Mailjet => "https://api.mailjet.com".to_owned(),
    };
    Url::parse(&text).ok()
}

/// Settings of other kinds are mistakes.
fn foreign(settings: &ProviderSettings, kind: TransportType, key: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
    use crate::policy::capabilities::TransportType::{
        Brevo, Mailgun, Mailjet, Postmark, Resend, Sendgrid, Ses, Sparkpost, Webhook,
    };
    let owned: [(&str, bool, &[TransportType]); 15] = [
        ("api_key", settings.api_key.is_some(), &[Sendgrid, Mailgun, Postmark, Resend, Brevo, Sparkpost, Mailjet]),
        ("secret_key", settings.secret_key.is_some(), &[Mailjet]),
        ("secret", settings.secret.is_some(), &[Webhook]),
        ("domain", settings.domain.is_some(), &[Mailgun]),
        ("message_stream", settings.message_stream.is_some(), &[Postmark]),
        ("subaccount", settings.subaccount.is_some(), &[Sparkpost]),
        ("idempotency", settings.idempotency.is_some(), &[Sparkpost]),
        ("region", settings.region.is_some(), &[Ses]),
        ("access_key_id", settings.access_key_id.is_some(), &[Ses]),
        ("secret_access_key", settings.secret_access_key.is_some(), &[Ses]),
        ("session_token", settings.session_token.is_some(), &[Ses]),
        ("role_arn", settings.role_arn.is_some(), &[Ses]),
        ("token_file", settings.token_file.is_some(), &[Ses]),
        ("sts_url", settings.sts_url.is_some(), &[Ses]),
        (
            "configuration_set",
            settings.configuration_set.is_some() || settings.tracking_configuration_set.is_some(),
            &[Ses],
        ),
    ];
    match owned.into_iter().find(|(_, is_set, kinds)| *is_set && !kinds.contains(&kind)) {
        Some((field, ..)) => Err(ConfigError::value(key(field), format!("is no setting of a {kind} transport"))),
        None => Ok(()),
    }
}

fn not_empty(path: &str, value: SecretString) -> Result<SecretString, ConfigError> {
    use secrecy::ExposeSecret as _;
    if value.expose_secret().is_empty() { Err(ConfigError::value(path, "is empty")) } else { Ok(value) }
}
