//! Refusals that no transport said, and what they all come to where none took the job.

use std::time::Duration;

use postrider_schemas::event::PassedOver;

use crate::{
    delivery::{attempt::FinishedAttempt, context::Context},
    policy::{
        capabilities::Needs,
        failover::spokesman,
        outcome::{Answer, Class, Outcome, Refusal, Stage},
    },
};

/// A limit was heard of while the job waited for a connection.
pub(super) fn paused() -> Refusal {
    let answer = Answer::local(Stage::Connect, "paused while the job waited for a connection");
    Refusal { class: Class::Throttled, answer, retry_after: None }
}

/// Too many wait for it.
pub(super) fn transport_overloaded() -> Refusal {
    let answer = Answer::local(Stage::Connect, "too many jobs wait for a turn");
    Refusal { class: Class::Throttled, answer, retry_after: None }
}

/// Why this transport is not even asked; nothing where it is.
pub(super) fn not_asked(context: &Context, n: usize, needs: &Needs) -> Option<Refusal> {
    if let Some(lack) = context.transports[n].capabilities.lack(needs) {
        let answer = Answer::local(Stage::Compose, &lack.to_string());
        return Some(Refusal { class: Class::Unsupported, answer, retry_after: None });
    }
    context.breakers.kept_away(n).map(|(wait, reason)| circuit_open(wait, &reason))
}

pub(super) fn circuit_open(wait: Duration, reason: &str) -> Refusal {
    let answer = Answer::local(Stage::Connect, &format!("circuit open: {reason}"));
    Refusal { class: Class::Config, answer, retry_after: Some(wait) }
}

/// No transport took the job: the refusal with the most hope speaks for all.
pub(super) fn no_transport_left(context: &Context, mut refusals: Vec<(usize, Refusal)>) -> FinishedAttempt {
    let Some(position) = spokesman(&refusals) else {
        let answer = Answer::local(Stage::Compose, "the route names no transport");
        let refusal = Refusal { class: Class::Unsupported, answer, retry_after: None };
        return FinishedAttempt::at("", Outcome::Refused { refusal, recipients: Vec::new() });
    };
    let passed_over = passed_over(context, &refusals, Some(position));
    let (n, mut refusal) = refusals.swap_remove(position);
    if refusal.class == Class::Unsupported && !refusals.is_empty() {
        let all: Vec<String> = passed_over.iter().map(|one| format!("{}: {}", one.transport, one.answer)).collect();
        let text = format!("{} {}; {}", context.transports[n].name, refusal.answer.text, all.join("; "));
        refusal.answer = Answer::local(Stage::Compose, &text);
    }
    let outcome = Outcome::Refused { refusal, recipients: Vec::new() };
    FinishedAttempt { outcome, transport: context.transports[n].name.clone(), passed_over, pin: None, tripped: false }
}

/// Every refusal but the one at `except`, for the event.
pub(super) fn passed_over(context: &Context, refusals: &[(usize, Refusal)], except: Option<usize>) -> Vec<PassedOver> {
    let others = refusals.iter().enumerate().filter(|(position, _)| Some(*position) != except);
    others
        .map(|(_, (n, refusal))| PassedOver {
            transport: context.transports[*n].name.clone(),
            reason: refusal.class.as_str().to_owned(),
            answer: refusal.answer.to_string(),
        })
        .collect()
}
