//! A conversation that did not go on as hoped: what happened, and what it means for the message.

use std::{io, time::Duration};

use super::reply::Garbage;
use crate::{
    decide::{
        answers::Answers,
        classify::{Event, Handover, Verdict, verdict},
    },
    outcome::{Answer, Class, Mark, Outcome, Refusal, Stage},
};

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

impl Failure {
    /// No usable reply came.
    pub fn trouble(stage: Stage, trouble: &Trouble, handover: Handover) -> Self {
        let (event, text) = match trouble {
            Trouble::Closed => (Event::Closed, "the relay closed the connection".to_owned()),
            Trouble::Io(error) => (Event::Closed, error.to_string()),
            Trouble::TimedOut(limit) => (Event::TimedOut, format!("the relay did not answer within {limit:?}")),
            Trouble::Garbage(garbage) => (Event::Garbage, garbage.to_string()),
        };
        let kind = match trouble {
            Trouble::Closed | Trouble::Io(_) => Kind::Lost,
            Trouble::TimedOut(_) => Kind::Silent,
            Trouble::Garbage(_) => Kind::Garbage,
        };
        let verdict = verdict(&Answers::default(), stage, event, handover);
        Self { verdict, answer: Answer::local(stage, &text), kind }
    }

    /// A reply came, and it is not the one that was hoped for. `text` is all of it, where an answer keeps a part.
    pub fn reply(answers: &Answers, answer: Answer, text: &str, handover: Handover) -> Self {
        let event = Event::Reply { code: answer.code.unwrap_or_default(), enhanced: answer.enhanced, text };
        Self { verdict: verdict(answers, answer.stage, event, handover), answer, kind: Kind::Reply }
    }

    /// We refuse to go on.
    pub fn local(stage: Stage, class: Class, text: &str) -> Self {
        Self { verdict: Verdict::Refused(class, Mark::Plain), answer: Answer::local(stage, text), kind: Kind::Local }
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
            Verdict::Refused(class, mark) => Outcome::Refused {
                refusal: Refusal { class, answer: self.answer.marked(mark), retry_after: None },
                recipients: Vec::new(),
            },
            Verdict::Unknown => Outcome::Unknown(self.answer),
        }
    }

    /// As the refusal of one recipient or of the message; `None` when it is not known to be refused.
    pub fn into_refusal(self) -> Option<Refusal> {
        match self.verdict {
            Verdict::Refused(class, mark) => {
                Some(Refusal { class, answer: self.answer.marked(mark), retry_after: None })
            }
            Verdict::Unknown => None,
        }
    }
}
