//! What is told of an attempt: its trail, its counts, and its failure where it was one. Reads what the attempt knows, and decides nothing.

use std::sync::Arc;

use jiff::Timestamp;
use postrider_schemas::topology::{DEAD_QUEUE, DUE_EXCHANGE, HOLD_QUEUE, SUSPECT_QUEUE};

use crate::{
    delivery::{
        attempt::{Attempt, FinishedAttempt},
        context::Context,
    },
    policy::{
        decision::Disposition,
        outcome::{Class, Outcome},
        schedule,
        settlement::Settlement,
    },
    queue::Source,
    store::{Claim, StoreError},
    telemetry::{
        label_values, metrics,
        registry::attribute,
        spans,
        traces::{self, AttributeText, TraceSubject},
        worker_stats::WORKER_STATS,
    },
    transport::Transport,
};

/// What the trail says of a job.
pub(crate) fn describe(attempt: &Attempt<'_>) {
    traces::about(|| TraceSubject {
        id: attempt.job.id(),
        tenant: attempt.job.tenant().as_str().to_owned(),
        route: attempt.route.name.clone(),
        recipients: attempt.meta.pending.as_ref().map_or_else(|| attempt.job.recipients().len(), Vec::len),
    });
}

/// Which store is asked, and what.
pub(crate) fn note_store(step: &traces::TraceStep, context: &Context, operation: &'static str) {
    step.set(attribute::DB_SYSTEM, context.store.system());
    step.set(attribute::DB_OPERATION, operation);
}

/// What the ledger said.
pub(crate) fn note_claim(step: &traces::TraceStep, context: &Context, answer: Result<&Claim, &StoreError>) {
    note_store(step, context, "claim");
    match answer {
        Ok(claim) => step.set(attribute::CLAIM, claim.as_str()),
        Err(error) => step.fail(if error.is_down() { "down" } else { "broken" }, "the store did not answer the claim"),
    }
}

/// The outcome, for metrics and the trail.
pub(crate) fn tell_outcome(attempt: &Attempt<'_>, ended: &FinishedAttempt, next: &Disposition) {
    let (outcome, transport) = (&ended.outcome, ended.transport.as_str());
    metrics::decided(attempt.job, transport, attempt.route.on_unknown(attempt.job), outcome, next);
    if matches!(outcome, Outcome::Accepted { .. }) {
        let now = Timestamp::now();
        WORKER_STATS.accepted(attempt.job.lane(), transport, now);
        metrics::accepted(attempt.job, attempt.meta, transport, now);
    }
    match outcome {
        Outcome::Refused { refusal, .. } => {
            WORKER_STATS.failed(transport, refusal.class.as_str(), &refusal.answer, Timestamp::now());
        }
        Outcome::Unknown(answer) => WORKER_STATS.failed(transport, "unknown", answer, Timestamp::now()),
        Outcome::Accepted { .. } | Outcome::LostClaim => {}
    }
    if !traces::is_recorded() {
        return;
    }
    let failure = match (outcome, next) {
        (Outcome::LostClaim, _) => None,
        (Outcome::Unknown(_), _) => Some("unknown"),
        (_, Disposition::DeadLetter { .. }) => Some("dead"),
        (_, Disposition::Hold { .. }) => Some("held"),
        (Outcome::Refused { refusal, .. }, _) if refusal.class == Class::Config => Some("config"),
        _ => None,
    };
    // Most attempts go well, and most of those are told to nobody.
    if failure.is_none() && !traces::is_wanted() {
        return;
    }
    traces::set(attribute::TRANSPORT, transport.to_owned());
    traces::set(attribute::OUTCOME, label_values::outcome(outcome));
    let answer = match outcome {
        Outcome::Accepted { receipt, .. } => &receipt.answer,
        Outcome::Refused { refusal, .. } => {
            traces::set(attribute::CLASS, refusal.class.as_str());
            &refusal.answer
        }
        Outcome::Unknown(answer) => answer,
        Outcome::LostClaim => return,
    };
    let answer = answer.to_string();
    if let Some(kind) = failure {
        traces::failed(kind, &answer);
    }
    traces::set(attribute::ANSWER, answer);
}

/// What is sent to the queue, or settled there. The names of destinations are those of the topology: a routing key of the ladder holds a delay.
pub(crate) fn note_settlement(step: &traces::TraceStep, context: &Context, source: Source, settlement: &Settlement) {
    let (name, kind) = match settlement {
        Settlement::Done => ("ack", "settle"),
        Settlement::GiveBack => ("nack", "settle"),
        _ => ("send", "send"),
    };
    let destination: AttributeText = match settlement {
        // A name that has to be made is worth it only for those who see it.
        Settlement::Done if !traces::is_wanted() => return,
        Settlement::Done | Settlement::GiveBack => spans::queue(source).into(),
        Settlement::Again { .. } | Settlement::Split(_) | Settlement::Return | Settlement::Later(_) => {
            DUE_EXCHANGE.into()
        }
        Settlement::Hold(_) => HOLD_QUEUE.into(),
        Settlement::DeadLetter(_) => DEAD_QUEUE.into(),
        Settlement::Quarantine(_) => SUSPECT_QUEUE.into(),
    };
    note_messaging(step, context, name, kind, destination);
    step.set(attribute::SETTLEMENT, settlement.as_str());
    if let Settlement::Again { wait, .. } = settlement
        && step.is_recorded()
    {
        step.set(attribute::PARK_UNTIL, schedule::after(context.now(), *wait).to_string());
    }
}

/// What is said of every call to the queue.
pub(crate) fn note_messaging(
    step: &traces::TraceStep,
    context: &Context,
    name: &'static str,
    kind: &'static str,
    destination: impl Into<AttributeText>,
) {
    step.set(attribute::MESSAGING_SYSTEM, context.queue.system());
    step.set(attribute::MESSAGING_OPERATION_NAME, name);
    step.set(attribute::MESSAGING_OPERATION_TYPE, kind);
    step.set(attribute::MESSAGING_DESTINATION, destination.into());
    if let Some((host, port)) = context.queue.address() {
        step.set(attribute::SERVER_ADDRESS, AttributeText::from(Arc::clone(host)));
        step.set(attribute::SERVER_PORT, i64::from(*port));
    }
}

/// The time with one transport.
pub(crate) fn deliver_step(transport: &Transport) -> traces::TraceStep {
    let step = traces::stretch("deliver", transport.is_relay());
    if step.is_recorded() {
        let (name, host, port) = &transport.told;
        step.set(attribute::TRANSPORT, AttributeText::from(Arc::clone(name)));
        step.set(attribute::TRANSPORT_KIND, transport.kind.as_str());
        step.set(attribute::SERVER_ADDRESS, AttributeText::from(Arc::clone(host)));
        step.set(attribute::SERVER_PORT, i64::from(*port));
        step.set(attribute::PROTOCOL, if transport.is_relay() { "smtp" } else { "http" });
    }
    step
}

/// What came of one transport.
pub(crate) fn note_outcome(step: &traces::TraceStep, outcome: &Outcome) {
    if !step.is_recorded() {
        return;
    }
    step.set(attribute::OUTCOME, label_values::outcome(outcome));
    match outcome {
        Outcome::Refused { refusal, .. } => {
            step.set(attribute::CLASS, refusal.class.as_str());
            step.fail(refusal.class.as_str(), &refusal.answer.to_string());
        }
        Outcome::Unknown(answer) => step.fail("unknown", &answer.to_string()),
        Outcome::Accepted { .. } | Outcome::LostClaim => {}
    }
}
