//! Log lines. One per outcome; never an address, a body or a secret.

use std::{io::IsTerminal as _, sync::Arc};

use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use super::records::Records;
use crate::config::{LogConfig, LogFormat};

/// Directives that stand behind the configured level whatever it is: these crates print conversations, credentials and bodies when
/// they are asked for details. The exporters' own stack would tell of telling.
const QUIET: [&str; 14] = [
    "lettre=info",
    "lapin=warn",
    "redis=info",
    "hyper=info",
    "hyper_util=info",
    "reqwest=info",
    "h2=info",
    "tower=info",
    "rustls=warn",
    "hickory=info",
    "amq_protocol=warn",
    "async_rs=warn",
    "tcp_stream=warn",
    "opentelemetry=warn",
];

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error("setting `log.level`: {0}; expected error, warn, info, debug, trace or directives")]
    Level(String),
    /// Something else listens already.
    #[error("logging was set up before: {0}")]
    Twice(String),
}

/// The level of this process's log, which may be changed while it runs.
#[derive(Clone)]
pub struct Level(Arc<reload::Handle<EnvFilter, Registry>>);

impl Level {
    /// From now on this level. The old one stays where the text is none.
    pub fn set(&self, text: &str) -> Result<(), LogError> {
        let filter = filter(text)?;
        self.0.reload(filter).map_err(|error| LogError::Level(error.to_string()))
    }
}

/// Checks a level.
pub fn check(text: &str) -> Result<(), LogError> {
    filter(text).map(drop)
}

/// Sets logging up for this process: to standard error, and to a collector where there is one.
pub fn init(config: &LogConfig, collector: Option<&SdkLoggerProvider>) -> Result<Level, LogError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json { lines.json().flatten_event(true).boxed() } else { lines.with_target(false).boxed() };
    let set = tracing_subscriber::registry().with(filter).with(lines).with(collector.map(Records::new)).try_init();
    set.map_err(|error| LogError::Twice(error.to_string()))?;
    Ok(Level(Arc::new(handle)))
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let mut filter = EnvFilter::try_new(level).map_err(|error| LogError::Level(error.to_string()))?;
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().map_err(|_| LogError::Level(directive.to_owned()))?);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused() {
        assert!(check("info,postrider_workers=trace").is_ok());
        assert!(check("loud=very").is_err_and(|error| error.to_string().contains("log.level")));
    }
}
