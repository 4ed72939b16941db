//! What an attempt noted of itself: two lists of plain values, one of steps and one of what is said of them. Most trails are thrown away, so nothing
//! is made here that a span needs and a trail does not: ids follow from one number, texts that can be put together later are, and what is said
//! of a step costs no allocation of its own.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use opentelemetry::{
    Value,
    trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use postrider_schemas::JobId;

use super::{registry::attribute, trace_parent::TraceParent};
use crate::queue::{Delivery, Source};

/// Most steps that one trail keeps: an attempt over many transports and recipients must not grow without bound.
const STEPS_MAX: usize = 128;
/// Most things that are said of them, for the same reason.
const SAID_MAX: usize = 1024;

/// One attempt's steps, or those of a call that several jobs share.
pub(super) struct TraceBuffer {
    trace: TraceId,
    seed: u64,
    /// Whose child it is, and what it points at.
    pub(super) lineage: TraceParent,
    /// What was received, where it is an attempt.
    pub(super) received: Option<MessageOrigin>,
    /// Its parent or the ratio wants it.
    pub(super) is_sampled: bool,
    /// Somebody will ask about it.
    pub(super) is_failure: bool,
    /// The first one is the root of the others.
    pub(super) steps: Vec<BufferedSpan>,
    /// What is said of steps, in the order of saying.
    pub(super) said: Vec<SpanAttribute>,
    /// What steps point at.
    pub(super) links: Vec<(usize, SpanContext)>,
    /// Positions of the steps under way that others belong to, the innermost one last. Most steps are no such: some run side by side.
    open: Vec<usize>,
}

/// A step.
pub(super) struct BufferedSpan {
    pub(super) name: &'static str,
    pub(super) kind: SpanKind,
    pub(super) parent: Option<u8>,
    pub(super) start: SystemTime,
    pub(super) end: Option<SystemTime>,
    pub(super) error: Option<Box<str>>,
}

/// Something said of the step at a position. Names are those of the registry.
pub(super) struct SpanAttribute {
    pub(super) step: u8,
    pub(super) name: &'static str,
    pub(super) value: Value,
}

/// What a delivery is described by, in so far as it is a trail's whole life long.
pub(super) struct MessageOrigin {
    pub(super) source: Source,
    pub(super) system: &'static str,
    pub(super) server: Option<(Arc<str>, u16)>,
    /// Of anybody's making: kept only where it is an id of the usual form.
    pub(super) message_id: Option<JobId>,
    pub(super) body: usize,
    pub(super) generation: u32,
    pub(super) attempt: u32,
    /// When it was published, and since when it waits.
    pub(super) published_at: Option<Timestamp>,
    pub(super) since: Option<Timestamp>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) at: Timestamp,
    /// What was found out about the job later on.
    pub(super) job: Option<TraceSubject>,
}

/// What a job is, for its trace.
pub struct TraceSubject {
    /// Its id.
    pub id: JobId,
    /// Its tenant.
    pub tenant: String,
    /// The rule that takes it.
    pub route: String,
    /// How many recipients the attempt is about.
    pub recipients: usize,
}

impl MessageOrigin {
    /// Of this delivery.
    pub(super) fn new(delivery: &Delivery, server: Option<&(Arc<str>, u16)>, now: Timestamp) -> Self {
        Self {
            source: delivery.source,
            system: delivery.system(),
            server: server.cloned(),
            message_id: delivery.message_id.as_deref().and_then(|id| id.parse().ok()),
            body: delivery.body.len(),
            generation: delivery.meta.generation,
            attempt: delivery.meta.attempt,
            published_at: delivery.published_at,
            since: super::metrics::waiting_since(delivery, now),
            not_before: delivery.meta.not_before,
            at: now,
            job: None,
        }
    }
}

impl TraceBuffer {
    /// An empty one, in the trace of its parent or in a new one. Whether it is sampled is for its maker to say.
    pub(super) fn new(lineage: TraceParent) -> Self {
        let ids = RandomIdGenerator::default();
        Self {
            trace: lineage.parent.as_ref().map_or_else(|| ids.new_trace_id(), SpanContext::trace_id),
            seed: u64::from_be_bytes(ids.new_span_id().to_bytes()),
            lineage,
            received: None,
            is_sampled: false,
            is_failure: false,
            steps: Vec::with_capacity(16),
            said: Vec::with_capacity(32),
            links: Vec::new(),
            open: Vec::with_capacity(4),
        }
    }

    /// The trace that it is in.
    pub(super) fn trace(&self) -> TraceId {
        self.trace
    }

    /// The state that goes along with the trace.
    pub(super) fn state(&self) -> TraceState {
        self.lineage.parent.as_ref().map(|parent| parent.trace_state().clone()).unwrap_or_default()
    }

    /// The id of the step at a position: as good as drawn, because the seed is.
    pub(super) fn id(&self, step: usize) -> SpanId {
        let number = self.seed.wrapping_add((step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Zero is no id.
        SpanId::from(if number == 0 { 1 } else { number })
    }

    /// How a step is known to others.
    pub(super) fn context(&self, step: usize) -> SpanContext {
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        SpanContext::new(self.trace, self.id(step), flags, false, self.state())
    }

    /// Begins a step; nothing where there are too many.
    pub(super) fn begin(&mut self, name: &'static str, kind: SpanKind) -> Option<usize> {
        let position = self.steps.len();
        if position >= STEPS_MAX {
            return None;
        }
        let parent = self.open.last().and_then(|open| u8::try_from(*open).ok());
        self.steps.push(BufferedSpan { name, kind, parent, start: SystemTime::now(), end: None, error: None });
        Some(position)
    }

    /// The steps that begin from now on belong to this one, until it ends.
    pub(super) fn open(&mut self, step: usize) {
        self.open.push(step);
    }

    /// Ends a step.
    pub(super) fn end(&mut self, step: usize) {
        self.steps[step].end = Some(SystemTime::now());
        if let Some(place) = self.open.iter().rposition(|one| *one == step) {
            self.open.remove(place);
        }
    }

    /// The attempt is over: steps that did not end, because it was cut short, end now, and so does the whole.
    pub(super) fn close(&mut self, now: SystemTime) {
        self.open.clear();
        for step in &mut self.steps {
            step.end.get_or_insert(now);
        }
    }

    /// Says something of a step.
    pub(super) fn say(&mut self, step: usize, name: &'static str, value: Value) {
        if let Ok(step) = u8::try_from(step)
            && self.said.len() < SAID_MAX
        {
            self.said.push(SpanAttribute { step, name, value });
        }
    }

    /// A step failed. What failed last counts: an attribute is there once.
    pub(super) fn fail(&mut self, step: usize, kind: Value, text: &str) {
        if self.steps[step].error.replace(text.into()).is_some() {
            self.said.retain(|said| usize::from(said.step) != step || said.name != attribute::ERROR_TYPE);
        }
        self.say(step, attribute::ERROR_TYPE, kind);
    }

    /// A step points at a span of another trace.
    pub(super) fn link(&mut self, step: usize, context: SpanContext) {
        if self.links.len() < STEPS_MAX {
            self.links.push((step, context));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_attempt_ends_when_it_is_over_and_not_when_it_is_sent() {
        let mut trail = TraceBuffer::new(TraceParent { parent: None, links: Vec::new() });
        let root = trail.begin("process", SpanKind::Consumer).unwrap();
        trail.open(root);
        let call = trail.begin("claim", SpanKind::Client).unwrap();
        trail.end(call);
        let (ended, over) = (trail.steps[call].end, SystemTime::now() + Duration::from_secs(1));
        trail.close(over);
        assert_eq!((trail.steps[root].end, trail.steps[call].end), (Some(over), ended));
    }
}
