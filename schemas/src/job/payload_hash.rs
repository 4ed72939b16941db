//! The hash by which two messages of the same job are compared: everything the job says except its `id`.
//!
//! It is taken over the parsed job, so that neither the order of fields, white space nor the form of a mailbox matters.

use std::fmt::{self, Write as _};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Content, Job};
use crate::address::Mailbox;

/// The first 128 bits of a SHA-256. Two jobs with the same hash ask for the same mail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PayloadHash([u8; 16]);

impl PayloadHash {
    pub(crate) fn of(job: &Job) -> Self {
        let mut feed = Feed(Sha256::new());
        feed.job(job);
        let mut first = [0; 16];
        first.copy_from_slice(&feed.0.finalize()[..16]);
        Self(first)
    }

    /// 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Writes values with their length or count in front, so that no two different jobs feed the same bytes.
struct Feed(Sha256);

impl Feed {
    fn count(&mut self, n: usize) {
        self.0.update((n as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn option(&mut self, text: Option<&str>) {
        self.count(usize::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    fn mailbox(&mut self, mailbox: &Mailbox) {
        self.text(mailbox.address().local());
        self.text(mailbox.address().domain().as_str());
        self.option(mailbox.name());
    }

    fn job(&mut self, job: &Job) {
        self.option(job.idempotency_key().map(crate::fields::IdempotencyKey::as_str));
        self.text(job.tenant().as_str());
        self.text(job.lane().as_str());
        self.mailbox(job.from());
        for list in [job.reply_to(), job.to(), job.cc(), job.bcc()] {
            self.count(list.len());
            list.iter().for_each(|mailbox| self.mailbox(mailbox));
        }
        self.text(job.subject());
        self.content(job.content());
        self.count(job.headers().len());
        for header in job.headers() {
            self.text(header.name());
            self.text(header.value());
        }
        self.count(job.attachments().len());
        for one in job.attachments() {
            self.text(&one.filename);
            self.text(&one.content_type);
            self.option(one.content_id.as_deref());
            self.bytes(&one.content);
        }
        self.count(job.tags().len());
        job.tags().iter().for_each(|tag| self.text(tag));
        self.count(job.metadata().len());
        for (key, value) in job.metadata() {
            self.text(key);
            self.text(value);
        }
        self.count(usize::from(job.tracking().opens) + 2 * usize::from(job.tracking().clicks));
        self.count(usize::from(job.list_unsubscribe().is_some()));
        if let Some(one) = job.list_unsubscribe() {
            self.option(one.url.as_ref().map(url::Url::as_str));
            self.option(one.mailto.as_ref().map(ToString::to_string).as_deref());
            self.count(usize::from(one.one_click));
        }
        for time in [job.send_at(), job.expires_at()] {
            self.option(time.map(|time| time.to_string()).as_deref());
        }
        for one in job.rejected() {
            self.text(&format!("{:?} {}", one.field, one.position));
        }
    }

    fn content(&mut self, content: &Content) {
        let (kind, text, html) = match content {
            Content::Bodies { text, html } => (0, text, html),
            Content::Template { text, html, .. } => (1, text, html),
            Content::Raw(raw) => {
                self.count(2);
                self.option(raw.sender().map(ToString::to_string).as_deref());
                return self.bytes(raw.as_given());
            }
        };
        self.count(kind);
        self.option(text.as_deref());
        self.option(html.as_deref());
        if let Content::Template { variables, .. } = content {
            self.object(variables);
        }
    }

    fn object(&mut self, object: &serde_json::Map<String, Value>) {
        let mut keys: Vec<&String> = object.keys().collect();
        keys.sort_unstable();
        self.count(keys.len());
        for key in keys {
            self.text(key);
            self.value(&object[key]);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Array(list) => {
                self.text("array");
                self.count(list.len());
                list.iter().for_each(|one| self.value(one));
            }
            Value::Object(object) => {
                self.text("object");
                self.object(object);
            }
            scalar => self.text(&scalar.to_string()),
        }
    }
}
