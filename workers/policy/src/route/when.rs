//! The conditions of a rule. All of them must hold; the first one that does not is the reason why a rule did not match.

use std::fmt;

use postrider_schemas::{
    Job, Lane, Tenant,
    job::{Content, Recipient},
};

use super::pattern::{DomainPatterns, TextPatterns};

/// All conditions of a rule. Without any the rule takes every job.
#[derive(Debug, Clone, Default)]
pub struct When(pub Vec<Condition>);

/// One condition.
#[derive(Debug, Clone)]
pub enum Condition {
    /// The job's lane.
    Lane(Lane),
    /// The job's tenant is one of these.
    Tenants(Vec<Tenant>),
    /// One of the job's tags is one of these.
    Tags(TextPatterns),
    /// The job has this metadata, with one of these values.
    Metadata(String, TextPatterns),
    /// The domain of the sender.
    SenderDomains(DomainPatterns),
    /// The domain of the recipient.
    RecipientDomains(DomainPatterns),
    /// The recipient belongs to one of these groups, named by the first field.
    RecipientGroups(Vec<String>, DomainPatterns),
    /// The job has this extra header, with one of these values. Names compare without case.
    Header(String, TextPatterns),
    /// Bodies and decoded attachments together, in bytes: see [`content_bytes`].
    Bytes(Range),
    /// The job has attachments (inline images count), or none.
    Attachments(bool),
    /// The job asks for tracking, or does not.
    Tracking(bool),
    /// Recipients of the whole job.
    Recipients(Range),
    /// These do not hold all together.
    Not(When),
}

/// From, to; both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
}

impl Range {
    fn contains(self, n: usize) -> bool {
        (self.min..=self.max).contains(&n)
    }

    fn covers(self, other: Self) -> bool {
        self.min <= other.min && self.max >= other.max
    }
}

/// Bodies and decoded attachments of a job, in bytes; a whole message with its header.
pub fn content_bytes(job: &Job) -> usize {
    let (text, html) = match job.content() {
        Content::Bodies { text, html } | Content::Template { text, html, .. } => (text, html),
        Content::Raw(raw) => return raw.as_given().len(),
    };
    let length = |body: &Option<String>| body.as_ref().map_or(0, String::len);
    length(text) + length(html) + job.attachments().iter().map(|one| one.content.len()).sum::<usize>()
}

impl When {
    /// True where the rule takes every job.
    pub fn is_catch_all(&self) -> bool {
        self.0.is_empty()
    }

    /// True where recipients of one job can part ways here.
    pub fn looks_at_recipients(&self) -> bool {
        self.0.iter().any(|condition| match condition {
            Condition::RecipientDomains(_) | Condition::RecipientGroups(..) => true,
            Condition::Not(inner) => inner.looks_at_recipients(),
            _ => false,
        })
    }

    /// The first condition that does not hold.
    pub fn first_failing(&self, job: &Job, recipient: &Recipient<'_>) -> Option<&Condition> {
        self.0.iter().find(|condition| !condition.holds(job, recipient))
    }

    /// True where this takes everything that `other` takes, as far as that can be told from the conditions.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.iter().all(|wide| other.0.iter().any(|narrow| wide.covers(narrow)))
    }

    /// Two conditions, or one by itself, that no job fulfils.
    pub fn contradiction(&self) -> Option<String> {
        for (n, condition) in self.0.iter().enumerate() {
            if condition.is_impossible() {
                return Some(format!("`{condition}` never holds"));
            }
            if let Condition::Not(inner) = condition
                && inner.covers(self)
            {
                return Some(format!("`{condition}` excludes what the other conditions ask for"));
            }
            if let Some(other) = self.0[n + 1..].iter().find(|other| condition.excludes(other)) {
                return Some(format!("`{condition}` and `{other}` exclude each other"));
            }
        }
        None
    }
}

impl Condition {
    fn holds(&self, job: &Job, recipient: &Recipient<'_>) -> bool {
        match self {
            Self::Lane(lane) => *lane == job.lane(),
            Self::Tenants(tenants) => tenants.contains(job.tenant()),
            Self::Tags(tags) => job.tags().iter().any(|tag| tags.matches(tag)),
            Self::Metadata(key, values) => job.metadata().get(key).is_some_and(|value| values.matches(value)),
            Self::SenderDomains(domains) => domains.matches(job.from().address().domain()),
            Self::RecipientDomains(domains) | Self::RecipientGroups(_, domains) => {
                domains.matches(recipient.address.domain())
            }
            Self::Header(name, values) => {
                job.headers().iter().any(|one| one.name().eq_ignore_ascii_case(name) && values.matches(one.value()))
                    || job.raw().is_some_and(|raw| raw.header(name).any(|value| values.matches(&value)))
            }
            Self::Bytes(range) => range.contains(content_bytes(job)),
            Self::Attachments(wanted) => *wanted != job.attachments().is_empty(),
            Self::Tracking(wanted) => *wanted == job.tracking().any(),
            Self::Recipients(range) => range.contains(job.recipients().len()),
            Self::Not(inner) => inner.first_failing(job, recipient).is_some(),
        }
    }

    fn is_impossible(&self) -> bool {
        match self {
            Self::Tenants(tenants) => tenants.is_empty(),
            Self::Tags(texts) | Self::Metadata(_, texts) | Self::Header(_, texts) => texts.is_empty(),
            Self::SenderDomains(domains) | Self::RecipientDomains(domains) | Self::RecipientGroups(_, domains) => {
                domains.is_empty()
            }
            Self::Bytes(range) | Self::Recipients(range) => range.min > range.max,
            Self::Not(inner) => inner.is_catch_all(),
            Self::Lane(_) | Self::Attachments(_) | Self::Tracking(_) => false,
        }
    }

    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lane(a), Self::Lane(b)) => a != b,
            (Self::Attachments(a), Self::Attachments(b)) | (Self::Tracking(a), Self::Tracking(b)) => a != b,
            _ => false,
        }
    }

    /// True where everything that fulfils `narrow` fulfils this.
    fn covers(&self, narrow: &Self) -> bool {
        match (self, narrow) {
            (Self::Lane(a), Self::Lane(b)) => a == b,
            (Self::Tenants(a), Self::Tenants(b)) => b.iter().all(|tenant| a.contains(tenant)),
            (Self::Tags(a), Self::Tags(b)) => a.covers(b),
            (Self::Metadata(k, a), Self::Metadata(l, b)) => k == l && a.covers(b),
            (Self::Header(k, a), Self::Header(l, b)) => k.eq_ignore_ascii_case(l) && a.covers(b),
            (Self::SenderDomains(a), Self::SenderDomains(b))
            | (
                Self::RecipientDomains(a) | Self::RecipientGroups(_, a),
                Self::RecipientDomains(b) | Self::RecipientGroups(_, b),
            ) => a.covers(b),
            (Self::Bytes(a), Self::Bytes(b)) | (Self::Recipients(a), Self::Recipients(b)) => a.covers(*b),
            (Self::Attachments(a), Self::Attachments(b)) | (Self::Tracking(a), Self::Tracking(b)) => a == b,
            // What one excludes is more than what the other excludes.
            (Self::Not(a), Self::Not(b)) => b.covers(a),
            _ => false,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenants = |list: &[Tenant]| list.iter().map(Tenant::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::Lane(lane) => write!(f, "lane = {lane}"),
            Self::Tenants(list) => write!(f, "tenants = {}", tenants(list)),
            Self::Tags(texts) => write!(f, "tags = {texts}"),
            Self::Metadata(key, texts) => write!(f, "metadata.{key} = {texts}"),
            Self::SenderDomains(domains) => write!(f, "sender_domains = {domains}"),
            Self::RecipientDomains(domains) => write!(f, "recipient_domains = {domains}"),
            Self::RecipientGroups(names, _) => write!(f, "recipient_groups = {}", names.join(", ")),
            Self::Header(name, texts) => write!(f, "headers.{name} = {texts}"),
            Self::Bytes(range) => write!(f, "bytes {range}"),
            Self::Attachments(wanted) => write!(f, "attachments = {wanted}"),
            Self::Tracking(wanted) => write!(f, "tracking = {wanted}"),
            Self::Recipients(range) => write!(f, "recipients {range}"),
            Self::Not(inner) => write!(f, "not {{ {inner} }}"),
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, condition) in self.0.iter().enumerate() {
            write!(f, "{}{condition}", if n > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (0, max) => write!(f, "<= {max}"),
            (min, usize::MAX) => write!(f, ">= {min}"),
            (min, max) => write!(f, "from {min} to {max}"),
        }
    }
}
