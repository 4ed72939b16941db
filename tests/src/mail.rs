//! A received message in a form that can be compared with what was asked. Read by a parser that shares no code with the
//! composer.

use anyhow::{Context as _, Result};
use mail_parser::{Address, MessageParser, MessagePart, MimeHeaders as _, PartType};

/// A message, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// Without angle brackets.
    pub message_id: Option<String>,
    /// From.
    pub from: Vec<Mailbox>,
    /// To.
    pub to: Vec<Mailbox>,
    /// Cc.
    pub cc: Vec<Mailbox>,
    /// Bcc: a relay should never see one.
    pub bcc: Vec<Mailbox>,
    /// Reply-To.
    pub reply_to: Vec<Mailbox>,
    /// Subject, decoded.
    pub subject: Option<String>,
    /// The text/plain body: lines end with LF, none at the end.
    pub text: Option<String>,
    /// The text/html body, in the same form.
    pub html: Option<String>,
    /// Every other part, in order.
    pub attachments: Vec<Attachment>,
    /// Every header of the message: name, and value unfolded but not decoded.
    pub headers: Vec<(String, String)>,
}

/// A name and an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// Display name, decoded.
    pub name: Option<String>,
    /// The address.
    pub address: String,
}

/// A part that is no body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// File name, decoded.
    pub filename: Option<String>,
    /// `type/subtype`
    pub content_type: String,
    /// Decoded bytes.
    pub content: Vec<u8>,
    /// Without angle brackets.
    pub content_id: Option<String>,
    /// Content-Disposition is `inline`.
    pub inline: bool,
}

impl Mail {
    /// Parses a whole message.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let message = MessageParser::default().parse(raw).context("not a message")?;
        let mut mail = Self {
            message_id: message.message_id().map(str::to_owned),
            from: mailboxes(message.from()),
            to: mailboxes(message.to()),
            cc: mailboxes(message.cc()),
            bcc: mailboxes(message.bcc()),
            reply_to: mailboxes(message.reply_to()),
            subject: message.subject().map(str::to_owned),
            headers: message.headers_raw().map(|(name, value)| (name.to_owned(), unfold(value))).collect(),
            ..Self::default()
        };
        // Not the parser's own lists of bodies: they show an HTML body as text where there is no text.
        for part in &message.parts {
            let attached = part.content_disposition().is_some_and(mail_parser::ContentType::is_attachment);
            match &part.body {
                PartType::Multipart(_) => {}
                PartType::Text(text) if !attached && mail.text.is_none() => mail.text = Some(lines(text)),
                PartType::Html(html) if !attached && mail.html.is_none() => mail.html = Some(lines(html)),
                _ => mail.attachments.push(attachment(part)),
            }
        }
        Ok(mail)
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

fn attachment(part: &MessagePart<'_>) -> Attachment {
    let kind = part.content_type().map(|kind| match kind.subtype() {
        Some(subtype) => format!("{}/{subtype}", kind.ctype()),
        None => kind.ctype().to_owned(),
    });
    Attachment {
        filename: part.attachment_name().map(str::to_owned),
        content_type: kind.unwrap_or_default().to_ascii_lowercase(),
        content: part.contents().to_vec(),
        content_id: part.content_id().map(str::to_owned),
        inline: part.content_disposition().is_some_and(mail_parser::ContentType::is_inline),
    }
}

fn mailboxes(addresses: Option<&Address<'_>>) -> Vec<Mailbox> {
    let all = addresses.into_iter().flat_map(Address::iter);
    all.map(|entry| Mailbox {
        name: entry.name.as_deref().map(str::to_owned),
        address: entry.address.as_deref().unwrap_or_default().to_owned(),
    })
    .collect()
}

fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").trim_end_matches('\n').to_owned()
}

fn unfold(value: &str) -> String {
    value.replace("\r\n", "").replace('\n', "").trim().to_owned()
}
