//! From a document to a [`Job`]: every field, and every rule between fields.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::{AttachmentV1, DecodeError, EnvelopeV1, JobV1, ListUnsubscribeV1, MailboxV1, TemplateV1, invalid};
use crate::{
    address::{AddressError, EmailAddress, Mailbox},
    fields::{self, FieldError, Header, IdempotencyKey, JobId, Tenant},
    job::payload_hash::PayloadHash,
    job::{Attachment, Content, Job, ListUnsubscribe, Mailto, RecipientField, RejectedRecipient, Tracking},
    limits::JobLimits,
    raw::{EnvelopeSender, RawMessage},
    template::{self, TemplateLimit},
};

impl JobV1 {
    /// Checks every field and every rule between fields.
    pub fn parse(self, limits: &JobLimits) -> Result<Job, DecodeError> {
        let job = self.parse_serving_others(limits)?;
        match job.rejected().first() {
            None => Ok(job),
            Some(one) => {
                let whole = if job.raw().is_some() { "envelope." } else { "" };
                Err(invalid(format!("{whole}{}[{}]", one.field.as_str(), one.position), one.reason))
            }
        }
    }

    /// The same for a job that was published: a recipient that cannot be served is set apart, so that the others are served. One at least has to be left.
    pub(super) fn parse_serving_others(mut self, limits: &JobLimits) -> Result<Job, DecodeError> {
        self.check_counts(limits)?;
        let (envelope, mime) = (self.envelope.take(), self.mime.take());
        let raw = match (mime, envelope) {
            (None, None) => None,
            (Some(mime), Some(envelope)) => Some(self.take_whole(&mime, envelope)?),
            (None, Some(_)) => return Err(invalid("envelope", "has no `mime` that it could be for")),
            (Some(_), None) => return Err(invalid("envelope", "is required with `mime`: who gets the message")),
        };
        let ([to, cc, bcc], rejected) = self.recipients(limits.recipients_max, raw.is_some())?;
        let reply_to = self.answers_to(limits.reply_to_max)?;
        let subject = fields::clean_subject(&self.subject, limits.field_octets_max)
            .map_err(|error| invalid("subject", error))?
            .into_owned();
        if let Some(sources) = &self.template {
            check_template(&self.subject, sources, &self.variables)?;
        }
        for (n, tag) in self.tags.iter().enumerate() {
            fields::check_tag(tag).map_err(|error| invalid(format!("tags[{n}]"), error))?;
        }
        for (n, (key, value)) in self.metadata.iter().enumerate() {
            fields::check_metadata(key, value).map_err(|error| invalid(format!("metadata entry {n}"), error))?;
        }
        let header = |(n, header): (usize, &super::HeaderV1)| {
            Header::parse(&header.name, &header.value, limits.field_octets_max)
                .map_err(|error| invalid(format!("headers[{n}]"), error))
        };
        let headers = self.headers.iter().enumerate().map(header).collect::<Result<_, _>>()?;
        if self.send_at.zip(self.expires_at).is_some_and(|(send, expires)| expires <= send) {
            return Err(invalid("expires_at", "is not later than `send_at`: the job could never be sent"));
        }
        let (from, content) = match raw {
            Some(raw) => (author(&raw)?, Content::Raw(raw)),
            None if self.from.is_absent() => return Err(invalid("from", "is required")),
            None => (
                mailbox(&self.from).map_err(|error| invalid("from", error))?,
                content(self.text, self.html, self.template, self.variables)?,
            ),
        };
        let mut job = Job {
            id: self.id.unwrap_or_else(JobId::generate),
            idempotency_key: optional(self.idempotency_key.as_deref(), "idempotency_key", IdempotencyKey::parse)?,
            tenant: optional(self.tenant.as_deref(), "tenant", Tenant::parse)?.unwrap_or_default(),
            lane: self.lane,
            from,
            reply_to,
            to,
            cc,
            bcc,
            rejected,
            subject,
            content,
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

    /// Recipients by field, and those that cannot be served. One at least can.
    fn recipients(
        &self,
        max: usize,
        is_whole: bool,
    ) -> Result<([Vec<Mailbox>; 3], Vec<RejectedRecipient>), DecodeError> {
        let (mut sound, mut rejected, mut left) = ([const { Vec::new() }; 3], Vec::new(), max);
        let fields = [(RecipientField::To, &self.to), (RecipientField::Cc, &self.cc), (RecipientField::Bcc, &self.bcc)];
        for ((field, list), sound) in fields.into_iter().zip(&mut sound) {
            for (position, one) in list.iter().flat_map(each).enumerate() {
                left = left.checked_sub(1).ok_or_else(|| too_many_recipients(max))?;
                match one {
                    Ok(mailbox) => sound.push(mailbox),
                    Err(reason) => rejected.push(RejectedRecipient { field, position, reason }),
                }
            }
        }
        if sound.iter().any(|list| !list.is_empty()) {
            return Ok((sound, rejected));
        }
        let (whole, fields) = if is_whole { ("envelope.", "`envelope.to`") } else { ("", "`to`, `cc` or `bcc`") };
        Err(match rejected.first() {
            Some(one) => invalid(format!("{whole}{}[{}]", one.field.as_str(), one.position), one.reason),
            None => invalid(format!("{whole}to"), format!("a job needs at least one recipient in {fields}")),
        })
    }

    fn answers_to(&self, max: usize) -> Result<Vec<Mailbox>, DecodeError> {
        let mut list = Vec::with_capacity(self.reply_to.len());
        for (n, one) in self.reply_to.iter().flat_map(each).enumerate() {
            if n >= max {
                return Err(invalid("reply_to", format!("more than {max} entries")));
            }
            list.push(one.map_err(|error| invalid(format!("reply_to[{n}]"), error))?);
        }
        Ok(list)
    }

    /// What is too much is refused before it is looked at.
    fn check_counts(&self, limits: &JobLimits) -> Result<(), DecodeError> {
        let recipients = self.to.len() + self.cc.len() + self.bcc.len();
        if recipients > limits.recipients_max {
            let max = limits.recipients_max;
            return Err(invalid(
                "to",
                format!("{recipients} recipients in `to`, `cc` and `bcc`; at most {max}: split the job"),
            ));
        }
        for (list, count, max, what) in [
            ("headers", self.headers.len(), limits.headers_max, "headers"),
            ("attachments", self.attachments.len(), limits.attachments_max, "entries"),
            ("reply_to", self.reply_to.len(), limits.reply_to_max, "entries"),
            ("tags", self.tags.len(), limits.tags_max, "tags"),
            ("metadata", self.metadata.len(), limits.metadata_max, "entries"),
        ] {
            if count > max {
                return Err(invalid(list, format!("{count} {what}; at most {max}")));
            }
        }
        Ok(())
    }

    /// The message of a job that brings a whole one; its recipients become those of the job.
    fn take_whole(&mut self, mime: &str, envelope: EnvelopeV1) -> Result<RawMessage, DecodeError> {
        let beside = [
            ("from", !self.from.is_absent()),
            ("reply_to", !self.reply_to.is_empty()),
            ("to", !self.to.is_empty()),
            ("cc", !self.cc.is_empty()),
            ("bcc", !self.bcc.is_empty()),
            ("subject", !self.subject.is_empty()),
            ("text", self.text.is_some()),
            ("html", self.html.is_some()),
            ("template", self.template.is_some()),
            ("variables", !self.variables.is_empty()),
            ("headers", !self.headers.is_empty()),
            ("attachments", !self.attachments.is_empty()),
            ("tracking", !self.tracking.is_default()),
            ("list_unsubscribe", self.list_unsubscribe.is_some()),
        ];
        if let Some((field, _)) = beside.iter().find(|(_, stands)| *stands) {
            return Err(invalid(*field, "may not stand beside `mime`, which is delivered as it is"));
        }
        let bytes = from_base64(mime).map_err(|error| invalid("mime", error))?;
        let sender = match envelope.from.as_deref().map(|text| text.trim_matches([' ', '<', '>'])) {
            None => EnvelopeSender::Author,
            Some("") => EnvelopeSender::Null,
            Some(text) => {
                EnvelopeSender::Address(EmailAddress::parse(text).map_err(|error| invalid("envelope.from", error))?)
            }
        };
        self.to = envelope.to;
        RawMessage::parse(bytes, sender).map_err(|error| invalid("mime", error))
    }
}

/// The author of a whole message, without a name.
fn author(raw: &RawMessage) -> Result<Mailbox, DecodeError> {
    Mailbox::new(raw.author().clone(), None).map_err(|error| invalid("mime", error))
}

fn too_many_recipients(max: usize) -> DecodeError {
    invalid("to", format!("more than {max} recipients in `to`, `cc` and `bcc`; split the job"))
}

/// Base64 with or without padding, in one line or in several.
fn from_base64(text: &str) -> Result<Bytes, &'static str> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let one_line: String;
    let text = if text.bytes().any(|octet| octet.is_ascii_whitespace()) {
        one_line = text.split_ascii_whitespace().collect();
        &one_line
    } else {
        text
    };
    LENIENT.decode(text).map(Bytes::from).map_err(|_| "is not base64 (RFC 4648 section 4)")
}

fn optional<T>(
    text: Option<&str>,
    path: &str,
    parse: impl Fn(&str) -> Result<T, FieldError>,
) -> Result<Option<T>, DecodeError> {
    text.map(parse).transpose().map_err(|error| invalid(path, error))
}

/// The mailboxes of an entry: a text may hold several. Positions count mailboxes.
fn each(one: &MailboxV1) -> impl Iterator<Item = Result<Mailbox, AddressError>> {
    let (text, parts) = match one {
        MailboxV1::Text(text) => (Some(text), None),
        MailboxV1::Parts(_) => (None, Some(mailbox(one))),
    };
    text.into_iter().flat_map(|text| Mailbox::parse_each(text)).chain(parts)
}

/// The one mailbox of an entry.
fn mailbox(one: &MailboxV1) -> Result<Mailbox, AddressError> {
    match one {
        MailboxV1::Text(text) => Mailbox::parse(text),
        MailboxV1::Parts(parts) => {
            EmailAddress::parse(&parts.address).and_then(|address| Mailbox::new(address, parts.name.as_deref()))
        }
    }
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
    let content = from_base64(&one.content).map_err(|error| invalid(path("content"), error))?;
    Ok(Attachment { filename: one.filename, content_type: one.content_type, content, content_id: one.content_id })
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

/// Longest address that leaves a list, in octets.
const URL_OCTETS_MAX: usize = 4096;
/// What must be escaped in the query of a `mailto:` (RFC 6068 2); what is escaped already stays.
const IN_QUERY: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

fn list_unsubscribe(one: ListUnsubscribeV1) -> Result<ListUnsubscribe, DecodeError> {
    let url = one.url.map(|text| unsubscribe_url(&text)).transpose()?;
    let mailto = one.mailto.map(|text| mailto(&text)).transpose()?;
    if url.is_none() && mailto.is_none() {
        return Err(invalid("list_unsubscribe", "needs a `url` or a `mailto`"));
    }
    if one.one_click && url.is_none() {
        return Err(invalid("list_unsubscribe.one_click", "needs a `url` that takes the POST (RFC 8058)"));
    }
    Ok(ListUnsubscribe { url, mailto, one_click: one.one_click })
}

fn unsubscribe_url(text: &str) -> Result<Url, DecodeError> {
    const PATH: &str = "list_unsubscribe.url";
    let rule = || invalid(PATH, format!("is an https address of at most {URL_OCTETS_MAX} octets"));
    if text.len() > URL_OCTETS_MAX {
        return Err(rule());
    }
    // Parsing drops line breaks; who sends them means something else.
    if text.contains(char::is_control) {
        return Err(invalid(PATH, "holds a control character (a line break, for example)"));
    }
    match Url::parse(text) {
        Ok(url) if url.scheme() == "https" && url.as_str().len() <= URL_OCTETS_MAX => Ok(url),
        Ok(_) => Err(rule()),
        Err(error) => Err(invalid(PATH, error)),
    }
}

/// An address, or a `mailto:` URL with what the mail to it is to have.
fn mailto(text: &str) -> Result<Mailto, DecodeError> {
    const PATH: &str = "list_unsubscribe.mailto";
    if text.len() > URL_OCTETS_MAX {
        return Err(invalid(PATH, format!("has more than {URL_OCTETS_MAX} octets")));
    }
    if text.contains(char::is_control) {
        return Err(invalid(PATH, "holds a control character (a line break, for example)"));
    }
    let text = text.trim_matches(['<', '>', ' ']);
    let url = match text.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("mailto:") => Some(&text[7..]),
        _ => None,
    };
    let parts = |text: &'_ str| match text.split_once('?') {
        Some((address, query)) => (address.to_owned(), Some(query.to_owned())),
        None => (text.to_owned(), None),
    };
    let (address, query) = match (url.map(parts), EmailAddress::parse(text)) {
        (Some((address, query)), _) => (decoded_address(&address), query),
        (None, Ok(address)) => (Ok(address), None),
        (None, Err(_)) => {
            let (address, query) = parts(text);
            (EmailAddress::parse(&address), query)
        }
    };
    let address = address.map_err(|error| invalid(PATH, error))?;
    let query = query.filter(|query| !query.is_empty()).map(|query| utf8_percent_encode(&query, IN_QUERY).to_string());
    Ok(Mailto { address, query })
}

fn decoded_address(text: &str) -> Result<EmailAddress, AddressError> {
    EmailAddress::parse(&percent_decode_str(text).decode_utf8().map_err(|_| AddressError::Local)?)
}
