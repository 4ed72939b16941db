//! One job, once, top to bottom: the only place that shows the whole path of a delivery.
//!
//! The order of its steps is what keeps the promises. A copy of a message is confirmed before the message is acknowledged. What an
//! attempt came to is written into the ledger before anything follows from it. Once a transport said yes, no error turns
//! that into another try.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use postrider_schemas::{Event, EventType, Job, Meta, meta::Pin, topology::EVENTS_EXCHANGE, wire};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    burial::{bury, put_aside, unreadable},
    circuits::Circuits,
    config::Config,
    decide::{
        due::{Due, due, park_until},
        limits::admit::{Admission, Ask},
        poison::{losses, poison},
        retry::spread,
        route::{Part, Route, Routed},
        settle::{self, Next, Situation, Verdict},
        settlement::Settlement,
    },
    failover::{self, Asked, Ended, Sent},
    limiter::{Limiter, slot::Slot},
    outcome::{Answer, Outcome, Refusal, Stage},
    queue::{Delivery, Queue, SettleError, SourceKind},
    replay::Replay,
    seats::{Seat, Seats},
    store::{Claim, ClaimRequest, Final, Finished, Lease, LedgerKey, Store, StoreError, Unfinished},
    telemetry::{attempts, metrics, traces},
    transport::Transport,
};

/// Longest wait for a store that is down before a message is handed back: well below the broker's own limit on unacknowledged
/// messages, which is 30 minutes by default.
const STORE_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long on average a job is put away that is not to go without the store.
const AWAY_WAIT: Duration = Duration::from_secs(15);
/// A claim that is busy for no longer than this is waited for in the worker.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(1500);

/// What every attempt needs. A changed configuration makes a new one; an attempt keeps the one that it began with.
pub struct World {
    /// The checked configuration.
    pub config: Config,
    /// The queue.
    pub queue: Arc<Queue>,
    /// The ledger.
    pub store: Store,
    /// Successes that the ledger has not heard of yet.
    pub replay: Arc<Replay>,
    /// The ways out, in the configuration's order.
    pub transports: Vec<Arc<Transport>>,
    /// Which of them need a person.
    pub circuits: Arc<Circuits>,
    /// How fast mail may go.
    pub limiter: Limiter,
}

/// A job with its message and the rule that takes it.
pub(crate) struct Task<'a> {
    pub(crate) job: &'a Job,
    pub(crate) meta: &'a Meta,
    pub(crate) published_at: Option<Timestamp>,
    pub(crate) route: &'a Route,
    /// Where its recipients go separate ways.
    parts: Option<Vec<Part>>,
    key: LedgerKey,
    /// The right to work on it; left while it only waits.
    pub(crate) seat: &'a Seat,
    /// Ends the waits of what is not under way.
    pub(crate) stop: &'a CancellationToken,
}

/// The right to attempt a job.
pub(crate) enum Right {
    /// Granted by the ledger.
    Claimed(Lease),
    /// The store is down, the job is transactional and was never delivered before: sent without the ledger's knowledge, which
    /// is told as soon as it is back.
    Unguarded(Lease),
}

/// Takes one delivery to its settlement, once it has a seat, and tells of it. Hands it back where `stop` comes while it only waits: for a seat, its
/// time, the store, a limit or a connection.
pub async fn attempt(world: Arc<World>, delivery: Delivery, seats: Seats, stop: CancellationToken) {
    if !world.queue.usable(&delivery) {
        // Its channel died: the broker delivers it again, and an acknowledgement of ours could not arrive.
        return;
    }
    let queue = Arc::clone(&world.queue);
    traces::trailed(delivery, queue.address(), now(), |delivery| attempted(world, delivery, seats, stop)).await;
}

async fn attempted(world: Arc<World>, delivery: Delivery, seats: Seats, stop: CancellationToken) {
    let in_quarantine = delivery.source.kind == SourceKind::Suspect;
    let poison_after = world.config.worker.poison_after;
    if let Some(settlement) = poison(&delivery.meta, lost(&delivery), in_quarantine, poison_after, now()) {
        return put_aside(&world, delivery, settlement).await;
    }
    let job = match wire::decode(&delivery.body, delivery.message_type.as_deref(), &world.config.job) {
        Ok(job) => job,
        Err(error) => return unreadable(&world, delivery, &error).await,
    };
    let Some((route, parts)) = routed(&world, &job, &delivery.meta) else {
        return bury(&world, delivery, &job, "no-route", "no route of the configuration takes this job").await;
    };
    if delivery.meta.pending.as_ref().is_some_and(Vec::is_empty) {
        return bury(&world, delivery, &job, "unreadable", "header postrider-pending: not a list of recipients").await;
    }
    let first = route.order(job.id()).first().copied().unwrap_or_default();
    let whose = format!("{} {first}", job.tenant());
    let seat = match delivery.source.kind {
        // Handed out one at a time: the less it waits, the fewer other accidents it is part of.
        SourceKind::Suspect => Some(seats.beside(delivery.source.lane)),
        SourceKind::Jobs | SourceKind::Due => {
            let _waiting = traces::waiting("seat");
            let is_fresh = delivery.source.kind == SourceKind::Jobs;
            stop.run_until_cancelled(seats.take(delivery.source.lane, whose, is_fresh)).await
        }
    };
    let Some(seat) = seat else {
        traces::forget();
        return close(&world, delivery, Settlement::Return).await;
    };
    let _in_hand = metrics::taken(&delivery, now());
    let meta = delivery.meta.clone();
    let key = LedgerKey::of_message(&job.identity(), meta.part);
    let (published_at, seat, stop) = (delivery.published_at, &seat, &stop);
    let task = Task { job: &job, meta: &meta, published_at, route, parts, key, seat, stop };
    attempts::describe(&task);
    guarded(&world, delivery, &task).await;
}

/// The rule that takes a job, and its parts where its recipients go separate ways. A part stays together: where its recipients would go separate
/// ways by rules that changed meanwhile, the rule of the first one decides. Nothing where no rule takes the job.
fn routed<'a>(world: &'a World, job: &Job, meta: &Meta) -> Option<(&'a Route, Option<Vec<Part>>)> {
    let pending = meta.pending.as_deref();
    let (route, parts) = match world.config.routes.route(job, pending) {
        Routed::One(route) => (route, None),
        Routed::Parts(parts) => (parts.first()?.route, Some(parts)),
        Routed::Nobody => return None,
    };
    Some((world.config.routes.list().get(route)?, parts.filter(|_| meta.part.is_none() && meta.pin.is_none())))
}

/// From the claim on.
async fn guarded(world: &World, delivery: Delivery, task: &Task<'_>) {
    // What came back early for its slot waits for it without a claim.
    if let Due::Wait(wait) = due(task.job, task.meta, now())
        && task.stop.run_until_cancelled(task.seat.wait(wait)).await.is_none()
    {
        return close(world, delivery, Settlement::Return).await;
    }
    // The limits are asked in the same round trip, where it will be the job's turn then.
    let is_due = task.parts.is_none() && due(task.job, task.meta, now()) == Due::Now;
    let question = if is_due { failover::question(world, task) } else { None };
    let (claim, asked) = match claim(world, &delivery, task, question.as_ref().map(|one| &one.ask)).await {
        Ok((claim, answer)) => (claim, question.map(|question| Asked { question, answer })),
        Err(error) if error.is_down() => {
            if may_have_been_begun(&delivery) || task.job.lane() != postrider_schemas::Lane::Transactional {
                return close(world, delivery, Settlement::Return).await;
            }
            let lease = world.store.lease_while_down(&claim_request(&delivery, task));
            return try_it(world, delivery, task, Right::Unguarded(lease), None).await;
        }
        Err(error) => {
            warn!(job.id = %task.job.id(), %error, "The store refused a claim; the job is handed back");
            sleep(Duration::from_secs(1)).await;
            return close(world, delivery, Settlement::Return).await;
        }
    };
    match claim {
        Claim::Go(lease) => try_it(world, delivery, task, Right::Claimed(lease), asked).await,
        Claim::Unknown { lease, call } => {
            let answer = Answer::local(Stage::Body, "a worker was lost while it was sending");
            let pin: Option<Pin> = call.parse().ok();
            let transport = pin.as_ref().map_or(call, |pin| pin.transport.clone());
            let passed_over = Vec::new();
            let ended = Ended { outcome: Outcome::Unknown(answer), transport, passed_over, pin, tripped: false };
            conclude(world, delivery, task, Right::Claimed(lease), &ended).await;
        }
        Claim::Decided { lease, decision } => match serde_json::from_str::<Next>(&decision) {
            Ok(next) => carry_out(world, delivery, task, lease, next).await,
            Err(error) => {
                warn!(job.id = %task.job.id(), %error, "The ledger holds a decision that cannot be read; the job is held");
                let next = Next::Hold { pending: task.meta.pending.clone(), last: "an unreadable decision".to_owned() };
                carry_out(world, delivery, task, lease, next).await;
            }
        },
        Claim::Busy { retry_in } => {
            // The same generation: this copy proves nothing about the attempt that is under way. If that one is lost too, it counts.
            let at = now().checked_add(retry_in).unwrap_or(Timestamp::MAX);
            let meta = Meta { parks: task.meta.parks + 1, losses: lost(&delivery), ..task.meta.clone() };
            metrics::parked(task.job.lane(), "busy");
            close(world, delivery, Settlement::Again { at, meta }).await;
        }
        Claim::Settled(end) => {
            metrics::duplicate(task.job.lane(), if end == Final::Sent { "already_sent" } else { "settled" });
            info!(job.id = %task.job.id(), end = end.as_str(), "Job {} came again after its end and is dropped", task.job.id());
            if end == Final::Sent && may_have_been_begun(&delivery) {
                // The worker that sent it may have been lost before it said so. The event's id is the same.
                let event = Event::about(EventType::Accepted, task.job, task.meta, now());
                emit(world, &[event]).await;
            }
            close(world, delivery, Settlement::Done).await;
        }
        Claim::Stale => {
            metrics::duplicate(task.job.lane(), "stale");
            close(world, delivery, Settlement::Done).await;
        }
        Claim::Conflict => {
            let detail = "the same identity was used before for another payload";
            bury(world, delivery, task.job, "conflict", detail).await;
        }
    }
}

/// Asks the ledger; waits for a store that is down unless the job may go without it or the worker stops, and for a claim that ends soon.
async fn claim(
    world: &World,
    delivery: &Delivery,
    task: &Task<'_>,
    ask: Option<&Ask>,
) -> Result<(Claim, Option<Admission>), StoreError> {
    let request = claim_request(delivery, task);
    let may_go_alone = task.job.lane() == postrider_schemas::Lane::Transactional && !may_have_been_begun(delivery);
    let mut waited = false;
    loop {
        let asking = traces::call("claim");
        let answer = world.store.claim_and_admit(&request, ask).await;
        attempts::note_claim(&asking, world, answer.as_ref().map(|(claim, _)| claim));
        drop(asking);
        match answer {
            Err(error) if error.is_down() && !may_go_alone && !waited => {
                waited = true;
                let _waiting = traces::waiting("store");
                let back = task.seat.without(timeout(STORE_WAIT_MAX, world.store.back()));
                if task.stop.run_until_cancelled(back).await.is_none() {
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

fn claim_request(delivery: &Delivery, task: &Task<'_>) -> ClaimRequest {
    ClaimRequest {
        key: task.key.clone(),
        payload_hash: task.job.payload_hash(),
        generation: task.meta.generation,
        redelivered: may_have_been_begun(delivery),
        published_at: delivery.published_at,
    }
}

/// From the right to attempt on: what the clock says, then compose and deliver.
async fn try_it(world: &World, delivery: Delivery, task: &Task<'_>, right: Right, asked: Option<Asked>) {
    if task.job.idempotency_key().is_some() && was_cancelled_by_id(world, task).await {
        return end(world, delivery, right, Final::Cancelled).await;
    }
    match due(task.job, task.meta, now()) {
        Due::Now => {}
        Due::Wait(wait) => {
            let _waiting = traces::waiting("due");
            if task.stop.run_until_cancelled(task.seat.wait(wait)).await.is_none() {
                return hand_back(world, delivery, task, right).await;
            }
        }
        Due::Park(at) => return park(world, delivery, task, right, (at, at), "send_at").await,
        Due::Expired => return expire(world, delivery, task, right, None).await,
    }
    if let Some(parts) = &task.parts {
        let next = settle::split(parts);
        return follow(world, delivery, task, right, next).await;
    }
    match failover::send(world, task, &right, asked).await {
        Sent::Ended(ended) => conclude(world, delivery, task, right, &ended).await,
        Sent::Waits(slot) => wait_in_line(world, delivery, task, right, slot).await,
        Sent::TooLate(refusal) => expire(world, delivery, task, right, refusal.as_ref()).await,
        // What stands behind those that wait in hand may go without the store. What came back is not counted among them, and is put away in any case.
        Sent::Away if matches!(right, Right::Unguarded(_)) && (task.meta.generation > 0 || !task.seat.may_hold()) => {
            let at = now().checked_add(away_wait(task)).unwrap_or(Timestamp::MAX);
            park(world, delivery, task, right, (at, at), "store").await;
        }
        Sent::Away => {
            // As a claim does that finds no store.
            let _waiting = traces::waiting("store");
            let back = task.seat.hold_until(timeout(STORE_WAIT_MAX, world.store.back()));
            // Handed back in any case.
            let _ = task.stop.run_until_cancelled(back).await;
            hand_back(world, delivery, task, right).await;
        }
        Sent::Stopped => hand_back(world, delivery, task, right).await,
    }
}

/// How long a job is put away that is not to go without the store, where it cannot wait for it in hand: each for another time, so that they do not come
/// back all at once.
fn away_wait(task: &Task<'_>) -> Duration {
    AWAY_WAIT.mul_f64(0.75 + spread(settle::dice(task.job), task.meta.parks) / 2.0)
}

/// Hands back a job for which nothing was begun. Its claim ends first: whoever gets it next need not wait for that.
async fn hand_back(world: &World, delivery: Delivery, task: &Task<'_>, right: Right) {
    if let Right::Claimed(lease) = right {
        note(task, world.store.release(lease).await);
    }
    close(world, delivery, Settlement::Return).await;
}

/// A job that is too late to be of use, or would be after the wait that a limit asks for.
async fn expire(world: &World, delivery: Delivery, task: &Task<'_>, right: Right, limit: Option<&Refusal>) {
    let nowhere = Ended::nowhere();
    let mut verdict = settle::expired(situation(world, task, &nowhere));
    if let Some(refusal) = limit {
        for event in &mut verdict.events {
            event.data.answer = Some(refusal.answer.to_string());
        }
    }
    emit(world, &verdict.events).await;
    end(world, delivery, right, Final::Expired).await;
}

/// Puts a job away until its slot, and says why.
async fn wait_in_line(world: &World, delivery: Delivery, task: &Task<'_>, right: Right, slot: Slot) {
    let (id, why) = (task.job.id(), &slot.why);
    debug!(job.id = %id, %why, slot = %slot.at, parks = task.meta.parks, "Job {id} waits for {why} until {}", slot.at);
    let mut event = Event::about(EventType::Deferred, task.job, task.meta, now());
    event.data.route = Some(task.route.name.clone());
    let (reason, answer) = why.told();
    event.data.reason = Some(reason.to_owned());
    event.data.answer = Some(answer);
    event.data.next_attempt_at = Some(park_until(task.job, slot.at));
    emit(world, &[event]).await;
    park(world, delivery, task, right, (slot.at, slot.back), why.reason()).await;
}

/// From the outcome to its consequences.
async fn conclude(world: &World, delivery: Delivery, task: &Task<'_>, right: Right, ended: &Ended) {
    let Some(verdict) = settle::settle(&ended.outcome, situation(world, task, ended)) else {
        // Somebody else has the job; what this delivery is worth shows when it is claimed again.
        return close(world, delivery, Settlement::Return).await;
    };
    log_outcome(task, ended, &verdict.next);
    attempts::tell_outcome(task, ended, &verdict.next);
    follow(world, delivery, task, right, verdict).await;
}

/// Does what was decided: written down, then acted upon.
async fn follow(world: &World, delivery: Delivery, task: &Task<'_>, right: Right, verdict: Verdict) {
    let Verdict { next, events } = verdict;
    match (next, right) {
        (Next::Sent, right) => {
            let (Right::Claimed(lease) | Right::Unguarded(lease)) = right;
            tokio::join!(record_sent(world, task, lease), emit(world, &events));
            close(world, delivery, Settlement::Done).await;
        }
        (next, Right::Claimed(lease)) => {
            // Told before it is decided: a crash in between repeats an event, whose id is the same, rather than losing it.
            emit(world, &events).await;
            let decision = serde_json::to_string(&next).unwrap_or_default();
            match world.store.decide(&lease, &decision).await {
                Ok(true) => {}
                Ok(false) => return close(world, delivery, Settlement::Return).await,
                Err(error) => warn!(job.id = %task.job.id(), %error, "The store did not record a decision"),
            }
            carry_out(world, delivery, task, lease, next).await;
        }
        (next, Right::Unguarded(_)) => {
            emit(world, &events).await;
            close(world, delivery, settlement(&next, task.meta)).await;
        }
    }
}

/// Nothing that goes wrong here may turn a yes into another try.
async fn record_sent(world: &World, task: &Task<'_>, lease: Lease) {
    let recording = traces::call("finish");
    attempts::note_store(&recording, world, "finish");
    match world.store.finish(lease, Final::Sent).await {
        Ok(Finished::WasSentBefore) => {
            warn!(job.id = %task.job.id(), "Job {} was sent twice: an earlier attempt had been accepted after all", task.job.id());
        }
        Ok(_) => {}
        Err(Unfinished { error, lease }) => {
            warn!(job.id = %task.job.id(), %error, "The store did not record a success; it is told again when it is back");
            world.replay.sent(lease);
        }
    }
}

/// Does what the ledger says was decided. Safe to do again after a crash at any point.
async fn carry_out(world: &World, delivery: Delivery, task: &Task<'_>, lease: Lease, next: Next) {
    let end = match next {
        Next::Sent => Some(Final::Sent),
        Next::Rejected => Some(Final::Rejected),
        Next::Expired => Some(Final::Expired),
        Next::Again { .. } => None,
        Next::Split { .. } => Some(Final::Split),
        Next::Hold { .. } => Some(Final::Held),
        Next::Bury { .. } => Some(Final::Dead),
    };
    let settlement = settlement(&next, task.meta);
    if settlement == Settlement::Done {
        if let Some(end) = end {
            note(task, world.store.finish(lease, end).await.map(drop).map_err(StoreError::from));
        }
        return close(world, delivery, settlement).await;
    }
    match settle_it(world, delivery, settlement).await {
        // The copy stands. Should this process end here, a copy of a newer generation proves what the ledger does not know yet.
        Ok(()) => match end {
            None => note(task, world.store.parked(lease).await),
            Some(end) => note(task, world.store.finish(lease, end).await.map(drop).map_err(StoreError::from)),
        },
        Err(error) => warn!(job.id = %task.job.id(), %error, "A settlement did not arrive; the job comes back"),
    }
}

fn note(task: &Task<'_>, result: Result<(), StoreError>) {
    if let Err(error) = result {
        warn!(job.id = %task.job.id(), %error, "The ledger is behind; the next generation of the job sets it right");
    }
}

/// The queue's part of what was decided.
fn settlement(next: &Next, before: &Meta) -> Settlement {
    let meta = next.meta(before, now());
    match next {
        Next::Sent | Next::Rejected | Next::Expired => Settlement::Done,
        Next::Again { at, .. } => Settlement::Again { at: *at, meta },
        Next::Split { parts } => {
            Settlement::Split((1..).zip(parts).map(|(number, list)| settle::part_meta(before, number, list)).collect())
        }
        Next::Hold { .. } => Settlement::Hold(meta),
        Next::Bury { .. } => Settlement::Bury(meta),
    }
}

/// Puts a job away that is not to be tried before `at`, and comes back to a worker at `back`. Uses up no try.
async fn park(
    world: &World,
    delivery: Delivery,
    task: &Task<'_>,
    right: Right,
    (at, back): (Timestamp, Timestamp),
    why: &'static str,
) {
    let (at, back) = (park_until(task.job, at), park_until(task.job, back));
    let meta = Meta {
        generation: task.meta.generation + 1,
        parks: task.meta.parks + 1,
        losses: 0,
        not_before: Some(at),
        ..task.meta.clone()
    };
    match settle_it(world, delivery, Settlement::Again { at: back, meta }).await {
        Ok(()) => {
            metrics::parked(task.job.lane(), why);
            if why == "limit" {
                metrics::limited(task.job.lane(), task.meta);
            }
            if let Right::Claimed(lease) = right {
                note(task, world.store.parked(lease).await);
            }
        }
        Err(error) => warn!(job.id = %task.job.id(), %error, "A job could not be parked; it comes back"),
    }
}

/// Ends a job that was not sent.
async fn end(world: &World, delivery: Delivery, right: Right, end: Final) {
    if let Right::Claimed(lease) = right
        && let Err(error) = world.store.finish(lease, end).await
    {
        warn!(%error, "The store did not record an end; the job comes back to the same one");
    }
    close(world, delivery, Settlement::Done).await;
}

/// A job with an idempotency key has its record under that key; a cancellation by job id is found by its alias.
async fn was_cancelled_by_id(world: &World, task: &Task<'_>) -> bool {
    let key = LedgerKey::of(&task.job.identity());
    matches!(world.store.alias(task.job.id(), &key).await, Ok(Some(Final::Cancelled)))
}

/// Workers that were lost with this message in hand.
pub(crate) fn lost(delivery: &Delivery) -> u32 {
    losses(&delivery.meta, delivery.deliveries)
}

/// The queue's own mark goes with a copy; the count of losses that the copy carries does not.
fn may_have_been_begun(delivery: &Delivery) -> bool {
    delivery.redelivered || delivery.meta.losses > 0
}

pub(crate) async fn close(world: &World, delivery: Delivery, settlement: Settlement) {
    if let Err(error) = settle_it(world, delivery, settlement).await {
        warn!(%error, "A settlement did not arrive; the message comes back and the ledger knows it");
    }
}

/// Events are told as well as can be: a queue that does not take one must not hold up the mail.
pub(crate) async fn emit(world: &World, events: &[Event]) {
    if events.is_empty() {
        return;
    }
    let telling = traces::call("send postrider.events");
    attempts::note_messaging(&telling, world, "send", "send", EVENTS_EXCHANGE);
    for event in events {
        if let Err(error) = world.queue.emit(event).await {
            warn!(%error, kind = event.kind.as_str(), "An event could not be published");
        }
    }
}

fn situation<'a>(world: &'a World, task: &Task<'a>, ended: &'a Ended) -> Situation<'a> {
    Situation {
        job: task.job,
        meta: task.meta,
        route: task.route,
        transport: &ended.transport,
        passed_over: &ended.passed_over,
        pin: ended.pin.as_ref(),
        tripped: ended.tripped,
        schedule: &world.config.retry,
        config_wait: world.config.config_wait,
        now: now(),
    }
}

fn log_outcome(task: &Task<'_>, ended: &Ended, next: &Next) {
    let id = task.job.id();
    let is_told = !matches!(ended.outcome, Outcome::Accepted { .. }) || tracing::enabled!(tracing::Level::INFO);
    let trace_id = if is_told { traces::trace_id(task.meta) } else { None };
    let (route, transport) = (&task.route.name, &ended.transport);
    let attempt = task.meta.attempt + 1;
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
async fn settle_it(world: &World, delivery: Delivery, settlement: Settlement) -> Result<(), SettleError> {
    let settling = traces::call("settle");
    attempts::note_settlement(&settling, world, delivery.source, &settlement);
    let settled = world.queue.settle(delivery, settlement).await;
    if settled.is_err() {
        settling.fail("settlement", "the settlement did not arrive");
    }
    settled
}

/// The clock of the edge; decisions take the time as an argument.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
