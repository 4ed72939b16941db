//! One job, once, top to bottom: the only place that shows the whole path of a delivery.
//!
//! The order of its steps is what keeps the promises. A copy of a message is confirmed before the message is acknowledged. What an
//! attempt came to is written into the ledger before anything follows from it. Once a transport said yes, no error turns
//! that into another try.

use std::{future::pending, panic::resume_unwind, sync::Arc, time::Duration};

use jiff::Timestamp;
use postrider_schemas::{
    Event, EventType, Job, Meta,
    meta::Pin,
    topology::{EVENTS_EXCHANGE, EVENTS_WAITING_QUEUE},
    wire::{self, DecodeError},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    concurrency::job_slots::{JobSlot, JobSlots},
    delivery::{
        dead_letter::{dead_letter, dead_letter_unreadable, quarantine},
        failover::{self, AnsweredLimitQuery, FinishedAttempt, SendResult},
    },
    losses::{self, may_have_been_begun},
    memory::Turn,
    policy::{
        decision::{self, Decision, DecisionInput, Disposition},
        headers::flaw,
        outcome::{Answer, Outcome, Refusal, Stage},
        poison::poison,
        publisher,
        rate_limit::admit::{Admission, AdmissionRequest},
        retry::spread,
        route::{Route, RoutePart, Routed},
        schedule::{self, Schedule},
        settlement::Settlement,
    },
    queue::{Delivery, SettleError, SourceKind},
    rate_limit::deferral::Deferral,
    store::{Claim, ClaimRequest, Final, Finished, Lease, LedgerKey, StoreError, Unfinished},
    telemetry::{attempts, metrics, traces},
    worker::context::Context,
};

/// Longest wait for a store that is down before a message is handed back: well below the broker's own limit on unacknowledged
/// messages, which is 30 minutes by default.
const STORE_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long on average a job is deferred that is not to go without the store.
const STORE_OUTAGE_DELAY: Duration = Duration::from_secs(15);
/// Longest wait for a queue that takes no events, for the same reason; and between two tries.
const EVENT_WAIT_MAX: Duration = Duration::from_secs(600);
const EVENT_PAUSE: Duration = Duration::from_secs(1);
/// A claim that is busy for no longer than this is waited for in the worker.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(1500);

impl Context {
    /// The clock of the edge; decisions take the time as an argument. Workers that share a store share its clock, as far as it has one of its own.
    pub fn now(&self) -> Timestamp {
        self.store.now()
    }
}

/// A job with its message and the rule that takes it.
pub(crate) struct Attempt<'a> {
    pub(crate) job: &'a Job,
    pub(crate) meta: &'a Meta,
    pub(crate) route: &'a Route,
    /// Where its recipients go separate ways.
    parts: Option<Vec<RoutePart>>,
    key: LedgerKey,
    /// The right to work on it; left while it only waits.
    pub(crate) job_slot: &'a JobSlot,
    /// Ends the waits of what is not under way.
    pub(crate) stop: &'a CancellationToken,
}

/// The right to attempt a job.
pub(crate) enum Authorization {
    /// Granted by the ledger.
    Leased(Lease),
    /// The store is down, the job is transactional and was never delivered before: sent without the ledger's knowledge, which
    /// is told as soon as it is back.
    WithoutStore(Lease),
}

/// Takes one delivery to its settlement, once it has a job slot, and tells of it. Hands it back where `stop` comes while it only waits: for a job slot, its
/// time, the store, a limit or a connection.
pub async fn deliver(context: Arc<Context>, delivery: Delivery, job_slots: JobSlots, stop: CancellationToken) {
    if !context.queue.usable(&delivery) {
        // Its channel died: the broker delivers it again, and an acknowledgement of ours could not arrive.
        return;
    }
    let queue = Arc::clone(&context.queue);
    let now = context.now();
    traces::trailed(delivery, queue.address(), now, |delivery| deliver_traced(context, delivery, job_slots, stop))
        .await;
}

async fn deliver_traced(context: Arc<Context>, mut delivery: Delivery, job_slots: JobSlots, stop: CancellationToken) {
    losses::look_back(&context, &mut delivery).await;
    let in_quarantine = delivery.source.kind == SourceKind::Suspect;
    let poison_after = context.config.worker.poison_after;
    if let Some(settlement) = poison(&delivery.meta, delivery.lost, in_quarantine, poison_after, context.now()) {
        return quarantine(&context, delivery, settlement).await;
    }
    if let Some(cut) = delivery.cut.clone().filter(|cut| cut.is_whole) {
        return dead_letter_unreadable(&context, delivery, "unreadable", &cut.reason).await;
    }
    // One that has to keep its time, and has none, cannot go back as a copy.
    let may_leave = !in_quarantine && (delivery.published_at.is_some() || !may_have_been_begun(&delivery));
    let turn = {
        let _waiting = traces::waiting("memory");
        stop.run_until_cancelled(delivery.held.turn(may_leave)).await
    };
    match turn {
        Some(Turn::Now) => {}
        Some(Turn::Later(wait)) => {
            metrics::parked(delivery.source.lane, "memory");
            traces::forget();
            return settle_or_warn(&context, delivery, Settlement::Later(wait)).await;
        }
        None => {
            traces::forget();
            return settle_or_warn(&context, delivery, Settlement::Return).await;
        }
    }
    // What was delivered before has its job slot before anything is done with it, and the store hears of it: it may be what ends workers.
    let mut job_slot = None;
    if may_have_been_begun(&delivery) {
        job_slot = take_seat(&job_slots, &delivery, String::new(), &stop).await;
        if job_slot.is_none() {
            traces::forget();
            return settle_or_warn(&context, delivery, Settlement::Return).await;
        }
        losses::begin(&context, &mut delivery).await;
    }
    let job = match decode(&context, &delivery).await {
        Ok(job) => job,
        Err(error) => {
            let reason = if matches!(error, DecodeError::Template { .. }) { "template-limit" } else { "unreadable" };
            return dead_letter_unreadable(&context, delivery, reason, &error.to_string()).await;
        }
    };
    if let Some(detail) = flaw(&delivery.meta, job.recipients().len(), context.now()) {
        return dead_letter(&context, delivery, &job, "unreadable", &detail).await;
    }
    let publisher = delivery.meta.publisher.as_deref();
    if let Some(detail) = publisher::refusal(&context.config.queue.publishers, publisher, job.tenant()) {
        return dead_letter(&context, delivery, &job, "publisher-not-allowed", &detail).await;
    }
    // Judged once: the copies of this message are a worker's.
    delivery.meta.publisher = None;
    if delivery.meta.published.is_none() {
        delivery.meta.published =
            Some(schedule::first_seen(&job, &delivery.meta, delivery.published_at, context.now()));
    }
    let Some((route, parts)) = find_route(&context, &job, &delivery.meta) else {
        return dead_letter(&context, delivery, &job, "no-route", "no route of the configuration takes this job").await;
    };
    let first = route.order(job.id()).first().copied().unwrap_or_default();
    let whose = format!("{} {first}", job.tenant());
    if job_slot.is_none() {
        job_slot = take_seat(&job_slots, &delivery, whose, &stop).await;
    }
    let Some(job_slot) = job_slot else {
        traces::forget();
        return settle_or_warn(&context, delivery, Settlement::Return).await;
    };
    let _in_hand = metrics::taken(&delivery, &job, context.now());
    let meta = delivery.meta.clone();
    let key = LedgerKey::of_message(&job.identity(), meta.part);
    let attempt = Attempt { job: &job, meta: &meta, route, parts, key, job_slot: &job_slot, stop: &stop };
    attempts::describe(&attempt);
    claim_and_send(&context, delivery, &attempt).await;
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

/// Waits for a job slot; nothing where `stop` comes first.
async fn take_seat(
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

/// The rule that takes a job, and its parts where its recipients go separate ways. A part stays together: where its recipients would go separate
/// ways by rules that changed meanwhile, the rule of the first one decides. Nothing where no rule takes the job.
fn find_route<'a>(context: &'a Context, job: &Job, meta: &Meta) -> Option<(&'a Route, Option<Vec<RoutePart>>)> {
    let pending = meta.pending.as_deref();
    let (route, parts) = match context.config.routes.route(job, pending) {
        Routed::One(route) => (route, None),
        Routed::Parts(parts) => (parts.first()?.route, Some(parts)),
        Routed::Nobody => return None,
    };
    Some((context.config.routes.list().get(route)?, parts.filter(|_| meta.part.is_none() && meta.pin.is_none())))
}

/// From the claim on.
async fn claim_and_send(context: &Context, delivery: Delivery, attempt: &Attempt<'_>) {
    // What came back early for its slot waits for it without a claim.
    if let Schedule::Wait(wait) = schedule::schedule(attempt.job, attempt.meta, context.now())
        && attempt.stop.run_until_cancelled(attempt.job_slot.wait(wait)).await.is_none()
    {
        return settle_or_warn(context, delivery, Settlement::Return).await;
    }
    // The limits are asked in the same round trip, where it will be the job's turn then.
    let is_due =
        attempt.parts.is_none() && schedule::schedule(attempt.job, attempt.meta, context.now()) == Schedule::Now;
    let question = if is_due { failover::limit_query(context, attempt) } else { None };
    let (claim, asked) = match claim(context, &delivery, attempt, question.as_ref().map(|one| &one.ask)).await {
        Ok((claim, answer)) => (claim, question.map(|question| AnsweredLimitQuery { question, answer })),
        Err(error) if error.is_down() => {
            if may_have_been_begun(&delivery) || attempt.job.lane() != postrider_schemas::Lane::Transactional {
                return settle_or_warn(context, delivery, Settlement::Return).await;
            }
            let lease = context.store.lease_while_down(&claim_request(&delivery, attempt));
            return send_claimed(context, delivery, attempt, Authorization::WithoutStore(lease), None).await;
        }
        Err(error) => {
            warn!(job.id = %attempt.job.id(), %error, "The store refused a claim; the job is handed back");
            sleep(Duration::from_secs(1)).await;
            return settle_or_warn(context, delivery, Settlement::Return).await;
        }
    };
    match claim {
        Claim::Go(lease) => send_claimed(context, delivery, attempt, Authorization::Leased(lease), asked).await,
        Claim::Unknown { lease, call } => {
            let answer = Answer::local(Stage::Body, "a worker was lost while it was sending");
            let pin: Option<Pin> = call.parse().ok();
            let transport = pin.as_ref().map_or(call, |pin| pin.transport.clone());
            let passed_over = Vec::new();
            let ended =
                FinishedAttempt { outcome: Outcome::Unknown(answer), transport, passed_over, pin, tripped: false };
            conclude(context, delivery, attempt, Authorization::Leased(lease), &ended).await;
        }
        Claim::Decided { lease, decision } => match serde_json::from_str::<Disposition>(&decision) {
            Ok(next) => apply_disposition(context, delivery, attempt, lease, next).await,
            Err(error) => {
                warn!(job.id = %attempt.job.id(), %error, "The ledger holds a decision that cannot be read; the job is held");
                let next = Disposition::Hold {
                    pending: attempt.meta.pending.clone(),
                    last: "an unreadable decision".to_owned(),
                    transport: String::new(),
                };
                apply_disposition(context, delivery, attempt, lease, next).await;
            }
        },
        Claim::Busy { retry_in } => {
            // The same generation: this copy proves nothing about the attempt that is under way. If that one is lost too, it counts.
            let meta =
                Meta { parks: attempt.meta.parks.saturating_add(1), losses: delivery.lost, ..attempt.meta.clone() };
            metrics::parked(attempt.job.lane(), "busy");
            settle_or_warn(context, delivery, Settlement::Again { wait: retry_in, meta }).await;
        }
        Claim::Settled(end) => {
            metrics::duplicate(attempt.job.lane(), if end == Final::Sent { "already_sent" } else { "settled" });
            info!(job.id = %attempt.job.id(), end = end.as_str(), "Job {} came again after its end and is dropped", attempt.job.id());
            if end == Final::Sent && may_have_been_begun(&delivery) {
                // The worker that sent it may have been lost before it said so. The event's id is the same.
                let event = Event::about(EventType::Accepted, attempt.job, attempt.meta, context.now());
                if !emit(context, &[event]).await {
                    return settle_or_warn(context, delivery, Settlement::GiveBack).await;
                }
            }
            settle_or_warn(context, delivery, Settlement::Done).await;
        }
        Claim::Stale => {
            metrics::duplicate(attempt.job.lane(), "stale");
            settle_or_warn(context, delivery, Settlement::Done).await;
        }
        Claim::Conflict => {
            let detail = "the same identity was used before for another payload";
            dead_letter(context, delivery, attempt.job, "conflict", detail).await;
        }
    }
}

/// Asks the ledger; waits for a store that is down unless the job may go without it or the worker stops, and for a claim that ends soon.
async fn claim(
    context: &Context,
    delivery: &Delivery,
    attempt: &Attempt<'_>,
    ask: Option<&AdmissionRequest>,
) -> Result<(Claim, Option<Admission>), StoreError> {
    let request = claim_request(delivery, attempt);
    let may_go_alone = attempt.job.lane() == postrider_schemas::Lane::Transactional && !may_have_been_begun(delivery);
    let mut waited = false;
    loop {
        let asking = traces::call("claim");
        let answer = context.store.claim_and_admit(&request, ask).await;
        attempts::note_claim(&asking, context, answer.as_ref().map(|(claim, _)| claim));
        drop(asking);
        match answer {
            Err(error) if error.is_down() && !may_go_alone && !waited => {
                waited = true;
                let _waiting = traces::waiting("store");
                let back = attempt.job_slot.without(timeout(STORE_WAIT_MAX, context.store.back()));
                if attempt.stop.run_until_cancelled(back).await.is_none() {
                    return Err(error);
                }
            }
            Ok((Claim::Busy { retry_in }, _)) if retry_in <= BUSY_WAIT_MAX && !waited => {
                waited = true;
                let _waiting = traces::waiting("busy");
                sleep(retry_in).await;
            }
            answer => return answer,
        }
    }
}

fn claim_request(delivery: &Delivery, attempt: &Attempt<'_>) -> ClaimRequest {
    ClaimRequest {
        key: attempt.key.clone(),
        payload_hash: attempt.job.payload_hash(),
        generation: attempt.meta.generation,
        redelivered: may_have_been_begun(delivery),
        published_at: delivery.published_at,
    }
}

/// From the right to attempt on: what the clock says, then compose and deliver.
async fn send_claimed(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    asked: Option<AnsweredLimitQuery>,
) {
    if attempt.job.idempotency_key().is_some() && was_cancelled_by_id(context, attempt).await {
        return end(context, delivery, authorization, Final::Cancelled).await;
    }
    match schedule::schedule(attempt.job, attempt.meta, context.now()) {
        Schedule::Now => {}
        Schedule::Wait(wait) => {
            let _waiting = traces::waiting("due");
            if attempt.stop.run_until_cancelled(attempt.job_slot.wait(wait)).await.is_none() {
                return return_to_queue(context, delivery, attempt, authorization).await;
            }
        }
        Schedule::Park(at) => {
            let wait = Duration::try_from(at.duration_since(context.now())).unwrap_or_default();
            return defer_until(context, delivery, attempt, authorization, (wait, wait), "send_at").await;
        }
        Schedule::Expired => return expire(context, delivery, attempt, authorization, None).await,
    }
    if let Some(parts) = &attempt.parts {
        let next = decision::split(parts);
        return apply_decision(context, delivery, attempt, authorization, next).await;
    }
    match failover::send(context, attempt, &authorization, asked).await {
        SendResult::Ended(ended) => conclude(context, delivery, attempt, authorization, &ended).await,
        SendResult::Deferred(deferral) => defer(context, delivery, attempt, authorization, deferral).await,
        SendResult::Expired(refusal) => expire(context, delivery, attempt, authorization, refusal.as_ref()).await,
        // What stands behind those that wait in hand may go without the store. What came back is not counted among them, and is deferred in any case.
        SendResult::StoreDown
            if matches!(authorization, Authorization::WithoutStore(_))
                && (attempt.meta.generation > 0 || !attempt.job_slot.may_hold()) =>
        {
            let wait = store_outage_delay(attempt);
            defer_until(context, delivery, attempt, authorization, (wait, wait), "store").await;
        }
        SendResult::StoreDown => {
            // As a claim does that finds no store.
            let _waiting = traces::waiting("store");
            let back = attempt.job_slot.hold_until(timeout(STORE_WAIT_MAX, context.store.back()));
            // Handed back in any case.
            let _ = attempt.stop.run_until_cancelled(back).await;
            return_to_queue(context, delivery, attempt, authorization).await;
        }
        SendResult::Stopping => return_to_queue(context, delivery, attempt, authorization).await,
    }
}

/// How long a job is deferred that is not to go without the store, where it cannot wait for it in hand: each for another time, so that they do not come
/// back all at once.
fn store_outage_delay(attempt: &Attempt<'_>) -> Duration {
    STORE_OUTAGE_DELAY.mul_f64(0.75 + spread(decision::dice(attempt.job), attempt.meta.parks) / 2.0)
}

/// Hands back a job for which nothing was begun. Its claim ends first: whoever gets it next need not wait for that.
async fn return_to_queue(context: &Context, delivery: Delivery, attempt: &Attempt<'_>, authorization: Authorization) {
    if let Authorization::Leased(lease) = authorization {
        note(attempt, context.store.release(lease).await);
    }
    settle_or_warn(context, delivery, Settlement::Return).await;
}

/// A job that is too late to be of use, or would be after the wait that a limit asks for.
async fn expire(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    limit: Option<&Refusal>,
) {
    let nowhere = FinishedAttempt::nowhere();
    let mut verdict = decision::expired(decision_input(context, attempt, &nowhere));
    if let Some(refusal) = limit {
        for event in &mut verdict.events {
            event.data.answer = Some(refusal.answer.to_string());
        }
    }
    if !emit(context, &verdict.events).await {
        return settle_or_warn(context, delivery, Settlement::GiveBack).await;
    }
    end(context, delivery, authorization, Final::Expired).await;
}

/// Puts a job away until its slot, and says why.
async fn defer(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    deferral: Deferral,
) {
    let (id, why) = (attempt.job.id(), &deferral.why);
    let at = schedule::after(context.now(), schedule::cut(attempt.job, left(deferral.at), context.now()));
    debug!(job.id = %id, %why, deferral = %at, parks = attempt.meta.parks, "Job {id} waits for {why} until {at}");
    let mut event = Event::about(EventType::Deferred, attempt.job, attempt.meta, context.now());
    event.data.route = Some(attempt.route.name.clone());
    let (reason, answer) = why.event_reason();
    event.data.reason = Some(reason.to_owned());
    event.data.answer = Some(answer);
    event.data.next_attempt_at = Some(at);
    if !emit(context, &[event]).await {
        return settle_or_warn(context, delivery, Settlement::GiveBack).await;
    }
    defer_until(
        context,
        delivery,
        attempt,
        authorization,
        (left(deferral.at), left(deferral.back)),
        why.metric_reason(),
    )
    .await;
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// From the outcome to its consequences.
async fn conclude(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    ended: &FinishedAttempt,
) {
    let Some(verdict) = decision::decide(&ended.outcome, decision_input(context, attempt, ended)) else {
        // Somebody else has the job; what this delivery is worth shows when it is claimed again.
        return settle_or_warn(context, delivery, Settlement::Return).await;
    };
    log_outcome(attempt, ended, &verdict.next);
    attempts::tell_outcome(attempt, ended, &verdict.next);
    apply_decision(context, delivery, attempt, authorization, verdict).await;
}

/// Does what was decided: written down, then acted upon.
async fn apply_decision(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    verdict: Decision,
) {
    let Decision { next, events } = verdict;
    match (next, authorization) {
        (Disposition::Sent, authorization) => {
            let (Authorization::Leased(lease) | Authorization::WithoutStore(lease)) = authorization;
            let ((), is_told) = tokio::join!(record_sent(context, attempt, lease), emit(context, &events));
            // Given back, it finds its end in the ledger, and its event is told then.
            settle_or_warn(context, delivery, if is_told { Settlement::Done } else { Settlement::GiveBack }).await;
        }
        (next, Authorization::Leased(lease)) => {
            // Told before it is decided: a crash in between repeats an event, whose id is the same, rather than losing it.
            if !emit(context, &events).await {
                return settle_or_warn(context, delivery, Settlement::GiveBack).await;
            }
            let decision = serde_json::to_string(&next).unwrap_or_default();
            match context.store.decide(&lease, &decision).await {
                Ok(true) => {}
                Ok(false) => return settle_or_warn(context, delivery, Settlement::Return).await,
                Err(error) => warn!(job.id = %attempt.job.id(), %error, "The store did not record a decision"),
            }
            apply_disposition(context, delivery, attempt, lease, next).await;
        }
        (next, Authorization::WithoutStore(_)) => {
            let is_told = emit(context, &events).await;
            let settlement =
                if is_told { settlement(&next, attempt.meta, context.now()) } else { Settlement::GiveBack };
            settle_or_warn(context, delivery, settlement).await;
        }
    }
}

/// Nothing that goes wrong here may turn a yes into another try.
async fn record_sent(context: &Context, attempt: &Attempt<'_>, lease: Lease) {
    let recording = traces::call("finish");
    attempts::note_store(&recording, context, "finish");
    match context.store.finish(lease, Final::Sent).await {
        Ok(Finished::WasSentBefore) => {
            warn!(job.id = %attempt.job.id(), "Job {} was sent twice: an earlier attempt had been accepted after all", attempt.job.id());
        }
        Ok(_) => {}
        Err(Unfinished { error, lease }) => {
            warn!(job.id = %attempt.job.id(), %error, "The store did not record a success; it is told again when it is back");
            context.pending_receipts.sent(lease);
        }
    }
}

/// Does what the ledger says was decided. Safe to do again after a crash at any point.
async fn apply_disposition(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    lease: Lease,
    next: Disposition,
) {
    let end = match next {
        Disposition::Sent => Some(Final::Sent),
        Disposition::Rejected => Some(Final::Rejected),
        Disposition::Expired => Some(Final::Expired),
        Disposition::Again { .. } => None,
        Disposition::Split { .. } => Some(Final::Split),
        Disposition::Hold { .. } => Some(Final::Held),
        Disposition::DeadLetter { .. } => Some(Final::Dead),
    };
    let settlement = settlement(&next, attempt.meta, context.now());
    if let Settlement::Again { wait, meta } = &settlement {
        metrics::put_off(attempt.job, meta, *wait, context.now());
    }
    if settlement == Settlement::Done {
        if let Some(end) = end {
            note(attempt, context.store.finish(lease, end).await.map(drop).map_err(StoreError::from));
        }
        return settle_or_warn(context, delivery, settlement).await;
    }
    match settle_delivery(context, delivery, settlement).await {
        // The copy stands. Should this process end here, a copy of a newer generation proves what the ledger does not know yet.
        Ok(()) => match end {
            None => note(attempt, context.store.parked(lease).await),
            Some(end) => note(attempt, context.store.finish(lease, end).await.map(drop).map_err(StoreError::from)),
        },
        Err(error) => warn!(job.id = %attempt.job.id(), %error, "A settlement did not arrive; the job comes back"),
    }
}

fn note(attempt: &Attempt<'_>, result: Result<(), StoreError>) {
    if let Err(error) = result {
        warn!(job.id = %attempt.job.id(), %error, "The ledger is behind; the next generation of the job sets it right");
    }
}

/// The queue's part of what was decided.
fn settlement(next: &Disposition, before: &Meta, now: Timestamp) -> Settlement {
    let meta = next.meta(before, now);
    match next {
        Disposition::Sent | Disposition::Rejected | Disposition::Expired => Settlement::Done,
        Disposition::Again { wait, .. } => Settlement::Again { wait: *wait, meta },
        Disposition::Split { parts } => Settlement::Split(
            (1..).zip(parts).map(|(number, list)| decision::part_meta(before, number, list)).collect(),
        ),
        Disposition::Hold { .. } => Settlement::Hold(meta),
        Disposition::DeadLetter { .. } => Settlement::DeadLetter(meta),
    }
}

/// Puts a job away that is not to be tried before the first wait is over, and comes back to a worker after the second. Uses up no try.
async fn defer_until(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    (wait, back): (Duration, Duration),
    why: &'static str,
) {
    let now = context.now();
    let (wait, back) = (schedule::cut(attempt.job, wait, now), schedule::cut(attempt.job, back, now));
    let meta = Meta {
        generation: attempt.meta.generation.saturating_add(1),
        parks: attempt.meta.parks.saturating_add(1),
        losses: 0,
        not_before: Some(schedule::after(now, wait)),
        ..attempt.meta.clone()
    };
    metrics::put_off(attempt.job, &meta, back, now);
    match settle_delivery(context, delivery, Settlement::Again { wait: back, meta }).await {
        Ok(()) => {
            metrics::parked(attempt.job.lane(), why);
            if why == "limit" {
                metrics::limited(attempt.job.lane(), attempt.meta);
            }
            if let Authorization::Leased(lease) = authorization {
                note(attempt, context.store.parked(lease).await);
            }
        }
        Err(error) => warn!(job.id = %attempt.job.id(), %error, "A job could not be parked; it comes back"),
    }
}

/// Ends a job that was not sent.
async fn end(context: &Context, delivery: Delivery, authorization: Authorization, end: Final) {
    if let Authorization::Leased(lease) = authorization
        && let Err(error) = context.store.finish(lease, end).await
    {
        warn!(%error, "The store did not record an end; the job comes back to the same one");
    }
    settle_or_warn(context, delivery, Settlement::Done).await;
}

/// A job with an idempotency key has its record under that key; a cancellation by job id is found by its alias.
async fn was_cancelled_by_id(context: &Context, attempt: &Attempt<'_>) -> bool {
    let key = LedgerKey::of(&attempt.job.identity());
    matches!(context.store.alias(attempt.job.tenant(), attempt.job.id(), &key).await, Ok(Some(Final::Cancelled)))
}

pub(crate) async fn settle_or_warn(context: &Context, delivery: Delivery, settlement: Settlement) {
    if let Err(error) = settle_delivery(context, delivery, settlement).await {
        warn!(%error, "A settlement did not arrive; the message comes back and the ledger knows it");
    }
}

/// Tells events, each confirmed before the next. False where one of them is not: the delivery is then not to be settled, but given back, so that
/// what it came to is told when it comes again.
#[must_use]
pub(crate) async fn emit(context: &Context, events: &[Event]) -> bool {
    if events.is_empty() {
        return true;
    }
    let telling = traces::call("send postrider.events");
    attempts::note_messaging(&telling, context, "send", "send", EVENTS_EXCHANGE);
    for event in events {
        // Rare, and large: by value it would be part of every attempt's future.
        if !Box::pin(told(context, event)).await {
            return false;
        }
    }
    true
}

/// Publishes an event until it is confirmed. One for which there is no room anywhere is dropped, and counted: mail does not stand still for those who
/// do not listen.
async fn told(context: &Context, event: &Event) -> bool {
    let (end, kind) = (Instant::now() + EVENT_WAIT_MAX, event.kind.as_str());
    let mut is_said = false;
    loop {
        let Err(error) = context.queue.emit(event).await else { return true };
        if context.queue.has_no_room_for_events() {
            metrics::event_dropped();
            warn!(%error, kind, event = event.id, "An event is dropped: {EVENTS_WAITING_QUEUE} is full; see who does not empty its events queue");
            return true;
        }
        if !error.is_transient() || Instant::now() >= end {
            warn!(%error, kind, "An event is not confirmed; its job is given back and tells it when it comes again");
            return false;
        }
        if !is_said {
            warn!(%error, kind, "An event is not confirmed; it is published until it is, and its job waits");
            is_said = true;
        }
        sleep(EVENT_PAUSE).await;
    }
}

/// Tells an event that no job waits for, as well as can be.
pub(crate) async fn tell_once(context: &Context, event: &Event) {
    if let Err(error) = context.queue.emit(event).await {
        metrics::event_dropped();
        warn!(%error, kind = event.kind.as_str(), "An event could not be published and is dropped");
    }
}

fn decision_input<'a>(context: &'a Context, attempt: &Attempt<'a>, ended: &'a FinishedAttempt) -> DecisionInput<'a> {
    DecisionInput {
        job: attempt.job,
        meta: attempt.meta,
        route: attempt.route,
        transport: &ended.transport,
        passed_over: &ended.passed_over,
        pin: ended.pin.as_ref(),
        tripped: ended.tripped,
        schedule: &context.config.retry,
        config_wait: context.config.config_wait,
        now: context.now(),
    }
}

fn log_outcome(attempt: &Attempt<'_>, ended: &FinishedAttempt, next: &Disposition) {
    let id = attempt.job.id();
    let is_told = !matches!(ended.outcome, Outcome::Accepted { .. }) || tracing::enabled!(tracing::Level::INFO);
    let trace_id = if is_told { traces::trace_id(attempt.meta) } else { None };
    let (route, transport) = (&attempt.route.name, &ended.transport);
    let attempt = attempt.meta.attempt.saturating_add(1);
    for one in &ended.passed_over {
        let (transport, reason, answer) = (&one.transport, &one.reason, &one.answer);
        info!(job.id = %id, trace_id, route, transport, attempt, reason, answer, "Job {id} was not taken by {transport}");
    }
    match &ended.outcome {
        Outcome::Accepted { receipt, refused } => {
            info!(job.id = %id, trace_id, route, transport, attempt, refused = refused.len(), answer = %receipt.answer, "Sent job {id}");
        }
        Outcome::Refused { refusal, .. } => {
            let (class, follows) = (refusal.class.as_str(), next.as_str());
            warn!(job.id = %id, trace_id, route, transport, attempt, class, follows, answer = %refusal.answer, "Job {id} was refused");
        }
        Outcome::Unknown(answer) => {
            let follows = next.as_str();
            warn!(job.id = %id, trace_id, route, transport, attempt, class = "unknown", follows, %answer, "Job {id} may have been sent");
        }
        Outcome::LostClaim => {}
    }
}

/// Every settlement passes here.
async fn settle_delivery(context: &Context, delivery: Delivery, settlement: Settlement) -> Result<(), SettleError> {
    let settling = traces::call("settle");
    attempts::note_settlement(&settling, context, delivery.source, &settlement);
    losses::end(context, &delivery).await;
    let settled = context.queue.settle(delivery, settlement).await;
    if settled.is_err() {
        settling.fail("settlement", "the settlement did not arrive");
    }
    settled
}
