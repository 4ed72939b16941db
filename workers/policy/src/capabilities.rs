//! What each kind of transport can carry, as data; and what a job needs. The router, the linter and `explain` read it.
//!
//! A job never goes to a transport that would leave something of it out. Tags and metadata are an exception on relays only:
//! SMTP has no place for them, and they reach the sender with the events all the same.

use std::{fmt, time::Duration};

use postrider_schemas::Job;

use super::route::{Condition, When, when::content_bytes};

/// The kinds of transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportType {
    /// An SMTP relay.
    Smtp,
    /// A provider's Web API, by its word in the configuration.
    Provider(&'static str),
}

impl TransportType {
    /// The word in the configuration, in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Provider(word) => word,
        }
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a transport can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent columns of a table")]
pub struct Capabilities {
    /// Files.
    pub attachments: bool,
    /// Files that the HTML body shows.
    pub inline: bool,
    /// Counts opens where the job asks for it.
    pub opens: bool,
    /// Counts clicks where the job asks for it.
    pub clicks: bool,
    /// Most tags.
    pub tags_max: usize,
    /// Metadata.
    pub metadata: bool,
    /// Extra headers, those for unsubscribing included.
    pub headers: bool,
    /// Most recipients in one call.
    pub recipients_max: usize,
    /// Bodies and decoded attachments together, in bytes: safely below the provider's own limit, which counts them encoded.
    pub bytes_max: usize,
    /// Could keep a message until a time. Postrider keeps it itself, so that it can still be cancelled.
    pub schedules: bool,
    /// For so long the same call may be repeated: the provider recognises its key.
    pub idempotency: Option<Duration>,
    /// Most messages in one call, each with an answer of its own; 1 where calls cannot be shared.
    pub batch_max: usize,
    /// Takes a whole message as it is.
    pub raw: bool,
}

/// What a job needs of a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent columns of a table")]
pub struct Needs {
    /// It has files.
    pub attachments: bool,
    /// Its HTML body shows files.
    pub inline: bool,
    /// It asks for opens.
    pub opens: bool,
    /// It asks for clicks.
    pub clicks: bool,
    /// So many tags.
    pub tags: usize,
    /// It has metadata.
    pub metadata: bool,
    /// It has extra headers.
    pub headers: bool,
    /// So many recipients.
    pub recipients: usize,
    /// Bodies and decoded attachments together.
    pub bytes: usize,
    /// It brings a whole message.
    pub raw: bool,
}

impl Needs {
    /// What this job needs.
    pub fn of(job: &Job) -> Self {
        Self {
            attachments: job.attachments().iter().any(|one| one.content_id.is_none()),
            inline: job.attachments().iter().any(|one| one.content_id.is_some()),
            opens: job.tracking().opens,
            clicks: job.tracking().clicks,
            tags: job.tags().len(),
            metadata: !job.metadata().is_empty(),
            headers: !job.headers().is_empty() || job.list_unsubscribe().is_some(),
            recipients: job.recipients().len(),
            bytes: content_bytes(job),
            raw: job.raw().is_some(),
        }
    }

    /// What every job that fulfils these conditions needs at least, but for which kind of tracking: that is given as either.
    pub fn of_rule(when: &When) -> Self {
        let mut needs = Self::default();
        for condition in &when.0 {
            match condition {
                // Inline images alone also fulfil `attachments = true`: no transport is refused for want of one of the two.
                Condition::Tracking(true) => (needs.opens, needs.clicks) = (true, true),
                Condition::Header(..) => needs.headers = true,
                Condition::Metadata(..) => needs.metadata = true,
                Condition::Tags(_) => needs.tags = needs.tags.max(1),
                Condition::Recipients(range) => needs.recipients = range.min,
                Condition::Bytes(range) => needs.bytes = range.min,
                _ => {}
            }
        }
        needs
    }
}

/// Something of a job that a transport cannot carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingCapability {
    /// Files.
    Attachments,
    /// Inline images.
    Inline,
    /// Opens.
    Opens,
    /// Clicks.
    Clicks,
    /// So many tags at most.
    Tags(usize),
    /// Metadata.
    Metadata,
    /// Extra headers.
    Headers,
    /// So many recipients at most.
    Recipients(usize),
    /// So many bytes at most.
    Bytes(usize),
    /// A whole message.
    Raw,
}

impl fmt::Display for MissingCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attachments => f.write_str("cannot carry attachments"),
            Self::Inline => f.write_str("cannot carry inline images"),
            Self::Opens => f.write_str("cannot track opens"),
            Self::Clicks => f.write_str("cannot track clicks"),
            Self::Tags(max) => write!(f, "takes at most {max} tags"),
            Self::Metadata => f.write_str("cannot carry metadata"),
            Self::Headers => f.write_str("cannot carry extra headers"),
            Self::Recipients(max) => write!(f, "takes at most {max} recipients"),
            Self::Bytes(max) => write!(f, "takes at most {max} bytes of content"),
            Self::Raw => f.write_str("cannot carry a whole message (`mime`) as it is"),
        }
    }
}

impl Capabilities {
    /// Everything, in a call of its own.
    pub const ALL: Self = Self {
        attachments: true,
        inline: true,
        opens: true,
        clicks: true,
        tags_max: usize::MAX,
        metadata: true,
        headers: true,
        recipients_max: 50,
        bytes_max: usize::MAX,
        schedules: false,
        idempotency: None,
        batch_max: 1,
        raw: false,
    };
    /// A relay's. Its own SIZE decides about the size.
    pub const SMTP: Self = Self { opens: false, clicks: false, raw: true, ..Self::ALL };

    /// The first thing that is needed and lacking.
    pub fn lack(&self, needs: &Needs) -> Option<MissingCapability> {
        let lacks = [
            (needs.attachments && !self.attachments, MissingCapability::Attachments),
            (needs.inline && !self.inline, MissingCapability::Inline),
            (needs.opens && !self.opens, MissingCapability::Opens),
            (needs.clicks && !self.clicks, MissingCapability::Clicks),
            (needs.tags > self.tags_max, MissingCapability::Tags(self.tags_max)),
            (needs.metadata && !self.metadata, MissingCapability::Metadata),
            (needs.headers && !self.headers, MissingCapability::Headers),
            (needs.recipients > self.recipients_max, MissingCapability::Recipients(self.recipients_max)),
            (needs.bytes > self.bytes_max, MissingCapability::Bytes(self.bytes_max)),
            (needs.raw && !self.raw, MissingCapability::Raw),
        ];
        lacks.into_iter().find_map(|(is_lacking, lack)| is_lacking.then_some(lack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Needs = Needs {
        attachments: false,
        inline: false,
        opens: false,
        clicks: false,
        tags: 0,
        metadata: false,
        headers: false,
        recipients: 1,
        bytes: 100,
        raw: false,
    };

    #[track_caller]
    fn check(capabilities: Capabilities, needs: Needs, expected: Option<MissingCapability>) {
        assert_eq!(capabilities.lack(&needs), expected);
    }

    #[test]
    fn what_is_lacking_is_named() {
        let all = Capabilities::ALL;
        check(all, Needs { attachments: true, metadata: true, headers: true, tags: 99, ..NOTHING }, None);
        check(Capabilities::SMTP, Needs { opens: true, ..NOTHING }, Some(MissingCapability::Opens));
        check(Capabilities::SMTP, Needs { raw: true, ..NOTHING }, None);
        check(all, Needs { raw: true, ..NOTHING }, Some(MissingCapability::Raw));
        check(Capabilities::SMTP, Needs { clicks: true, ..NOTHING }, Some(MissingCapability::Clicks));
        check(
            Capabilities { inline: false, ..all },
            Needs { inline: true, ..NOTHING },
            Some(MissingCapability::Inline),
        );
        check(Capabilities { tags_max: 1, ..all }, Needs { tags: 2, ..NOTHING }, Some(MissingCapability::Tags(1)));
        let small = Capabilities { bytes_max: 10 << 20, ..all };
        check(small, Needs { bytes: 11 << 20, ..NOTHING }, Some(MissingCapability::Bytes(10 << 20)));
        check(all, Needs { recipients: 51, ..NOTHING }, Some(MissingCapability::Recipients(50)));
        let bare = Capabilities { metadata: false, headers: false, ..all };
        check(bare, Needs { metadata: true, headers: true, ..NOTHING }, Some(MissingCapability::Metadata));
        check(bare, Needs { headers: true, ..NOTHING }, Some(MissingCapability::Headers));
    }
}
