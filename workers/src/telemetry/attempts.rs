//! What is told of an attempt: its trail, its counts, and its failure where it was one. Reads what the attempt knows, and decides nothing.

use std::sync::Arc;

use jiff::Timestamp;
use opentelemetry::StringValue;
use postrider_schemas::topology::{DEAD_QUEUE, DUE_EXCHANGE, HOLD_QUEUE, SUSPECT_QUEUE};

use super::{metrics, pulse::PULSE, registry::attribute, spans, traces, trail::About, words};
use crate::{
    attempt::{Task, World},
    decide::{due, settle::Next, settlement::Settlement},
    failover::Ended,
    outcome::{Class, Outcome},
    queue::Source,
    store::{Claim, StoreError},
    transport::Transport,
};

/// What the trail says of a job.
pub(crate) fn describe(task: &Task<'_>) {
    traces::about(|| About {
        id: task.job.id(),
        tenant: task.job.tenant().as_str().to_owned(),
        route: task.route.name.clone(),
        recipients: task.meta.pending.as_ref().map_or_else(|| task.job.recipients().len(), Vec::len),
    });
}

/// Which store is asked, and what.
pub(crate) fn note_store(step: &traces::Step, world: &World, operation: &'static str) {
    step.set(attribute::DB_SYSTEM, world.store.system());
    step.set(attribute::DB_OPERATION, operation);
}

/// What the ledger said.
pub(crate) fn note_claim(step: &traces::Step, world: &World, answer: Result<&Claim, &StoreError>) {
    note_store(step, world, "claim");
    match answer {
        Ok(claim) => step.set(attribute::CLAIM, claim.as_str()),
        Err(error) => step.fail(if error.is_down() { "down" } else { "broken" }, "the store did not answer the claim"),
    }
}

/// The outcome, for metrics and the trail.
pub(crate) fn tell_outcome(task: &Task<'_>, ended: &Ended, next: &Next) {
    let (outcome, transport) = (&ended.outcome, ended.transport.as_str());
    metrics::decided(task.job, transport, task.route.on_unknown(task.job), outcome, next);
    if matches!(outcome, Outcome::Accepted { .. }) {
        let now = Timestamp::now();
        PULSE.accepted(task.job.lane(), now);
        metrics::accepted(task.job, task.meta, task.published_at, transport, now);
    }
    match outcome {
        Outcome::Refused { refusal, .. } => {
            PULSE.failed(transport, refusal.class.as_str(), &refusal.answer, Timestamp::now());
        }
        Outcome::Unknown(answer) => PULSE.failed(transport, "unknown", answer, Timestamp::now()),
        Outcome::Accepted { .. } | Outcome::LostClaim => {}
    }
    if !traces::is_recorded() {
        return;
    }
    let failure = match (outcome, next) {
        (Outcome::LostClaim, _) => None,
        (Outcome::Unknown(_), _) => Some("unknown"),
        (_, Next::Bury { .. }) => Some("dead"),
        (_, Next::Hold { .. }) => Some("held"),
        (Outcome::Refused { refusal, .. }, _) if refusal.class == Class::Config => Some("config"),
        _ => None,
    };
    // Most attempts go well, and most of those are told to nobody.
    if failure.is_none() && !traces::is_wanted() {
        return;
    }
    traces::set(attribute::TRANSPORT, transport.to_owned());
    traces::set(attribute::OUTCOME, words::outcome(outcome));
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
pub(crate) fn note_settlement(step: &traces::Step, world: &World, source: Source, settlement: &Settlement) {
    let is_done = *settlement == Settlement::Done;
    let (name, kind) = if is_done { ("ack", "settle") } else { ("send", "send") };
    let destination: StringValue = match settlement {
        // A name that has to be made is worth it only for those who see it.
        Settlement::Done if !traces::is_wanted() => return,
        Settlement::Done => spans::queue(source).into(),
        Settlement::Again { .. } | Settlement::Split(_) | Settlement::Return => DUE_EXCHANGE.into(),
        Settlement::Hold(_) => HOLD_QUEUE.into(),
        Settlement::Bury(_) => DEAD_QUEUE.into(),
        Settlement::Quarantine(_) => SUSPECT_QUEUE.into(),
    };
    note_messaging(step, world, name, kind, destination);
    step.set(attribute::SETTLEMENT, settlement.as_str());
    if let Settlement::Again { wait, .. } = settlement
        && step.is_recorded()
    {
        step.set(attribute::PARK_UNTIL, due::after(world.now(), *wait).to_string());
    }
}

/// What is said of every call to the queue.
pub(crate) fn note_messaging(
    step: &traces::Step,
    world: &World,
    name: &'static str,
    kind: &'static str,
    destination: impl Into<StringValue>,
) {
    step.set(attribute::MESSAGING_SYSTEM, world.queue.system());
    step.set(attribute::MESSAGING_OPERATION_NAME, name);
    step.set(attribute::MESSAGING_OPERATION_TYPE, kind);
    step.set(attribute::MESSAGING_DESTINATION, destination.into());
    if let Some((host, port)) = world.queue.address() {
        step.set(attribute::SERVER_ADDRESS, StringValue::from(Arc::clone(host)));
        step.set(attribute::SERVER_PORT, i64::from(*port));
    }
}

/// The time with one transport.
pub(crate) fn deliver_step(transport: &Transport) -> traces::Step {
    let step = traces::stretch("deliver", transport.is_relay());
    if step.is_recorded() {
        let (name, host, port) = &transport.told;
        step.set(attribute::TRANSPORT, StringValue::from(Arc::clone(name)));
        step.set(attribute::TRANSPORT_KIND, transport.kind.as_str());
        step.set(attribute::SERVER_ADDRESS, StringValue::from(Arc::clone(host)));
        step.set(attribute::SERVER_PORT, i64::from(*port));
        step.set(attribute::PROTOCOL, if transport.is_relay() { "smtp" } else { "http" });
    }
    step
}

/// What came of one transport.
pub(crate) fn note_outcome(step: &traces::Step, outcome: &Outcome) {
    if !step.is_recorded() {
        return;
    }
    step.set(attribute::OUTCOME, words::outcome(outcome));
    match outcome {
        Outcome::Refused { refusal, .. } => {
            step.set(attribute::CLASS, refusal.class.as_str());
            step.fail(refusal.class.as_str(), &refusal.answer.to_string());
        }
        Outcome::Unknown(answer) => step.fail("unknown", &answer.to_string()),
        Outcome::Accepted { .. } | Outcome::LostClaim => {}
    }
}
