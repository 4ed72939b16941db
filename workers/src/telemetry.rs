//! Logs. One line per outcome; never an address, a body or a secret.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Directives that stand behind the configured level whatever it is: these crates print conversations, credentials and bodies when
/// they are asked for details.
const QUIET: [&str; 8] = [
    "lettre=info",
    "lapin=warn",
    "redis=info",
    "hyper=info",
    "rustls=warn",
    "amq_protocol=warn",
    "async_rs=warn",
    "tcp_stream=warn",
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

/// Sets logging up for this process, to standard error.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let mut filter = EnvFilter::try_new(&config.level).map_err(|error| LogError::Level(error.to_string()))?;
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().map_err(|_| LogError::Level(directive.to_owned()))?);
    }
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = if json { lines.json().flatten_event(true).try_init() } else { lines.with_target(false).try_init() };
    set.map_err(|error| LogError::Twice(error.to_string()))
}
