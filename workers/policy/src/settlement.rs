//! What the queue is told about a delivery once its attempt is over.

use std::time::Duration;

use postrider_schemas::Meta;

/// How a delivery ends. The queue makes the copy, waits for its confirm, and only then acknowledges the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Nothing is left to do: acknowledge.
    Done,
    /// A copy with these headers comes back after this wait, told by the queue's own clock.
    Again {
        /// How long.
        wait: Duration,
        /// The headers of the copy, its generation already advanced.
        meta: Meta,
    },
    /// Copies with these headers come back at once: the parts of the job.
    Split(Vec<Meta>),
    /// A copy with these headers waits for a person.
    Hold(Meta),
    /// A copy with these headers comes to rest in `dead`.
    DeadLetter(Meta),
    /// A copy with these headers goes to quarantine: workers died under its hands.
    Quarantine(Meta),
    /// Not started: the broker may give it to somebody else at once.
    Return,
    /// Begun, and what it came to cannot be told now: it comes back marked as delivered before, and is told of then.
    GiveBack,
    /// Not started, and to come back after this wait.
    Later(Duration),
}

impl Settlement {
    /// The name used in telemetry.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Again { .. } => "again",
            Self::Split(_) => "split",
            Self::Hold(_) => "hold",
            Self::DeadLetter(_) => "dead_letter",
            Self::Quarantine(_) => "quarantine",
            Self::Return => "return",
            Self::GiveBack => "give_back",
            Self::Later(_) => "later",
        }
    }
}
