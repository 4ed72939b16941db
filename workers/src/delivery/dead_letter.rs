//! Puts messages to rest that are not to be tried (any more): what is no job, what is given up before a try, what workers did not survive. Each is kept
//! whole, with its reason, and its sender is told. What an attempt came to is not decided here.

use jiff::Timestamp;
use postrider_schemas::{
    Event, EventType, Job, JobId, Meta, Tenant,
    event::EventData,
    wire::{self, Sketch},
};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::{
    delivery::{context::Context, events::emit, settlements::settle_or_warn},
    policy::{decision::rest_reason, publisher, settlement::Settlement},
    queue::Delivery,
    telemetry::{metrics, traces},
};

/// A message that is no job, or whose headers are lost: its bytes, the reason in one word, and what is wrong.
pub(crate) async fn dead_letter_unreadable(context: &Context, delivery: Delivery, reason: &'static str, error: &str) {
    warn!(error, bytes = delivery.body.len(), "A message is not a job");
    metrics::dead(delivery.source.lane, reason);
    traces::failed(reason, "a message is not a job");
    let mut meta = delivery.meta.clone();
    let mut cause = rest_reason(reason, error, &meta, context.now());
    cause.lane = Some(delivery.source.lane);
    meta.rest = Some(cause);
    let sketch = readable_part(context, &delivery);
    let is_told = emit(context, &[unread_dead_letter_event(&delivery, &meta, sketch, context.now())]).await;
    settle_or_warn(context, delivery, if is_told { Settlement::DeadLetter(meta) } else { Settlement::GiveBack }).await;
}

/// What of a message names it and its sender. A tenant that its publisher may not publish for does not hear of it.
fn readable_part(context: &Context, delivery: &Delivery) -> Sketch {
    let mut sketch = wire::sketch(&delivery.body, &context.config.job);
    let publisher = delivery.meta.publisher.as_deref();
    let may_be = |tenant: &Tenant| publisher::refusal(&context.config.queue.publishers, publisher, tenant).is_none();
    sketch.tenant = sketch.tenant.filter(may_be);
    sketch
}

/// The event about a message that goes to `dead`: with what is known of it where it was read, else without a look at what it says.
fn unread_dead_letter_event(delivery: &Delivery, meta: &Meta, sketch: Sketch, now: Timestamp) -> Event {
    let rest = meta.rest.as_ref();
    let data = EventData {
        job_id: job_id(delivery).or(sketch.id),
        idempotency_key: sketch.idempotency_key.map(|key| key.as_str().to_owned()),
        tenant: sketch.tenant.unwrap_or_default().as_str().to_owned(),
        lane: delivery.source.lane,
        tags: sketch.tags,
        metadata: sketch.metadata,
        generation: meta.generation,
        reason: rest.map(|rest| rest.reason.clone()),
        answer: rest.map(|rest| rest.detail.clone()),
        ..EventData::default()
    };
    let told_of = meta.published.or(delivery.published_at);
    let digest = digest(delivery.message_id.as_deref(), &delivery.body, told_of);
    Event::about_message(EventType::Dead, data, &digest, now)
}

/// Tells a message from all others; the same when the message comes again.
fn digest(message_id: Option<&str>, body: &[u8], published: Option<Timestamp>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(message_id.unwrap_or_default());
    hasher.update(published.map(|time| time.to_string()).unwrap_or_default());
    hasher.update(body);
    hasher.finalize()[..8].iter().fold(String::new(), |text, octet| format!("{text}{octet:02x}"))
}

fn job_id(delivery: &Delivery) -> Option<JobId> {
    delivery.message_id.as_deref().and_then(|id| id.parse().ok())
}

/// A job that is given up before a try.
pub(crate) async fn dead_letter(context: &Context, delivery: Delivery, job: &Job, reason: &str, detail: &str) {
    warn!(job.id = %job.id(), trace_id = traces::trace_id(&delivery.meta), reason, detail, "Job {} is given up", job.id());
    metrics::dead(job.lane(), reason);
    traces::failed("dead", detail);
    let mut meta = delivery.meta.clone();
    meta.generation = meta.generation.saturating_add(1);
    meta.rest = Some(rest_reason(reason, detail, &meta, context.now()));
    let mut event = Event::about(EventType::Dead, job, &meta, context.now());
    event.data.reason = Some(reason.to_owned());
    event.data.answer = Some(detail.to_owned());
    let is_told = emit(context, &[event]).await;
    settle_or_warn(context, delivery, if is_told { Settlement::DeadLetter(meta) } else { Settlement::GiveBack }).await;
}

/// A message with which workers were lost: carries out what [`crate::policy::poison`] says.
pub(crate) async fn quarantine(context: &Context, delivery: Delivery, settlement: Settlement) {
    let (id, lost) = (job_id(&delivery).map(|id| id.to_string()).unwrap_or_default(), delivery.lost);
    warn!(job.id = id, losses = lost, "{lost} workers were lost with a message in hand; it is quarantined");
    traces::failed("crash-poison", "workers were lost with this message in hand");
    if let Settlement::DeadLetter(meta) = &settlement {
        metrics::dead(delivery.source.lane, "crash-poison");
        if !emit(context, &[unread_dead_letter_event(&delivery, meta, Sketch::default(), context.now())]).await {
            return settle_or_warn(context, delivery, Settlement::GiveBack).await;
        }
    }
    settle_or_warn(context, delivery, settlement).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_messages_without_an_id_are_told_apart_and_one_is_known_again() {
        let time = |text: &str| Some(text.parse().unwrap());
        let one = digest(None, b"{", time("2026-11-23T10:00:00Z"));
        assert_eq!(one, digest(None, b"{", time("2026-11-23T10:00:00Z")));
        assert_ne!(one, digest(None, b"{", time("2026-11-23T10:00:00.000000001Z")));
        assert_ne!(one, digest(None, b"[", time("2026-11-23T10:00:00Z")));
        assert_ne!(one, digest(Some("1"), b"{", time("2026-11-23T10:00:00Z")));
    }
}
