//! The trace context of the present span, for the headers of a job.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use postrider_schemas::Meta;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Writes W3C trace context into the headers; nothing where no OpenTelemetry layer is installed.
pub fn inject(meta: &mut Meta) {
    let mut carrier: HashMap<String, String> = HashMap::new();
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut carrier);
    meta.traceparent = carrier.remove("traceparent");
    meta.tracestate = carrier.remove("tracestate").filter(|state| !state.is_empty());
    meta.trace0.clone_from(&meta.traceparent);
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_job_carries_the_span_it_was_published_in() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let mut meta = Meta::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info_span!("order").in_scope(|| inject(&mut meta));
        });
        let parent = meta.traceparent.unwrap();
        assert!(parent.starts_with("00-") && parent.len() == 55, "{parent}");
        assert_eq!(meta.trace0, Some(parent));
    }

    #[test]
    fn without_a_tracer_there_is_no_context() {
        let mut meta = Meta::default();
        inject(&mut meta);
        assert_eq!(meta, Meta::default());
    }
}
