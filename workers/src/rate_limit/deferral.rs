//! When a job that was deferred may ask again, and why it was. The ladder has a grain of seconds, and what is published for now is back at once.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::ladder;
use tokio::time::Instant;

use crate::policy::{outcome::Refusal, schedule};

/// The shortest wait that is left to the ladder: two seconds, which are what it gives at least, and a hop.
pub(super) const LADDER_MIN: Duration = Duration::from_millis(2500);
/// What the ladder gets is so much longer than what would be back at once: it is on its way for a while before that is looked at.
const MARGIN: Duration = Duration::from_millis(200);
/// The delay ladder rounds up to whole seconds, and a hop takes its time: a job is sent on its way so much early, and waits for its slot in
/// the worker. Less than [`schedule::HERE_MAX`], from which on it would be deferred again.
pub(super) const EARLY: Duration = Duration::from_millis(1400);
const _: () = assert!(EARLY.as_millis() < schedule::HERE_MAX.as_millis());

/// An event says again after so long that a job still waits for the same.
const TELL_EVERY: Duration = Duration::from_mins(15);

/// What to keep of an event that says why a job waits; nothing where the same was said a short while ago and is not worth another event.
pub fn to_tell(told: Option<&str>, reason: &str, now: Timestamp) -> Option<String> {
    let is_known = told.and_then(|told| told.split_once(' ')).is_some_and(|(before, at)| {
        let age = at.parse().map(|at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        before == reason && age.is_ok_and(|age| age < TELL_EVERY)
    });
    (!is_known).then(|| format!("{reason} {now:.0}"))
}

/// Why a job does not go now. It uses up no try.
#[derive(Debug, Clone, PartialEq)]
pub enum Deferral {
    /// A limit makes it wait until its slot: the name of the scope.
    Limit(Slot, String),
    /// Too many jobs wait for this transport already, or are delivered by it.
    Overloaded(Slot, String),
    /// No process had time to render its template.
    Render(Slot),
    /// The store is away, and the job is not to go without it.
    StoreDown,
    /// It is too late, or would be after the wait that a limit makes it wait.
    Expired(Option<Refusal>),
    /// The worker stops, and the job was only waiting.
    Stopping,
}

/// When a job that was deferred may ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its slot.
    pub at: Instant,
    /// When it is to be back at a worker.
    pub back: Instant,
}

impl Slot {
    /// A slot after a wait that is spent in the ladder, or on the way back at once where the ladder's shortest one is longer.
    pub fn after(wait: Duration) -> Self {
        let now = Instant::now();
        // What is published with less than a rung's wait is back at once, and waits in a worker like what is early.
        let least = ladder::WAIT_MIN + MARGIN;
        if wait < ladder::WAIT_MIN {
            return Self::soon(wait);
        }
        Self { at: now + wait, back: now + wait.saturating_sub(EARLY).max(least) }
    }

    /// A slot that is waited for among those that came back: they are fetched apart, and more of them.
    pub fn soon(wait: Duration) -> Self {
        let now = Instant::now();
        Self { at: now + wait, back: now }
    }
}

/// How a deferral until a slot is told.
pub struct DeferralWords {
    /// The word that metrics know.
    pub metric: &'static str,
    /// The word that events know.
    pub event: &'static str,
    /// What events and logs say.
    pub answer: String,
    /// The scope, where a limit is in the way.
    pub scope: Option<String>,
}

impl Deferral {
    /// The slot, where the job has one, and how that is told.
    pub fn slot(&self) -> Option<(Slot, DeferralWords)> {
        let (slot, metric, event, answer) = match self {
            Self::Limit(slot, scope) => (slot, "limit", "limited", format!("limited by {scope}")),
            Self::Overloaded(slot, transport) => {
                let answer = format!("too many jobs wait for a turn at {transport}");
                (slot, "transport_overloaded", "transport_overloaded", answer)
            }
            Self::Render(slot) => {
                (slot, "render", "transport_overloaded", "no process had time for the template".to_owned())
            }
            Self::StoreDown | Self::Expired(_) | Self::Stopping => return None,
        };
        let scope = if let Self::Limit(_, scope) = self { Some(scope.clone()) } else { None };
        Some((*slot, DeferralWords { metric, event, answer, scope }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_that_a_job_waits_when_that_begins_and_then_rarely() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let told = to_tell(None, "limited", at("2026-11-29T10:00:00Z"));
        assert_eq!(told.as_deref(), Some("limited 2026-11-29T10:00:00Z"));
        assert_eq!(to_tell(told.as_deref(), "limited", at("2026-11-29T10:14:59Z")), None);
        assert!(to_tell(told.as_deref(), "limited", at("2026-11-29T10:15:00Z")).is_some());
        assert!(to_tell(told.as_deref(), "transport_overloaded", at("2026-11-29T10:00:01Z")).is_some());
        assert!(to_tell(Some("of another version"), "limited", at("2026-11-29T10:00:01Z")).is_some());
    }
}
