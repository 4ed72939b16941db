//! A session that did not go on as hoped: where, and what happened instead.

use std::{fmt, io, time::Duration};

use crate::reply::{Garbage, Reply};

/// Where in a session something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Name resolution and TCP connect.
    Connect,
    /// The server's greeting.
    Greeting,
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
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Tls => "TLS",
            Self::Hello => "EHLO",
            Self::Auth => "AUTH",
            Self::MailFrom => "MAIL FROM",
            Self::RcptTo => "RCPT TO",
            Self::Data => "DATA",
            Self::Body => "message",
        })
    }
}

/// Why a session, or a message, cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {cause}")]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// What happened.
    #[source]
    pub cause: Cause,
}

/// What happened instead of the reply that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Another reply.
    #[error("the relay answered {0}")]
    Reply(Reply),
    /// The server closed the connection.
    #[error("the relay closed the connection")]
    Closed,
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("the relay did not answer within {0:?}")]
    TimedOut(Duration),
    /// What came is no reply, or none that was asked for.
    #[error("{0}")]
    Garbage(#[from] Garbage),
    /// Settings and server do not fit: a certificate, a missing STARTTLS or AUTH. It stays so until a person changes something.
    #[error("{0}")]
    Setup(String),
    /// The server cannot carry this message, found before it was asked.
    #[error("{0}")]
    Unsupported(String),
    /// The message has no recipient.
    #[error("the message has no recipient")]
    NoRecipient,
    /// The permission to submit was not there when the server waited for the message.
    #[error("the permission to submit did not come in time")]
    PermissionLate,
}

impl Cause {
    /// Of reading or writing.
    pub(crate) fn io(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

impl Failure {
    pub(crate) fn new(stage: Stage, cause: impl Into<Cause>) -> Self {
        Self { stage, cause: cause.into() }
    }

    /// The relay, as it is set up, needs a person.
    pub(crate) fn setup(stage: Stage, text: impl Into<String>) -> Self {
        Self { stage, cause: Cause::Setup(text.into()) }
    }

    /// Another reply came than was hoped for. Servers repeat in their reply to AUTH what they were sent, so its text is not shown.
    pub(crate) fn reply(stage: Stage, mut reply: Reply) -> Self {
        reply.is_secret = stage == Stage::Auth;
        Self { stage, cause: Cause::Reply(reply) }
    }

    /// The negative reply (4xx or 5xx) that it was.
    pub fn refusal(&self) -> Option<&Reply> {
        match &self.cause {
            Cause::Reply(reply) if (400..600).contains(&reply.code) => Some(reply),
            _ => None,
        }
    }

    /// The connection went away without a word.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.cause, Cause::Closed | Cause::Io(_))
    }

    /// Nothing came.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.cause, Cause::TimedOut(_))
    }

    pub(crate) fn is_code(&self, wanted: u16) -> bool {
        matches!(&self.cause, Cause::Reply(reply) if reply.code == wanted)
    }
}
