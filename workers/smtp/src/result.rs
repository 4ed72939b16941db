//! A message, and what became of it.

use postrider_schemas::EmailAddress;

use crate::{body::has_eight_bit_header, failure::Failure, reply::Reply};

/// A message and its envelope.
#[derive(Clone, Copy)]
pub struct Mail<'a> {
    /// The envelope sender, to which bounces go; `None` is the null sender `<>`.
    pub from: Option<&'a EmailAddress>,
    /// The envelope recipients, at least one. Replies name them by their position here.
    pub recipients: &'a [&'a EmailAddress],
    /// The MIME message with CRLF line ends. Copied only where it must be changed for the wire.
    pub message: &'a [u8],
}

impl Mail<'_> {
    /// The envelope has an international address, or the header one of those who are not served now.
    pub(crate) fn needs_smtputf8(self) -> bool {
        self.from.into_iter().chain(self.recipients.iter().copied()).any(EmailAddress::needs_smtputf8)
            || has_eight_bit_header(self.message)
    }
}

/// One recipient that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientReply {
    /// Position in [`Mail::recipients`].
    pub index: usize,
    /// What the server said to its RCPT.
    pub reply: Reply,
}

/// What became of a message in one transaction.
#[derive(Debug)]
#[must_use = "it says whether the message was taken"]
pub enum Delivery {
    /// The server took the message for every recipient but these.
    Accepted {
        /// The answer to the final dot.
        reply: Reply,
        /// The others.
        refused: Vec<RecipientReply>,
    },
    /// The server refused every recipient, so the message was not sent.
    AllRefused(Vec<RecipientReply>),
    /// The message was certainly not taken for anybody.
    NotTaken(Failure),
    /// The final dot may have left and no answer was seen: the message may have been taken.
    Unknown(Failure),
    /// The permission to submit was denied. The message was not sent.
    Withdrawn,
}

/// What is known about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// Not handed over, and no server refused it.
    NotSent,
    /// The server refused it, or every recipient.
    Refused,
    /// The server took it.
    Accepted,
    /// It may have been taken.
    Unknown,
}

impl Delivery {
    /// What is known about the message.
    pub fn state(&self) -> MessageState {
        match self {
            Self::Accepted { .. } => MessageState::Accepted,
            Self::AllRefused(_) => MessageState::Refused,
            Self::NotTaken(failure) if failure.refusal().is_some() => MessageState::Refused,
            Self::NotTaken(_) | Self::Withdrawn => MessageState::NotSent,
            Self::Unknown(_) => MessageState::Unknown,
        }
    }
}

/// What may become of a session after a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// Every reply was read; it may serve again.
    Reusable,
    /// Something was refused; it may serve again once RSET was answered.
    NeedsReset,
    /// It is of no further use.
    Unusable,
    /// The server had given the idle connection up before it saw the transaction: nothing was taken, another session may be tried. With a
    /// reply in the delivery this is a guess: its first word was 421, which may be about the message's sender too.
    Stale,
    /// The server left in the middle of the envelope: nothing was taken.
    Cut(Cut),
}

/// How far an envelope came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Recipients that were refused until then.
    pub refused: Vec<RecipientReply>,
    /// How many had an answer.
    pub answered: usize,
    /// The connection went away, or nothing more came, without a word.
    pub is_gone: bool,
    /// It was silence.
    pub is_silent: bool,
}
