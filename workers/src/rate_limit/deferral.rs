//! When a job that was deferred may ask again, and why it was. The ladder has a grain of seconds, and what is published for now is back at once.

use std::time::Duration;

use postrider_schemas::ladder;
use tokio::time::Instant;

use crate::policy::schedule;

/// The shortest wait that is left to the ladder: two seconds, which are what it gives at least, and a hop.
pub(super) const LADDER_MIN: Duration = Duration::from_millis(2500);
/// What the ladder gets is so much longer than what would be back at once: it is on its way for a while before that is looked at.
const MARGIN: Duration = Duration::from_millis(200);
/// The delay ladder rounds up to whole seconds, and a hop takes its time: a job is sent on its way so much early, and waits for its slot in
/// the worker. Less than [`schedule::HERE_MAX`], from which on it would be deferred again.
pub(super) const EARLY: Duration = Duration::from_millis(1400);
const _: () = assert!(EARLY.as_millis() < schedule::HERE_MAX.as_millis());

/// When a job that was deferred may ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deferral {
    /// Its slot.
    pub at: Instant,
    /// When it is to be back at a worker.
    pub back: Instant,
    /// What it waits for.
    pub why: DeferralReason,
}

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeferralReason {
    /// A limit: the name of the scope.
    Limit(String),
    /// A connection or a call of this transport, for which too many wait already.
    Overloaded(String),
    /// A process that renders its template.
    Render,
}

impl DeferralReason {
    /// The word that metrics know.
    pub fn metric_reason(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::Overloaded(_) => "transport_overloaded",
            Self::Render => "render",
        }
    }

    /// The word that events know, and what they say.
    pub fn event_reason(&self) -> (&'static str, String) {
        match self {
            Self::Limit(scope) => ("limited", format!("limited by {scope}")),
            Self::Overloaded(transport) => {
                ("transport_overloaded", format!("too many jobs wait for a turn at {transport}"))
            }
            Self::Render => ("transport_overloaded", "no process had time for the template".to_owned()),
        }
    }
}

impl std::fmt::Display for DeferralReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Limit(scope) => f.write_str(scope),
            Self::Overloaded(transport) => write!(f, "a turn at {transport}"),
            Self::Render => f.write_str("a process that renders its template"),
        }
    }
}

impl Deferral {
    /// A slot after a wait that is spent in the ladder, or on the way back at once where the ladder's shortest one is longer.
    pub fn after(wait: Duration, why: DeferralReason) -> Self {
        let now = Instant::now();
        // What is published with less than a rung's wait is back at once, and waits in a worker like what is early.
        let least = ladder::WAIT_MIN + MARGIN;
        if wait < ladder::WAIT_MIN {
            return Self::soon(wait, why);
        }
        Self { at: now + wait, back: now + wait.saturating_sub(EARLY).max(least), why }
    }

    /// A slot that is waited for among those that came back: they are fetched apart, and more of them.
    pub fn soon(wait: Duration, why: DeferralReason) -> Self {
        let now = Instant::now();
        Self { at: now + wait, back: now, why }
    }
}
