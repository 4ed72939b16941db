//! The small fields of a job: identifiers, lane, tenant, header names and values, tags.

use std::{borrow::Cow, fmt, str::FromStr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a field was refused. The texts end up in the `dead` queue, so they never quote the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The tenant does not match its pattern.
    #[error("a tenant is 1 to 64 characters of a-z, 0-9, dot, underscore and hyphen")]
    Tenant,
    /// The idempotency key does not match its pattern.
    #[error("an idempotency key is 1 to 256 visible ASCII characters")]
    IdempotencyKey,
    /// The subject holds a control character.
    #[error("the subject holds a control character (a line break, for example)")]
    SubjectControl,
    /// The subject is too long.
    #[error("the subject has more than {0} octets")]
    SubjectLength(usize),
    /// The header name is not an RFC 5322 field name.
    #[error("a header name is 1 to 76 visible ASCII characters without a colon")]
    HeaderName,
    /// The header is written by Postrider itself.
    #[error("the header `{0}` is set by Postrider or has a field of its own")]
    HeaderStructural(String),
    /// The header value holds CR, LF, NUL or another control character.
    #[error("a header value holds a control character (a line break, for example)")]
    HeaderControl,
    /// The header is too long.
    #[error("a header has more than {0} octets")]
    HeaderLength(usize),
    /// A tag does not match its pattern.
    #[error("a tag is 1 to 64 characters without control characters")]
    Tag,
    /// A metadata key does not match its pattern.
    #[error("a metadata key is 1 to 64 characters of A-Z, a-z, 0-9, dot, underscore and hyphen")]
    MetadataKey,
    /// A metadata value is too long or holds a control character.
    #[error("a metadata value has at most 1,024 octets and no control characters")]
    MetadataValue,
}

/// The identity of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(transparent)]
pub struct JobId(#[schemars(with = "UuidText")] pub Uuid);

/// A UUID.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub(crate) struct UuidText(
    #[schemars(extend("format" = "uuid"))]
    #[expect(dead_code, reason = "shapes the JSON Schema only")]
    String,
);

impl JobId {
    /// A new identifier (UUID version 7: its order is the order of creation).
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// When it was made, where it says so (UUID version 7).
    pub fn time(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp().filter(|_| self.0.get_version_num() == 7)?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Which of the two lanes a job travels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Somebody waits for this mail: receipts, one-time codes.
    #[default]
    Transactional,
    /// Mail to many that can wait: newsletters, announcements.
    Bulk,
}

impl Lane {
    /// Both lanes, the more urgent one first.
    pub const ALL: [Self; 2] = [Self::Transactional, Self::Bulk];

    /// The name used on the wire, in queue names and in telemetry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Lane {
    type Err = UnknownLane;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == text).ok_or(UnknownLane)
    }
}

/// The text names no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lane is `transactional` or `bulk`")]
pub struct UnknownLane;

/// Whose mail it is, where one installation serves several. `[a-z0-9._-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Box<str>);

impl Tenant {
    /// The tenant of jobs that name none.
    pub const DEFAULT: &'static str = "default";

    /// Parses a tenant name.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
        if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(FieldError::Tenant)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sender's own identity for a job; with the tenant it decides what "the same job" is. 1 to 256 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// Parses a key.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        if (1..=256).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(FieldError::IdempotencyKey)
        }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The subject as it is sent: line ends in front and behind, with the blanks around them, mean nothing, and a tab is a blank. No other control character
/// may stand in it, a line break between two words least of all; it has at most `octets_max` octets.
pub fn clean_subject(text: &str, octets_max: usize) -> Result<Cow<'_, str>, FieldError> {
    const LINE_ENDS: [char; 2] = ['\r', '\n'];
    let mut subject = text;
    let start = subject.len() - subject.trim_start().len();
    if subject[..start].contains(LINE_ENDS) {
        subject = &subject[start..];
    }
    let end = subject.trim_end().len();
    if subject[end..].contains(LINE_ENDS) {
        subject = &subject[..end];
    }
    if subject.chars().any(|c| c.is_control() && c != '\t') {
        return Err(FieldError::SubjectControl);
    }
    if subject.len() > octets_max {
        return Err(FieldError::SubjectLength(octets_max));
    }
    Ok(if subject.contains('\t') { Cow::Owned(subject.replace('\t', " ")) } else { Cow::Borrowed(subject) })
}

/// An extra header of a job: never one that Postrider writes itself, never with a line break.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: Box<str>,
    value: Box<str>,
}

/// Headers that Postrider writes, that only a mail server may write, or that have a field of their own in the job.
const STRUCTURAL: [&str; 16] = [
    "from",
    "sender",
    "to",
    "cc",
    "bcc",
    "reply-to",
    "subject",
    "date",
    "message-id",
    "mime-version",
    "dkim-signature",
    "received",
    "return-path",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "authentication-results",
];
const STRUCTURAL_PREFIXES: [&str; 3] = ["content-", "resent-", "arc-"];

impl Header {
    /// Checks a header. `octets_max` is the longest one, name and colon included.
    pub fn parse(name: &str, value: &str, octets_max: usize) -> Result<Self, FieldError> {
        let fits = |c: u8| c.is_ascii_graphic() && c != b':';
        if !(1..=76).contains(&name.len()) || !name.bytes().all(fits) {
            return Err(FieldError::HeaderName);
        }
        let lower = name.to_ascii_lowercase();
        if STRUCTURAL.contains(&lower.as_str()) || STRUCTURAL_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
            return Err(FieldError::HeaderStructural(name.to_owned()));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(FieldError::HeaderControl);
        }
        if name.len() + 2 + value.len() > octets_max {
            return Err(FieldError::HeaderLength(octets_max));
        }
        Ok(Self { name: name.into(), value: value.into() })
    }

    /// The name, as the sender wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value, unencoded.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: [{} octets]", self.name, self.value.len())
    }
}

/// Checks a tag.
pub fn check_tag(text: &str) -> Result<(), FieldError> {
    let length = text.chars().count();
    if (1..=64).contains(&length) && !text.chars().any(char::is_control) { Ok(()) } else { Err(FieldError::Tag) }
}

/// Checks one entry of a job's metadata.
pub fn check_metadata(key: &str, value: &str) -> Result<(), FieldError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    if !(1..=64).contains(&key.len()) || !key.bytes().all(fits) {
        return Err(FieldError::MetadataKey);
    }
    if value.len() > 1024 || value.chars().any(char::is_control) {
        return Err(FieldError::MetadataValue);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structural_headers_are_refused_in_any_case() {
        for name in ["From", "MESSAGE-ID", "Content-Type", "content-x", "DKIM-Signature", "Received", "Return-Path"] {
            assert_eq!(Header::parse(name, "x", 998), Err(FieldError::HeaderStructural(name.to_owned())));
        }
        assert!(Header::parse("X-Campaign", "x", 998).is_ok());
        assert!(Header::parse("In-Reply-To", "<1@x.test>", 998).is_ok());
    }

    #[test]
    fn a_header_cannot_carry_a_second_header() {
        for value in ["x\r\nBcc: y", "x\ny", "x\ry", "x\0y"] {
            assert_eq!(Header::parse("X-A", value, 998), Err(FieldError::HeaderControl));
        }
        for name in ["X-A:", "X A", "X-A\r\nBcc", "", "Ü"] {
            assert_eq!(Header::parse(name, "x", 998), Err(FieldError::HeaderName));
        }
        assert_eq!(Header::parse("X-A", &"x".repeat(994), 998), Err(FieldError::HeaderLength(998)));
    }

    #[test]
    fn tenants_and_keys_keep_to_their_patterns() {
        assert!(Tenant::parse("shop-1.eu_west").is_ok());
        for bad in ["", "Shop", "a b", "a\n", &"x".repeat(65)] {
            assert_eq!(Tenant::parse(bad), Err(FieldError::Tenant));
        }
        assert!(IdempotencyKey::parse("order:4711/receipt").is_ok());
        for bad in ["", "a b", "a\n", "é", &"x".repeat(257)] {
            assert_eq!(IdempotencyKey::parse(bad), Err(FieldError::IdempotencyKey));
        }
    }
}
