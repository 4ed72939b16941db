//! What a worker tells of itself: traces, metrics and logs. Nothing here decides anything about a job, and nothing that goes wrong here holds
//! one up. Never an address, a body or a secret.

pub mod label_values;
pub mod registry;
pub mod sampling;
pub mod trace_parent;

pub mod logs;
pub mod metrics;
pub mod traces;
pub mod transport_stats;
pub mod worker_stats;

mod backlog;
mod deferred;
mod export;
pub mod gauges;
mod limit_usage;
mod log_exporter;
mod span_exporter;
pub(crate) mod spans;
mod trace_buffer;
mod unfinished;

use std::{convert::Infallible, future::pending};

pub use self::export::{ExportError, Exporters, FLUSH_LIMIT};
use self::{
    gauges::Observed,
    logs::{Level, LogError},
};
use crate::config::{Config, LogConfig};

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Logs.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Exporters.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The telemetry of a process.
pub struct Telemetry {
    exporters: Exporters,
    level: Level,
}

/// Logs alone, for commands that are no worker.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    logs::init(config, None).map(drop)
}

/// Logs, and traces and metrics where the environment or the admin address ask for them. To be called before there is a runtime: the exporters'
/// clients block.
pub fn start(config: &Config) -> Result<Telemetry, TelemetryError> {
    let exporters = export::start(config.admin.is_some())?;
    let level = logs::init(&config.log, exporters.logger.as_ref())?;
    learn(config);
    Ok(Telemetry { exporters, level })
}

/// Takes the names that a configuration allows as labels.
pub fn learn(config: &Config) {
    if let Some(metrics) = metrics::get() {
        let groups = config.limits.groups.0.iter().map(|one| one.name.as_str());
        metrics.learn(config.transports.iter().map(|one| one.name.as_str()), groups);
    }
}

impl Telemetry {
    /// The Prometheus page; nothing where there is none.
    pub fn page(&self) -> Option<impl Fn() -> Result<String, String> + Send + Sync + 'static> {
        self.exporters.page()
    }

    /// What instruments are made with; nothing where nobody reads them.
    pub fn meter(&self) -> Option<opentelemetry::metrics::Meter> {
        self.exporters.meter()
    }

    /// The log level, to be changed while the process runs.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Keeps the gauges true for as long as it is polled.
    pub async fn watch(&self, worker: &impl Observed) -> Infallible {
        match (self.exporters.meter(), metrics::get()) {
            (Some(meter), Some(metrics)) => gauges::watch(&meter, metrics, worker).await,
            _ => pending().await,
        }
    }

    /// Sends what is left, within [`FLUSH_LIMIT`]. Blocks, and must run outside of a runtime.
    pub fn flush(self) {
        self.exporters.flush();
    }
}
