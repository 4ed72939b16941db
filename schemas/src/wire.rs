//! The wire form of a job, version 1: JSON, UTF-8. [`JobV1`] mirrors the document; [`JobV1::parse`] turns it into a [`Job`] or says
//! which field is wrong and why. No error text quotes a value: reasons travel in headers and logs.

mod decode;
mod lenient;
mod parse;
mod sketch;

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::{
    decode::{decode, decode_v1, packed_octets, unpacked},
    sketch::{Sketch, sketch},
};
use crate::{
    address::Mailbox,
    fields::{JobId, Lane},
    job::{Content, Job},
    raw::RawMessage,
    template::TemplateLimit,
};

/// AMQP `type` of a job message.
pub const JOB_TYPE: &str = "postrider.job.v1";
/// AMQP `content_type` of a job message.
pub const JOB_CONTENT_TYPE: &str = "application/json";

/// One e-mail to send, as JSON: by its parts, or as a whole message (`mime`) with its `envelope`.
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
    /// The author. Required unless `mime` is given.
    #[serde(default, skip_serializing_if = "MailboxV1::is_absent", deserialize_with = "lenient::or_default")]
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
    /// The subject, one line of text. Required unless `mime` is given.
    #[serde(default, deserialize_with = "lenient::or_default")]
    #[schemars(length(max = 16384))]
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
    /// A whole message (RFC 5322) in base64, delivered as it is but for `Bcc` and `X-Postrider-*` headers. Needs `envelope`; stands instead of `from`,
    /// `to`, `subject` and whatever else a message says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub mime: Option<String>,
    /// Who gets the message of `mime`, whatever its headers say.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::object")]
    pub envelope: Option<EnvelopeV1>,
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

/// Envelope of a whole message.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeV1 {
    /// Where bounces go; empty for nowhere, the address of the `From` header where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Recipients, 1 to 50. Their names are not used.
    #[serde(default, deserialize_with = "lenient::mailboxes")]
    #[schemars(with = "MailboxesV1")]
    pub to: Vec<MailboxV1>,
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

impl MailboxV1 {
    fn is_absent(&self) -> bool {
        *self == Self::default()
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
    /// The content in base64 (RFC 4648 section 4).
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
    /// An address that takes unsubscribe mails, or a `mailto:` URL with a subject (RFC 6068).
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

/// Encodes a job for the wire.
pub fn encode(job: &Job) -> Bytes {
    let document = JobV1::from(job);
    // A struct of strings, numbers and string-keyed maps: serde_json has nothing to refuse in it.
    Bytes::from(serde_json::to_vec(&document).unwrap_or_default())
}

fn invalid(path: impl Into<String>, reason: impl ToString) -> DecodeError {
    DecodeError::Invalid { path: path.into(), reason: reason.to_string() }
}

impl From<&Job> for JobV1 {
    fn from(job: &Job) -> Self {
        let mailboxes = |list: &[Mailbox]| list.iter().map(MailboxV1::from).collect();
        let (text, html, template, variables) = match job.content.clone() {
            Content::Bodies { text, html } => (text, html, None, serde_json::Map::new()),
            Content::Template { text, html, variables } => (None, None, Some(TemplateV1 { text, html }), variables),
            Content::Raw(raw) => return Self::whole(job, &raw),
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
            mime: None,
            envelope: None,
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
                mailto: one.mailto.as_ref().map(|mailto| format!("mailto:{mailto}")),
                one_click: one.one_click,
            }),
            send_at: job.send_at,
            expires_at: job.expires_at,
        }
    }
}

impl JobV1 {
    fn whole(job: &Job, raw: &RawMessage) -> Self {
        let address = |one: &Mailbox| MailboxV1::Text(one.address().to_string());
        Self {
            id: Some(job.id),
            idempotency_key: job.idempotency_key.as_ref().map(|key| key.as_str().to_owned()),
            tenant: Some(job.tenant.as_str().to_owned()),
            lane: job.lane,
            mime: Some(STANDARD.encode(raw.as_given())),
            envelope: Some(EnvelopeV1 {
                from: Some(raw.sender().map(ToString::to_string).unwrap_or_default()),
                to: job.to.iter().map(address).collect(),
            }),
            tags: job.tags.clone(),
            metadata: job.metadata.clone(),
            send_at: job.send_at,
            expires_at: job.expires_at,
            ..Self::default()
        }
    }
}
