//! How many connections to a relay each worker may have, where all workers together have a cap. A worker tells what it uses and could use, and
//! gets a lease on a part; a lease that is not renewed ends, because its worker is gone.
//!
//! Never more than the cap are given out. Every worker may have its fair part; what one does not want is there for the others. Who
//! has borrowed gives back with its next renewal, when the connections it uses have come to an end.
//!
//! Where there are fewer connections than workers, those that are idle have no fair part, and those that want one take turns: who has waited
//! longest is next, and who has had one for a while gives it back.
//!
//! Who has no lease, because it is new, was frozen, or nobody could renew for a while, gets what it has open, or one, and more with its next
//! renewal: until then the others have said what they have open. What is open counts, whoever holds a lease.

use std::collections::BTreeMap;

/// So long a turn lasts, in microseconds, where there are fewer connections than workers that want one.
const TURN_US: f64 = 10e6;

/// What one worker holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConnectionLease {
    /// Connections it may have.
    pub granted: u32,
    /// Connections it has work for.
    pub wanted: u32,
    /// Connections beyond these for work that may come.
    pub spare: u32,
    /// Since when it has some, or has none.
    pub since: f64,
    /// The end of its lease.
    pub until: f64,
}

/// A worker's question.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseRequest {
    /// Its name.
    pub worker: String,
    /// Connections it has work for.
    pub wanted: u32,
    /// Connections beyond these for work that may come.
    pub spare: u32,
    /// Connections that are open now.
    pub using: u32,
    /// The cap over all workers.
    pub total: u32,
    /// The length of a lease in microseconds.
    pub life_us: f64,
}

/// Renews a worker's lease and gives its part.
pub fn share(holders: &mut BTreeMap<String, ConnectionLease>, want: &LeaseRequest, now: f64) -> u32 {
    // One that would last for longer was given out before the store's clock was set back.
    let longest = now + 2.0 * want.life_us;
    holders.retain(|_, held| held.until > now && held.until <= longest);
    let before = holders.get(&want.worker).copied();
    let (had, since) = before.map_or((0, now), |held| (held.granted, held.since));
    let mut mine =
        ConnectionLease { granted: had, wanted: want.wanted, spare: want.spare, since, until: now + want.life_us };
    holders.insert(want.worker.clone(), mine);
    let (mut reserved, mut given, mut own) = (0, 0, 0);
    for ((name, held), fair) in holders.iter().zip(fair(holders, want.total, now)) {
        if *name == want.worker {
            own = fair;
        } else {
            given += held.granted;
            reserved += held.granted.max(fair.min(held.wanted + held.spare));
        }
    }
    let room = want.total.saturating_sub(given);
    let could = want.wanted + want.spare;
    let most = if before.is_some() { could } else { could.min(want.using.max(1)).min(room) };
    let part = most.min(want.total.saturating_sub(reserved).max(own.min(room)));
    // What is open was granted before, if by a lease that ended; it counts until it is closed.
    mine.granted = part.max(want.using);
    if (mine.granted > 0) != (had > 0) {
        mine.since = now;
    }
    holders.insert(want.worker.clone(), mine);
    part
}

/// The fair part of each, in the order of their names.
fn fair(holders: &BTreeMap<String, ConnectionLease>, total: u32, now: f64) -> Vec<u32> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let is_scarce = total < number(holders.len());
    let mut sharers: Vec<_> = holders.values().enumerate().filter(|(_, held)| !is_scarce || held.wanted > 0).collect();
    let count = number(sharers.len());
    if total < count {
        // In turns; those whose turn is as good stay in the order of their names.
        sharers.sort_by(|(_, one), (_, other)| {
            let ((class, time), (other_class, other_time)) = (turn(one, now), turn(other, now));
            class.cmp(&other_class).then(time.total_cmp(&other_time))
        });
    }
    let mut fair = vec![0; holders.len()];
    for (rank, (place, _)) in (0..).zip(sharers) {
        fair[place] = total / count + u32::from(rank < total % count);
    }
    fair
}

/// Whose turn it is, the smallest first: who has it, who waits and for how long, and last who has had it, the longest time last of all.
fn turn(held: &ConnectionLease, now: f64) -> (u8, f64) {
    match (held.granted > 0, (0.0..TURN_US).contains(&(now - held.since))) {
        (true, true) => (0, held.since),
        (false, _) => (1, held.since),
        (true, false) => (2, -held.since),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(holders: &mut BTreeMap<String, ConnectionLease>, worker: &str, wanted: u32, using: u32, now: f64) -> u32 {
        let want = LeaseRequest { worker: worker.to_owned(), wanted, spare: 0, using, total: 10, life_us: 10e6 };
        share(holders, &want, now)
    }

    #[test]
    fn workers_come_to_equal_parts_and_borrow_what_others_do_not_want() {
        let mut holders = BTreeMap::new();
        assert_eq!(ask(&mut holders, "a", 20, 0, 0.0), 1, "others may be there, and have yet to say what they use");
        assert_eq!(ask(&mut holders, "a", 20, 1, 1.0), 10, "alone it has all");
        assert_eq!(ask(&mut holders, "b", 20, 0, 1.0), 0, "nothing is free yet");
        assert_eq!(ask(&mut holders, "a", 20, 10, 2.0), 5, "it gives back what it borrowed");
        assert_eq!(ask(&mut holders, "b", 20, 0, 3.0), 0, "which is still open");
        assert_eq!(ask(&mut holders, "a", 20, 6, 4.0), 5);
        assert_eq!(ask(&mut holders, "b", 20, 0, 5.0), 4);
        assert_eq!(ask(&mut holders, "a", 20, 5, 6.0), 5);
        assert_eq!(ask(&mut holders, "b", 20, 4, 7.0), 5);
        assert_eq!(ask(&mut holders, "a", 2, 2, 8.0), 2);
        assert_eq!(ask(&mut holders, "b", 20, 5, 9.0), 8);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_no_part_of_a_dead_worker() {
        let mut holders = BTreeMap::new();
        ask(&mut holders, "a", 20, 9, 86_400e6);
        assert_eq!(ask(&mut holders, "b", 20, 0, 1e6), 1);
        assert_eq!(ask(&mut holders, "b", 20, 1, 2e6), 10);
    }

    #[test]
    fn the_part_of_a_dead_worker_is_free_again() {
        let mut holders = BTreeMap::new();
        ask(&mut holders, "a", 20, 9, 0.0);
        assert_eq!(ask(&mut holders, "b", 20, 0, 8e6), 1);
        assert_eq!(ask(&mut holders, "b", 20, 1, 9e6), 1);
        assert_eq!(ask(&mut holders, "b", 20, 1, 11e6), 10);
    }

    #[test]
    fn after_a_time_without_leases_the_first_one_to_renew_takes_nothing_from_the_others() {
        let mut holders = BTreeMap::new();
        assert_eq!(ask(&mut holders, "a", 20, 4, 0.0), 4);
        assert_eq!(ask(&mut holders, "b", 20, 6, 1e6), 5, "one of its six was borrowed");
        assert_eq!(ask(&mut holders, "a", 20, 4, 2e6), 4, "the six are open");
        assert_eq!(ask(&mut holders, "b", 20, 6, 3e6), 5);
        assert_eq!(ask(&mut holders, "b", 20, 5, 5e6), 5);
        assert_eq!(ask(&mut holders, "a", 20, 4, 6e6), 5);
    }

    #[test]
    fn what_a_worker_has_open_that_was_frozen_for_longer_than_its_lease_counts() {
        let mut holders = BTreeMap::new();
        ask(&mut holders, "a", 20, 7, 0.0);
        assert_eq!(ask(&mut holders, "b", 20, 3, 9e6), 3);
        assert_eq!(ask(&mut holders, "b", 20, 3, 11e6), 10, "as if the other one was gone");
        assert_eq!(ask(&mut holders, "a", 20, 7, 12e6), 0, "it is back: nothing more, and what ends is not replaced");
        assert_eq!(ask(&mut holders, "b", 20, 10, 13e6), 3, "what is open there leaves so much");
        assert_eq!(ask(&mut holders, "a", 20, 2, 14e6), 0);
        assert_eq!(ask(&mut holders, "b", 20, 5, 15e6), 5);
        assert_eq!(ask(&mut holders, "a", 20, 2, 16e6), 5);
    }

    /// Rounds of two seconds in which workers that want so many renew, `a` first, with what they may have open. What each one had in each round.
    fn rounds_of(total: u32, wanted: &[u32], rounds: u32, slow: bool) -> Vec<Vec<u32>> {
        let mut holders = BTreeMap::new();
        let mut open = vec![0; wanted.len()];
        (0..rounds)
            .map(|round| {
                for (n, worker) in ('a'..).take(wanted.len()).enumerate() {
                    let (worker, now) = (worker.to_string(), f64::from(round) * 2e6 + f64::from(u32::from(n > 0)));
                    let want =
                        LeaseRequest { worker, wanted: wanted[n], spare: 1, using: open[n], total, life_us: 10e6 };
                    let part = share(&mut holders, &want, now).min(wanted[n]);
                    // A message that takes longer than a turn keeps its connection open.
                    open[n] = if slow && !round.is_multiple_of(7) { part.max(open[n]) } else { part };
                    assert!(open.iter().sum::<u32>() <= total, "{open:?} in round {round}");
                }
                open.clone()
            })
            .collect()
    }

    #[test]
    fn idle_workers_keep_no_connection_from_one_that_has_work() {
        let rounds = rounds_of(2, &[0, 0, 20], 20, false);
        assert_eq!(rounds[3..].iter().map(|open| open[2]).min(), Some(2), "{rounds:?}");
    }

    #[test]
    fn workers_that_are_more_than_the_connections_take_turns() {
        for (total, workers, slow) in [(1, 2, false), (2, 3, false), (2, 3, true), (1, 3, true), (3, 7, false)] {
            let rounds = rounds_of(total, &vec![20; workers], 100, slow);
            for n in 0..workers {
                let turns = rounds.iter().filter(|open| open[n] > 0).count();
                let fair = 100 * total as usize / workers;
                assert!(turns > fair / 2 && turns < fair * 3 / 2, "{turns} of {fair} for {n}: {rounds:?}");
            }
        }
    }

    #[test]
    fn a_turn_lasts_a_while_and_who_waits_longest_is_next() {
        let rounds = rounds_of(1, &[20; 3], 40, false);
        let who: Vec<_> = rounds.iter().map(|open| open.iter().position(|open| *open > 0)).collect();
        let turns: Vec<_> = who.chunk_by(|one, other| one == other).map(|turn| (turn[0], turn.len())).collect();
        let whose: Vec<_> = turns.iter().filter_map(|(who, _)| *who).collect();
        assert_eq!(whose[..6], [0, 1, 2, 0, 1, 2], "{turns:?}");
        let short = turns.iter().take(6).any(|(who, rounds)| who.is_some() && *rounds < 5);
        assert!(!short, "{turns:?}");
    }

    /// One worker's turn in a round.
    #[derive(Debug, Clone)]
    struct Turn {
        wanted: u32,
        closing: u32,
        /// It is frozen for so many rounds from now on.
        frozen: u32,
    }

    fn turn(freezes: bool) -> impl Strategy<Value = Turn> {
        let frozen = if freezes { prop_oneof![9 => Just(0), 1 => 0u32..9].boxed() } else { Just(0).boxed() };
        (0u32..30, 0u32..4, frozen).prop_map(|(wanted, closing, frozen)| Turn { wanted, closing, frozen })
    }

    /// Rounds of renewals in a changing order, and before some of them a time in which nobody can renew.
    fn rounds(freezes: bool) -> impl Strategy<Value = Vec<(usize, bool, Vec<Turn>)>> {
        let turns = proptest::collection::vec(turn(freezes), WORKERS);
        proptest::collection::vec((0..WORKERS, proptest::bool::weighted(0.15), turns), 1..60)
    }

    const WORKERS: usize = 5;

    /// Plays them, and gives the most that were open at once. Whenever a worker opens more than it has, all that is known to be open is within
    /// the cap; one that has no lease opens one at most.
    fn play(total: u32, rounds: &[(usize, bool, Vec<Turn>)]) -> Result<u32, TestCaseError> {
        let (mut holders, mut now, mut most) = (BTreeMap::new(), 0.0, 0);
        let (mut open, mut frozen) = ([0u32; WORKERS], [0u32; WORKERS]);
        for (first, is_away, turns) in rounds {
            now += if *is_away { 12e6 } else { 1.5e6 };
            for worker in (0..WORKERS).map(|n| (n + first) % WORKERS) {
                let turn = &turns[worker];
                if frozen[worker] > 0 {
                    frozen[worker] -= 1;
                    continue;
                }
                frozen[worker] = turn.frozen;
                now += 1e5;
                open[worker] = open[worker].saturating_sub(turn.closing);
                let known: Vec<bool> = (0..WORKERS)
                    .map(|n| holders.get(&n.to_string()).is_some_and(|held: &ConnectionLease| held.until > now))
                    .collect();
                let (wanted, spare, using) = (turn.wanted, turn.closing % 2, open[worker]);
                let want = LeaseRequest { worker: worker.to_string(), wanted, spare, using, total, life_us: 10e6 };
                let part = share(&mut holders, &want, now);
                let more = part.saturating_sub(open[worker]);
                // It opens as many as it may, and closes none that are in use.
                open[worker] += more;
                let seen: u32 = (0..WORKERS).filter(|n| known[*n] || *n == worker).map(|n| open[n]).sum();
                prop_assert!(more == 0 || seen <= total, "{open:?} of {total}, {known:?} known");
                prop_assert!(known[worker] || more <= 1, "{more} more without a lease");
                most = most.max(open.iter().sum::<u32>());
            }
        }
        Ok(most)
    }

    proptest! {
        #[test]
        fn never_more_than_the_cap_are_granted(total in 1u32..20, mut rounds in rounds(false)) {
            for (_, is_away, _) in &mut rounds {
                *is_away = false;
            }
            let most = play(total, &rounds)?;
            prop_assert!(most <= total, "{most} of {total}");
        }

        #[test]
        fn a_store_that_was_away_for_longer_than_a_lease_costs_one_connection_of_each_idle_worker_at_most(
            total in 1u32..20,
            rounds in rounds(false),
        ) {
            let most = play(total, &rounds)?;
            prop_assert!(most < total + u32::try_from(WORKERS).unwrap(), "{most} of {total}");
        }

        #[test]
        fn workers_that_freeze_for_longer_than_a_lease_bring_nobody_to_open_more_than_the_cap(
            total in 1u32..20,
            rounds in rounds(true),
        ) {
            play(total, &rounds)?;
        }
    }
}
