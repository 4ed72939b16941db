//! The settings of `postrider gateway`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use postrider_gateway::{GatewayConfig, config::SmtpConfig};
use postrider_schemas::JobLimits;
use secrecy::ExposeSecret as _;

use super::{
    ConfigError, Environment,
    credentials::secret,
    settings::{GatewaySettings, SubmissionSettings},
};

/// Shortest secret that others are made from.
const SIGNING_SECRET_MIN: usize = 16;
/// Least memory of a gateway.
const MEMORY_MIN: u64 = 16 << 20;

pub(super) fn check(
    settings: GatewaySettings,
    job: JobLimits,
    environment: &Environment,
) -> Result<GatewayConfig, ConfigError> {
    let wrong = |key: &str, reason: &str| Err(ConfigError::value(format!("gateway.{key}"), reason));
    let Ok(listen) = settings.listen.parse() else {
        return wrong("listen", "expected an address such as 0.0.0.0:8000");
    };
    if settings.connections == 0 {
        return wrong("connections", "must be at least 1");
    }
    if settings.memory < MEMORY_MIN {
        return wrong("memory", "must be at least 16MiB");
    }
    // A body is held several times while it becomes a job.
    if settings.body_max == 0 || settings.body_max > settings.memory / 4 {
        return wrong("body_max", "must be at least 1 byte, and at most a quarter of gateway.memory");
    }
    for (key, time) in [("read_timeout", settings.read_timeout), ("confirm_timeout", settings.confirm_timeout)] {
        if time < Duration::from_secs(1) {
            return wrong(key, "must be at least 1s");
        }
    }
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let secret = settings.signing_secret.map(|one| secret("gateway.signing_secret", one, environment)).transpose()?;
    if secret.as_ref().is_some_and(|secret| secret.expose_secret().len() < SIGNING_SECRET_MIN) {
        return wrong("signing_secret", "must have at least 16 characters: whoever guesses it can sign for every key");
    }
    Ok(GatewayConfig {
        listen,
        signing_secret: secret,
        keys: named(settings.keys),
        body_max: size(settings.body_max),
        memory: size(settings.memory),
        connections: settings.connections,
        read_timeout: settings.read_timeout,
        confirm_timeout: settings.confirm_timeout,
        drain: settings.drain,
        smtp: submission(settings.smtp)?,
        job,
    })
}

fn submission(settings: SubmissionSettings) -> Result<SmtpConfig, ConfigError> {
    let smtp = SmtpConfig {
        listen: address("listen", &settings.listen, 587)?,
        listen_tls: address("listen_tls", &settings.listen_tls, 465)?,
        certificate: named(settings.certificate),
        private_key: named(settings.private_key),
        plaintext_auth: settings.plaintext_auth,
        derive_key: settings.derive_key,
    };
    let wrong = |key: &str, reason: &str| Err(ConfigError::value(format!("gateway.smtp.{key}"), reason));
    match (&smtp.certificate, &smtp.private_key) {
        (Some(_), None) => return wrong("private_key", "is missing: the file of the certificate's key"),
        (None, Some(_)) => return wrong("certificate", "is missing: the file of the key's certificate"),
        (None, None) if smtp.listen_tls.is_some() => {
            return wrong("listen_tls", "needs gateway.smtp.certificate and gateway.smtp.private_key");
        }
        (None, None) if smtp.listen.is_some() && !smtp.plaintext_auth => {
            let reason = "needs gateway.smtp.certificate and gateway.smtp.private_key, or, in a trusted network, \
                          gateway.smtp.plaintext_auth = true";
            return wrong("listen", reason);
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    Ok(smtp)
}

fn named(path: PathBuf) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then_some(path)
}

fn address(key: &str, text: &str, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    let expected = || format!("expected an address such as 0.0.0.0:{port}, or `off`");
    text.parse().map(Some).map_err(|_| ConfigError::value(format!("gateway.smtp.{key}"), expected()))
}
