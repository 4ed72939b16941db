//! Whether the next transport of a route may be tried, and which of several refusals speaks for all of them.
//!
//! One rule stands above all: the next transport is tried only when the one before certainly did not take the message.

use super::{classify::mildest_of, route::OnLimit};
use crate::outcome::{Class, Outcome, Refusal};

/// What follows the outcome at one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailoverStep {
    /// This is how the attempt ended.
    Settle,
    /// The next transport, where there is one.
    Next,
}

/// Decides.
pub fn next_step(outcome: &Outcome, on_limit: OnLimit) -> FailoverStep {
    match outcome {
        // Taken, perhaps taken, or somebody else's.
        Outcome::Accepted { .. } | Outcome::Unknown(_) | Outcome::LostClaim => FailoverStep::Settle,
        // The transport works and looked at each recipient: another one would see those again that are refused for good. Where it
        // is about us with all of them, another one may not mind.
        Outcome::Refused { recipients, .. } if !recipients.is_empty() => {
            if recipients.iter().all(|one| leads_on(one.refusal.class, on_limit)) {
                FailoverStep::Next
            } else {
                FailoverStep::Settle
            }
        }
        Outcome::Refused { refusal, .. } => match refusal.class {
            Class::Recipient | Class::Message | Class::TemplateLimit => FailoverStep::Settle,
            Class::Unsupported
            | Class::Config
            | Class::Sender
            | Class::Unavailable
            | Class::Transient
            | Class::Local => FailoverStep::Next,
            Class::Throttled | Class::Quota => match on_limit {
                OnLimit::Next => FailoverStep::Next,
                OnLimit::Wait | OnLimit::Expire => FailoverStep::Settle,
            },
        },
    }
}

/// Whether a refusal of one recipient is about us, and leads to the next transport.
fn leads_on(class: Class, on_limit: OnLimit) -> bool {
    match class {
        Class::Unsupported | Class::Config | Class::Sender | Class::Unavailable => true,
        Class::Throttled | Class::Quota => on_limit == OnLimit::Next,
        Class::Recipient | Class::Message | Class::TemplateLimit | Class::Transient | Class::Local => false,
    }
}

/// Whether a job that finds no room at a transport is tried at the next transport, where there is one, and not deferred: where the route wants that of limits, and
/// where the transport is silent, which says that it is broken.
pub fn leaves_overloaded(on_limit: OnLimit, is_silent: bool) -> bool {
    is_silent || on_limit == OnLimit::Next
}

/// The position of the refusal that leaves the most hope, the first of those; nothing for an empty list.
pub fn spokesman(refusals: &[(usize, Refusal)]) -> Option<usize> {
    mildest_of(refusals.iter().map(|(_, refusal)| refusal.class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Answer, Receipt, RecipientRefusal, Stage};

    fn refusal(class: Class) -> Refusal {
        Refusal { class, answer: Answer::local(Stage::Call, "no"), retry_after: None }
    }

    fn whole(class: Class) -> Outcome {
        Outcome::Refused { refusal: refusal(class), recipients: Vec::new() }
    }

    #[track_caller]
    fn check(outcome: &Outcome, on_limit: OnLimit, expected: FailoverStep) {
        assert_eq!(next_step(outcome, on_limit), expected, "{outcome:?} {on_limit:?}");
    }

    #[test]
    fn what_may_have_been_taken_goes_to_nobody_else() {
        let answer = Answer::local(Stage::Call, "cut");
        for on_limit in [OnLimit::Wait, OnLimit::Next, OnLimit::Expire] {
            check(&Outcome::Unknown(answer.clone()), on_limit, FailoverStep::Settle);
            check(&Outcome::LostClaim, on_limit, FailoverStep::Settle);
            let receipt = Receipt { answer: answer.clone() };
            check(&Outcome::Accepted { receipt, refused: vec![] }, on_limit, FailoverStep::Settle);
            for class in [Class::Recipient, Class::Message] {
                check(&whole(class), on_limit, FailoverStep::Settle);
            }
            for class in [Class::Unsupported, Class::Config, Class::Sender, Class::Unavailable, Class::Transient] {
                check(&whole(class), on_limit, FailoverStep::Next);
            }
        }
    }

    #[test]
    fn the_route_says_whether_a_limit_leads_to_the_next() {
        for class in [Class::Throttled, Class::Quota] {
            check(&whole(class), OnLimit::Next, FailoverStep::Next);
            check(&whole(class), OnLimit::Wait, FailoverStep::Settle);
            check(&whole(class), OnLimit::Expire, FailoverStep::Settle);
        }
    }

    #[test]
    fn a_crowd_at_a_transport_that_is_silent_leads_to_the_next_as_the_route_may_want_it_of_any() {
        let leaves =
            |is_silent| [OnLimit::Wait, OnLimit::Next, OnLimit::Expire].map(|one| leaves_overloaded(one, is_silent));
        assert_eq!((leaves(true), leaves(false)), ([true; 3], [false, true, false]));
    }

    #[test]
    fn recipients_that_were_looked_at_stay_with_their_transport() {
        let one = RecipientRefusal { index: 0, refusal: refusal(Class::Transient) };
        check(
            &Outcome::Refused { refusal: refusal(Class::Transient), recipients: vec![one] },
            OnLimit::Next,
            FailoverStep::Settle,
        );
    }

    #[test]
    fn recipients_that_it_does_not_relay_to_go_to_the_next() {
        let one = |index, class| RecipientRefusal { index, refusal: refusal(class) };
        let refused = |recipients| Outcome::Refused { refusal: refusal(Class::Sender), recipients };
        check(&refused(vec![one(0, Class::Sender), one(1, Class::Sender)]), OnLimit::Wait, FailoverStep::Next);
        check(&refused(vec![one(0, Class::Sender), one(1, Class::Recipient)]), OnLimit::Wait, FailoverStep::Settle);
        check(&refused(vec![one(0, Class::Unsupported), one(1, Class::Config)]), OnLimit::Wait, FailoverStep::Next);
        check(&refused(vec![one(0, Class::Quota)]), OnLimit::Wait, FailoverStep::Settle);
        check(&refused(vec![one(0, Class::Quota), one(1, Class::Sender)]), OnLimit::Next, FailoverStep::Next);
    }

    #[test]
    fn the_refusal_with_the_most_hope_speaks() {
        let list = |classes: &[Class]| classes.iter().map(|class| (0, refusal(*class))).collect::<Vec<_>>();
        assert_eq!(spokesman(&list(&[Class::Unsupported, Class::Config, Class::Transient])), Some(2));
        assert_eq!(spokesman(&list(&[Class::Config, Class::Config])), Some(0));
        assert_eq!(spokesman(&[]), None);
    }
}
