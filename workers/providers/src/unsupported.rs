//! Why a provider cannot carry a job that fits the table of capabilities: found while the request is made, before anything is sent. The next
//! transport is tried; nothing is left out silently.

/// What of the job does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Several blind recipients and no visible one: this API would show them to each other.
    #[error("cannot send to several blind recipients without a visible one")]
    BlindOnly,
    /// A header that the API keeps for itself.
    #[error("does not take the header {0}")]
    Header(String),
    /// The API takes one value for a header's name.
    #[error("takes the header {0} once only")]
    HeaderTwice(String),
    /// A tag or metadata that the API refuses.
    #[error("does not take {0}")]
    Value(String),
    /// The message cannot be made at all.
    #[error("{0}")]
    Compose(String),
}
