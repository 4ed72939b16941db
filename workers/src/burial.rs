//! Puts messages to rest that are not to be tried (any more): what is no job, what is given up before a try, what workers did not survive. Each is kept
//! whole, with its reason, and its sender is told. What an attempt came to is not decided here.

use jiff::Timestamp;
use postrider_schemas::{Event, EventType, Job, JobId, Meta, event::EventData, wire::DecodeError};
use tracing::warn;

use crate::{
    attempt::{World, close, emit, lost},
    decide::{settle::rest, settlement::Settlement},
    queue::Delivery,
    telemetry::{metrics, traces},
};

/// A message that is no job: its bytes and the reason.
pub(crate) async fn unreadable(world: &World, delivery: Delivery, error: &DecodeError) {
    warn!(%error, bytes = delivery.body.len(), "A message is not a job");
    metrics::dead(delivery.source.lane, "unreadable");
    traces::failed("unreadable", "a message is not a job");
    let mut meta = delivery.meta.clone();
    let mut cause = rest("unreadable", &error.to_string(), &meta, world.now());
    cause.lane = Some(delivery.source.lane);
    meta.rest = Some(cause);
    emit(world, &[dead_unread(&delivery, &meta, world.now())]).await;
    close(world, delivery, Settlement::Bury(meta)).await;
}

/// The event about a message that goes to `dead` without a look at what it says.
fn dead_unread(delivery: &Delivery, meta: &Meta, now: Timestamp) -> Event {
    let rest = meta.rest.as_ref();
    let data = EventData {
        job_id: job_id(delivery),
        tenant: postrider_schemas::Tenant::DEFAULT.to_owned(),
        lane: delivery.source.lane,
        generation: meta.generation,
        reason: rest.map(|rest| rest.reason.clone()),
        answer: rest.map(|rest| rest.detail.clone()),
        ..EventData::default()
    };
    Event::new(EventType::Dead, data, now)
}

fn job_id(delivery: &Delivery) -> Option<JobId> {
    delivery.message_id.as_deref().and_then(|id| id.parse().ok())
}

/// A job that is given up before a try.
pub(crate) async fn bury(world: &World, delivery: Delivery, job: &Job, reason: &str, detail: &str) {
    warn!(job.id = %job.id(), trace_id = traces::trace_id(&delivery.meta), reason, detail, "Job {} is given up", job.id());
    metrics::dead(job.lane(), reason);
    traces::failed("dead", detail);
    let mut meta = delivery.meta.clone();
    meta.generation += 1;
    meta.rest = Some(rest(reason, detail, &meta, world.now()));
    let mut event = Event::about(EventType::Dead, job, &meta, world.now());
    event.data.reason = Some(reason.to_owned());
    event.data.answer = Some(detail.to_owned());
    emit(world, &[event]).await;
    close(world, delivery, Settlement::Bury(meta)).await;
}

/// A message with which workers were lost: carries out what [`crate::decide::poison`] says.
pub(crate) async fn put_aside(world: &World, delivery: Delivery, settlement: Settlement) {
    let (id, lost) = (job_id(&delivery).map(|id| id.to_string()).unwrap_or_default(), lost(&delivery));
    warn!(job.id = id, losses = lost, "{lost} workers were lost with a message in hand; it is put aside");
    traces::failed("crash-poison", "workers were lost with this message in hand");
    if let Settlement::Bury(meta) = &settlement {
        metrics::dead(delivery.source.lane, "crash-poison");
        emit(world, &[dead_unread(&delivery, meta, world.now())]).await;
    }
    close(world, delivery, settlement).await;
}
