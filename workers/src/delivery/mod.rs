//! One job, once, top to bottom: [`deliver`] shows the whole path, and each file here is one step of it.
//!
//! The order of the steps is what keeps the promises. A copy of a message is confirmed before the message is acknowledged. What an
//! attempt came to is written into the ledger before anything follows from it. Once a transport said yes, no error turns
//! that into another try.

pub(crate) mod attempt;
mod claim;
mod conclude;
pub mod context;
mod dead_letter;
mod defer;
mod events;
mod failover;
mod intake;
mod ledger_updates;
mod losses;
mod report;
mod settlements;

use std::sync::Arc;

use postrider_schemas::{Job, Meta};
use tokio_util::sync::CancellationToken;

use self::{
    attempt::{Attempt, Authorization, FinishedAttempt},
    context::Context,
    dead_letter::dead_letter,
    settlements::settle_or_warn,
};
use crate::{
    concurrency::job_slots::JobSlots,
    policy::{
        decision, rejected,
        route::{Route, RoutePart, Routed},
        settlement::Settlement,
    },
    queue::Delivery,
    rate_limit::deferral::Deferral,
    store::LedgerKey,
    telemetry::{metrics, traces},
};

/// Takes one delivery to its settlement, once it has a job slot, and tells of it. Hands it back where `stop` comes while it only waits: for a job slot, its
/// time, the store, a limit or a connection.
pub async fn deliver(context: Arc<Context>, delivery: Delivery, job_slots: JobSlots, stop: CancellationToken) {
    if !context.queue.usable(&delivery) {
        // Its channel died: the broker delivers it again, and an acknowledgement of ours could not arrive.
        return;
    }
    let queue = Arc::clone(&context.queue);
    let now = context.now();
    traces::trailed(delivery, queue.address(), now, |delivery| run(context, delivery, job_slots, stop)).await;
}

/// The path of a job. A step that ends it (a dead letter, a deferral, a duplicate) settles the delivery itself and gives nothing back.
async fn run(context: Arc<Context>, delivery: Delivery, job_slots: JobSlots, stop: CancellationToken) {
    let context = context.as_ref();

    // Take: a message that ended workers is quarantined, and a large one waits for memory.
    let Some(delivery) = intake::survived(context, delivery).await else { return };
    let Some(delivery) = intake::with_memory(context, delivery, &stop).await else { return };
    let Some((delivery, early_slot)) = intake::redelivered(context, delivery, &job_slots, &stop).await else { return };

    // Decode: what is no job, or not its publisher's to send, becomes a dead letter.
    let Some((delivery, job)) = intake::decoded(context, delivery).await else { return };

    // Route.
    let Some((route, parts)) = find_route(context, &job, &delivery.meta) else {
        return dead_letter(context, delivery, &job, "no-route", "no route of the configuration takes this job").await;
    };

    // Wait for a job slot: tenants take turns.
    let job_slot = match early_slot {
        Some(job_slot) => Some(job_slot),
        None => intake::slot_of_tenant(&job_slots, &delivery, &job, route, &stop).await,
    };
    let Some(job_slot) = job_slot else {
        traces::forget();
        return settle_or_warn(context, delivery, Settlement::Return).await;
    };
    let _in_hand = metrics::taken(&delivery, &job, context.now());
    let meta = delivery.meta.clone();
    let key = LedgerKey::of_message(&job.identity(), meta.part);
    let attempt = Attempt { job: &job, meta: &meta, route, parts, key, job_slot: &job_slot, stop: &stop };
    report::describe(&attempt);

    // Claim it in the ledger, and ask the limits in the same call.
    let Some((delivery, authorization, asked)) = claim::claimed(context, delivery, &attempt).await else { return };

    // Its time: wait, defer or expire.
    let Some((delivery, authorization)) = defer::until_due(context, delivery, &attempt, authorization).await else {
        return;
    };

    // Recipients with different routes go separate ways, as parts.
    if let Some(parts) = &attempt.parts {
        return conclude::apply_decision(context, delivery, &attempt, authorization, decision::split(parts)).await;
    }

    // Send: compose, then try the transports of the route in its order.
    let sent = failover::send(context, &attempt, &authorization, asked).await;

    // Settle: events, the ledger, then the queue.
    settle(context, delivery, &attempt, authorization, sent).await;
}

/// What follows from sending: the end of the attempt, a deferral, the end of the job, or its way back into the queue.
async fn settle(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    sent: Result<FinishedAttempt, Deferral>,
) {
    match sent {
        Ok(ended) => conclude::conclude(context, delivery, attempt, authorization, &ended).await,
        Err(Deferral::Expired(refusal)) => {
            conclude::expire(context, delivery, attempt, authorization, refusal.as_ref()).await;
        }
        Err(Deferral::StoreDown) => defer::until_store_is_back(context, delivery, attempt, authorization).await,
        Err(deferral) => match deferral.slot() {
            Some((slot, words)) => defer::defer(context, delivery, attempt, authorization, slot, words).await,
            None => defer::return_to_queue(context, delivery, attempt, authorization).await,
        },
    }
}

/// The rule that takes a job, and its parts where its recipients go separate ways. A part stays together: where its recipients would go separate
/// ways by rules that changed meanwhile, the rule of the first one decides. Nothing where no rule takes the job.
fn find_route<'a>(context: &'a Context, job: &Job, meta: &Meta) -> Option<(&'a Route, Option<Vec<RoutePart>>)> {
    let pending = meta.pending.as_deref();
    let (route, parts) = match context.config.routes.route(job, pending) {
        Routed::One(route) => (route, None),
        Routed::Parts(mut parts) => {
            let first = parts.first_mut()?;
            // Whom nobody can serve is told of with the first part.
            first.recipients.extend(rejected::indices(job, pending));
            (first.route, Some(parts))
        }
        Routed::Nobody => return None,
    };
    Some((context.config.routes.list().get(route)?, parts.filter(|_| meta.part.is_none() && meta.pin.is_none())))
}
