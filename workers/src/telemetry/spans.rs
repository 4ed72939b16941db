//! Trails as spans of the SDK: made only of those that are sent, in the thread that sends them.

use std::{borrow::Cow, time::SystemTime};

use jiff::Timestamp;
use opentelemetry::{
    InstrumentationScope, KeyValue, StringValue,
    trace::{Link, SpanContext, SpanId, Status, TraceFlags},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use postrider_schemas::topology::{SUSPECT_QUEUE, due_queue, jobs_queue};

use super::{
    label_values,
    registry::attribute,
    trace_buffer::{MessageOrigin, TraceBuffer},
};
use crate::queue::{Source, SourceKind};

/// Adds the spans of a trail.
pub(super) fn add(trail: TraceBuffer, scope: &InstrumentationScope, spans: &mut Vec<SpanData>) {
    let (now, first, count) = (SystemTime::now(), spans.len(), trail.steps.len());
    let (parent, state) = (trail.lineage.parent.as_ref().map(SpanContext::span_id), trail.state());
    let ids: Vec<SpanId> = (0..count).map(|step| trail.id(step)).collect();
    let trace = trail.trace();
    spans.extend(trail.steps.into_iter().enumerate().map(|(position, step)| {
        let above = step.parent.and_then(|parent| ids.get(usize::from(parent)).copied());
        SpanData {
            span_context: SpanContext::new(trace, ids[position], TraceFlags::SAMPLED, false, state.clone()),
            parent_span_id: above.or(parent).unwrap_or(SpanId::INVALID),
            parent_span_is_remote: above.is_none() && parent.is_some(),
            span_kind: step.kind,
            name: Cow::Borrowed(step.name),
            start_time: step.start,
            end_time: step.end.unwrap_or(now).max(step.start),
            attributes: Vec::with_capacity(if position == 0 { 24 } else { 8 }),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: step.error.map_or(Status::Unset, |text| Status::error(String::from(text))),
            instrumentation_scope: scope.clone(),
        }
    }));
    let spans = &mut spans[first..];
    if let Some(root) = spans.first_mut() {
        if let Some(received) = trail.received {
            describe(received, &mut root.attributes);
        }
        let why = if trail.is_sampled { "ratio" } else { "failure" };
        root.attributes.push(KeyValue::new(attribute::SAMPLED_BY, why));
        root.links.links.extend(trail.lineage.links.into_iter().map(Link::with_context));
    }
    for said in trail.said {
        if let Some(span) = spans.get_mut(usize::from(said.step)) {
            span.attributes.push(KeyValue::new(said.name, said.value));
        }
    }
    for (step, context) in trail.links {
        if let Some(span) = spans.get_mut(step) {
            span.links.links.push(Link::with_context(context));
        }
    }
}

/// Name of the root and template of the destination. Few: the lanes are two.
pub(super) fn process_names(source: Source) -> (&'static str, &'static str) {
    use postrider_schemas::Lane::{Bulk, Transactional};
    const JOBS: &str = "postrider.v1.jobs.{lane}.{shard}";
    const DUE: &str = "postrider.v1.due.{lane}.{shard}";
    match (source.kind, source.lane) {
        (SourceKind::Jobs, Transactional) => ("process postrider.v1.jobs.transactional", JOBS),
        (SourceKind::Jobs, Bulk) => ("process postrider.v1.jobs.bulk", JOBS),
        (SourceKind::Due, Transactional) => ("process postrider.v1.due.transactional", DUE),
        (SourceKind::Due, Bulk) => ("process postrider.v1.due.bulk", DUE),
        (SourceKind::Suspect, _) => ("process postrider.v1.suspect", "postrider.v1.suspect"),
    }
}

/// The queue that a delivery came from.
pub(crate) fn queue(source: Source) -> String {
    match source.kind {
        SourceKind::Jobs => jobs_queue(source.lane, source.shard),
        SourceKind::Due => due_queue(source.lane, source.shard),
        SourceKind::Suspect => SUSPECT_QUEUE.to_owned(),
    }
}

fn describe(received: MessageOrigin, list: &mut Vec<KeyValue>) {
    let source = received.source;
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64().max(0.0);
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    list.extend([
        KeyValue::new(attribute::MESSAGING_SYSTEM, received.system),
        KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "process"),
        KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "process"),
        KeyValue::new(attribute::MESSAGING_DESTINATION, queue(source)),
        KeyValue::new(attribute::MESSAGING_TEMPLATE, process_names(source).1),
        KeyValue::new(attribute::MESSAGING_BODY_SIZE, number(received.body)),
        KeyValue::new(attribute::LANE, source.lane.as_str()),
        KeyValue::new(attribute::SOURCE, label_values::source(source.kind)),
        KeyValue::new(attribute::GENERATION, i64::from(received.generation)),
        KeyValue::new(attribute::ATTEMPT, i64::from(received.attempt) + 1),
    ]);
    if let Some((host, port)) = received.server {
        list.push(KeyValue::new(attribute::SERVER_ADDRESS, StringValue::from(host)));
        list.push(KeyValue::new(attribute::SERVER_PORT, i64::from(port)));
    }
    if let Some(id) = received.message_id {
        list.push(KeyValue::new(attribute::MESSAGING_MESSAGE_ID, id.to_string()));
    }
    if let Some(since) = received.since {
        list.push(KeyValue::new(attribute::QUEUE_WAIT, seconds(since, received.at)));
    }
    if let (Some(parked), Some(due)) = (received.published_at, received.not_before) {
        list.push(KeyValue::new(attribute::PARKED, seconds(parked, due)));
    }
    if let Some(job) = received.job {
        list.extend([
            KeyValue::new(attribute::JOB_ID, job.id.to_string()),
            KeyValue::new(attribute::TENANT, job.tenant),
            KeyValue::new(attribute::ROUTE, job.route),
            KeyValue::new(attribute::RECIPIENTS, number(job.recipients)),
        ]);
    }
}
