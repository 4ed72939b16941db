//! The wire form of a job, version 1: JSON, UTF-8. [`JobV1`] mirrors the document; [`JobV1::parse`] turns it into a [`Job`] or says
//! which field is wrong and why. No error text quotes a value: reasons travel in headers and logs.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    address::{AddressError, EmailAddress, Mailbox},
    fields::{self, FieldError, Header, IdempotencyKey, JobId, Lane, Tenant},
    job::{Attachment, Content, Job, ListUnsubscribe, Tracking},
    lenient,
    limits::JobLimits,
    payload_hash::PayloadHash,
    template::{self, TemplateLimit},
};

/// AMQP `type` of a job message.
pub const JOB_TYPE: &str = "postrider.job.v1";
/// AMQP `content_type` of a job message.
pub const JOB_CONTENT_TYPE: &str = "application/json";

/// One e-mail to send, as JSON.
//
// Also the way to make a `Job` in Rust: fill the fields and call `parse`, which makes an id where there is none.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobV1 {
    /// Identity of the job, a UUID (version 7 is best). Required on the wire; the same each time this job is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// The sender's own identity for this mail. With `tenant`: same key and same payload is the same job and is sent once; same key and
    /// another payload is a conflict and is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[\x21-\x7E]{1,256}$"))]
    pub idempotency_key: Option<String>,
    /// Whose mail it is; `default` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9._-]{1,64}$"))]
    pub tenant: Option<String>,
    /// `transactional` (default) or `bulk`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub lane: Lane,
    /// The author.
    pub from: MailboxV1,
    /// Where answers go.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::mailboxes")]
    #[schemars(with = "MailboxesV1")]
    pub reply_to: Vec<MailboxV1>,
    /// Recipients. `to`, `cc` and `bcc` together hold 1 to 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::mailboxes")]
    #[schemars(with = "MailboxesV1")]
    pub to: Vec<MailboxV1>,
    /// Recipients of a copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::mailboxes")]
    #[schemars(with = "MailboxesV1")]
    pub cc: Vec<MailboxV1>,
    /// Recipients that no header names.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::mailboxes")]
    #[schemars(with = "MailboxesV1")]
    pub bcc: Vec<MailboxV1>,
    /// The subject, one line.
    #[schemars(length(max = 998))]
    pub subject: String,
    /// The plain text body. At least one of `text`, `html` and `template` is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The HTML body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Template sources instead of bodies (MiniJinja). The subject is then a template too. A source has at most 1 MiB, 10,000 tags, 250 operators in
    /// one tag, and nests 40 deep.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::object")]
    pub template: Option<TemplateV1>,
    /// What the template may name, at most 1 MiB. A name that is missing refuses the job.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty", deserialize_with = "lenient::or_default")]
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// Extra headers. Structural ones (From, To, Date, Message-ID, Content-*, ...) are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::headers")]
    #[schemars(with = "HeadersV1")]
    pub headers: Vec<HeaderV1>,
    /// Files and inline images, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::objects")]
    #[schemars(length(max = 100))]
    pub attachments: Vec<AttachmentV1>,
    /// A few short labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::or_default")]
    #[schemars(length(max = 10), inner(length(min = 1, max = 64)))]
    pub tags: Vec<String>,
    /// Flat data of the sender, returned in events.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "lenient::texts")]
    pub metadata: BTreeMap<String, String>,
    /// Metrics asked for.
    #[serde(default, skip_serializing_if = "TrackingV1::is_default", deserialize_with = "lenient::object_or_default")]
    pub tracking: TrackingV1,
    /// How a recipient leaves the list.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::object")]
    pub list_unsubscribe: Option<ListUnsubscribeV1>,
    /// Not before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::time")]
    #[schemars(with = "Option<DateTimeText>")]
    pub send_at: Option<Timestamp>,
    /// Not after this time, RFC 3339: past it the job expires instead of arriving late.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::time")]
    #[schemars(with = "Option<DateTimeText>")]
    pub expires_at: Option<Timestamp>,
}

/// One mailbox, a list of mailboxes, or `null` for none.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shapes the JSON Schema only")]
enum MailboxesV1 {
    /// A list.
    List(#[schemars(length(max = 50))] Vec<MailboxV1>),
    /// One address, or several between commas.
    One(MailboxV1),
    /// None.
    None(()),
}

/// A list of headers, an object of names and values, or `null` for none.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shapes the JSON Schema only")]
enum HeadersV1 {
    /// A list; a name may stand several times.
    List(#[schemars(length(max = 200))] Vec<HeaderV1>),
    /// Names and values.
    Map(BTreeMap<String, HeaderValuesV1>),
    /// None.
    None(()),
}

/// The value of a header, or a list of values.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "shapes the JSON Schema only")]
enum HeaderValuesV1 {
    /// One value.
    One(String),
    /// A header for each.
    List(Vec<String>),
}

/// A time of RFC 3339, such as 2026-12-01T10:00:00Z.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub(crate) struct DateTimeText(
    #[schemars(extend("format" = "date-time"))]
    #[expect(dead_code, reason = "shapes the JSON Schema only")]
    String,
);

/// A mailbox: `"zoe@example.org"`, `"Zoë <zoe@example.org>"`, or an object.
#[derive(Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum MailboxV1 {
    /// `address` or `Name <address>`.
    Text(String),
    /// Address and name apart.
    Parts(MailboxPartsV1),
}

/// Address and display name.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailboxPartsV1 {
    /// `local@domain`; internationalised domains are accepted.
    pub address: String,
    /// The display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Default for MailboxV1 {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<&str> for MailboxV1 {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for MailboxV1 {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&Mailbox> for MailboxV1 {
    fn from(mailbox: &Mailbox) -> Self {
        Self::Parts(MailboxPartsV1 { address: mailbox.address().to_string(), name: mailbox.name().map(str::to_owned) })
    }
}

/// Template sources. At least one is needed.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateV1 {
    /// Source of the plain text body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Source of the HTML body; variables are escaped in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
}

/// An extra header.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderV1 {
    /// The name.
    pub name: String,
    /// The value, unencoded.
    pub value: String,
}

/// A file.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentV1 {
    /// The name shown to the recipient.
    pub filename: String,
    /// A media type, `application/pdf` for example.
    pub content_type: String,
    /// The content in base64 (RFC 4648 section 4, padded).
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: String,
    /// For inline images: what `cid:` links in the HTML body name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

/// Metrics asked for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrackingV1 {
    /// Count opens.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub opens: bool,
    /// Count clicks.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub clicks: bool,
}

impl TrackingV1 {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a recipient leaves the list. At least one of `url` and `mailto`.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListUnsubscribeV1 {
    /// An https address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uri"))]
    pub url: Option<String>,
    /// An address that takes unsubscribe mails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailto: Option<String>,
    /// The URL takes a POST without further questions (RFC 8058); needs `url`.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub one_click: bool,
}

/// Why bytes are not a job. Says what is wrong and where; never quotes a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is of another kind or version.
    #[error("message type `{0}` is not known here; expected `postrider.job.v1`")]
    Version(String),
    /// The encoded job is too large.
    #[error("the job has {bytes} bytes, more than the {max} allowed; put large files behind a link")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not JSON, or not of the right shape.
    #[error("field `{path}`: {reason}")]
    Json {
        /// Path of the field, `.` for the document itself.
        path: String,
        /// What serde expected there.
        reason: String,
    },
    /// A template is larger or more involved than it may be, see [`crate::template`].
    #[error("field `{path}`: {limit}")]
    Template {
        /// `subject`, `template.text`, `template.html` or `variables`.
        path: &'static str,
        /// The limit.
        limit: TemplateLimit,
    },
    /// A value breaks its rule.
    #[error("field `{path}`: {reason}")]
    Invalid {
        /// Path of the field, such as `to[2].address`.
        path: String,
        /// The rule.
        reason: String,
    },
}

/// Decodes a job from the wire.
///
/// `message_type` is the AMQP `type` property, where the producer set one.
pub fn decode(bytes: &[u8], message_type: Option<&str>, limits: &JobLimits) -> Result<Job, DecodeError> {
    if let Some(other) = message_type.filter(|kind| *kind != JOB_TYPE) {
        return Err(DecodeError::Version(without_addresses(&other.chars().take(80).collect::<String>())));
    }
    if bytes.len() > limits.bytes_max {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), max: limits.bytes_max });
    }
    let job = decode_v1(bytes)?;
    if job.id.is_none() {
        return Err(invalid("id", "is required: a UUID, the same each time this job is published"));
    }
    job.parse(limits)
}

/// Decodes the document alone, without the rules of its fields. For tools that add an `id` before [`JobV1::parse`].
pub fn decode_v1(bytes: &[u8]) -> Result<JobV1, DecodeError> {
    let document = utf8(bytes)?;
    let bytes = document.as_ref();
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(document_error("expected one job, found a list; publish each job as a message of its own"));
    }
    // Keeping track of the path costs more than the reading itself, and only an error has a use for it.
    if let Ok(job) = serde_json::from_slice(bytes) {
        return Ok(job);
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let job = serde_path_to_error::deserialize(&mut reader).map_err(|error| DecodeError::Json {
        path: without_strange_names(&error.path().to_string()),
        reason: in_plain_words(error.inner()),
    })?;
    reader.end().map_err(|error| document_error(&in_plain_words(&error)))?;
    Ok(job)
}

fn document_error(reason: &str) -> DecodeError {
    DecodeError::Json { path: ".".to_owned(), reason: reason.to_owned() }
}

/// The document in UTF-8, without a byte order mark. UTF-16 is told by its mark, or by the NUL beside the first octet.
fn utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeError> {
    let (bytes, read): (_, fn([u8; 2]) -> u16) = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => return Ok(Cow::Borrowed(rest)),
        [0xff, 0xfe, rest @ ..] | rest @ [_, 0, ..] => (rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] | rest @ [0, _, ..] => (rest, u16::from_be_bytes),
        _ => return Ok(Cow::Borrowed(bytes)),
    };
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
    match String::from_utf16(&units) {
        Ok(text) if bytes.len() % 2 == 0 => Ok(Cow::Owned(text.into_bytes())),
        _ => Err(document_error("is broken UTF-16; write the document in UTF-8")),
    }
}

/// What is wrong, without a word of the document: reasons end up in logs and events. Names of fields are shown where they look like names.
fn in_plain_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return if text.contains("surrogate") || text.contains("hex escape") || text.contains("unicode code point") {
            format!("half of a character (line {}, column {}): a text was cut within it", error.line(), error.column())
        } else {
            format!("not valid JSON: {text}")
        };
    }
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    let name = |start: &str| text.strip_prefix(start)?.split('`').next().filter(|name| is_plain(name));
    if let Some(name) = name("missing field `") {
        return format!("`{name}` is required");
    }
    if let Some(name) = name("duplicate field `") {
        return format!("`{name}` stands there twice");
    }
    if text.starts_with("unknown field `") {
        let shown = name("unknown field `").filter(|name| !name.contains(|c: char| c.is_ascii_digit())).unwrap_or("?");
        return format!("unknown field `{shown}`; `postrider schema` prints the fields of a job");
    }
    if text.starts_with("unknown variant `") {
        return "expected `transactional` or `bulk`".to_owned();
    }
    let Some((start, expected)) = text.split_once(", expected ") else {
        return if text.starts_with("expected ") {
            text.to_owned()
        } else {
            "is not of the form that a job has".to_owned()
        };
    };
    let expected = match expected.rsplit_once(", expected ").map_or(expected, |(_, expected)| expected) {
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        other if other.contains("UUID") || other.contains("uuid") => "a UUID",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    let found = start.split(':').nth(1).unwrap_or_default().trim_start();
    let kinds = [
        ("integer", "a number"),
        ("floating point", "a number"),
        ("boolean", "true or false"),
        ("string", "a text"),
        ("sequence", "a list"),
        ("map", "an object"),
        ("null", "null"),
        ("unit", "null"),
    ];
    match kinds.iter().find(|(kind, _)| text.starts_with("invalid type") && found.starts_with(kind)) {
        Some((_, kind)) => format!("expected {expected}, found {kind}"),
        None => format!("expected {expected}"),
    }
}

/// The path up to the first name that is none of ours: keys of the document are values too.
fn without_strange_names(path: &str) -> String {
    let known: Vec<&str> = path.split('.').take_while(|name| is_plain(name.trim_end_matches(']'))).collect();
    let is_whole = known.len() == path.split('.').count() || path == ".";
    if is_whole { path.to_owned() } else { [known.as_slice(), &["?"]].concat().join(".") }
}

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-[".contains(c))
        && name.chars().filter(char::is_ascii_digit).count() < 4
}

/// For what no rule above foresees.
fn without_addresses(text: &str) -> String {
    text.split(' ').map(|word| if word.contains('@') { "[address]" } else { word }).collect::<Vec<_>>().join(" ")
}

/// Encodes a job for the wire.
pub fn encode(job: &Job) -> Bytes {
    let document = JobV1::from(job);
    // A struct of strings, numbers and string-keyed maps: serde_json has nothing to refuse in it.
    Bytes::from(serde_json::to_vec(&document).unwrap_or_default())
}

fn invalid(path: impl Into<String>, reason: impl ToString) -> DecodeError {
    DecodeError::Invalid { path: path.into(), reason: reason.to_string() }
}

impl JobV1 {
    /// Checks every field and every rule between fields.
    pub fn parse(self, limits: &JobLimits) -> Result<Job, DecodeError> {
        let (to, cc, bcc) = (mailboxes(&self.to, "to")?, mailboxes(&self.cc, "cc")?, mailboxes(&self.bcc, "bcc")?);
        let reply_to = mailboxes(&self.reply_to, "reply_to")?;
        let recipients = to.len() + cc.len() + bcc.len();
        if recipients == 0 {
            return Err(invalid("to", "a job needs at least one recipient in `to`, `cc` or `bcc`"));
        }
        if recipients > limits.recipients_max {
            let max = limits.recipients_max;
            return Err(invalid(
                "to",
                format!("{recipients} recipients in `to`, `cc` and `bcc`; at most {max}: split the job"),
            ));
        }
        if self.headers.len() > limits.headers_max {
            return Err(invalid("headers", format!("{} headers; at most {}", self.headers.len(), limits.headers_max)));
        }
        for (list, count, max) in [
            ("attachments", self.attachments.len(), limits.attachments_max),
            ("reply_to", reply_to.len(), limits.reply_to_max),
        ] {
            if count > max {
                return Err(invalid(list, format!("{count} entries; at most {max}")));
            }
        }
        if self.tags.len() > limits.tags_max {
            return Err(invalid("tags", format!("{} tags; at most {}", self.tags.len(), limits.tags_max)));
        }
        if self.metadata.len() > limits.metadata_max {
            return Err(invalid(
                "metadata",
                format!("{} entries; at most {}", self.metadata.len(), limits.metadata_max),
            ));
        }
        fields::check_subject(&self.subject, limits.line_octets_max).map_err(|error| invalid("subject", error))?;
        if let Some(sources) = &self.template {
            check_template(&self.subject, sources, &self.variables)?;
        }
        for (n, tag) in self.tags.iter().enumerate() {
            fields::check_tag(tag).map_err(|error| invalid(format!("tags[{n}]"), error))?;
        }
        for (n, (key, value)) in self.metadata.iter().enumerate() {
            fields::check_metadata(key, value).map_err(|error| invalid(format!("metadata entry {n}"), error))?;
        }
        let headers = self
            .headers
            .iter()
            .enumerate()
            .map(|(n, header)| {
                Header::parse(&header.name, &header.value, limits.line_octets_max)
                    .map_err(|error| invalid(format!("headers[{n}]"), error))
            })
            .collect::<Result<_, _>>()?;
        if self.send_at.zip(self.expires_at).is_some_and(|(send, expires)| expires <= send) {
            return Err(invalid("expires_at", "is not later than `send_at`: the job could never be sent"));
        }
        let mut job = Job {
            id: self.id.unwrap_or_else(JobId::generate),
            idempotency_key: optional(self.idempotency_key.as_deref(), "idempotency_key", IdempotencyKey::parse)?,
            tenant: optional(self.tenant.as_deref(), "tenant", Tenant::parse)?.unwrap_or_default(),
            lane: self.lane,
            from: mailbox(&self.from, || "from".to_owned())?,
            reply_to,
            to,
            cc,
            bcc,
            subject: self.subject,
            content: content(self.text, self.html, self.template, self.variables)?,
            headers,
            attachments: self.attachments.into_iter().enumerate().map(attachment).collect::<Result<_, _>>()?,
            tags: self.tags,
            metadata: self.metadata,
            tracking: Tracking { opens: self.tracking.opens, clicks: self.tracking.clicks },
            list_unsubscribe: self.list_unsubscribe.map(list_unsubscribe).transpose()?,
            send_at: self.send_at,
            expires_at: self.expires_at,
            payload_hash: PayloadHash::default(),
        };
        job.payload_hash = PayloadHash::of(&job);
        Ok(job)
    }
}

fn optional<T>(
    text: Option<&str>,
    path: &str,
    parse: impl Fn(&str) -> Result<T, FieldError>,
) -> Result<Option<T>, DecodeError> {
    text.map(parse).transpose().map_err(|error| invalid(path, error))
}

/// A text may hold several mailboxes; positions count mailboxes.
fn mailboxes(list: &[MailboxV1], field: &str) -> Result<Vec<Mailbox>, DecodeError> {
    let mut all = Vec::with_capacity(list.len());
    for one in list {
        let path = || format!("{field}[{}]", all.len());
        match one {
            MailboxV1::Text(text) => {
                let more = Mailbox::parse_list(text).map_err(|error| invalid(path(), error))?;
                all.extend(more);
            }
            MailboxV1::Parts(_) => {
                let one = mailbox(one, path)?;
                all.push(one);
            }
        }
    }
    Ok(all)
}

fn mailbox(one: &MailboxV1, path: impl Fn() -> String) -> Result<Mailbox, DecodeError> {
    let parsed: Result<Mailbox, AddressError> = match one {
        MailboxV1::Text(text) => Mailbox::parse(text),
        MailboxV1::Parts(parts) => {
            EmailAddress::parse(&parts.address).and_then(|address| Mailbox::new(address, parts.name.as_deref()))
        }
    };
    parsed.map_err(|error| invalid(path(), error))
}

/// Bounds what a template may ask for before anything parses it.
fn check_template(
    subject: &str,
    sources: &TemplateV1,
    variables: &serde_json::Map<String, serde_json::Value>,
) -> Result<(), DecodeError> {
    let sources = [
        ("subject", Some(subject)),
        ("template.text", sources.text.as_deref()),
        ("template.html", sources.html.as_deref()),
    ];
    for (path, source) in sources {
        template::survey(source.unwrap_or_default()).map_err(|limit| DecodeError::Template { path, limit })?;
    }
    template::weight(variables, template::VARIABLES_OCTETS_MAX)
        .ok_or(DecodeError::Template { path: "variables", limit: TemplateLimit::Variables })?;
    Ok(())
}

fn content(
    text: Option<String>,
    html: Option<String>,
    template: Option<TemplateV1>,
    variables: serde_json::Map<String, serde_json::Value>,
) -> Result<Content, DecodeError> {
    match template {
        Some(_) if text.is_some() || html.is_some() => {
            Err(invalid("template", "stands instead of `text` and `html`, not beside them"))
        }
        Some(TemplateV1 { text: None, html: None }) => Err(invalid("template", "needs a `text` or an `html` source")),
        Some(TemplateV1 { text, html }) => Ok(Content::Template { text, html, variables }),
        None if !variables.is_empty() => Err(invalid("variables", "have no `template` to stand in")),
        None if text.is_none() && html.is_none() => {
            Err(invalid("text", "a job needs a body: `text`, `html` or `template`"))
        }
        None => Ok(Content::Bodies { text, html }),
    }
}

fn attachment((n, one): (usize, AttachmentV1)) -> Result<Attachment, DecodeError> {
    let path = |field: &str| format!("attachments[{n}].{field}");
    let filename_fits = |c: char| !c.is_control() && !matches!(c, '/' | '\\');
    if one.filename.is_empty() || one.filename.len() > 255 || !one.filename.chars().all(filename_fits) {
        return Err(invalid(path("filename"), "is 1 to 255 octets without path separators or control characters"));
    }
    if !is_media_type(&one.content_type) {
        return Err(invalid(path("content_type"), "is a media type such as application/pdf"));
    }
    let id_fits = |c: u8| c.is_ascii_graphic() && !b"<>\"()\\,;:".contains(&c);
    if one.content_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 128 || !id.bytes().all(id_fits)) {
        return Err(invalid(path("content_id"), "is 1 to 128 visible ASCII characters without brackets or quotes"));
    }
    let content =
        STANDARD.decode(one.content).map_err(|error| invalid(path("content"), format!("not base64: {error}")))?;
    Ok(Attachment {
        filename: one.filename,
        content_type: one.content_type,
        content: Bytes::from(content),
        content_id: one.content_id,
    })
}

/// `type/subtype` of RFC 6838, with parameters of printable ASCII.
fn is_media_type(text: &str) -> bool {
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let token =
        |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&c));
    text.len() <= 255
        && essence.trim_end().split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
        && parameters.bytes().all(|c| c.is_ascii_graphic() || c == b' ')
}

/// A longer text is no URL of 900 octets, whatever parsing makes of it.
const URL_TEXT_MAX: usize = 4096;

fn list_unsubscribe(one: ListUnsubscribeV1) -> Result<ListUnsubscribe, DecodeError> {
    let url = one
        .url
        .map(|text| match Url::parse(&text) {
            _ if text.len() > URL_TEXT_MAX => {
                Err(invalid("list_unsubscribe.url", "is an https address of at most 900 octets"))
            }
            // Parsing drops line breaks; who sends them means something else.
            _ if text.contains(char::is_control) => {
                Err(invalid("list_unsubscribe.url", "holds a control character (a line break, for example)"))
            }
            Ok(url) if url.scheme() == "https" && url.as_str().len() <= 900 => Ok(url),
            Ok(_) => Err(invalid("list_unsubscribe.url", "is an https address of at most 900 octets")),
            Err(error) => Err(invalid("list_unsubscribe.url", error)),
        })
        .transpose()?;
    let mailto = one
        .mailto
        .map(|text| EmailAddress::parse(text.strip_prefix("mailto:").unwrap_or(&text)))
        .transpose()
        .map_err(|error| invalid("list_unsubscribe.mailto", error))?;
    if url.is_none() && mailto.is_none() {
        return Err(invalid("list_unsubscribe", "needs a `url` or a `mailto`"));
    }
    if one.one_click && url.is_none() {
        return Err(invalid("list_unsubscribe.one_click", "needs a `url` that takes the POST (RFC 8058)"));
    }
    Ok(ListUnsubscribe { url, mailto, one_click: one.one_click })
}

impl From<&Job> for JobV1 {
    fn from(job: &Job) -> Self {
        let mailboxes = |list: &[Mailbox]| list.iter().map(MailboxV1::from).collect();
        let (text, html, template, variables) = match job.content.clone() {
            Content::Bodies { text, html } => (text, html, None, serde_json::Map::new()),
            Content::Template { text, html, variables } => (None, None, Some(TemplateV1 { text, html }), variables),
        };
        Self {
            id: Some(job.id),
            idempotency_key: job.idempotency_key.as_ref().map(|key| key.as_str().to_owned()),
            tenant: Some(job.tenant.as_str().to_owned()),
            lane: job.lane,
            from: MailboxV1::from(&job.from),
            reply_to: mailboxes(&job.reply_to),
            to: mailboxes(&job.to),
            cc: mailboxes(&job.cc),
            bcc: mailboxes(&job.bcc),
            subject: job.subject.clone(),
            text,
            html,
            template,
            variables,
            headers: job
                .headers
                .iter()
                .map(|header| HeaderV1 { name: header.name().to_owned(), value: header.value().to_owned() })
                .collect(),
            attachments: job
                .attachments
                .iter()
                .map(|one| AttachmentV1 {
                    filename: one.filename.clone(),
                    content_type: one.content_type.clone(),
                    content: STANDARD.encode(&one.content),
                    content_id: one.content_id.clone(),
                })
                .collect(),
            tags: job.tags.clone(),
            metadata: job.metadata.clone(),
            tracking: TrackingV1 { opens: job.tracking.opens, clicks: job.tracking.clicks },
            list_unsubscribe: job.list_unsubscribe.as_ref().map(|one| ListUnsubscribeV1 {
                url: one.url.as_ref().map(Url::to_string),
                mailto: one.mailto.as_ref().map(ToString::to_string),
                one_click: one.one_click,
            }),
            send_at: job.send_at,
            expires_at: job.expires_at,
        }
    }
}
