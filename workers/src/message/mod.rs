//! Job -> MIME. A pure function of the job and the time: every attempt of a job has the same bytes, the `Date` line apart. Lettre's message builder
//! lays out headers and parts; what goes into them is encoded here wherever its own encoder would bend content or write an illegal line (see [`header_encoding`]
//! and [`encoding`]). No IO, no clock, no dice, and no signature: DKIM is the relay's.

use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};
use lettre::Address;
use postrider_schemas::{address::EmailAddress, fields::FieldError, job::Job, raw::RawMessage};
use postrider_smtp::has_eight_bit_header;

mod bodies;
mod encoding;
mod header_encoding;
mod headers;
pub mod outgoing;
mod structured;
pub mod template;

/// A job as it goes over the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Composed {
    /// The message of RFC 5322: CRLF only, lines of at most 998 octets, ends with CRLF, 7-bit clean unless [`Self::needs_smtputf8`]; a message that its
    /// producer made is as that one made it. Not dot-stuffed.
    pub message: Vec<u8>,
    /// The envelope's recipients. The index is that of [`Job::recipients`].
    pub recipients: Vec<Address>,
    /// The envelope's sender.
    pub from: Address,
    /// The header holds UTF-8, because an address in it has a part before the `@` that is not ASCII: the session must offer SMTPUTF8 and 8BITMIME
    /// (RFC 6531), whoever is served.
    pub needs_smtputf8: bool,
}

/// Why a job cannot become a mail, now or on any later attempt. Names variables, parts and lines of templates; never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// A template does not compile, names what is missing, or fails or does not end while it runs.
    #[error("the {part} template{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Template {
        /// `subject`, `text` or `html`.
        part: &'static str,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong, with the name of a missing variable.
        reason: String,
    },
    /// A template made more than a mail may hold.
    #[error("the {part} template makes more than {max} octets")]
    TooLarge {
        /// `subject`, `text` or `html`.
        part: &'static str,
        /// The limit, in octets.
        max: usize,
    },
    /// A template takes more time or memory than it may.
    #[error("the {}template breaks a limit: {reason}", part.map(|part| format!("{part} ")).unwrap_or_default())]
    Limit {
        /// `subject`, `text` or `html`, where it is known.
        part: Option<&'static str>,
        /// Which limit.
        reason: String,
    },
    /// The subject is not one line of text once its template is rendered.
    #[error("after its template is rendered, {0}")]
    Subject(FieldError),
    /// The message builder refused. No valid job is known to cause this.
    #[error("the message cannot be put together: {0}")]
    Assemble(String),
}

impl ComposeError {
    /// True where a template asks for more than it may have.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Limit { .. })
    }
}

/// Writes the mail that `job` asks for, dated `now`. Its template is rendered here: for jobs of our own, see [`crate::render`].
///
/// Only templates can fail: everything else about a job has been checked when it was parsed.
pub fn compose(job: &Job, now: Timestamp) -> Result<Composed, ComposeError> {
    mime(job, &template::render(job)?, now)
}

fn mime(job: &Job, content: &template::Rendered<'_>, now: Timestamp) -> Result<Composed, ComposeError> {
    let recipients: Vec<Address> =
        job.recipients().iter().map(|recipient| envelope_address(recipient.address)).collect();
    let from = envelope_address(job.from().address());
    if let Some(raw) = job.raw() {
        let message = complete(raw, &job.message_id(), now);
        return Ok(Composed { message, needs_smtputf8: raw.has_eight_bit_header(), recipients, from });
    }
    let builder = headers::builder(job, &content.subject, now, &from, &recipients)?;
    let message = bodies::assemble(builder, job, content)?;
    Ok(Composed { needs_smtputf8: has_eight_bit_header(&message), message, recipients, from })
}

/// A whole message as it is delivered. Every mail has an id and a date (RFC 5322 3.6): where its producer left one out, it stands in front.
fn complete(raw: &RawMessage, id: &str, now: Timestamp) -> Vec<u8> {
    let delivered = raw.delivered();
    let lacks = |name| raw.header(name).next().is_none();
    let mut message = Vec::with_capacity(delivered.len() + 128);
    if lacks("message-id") {
        message.extend_from_slice(format!("Message-ID: {id}\r\n").as_bytes());
    }
    // Only a year beyond 9999 has no form, and no clock of ours says one.
    if let Some(date) = rfc2822::to_string(&now.to_zoned(TimeZone::UTC)).ok().filter(|_| lacks("date")) {
        message.extend_from_slice(format!("Date: {date}\r\n").as_bytes());
    }
    message.extend_from_slice(&delivered);
    message
}

/// `EmailAddress` holds a dot-atom and an ASCII host name by construction. Lettre's own check would run again what was checked at parsing, and
/// refuses some of what RFC 6531 allows.
fn envelope_address(address: &EmailAddress) -> Address {
    Address::new_dangerous(address.local(), address.domain().as_str())
}
