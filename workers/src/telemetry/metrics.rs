//! The instruments that attempts feed. Where neither a collector nor the admin address is configured there are none, and every function here
//! returns at once.
//!
//! **Invariant:** the value of a label is one of [`super::label_values`]: never a domain, tenant, job, address or text of an answer.

use std::{sync::OnceLock, time::Duration};

use jiff::Timestamp;
use opentelemetry::{
    KeyValue, StringValue,
    metrics::{Counter, Histogram, Meter},
};
use postrider_schemas::{Job, Lane, Meta};
use tokio::time::Instant;

use super::{
    label_values::{self, KnownNames},
    registry::Name,
    worker_stats::{InFlight, WORKER_STATS},
};
use crate::{
    policy::{
        decision::Disposition,
        outcome::{Class, Outcome, Stage},
        route::OnUnknown,
    },
    queue::Delivery,
};

static METRICS: OnceLock<Metrics> = OnceLock::new();

/// The instruments of this process, if it has any.
pub(super) fn get() -> Option<&'static Metrics> {
    METRICS.get()
}

/// Makes these the instruments of this process.
pub(super) fn install(metrics: Metrics) {
    // Telemetry is set up once; a second set would be told of nothing.
    let _ = METRICS.set(metrics);
}

/// Counters and histograms, and the names that label them.
pub struct Metrics {
    attempts: Counter<u64>,
    outcomes: Counter<u64>,
    duration: Histogram<f64>,
    publish_to_accepted: Histogram<f64>,
    config_refusals: Counter<u64>,
    systemic_refusals: Counter<u64>,
    unknowns: Counter<u64>,
    queue_wait: Histogram<f64>,
    lateness: Histogram<f64>,
    parked: Counter<u64>,
    dead: Counter<u64>,
    held: Counter<u64>,
    duplicates: Counter<u64>,
    reloads: Counter<u64>,
    events_dropped: Counter<u64>,
    /// Names of transports.
    pub(super) transports: KnownNames,
    /// Names of groups.
    pub(super) groups: KnownNames,
}

impl Metrics {
    /// Makes the instruments.
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            attempts: counter(meter, Name::Attempts),
            outcomes: counter(meter, Name::Outcomes),
            duration: histogram(meter, Name::AttemptDuration),
            publish_to_accepted: histogram(meter, Name::PublishToAcceptedDuration),
            config_refusals: counter(meter, Name::TransportConfigRefusals),
            systemic_refusals: counter(meter, Name::TransportSystemicRefusals),
            unknowns: counter(meter, Name::Unknowns),
            queue_wait: histogram(meter, Name::QueueWaitDuration),
            lateness: histogram(meter, Name::LadderLateness),
            parked: counter(meter, Name::Parked),
            dead: counter(meter, Name::Dead),
            held: counter(meter, Name::Held),
            duplicates: counter(meter, Name::DuplicatesSuppressed),
            reloads: counter(meter, Name::ConfigReloads),
            events_dropped: counter(meter, Name::EventsDropped),
            transports: KnownNames::new("none"),
            groups: KnownNames::new("other"),
        }
    }

    /// Takes the names of a configuration. What alerts look at exists with 0 from then on, so that the first event is an increase.
    pub(super) fn learn<'a>(
        &self,
        transports: impl IntoIterator<Item = &'a str>,
        groups: impl IntoIterator<Item = &'a str>,
    ) {
        self.transports.learn(transports);
        self.groups.learn(groups);
        for lane in label_values::LANES {
            for (counter, list) in [
                (&self.parked, label_values::PARK_REASONS.as_slice()),
                (&self.dead, label_values::DEAD_REASONS.as_slice()),
                (&self.held, label_values::HELD_REASONS.as_slice()),
                (&self.duplicates, label_values::DUPLICATES.as_slice()),
            ] {
                for reason in list {
                    counter.add(0, &[KeyValue::new("lane", lane), KeyValue::new("reason", *reason)]);
                }
            }
        }
        for name in self.transports.all() {
            let transport = || KeyValue::new("transport", name.clone());
            self.systemic_refusals.add(0, &[transport()]);
            for stage in label_values::STAGES {
                self.config_refusals.add(0, &[transport(), KeyValue::new("stage", stage)]);
            }
            for (lane, policy) in
                label_values::LANES.iter().flat_map(|lane| label_values::POLICIES.iter().map(move |one| (lane, one)))
            {
                self.unknowns.add(0, &[KeyValue::new("lane", *lane), transport(), KeyValue::new("policy", *policy)]);
            }
        }
        for result in label_values::RELOADS {
            self.reloads.add(0, &[KeyValue::new("result", result)]);
        }
        self.events_dropped.add(0, &[]);
    }

    fn begun(&self, job: &Job, transport: &str, group: &str) {
        let labels = [lane(job.lane()), self.transport(transport), self.group(group)];
        self.attempts.add(1, &labels);
    }

    /// Without an outcome it was interrupted.
    fn ended(&self, job: &Job, transport: &str, group: &str, outcome: Option<&Outcome>, took: Duration) {
        let (word, class) = outcome.map_or((label_values::INTERRUPTED, label_values::CLASSES[0]), |outcome| {
            (label_values::outcome(outcome), label_values::class(outcome))
        });
        let [lane, transport, group] = [lane(job.lane()), self.transport(transport), self.group(group)];
        let (outcome_label, class) = (KeyValue::new("outcome", word), KeyValue::new("class", class));
        self.duration.record(took.as_secs_f64(), &[transport.clone(), outcome_label.clone()]);
        if let Some(Outcome::Refused { refusal, .. }) = outcome
            && refusal.class == Class::Config
        {
            self.config_refusals.add(1, &[transport.clone(), KeyValue::new("stage", refusal.answer.stage.as_str())]);
        }
        self.outcomes.add(1, &[lane, transport, group, outcome_label, class]);
    }

    fn transport(&self, name: &str) -> KeyValue {
        KeyValue::new("transport", self.transports.label(name))
    }

    /// A domain that stands for itself is one of the others.
    fn group(&self, name: &str) -> KeyValue {
        KeyValue::new("group", self.groups.label(name))
    }
}

fn counter(meter: &Meter, name: Name) -> Counter<u64> {
    let one = name.instrument();
    meter.u64_counter(one.name).with_unit(one.unit).with_description(one.help).build()
}

fn histogram(meter: &Meter, name: Name) -> Histogram<f64> {
    let one = name.instrument();
    let builder = meter.f64_histogram(one.name).with_unit(one.unit).with_description(one.help);
    builder.with_boundaries(one.buckets.to_vec()).build()
}

fn lane(lane: Lane) -> KeyValue {
    KeyValue::new("lane", lane.as_str())
}

/// A transport was paused because it refuses everybody alike.
pub fn refuses_everybody(transport: &str) {
    if let Some(metrics) = get() {
        metrics.systemic_refusals.add(1, &[metrics.transport(transport)]);
    }
}

/// A worker takes a delivery in hand. It counts as that for as long as the answer lives.
pub fn taken(delivery: &Delivery, job: &Job, now: Timestamp) -> InFlight {
    let of = delivery.source.lane;
    let since = waiting_since(delivery, now);
    if let Some(since) = since {
        WORKER_STATS.waited(of, since);
    }
    if let Some(metrics) = get() {
        let labels = [lane(of), KeyValue::new("source", label_values::source(delivery.source.kind))];
        if let Some(since) = since {
            metrics.queue_wait.record(seconds(since, now), &labels);
        }
        if let Some(due) = delivery.meta.not_before.filter(|due| *due <= now) {
            metrics.lateness.record(seconds(due, now), &labels[..1]);
        }
    }
    if is_fresh(&delivery.meta) {
        WORKER_STATS.took_fresh(of);
    }
    WORKER_STATS.take(of, unfinished_since(job, &delivery.meta), was_refused(&delivery.meta))
}

/// Since when a job is unfinished: since it was published first, or its `send_at` where that is later.
pub fn unfinished_since(job: &Job, meta: &Meta) -> Option<Timestamp> {
    let published = meta.published?;
    Some(job.send_at().map_or(published, |at| at.max(published)))
}

/// Whether a transport refused the job before: its next try waits on purpose.
fn was_refused(meta: &Meta) -> bool {
    meta.attempt > 0
}

/// A copy of a job was put away for this reason, to come back after this time.
pub fn put_off(job: &Job, copy: &Meta, back: Duration, why: &'static str, now: Timestamp) {
    let Ok(due) = now.checked_add(back) else { return };
    WORKER_STATS.waits_for(why, due);
    if let Some(since) = unfinished_since(job, copy) {
        WORKER_STATS.deferred(job.lane(), since, due, was_refused(copy), now);
    }
}

/// A job that was never deferred waits at the end of its queue, among those of which nothing is known but their number.
fn is_fresh(meta: &Meta) -> bool {
    meta.generation == 0
}

/// A limit defer a job, or found that it has to wait.
pub fn limited(of: Lane, meta: &Meta) {
    if is_fresh(meta) {
        WORKER_STATS.limited_fresh(of);
    }
}

/// Since when a delivery waits to be attempted: since its publish, or the time it was parked for.
pub fn waiting_since(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    let published = delivery.published_at?;
    Some(delivery.meta.not_before.map_or(published, |due| due.max(published)).min(now))
}

/// A transport is asked to take a job. Every attempt that is counted as begun is counted as ended too, however it ends: one that is dropped
/// without an outcome, because the worker stops or the transport is paused, was interrupted.
pub struct CountedAttempt<'a> {
    metrics: Option<&'a Metrics>,
    job: &'a Job,
    transport: &'a str,
    group: &'a str,
    since: Instant,
    is_over: bool,
}

/// Counts an attempt that begins now; its time is counted from `since`, when it asked for a connection.
pub fn attempt<'a>(job: &'a Job, transport: &'a str, group: &'a str, since: Instant) -> CountedAttempt<'a> {
    WORKER_STATS.asked(transport, Timestamp::now());
    CountedAttempt::begin(get(), job, transport, group, since)
}

impl<'a> CountedAttempt<'a> {
    fn begin(metrics: Option<&'a Metrics>, job: &'a Job, transport: &'a str, group: &'a str, since: Instant) -> Self {
        if let Some(metrics) = metrics {
            metrics.begun(job, transport, group);
        }
        Self { metrics, job, transport, group, since, is_over: false }
    }

    /// This came of it.
    pub fn ended(mut self, outcome: &Outcome) {
        self.end(Some(outcome));
    }

    fn end(&mut self, outcome: Option<&Outcome>) {
        if let Some(metrics) = self.metrics.filter(|_| !self.is_over) {
            metrics.ended(self.job, self.transport, self.group, outcome, self.since.elapsed());
        }
        self.is_over = true;
    }
}

impl Drop for CountedAttempt<'_> {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// A job was accepted.
pub fn accepted(job: &Job, meta: &Meta, transport: &str, now: Timestamp) {
    let Some(metrics) = get() else { return };
    let Some(since) = unfinished_since(job, meta) else { return };
    metrics.publish_to_accepted.record(seconds(since.min(now), now), &[lane(job.lane()), metrics.transport(transport)]);
}

/// What was decided about a job after an attempt.
pub fn decided(job: &Job, transport: &str, policy: OnUnknown, outcome: &Outcome, next: &Disposition) {
    let Some(metrics) = get() else { return };
    let of = lane(job.lane());
    if matches!(outcome, Outcome::Unknown(_)) {
        let policy = if policy == OnUnknown::Hold { label_values::POLICIES[0] } else { label_values::POLICIES[1] };
        metrics.unknowns.add(1, &[of.clone(), metrics.transport(transport), KeyValue::new("policy", policy)]);
    }
    match next {
        Disposition::Again { .. } => {
            let reason = match outcome {
                Outcome::Refused { refusal, .. }
                    if is_circuit(refusal.class, refusal.answer.stage, &refusal.answer.text) =>
                {
                    "circuit"
                }
                Outcome::Refused { refusal, .. } => label_values::park_reason(refusal.class),
                _ => "retry",
            };
            parked(job.lane(), reason);
        }
        Disposition::Hold { .. } => metrics.held.add(1, &[of, reason(label_values::HELD_REASONS[0])]),
        Disposition::DeadLetter { reason, .. } => dead(job.lane(), reason),
        Disposition::Sent | Disposition::Rejected | Disposition::Expired | Disposition::Split { .. } => {}
    }
}

/// A transport that was not asked because its circuit is open speaks of itself.
fn is_circuit(class: Class, stage: Stage, text: &str) -> bool {
    class == Class::Config && stage == Stage::Connect && text.starts_with("circuit open")
}

/// A job was deferred until later.
pub fn parked(of: Lane, why: &'static str) {
    if let Some(metrics) = get() {
        metrics.parked.add(1, &[lane(of), reason(why)]);
    }
}

/// A job was given up.
pub fn dead(of: Lane, why: &str) {
    if let Some(metrics) = get() {
        metrics.dead.add(1, &[lane(of), reason(label_values::one_of(label_values::DEAD_REASONS, why))]);
    }
}

/// An event was lost.
pub fn event_dropped() {
    if let Some(metrics) = get() {
        metrics.events_dropped.add(1, &[]);
    }
}

/// A job is held for another reason than an unknown outcome.
pub fn held_otherwise(of: Lane) {
    if let Some(metrics) = get() {
        metrics.held.add(1, &[lane(of), reason(label_values::HELD_REASONS[1])]);
    }
}

/// A message came again and was dropped.
pub fn duplicate(of: Lane, why: &'static str) {
    if let Some(metrics) = get() {
        metrics.duplicates.add(1, &[lane(of), reason(why)]);
    }
}

/// A changed configuration was applied, or refused.
pub fn reloaded(is_applied: bool) {
    if let Some(metrics) = get() {
        let result = if is_applied { label_values::RELOADS[0] } else { label_values::RELOADS[1] };
        metrics.reloads.add(1, &[KeyValue::new("result", result)]);
    }
}

fn reason(word: &'static str) -> KeyValue {
    KeyValue::new("reason", StringValue::from(word))
}

fn seconds(since: Timestamp, now: Timestamp) -> f64 {
    Duration::try_from(now.duration_since(since)).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
