//! The ways out of telemetry: OTLP by http/protobuf as the standard `OTEL_*` variables say, and a Prometheus page. Nothing is exported unless an
//! endpoint is set.
//!
//! The exporters have threads of their own with blocking clients. What waits for them is bounded, and what does not fit is dropped: a collector that
//! is slow, full or gone costs neither mail nor memory.

use std::{fmt, sync::mpsc, thread, time::Duration};

use opentelemetry::{InstrumentationScope, KeyValue, metrics::MeterProvider as _};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::SpanExporter as _,
};
use prometheus::TextEncoder;

use super::{
    metrics::{self, Metrics},
    sampling::Sampler,
    span_exporter::{BackgroundExporter, ExporterLoad},
    traces,
};

/// How long the last of it may take at exit, all signals together.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// The handles of this process's telemetry. Dropping it sends nothing: see [`Exporters::flush`].
#[derive(Default)]
pub struct Exporters {
    meter: Option<SdkMeterProvider>,
    page: Option<prometheus::Registry>,
    /// Of log lines.
    pub(super) logger: Option<SdkLoggerProvider>,
}

/// Why telemetry cannot be set up. Names the variable to look at.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An exporter.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT and its kin: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The thread that sends traces.
    #[error("the thread for traces: {0}")]
    Thread(#[from] std::io::Error),
    /// The page.
    #[error("the Prometheus page: {0}")]
    Page(String),
}

/// A kind of telemetry, as the variables name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        })
    }
}

/// Sets up what the environment asks for. `page` where there will be a Prometheus page.
pub(super) fn start(page: bool) -> Result<Exporters, ExportError> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let resource = resource(&environment);
    let mut exporters = Exporters::default();
    if is_wanted(Signal::Traces, &environment)
        && let (name, argument) = (environment("OTEL_TRACES_SAMPLER"), environment("OTEL_TRACES_SAMPLER_ARG"))
        && let Some(sampler) = Sampler::of(name.as_deref(), argument.as_deref())
    {
        let mut exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
        exporter.set_resource(&resource);
        traces::install(BackgroundExporter::start(exporter, scope(), ExporterLoad::of(&environment))?, sampler);
    }
    let push = is_wanted(Signal::Metrics, &environment);
    if push || page {
        let mut builder = SdkMeterProvider::builder().with_resource(resource.clone());
        if push {
            let exporter = MetricExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
            builder = builder.with_reader(PeriodicReader::builder(exporter).build());
        }
        if page {
            let registry = prometheus::Registry::new();
            let reader = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .without_target_info()
                .scope_info_enabled(false)
                .build();
            builder = builder.with_reader(reader.map_err(|error| ExportError::Page(error.to_string()))?);
            exporters.page = Some(registry);
        }
        let provider = builder.build();
        metrics::install(Metrics::new(&provider.meter_with_scope(scope())));
        exporters.meter = Some(provider);
    }
    if is_wanted(Signal::Logs, &environment) {
        let exporter = LogExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
        exporters.logger =
            Some(SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build());
    }
    Ok(exporters)
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("postrider").with_version(env!("CARGO_PKG_VERSION")).build()
}

fn is_wanted(signal: Signal, environment: &impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| environment(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none") {
        return false;
    }
    let own = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
    environment("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| environment(&own)).is_some()
}

/// Who speaks: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, and where they say nothing, we do.
fn resource(environment: &impl Fn(&str) -> Option<String>) -> Resource {
    let said = environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_said = |name: &str| said.split(',').any(|pair| pair.split('=').next().is_some_and(|key| key.trim() == name));
    let mut builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if environment("OTEL_SERVICE_NAME").is_none() && !is_said("service.name") {
        builder = builder.with_service_name("postrider");
    }
    if !is_said("service.instance.id") {
        builder = builder.with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()));
    }
    builder.build()
}

impl Exporters {
    /// The provider of instruments, where there are any.
    pub(super) fn meter(&self) -> Option<opentelemetry::metrics::Meter> {
        self.meter.as_ref().map(|provider| provider.meter_with_scope(scope()))
    }

    /// The Prometheus page; nothing where there is none.
    pub fn page(&self) -> Option<impl Fn() -> Result<String, String> + Send + Sync + 'static> {
        let registry = self.page.clone()?;
        Some(move || TextEncoder::new().encode_to_string(&registry.gather()).map_err(|error| error.to_string()))
    }

    /// Sends what is left, within [`FLUSH_LIMIT`]. What is not sent by then is lost: the SDK's own limits do not hold where a collector is silent.
    pub fn flush(self) {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            self.send_all();
            let _ = tell.send(());
        });
        if told.recv_timeout(FLUSH_LIMIT).is_err() {
            tracing::warn!("The collector did not take the last of telemetry within {FLUSH_LIMIT:?}");
        }
    }

    /// Each signal in a thread of its own. Logs are last, so that lines about the others go out as well.
    fn send_all(&self) {
        let said = |what: &str, result: Result<(), String>| {
            if let Err(error) = result {
                tracing::warn!(%error, "The last {what} may not have reached the collector");
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| said("spans", traces::shutdown(FLUSH_LIMIT / 2)));
            if let Some(meter) = &self.meter {
                scope.spawn(|| {
                    let ended = meter.shutdown_with_timeout(FLUSH_LIMIT / 2);
                    said("metrics", ended.map_err(|error| error.to_string()));
                });
            }
        });
        if let Some(logger) = &self.logger {
            let _ = logger.shutdown_with_timeout(FLUSH_LIMIT / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(signal: Signal, variables: &[(&str, &str)], expected: bool) {
        let environment =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(is_wanted(signal, &environment), expected, "{signal} {variables:?}");
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_set() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        check(Signal::Traces, &[], false);
        check(Signal::Traces, &[endpoint], true);
        check(Signal::Metrics, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/v1/traces")], false);
        check(Signal::Logs, &[endpoint, ("OTEL_LOGS_EXPORTER", "none")], false);
        check(Signal::Traces, &[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], false);
    }
}
