//! Recipients who cannot be reached at all: their domain does not exist, or says that it takes no mail. Asked before anything is sent, where
//! that is configured. A DNS failure refuses nobody.

use postrider_schemas::Job;

use super::Limiter;
use crate::{
    dns::{DnsAnswer as Known, DomainAnswers},
    policy::outcome::{Answer, Class, EnhancedCode, Outcome, RecipientRefusal, Refusal, Stage},
};

impl Limiter {
    /// Those of these recipients who cannot be reached by what is known of their domains, and why.
    pub fn unreachable(&self, job: &Job, indices: &[usize], known: &DomainAnswers) -> Vec<RecipientRefusal> {
        if !self.0.checks_recipients {
            return Vec::new();
        }
        let all = job.recipients();
        let mut refused = Vec::new();
        for index in indices {
            let Some(recipient) = all.get(*index) else { continue };
            let (code, text) = match known.of(recipient.address.domain().as_str()) {
                Known::NoSuchDomain => (EnhancedCode(5, 1, 2), "the domain does not exist"),
                Known::TakesNoMail => (EnhancedCode(5, 1, 10), "the domain says that it takes no mail (null MX)"),
                Known::Exchangers(_) | Known::Unknown => continue,
            };
            let answer = Answer::new(Stage::RcptTo, None, Some(code), text);
            let refusal = Refusal { class: Class::Recipient, answer, retry_after: None };
            refused.push(RecipientRefusal { index: *index, refusal });
        }
        refused
    }
}

/// The outcome of an attempt without these recipients, with them.
pub fn with_unreachable(outcome: Outcome, unreachable: Vec<RecipientRefusal>) -> Outcome {
    let more = |mut list: Vec<RecipientRefusal>| {
        list.extend(unreachable.clone());
        list.sort_by_key(|one| one.index);
        list
    };
    match outcome {
        Outcome::Accepted { receipt, refused } => Outcome::Accepted { receipt, refused: more(refused) },
        Outcome::Refused { refusal, recipients } if !recipients.is_empty() => {
            Outcome::Refused { refusal, recipients: more(recipients) }
        }
        // They are found again with the next try.
        other => other,
    }
}

/// The outcome where nobody is left.
pub fn nobody_left(unreachable: Vec<RecipientRefusal>) -> Option<Outcome> {
    let refusal = unreachable.first()?.refusal.clone();
    Some(Outcome::Refused { refusal, recipients: unreachable })
}
