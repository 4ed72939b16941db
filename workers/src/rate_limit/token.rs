//! A token belongs to a moment. One whose message then waits for a connection is used later, and many that were kept waiting by the same
//! stall would go out in a burst: so a token is looked at again right before it is used, with the connection at hand, and where connections are
//! scarce it is asked for only then.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Limiter, Subject, deferral::Deferral, micros};
use crate::{
    policy::rate_limit::admit::{Admission, AdmissionRequest},
    telemetry::traces,
};

/// A token is used up to so long after its time, or up to the time of the next one where those are further apart.
const LATE_MAX: Duration = Duration::from_millis(100);
/// A connection is kept for so long while its token's time has not come, ...
const KEPT: Duration = Duration::from_millis(25);
/// ... and for so long by a job that had to give one back before.
const KEPT_AGAIN: Duration = Duration::from_millis(250);

/// The right to send one message, at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    late_from: LateFrom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LateFrom {
    Never,
    At(Instant),
    Always,
}

impl Token {
    /// Of what is not limited.
    pub const UNLIMITED: Self = Self { late_from: LateFrom::Never };
    /// None yet: it is asked for when there is a connection.
    pub const NONE: Self = Self { late_from: LateFrom::Always };

    /// A token of this time; the next one's is a step later.
    pub(super) fn due(due: Instant, step_us: f64) -> Self {
        Self { late_from: LateFrom::At(due + micros(step_us).max(LATE_MAX)) }
    }

    /// Whether it belongs to another time than this.
    pub fn is_late(self, now: Instant) -> bool {
        match self.late_from {
            LateFrom::Never => false,
            LateFrom::At(time) => now > time,
            LateFrom::Always => true,
        }
    }
}

impl Limiter {
    /// Asks for a token for who has a connection, and waits for its time where that is near. `again`: it had one before, and had to give it back. Where
    /// the token's time is not near, the question and its answer: the connection is for others meanwhile.
    pub async fn token_with_connection(
        &self,
        subject: Subject<'_>,
        queue: bool,
        again: bool,
    ) -> Result<Option<(AdmissionRequest, Admission)>, Deferral> {
        if let Some(ask) = self.ask(subject, self.demands(subject), queue) {
            match self.asked(&ask).await {
                None => return Err(Deferral::StoreDown),
                Some(Admission::Free) => {}
                Some(Admission::Go { wait_us, .. }) if micros(wait_us) <= if again { KEPT_AGAIN } else { KEPT } => {
                    let _waiting = (wait_us > 0.0).then(|| traces::waiting("limit"));
                    sleep(micros(wait_us)).await;
                }
                Some(later) => return Ok(Some((ask, later))),
            }
        }
        self.goes(subject);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_late_after_a_tenth_of_a_second_or_when_the_next_one_is_due() {
        let due = Instant::now();
        let after = |token: Token, ms: u64| token.is_late(due + Duration::from_millis(ms));
        let (fast, slow) = (Token::due(due, 5e3), Token::due(due, 1e6));
        assert_eq!((after(fast, 99), after(fast, 101)), (false, true));
        assert_eq!((after(slow, 999), after(slow, 1001)), (false, true));
        assert!(!after(Token::UNLIMITED, 10_000) && after(Token::NONE, 0));
    }
}
