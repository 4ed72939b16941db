//! Takes finished trails to the collector, in a thread of its own. A trail is sent whole or dropped whole: half a trace misleads. What waits is bounded in
//! spans, so that a collector that is slow or gone costs neither mail nor memory.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::{error::OTelSdkResult, trace::SpanExporter};

use super::{spans, trace_buffer::TraceBuffer};

/// How much is sent at once, how much may wait, and for how long: the standard variables for batches of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExporterLoad {
    /// Spans that wait at most.
    queue_max: usize,
    /// Spans that make it worth a call.
    batch: usize,
    /// Longest wait for so many.
    delay: Duration,
}

impl ExporterLoad {
    /// Reads `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` and `OTEL_BSP_SCHEDULE_DELAY`. What is no number counts as the default.
    pub(super) fn of(environment: &impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str, usual: usize| {
            environment(name).and_then(|text| text.trim().parse().ok()).filter(|number| *number > 0).unwrap_or(usual)
        };
        let queue_max = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048);
        let delay = Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000) as u64);
        Self { queue_max, batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).min(queue_max), delay }
    }
}

/// The way of trails to the collector.
pub(super) struct BackgroundExporter(Arc<ExporterShared>);

struct ExporterShared {
    load: ExporterLoad,
    desk: Mutex<ExporterState>,
    /// For the thread: there is enough to send, or the end has come.
    work: Condvar,
    /// For who waits for the end.
    done: Condvar,
}

#[derive(Default)]
struct ExporterState {
    trails: VecDeque<Box<TraceBuffer>>,
    spans: usize,
    /// Traces that there was no room for since it was last told.
    dropped: u64,
    is_ending: bool,
    is_done: bool,
}

impl BackgroundExporter {
    /// Starts the thread.
    pub(super) fn start<E: SpanExporter + 'static>(
        exporter: E,
        scope: InstrumentationScope,
        load: ExporterLoad,
    ) -> std::io::Result<Self> {
        let shared =
            Arc::new(ExporterShared { load, desk: Mutex::default(), work: Condvar::new(), done: Condvar::new() });
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("traces".to_owned()).spawn(move || {
            theirs.carry(&exporter, &scope);
            let _ = exporter.shutdown();
            theirs.desk().is_done = true;
            theirs.done.notify_all();
        })?;
        Ok(Self(shared))
    }

    /// Takes a trail that is to be sent. Costs no wait: where there is no room it is dropped and counted.
    pub(super) fn take(&self, trail: Box<TraceBuffer>) {
        let ExporterShared { load, work, .. } = &*self.0;
        let mut desk = self.0.desk();
        let spans = trail.steps.len();
        if desk.is_ending || desk.spans + spans > load.queue_max {
            desk.dropped += 1;
            return;
        }
        // The thread wakes once for a batch, and not for each trail.
        let is_enough = desk.spans < load.batch && desk.spans + spans >= load.batch;
        desk.spans += spans;
        desk.trails.push_back(trail);
        drop(desk);
        if is_enough {
            work.notify_one();
        }
    }

    /// Sends what is left, within a limit. Blocks.
    pub(super) fn end(&self, limit: Duration) -> Result<(), String> {
        let mut desk = self.0.desk();
        desk.is_ending = true;
        self.0.work.notify_one();
        let waited = self.0.done.wait_timeout_while(desk, limit, |desk| !desk.is_done);
        let (desk, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if desk.is_done { Ok(()) } else { Err(format!("{} spans were not sent in time", desk.spans)) }
    }
}

impl ExporterShared {
    fn desk(&self) -> MutexGuard<'_, ExporterState> {
        // Nothing in between can leave it half changed.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends batch after batch until the end comes and nothing is left.
    fn carry(&self, exporter: &impl SpanExporter, scope: &InstrumentationScope) {
        let mut is_refused = false;
        while let Some((trails, dropped)) = self.next() {
            if dropped > 0 {
                tracing::warn!(
                    traces = dropped,
                    "Traces were dropped: the collector takes them too slowly, or not at all"
                );
            }
            let mut batch = Vec::with_capacity(self.load.batch + 32);
            trails.into_iter().for_each(|trail| spans::add(*trail, scope, &mut batch));
            if batch.is_empty() {
                continue;
            }
            // Told when it begins and when it ends, and not for each batch in between.
            match (block_on(exporter.export(batch)), is_refused) {
                (Err(error), false) => {
                    is_refused = true;
                    tracing::warn!(%error, "The collector does not take spans");
                }
                (Ok(()), true) => {
                    is_refused = false;
                    tracing::info!("The collector takes spans again");
                }
                _ => {}
            }
        }
    }

    /// Waits for a batch and takes it, with the count of traces that were dropped. Nothing at the end.
    fn next(&self) -> Option<(VecDeque<Box<TraceBuffer>>, u64)> {
        let due = Instant::now() + self.load.delay;
        let mut desk = self.desk();
        while desk.spans < self.load.batch && !desk.is_ending {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            desk = self.work.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if desk.is_ending && desk.trails.is_empty() {
            return None;
        }
        let (mut taken, mut count) = (VecDeque::new(), 0);
        while count < self.load.batch
            && let Some(trail) = desk.trails.pop_front()
        {
            count += trail.steps.len();
            taken.push_back(trail);
        }
        desk.spans -= count;
        Some((taken, std::mem::take(&mut desk.dropped)))
    }
}

struct UnparkWaker(Thread);

impl Wake for UnparkWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The exporter's client blocks inside of its future, which a runtime would not allow.
fn block_on(future: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
    let waker = Waker::from(Arc::new(UnparkWaker(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::mpsc};

    use opentelemetry::trace::{SpanId, SpanKind, TraceId};
    use opentelemetry_sdk::trace::SpanData;

    use super::*;
    use crate::telemetry::trace_parent::TraceParent;

    /// A collector that takes a batch when it is told to, and keeps it.
    #[derive(Debug, Default)]
    struct Shelf {
        gate: Option<Mutex<mpsc::Receiver<()>>>,
        kept: Arc<Mutex<Vec<SpanData>>>,
    }

    impl SpanExporter for Shelf {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if let Some(gate) = &self.gate {
                // An error is a gate that stays open from then on.
                let _ = gate.lock().unwrap().recv();
            }
            self.kept.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    fn load(queue_max: usize, batch: usize) -> ExporterLoad {
        ExporterLoad { queue_max, batch, delay: Duration::from_secs(3600) }
    }

    /// A root and so many steps below it.
    fn trail(below: usize) -> Box<TraceBuffer> {
        let mut trail = TraceBuffer::new(TraceParent::default());
        trail.is_sampled = true;
        let root = trail.begin("root", SpanKind::Consumer).unwrap();
        trail.open(root);
        for _ in 0..below {
            let step = trail.begin("step", SpanKind::Internal).unwrap();
            trail.end(step);
        }
        Box::new(trail)
    }

    fn sizes(spans: &[SpanData]) -> Vec<usize> {
        let mut traces = BTreeMap::<[u8; 16], usize>::new();
        for span in spans {
            *traces.entry(span.span_context.trace_id().to_bytes()).or_default() += 1;
        }
        traces.into_values().collect()
    }

    #[test]
    fn a_trail_becomes_spans_that_belong_to_each_other() {
        let shelf = Shelf::default();
        let kept = Arc::clone(&shelf.kept);
        let courier = BackgroundExporter::start(shelf, InstrumentationScope::default(), load(100, 50)).unwrap();
        courier.take(trail(3));
        courier.end(Duration::from_secs(30)).unwrap();
        let spans = kept.lock().unwrap();
        let root = spans[0].span_context.span_id();
        assert_eq!(spans.len(), 4);
        assert_ne!(spans[0].span_context.trace_id(), TraceId::INVALID);
        assert_eq!((spans[0].parent_span_id, spans[0].name.as_ref()), (SpanId::INVALID, "root"));
        assert!(spans[1..].iter().all(|span| span.parent_span_id == root && span.span_context.span_id() != root));
        assert!(spans.iter().all(|span| span.end_time >= span.start_time));
    }

    #[test]
    fn what_there_is_no_room_for_is_dropped_whole_and_the_rest_is_sent_at_the_end() {
        let (open, gate) = mpsc::channel();
        let shelf = Shelf { gate: Some(Mutex::new(gate)), ..Shelf::default() };
        let kept = Arc::clone(&shelf.kept);
        let courier = BackgroundExporter::start(shelf, InstrumentationScope::default(), load(20, 4)).unwrap();
        // The collector takes nothing: one batch is in its hands at most, the rest waits up to the limit.
        for _ in 0..100 {
            courier.take(trail(3));
        }
        assert!(courier.0.desk().spans <= 20);
        assert!(courier.0.desk().trails.len() <= 5);
        let late = courier.end(Duration::from_millis(1)).unwrap_err();
        assert!(late.contains("not sent in time"), "{late}");
        courier.take(trail(3));
        drop(open);
        courier.end(Duration::from_secs(30)).unwrap();
        let sizes = sizes(&kept.lock().unwrap());
        assert!(sizes.iter().all(|size| *size == 4), "whole traces only: {sizes:?}");
        assert!((5..=6).contains(&sizes.len()), "{sizes:?}");
    }

    #[test]
    fn the_standard_variables_are_read_and_nonsense_is_the_default() {
        let of = |pairs: &[(&str, &str)]| {
            ExporterLoad::of(&|name: &str| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let usual = ExporterLoad { queue_max: 2048, batch: 512, delay: Duration::from_secs(5) };
        assert_eq!(of(&[]), usual);
        assert_eq!(of(&[("OTEL_BSP_MAX_QUEUE_SIZE", "many"), ("OTEL_BSP_SCHEDULE_DELAY", "0")]), usual);
        let small = of(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "200")]);
        assert_eq!(small, ExporterLoad { queue_max: 100, batch: 100, delay: Duration::from_millis(200) });
    }
}
