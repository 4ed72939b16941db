//! From what a session tells to an outcome: here the table of answers is read. Pure but for one look at this machine's file descriptors.

use std::borrow::Cow;

use postrider_smtp::{After, Cause, Cut, Delivery, Failure, RecipientReply, Reply, TlsMode};

use crate::{
    policy::{
        answers::Answers,
        classify::{Classification, DataPhase, SmtpEvent, classify, mildest},
        outcome::{Answer, Class, EnhancedCode, Mark, Outcome, Receipt, RecipientRefusal, Refusal, Stage},
    },
    transport::local,
};

/// Stands for whatever a relay says to AUTH: relays repeat there what they were sent.
const AUTH_REFUSED: &str = "the relay refused the login";

/// How far an envelope came, in terms of refusals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeCut {
    /// Recipients that were refused until then.
    pub refused: Vec<RecipientRefusal>,
    /// How many had an answer.
    pub answered: usize,
    /// The connection went away, or nothing more came, without a word.
    pub is_gone: bool,
    /// It was silence.
    pub is_silent: bool,
}

/// Reads what sessions with one relay tell.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Whom a reply is about.
    pub answers: &'a Answers,
    /// How the relay is spoken to.
    pub tls: TlsMode,
}

impl Reader<'_> {
    /// What became of a message.
    pub fn outcome(self, delivery: Delivery) -> Outcome {
        match delivery {
            Delivery::Accepted { reply, refused } => {
                let receipt = Receipt { answer: answer(Stage::Body, &reply) };
                Outcome::Accepted { receipt, refused: self.recipients(refused) }
            }
            Delivery::AllRefused(recipients) => {
                let recipients = self.recipients(recipients);
                let refusal = mildest(&recipients).cloned().unwrap_or_else(|| {
                    refusal(Class::Transient, Answer::local(Stage::RcptTo, "the relay took no recipient"))
                });
                Outcome::Refused { refusal, recipients }
            }
            Delivery::NotTaken(failure) => self.failed(&failure, DataPhase::No),
            Delivery::Unknown(failure) => self.failed(&failure, DataPhase::Possible),
            Delivery::Withdrawn => Outcome::LostClaim,
        }
    }

    /// What it means for a message that a session could not go on.
    pub fn failed(self, failure: &Failure, phase: DataPhase) -> Outcome {
        let answer = self.answer(failure);
        match self.classify(failure, phase) {
            Classification::Refused(class, mark) => {
                Outcome::Refused { refusal: refusal(class, answer.marked(mark)), recipients: Vec::new() }
            }
            Classification::Unknown => Outcome::Unknown(answer),
        }
    }

    /// How far an envelope came; nothing where the transaction came to its end.
    pub fn cut(self, after: After) -> Option<EnvelopeCut> {
        let After::Cut(Cut { refused, answered, is_gone, is_silent }) = after else { return None };
        Some(EnvelopeCut { refused: self.recipients(refused), answered, is_gone, is_silent })
    }

    fn recipients(self, list: Vec<RecipientReply>) -> Vec<RecipientRefusal> {
        let of_one = |RecipientReply { index, reply }: RecipientReply| {
            let (class, mark) = match self.reply(Stage::RcptTo, &reply, DataPhase::No) {
                Classification::Refused(class, mark) => (class, mark),
                Classification::Unknown => (Class::Transient, Mark::Plain),
            };
            let answer = answer(Stage::RcptTo, &reply).marked(mark);
            RecipientRefusal { index, refusal: refusal(class, answer) }
        };
        list.into_iter().map(of_one).collect()
    }

    fn reply(self, stage: Stage, reply: &Reply, phase: DataPhase) -> Classification {
        let event = SmtpEvent::Reply { code: reply.code, enhanced: enhanced(reply), text: &reply.text };
        classify(self.answers, stage, event, phase)
    }

    fn classify(self, failure: &Failure, phase: DataPhase) -> Classification {
        let stage = stage(failure.stage);
        let event = match &failure.cause {
            Cause::Reply(reply) => return self.reply(stage, reply, phase),
            Cause::Io(error) if local::is_local(error) => SmtpEvent::Local,
            // The system's resolver hides that there was no file descriptor.
            Cause::Io(_) if stage == Stage::Connect && local::is_starved() => SmtpEvent::Local,
            Cause::Closed | Cause::Io(_) => SmtpEvent::Closed,
            Cause::TimedOut(_) => SmtpEvent::TimedOut,
            Cause::Garbage(_) => SmtpEvent::Garbage,
            Cause::Setup(_) => return Classification::Refused(Class::Config, Mark::Plain),
            Cause::Unsupported(_) => return Classification::Refused(Class::Unsupported, Mark::Plain),
            Cause::NoRecipient => return Classification::Refused(Class::Message, Mark::Plain),
            Cause::PermissionLate => return Classification::Refused(Class::Transient, Mark::Plain),
        };
        classify(self.answers, stage, event, phase)
    }

    /// What was said or happened, in a form that may be logged, with a remark for people where it helps.
    pub fn answer(self, failure: &Failure) -> Answer {
        let stage = stage(failure.stage);
        let (code, enhanced, text) = match &failure.cause {
            Cause::Reply(reply) if stage == Stage::Auth => {
                (Some(reply.code), enhanced(reply), Cow::Borrowed(AUTH_REFUSED))
            }
            Cause::Reply(reply) => (Some(reply.code), enhanced(reply), Cow::Borrowed(reply.text.as_str())),
            cause => (None, None, Cow::Owned(cause.to_string())),
        };
        match self.hint(failure) {
            Some(hint) => Answer::new(stage, code, enhanced, &format!("{text}; {hint}")),
            None => Answer::new(stage, code, enhanced, &text),
        }
    }

    fn hint(self, failure: &Failure) -> Option<&'static str> {
        if failure.stage != postrider_smtp::Stage::Greeting {
            return None;
        }
        match &failure.cause {
            Cause::Closed | Cause::Io(_) | Cause::TimedOut(_) if self.tls != TlsMode::Implicit => {
                Some("there was no greeting: is this port implicit TLS (`tls = \"implicit\"`)?")
            }
            Cause::Reply(reply) if matches!(reply.code, 521 | 554) => {
                Some("it refuses every connection from here: is `host` a relay for this machine?")
            }
            _ => None,
        }
    }
}

/// A refusal that asks for no wait.
pub fn refusal(class: Class, answer: Answer) -> Refusal {
    Refusal { class, answer, retry_after: None }
}

fn answer(stage: Stage, reply: &Reply) -> Answer {
    Answer::new(stage, Some(reply.code), enhanced(reply), &reply.text)
}

fn enhanced(reply: &Reply) -> Option<EnhancedCode> {
    reply.enhanced.map(|code| EnhancedCode(code.0, code.1, code.2))
}

/// The stage in the words of outcomes.
pub fn stage(stage: postrider_smtp::Stage) -> Stage {
    use postrider_smtp::Stage as At;
    match stage {
        At::Connect | At::Greeting => Stage::Connect,
        At::Tls => Stage::Tls,
        At::Hello => Stage::Hello,
        At::Auth => Stage::Auth,
        At::MailFrom => Stage::MailFrom,
        At::RcptTo => Stage::RcptTo,
        At::Data => Stage::Data,
        At::Body => Stage::Body,
    }
}
