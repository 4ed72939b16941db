//! A worker's part of the connections to a relay, where a changed configuration put another relay in the place of one with attempts under way: those
//! end there, on connections that count for the same cap.

/// How one of them uses its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionUse {
    /// Connections it may have.
    pub limit: usize,
    /// Deliveries that have a connection or wait for one.
    pub asking: usize,
    /// Connections that are open or about to be.
    pub open: usize,
}

/// What a relay may have from now on is at most this, before any of them gets more. `relays` are in the order of their age, the last one is that of now.
///
/// Those that are no longer of now have what they need, the oldest first; the others have the rest.
pub fn shrunk(part: usize, relays: &[ConnectionUse]) -> Vec<usize> {
    wishes(part, relays).iter().zip(relays).map(|(wish, one)| one.limit.min(*wish)).collect()
}

/// What each of them may have, once they were [`shrunk`]: never more, with what is still open, than the part, unless more is open already.
pub fn spread(part: usize, relays: &[ConnectionUse]) -> Vec<usize> {
    // Each may use its limit at any moment, and what is open beyond that stays until its end.
    let mut room = part.saturating_sub(relays.iter().map(|one| one.open.max(one.limit)).sum());
    let grow = |(wish, one): (usize, &ConnectionUse)| {
        let had = one.open.max(one.limit);
        let more = wish.saturating_sub(had).min(room);
        room -= more;
        (had + more).min(wish)
    };
    wishes(part, relays).into_iter().zip(relays).map(grow).collect()
}

fn wishes(part: usize, relays: &[ConnectionUse]) -> Vec<usize> {
    let (mut left, last) = (part, relays.len().saturating_sub(1));
    let wish = |(n, one): (usize, &ConnectionUse)| {
        let wish = if n == last { left } else { one.asking.min(left) };
        left -= wish;
        wish
    };
    relays.iter().enumerate().map(wish).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relay(limit: usize, asking: usize, open: usize) -> ConnectionUse {
        ConnectionUse { limit, asking, open }
    }

    #[track_caller]
    fn check(part: usize, mut relays: Vec<ConnectionUse>, expected: &[usize]) {
        let limits = shrunk(part, &relays);
        for (one, limit) in relays.iter_mut().zip(limits) {
            one.limit = limit;
        }
        assert_eq!(spread(part, &relays), expected, "{relays:?}");
    }

    #[test]
    fn a_relay_that_was_never_replaced_has_the_whole_part() {
        check(6, vec![relay(0, 0, 0)], &[6]);
        check(2, vec![relay(6, 9, 6)], &[2]);
    }

    #[test]
    fn one_that_was_replaced_has_what_it_needs_and_the_other_one_the_rest() {
        check(6, vec![relay(6, 0, 0), relay(0, 20, 0)], &[0, 6]);
        check(6, vec![relay(6, 2, 2), relay(0, 20, 0)], &[2, 4]);
        check(6, vec![relay(6, 9, 6), relay(0, 20, 0)], &[6, 0]);
        check(6, vec![relay(1, 1, 1), relay(1, 3, 2), relay(3, 20, 3)], &[1, 2, 2]);
        // The part is smaller now.
        check(3, vec![relay(6, 4, 4), relay(0, 20, 0)], &[3, 0]);
    }

    #[test]
    fn who_needs_more_waits_for_the_others_to_close_theirs() {
        check(6, vec![relay(0, 3, 0), relay(6, 20, 6)], &[0, 3]);
        check(6, vec![relay(0, 3, 0), relay(3, 20, 4)], &[2, 3]);
        check(6, vec![relay(2, 3, 2), relay(3, 20, 3)], &[3, 3]);
    }

    proptest! {
        #[test]
        fn together_they_never_have_more_than_the_part(
            part in 0usize..12,
            relays in proptest::collection::vec((0usize..12, 0usize..12, 0usize..12), 1..4),
        ) {
            let mut relays: Vec<ConnectionUse> = relays.into_iter().map(|(limit, asking, open)| relay(limit, asking, open)).collect();
            let limits = shrunk(part, &relays);
            for (one, limit) in relays.iter_mut().zip(&limits) {
                prop_assert!(*limit <= one.limit);
                one.limit = *limit;
            }
            let open: usize = relays.iter().map(|one| one.open.max(one.limit)).sum();
            let given: usize = relays.iter().zip(spread(part, &relays)).map(|(one, limit)| one.open.max(limit)).sum();
            prop_assert!(given <= part.max(open), "{given}");
        }
    }
}
