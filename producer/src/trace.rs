//! The span of a publish, and its context for the headers of a job. Costs nothing where nobody listens.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use postrider_schemas::{Job, Meta, topology::SUBMIT_EXCHANGE};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span of a publish, by the conventions for messaging. It ends with the queue's confirm.
pub fn sending(job: &Job, system: &'static str) -> Span {
    info_span!(
        "send postrider.submit",
        otel.kind = "producer",
        messaging.system = system,
        messaging.operation.name = "send",
        messaging.operation.r#type = "send",
        messaging.destination.name = SUBMIT_EXCHANGE,
        messaging.message.id = %job.id(),
    )
}

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
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use opentelemetry::trace::{SpanKind, TracerProvider as _};
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanProcessor},
    };
    use postrider_schemas::{JobLimits, JobV1};
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

    /// Keeps what ended.
    #[derive(Debug, Clone, Default)]
    struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Ended {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}
        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn a_publish_is_a_span_of_its_own_below_that_of_the_caller() {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder().with_span_processor(ended.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let job = JobV1 {
            from: "orders@shop.example".into(),
            to: vec!["ada@customer.example".into()],
            subject: "Hello".to_owned(),
            text: Some("Hello.".to_owned()),
            ..JobV1::default()
        };
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        let mut meta = Meta::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info_span!("order").in_scope(|| sending(&job, "rabbitmq").in_scope(|| inject(&mut meta)));
        });
        let spans = ended.0.lock().unwrap();
        let (send, order) = (&spans[0], &spans[1]);
        assert_eq!((send.name.as_ref(), order.name.as_ref()), ("send postrider.submit", "order"));
        assert_eq!((&send.span_kind, send.parent_span_id), (&SpanKind::Producer, order.span_context.span_id()));
        assert!(send.attributes.iter().any(|one| one.key.as_str() == "messaging.operation.type"));
        let context = meta.traceparent.unwrap();
        assert!(context.contains(&send.span_context.span_id().to_string()), "{context}");
    }

    #[test]
    fn without_a_tracer_there_is_no_context() {
        let mut meta = Meta::default();
        inject(&mut meta);
        assert_eq!(meta, Meta::default());
    }
}
