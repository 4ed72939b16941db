//! Whether the next transport of a route may be tried, and which of several refusals speaks for all of them.
//!
//! One rule stands above all: the next transport is tried only when the one before certainly did not take the message.

use super::{classify::mildest_of, route::OnLimit};
use crate::outcome::{Class, Outcome, Refusal};

/// What follows the outcome at one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// This is how the attempt ended.
    Settle,
    /// The next transport, where there is one.
    Next,
}

/// Decides.
pub fn then(outcome: &Outcome, on_limit: OnLimit) -> Then {
    match outcome {
        // Taken, perhaps taken, or somebody else's.
        Outcome::Accepted { .. } | Outcome::Unknown(_) | Outcome::LostClaim => Then::Settle,
        // The transport works and looked at each recipient: another one would see those again that are refused for good. Where it
        // is about us with all of them, another one may not mind.
        Outcome::Refused { recipients, .. } if !recipients.is_empty() => {
            if recipients.iter().all(|one| leads_on(one.refusal.class, on_limit)) { Then::Next } else { Then::Settle }
        }
        Outcome::Refused { refusal, .. } => match refusal.class {
            Class::Recipient | Class::Message => Then::Settle,
            Class::Misfit | Class::Config | Class::Sender | Class::Unavailable | Class::Transient => Then::Next,
            Class::Throttled | Class::Quota => match on_limit {
                OnLimit::Next => Then::Next,
                OnLimit::Wait | OnLimit::Expire => Then::Settle,
            },
        },
    }
}

/// Whether a refusal of one recipient is about us, and leads to the next transport.
fn leads_on(class: Class, on_limit: OnLimit) -> bool {
    match class {
        Class::Misfit | Class::Config | Class::Sender | Class::Unavailable => true,
        Class::Throttled | Class::Quota => on_limit == OnLimit::Next,
        Class::Recipient | Class::Message | Class::Transient => false,
    }
}

/// Whether a job that too many others wait before is tried at the next transport, where there is one, and not put away: where the route wants that of limits, and
/// where the transport is silent, which says that it is broken.
pub fn leaves_crowd(on_limit: OnLimit, is_silent: bool) -> bool {
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
    fn check(outcome: &Outcome, on_limit: OnLimit, expected: Then) {
        assert_eq!(then(outcome, on_limit), expected, "{outcome:?} {on_limit:?}");
    }

    #[test]
    fn what_may_have_been_taken_goes_to_nobody_else() {
        let answer = Answer::local(Stage::Call, "cut");
        for on_limit in [OnLimit::Wait, OnLimit::Next, OnLimit::Expire] {
            check(&Outcome::Unknown(answer.clone()), on_limit, Then::Settle);
            check(&Outcome::LostClaim, on_limit, Then::Settle);
            let receipt = Receipt { answer: answer.clone() };
            check(&Outcome::Accepted { receipt, refused: vec![] }, on_limit, Then::Settle);
            for class in [Class::Recipient, Class::Message] {
                check(&whole(class), on_limit, Then::Settle);
            }
            for class in [Class::Misfit, Class::Config, Class::Sender, Class::Unavailable, Class::Transient] {
                check(&whole(class), on_limit, Then::Next);
            }
        }
    }

    #[test]
    fn the_route_says_whether_a_limit_leads_to_the_next() {
        for class in [Class::Throttled, Class::Quota] {
            check(&whole(class), OnLimit::Next, Then::Next);
            check(&whole(class), OnLimit::Wait, Then::Settle);
            check(&whole(class), OnLimit::Expire, Then::Settle);
        }
    }

    #[test]
    fn a_crowd_at_a_transport_that_is_silent_leads_to_the_next_as_the_route_may_want_it_of_any() {
        let leaves =
            |is_silent| [OnLimit::Wait, OnLimit::Next, OnLimit::Expire].map(|one| leaves_crowd(one, is_silent));
        assert_eq!((leaves(true), leaves(false)), ([true; 3], [false, true, false]));
    }

    #[test]
    fn recipients_that_were_looked_at_stay_with_their_transport() {
        let one = RecipientRefusal { index: 0, refusal: refusal(Class::Transient) };
        check(
            &Outcome::Refused { refusal: refusal(Class::Transient), recipients: vec![one] },
            OnLimit::Next,
            Then::Settle,
        );
    }

    #[test]
    fn recipients_that_it_does_not_relay_to_go_to_the_next() {
        let one = |index, class| RecipientRefusal { index, refusal: refusal(class) };
        let refused = |recipients| Outcome::Refused { refusal: refusal(Class::Sender), recipients };
        check(&refused(vec![one(0, Class::Sender), one(1, Class::Sender)]), OnLimit::Wait, Then::Next);
        check(&refused(vec![one(0, Class::Sender), one(1, Class::Recipient)]), OnLimit::Wait, Then::Settle);
        check(&refused(vec![one(0, Class::Misfit), one(1, Class::Config)]), OnLimit::Wait, Then::Next);
        check(&refused(vec![one(0, Class::Quota)]), OnLimit::Wait, Then::Settle);
        check(&refused(vec![one(0, Class::Quota), one(1, Class::Sender)]), OnLimit::Next, Then::Next);
    }

    #[test]
    fn the_refusal_with_the_most_hope_speaks() {
        let list = |classes: &[Class]| classes.iter().map(|class| (0, refusal(*class))).collect::<Vec<_>>();
        assert_eq!(spokesman(&list(&[Class::Misfit, Class::Config, Class::Transient])), Some(2));
        assert_eq!(spokesman(&list(&[Class::Config, Class::Config])), Some(0));
        assert_eq!(spokesman(&[]), None);
    }
}
