//! What an attempt did, step by step. Steps are noted in memory while the attempt runs and handed to the exporter when it ends, all or none:
//! only then is it known whether it failed. Where traces are off, a step costs one look at a task-local value.
//!
//! The trail belongs to the attempt's task, so that no signature on the path has to carry it. What runs in a task of its own (a call that several
//! jobs share) leaves no steps.

use std::{
    borrow::Cow,
    cell::RefCell,
    sync::{Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks, SpanProcessor as _,
};
use postrider_schemas::Meta;

use super::{
    lineage::{self, lineage},
    registry::attribute,
    sampling::{Few, Sampler},
    words,
};
use crate::queue::{Delivery, SourceKind};

static TRACES: OnceLock<Traces> = OnceLock::new();

tokio::task_local! {
    static TRAIL: RefCell<Option<Box<Trail>>>;
}

/// Most steps that one trail keeps: an attempt over many transports and recipients must not grow without bound.
const STEPS_MAX: usize = 128;

/// Where finished trails go.
pub(super) struct Traces {
    processor: BatchSpanProcessor,
    sampler: Sampler,
    scope: InstrumentationScope,
    failures: Mutex<Few>,
}

/// Switches traces on for this process.
pub(super) fn install(processor: BatchSpanProcessor, sampler: Sampler, scope: InstrumentationScope) {
    // Telemetry is set up once; a second exporter would be told of nothing.
    let _ = TRACES.set(Traces { processor, sampler, scope, failures: Mutex::default() });
}

/// Sends what is left, within a limit. Blocks.
pub(super) fn shutdown(limit: std::time::Duration) -> Result<(), String> {
    TRACES
        .get()
        .map_or(Ok(()), |traces| traces.processor.shutdown_with_timeout(limit).map_err(|error| error.to_string()))
}

/// One attempt's steps.
struct Trail {
    traces: &'static Traces,
    trace: TraceId,
    state: TraceState,
    parent: Option<SpanId>,
    links: Vec<SpanContext>,
    is_sampled: bool,
    is_failure: bool,
    steps: Vec<Noted>,
    /// Positions of the steps under way that others belong to, the innermost one last. Most steps are no such: some run side by side.
    open: Vec<usize>,
}

struct Noted {
    name: Cow<'static, str>,
    kind: SpanKind,
    id: SpanId,
    parent: Option<usize>,
    start: SystemTime,
    end: Option<SystemTime>,
    attributes: Vec<KeyValue>,
    error: Option<Cow<'static, str>>,
}

/// Runs an attempt with a trail of its own, where traces are on. Its copies will point at it.
pub async fn trailed<F: Future<Output = ()>>(delivery: Delivery, now: Timestamp, attempt: impl FnOnce(Delivery) -> F) {
    let mut delivery = delivery;
    let trail = TRACES.get().map(|traces| Box::new(Trail::begin(traces, &mut delivery, now)));
    TRAIL.scope(RefCell::new(trail), attempt(delivery)).await;
}

impl Trail {
    fn begin(traces: &'static Traces, delivery: &mut Delivery, now: Timestamp) -> Self {
        let found = lineage(&delivery.meta, delivery.published_at, now);
        let ids = RandomIdGenerator::default();
        let trace = found.parent.as_ref().map_or_else(|| ids.new_trace_id(), SpanContext::trace_id);
        let state = found.parent.as_ref().map(|parent| parent.trace_state().clone()).unwrap_or_default();
        let is_sampled = traces.sampler.wants(found.parent.as_ref(), trace);
        let creation = found.parent.as_ref().or(found.links.first()).map(lineage::format);
        let mut trail = Self {
            traces,
            trace,
            state,
            parent: found.parent.as_ref().map(SpanContext::span_id),
            links: found.links,
            is_sampled,
            is_failure: false,
            steps: Vec::with_capacity(8),
            open: Vec::with_capacity(4),
        };
        let (name, template) = process_names(delivery);
        if let Some(root) = trail.note(name.into(), SpanKind::Consumer) {
            trail.open.push(root);
            trail.steps[root].attributes = described(delivery, template, now);
        }
        // What is republished points at this attempt, and at the creation: a producer sets one of the two only.
        delivery.meta.traceparent = Some(lineage::format(&trail.context(0)));
        delivery.meta.trace0 = creation.or_else(|| delivery.meta.traceparent.clone());
        trail
    }

    fn note(&mut self, name: Cow<'static, str>, kind: SpanKind) -> Option<usize> {
        let position = self.steps.len();
        if position >= STEPS_MAX {
            return None;
        }
        let parent = self.open.last().copied();
        let id = RandomIdGenerator::default().new_span_id();
        let start = SystemTime::now();
        self.steps.push(Noted { name, kind, id, parent, start, end: None, attributes: Vec::new(), error: None });
        Some(position)
    }

    fn context(&self, step: usize) -> SpanContext {
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        SpanContext::new(self.trace, self.steps[step].id, flags, false, self.state.clone())
    }

    fn is_wanted(&self) -> bool {
        self.is_sampled
            || self.is_failure && {
                let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let mut failures = self.traces.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.admits(i64::try_from(second).unwrap_or(0))
            }
    }
}

/// An attempt that was cut short is told as far as it came.
impl Drop for Trail {
    fn drop(&mut self) {
        if !self.is_wanted() {
            return;
        }
        let now = SystemTime::now();
        let ids: Vec<SpanId> = self.steps.iter().map(|step| step.id).collect();
        let why = if self.is_sampled { "ratio" } else { "failure" };
        for (position, step) in std::mem::take(&mut self.steps).into_iter().enumerate() {
            let mut attributes = step.attributes;
            let mut links = SpanLinks::default();
            if position == 0 {
                attributes.push(KeyValue::new(attribute::SAMPLED_BY, why));
                links.links = std::mem::take(&mut self.links).into_iter().map(Link::with_context).collect();
            }
            let parent = step.parent.map(|parent| ids[parent]);
            self.traces.processor.on_end(SpanData {
                span_context: SpanContext::new(self.trace, step.id, TraceFlags::SAMPLED, false, self.state.clone()),
                parent_span_id: parent.or(self.parent).unwrap_or(SpanId::INVALID),
                parent_span_is_remote: parent.is_none() && self.parent.is_some(),
                span_kind: step.kind,
                name: step.name,
                start_time: step.start,
                end_time: step.end.unwrap_or(now).max(step.start),
                attributes,
                dropped_attributes_count: 0,
                events: SpanEvents::default(),
                links,
                status: step.error.map_or(Status::Unset, Status::error),
                instrumentation_scope: self.traces.scope.clone(),
            });
        }
    }
}

/// Name of the span and template of the destination. Few: the lanes are two.
fn process_names(delivery: &Delivery) -> (&'static str, &'static str) {
    use postrider_schemas::Lane::{Bulk, Transactional};
    match (delivery.source.kind, delivery.source.lane) {
        (SourceKind::Jobs, Transactional) => {
            ("process postrider.v1.jobs.transactional", "postrider.v1.jobs.{lane}.{shard}")
        }
        (SourceKind::Jobs, Bulk) => ("process postrider.v1.jobs.bulk", "postrider.v1.jobs.{lane}.{shard}"),
        (SourceKind::Due, Transactional) => {
            ("process postrider.v1.due.transactional", "postrider.v1.due.{lane}.{shard}")
        }
        (SourceKind::Due, Bulk) => ("process postrider.v1.due.bulk", "postrider.v1.due.{lane}.{shard}"),
        (SourceKind::Suspect, _) => ("process postrider.v1.suspect", "postrider.v1.suspect"),
    }
}

fn described(delivery: &Delivery, template: &'static str, now: Timestamp) -> Vec<KeyValue> {
    use postrider_schemas::topology::{SUSPECT_QUEUE, due_queue, jobs_queue};
    let source = delivery.source;
    let queue = match source.kind {
        SourceKind::Jobs => jobs_queue(source.lane, source.shard),
        SourceKind::Due => due_queue(source.lane, source.shard),
        SourceKind::Suspect => SUSPECT_QUEUE.to_owned(),
    };
    let mut list = Vec::with_capacity(24);
    list.extend([
        KeyValue::new(attribute::MESSAGING_SYSTEM, delivery.system()),
        KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "process"),
        KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "process"),
        KeyValue::new(attribute::MESSAGING_DESTINATION, queue),
        KeyValue::new(attribute::MESSAGING_TEMPLATE, template),
        KeyValue::new(attribute::MESSAGING_BODY_SIZE, i64::try_from(delivery.body.len()).unwrap_or(i64::MAX)),
        KeyValue::new(attribute::LANE, source.lane.as_str()),
        KeyValue::new(attribute::SOURCE, words::source(source.kind)),
        KeyValue::new(attribute::GENERATION, i64::from(delivery.meta.generation)),
        KeyValue::new(attribute::ATTEMPT, i64::from(delivery.meta.attempt) + 1),
    ]);
    // Of anybody's making: shown only where it is an id of the usual form.
    if let Some(id) = delivery.message_id.as_deref().filter(|id| id.parse::<postrider_schemas::JobId>().is_ok()) {
        list.push(KeyValue::new(attribute::MESSAGING_MESSAGE_ID, id.to_owned()));
    }
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64().max(0.0);
    if let Some(since) = super::metrics::waiting_since(delivery, now) {
        list.push(KeyValue::new(attribute::QUEUE_WAIT, seconds(since, now)));
    }
    if let (Some(parked), Some(due)) = (delivery.published_at, delivery.meta.not_before) {
        list.push(KeyValue::new(attribute::PARKED, seconds(parked, due)));
    }
    list
}

/// A step under way. It ends when it is dropped.
#[must_use = "a step ends when it is dropped"]
pub struct Step(Option<usize>);

/// Begins a step of the attempt whose task this is.
pub fn step(name: &'static str) -> Step {
    Step(with(|trail| trail.note(Cow::Borrowed(name), SpanKind::Internal)).flatten())
}

/// Begins a step in which another program is asked.
pub fn call(name: &'static str) -> Step {
    Step(with(|trail| trail.note(Cow::Borrowed(name), SpanKind::Client)).flatten())
}

/// Begins a wait with a job in hand: a time of its own, so that nobody takes it for slow work.
pub fn waiting(reason: &'static str) -> Step {
    let step = step("wait");
    step.set(attribute::WAIT_REASON, reason);
    step
}

/// Begins a step that the ones after it belong to, until it ends.
pub fn stretch(name: &'static str, is_call: bool) -> Step {
    let kind = if is_call { SpanKind::Client } else { SpanKind::Internal };
    let begin = |trail: &mut Trail| {
        let position = trail.note(Cow::Borrowed(name), kind)?;
        trail.open.push(position);
        Some(position)
    };
    Step(with(begin).flatten())
}

impl Step {
    /// Notes an attribute. Names are those of the registry.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(step) = self.0 {
            with(|trail| trail.steps[step].attributes.push(KeyValue::new(name, value.into())));
        }
    }

    /// The step failed. The text is a class or an answer: never an address, a body or a secret.
    pub fn fail(&self, kind: &'static str, text: &str) {
        if let Some(step) = self.0 {
            with(|trail| {
                let step = &mut trail.steps[step];
                step.attributes.push(KeyValue::new(attribute::ERROR_TYPE, kind));
                step.error = Some(Cow::Owned(text.to_owned()));
            });
        }
    }

    /// Its W3C context, for those who are called.
    pub fn traceparent(&self) -> Option<String> {
        let step = self.0?;
        with(|trail| lineage::format(&trail.context(step)))
    }

    /// True where it is recorded: what costs something to find out is not worth it otherwise.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(step) = self.0 {
            with(|trail| {
                trail.steps[step].end = Some(SystemTime::now());
                trail.open.retain(|one| *one != step);
            });
        }
    }
}

/// Notes an attribute of the attempt as a whole.
pub fn set(name: &'static str, value: impl Into<Value>) {
    with(|trail| {
        let attributes = &mut trail.steps[0].attributes;
        attributes.push(KeyValue::new(name, value.into()));
    });
}

/// True where the attempt is recorded.
pub fn is_recorded() -> bool {
    with(|_| ()).is_some()
}

/// The attempt as a whole failed in a way that somebody will ask about: its trace is sent whatever the sampler says.
pub fn failed(kind: &'static str, text: &str) {
    with(|trail| {
        trail.is_failure = true;
        let root = &mut trail.steps[0];
        root.attributes.push(KeyValue::new(attribute::ERROR_TYPE, kind));
        root.error = Some(Cow::Owned(text.to_owned()));
    });
}

/// Nothing was begun: nothing is told.
pub fn forget() {
    with(|trail| (trail.is_sampled, trail.is_failure) = (false, false));
}

/// The trace of the attempt whose task this is, for log lines; the one that the message came in, where traces are off.
pub fn trace_id(meta: &Meta) -> Option<String> {
    let own = with(|trail| trail.trace.to_string());
    own.or_else(|| Some(lineage::parse(meta.traceparent.as_deref()?, "")?.trace_id().to_string()))
}

fn with<T>(look: impl FnOnce(&mut Trail) -> T) -> Option<T> {
    TRAIL.try_with(|trail| trail.borrow_mut().as_deref_mut().map(look)).ok().flatten()
}
