//! Log lines. One per outcome; never an address, a body or a secret.

use std::{
    fmt::{self, Debug},
    io::{self, IsTerminal as _, Stderr, Write},
    sync::Arc,
};

use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing::field::Field;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    field::MakeExt as _,
    fmt::format::{Writer, debug_fn},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use super::log_exporter::LogExporter;
use crate::{
    config::{LogConfig, LogFormat},
    escape, redact,
};

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

/// A field of a line for people: no secret, and nothing that acts on a terminal.
fn show(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = redact::clean(&value);
    let value = escape::line(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        name => write!(writer, "{name}={value}"),
    }
}

/// Lines of JSON on standard error: no secret, and nothing that acts on a terminal. Each write is one line.
struct JsonLines<W>(W);

impl JsonLines<Stderr> {
    fn new() -> Self {
        Self(std::io::stderr())
    }
}

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = redact::clean(text.trim_end());
        let mut out = escape::json(&text).into_owned();
        out.push('\n');
        self.0.write_all(out.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
    // Colours are for terminals: elsewhere they are escape sequences in a file.
    let lines = tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal());
    let lines = if json {
        lines.json().flatten_event(true).with_writer(JsonLines::new).boxed()
    } else {
        lines.fmt_fields(debug_fn(show).delimited(" ")).with_writer(std::io::stderr).with_target(false).boxed()
    };
    let set = tracing_subscriber::registry().with(filter).with(lines).with(collector.map(LogExporter::new)).try_init();
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
    fn a_line_for_people_holds_no_secret_and_acts_on_no_terminal() {
        #[derive(Clone, Default)]
        struct Seen(Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Seen {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        redact::learn([&"a-secret-of-logs".into()]);
        let told = || {
            let hostile = "250 a-secret-of-logs\u{1b}[2J\n\u{9b}1m\u{202e}amqp://user:pass@host";
            tracing::info!(answer = hostile, shown = %hostile, "Said {hostile}");
        };
        let (pretty, json) = (Seen::default(), Seen::default());
        let (to_pretty, to_json) = (pretty.clone(), json.clone());
        let layer = tracing_subscriber::fmt::layer().with_ansi(false);
        let layer = layer.fmt_fields(debug_fn(show).delimited(" ")).with_writer(move || to_pretty.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), told);
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let layer = layer.with_writer(move || JsonLines(to_json.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), told);
        for seen in [pretty, json.clone()] {
            let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
            assert!(!text.contains("a-secret-of-logs") && !text.contains("user:pass"), "{text:?}");
        }
        let text = String::from_utf8(json.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["answer"], "250 [***]\u{1b}[2J\n\u{9b}1m\u{202e}amqp://[***]@host");
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        assert!(check("info,postrider_workers=trace").is_ok());
        assert!(check("loud=very").is_err_and(|error| error.to_string().contains("log.level")));
    }
}
