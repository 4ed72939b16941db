//! How much of what waits more workers would send sooner. Jobs that limits deferred are on the ladder and do not wait; of those that were never
//! looked at nobody knows which they will deferred, so the ones behind them are taken to be like the ones that were taken last.

use postrider_schemas::Lane;

use crate::queue::{
    SourceKind,
    depths::{Depths, place},
};

/// What is left of the weight of an earlier second: about the last ten count.
const MEMORY: f64 = 0.9;

/// Which part of the fresh jobs limits deferred of late, by lane.
#[derive(Default)]
pub(super) struct Shares([Share; 2]);

#[derive(Default)]
struct Share {
    /// The totals that were seen last.
    seen: (u64, u64),
    taken: f64,
    limited: f64,
}

impl Shares {
    /// A second later: totals of fresh jobs taken, and of those that limits deferred.
    pub fn update(&mut self, totals: [(u64, u64); 2]) {
        for (share, (taken, limited)) in self.0.iter_mut().zip(totals) {
            let more = (taken.saturating_sub(share.seen.0), limited.saturating_sub(share.seen.1));
            // While nothing is taken, what was seen last is the best that is known.
            if more != (0, 0) {
                share.taken = share.taken * MEMORY + count(more.0);
                share.limited = share.limited * MEMORY + count(more.1);
                share.seen = (taken, limited);
            }
        }
    }

    /// Jobs of a lane that more workers would send sooner. What came back has its slot.
    pub fn deliverable(&self, lane: Lane, depths: &Depths) -> u64 {
        let share = &self.0[place(lane)];
        let limited = if share.taken > 0.0 { (share.limited / share.taken).min(1.0) } else { 0.0 };
        let fresh = depths.of(SourceKind::Jobs, lane);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most what waits")]
        let held_back = (count(fresh) * limited).round() as u64;
        depths.waiting(lane).saturating_sub(held_back)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count beyond 2^53 is none")]
fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(fresh: u64, due: u64) -> Depths {
        Depths { jobs: [0, fresh], due: [7, due], ..Depths::default() }
    }

    #[test]
    fn a_blast_that_limits_put_away_is_no_work_for_more_workers_and_its_slots_are() {
        let mut shares = Shares::default();
        assert_eq!(shares.deliverable(Lane::Bulk, &waiting(10_000, 0)), 10_000, "nobody has looked yet");
        for second in 1..=10 {
            shares.update([(0, 0), (second * 1000, second * 990)]);
        }
        assert_eq!(shares.deliverable(Lane::Bulk, &waiting(10_000, 3)), 103);
        assert_eq!(shares.deliverable(Lane::Transactional, &waiting(10_000, 3)), 7, "lanes are apart");
        // Nothing is taken: they are still the same jobs.
        for _ in 0..100 {
            shares.update([(0, 0), (10_000, 9900)]);
        }
        assert_eq!(shares.deliverable(Lane::Bulk, &waiting(5000, 0)), 50);
        // Then come others.
        for second in 1..=60 {
            shares.update([(0, 0), (10_000 + second * 1000, 9900)]);
        }
        let others = shares.deliverable(Lane::Bulk, &waiting(5000, 0));
        assert!((4950..=5000).contains(&others), "{others}");
    }
}
