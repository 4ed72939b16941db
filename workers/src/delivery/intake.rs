//! From a delivery to a job in hand: what comes before the ledger is asked. A step that ends the delivery settles it and gives nothing back.

use std::{future::pending, panic::resume_unwind, time::Duration};

use postrider_schemas::{
    Job, Meta,
    wire::{self, DecodeError},
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    concurrency::job_slots::{JobSlot, JobSlots},
    delivery::{
        context::Context,
        dead_letter::{dead_letter, dead_letter_unreadable, quarantine},
        losses::{self, may_have_been_begun},
        settlements::settle_or_warn,
    },
    memory::Turn,
    policy::{headers::flaw, poison::poison, publisher, route::Route, schedule, settlement::Settlement},
    queue::{Delivery, SourceKind},
    telemetry::{metrics, traces},
};

/// A delivery that may be looked at: not one with which workers were lost, nor one of which only a part was kept.
pub(crate) async fn survived(context: &Context, mut delivery: Delivery) -> Option<Delivery> {
    if needs_time(&delivery) {
        // Replaced by one that has a time before anything is begun with it: whatever becomes of a worker, the ledger can tell what it would remember.
        let meta = Meta { published: Some(context.now()), ..delivery.meta.clone() };
        traces::forget();
        settle_or_warn(context, delivery, Settlement::Again { wait: Duration::ZERO, meta }).await;
        return None;
    }
    losses::look_back(context, &mut delivery).await;
    let poison_after = context.config.worker.poison_after;
    let in_quarantine = is_in_quarantine(&delivery);
    if let Some(settlement) = poison(&delivery.meta, delivery.lost, in_quarantine, poison_after, context.now()) {
        quarantine(context, delivery, settlement).await;
        return None;
    }
    if let Some(cut) = delivery.cut.clone().filter(|cut| cut.is_whole) {
        dead_letter_unreadable(context, delivery, "unreadable", &cut.reason).await;
        return None;
    }
    Some(delivery)
}

/// True for what a producer published without a time, and with an id that holds none.
fn needs_time(delivery: &Delivery) -> bool {
    let is_readable = delivery.cut.as_ref().is_none_or(|cut| !cut.is_whole);
    delivery.source.kind == SourceKind::Jobs && delivery.published_at.is_none() && is_readable
}

fn is_in_quarantine(delivery: &Delivery) -> bool {
    delivery.source.kind == SourceKind::Suspect
}

/// A delivery for which there is memory; one that has to wait long comes back later.
pub(crate) async fn with_memory(
    context: &Context,
    mut delivery: Delivery,
    stop: &CancellationToken,
) -> Option<Delivery> {
    // One that has to keep its time, and has none, cannot go back as a copy.
    let may_leave =
        !is_in_quarantine(&delivery) && (delivery.published_at.is_some() || !may_have_been_begun(&delivery));
    let turn = {
        let _waiting = traces::waiting("memory");
        stop.run_until_cancelled(delivery.held.turn(may_leave)).await
    };
    let settlement = match turn {
        Some(Turn::Now) => return Some(delivery),
        Some(Turn::Later(wait)) => {
            metrics::parked(delivery.source.lane, "memory");
            Settlement::Later(wait)
        }
        None => Settlement::Return,
    };
    traces::forget();
    settle_or_warn(context, delivery, settlement).await;
    None
}

/// What was delivered before has its job slot before anything is done with it, and the store hears of it: it may be what ends workers.
pub(crate) async fn redelivered(
    context: &Context,
    mut delivery: Delivery,
    job_slots: &JobSlots,
    stop: &CancellationToken,
) -> Option<(Delivery, Option<JobSlot>)> {
    if !may_have_been_begun(&delivery) {
        return Some((delivery, None));
    }
    let job_slot = take_slot(job_slots, &delivery, String::new(), stop).await;
    if job_slot.is_none() {
        traces::forget();
        settle_or_warn(context, delivery, Settlement::Return).await;
        return None;
    }
    losses::begin(context, &mut delivery).await;
    Some((delivery, job_slot))
}

/// The job of a delivery, where it is one and its publisher may send it.
pub(crate) async fn decoded(context: &Context, mut delivery: Delivery) -> Option<(Delivery, Job)> {
    let job = match decode(context, &delivery).await {
        Ok(job) => job,
        Err(error) => {
            let reason = if matches!(error, DecodeError::Template { .. }) { "template-limit" } else { "unreadable" };
            dead_letter_unreadable(context, delivery, reason, &error.to_string()).await;
            return None;
        }
    };
    if let Some(detail) = flaw(&delivery.meta, job.recipients().len() + job.rejected().len(), context.now()) {
        dead_letter(context, delivery, &job, "unreadable", &detail).await;
        return None;
    }
    let publisher = delivery.meta.publisher.as_deref();
    if let Some(detail) = publisher::refusal(&context.config.queue.publishers, publisher, job.tenant()) {
        dead_letter(context, delivery, &job, "publisher-not-allowed", &detail).await;
        return None;
    }
    // Judged once: the copies of this message are a worker's.
    delivery.meta.publisher = None;
    if delivery.meta.published.is_none() {
        delivery.meta.published =
            Some(schedule::first_seen(&job, &delivery.meta, delivery.published_at, context.now()));
    }
    Some((delivery, job))
}

/// Decodes a job. A large one has a thread for that: all others would wait for it.
async fn decode(context: &Context, delivery: &Delivery) -> Result<Job, DecodeError> {
    let limits = context.config.job;
    if !delivery.held.is_large() {
        return wire::decode(&delivery.body, delivery.message_type.as_deref(), &limits);
    }
    let (body, kind) = (delivery.body.clone(), delivery.message_type.clone());
    match spawn_blocking(move || wire::decode(&body, kind.as_deref(), &limits)).await {
        Ok(decoded) => decoded,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The process is ending.
            Err(_) => pending().await,
        },
    }
}

/// Waits for a job slot of this tenant at its first transport; nothing where `stop` comes first.
pub(crate) async fn slot_of_tenant(
    job_slots: &JobSlots,
    delivery: &Delivery,
    job: &Job,
    route: &Route,
    stop: &CancellationToken,
) -> Option<JobSlot> {
    let first = route.order(job.id()).first().copied().unwrap_or_default();
    take_slot(job_slots, delivery, format!("{} {first}", job.tenant()), stop).await
}

async fn take_slot(
    job_slots: &JobSlots,
    delivery: &Delivery,
    whose: String,
    stop: &CancellationToken,
) -> Option<JobSlot> {
    let lane = delivery.source.lane;
    let is_fresh = match delivery.source.kind {
        // Handed out one at a time: the less it waits, the fewer other accidents it is part of.
        SourceKind::Suspect => return Some(job_slots.beside(lane)),
        SourceKind::Jobs => true,
        SourceKind::Due => false,
    };
    let _waiting = traces::waiting("job_slot");
    let job_slot = stop.run_until_cancelled(job_slots.take(lane, whose, is_fresh)).await?;
    Some(if delivery.held.may_linger() { job_slot } else { job_slot.heavy() })
}
