//! What is made of an answer that asks for patience: the store hears it, so that every worker slows down, and so do those here who
//! still wait for a connection.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Limiter, Subject, micros, scopes};
use crate::policy::{
    outcome::{Outcome, Refusal},
    rate_limit::{
        scope::{ScopeLimits, WHOLE},
        shaping_rule,
    },
};

/// A pause, as this worker heard of it.
pub(super) struct PausedScope {
    until: Instant,
    heard: Instant,
}

impl Limiter {
    /// Looks at what came of an attempt: slows down where the transport asks for patience.
    pub async fn heard(&self, subject: Subject<'_>, outcome: &Outcome) {
        let (whole, single) = match outcome {
            Outcome::Refused { refusal, recipients } if recipients.is_empty() => (Some(refusal), [].as_slice()),
            Outcome::Refused { recipients, .. } => (None, recipients.as_slice()),
            Outcome::Accepted { refused, .. } => (None, refused.as_slice()),
            Outcome::Unknown(_) | Outcome::LostClaim => return,
        };
        let mut done: Vec<String> = Vec::new();
        if let Some(refusal) = whole {
            let groups = if subject.groups.is_empty() { &[String::new()] } else { subject.groups };
            for group in groups {
                self.react(subject, group, refusal, &mut done).await;
            }
        }
        let all = if single.is_empty() { Vec::new() } else { subject.job.recipients() };
        for one in single {
            if let Some(recipient) = all.get(one.index) {
                let group = self.group(recipient.address.domain().as_str(), subject.domains);
                self.react(subject, &group, &one.refusal, &mut done).await;
            }
        }
    }

    /// Nothing goes by a transport until then: its answers say that nothing is left. Nobody was refused, so the rate is left as it is.
    pub async fn rest(&self, transport: usize, until: Instant) {
        let scope = scopes::transport(&self.0.transports[transport]);
        let rest_us = || until.saturating_duration_since(Instant::now()).as_secs_f64() * 1e6;
        // Those here who wait for a place hear of it last: each of them asks the store at once.
        match self.0.store.react(&scope, &shaping_rule::used_up(rest_us())).await {
            Ok(_) => {
                self.overrides().note(&scope, Instant::now());
                self.0.tokens.forget([scope.as_str()]);
                self.note_pause(&scope, rest_us());
                let pause_ms = (rest_us() / 1e3).round();
                debug!(scope, pause_ms, "{scope} says that nothing is left for the moment");
            }
            Err(error) => warn!(scope, %error, "The store did not hear that nothing is left at a transport"),
        }
    }

    /// Resolves when a scope of the attempt is paused by an answer to another one: whoever still waits for a connection then need not
    /// be refused to know. What was heard before `since` does not count: the store was asked after it, and said something else.
    pub async fn paused(&self, subject: Subject<'_>, since: Option<Instant>) {
        let scopes = self.pausable(subject);
        let mut heard = self.0.paused.subscribe();
        if heard.wait_for(|paused| is_paused(paused, &scopes, since)).await.is_err() {
            // The sender lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    /// Whether this worker heard that a scope of the attempt is paused.
    pub fn is_paused(&self, subject: Subject<'_>) -> bool {
        let paused = self.0.paused.borrow();
        !paused.is_empty() && is_paused(&paused, &self.pausable(subject), None)
    }

    /// The scopes that answers of the attempt's transport may slow down.
    fn pausable(&self, subject: Subject<'_>) -> Vec<String> {
        let name = &self.0.transports[subject.transport];
        let mut scopes = vec![scopes::transport(name)];
        scopes.extend(subject.groups.iter().map(|group| scopes::group(name, group)));
        scopes
    }

    fn note_pause(&self, scope: &str, pause_us: f64) {
        let now = Instant::now();
        self.0.paused.send_modify(|paused| {
            paused.retain(|_, one| one.until > now);
            paused.insert(scope.to_owned(), PausedScope { until: now + micros(pause_us), heard: now });
        });
    }

    /// What is as configured again is not paused, whatever was heard here: an operator ended it. The store was asked for that at `asked`; what was
    /// heard since it may not have known.
    pub(super) fn forget_pauses(&self, asked: Instant, overrides: &HashSet<String>) {
        self.0.paused.send_if_modified(|paused| {
            paused.retain(|scope, one| one.heard >= asked || overrides.contains(scope));
            // Nobody waits for that.
            false
        });
    }

    /// Each scope hears one answer of an attempt, and one of a call that several jobs share, from the job that comes first. The others do not wait
    /// for what the store says to it.
    async fn react(&self, subject: Subject<'_>, group: &str, refusal: &Refusal, done: &mut Vec<String>) {
        // What was never said by a transport is no reason to slow down.
        if refusal.answer.code.is_none() && refusal.retry_after.is_none() {
            return;
        }
        let transport = &self.0.transports[subject.transport];
        let Some(rule) = shaping_rule::find(&self.0.config.shaping_rules, transport, group, refusal) else { return };
        if !rule.acts(refusal) {
            return;
        }
        let is_transport = rule.target.is_transport(refusal.answer.stage) || group.is_empty();
        let scope = if is_transport { scopes::transport(transport) } else { scopes::group(transport, group) };
        if done.contains(&scope) || !refusal.answer.hear(&scope) {
            return;
        }
        let demand = self.demands(subject).into_iter().find(|one| one.scope == scope);
        let is_limited = demand.is_some_and(|one: ScopeLimits| !one.limits.is_empty());
        let seen = (!is_limited).then(|| self.0.observed_rate.per_second(&scope, Instant::now()) * self.workers());
        match self.0.store.react(&scope, &rule.call(refusal, seen)).await {
            Ok(reacted) if reacted.fired => {
                self.overrides().note(&scope, Instant::now());
                self.0.tokens.forget([scope.as_str()]);
                if reacted.pause_us > 0.0 {
                    self.note_pause(&scope, reacted.pause_us);
                }
                let (pause_ms, left) = ((reacted.pause_us / 1e3).round(), (reacted.left * 100.0 / WHOLE).round());
                if reacted.is_cut || rule.keep >= 1.0 {
                    warn!(scope, reaction = rule.name, pause_ms, left_percent = left, answer = %refusal.answer, "{scope} asks for patience");
                }
            }
            Ok(_) => {}
            // Each job's own wait is what is left then.
            Err(error) => warn!(scope, %error, "The store did not hear that a transport asks for patience"),
        }
        done.push(scope);
    }
}

fn is_paused(paused: &HashMap<String, PausedScope>, scopes: &[String], since: Option<Instant>) -> bool {
    let now = Instant::now();
    let counts = |one: &PausedScope| one.until > now && since.is_none_or(|since| one.heard >= since);
    scopes.iter().any(|scope| paused.get(scope).is_some_and(counts))
}

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;
