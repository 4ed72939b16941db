//! How large a job may be.

/// Limits on one job. The defaults are the protocol's; an installation may set lower or higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLimits {
    /// Largest encoded job, in bytes.
    pub bytes_max: usize,
    /// Most recipients, `to`, `cc` and `bcc` together.
    pub recipients_max: usize,
    /// Most extra headers.
    pub headers_max: usize,
    /// Most attachments.
    pub attachments_max: usize,
    /// Most addresses in `reply_to`.
    pub reply_to_max: usize,
    /// Longest subject and longest value of a header, in octets. Lines are folded.
    pub field_octets_max: usize,
    /// Most tags.
    pub tags_max: usize,
    /// Most metadata entries.
    pub metadata_max: usize,
}

impl JobLimits {
    /// The protocol's limits.
    pub const DEFAULT: Self = Self {
        bytes_max: 10 * 1024 * 1024,
        recipients_max: 50,
        headers_max: 200,
        attachments_max: 100,
        reply_to_max: 50,
        field_octets_max: 16 * 1024,
        tags_max: 10,
        metadata_max: 50,
    };
}

impl Default for JobLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
