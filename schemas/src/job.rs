//! One e-mail to send. A [`Job`] exists only if every field and every rule between fields holds: see [`crate::wire`] for
//! how one is made.

pub mod payload_hash;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use url::Url;

use self::payload_hash::{PayloadHash, hex};
use crate::{
    address::{AddressError, EmailAddress, Mailbox},
    fields::{Header, IdempotencyKey, JobId, Lane, Tenant},
    raw::RawMessage,
};

/// One e-mail to send, valid by construction. `Debug` output shows no address and no content.
#[derive(Clone, PartialEq)]
pub struct Job {
    pub(crate) id: JobId,
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    pub(crate) tenant: Tenant,
    pub(crate) lane: Lane,
    pub(crate) from: Mailbox,
    pub(crate) reply_to: Vec<Mailbox>,
    pub(crate) to: Vec<Mailbox>,
    pub(crate) cc: Vec<Mailbox>,
    pub(crate) bcc: Vec<Mailbox>,
    pub(crate) rejected: Vec<RejectedRecipient>,
    pub(crate) subject: String,
    pub(crate) content: Content,
    pub(crate) headers: Vec<Header>,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) tags: Vec<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tracking: Tracking,
    pub(crate) list_unsubscribe: Option<ListUnsubscribe>,
    pub(crate) send_at: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) payload_hash: PayloadHash,
}

/// What the mail says.
#[derive(Clone, PartialEq)]
pub enum Content {
    /// Finished bodies; at least one of them is present.
    Bodies {
        /// The plain text body.
        text: Option<String>,
        /// The HTML body.
        html: Option<String>,
    },
    /// Bodies made by MiniJinja from sources and variables; the subject is a template as well.
    Template {
        /// Source of the plain text body.
        text: Option<String>,
        /// Source of the HTML body; variables are escaped in it.
        html: Option<String>,
        /// What the sources may name. A name that is missing here refuses the job.
        variables: serde_json::Map<String, serde_json::Value>,
    },
    /// A whole message, delivered as it is. The job has no subject, headers or files beside it.
    Raw(RawMessage),
}

/// A file that travels with the mail.
#[derive(Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The name shown to the recipient, without path separators or control characters.
    pub filename: String,
    /// A media type such as `application/pdf`.
    pub content_type: String,
    /// The decoded content.
    pub content: Bytes,
    /// For inline parts: what `cid:` links in the HTML body name, without angle brackets.
    pub content_id: Option<String>,
}

/// Which metrics the sender asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tracking {
    /// Count opens.
    pub opens: bool,
    /// Count clicks.
    pub clicks: bool,
}

impl Tracking {
    /// True where any metric is asked for.
    pub fn any(self) -> bool {
        self.opens || self.clicks
    }
}

/// How a recipient leaves the list (RFC 2369, RFC 8058). At least one of the two ways is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUnsubscribe {
    /// An https address.
    pub url: Option<Url>,
    /// An address that takes unsubscribe mails.
    pub mailto: Option<Mailto>,
    /// The URL takes a POST without further questions (RFC 8058).
    pub one_click: bool,
}

/// An address with the subject, text or other fields that a mail to it is to have (RFC 6068).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailto {
    /// The address.
    pub address: EmailAddress,
    /// What follows the `?`, percent-encoded.
    pub query: Option<String>,
}

/// What may stand unescaped in the part before the `@` of a `mailto:` (RFC 6068 2).
const MAILTO_LOCAL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'+');

/// As it stands behind `mailto:` in a URL.
impl fmt::Display for Mailto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", utf8_percent_encode(self.address.local(), MAILTO_LOCAL), self.address.domain())?;
        self.query.as_ref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

/// What makes two messages the same job: the tenant, with the idempotency key where there is one, else with the job id. Two tenants never share
/// one, whatever they publish.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity(String);

impl Identity {
    /// The identity of jobs with this tenant and key.
    pub fn of_key(tenant: &Tenant, key: &IdempotencyKey) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(tenant.as_str());
        hasher.update([0]);
        hasher.update(key.as_str());
        Self(format!("k:{}", hex(&hasher.finalize()[..16])))
    }

    /// The identity of a job of this tenant without an idempotency key.
    pub fn of_id(tenant: &Tenant, id: JobId) -> Self {
        Self(format!("i:{}:{id}", tenant.as_str()))
    }

    /// ASCII, at most 103 bytes, without braces or spaces: fit for a key of a store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The field of the job that names a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecipientField {
    /// `to`
    To,
    /// `cc`
    Cc,
    /// `bcc`
    Bcc,
}

impl RecipientField {
    /// The name of the field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::To => "to",
            Self::Cc => "cc",
            Self::Bcc => "bcc",
        }
    }
}

/// One recipient of the envelope.
#[derive(Debug, Clone, Copy)]
pub struct Recipient<'a> {
    /// Where the job names it.
    pub field: RecipientField,
    /// Its position in that field, from 0.
    pub position: usize,
    /// Its address.
    pub address: &'a EmailAddress,
    /// Its mailbox.
    pub mailbox: &'a Mailbox,
}

/// A recipient that the job names and that no mail can be sent to. The others are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RejectedRecipient {
    /// Where the job names it.
    pub field: RecipientField,
    /// Its position in that field, from 0.
    pub position: usize,
    /// Why.
    pub reason: AddressError,
}

impl Job {
    /// The identifier; also the AMQP `message_id` and the source of the `Message-ID`.
    pub fn id(&self) -> JobId {
        self.id
    }
    /// The sender's own identity for this job.
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.idempotency_key.as_ref()
    }
    /// What makes two messages the same job.
    pub fn identity(&self) -> Identity {
        self.idempotency_key
            .as_ref()
            .map_or_else(|| Identity::of_id(&self.tenant, self.id), |key| Identity::of_key(&self.tenant, key))
    }
    /// Whose mail it is.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
    /// The lane.
    pub fn lane(&self) -> Lane {
        self.lane
    }
    /// The author.
    pub fn from(&self) -> &Mailbox {
        &self.from
    }
    /// The envelope sender, to which bounces go; nothing where they go nowhere.
    pub fn sender(&self) -> Option<&EmailAddress> {
        self.raw().map_or_else(|| Some(self.from.address()), RawMessage::sender)
    }
    /// The whole message, where the job brings one.
    pub fn raw(&self) -> Option<&RawMessage> {
        match &self.content {
            Content::Raw(raw) => Some(raw),
            Content::Bodies { .. } | Content::Template { .. } => None,
        }
    }
    /// Where answers go.
    pub fn reply_to(&self) -> &[Mailbox] {
        &self.reply_to
    }
    /// The `To` recipients.
    pub fn to(&self) -> &[Mailbox] {
        &self.to
    }
    /// The `Cc` recipients.
    pub fn cc(&self) -> &[Mailbox] {
        &self.cc
    }
    /// The recipients that no header names.
    pub fn bcc(&self) -> &[Mailbox] {
        &self.bcc
    }
    /// Recipients that cannot be served. Their envelope indices follow those of [`Self::recipients`].
    pub fn rejected(&self) -> &[RejectedRecipient] {
        &self.rejected
    }
    /// The subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }
    /// What the mail says.
    pub fn content(&self) -> &Content {
        &self.content
    }
    /// Extra headers.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }
    /// Files.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }
    /// Short labels, handed to providers and events.
    pub fn tags(&self) -> &[String] {
        &self.tags
    }
    /// Flat data of the sender, handed to providers and events.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
    /// Metrics asked for.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }
    /// How a recipient leaves the list.
    pub fn list_unsubscribe(&self) -> Option<&ListUnsubscribe> {
        self.list_unsubscribe.as_ref()
    }
    /// Not before this time.
    pub fn send_at(&self) -> Option<Timestamp> {
        self.send_at
    }
    /// Not after this time.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }
    /// What two messages of the same job have in common.
    pub fn payload_hash(&self) -> PayloadHash {
        self.payload_hash
    }
    /// The same for every attempt of this job: that of a whole message, else `<id@domain of the sender>`.
    pub fn message_id(&self) -> String {
        if let Some(id) = self.raw().and_then(RawMessage::message_id) {
            return id.to_owned();
        }
        format!("<{}@{}>", self.id, self.from.address().domain())
    }
    /// The recipients of the envelope: `to`, `cc`, `bcc` in this order, an address that stands twice only once, whatever its case. A
    /// recipient's position in this list is its index everywhere else.
    pub fn recipients(&self) -> Vec<Recipient<'_>> {
        let fields = [(RecipientField::To, &self.to), (RecipientField::Cc, &self.cc), (RecipientField::Bcc, &self.bcc)];
        let mut list: Vec<Recipient<'_>> = Vec::with_capacity(self.to.len() + self.cc.len() + self.bcc.len());
        for (field, mailboxes) in fields {
            let is_rejected = |n: &usize| self.rejected.iter().any(|one| one.field == field && one.position == *n);
            for (position, mailbox) in (0..).filter(|n| !is_rejected(n)).zip(mailboxes) {
                let address = mailbox.address();
                if !list.iter().any(|seen| seen.address.is_same_mailbox(address)) {
                    list.push(Recipient { field, position, address, mailbox });
                }
            }
        }
        list
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id)
            .field("tenant", &self.tenant)
            .field("lane", &self.lane)
            .field("payload_hash", &self.payload_hash)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tenants_never_have_the_same_identity() {
        let [shop, news] = ["shop", "news"].map(|name| Tenant::parse(name).unwrap());
        let (id, key) = (JobId::generate(), IdempotencyKey::parse("order:1").unwrap());
        assert_ne!(Identity::of_id(&shop, id), Identity::of_id(&news, id));
        assert_ne!(Identity::of_key(&shop, &key), Identity::of_key(&news, &key));
        assert_eq!(Identity::of_id(&shop, id), Identity::of_id(&shop, id));
        let longest = Tenant::parse(&"a".repeat(64)).unwrap();
        assert_eq!(Identity::of_id(&longest, id).as_str().len(), 103);
    }
}
