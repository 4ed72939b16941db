//! What an attempt did, step by step. Steps are noted in memory while the attempt runs and handed over when it ends, all or none:
//! only then is it known whether it failed. Where traces are off, a step costs one look at a task-local value.
//!
//! The trail belongs to the attempt's task, so that no signature on the path has to carry it. A call that several jobs share runs in a task of its own
//! and has a trail of its own.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use opentelemetry::{
    Value,
    trace::{SpanContext, SpanKind},
};
use postrider_schemas::Meta;

use super::{
    registry::attribute,
    sampling::{Few, Sampler},
    span_exporter::BackgroundExporter,
    spans::process_names,
    trace_buffer::{MessageOrigin, TraceBuffer},
    trace_parent::{self, TraceParent, trace_parent},
};
use crate::queue::Delivery;

/// The text of an attribute; one that is shared is not copied.
pub use opentelemetry::StringValue as AttributeText;

pub use super::trace_buffer::TraceSubject;

static TRACES: OnceLock<Traces> = OnceLock::new();

tokio::task_local! {
    static TRAIL: RefCell<ActiveTrace>;
}

/// Where finished trails go.
struct Traces {
    courier: BackgroundExporter,
    sampler: Sampler,
    failures: Mutex<Few>,
}

/// Switches traces on for this process.
pub(super) fn install(courier: BackgroundExporter, sampler: Sampler) {
    // Telemetry is set up once; a second exporter would be told of nothing.
    let _ = TRACES.set(Traces { courier, sampler, failures: Mutex::default() });
}

/// Sends what is left, within a limit. Blocks.
pub(super) fn shutdown(limit: Duration) -> Result<(), String> {
    TRACES.get().map_or(Ok(()), |traces| traces.courier.end(limit))
}

/// The trail of a task. When that ends, or is cut short, the trail is told as far as it came.
struct ActiveTrace(Option<Box<TraceBuffer>>);

impl Drop for ActiveTrace {
    fn drop(&mut self) {
        if let (Some(mut trail), Some(traces)) = (self.0.take(), TRACES.get())
            && traces.wants(&trail)
        {
            // It is sent some time later: what did not end by itself ends here.
            trail.close(SystemTime::now());
            traces.courier.take(trail);
        }
    }
}

impl Traces {
    fn wants(&self, trail: &TraceBuffer) -> bool {
        trail.is_sampled
            || trail.is_failure && {
                let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.admits(i64::try_from(second).unwrap_or(0))
            }
    }

    /// The trail of an attempt at this delivery, whose copies will point at it.
    fn begin(&self, delivery: &mut Delivery, server: Option<&(Arc<str>, u16)>, now: Timestamp) -> Box<TraceBuffer> {
        let found = trace_parent(&delivery.meta, delivery.published_at, now);
        let creation = found.parent.as_ref().or(found.links.first()).map(trace_parent::format);
        let mut trail = Box::new(TraceBuffer::new(found));
        trail.is_sampled = self.sampler.wants(trail.lineage.parent.as_ref(), trail.trace());
        trail.received = Some(MessageOrigin::new(delivery, server, now));
        if let Some(root) = trail.begin(process_names(delivery.source).0, SpanKind::Consumer) {
            trail.open(root);
        }
        // A producer sets one of the two only.
        let own = trace_parent::format(&trail.context(0));
        delivery.meta.trace0 = creation.or_else(|| Some(own.clone()));
        delivery.meta.traceparent = Some(own);
        trail
    }
}

/// Runs an attempt with a trail of its own, where traces are on. `server` is the broker's host and port, where there is one.
pub async fn trailed<F: Future<Output = ()>>(
    delivery: Delivery,
    server: Option<&(Arc<str>, u16)>,
    now: Timestamp,
    attempt: impl FnOnce(Delivery) -> F,
) {
    let mut delivery = delivery;
    let trail = TRACES.get().map(|traces| traces.begin(&mut delivery, server, now));
    TRAIL.scope(RefCell::new(ActiveTrace(trail)), attempt(delivery)).await;
}

/// How a step is known to others.
pub type SpanHandle = SpanContext;

/// Runs a call that several jobs share with a trail of its own: a new trace, whose first step points at the steps of the jobs, and is sent where one of
/// them is. Answers with what the call did and how it is known to those that point back.
pub async fn shared<T>(jobs: Vec<SpanHandle>, call: impl Future<Output = T>) -> (T, Option<SpanHandle>) {
    let trail = TRACES.get().map(|_| {
        let (count, is_sampled) = (jobs.len(), jobs.iter().any(SpanContext::is_sampled));
        let mut trail = Box::new(TraceBuffer::new(TraceParent { parent: None, links: jobs }));
        trail.is_sampled = is_sampled;
        trail.say(0, attribute::MESSAGING_BATCH_COUNT, i64::try_from(count).unwrap_or(i64::MAX).into());
        trail
    });
    let context = trail.as_ref().map(|trail| trail.context(0));
    (TRAIL.scope(RefCell::new(ActiveTrace(trail)), call).await, context)
}

/// A step under way. It ends when it is dropped.
#[must_use = "a step ends when it is dropped"]
pub struct TraceStep(Option<usize>);

/// Begins a step of the attempt whose task this is.
pub fn step(name: &'static str) -> TraceStep {
    TraceStep(with(|trail| trail.begin(name, SpanKind::Internal)).flatten())
}

/// Begins a step in which another program is asked.
pub fn call(name: &'static str) -> TraceStep {
    TraceStep(with(|trail| trail.begin(name, SpanKind::Client)).flatten())
}

/// Begins a wait with a job in hand: a time of its own, so that nobody takes it for slow work.
pub fn waiting(reason: &'static str) -> TraceStep {
    let step = step("wait");
    step.set(attribute::WAIT_REASON, reason);
    step
}

/// Begins a step that the ones after it belong to, until it ends.
pub fn stretch(name: &'static str, is_call: bool) -> TraceStep {
    let step = if is_call { call(name) } else { step(name) };
    if let Some(position) = step.0 {
        with(|trail| trail.open(position));
    }
    step
}

impl TraceStep {
    /// Notes an attribute. Names are those of the registry.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(step) = self.0 {
            with(|trail| trail.say(step, name, value.into()));
        }
    }

    /// The step failed. Both texts are a class, a status or an answer: never an address, a body or a secret.
    pub fn fail(&self, kind: impl Into<Value>, text: &str) {
        if let Some(step) = self.0 {
            with(|trail| trail.fail(step, kind.into(), text));
        }
    }

    /// How others know it.
    pub fn context(&self) -> Option<SpanHandle> {
        let step = self.0?;
        with(|trail| trail.context(step))
    }

    /// Its W3C context, for those who are called.
    pub fn traceparent(&self) -> Option<String> {
        self.context().as_ref().map(trace_parent::format)
    }

    /// Points at a span of another trace.
    pub fn link(&self, context: SpanHandle) {
        if let Some(step) = self.0 {
            with(|trail| trail.link(step, context));
        }
    }

    /// True where it is recorded: what costs something to find out is not worth it otherwise.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for TraceStep {
    fn drop(&mut self) {
        if let Some(step) = self.0 {
            with(|trail| trail.end(step));
        }
    }
}

/// Notes an attribute of the attempt as a whole.
pub fn set(name: &'static str, value: impl Into<Value>) {
    with(|trail| trail.say(0, name, value.into()));
}

/// Notes which job it is.
pub fn about(job: impl FnOnce() -> TraceSubject) {
    with(|trail| {
        if let Some(received) = &mut trail.received {
            received.job = Some(job());
        }
    });
}

/// True where the attempt is recorded.
pub fn is_recorded() -> bool {
    with(|_| ()).is_some()
}

/// True where the attempt will be told as things are: what costs much to say is not worth it otherwise.
pub fn is_wanted() -> bool {
    with(|trail| trail.is_sampled || trail.is_failure).unwrap_or(false)
}

/// The attempt as a whole failed in a way that somebody will ask about: its trace is sent whatever the sampler says.
pub fn failed(kind: &'static str, text: &str) {
    with(|trail| {
        trail.is_failure = true;
        trail.fail(0, kind.into(), text);
    });
}

/// Somebody will ask about this trail: it is sent whatever the sampler says.
pub fn worth_telling() {
    with(|trail| trail.is_failure = true);
}

/// Nothing was begun: nothing is told.
pub fn forget() {
    with(|trail| (trail.is_sampled, trail.is_failure) = (false, false));
}

/// The trace of the attempt whose task this is, for log lines; the one that the message came in, where traces are off.
pub fn trace_id(meta: &Meta) -> Option<String> {
    let own = with(|trail| trail.trace().to_string());
    own.or_else(|| Some(trace_parent::parse(meta.traceparent.as_deref()?, "")?.trace_id().to_string()))
}

fn with<T>(look: impl FnOnce(&mut TraceBuffer) -> T) -> Option<T> {
    TRAIL.try_with(|held| held.borrow_mut().0.as_deref_mut().map(look)).ok().flatten()
}
