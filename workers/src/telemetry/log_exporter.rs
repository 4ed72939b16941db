//! Log lines as OpenTelemetry records, for a collector: the same lines that go to standard error, after the same filter.

use std::{fmt, time::SystemTime};

use opentelemetry::{
    Key,
    logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity},
    trace::{SpanId, TraceFlags, TraceId},
};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger, SdkLoggerProvider};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use crate::redact;

/// Hands lines to the exporter.
pub struct LogExporter(SdkLogger);

impl LogExporter {
    /// For this exporter.
    pub fn new(provider: &SdkLoggerProvider) -> Self {
        Self(provider.logger("postrider"))
    }
}

impl<S: Subscriber> Layer<S> for LogExporter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = self.0.create_log_record();
        let (severity, word) = match *event.metadata().level() {
            Level::ERROR => (Severity::Error, "ERROR"),
            Level::WARN => (Severity::Warn, "WARN"),
            Level::INFO => (Severity::Info, "INFO"),
            Level::DEBUG => (Severity::Debug, "DEBUG"),
            Level::TRACE => (Severity::Trace, "TRACE"),
        };
        record.set_severity_number(severity);
        record.set_severity_text(word);
        record.set_target(event.metadata().target());
        record.set_timestamp(SystemTime::now());
        event.record(&mut RecordFields(&mut record));
        self.0.emit(record);
    }
}

struct RecordFields<'a>(&'a mut SdkLogRecord);

impl RecordFields<'_> {
    fn put(&mut self, field: &Field, value: AnyValue) {
        match (field.name(), &value) {
            ("message", _) => self.0.set_body(value),
            ("trace_id", AnyValue::String(text)) => {
                if let Ok(trace) = TraceId::from_hex(text.as_str()) {
                    self.0.set_trace_context(trace, SpanId::INVALID, Some(TraceFlags::NOT_SAMPLED));
                }
            }
            (name, _) => self.0.add_attribute(Key::from(name), value),
        }
    }
}

impl Visit for RecordFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, redact::clean(&format!("{value:?}")).into_owned().into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, redact::clean(value).into_owned().into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, i64::try_from(value).unwrap_or(i64::MAX).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}
