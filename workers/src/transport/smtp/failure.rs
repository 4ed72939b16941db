//! A conversation that did not go on as hoped: what happened, and what it means for the message.

use std::{io, time::Duration};

use super::reply::Garbage;
use crate::{
    decide::classify::{Event, Handover, Verdict, verdict},
    outcome::{Answer, Class, Outcome, Refusal, Stage},
    transport::local,
};

/// Stands for whatever a relay says to AUTH.
const AUTH_REFUSED: &str = "the relay refused the login";

/// What can happen instead of a reply.
#[derive(Debug)]
pub enum Trouble {
    /// The relay closed the connection.
    Closed,
    /// The connection failed.
    Io(io::Error),
    /// Nothing came in time.
    TimedOut(Duration),
    /// What came is no reply, or none that was asked for.
    Garbage(Garbage),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

impl From<Garbage> for Trouble {
    fn from(garbage: Garbage) -> Self {
        Self::Garbage(garbage)
    }
}

/// Why the conversation cannot go on.
#[derive(Debug)]
pub struct Failure {
    /// What it means for the message.
    pub verdict: Verdict,
    /// What was said, or what happened.
    pub answer: Answer,
    /// The connection went away, rather than the relay saying something or staying silent.
    pub is_lost: bool,
}

impl Failure {
    /// No usable reply came.
    pub fn trouble(stage: Stage, trouble: &Trouble, handover: Handover) -> Self {
        let (event, text) = match trouble {
            Trouble::Closed => (Event::Closed, "the relay closed the connection".to_owned()),
            Trouble::Io(error) if local::is_local(error) => (Event::Local, error.to_string()),
            Trouble::Io(error) => (Event::Closed, error.to_string()),
            Trouble::TimedOut(limit) => (Event::TimedOut, format!("the relay did not answer within {limit:?}")),
            Trouble::Garbage(garbage) => (Event::Garbage, garbage.to_string()),
        };
        let is_lost = event == Event::Closed;
        Self { verdict: verdict(stage, event, handover), answer: Answer::local(stage, &text), is_lost }
    }

    /// A reply came, and it is not the one that was hoped for. Of one to AUTH only the codes are kept: relays repeat there what they were sent.
    pub fn reply(mut answer: Answer, handover: Handover) -> Self {
        let event =
            Event::Reply { code: answer.code.unwrap_or_default(), enhanced: answer.enhanced, text: &answer.text };
        let verdict = verdict(answer.stage, event, handover);
        if answer.stage == Stage::Auth {
            answer.text = AUTH_REFUSED.to_owned();
        }
        Self { verdict, answer, is_lost: false }
    }

    /// We refuse to go on.
    pub fn local(stage: Stage, class: Class, text: &str) -> Self {
        Self { verdict: Verdict::Refused(class), answer: Answer::local(stage, text), is_lost: false }
    }

    /// As the end of the attempt, for all recipients.
    pub fn into_outcome(self) -> Outcome {
        match self.verdict {
            Verdict::Refused(class) => Outcome::Refused {
                refusal: Refusal { class, answer: self.answer, retry_after: None },
                recipients: Vec::new(),
            },
            Verdict::Unknown => Outcome::Unknown(self.answer),
        }
    }

    /// As the refusal of one recipient or of the message; `None` when it is not known to be refused.
    pub fn into_refusal(self) -> Option<Refusal> {
        match self.verdict {
            Verdict::Refused(class) => Some(Refusal { class, answer: self.answer, retry_after: None }),
            Verdict::Unknown => None,
        }
    }
}
