//! What the gateway counts. No label holds a tenant, a key, a domain or an address.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use crate::api::routes::Operation;

/// Bounds of the durations, in seconds.
pub const BOUNDS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// The instruments; nothing where nobody reads them.
#[derive(Debug, Default)]
pub struct Metrics(Option<Instruments>);

#[derive(Debug)]
struct Instruments {
    requests: Counter<u64>,
    duration: Histogram<f64>,
    jobs: Counter<u64>,
}

impl Metrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        Self(Some(Instruments {
            requests: meter
                .u64_counter("postrider.gateway.requests")
                .with_unit("{request}")
                .with_description("Requests answered by a gateway, by what was asked and how it ended")
                .build(),
            duration: meter
                .f64_histogram("postrider.gateway.request.duration")
                .with_unit("s")
                .with_description("From the head of a request to its answer, the wait for the queue's confirm included")
                .with_boundaries(BOUNDS.to_vec())
                .build(),
            jobs: meter
                .u64_counter("postrider.gateway.jobs")
                .with_unit("{job}")
                .with_description("Jobs of requests to a gateway, by what became of them")
                .build(),
        }))
    }

    /// A request was answered.
    pub fn answered(&self, operation: Option<Operation>, status: u16, time: Duration) {
        let Some(instruments) = &self.0 else { return };
        let name = operation.map_or("none", |operation| operation.route().name);
        let class = match status {
            ..300 => "2xx",
            300..500 => "4xx",
            _ => "5xx",
        };
        instruments.requests.add(1, &[KeyValue::new("operation", name), KeyValue::new("status", class)]);
        instruments.duration.record(time.as_secs_f64(), &[KeyValue::new("operation", name)]);
    }

    /// So many jobs ended in this way.
    pub fn jobs(&self, api: &'static str, result: &'static str, count: u64) {
        if let Some(instruments) = self.0.as_ref().filter(|_| count > 0) {
            instruments.jobs.add(count, &[KeyValue::new("api", api), KeyValue::new("result", result)]);
        }
    }
}
