//! What is made of an answer that asks for patience: the store hears it, so that every worker slows down, and so do those here who
//! still wait for a connection.

use std::{collections::HashMap, sync::PoisonError, time::Duration};

use tokio::time::Instant;
use tracing::warn;

use super::{Limiter, Subject, micros, scopes};
use crate::{
    decide::limits::{
        reaction,
        scope::{Demand, WHOLE},
    },
    outcome::{Outcome, Refusal},
};

/// No token is older than this when its message goes. Whoever has a newer one was told by the store that nothing is paused, which an operator
/// may have ended before its time.
const TOKEN_AGE: Duration = Duration::from_secs(2);

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
                let group = self.group(recipient.address.domain().as_str()).await;
                self.react(subject, &group, &one.refusal, &mut done).await;
            }
        }
    }

    /// Resolves when a scope of the attempt is paused by an answer to another one: whoever still waits for a connection then need not
    /// be refused to know.
    pub async fn paused(&self, subject: Subject<'_>) {
        let name = &self.0.transports[subject.transport];
        let mut scopes = vec![scopes::transport(name)];
        scopes.extend(subject.groups.iter().map(|group| scopes::group(name, group)));
        let mut heard = self.0.paused.subscribe();
        let is_paused = |paused: &HashMap<String, Instant>| {
            let now = Instant::now();
            scopes.iter().any(|scope| paused.get(scope).is_some_and(|until| *until > now))
        };
        if heard.wait_for(is_paused).await.is_err() {
            // The sender lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    fn note_pause(&self, scope: &str, pause_us: f64) {
        let now = Instant::now();
        self.0.paused.send_modify(|paused| {
            paused.retain(|_, until| *until > now);
            paused.insert(scope.to_owned(), now + micros(pause_us).min(TOKEN_AGE));
        });
    }

    /// Each scope hears one answer of an attempt.
    async fn react(&self, subject: Subject<'_>, group: &str, refusal: &Refusal, done: &mut Vec<String>) {
        // What was never said by a transport is no reason to slow down.
        if refusal.answer.code.is_none() && refusal.retry_after.is_none() {
            return;
        }
        let transport = &self.0.transports[subject.transport];
        let Some(rule) = reaction::find(&self.0.config.reactions, transport, group, refusal) else { return };
        if !rule.acts(refusal) {
            return;
        }
        let is_transport = rule.target.is_transport(refusal.answer.stage) || group.is_empty();
        let scope = if is_transport { scopes::transport(transport) } else { scopes::group(transport, group) };
        if done.contains(&scope) {
            return;
        }
        let demand = self.demands(subject).into_iter().find(|one| one.scope == scope);
        let is_limited = demand.is_some_and(|one: Demand| !one.limits.is_empty());
        let seen = (!is_limited).then(|| self.0.pace.per_second(&scope, Instant::now()) * self.0.alone.known_workers());
        match self.0.store.react(&scope, &rule.call(refusal, seen)).await {
            Ok(reacted) if reacted.fired => {
                self.0.disturbed.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.clone());
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
