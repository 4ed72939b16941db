//! From settings as they are written to a configuration that holds together.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postrider_producer::rabbitmq::address;
use postrider_providers::description::Description;
use postrider_schemas::{JobLimits, Tenant};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Config, ConfigError, Environment, LogConfig, LogFormat, Login, QueueConfig, SmtpConfig, StoreConfig, Tls,
    TopologyMode, TransportConfig, TransportKind, WorkerConfig, answers,
    credentials::secret,
    gateway,
    limits::{self, PaceSettings},
    names::ScopeNames,
    provider::{self, OwnSetting, ProviderSettings},
    routes,
    settings::{self, Secret, Settings},
};
use crate::{
    policy::{
        answers::Answers,
        mailbox_provider::MailboxProviders,
        publisher::{Publishers, Tenants},
        retry::RetrySchedule,
    },
    store::{self, transitions},
};

/// With the largest jitter, which doubles it, a wait is shorter than the delay ladder's longest one.
const RETRY_WAIT_MAX: Duration = Duration::from_hours(12 * 24);

/// Least memory of a worker.
const MEMORY_MIN: u64 = 64 << 20;

/// The section of one transport, as it is written.
pub(super) enum Section {
    Relay(Box<settings::SmtpRelaySettings>),
    Provider(&'static Description, Box<ProviderSettings>, BTreeMap<&'static str, OwnSetting>),
}

pub(super) fn check(
    settings: Settings,
    transports: BTreeMap<String, Section>,
    paces: BTreeMap<String, PaceSettings>,
    environment: &Environment,
) -> Result<Config, ConfigError> {
    in_range(&settings)?;
    let answers = answers::check(settings.answer)?;
    let transports = transports
        .into_iter()
        .map(|(name, section)| transport_config(name, section, &answers, environment))
        .collect::<Result<Vec<_>, _>>()?;
    let names = ScopeNames { groups: &settings.groups, transports: &transports };
    let limits = limits::check(settings.limits, settings.throttle, settings.shaping_rule, paces, &names)?;
    let dns = limits::dns(settings.dns)?;
    let groups = MailboxProviders(limits.groups.0.iter().chain(&limits.lists).cloned().collect());
    let routes = routes::check(settings.route, &groups, &transports)?;
    let admin =
        match settings.admin.listen.as_str() {
            "off" => None,
            text => Some(text.parse().map_err(|_| {
                ConfigError::value("admin.listen", "expected an address such as 0.0.0.0:8080, or \"off\"")
            })?),
        };
    let queue_url = secret("queue.url", settings.queue.url, environment)?;
    let publishers = publishers(settings.queue.tenants, queue_url.expose_secret())?;
    broker(queue_url.expose_secret())?;
    let job = JobLimits {
        bytes_max: settings.job.bytes_max,
        headers_max: settings.job.headers_max,
        field_octets_max: settings.job.field_octets_max,
        ..JobLimits::DEFAULT
    };
    let store_url = store_url(settings.store.url, environment)?;
    level(&settings.log.level)?;
    Ok(Config {
        queue: QueueConfig {
            url: queue_url,
            topology: match settings.queue.topology {
                settings::TopologySetting::Apply => TopologyMode::Apply,
                settings::TopologySetting::Verify => TopologyMode::Verify,
            },
            shards: settings.queue.shards,
            publishers,
        },
        store: StoreConfig {
            url: store_url,
            lease: settings.store.lease,
            retention: settings.store.retention,
            single_machine: settings.store.single_machine,
            ca_file: settings.store.ca_file,
        },
        worker: WorkerConfig {
            threads: settings.worker.threads,
            transactional: settings.worker.transactional,
            bulk: settings.worker.bulk,
            drain: settings.worker.drain,
            poison_after: settings.worker.poison_after,
            memory: settings.worker.memory,
        },
        retry: RetrySchedule { waits: settings.retry.schedule, jitter: settings.retry.jitter },
        config_wait: settings.retry.config_wait,
        gateway: gateway::check(settings.gateway, job, environment)?,
        job,
        admin,
        log: LogConfig {
            level: settings.log.level,
            format: match settings.log.format {
                settings::LogFormatSetting::Json => LogFormat::Json,
                settings::LogFormatSetting::Pretty => LogFormat::Pretty,
                settings::LogFormatSetting::Auto => LogFormat::Auto,
            },
        },
        transports,
        files: Vec::new(),
        routes,
        limits,
        dns,
        without_credentials: Vec::new(),
        ramps: Vec::new(),
        answers,
    })
}

/// Numbers and times that make no sense.
fn in_range(settings: &Settings) -> Result<(), ConfigError> {
    let at_least_one = |path: &str, n: usize| {
        if n == 0 { Err(ConfigError::value(path, "must be at least 1")) } else { Ok(()) }
    };
    at_least_one("queue.shards", settings.queue.shards.into())?;
    at_least_one("worker.threads", settings.worker.threads)?;
    at_least_one("worker.transactional", settings.worker.transactional.into())?;
    at_least_one("worker.bulk", settings.worker.bulk.into())?;
    at_least_one("worker.poison_after", settings.worker.poison_after as usize)?;
    if settings.worker.memory.is_some_and(|bytes| bytes < MEMORY_MIN) {
        return Err(ConfigError::value("worker.memory", "must be at least 64MiB: a worker without mail takes 40"));
    }
    if settings.store.lease < Duration::from_secs(1) {
        return Err(ConfigError::value("store.lease", "must be at least 1s"));
    }
    if settings.store.lease > Duration::from_millis(transitions::LEASE_MAX_MS) {
        return Err(ConfigError::value("store.lease", "must be at most 10m"));
    }
    if settings.retry.schedule.iter().any(|wait| *wait > RETRY_WAIT_MAX) {
        return Err(ConfigError::value(
            "retry.schedule",
            "a wait must be at most 12d: with its jitter it has to fit into the delay ladder",
        ));
    }
    if settings.store.retention < Duration::from_secs(1) {
        return Err(ConfigError::value("store.retention", "must be at least 1s"));
    }
    if !(0.0..=1.0).contains(&settings.retry.jitter) {
        return Err(ConfigError::value("retry.jitter", "must be from 0 to 1"));
    }
    Ok(())
}

/// Who may publish for whom. A file has no users: whoever may write to it may publish for everybody.
fn publishers(tenants: Option<BTreeMap<String, settings::Tenants>>, url: &str) -> Result<Publishers, ConfigError> {
    let Some(tenants) = tenants else { return Ok(None) };
    if url.starts_with("embedded:") {
        return Err(ConfigError::value(
            "queue.tenants",
            "needs RabbitMQ: an embedded queue does not know who publishes",
        ));
    }
    let one = |(user, tenants): (String, settings::Tenants)| {
        let names = match tenants {
            settings::Tenants::One(name) if name == "*" => return Ok((user, Tenants::Any)),
            settings::Tenants::One(name) => vec![name],
            settings::Tenants::Many(names) => names,
        };
        let parsed = names.iter().map(|name| Tenant::parse(name)).collect::<Result<_, _>>();
        let list = parsed
            .map_err(|error| ConfigError::value(format!("queue.tenants.{}", user.escape_debug()), error.to_string()))?;
        Ok((user, Tenants::Listed(list)))
    };
    tenants.into_iter().map(one).collect::<Result<_, _>>().map(Some)
}

/// An address that cannot be used is found before anything connects.
fn broker(url: &str) -> Result<(), ConfigError> {
    match url.strip_prefix("embedded:") {
        Some("") => Err(ConfigError::value("queue.url", "the file is missing: embedded:FILE")),
        Some(_) => Ok(()),
        None => match address::parse(url) {
            Ok(_) => Ok(()),
            Err(error) if url.starts_with("amqp") && url.contains("://") => Err(ConfigError::value("queue.url", error)),
            Err(_) => Err(ConfigError::value("queue.url", "expected amqp://HOST, amqps://HOST or embedded:FILE")),
        },
    }
}

/// The same for the store.
fn store_url(url: Secret, environment: &Environment) -> Result<SecretString, ConfigError> {
    let url = secret("store.url", url, environment)?;
    if url.expose_secret() == "embedded:" {
        return Err(ConfigError::value("store.url", "the file is missing: embedded:FILE"));
    }
    store::shown(url.expose_secret()).map_err(|error| {
        let text = error.to_string();
        ConfigError::value("store.url", text.strip_prefix("store.url: ").unwrap_or(&text))
    })?;
    Ok(url)
}

/// A word that is no level would be taken for the name of a module, and everything else would be silent.
fn level(text: &str) -> Result<(), ConfigError> {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].iter().any(|level| word.trim().eq_ignore_ascii_case(level))
    };
    // `[span]` in a directive selects more than a module.
    let is_sound = |one: &str| one.contains('[') || is_level(one.rsplit_once('=').map_or(one, |(_, level)| level));
    if text.split(',').all(is_sound) {
        return Ok(());
    }
    let reason = "expected error, warn, info, debug, trace or off, or directives such as info,postrider_workers=debug";
    Err(ConfigError::value("log.level", reason))
}

fn transport_config(
    name: String,
    section: Section,
    answers: &Arc<Answers>,
    environment: &Environment,
) -> Result<TransportConfig, ConfigError> {
    // A colon parts the name from what follows it in the names of scopes; a blank parts words in commands and log lines.
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control() || c.is_whitespace()) {
        let reason = "a transport has a name without colons, blanks and control characters";
        return Err(ConfigError::value(format!("transport.{}", name.escape_debug()), reason));
    }
    let kind = match section {
        Section::Relay(settings) => TransportKind::Smtp(Box::new(relay(&name, *settings, answers, environment)?)),
        Section::Provider(kind, settings, own) => {
            TransportKind::Provider(Box::new(provider::check(&name, kind, *settings, own, answers, environment)?))
        }
    };
    Ok(TransportConfig { name, kind })
}

fn relay(
    name: &str,
    settings: settings::SmtpRelaySettings,
    answers: &Arc<Answers>,
    environment: &Environment,
) -> Result<SmtpConfig, ConfigError> {
    let key = |field: &str| format!("transport.{name}.{field}");
    let host = settings.host.filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| ConfigError::value(key("host"), "is required for an SMTP relay"))?;
    let host = address::host_name(&host).map_err(|error| ConfigError::value(key("host"), error))?;
    if settings.connections == 0 || settings.messages_per_connection == 0 {
        let field = if settings.connections == 0 { "connections" } else { "messages_per_connection" };
        return Err(ConfigError::value(key(field), "must be at least 1"));
    }
    let login = match (settings.username, settings.password) {
        (None, None) => None,
        (Some(username), Some(password)) => Some(Login {
            username: secret(&key("username"), username, environment)?.expose_secret().to_owned(),
            password: secret(&key("password"), password, environment)?,
            mechanism: settings.mechanism,
        }),
        (Some(_), None) => return Err(ConfigError::value(key("password"), "is required where there is a username")),
        (None, Some(_)) => return Err(ConfigError::value(key("username"), "is required where there is a password")),
    };
    let port = settings.port.unwrap_or(match settings.tls {
        Tls::None => 25,
        Tls::Starttls => 587,
        Tls::Implicit => 465,
    });
    Ok(SmtpConfig {
        host,
        port,
        tls: settings.tls,
        ca_file: settings.ca_file,
        hello: settings.hello,
        login,
        plaintext_auth: settings.plaintext_auth,
        connections: settings.connections,
        messages_per_connection: settings.messages_per_connection,
        idle: settings.idle,
        connect_timeout: settings.connect_timeout,
        command_timeout: settings.command_timeout,
        final_timeout: settings.final_timeout,
        pipelining: settings.pipelining,
        answers: Arc::clone(answers),
    })
}
