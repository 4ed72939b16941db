//! Asks the ledger for the right to attempt a job, and does what its answer says where that is no right.

use std::time::Duration;

use postrider_schemas::{Event, EventType, Lane, Meta, meta::Pin};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::{
    delivery::{
        attempt::{Attempt, Authorization, FinishedAttempt},
        conclude::{apply_disposition, conclude, end},
        context::Context,
        dead_letter::dead_letter,
        defer::STORE_WAIT_MAX,
        events::emit,
        failover::{self, AnsweredLimitQuery},
        losses::may_have_been_begun,
        report,
        settlements::settle_or_warn,
    },
    policy::{
        decision::Disposition,
        outcome::{Answer, Outcome, Stage},
        rate_limit::admit::{Admission, AdmissionRequest},
        schedule::{self, Schedule},
        settlement::Settlement,
    },
    queue::Delivery,
    store::{Claim, ClaimRequest, Final, LedgerKey, StoreError},
    telemetry::{metrics, traces},
};

/// A claim that is busy for no longer than this is waited for in the worker.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(1500);

/// A delivery with the right to attempt its job, and what the limits said.
pub(crate) type Claimed = (Delivery, Authorization, Option<AnsweredLimitQuery>);

/// The right to attempt the job. Nothing where it is over, decided or somebody else's: the delivery is settled then.
pub(crate) async fn claimed(context: &Context, delivery: Delivery, attempt: &Attempt<'_>) -> Option<Claimed> {
    let (delivery, authorization, asked) = authorized(context, delivery, attempt).await?;
    if attempt.job.idempotency_key().is_some() && was_cancelled_by_id(context, attempt).await {
        end(context, delivery, authorization, Final::Cancelled).await;
        return None;
    }
    Some((delivery, authorization, asked))
}

async fn authorized(context: &Context, delivery: Delivery, attempt: &Attempt<'_>) -> Option<Claimed> {
    // What came back early for its slot waits for it without a claim.
    if let Schedule::Wait(wait) = schedule::schedule(attempt.job, attempt.meta, context.now())
        && attempt.stop.run_until_cancelled(attempt.job_slot.wait(wait)).await.is_none()
    {
        settle_or_warn(context, delivery, Settlement::Return).await;
        return None;
    }
    // The limits are asked in the same round trip, where it will be the job's turn then.
    let is_due =
        attempt.parts.is_none() && schedule::schedule(attempt.job, attempt.meta, context.now()) == Schedule::Now;
    let question = if is_due { failover::limit_query(context, attempt) } else { None };
    match claim(context, &delivery, attempt, question.as_ref().map(|one| &one.ask)).await {
        Ok((Claim::Go(lease), answer)) => {
            let asked = question.map(|question| AnsweredLimitQuery { question, answer });
            Some((delivery, Authorization::Leased(lease), asked))
        }
        Ok((claim, _)) => {
            not_claimed(context, delivery, attempt, claim).await;
            None
        }
        Err(error) if error.is_down() => {
            if may_have_been_begun(&delivery) || attempt.job.lane() != Lane::Transactional {
                settle_or_warn(context, delivery, Settlement::Return).await;
                return None;
            }
            let lease = context.store.lease_while_down(&claim_request(&delivery, attempt));
            Some((delivery, Authorization::WithoutStore(lease), None))
        }
        Err(error) => {
            warn!(job.id = %attempt.job.id(), %error, "The store refused a claim; the job is handed back");
            sleep(Duration::from_secs(1)).await;
            settle_or_warn(context, delivery, Settlement::Return).await;
            None
        }
    }
}

/// What is known of an attempt that did not come to its end.
fn lost_text(call: &str) -> &'static str {
    if call.is_empty() {
        "delivered before to a worker that was lost, and the store, which has no record of it, began to remember later: whether it was sent is not known"
    } else {
        "a worker was lost while it was sending"
    }
}

/// Does what the ledger knows of a job that is not to be attempted now.
async fn not_claimed(context: &Context, delivery: Delivery, attempt: &Attempt<'_>, claim: Claim) {
    match claim {
        // A right that nobody takes: the job comes back.
        Claim::Go(_) => settle_or_warn(context, delivery, Settlement::Return).await,
        Claim::Unknown { lease, call } => {
            let answer = Answer::local(Stage::Body, lost_text(&call));
            let pin: Option<Pin> = call.parse().ok();
            let transport = pin.as_ref().map_or(call, |pin| pin.transport.clone());
            let ended = FinishedAttempt { pin, ..FinishedAttempt::at(&transport, Outcome::Unknown(answer)) };
            conclude(context, delivery, attempt, Authorization::Leased(lease), &ended).await;
        }
        Claim::Decided { lease, decision } => {
            let next = serde_json::from_str::<Disposition>(&decision).unwrap_or_else(|error| {
                warn!(job.id = %attempt.job.id(), %error, "The ledger holds a decision that cannot be read; the job is held");
                Disposition::Hold {
                    pending: attempt.meta.pending.clone(),
                    last: "an unreadable decision".to_owned(),
                    transport: String::new(),
                }
            });
            apply_disposition(context, delivery, attempt, lease, (next, String::new())).await;
        }
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
    let may_go_alone = attempt.job.lane() == Lane::Transactional && !may_have_been_begun(delivery);
    let mut waited = false;
    loop {
        let asking = traces::call("claim");
        let answer = context.store.claim_and_admit(&request, ask).await;
        report::note_claim(&asking, context, answer.as_ref().map(|(claim, _)| claim));
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

/// A job with an idempotency key has its record under that key; a cancellation by job id is found by its alias.
async fn was_cancelled_by_id(context: &Context, attempt: &Attempt<'_>) -> bool {
    let key = LedgerKey::of(&attempt.job.identity());
    matches!(context.store.alias(attempt.job.tenant(), attempt.job.id(), &key).await, Ok(Some(Final::Cancelled)))
}
