//! Answers that no known word explains: the same one for several recipients, with nobody accepted in between, is about us. The store
//! counts, over all workers; then the circuit opens and nobody is rejected.

use std::sync::atomic::Ordering;

use postrider_schemas::Job;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::CircuitBreakers;
use crate::policy::{
    fingerprint::fingerprint,
    outcome::{Class, Mark, Outcome, Refusal},
    systemic_refusals::{is_about_us, mark},
};

impl CircuitBreakers {
    /// The outcome, or that the transport needs a person where the answer is about us after all.
    pub async fn judged(&self, transport: usize, outcome: Outcome, job: &Job) -> Outcome {
        let (whole, single) = match &outcome {
            Outcome::Accepted { .. } => {
                self.accepted(transport).await;
                return outcome;
            }
            Outcome::Refused { refusal, recipients } => (refusal, recipients),
            Outcome::Unknown(_) | Outcome::LostClaim => return outcome,
        };
        let all = job.recipients();
        let address = |index: usize| {
            all.get(index).map(|one| short(&format!("{}@{}", one.address.local(), one.address.domain().as_str())))
        };
        let unexplained: Vec<(&Refusal, String)> = if single.is_empty() {
            let first = address(0).unwrap_or_default();
            std::iter::once(whole)
                .filter(|one| one.answer.mark == Mark::Unexplained)
                .map(|one| (one, first.clone()))
                .collect()
        } else {
            let with_mark = single.iter().filter(|one| one.refusal.answer.mark == Mark::Unexplained);
            with_mark.filter_map(|one| Some((&one.refusal, address(one.index)?))).collect()
        };
        let Some((first, _)) = unexplained.first().cloned() else { return outcome };
        // Whoever probes hears what opened it.
        let is_about_us = !self.is_closed(transport) || self.is_systemic(transport, &unexplained).await;
        if !is_about_us {
            return outcome;
        }
        let refusal = Refusal { class: Class::Config, ..first.clone() };
        Outcome::Refused { refusal, recipients: Vec::new() }
    }

    async fn is_systemic(&self, transport: usize, unexplained: &[(&Refusal, String)]) -> bool {
        self.has_unexplained[transport].store(true, Ordering::Relaxed);
        let answers: Vec<String> =
            unexplained.iter().map(|(refusal, _)| short(&fingerprint(&refusal.answer.to_string()))).collect();
        let marks: Vec<String> = unexplained.iter().zip(&answers).map(|((_, who), answer)| mark(answer, who)).collect();
        match self.store.note_refusals(&self.keys[transport], &marks).await {
            Ok(marks) => answers.iter().any(|answer| is_about_us(&marks, answer)),
            Err(error) => {
                warn!(transport = self.names[transport], %error, "The store did not record a refusal that no known word explains");
                false
            }
        }
    }

    /// Somebody was accepted: what was told before was about its recipients. Costs nothing while there are no such refusals.
    async fn accepted(&self, transport: usize) {
        if self.has_unexplained[transport].swap(false, Ordering::Relaxed)
            && let Err(error) = self.store.forget_refusals(&self.keys[transport]).await
        {
            warn!(transport = self.names[transport], %error, "The store did not record that a transport accepted mail");
            self.has_unexplained[transport].store(true, Ordering::Relaxed);
        }
    }

    /// Learns for which transports other workers noted unexplained refusals.
    pub(super) async fn look_at_refusals(&self) {
        if let Ok(list) = self.store.have_refusals(&self.keys).await {
            for (known, has_some) in self.has_unexplained.iter().zip(list) {
                known.fetch_or(has_some, Ordering::Relaxed);
            }
        }
    }
}

/// Enough to tell two apart, too little to find out what it was.
fn short(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(6).fold(String::new(), |mut out, byte| {
        use std::fmt::Write as _;
        let _ = write!(out, "{byte:02x}");
        out
    })
}
