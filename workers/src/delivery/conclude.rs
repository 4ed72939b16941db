//! From an outcome to its consequences: events, the ledger, then the settlement. What follows from an outcome is decided in
//! [`crate::policy::decision`].

use jiff::Timestamp;
use postrider_schemas::{Event, Meta};
use tracing::{info, warn};

use crate::{
    delivery::{
        attempt::{Attempt, Authorization, FinishedAttempt},
        context::Context,
        events::emit,
        report,
        settlements::{note, settle_delivery, settle_or_warn},
    },
    policy::{
        decision::{self, Decision, DecisionInput, Disposition},
        outcome::{Outcome, Refusal},
        settlement::Settlement,
    },
    queue::Delivery,
    store::{Final, Finished, Lease, LedgerNote, StoreError, Unfinished},
    telemetry::{metrics, traces},
};

/// From the outcome to its consequences.
pub(crate) async fn conclude(
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
    report::tell_outcome(attempt, ended, &verdict.next);
    apply_decision(context, delivery, attempt, authorization, verdict).await;
}

/// Does what was decided: written down, then acted upon.
pub(crate) async fn apply_decision(
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
            let answer = events.iter().find_map(answer_of).unwrap_or_default();
            match context.store.decide(&lease, &decision).await {
                Ok(true) => {}
                Ok(false) => return settle_or_warn(context, delivery, Settlement::Return).await,
                Err(error) => warn!(job.id = %attempt.job.id(), %error, "The store did not record a decision"),
            }
            apply_disposition(context, delivery, attempt, lease, (next, answer)).await;
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
    report::note_store(&recording, context, "finish");
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
pub(crate) async fn apply_disposition(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    lease: Lease,
    (next, answer): (Disposition, String),
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
    let note_text = noted(&next, &settlement, &answer).encode();
    if let Settlement::Again { wait, meta } = &settlement {
        metrics::put_off(attempt.job, meta, *wait, "retry", context.now());
    }
    if settlement == Settlement::Done {
        if let Some(end) = end {
            let finished = context.store.finish_with(lease, end, &note_text).await;
            note(attempt, finished.map(drop).map_err(StoreError::from));
        }
        return settle_or_warn(context, delivery, settlement).await;
    }
    match settle_delivery(context, delivery, settlement).await {
        // The copy stands. Should this process end here, a copy of a newer generation proves what the ledger does not know yet.
        Ok(()) => match end {
            None => note(attempt, context.store.parked(lease, &note_text).await),
            Some(end) => {
                let finished = context.store.finish_with(lease, end, &note_text).await;
                note(attempt, finished.map(drop).map_err(StoreError::from));
            }
        },
        Err(error) => warn!(job.id = %attempt.job.id(), %error, "A settlement did not arrive; the job comes back"),
    }
}

/// What a transport said, as an event tells it.
fn answer_of(event: &Event) -> Option<String> {
    let of_one = || event.data.recipients.iter().find_map(|one| one.answer.clone());
    event.data.answer.clone().or_else(of_one)
}

/// What the ledger keeps of a decision for people.
fn noted(next: &Disposition, settlement: &Settlement, answer: &str) -> LedgerNote {
    let (last, why) = match next {
        Disposition::Again { last, .. } => (last.as_str(), "a retry"),
        Disposition::Hold { last, .. } => (last.as_str(), "an unknown outcome"),
        Disposition::DeadLetter { reason, detail, .. } => (detail.as_str(), reason.as_str()),
        Disposition::Sent | Disposition::Rejected | Disposition::Expired | Disposition::Split { .. } => (answer, ""),
    };
    let meta = if let Settlement::Again { meta, .. } = settlement { Some(meta) } else { None };
    LedgerNote {
        until: meta.and_then(|meta| meta.not_before),
        why: why.to_owned(),
        last: last.to_owned(),
        tries: meta.map_or(0, |meta| meta.attempt),
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

/// A job that is too late to be of use, or would be after the wait that a limit asks for.
pub(crate) async fn expire(
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

/// Ends a job that was not sent.
pub(crate) async fn end(context: &Context, delivery: Delivery, authorization: Authorization, end: Final) {
    if let Authorization::Leased(lease) = authorization
        && let Err(error) = context.store.finish(lease, end).await
    {
        warn!(%error, "The store did not record an end; the job comes back to the same one");
    }
    settle_or_warn(context, delivery, Settlement::Done).await;
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
