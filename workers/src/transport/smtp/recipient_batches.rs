//! The recipients of a message that one transaction cannot serve: in which batches they are asked, and what each heard. Pure.
//!
//! A relay that hangs up in the middle of an envelope has taken nothing; what it said of some recipients stands, and the others are
//! asked again at once, in smaller batches. Once somebody was served the others wait for the next transaction.

use super::outcome::EnvelopeCut;
use crate::policy::{
    classify::mildest,
    outcome::{Answer, Class, Mark, Outcome, RecipientRefusal, Refusal, Stage},
};

/// What is left to do for a message.
#[derive(Debug)]
pub struct RecipientBatches {
    /// Positions in the envelope that have no answer yet.
    todo: Vec<usize>,
    refused: Vec<RecipientRefusal>,
    size: usize,
    /// The envelope goes in steps from now on.
    pub is_serial: bool,
}

/// What follows a transaction.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one, at once.
    Again,
    /// That was it.
    End(Outcome),
}

impl RecipientBatches {
    /// For so many recipients, at most `size` in a transaction.
    pub fn new(recipients: usize, size: usize) -> Self {
        Self { todo: (0..recipients).collect(), refused: Vec::new(), size: size.max(1), is_serial: false }
    }

    /// The positions that the next transaction is for.
    pub fn next(&self) -> &[usize] {
        &self.todo[..self.size.min(self.todo.len())]
    }

    /// Whether one transaction is for everybody.
    pub fn is_whole(&self) -> bool {
        self.refused.is_empty() && self.size >= self.todo.len()
    }

    /// After a transaction that came to its end.
    pub fn ended(&mut self, outcome: Outcome) -> Next {
        let batch: Vec<usize> = self.next().to_vec();
        match outcome {
            Outcome::Accepted { receipt, refused } => {
                self.hear(refused, &batch);
                for one in &mut self.refused {
                    if one.refusal.answer.mark == Mark::TooManyRecipients {
                        one.refusal.answer.mark = Mark::NotAsked;
                    }
                }
                let rest = self.todo.iter().filter(|index| !batch.contains(index)).map(|index| not_asked(*index));
                self.refused.extend(rest);
                self.refused.sort_by_key(|one| one.index);
                Next::End(Outcome::Accepted { receipt, refused: std::mem::take(&mut self.refused) })
            }
            Outcome::Refused { recipients, .. } if !recipients.is_empty() => {
                let (more, judged): (Vec<_>, Vec<_>) =
                    recipients.into_iter().partition(|one| one.refusal.answer.mark == Mark::TooManyRecipients);
                if judged.is_empty() {
                    // Not even the first one: nothing was achieved.
                    return Next::End(self.all(more, &batch));
                }
                let size = if more.is_empty() { self.size } else { judged.len() };
                self.hear(judged, &batch);
                self.forget();
                self.size = size;
                if self.todo.is_empty() { Next::End(self.declined()) } else { Next::Again }
            }
            // About the message: for everybody who has no answer of his own.
            Outcome::Refused { refusal, .. } if !self.refused.is_empty() => {
                let others = self.todo.iter().map(|index| RecipientRefusal { index: *index, refusal: refusal.clone() });
                self.refused.extend(others.collect::<Vec<_>>());
                Next::End(self.declined())
            }
            outcome => Next::End(outcome),
        }
    }

    /// After a relay left in the middle of the envelope. `outcome` is what it was for all of the batch.
    pub fn cut(&mut self, cut: EnvelopeCut, outcome: Outcome, pipelined: bool) -> Next {
        let batch: Vec<usize> = self.next().to_vec();
        if !cut.refused.is_empty() {
            self.hear(cut.refused, &batch);
            self.forget();
            self.size = cut.answered.clamp(1, batch.len());
            return if self.todo.is_empty() { Next::End(self.declined()) } else { Next::Again };
        }
        let Outcome::Refused { refusal, .. } = &outcome else { return Next::End(outcome) };
        // It said that it wants to be left alone.
        if refusal.class != Class::Transient {
            return self.ended(outcome);
        }
        if cut.is_gone && pipelined {
            self.is_serial = true;
            return Next::Again;
        }
        if batch.len() > 1 && !cut.is_silent {
            self.size = if cut.answered > 0 { cut.answered.min(batch.len() - 1) } else { batch.len() / 2 };
            return Next::Again;
        }
        match batch.first() {
            Some(first) if self.todo.len() > 1 && !cut.is_silent => {
                self.refused.push(RecipientRefusal { index: *first, refusal: refusal.clone() });
                self.forget();
                Next::Again
            }
            _ => self.ended(outcome),
        }
    }

    /// There were enough transactions: the others are tried later.
    pub fn given_up(&mut self) -> Outcome {
        let rest: Vec<_> = self.todo.drain(..).map(not_asked).collect();
        self.refused.extend(rest);
        self.declined()
    }

    fn hear(&mut self, refused: Vec<RecipientRefusal>, batch: &[usize]) {
        let named = |one: RecipientRefusal| Some(RecipientRefusal { index: *batch.get(one.index)?, ..one });
        self.refused.extend(refused.into_iter().filter_map(named));
    }

    /// Who was refused is not asked again.
    fn forget(&mut self) {
        let refused = &self.refused;
        self.todo.retain(|index| !refused.iter().any(|one| one.index == *index));
    }

    fn all(&mut self, recipients: Vec<RecipientRefusal>, batch: &[usize]) -> Outcome {
        self.hear(recipients, batch);
        for index in self.todo.iter().filter(|index| !batch.contains(index)) {
            self.refused.push(not_asked(*index));
        }
        // Without anybody served or judged, another try at once would only repeat it.
        for one in &mut self.refused {
            if matches!(one.refusal.answer.mark, Mark::NotAsked | Mark::TooManyRecipients) {
                one.refusal.answer.mark = Mark::Plain;
            }
        }
        self.declined()
    }

    fn declined(&mut self) -> Outcome {
        let mut recipients = std::mem::take(&mut self.refused);
        recipients.sort_by_key(|one| one.index);
        let refusal = mildest(&recipients).cloned().unwrap_or_else(|| not_asked(0).refusal);
        Outcome::Refused { refusal, recipients }
    }
}

fn not_asked(index: usize) -> RecipientRefusal {
    let answer = Answer::local(Stage::RcptTo, "left for the next transaction").marked(Mark::NotAsked);
    RecipientRefusal { index, refusal: Refusal { class: Class::Transient, answer, retry_after: None } }
}
