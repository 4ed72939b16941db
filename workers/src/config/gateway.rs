//! The settings of `postrider gateway`.

use std::time::Duration;

use postrider_gateway::GatewayConfig;
use postrider_schemas::JobLimits;

use super::{ConfigError, settings::GatewaySettings};

/// Least memory of a gateway.
const MEMORY_MIN: u64 = 16 << 20;

pub(super) fn check(settings: GatewaySettings, job: JobLimits) -> Result<GatewayConfig, ConfigError> {
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
    Ok(GatewayConfig {
        listen,
        keys: (!settings.keys.as_os_str().is_empty()).then_some(settings.keys),
        body_max: size(settings.body_max),
        memory: size(settings.memory),
        connections: settings.connections,
        read_timeout: settings.read_timeout,
        confirm_timeout: settings.confirm_timeout,
        drain: settings.drain,
        job,
    })
}
