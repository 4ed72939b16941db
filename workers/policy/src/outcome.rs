//! How an attempt ended. Every transport reports an [`Outcome`]; [`decide`](super::decision::decide) turns it into a decision.
//!
//! Nothing here does IO, and nothing here holds a recipient's address: recipients are named by their position in the
//! job's envelope, and the text of an answer is cleaned of addresses when it is made.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::redact;

/// How one attempt at one job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The transport took the message for at least one recipient. `refused` lists the others.
    Accepted {
        /// What the transport said when it took the message.
        receipt: Receipt,
        /// Recipients that the transport did not take, each with its own class.
        refused: Vec<RecipientRefusal>,
    },
    /// The transport certainly did not take the message for anybody.
    Refused {
        /// The refusal of the message as a whole, or the mildest of the recipients' refusals.
        refusal: Refusal,
        /// One entry per recipient when the transport refused them one by one; empty when `refusal` is about all of them.
        recipients: Vec<RecipientRefusal>,
    },
    /// The message was handed over, at least in part, and no answer was seen: it may have been sent.
    Unknown(Answer),
    /// Nothing was handed over because the right to send was lost meanwhile (another worker took the job over).
    LostClaim,
}

impl Outcome {
    /// The outcome of a call that several jobs share, where its answer is about the call and not about each of them: all clones of this are one
    /// answer, see [`Answer::hear`].
    #[must_use]
    pub fn of_all(mut self) -> Self {
        if let Self::Refused { refusal, .. } = &mut self {
            refusal.answer.shared = Some(SharedAnswer::default());
        }
        self
    }
}

/// Proof that a transport took a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The transport's last answer, for example `250 2.0.0 Ok: queued as 4Xk`.
    pub answer: Answer,
}

/// A message, or one recipient, that a transport certainly did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of failure it is.
    pub class: Class,
    /// What the transport said.
    pub answer: Answer,
    /// How long the transport asks to be left alone, where it says so.
    pub retry_after: Option<Duration>,
}

/// One recipient that the transport refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientRefusal {
    /// Position in the job's envelope recipients (to, then cc, then bcc, duplicates left out), from 0.
    pub index: usize,
    /// Why.
    pub refusal: Refusal,
}

/// The class of a refusal. It decides what happens next, see [`decide`](super::decision::decide).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// These recipients will never be accepted. Permanent.
    Recipient,
    /// This message will never be accepted. Permanent.
    Message,
    /// The message cannot be made: its template takes more time or memory than it may. Permanent, and no transport was involved.
    TemplateLimit,
    /// This transport cannot carry the message, found before anything was sent. Another transport may.
    Unsupported,
    /// The transport needs a person (credentials, certificate, a missing extension). Burns no retry of the job.
    Config,
    /// The transport needs a person before it takes mail of this sender (an address or domain that is not verified), or relays to these
    /// recipients for us. Other mail is not affected. Burns no retry of the job.
    Sender,
    /// The transport asks for a slower pace.
    Throttled,
    /// The transport's quota is used up.
    Quota,
    /// The transport is not there just now: nobody answers, or it lets nobody in for the moment. Nothing was tried, so no try is used up.
    Unavailable,
    /// Anything that may be different next time; certainly not taken.
    Transient,
    /// This machine could not do its part (no file descriptor, port or memory left; a socket that is not allowed). Neither the mail's fault nor the
    /// transport's: burns no retry of the job.
    Local,
}

impl Class {
    /// True where the same attempt can never succeed.
    pub fn is_permanent(self) -> bool {
        matches!(self, Self::Recipient | Self::Message | Self::TemplateLimit)
    }

    /// The name used in logs, events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recipient => "recipient",
            Self::Message => "message",
            Self::TemplateLimit => "template_limit",
            Self::Unsupported => "unsupported",
            Self::Config => "config",
            Self::Sender => "sender",
            Self::Throttled => "throttled",
            Self::Quota => "quota",
            Self::Unavailable => "unavailable",
            Self::Transient => "transient",
            Self::Local => "local",
        }
    }
}

/// Where in the conversation with a transport something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Making the message; no transport was involved.
    Compose,
    /// Name resolution, TCP connect, and the server's greeting.
    Connect,
    /// STARTTLS or the TLS handshake.
    Tls,
    /// EHLO or HELO.
    Hello,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    MailFrom,
    /// RCPT TO.
    RcptTo,
    /// DATA, up to the server's 354.
    Data,
    /// The message itself up to the answer to the final dot.
    Body,
    /// A call of a Web API.
    Call,
}

impl Stage {
    /// Whether nothing was said of any mail yet.
    pub fn is_before_the_envelope(self) -> bool {
        matches!(self, Self::Connect | Self::Tls | Self::Hello | Self::Auth)
    }

    /// Whether it is a part of one message's own transaction.
    pub fn is_of_a_message(self) -> bool {
        matches!(self, Self::MailFrom | Self::RcptTo | Self::Data | Self::Body)
    }

    /// The name used in logs, events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compose => "compose",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Hello => "hello",
            Self::Auth => "auth",
            Self::MailFrom => "mail_from",
            Self::RcptTo => "rcpt_to",
            Self::Data => "data",
            Self::Body => "body",
            Self::Call => "call",
        }
    }
}

/// An enhanced status code (RFC 3463), for example 5.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What is to be made of an answer beside its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// Nothing.
    #[default]
    Plain,
    /// No known word says that it is about the recipient or the message alone: given to several recipients with nobody accepted in between it is
    /// about us, and the transport pauses.
    Unexplained,
    /// There were too many recipients in one transaction.
    TooManyRecipients,
    /// No answer at all: the recipient was left for the next transaction.
    NotAsked,
    /// It does not come from the API that was called.
    NotTheApi,
}

/// What a transport answered, or what went wrong instead of an answer. Safe to log: see [`Answer::new`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where it happened.
    pub stage: Stage,
    /// The reply code, absent where there was no reply.
    pub code: Option<u16>,
    /// The enhanced status code, where the reply had one.
    pub enhanced: Option<EnhancedCode>,
    /// The text, at most 200 bytes, one line, without addresses.
    pub text: String,
    /// What is to be made of it beside its class. Is not written down.
    #[serde(skip)]
    pub mark: Mark,
    /// Where several jobs have this very answer: what heard it. Is not written down.
    #[serde(skip)]
    shared: Option<SharedAnswer>,
}

impl Answer {
    /// Longest text that is kept, in bytes.
    pub const TEXT_MAX: usize = 200;

    /// Keeps at most [`Self::TEXT_MAX`] bytes of `text`, on one line, with everything replaced that looks like an address or is a secret:
    /// servers echo the recipient and what they were sent in their refusals, and an answer ends up in logs and events.
    pub fn new(stage: Stage, code: Option<u16>, enhanced: Option<EnhancedCode>, text: &str) -> Self {
        let text = without_addresses(&redact::clean(text));
        Self { stage, code, enhanced, text, mark: Mark::Plain, shared: None }
    }

    /// Something that went wrong on our side of the conversation.
    pub fn local(stage: Stage, text: &str) -> Self {
        Self::new(stage, None, None, text)
    }

    /// The same answer with this mark.
    #[must_use]
    pub fn marked(self, mark: Mark) -> Self {
        Self { mark, ..self }
    }

    /// Whether the answer counts for `what` when this job hears it: always where it is the job's own; where several jobs have it, as members of one
    /// call, for the first one that asks.
    pub fn hear(&self, what: &str) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.hear(what))
    }
}

/// What heard an answer that several jobs have. It ends with the last of them.
#[derive(Debug, Clone, Default)]
struct SharedAnswer(Arc<Mutex<BTreeSet<String>>>);

impl SharedAnswer {
    fn hear(&self, what: &str) -> bool {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(what.to_owned())
    }
}

/// One call's, not one that reads the same.
impl PartialEq for SharedAnswer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedAnswer {}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.stage.as_str())?;
        if let Some(code) = self.code {
            write!(f, "{code} ")?;
        }
        if let Some(enhanced) = self.enhanced {
            write!(f, "{enhanced} ")?;
        }
        f.write_str(&self.text)
    }
}

fn without_addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(Answer::TEXT_MAX));
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        let word = if word.len() > 1 && word.contains('@') { "[address]" } else { word };
        let needed = word.len() + usize::from(!out.is_empty());
        if out.len() + needed > Answer::TEXT_MAX {
            let mut room = (Answer::TEXT_MAX - out.len()).saturating_sub(1);
            while !word.is_char_boundary(room.min(word.len())) {
                room -= 1;
            }
            if room > 0 {
                if !out.is_empty() {
                    out.push(' ');
                }
                out.push_str(&word[..room.min(word.len())]);
            }
            break;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Answer::local(Stage::RcptTo, text).text, expected);
    }

    #[test]
    fn an_answer_names_no_address() {
        check("<zoe@example.org>: Recipient address rejected", "[address] Recipient address rejected");
        check("user=zoe@example.org unknown", "[address] unknown");
    }

    #[test]
    fn an_answer_is_one_line() {
        check("first\r\nsecond\tthird\0", "first second third");
    }

    #[test]
    fn an_answer_that_several_jobs_have_counts_once_for_each_thing_and_their_own_ones_each() {
        let answer = || Answer::new(Stage::Call, Some(429), None, "slowly");
        let refused = || {
            let refusal = Refusal { class: Class::Throttled, answer: answer(), retry_after: None };
            Outcome::Refused { refusal, recipients: Vec::new() }
        };
        let heard = |outcome: &Outcome, what: &str| match outcome {
            Outcome::Refused { refusal, .. } => refusal.answer.hear(what),
            other => panic!("{other:?}"),
        };
        let (of_all, of_another_call) = (refused().of_all(), refused().of_all());
        let jobs = [of_all.clone(), of_all];
        assert_eq!(jobs.each_ref().map(|one| heard(one, "transport:a")), [true, false]);
        assert_eq!(jobs.each_ref().map(|one| heard(one, "group:a:b")), [true, false]);
        assert!(heard(&of_another_call, "transport:a"));
        let own = refused();
        assert_eq!([&own, &own.clone()].map(|one| heard(one, "transport:a")), [true, true]);
    }

    #[test]
    fn an_answer_is_bounded_and_stays_utf8() {
        let text = Answer::local(Stage::Body, &"é".repeat(300)).text;
        assert!(text.len() <= Answer::TEXT_MAX && text.len() > 150, "{}", text.len());
        let words = Answer::local(Stage::Body, &"word ".repeat(300)).text;
        assert!(words.len() <= Answer::TEXT_MAX, "{}", words.len());
    }
}
