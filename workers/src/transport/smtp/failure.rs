//! A conversation that did not go on as hoped: what happened, and what it means for the message.

use std::{io, time::Duration};

use super::reply::Garbage;
use crate::{
    policy::{
        answers::Answers,
        classify::{Classification, DataPhase, SmtpEvent, classify},
        outcome::{Answer, Class, Mark, Outcome, Refusal, Stage},
    },
    transport::local,
};

/// Stands for whatever a relay says to AUTH.
const AUTH_REFUSED: &str = "the relay refused the login";

/// What can happen instead of a reply.
#[derive(Debug)]
pub enum SmtpTrouble {
    /// The relay closed the connection.
    Closed,
    /// The connection failed.
    Io(io::Error),
    /// Nothing came in time.
    TimedOut(Duration),
    /// What came is no reply, or none that was asked for.
    Garbage(Garbage),
}

impl From<io::Error> for SmtpTrouble {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

impl From<Garbage> for SmtpTrouble {
    fn from(garbage: Garbage) -> Self {
        Self::Garbage(garbage)
    }
}

/// Why the conversation cannot go on.
#[derive(Debug)]
pub struct SmtpFailure {
    /// What it means for the message.
    pub verdict: Classification,
    /// What was said, or what happened.
    pub answer: Answer,
    /// How it came to an end.
    pub kind: Kind,
}

/// How a conversation came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By a reply.
    Reply,
    /// The connection went away.
    Lost,
    /// The relay said nothing.
    Silent,
    /// It said something that is no reply.
    Garbage,
    /// We refused to go on.
    Local,
}

impl SmtpFailure {
    /// No usable reply came.
    pub fn trouble(stage: Stage, trouble: &SmtpTrouble, handover: DataPhase) -> Self {
        let (event, text) = match trouble {
            SmtpTrouble::Closed => (SmtpEvent::Closed, "the relay closed the connection".to_owned()),
            SmtpTrouble::Io(error) if local::is_local(error) => (SmtpEvent::Local, error.to_string()),
            SmtpTrouble::Io(error) => (SmtpEvent::Closed, error.to_string()),
            SmtpTrouble::TimedOut(limit) => (SmtpEvent::TimedOut, format!("the relay did not answer within {limit:?}")),
            SmtpTrouble::Garbage(garbage) => (SmtpEvent::Garbage, garbage.to_string()),
        };
        let kind = match trouble {
            SmtpTrouble::Io(error) if local::is_local(error) => Kind::Local,
            SmtpTrouble::Closed | SmtpTrouble::Io(_) => Kind::Lost,
            SmtpTrouble::TimedOut(_) => Kind::Silent,
            SmtpTrouble::Garbage(_) => Kind::Garbage,
        };
        let verdict = classify(&Answers::default(), stage, event, handover);
        Self { verdict, answer: Answer::local(stage, &text), kind }
    }

    /// A reply came, and it is not the one that was hoped for. `text` is all of it, where an answer keeps a part. Of one to AUTH only the codes
    /// are kept: relays repeat there what they were sent.
    pub fn reply(answers: &Answers, mut answer: Answer, text: &str, handover: DataPhase) -> Self {
        let event = SmtpEvent::Reply { code: answer.code.unwrap_or_default(), enhanced: answer.enhanced, text };
        let verdict = classify(answers, answer.stage, event, handover);
        if answer.stage == Stage::Auth {
            answer.text = AUTH_REFUSED.to_owned();
        }
        Self { verdict, answer, kind: Kind::Reply }
    }

    /// We refuse to go on.
    pub fn local(stage: Stage, class: Class, text: &str) -> Self {
        Self {
            verdict: Classification::Refused(class, Mark::Plain),
            answer: Answer::local(stage, text),
            kind: Kind::Local,
        }
    }

    /// The same with a remark for people behind what happened.
    #[must_use]
    pub fn with_hint(mut self, hint: &str) -> Self {
        let text = format!("{}; {hint}", self.answer.text);
        self.answer = Answer::new(self.answer.stage, self.answer.code, self.answer.enhanced, &text);
        self
    }

    /// As the end of the attempt, for all recipients.
    pub fn into_outcome(self) -> Outcome {
        match self.verdict {
            Classification::Refused(class, mark) => Outcome::Refused {
                refusal: Refusal { class, answer: self.answer.marked(mark), retry_after: None },
                recipients: Vec::new(),
            },
            Classification::Unknown => Outcome::Unknown(self.answer),
        }
    }

    /// As the refusal of one recipient or of the message; `None` when it is not known to be refused.
    pub fn into_refusal(self) -> Option<Refusal> {
        match self.verdict {
            Classification::Refused(class, mark) => {
                Some(Refusal { class, answer: self.answer.marked(mark), retry_after: None })
            }
            Classification::Unknown => None,
        }
    }
}
