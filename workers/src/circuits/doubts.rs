//! Answers that no known word explains: the same one for several recipients, with nobody accepted in between, is about us. The store
//! counts, over all workers; then the circuit opens and nobody is rejected.

use std::sync::atomic::Ordering;

use postrider_schemas::Job;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::Circuits;
use crate::{
    decide::{doubt, fingerprint::fingerprint},
    outcome::{Class, Mark, Outcome, Refusal},
};

impl Circuits {
    /// The outcome, or that the transport needs a person where the answer is about us after all.
    pub async fn doubted(&self, transport: usize, outcome: Outcome, job: &Job) -> Outcome {
        let (whole, single) = match &outcome {
            Outcome::Accepted { .. } => {
                self.trust(transport).await;
                return outcome;
            }
            Outcome::Refused { refusal, recipients } => (refusal, recipients),
            Outcome::Unknown(_) | Outcome::LostClaim => return outcome,
        };
        let all = job.recipients();
        let address = |index: usize| {
            all.get(index).map(|one| short(&format!("{}@{}", one.address.local(), one.address.domain().as_str())))
        };
        let doubtful: Vec<(&Refusal, String)> = if single.is_empty() {
            let first = address(0).unwrap_or_default();
            std::iter::once(whole)
                .filter(|one| one.answer.mark == Mark::Pause)
                .map(|one| (one, first.clone()))
                .collect()
        } else {
            let is_doubtful = single.iter().filter(|one| one.refusal.answer.mark == Mark::Pause);
            is_doubtful.filter_map(|one| Some((&one.refusal, address(one.index)?))).collect()
        };
        let Some((first, _)) = doubtful.first().cloned() else { return outcome };
        // Whoever probes hears what opened it.
        let is_about_us = !self.is_closed(transport) || self.doubt(transport, &doubtful).await;
        if !is_about_us {
            return outcome;
        }
        let refusal = Refusal { class: Class::Config, ..first.clone() };
        Outcome::Refused { refusal, recipients: Vec::new() }
    }

    async fn doubt(&self, transport: usize, doubtful: &[(&Refusal, String)]) -> bool {
        self.doubts[transport].store(true, Ordering::Relaxed);
        let answers: Vec<String> =
            doubtful.iter().map(|(refusal, _)| short(&fingerprint(&refusal.answer.to_string()))).collect();
        let marks: Vec<String> =
            doubtful.iter().zip(&answers).map(|((_, who), answer)| doubt::mark(answer, who)).collect();
        match self.store.doubt(&self.keys[transport], &marks).await {
            Ok(marks) => answers.iter().any(|answer| doubt::is_about_us(&marks, answer)),
            Err(error) => {
                warn!(transport = self.names[transport], %error, "The store did not hear of a refusal that nobody understands");
                false
            }
        }
    }

    /// Somebody was accepted: what was told before was about its recipients. Costs nothing while nothing is in doubt.
    async fn trust(&self, transport: usize) {
        if self.doubts[transport].swap(false, Ordering::Relaxed)
            && let Err(error) = self.store.trust(&self.keys[transport]).await
        {
            warn!(transport = self.names[transport], %error, "The store did not hear that a transport accepted mail");
            self.doubts[transport].store(true, Ordering::Relaxed);
        }
    }

    /// Takes over which transports other workers have doubts about.
    pub(super) async fn look_at_doubts(&self) {
        if let Ok(list) = self.store.doubted(&self.keys).await {
            for (known, is_doubted) in self.doubts.iter().zip(list) {
                known.fetch_or(is_doubted, Ordering::Relaxed);
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
