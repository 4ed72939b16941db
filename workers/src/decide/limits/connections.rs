//! How many connections to a relay each worker may have, where all workers together have a cap. A worker tells what it uses and could use, and
//! gets a lease on a part; a lease that is not renewed ends, because its worker is gone.
//!
//! Never more than the cap are given out. Every worker may have its fair part; what one does not want is there for the others. Who
//! has borrowed gives back with its next renewal, when the connections it uses have come to an end.

use std::collections::BTreeMap;

/// What one worker holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Held {
    /// Connections it may have.
    pub granted: u32,
    /// Connections it could use.
    pub wanted: u32,
    /// The end of its lease.
    pub until: f64,
}

/// A worker's question.
#[derive(Debug, Clone, PartialEq)]
pub struct Want {
    /// Its name.
    pub worker: String,
    /// Connections it could use.
    pub wanted: u32,
    /// Connections that are open now.
    pub using: u32,
    /// The cap over all workers.
    pub total: u32,
    /// The length of a lease in microseconds.
    pub life_us: f64,
}

/// Renews a worker's lease and gives its part.
pub fn share(holders: &mut BTreeMap<String, Held>, want: &Want, now: f64) -> u32 {
    holders.retain(|_, held| held.until > now);
    let before = holders.get(&want.worker).map_or(0, |held| held.granted);
    let until = now + want.life_us;
    holders.insert(want.worker.clone(), Held { granted: before, wanted: want.wanted, until });
    let count = u32::try_from(holders.len()).unwrap_or(u32::MAX);
    let fair = |rank: u32| want.total / count + u32::from(rank < want.total % count);
    let (mut reserved, mut given, mut own) = (0, 0, 0);
    for (rank, (name, held)) in (0..).zip(holders.iter()) {
        if *name == want.worker {
            own = fair(rank);
        } else {
            given += held.granted;
            reserved += held.granted.max(fair(rank).min(held.wanted));
        }
    }
    let room = want.total.saturating_sub(given);
    let part = want.wanted.min(want.total.saturating_sub(reserved).max(own.min(room)));
    // What is open was granted before; it counts until it is closed.
    let granted = part.max(want.using.min(before));
    holders.insert(want.worker.clone(), Held { granted, wanted: want.wanted, until });
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(holders: &mut BTreeMap<String, Held>, worker: &str, wanted: u32, using: u32, now: f64) -> u32 {
        let want = Want { worker: worker.to_owned(), wanted, using, total: 10, life_us: 10e6 };
        share(holders, &want, now)
    }

    #[test]
    fn workers_come_to_equal_parts_and_borrow_what_others_do_not_want() {
        let mut holders = BTreeMap::new();
        assert_eq!(ask(&mut holders, "a", 20, 0, 0.0), 10, "alone it has all");
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
    fn the_part_of_a_dead_worker_is_free_again() {
        let mut holders = BTreeMap::new();
        ask(&mut holders, "a", 20, 0, 0.0);
        assert_eq!(ask(&mut holders, "b", 20, 0, 9e6), 0);
        assert_eq!(ask(&mut holders, "b", 20, 0, 11e6), 10);
    }

    proptest! {
        #[test]
        fn never_more_than_the_cap_are_granted(
            total in 1u32..20,
            steps in proptest::collection::vec((0usize..5, 0u32..30, 0u32..4, 0u32..3_000_000), 1..200),
        ) {
            let mut holders = BTreeMap::new();
            let mut open = [0u32; 5];
            let mut now = 0.0;
            for (worker, wanted, closing, pause) in steps {
                now += f64::from(pause);
                open[worker] = open[worker].saturating_sub(closing);
                let want = Want { worker: worker.to_string(), wanted, using: open[worker], total, life_us: 1e12 };
                let part = share(&mut holders, &want, now);
                // It opens as many as it may, and closes none that are in use.
                open[worker] = open[worker].max(part);
                prop_assert!(open.iter().sum::<u32>() <= total, "{open:?} of {total}");
            }
        }
    }
}
