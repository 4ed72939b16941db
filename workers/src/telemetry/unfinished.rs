//! How long the oldest unfinished job of this worker is unfinished: those in hand, and those that it deferred. A broker does not show what waits on
//! its ladder, so the worker that put a job there remembers it until its time comes. Bounded.

use std::collections::BTreeMap;

/// Most remembered times at which deferred jobs come back. Jobs that come back at the same time share one.
const DEFERRED_MAX: usize = 2048;

/// Unfinished jobs of one lane. Times are in ms.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Since when, and how many: those that no transport refused so far, then those that one did.
    in_hand: [BTreeMap<i64, u32>; 2],
    /// By the time at which they come back: since when the oldest of them is unfinished.
    deferred: [BTreeMap<i64, i64>; 2],
}

impl Unfinished {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { in_hand: [BTreeMap::new(), BTreeMap::new()], deferred: [BTreeMap::new(), BTreeMap::new()] }
    }

    /// A job is taken in hand that is unfinished since then.
    pub fn take(&mut self, since: i64, was_refused: bool) {
        *self.in_hand[usize::from(was_refused)].entry(since).or_default() += 1;
    }

    /// A job that was taken is out of hand.
    pub fn release(&mut self, since: i64, was_refused: bool) {
        let in_hand = &mut self.in_hand[usize::from(was_refused)];
        if let Some(count) = in_hand.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                in_hand.remove(&since);
            }
        }
    }

    /// A job is deferred from now on, and comes back at `due`.
    pub fn defer(&mut self, since: i64, due: i64, was_refused: bool, now: i64) {
        let deferred = &mut self.deferred[usize::from(was_refused)];
        let due = rounded_up(due, now);
        deferred.entry(due).and_modify(|known| *known = (*known).min(since)).or_insert(since);
        if deferred.len() > DEFERRED_MAX
            && let Some((_, last)) = deferred.pop_last()
            && let Some(mut next) = deferred.last_entry()
        {
            let oldest = last.min(*next.get());
            next.insert(oldest);
        }
    }

    /// Since when the oldest job is unfinished; with `untried` the oldest one that no transport refused so far.
    pub fn oldest(&mut self, now: i64, untried: bool) -> Option<i64> {
        let kinds = if untried { 1 } else { 2 };
        let mut oldest: Option<i64> = None;
        for (in_hand, deferred) in self.in_hand.iter().zip(&mut self.deferred).take(kinds) {
            // What was due is in hand again, or waits where its queue tells.
            *deferred = deferred.split_off(&now);
            let first = in_hand.keys().next().copied();
            oldest = [oldest, first, deferred.values().min().copied()].into_iter().flatten().min();
        }
        oldest.filter(|since| *since <= now)
    }
}

/// Coarser the further away: a handful of entries for each hour is enough for an age.
fn rounded_up(due: i64, now: i64) -> i64 {
    let grain = match due.saturating_sub(now) {
        ..=60_000 => 1000,
        60_001..=3_600_000 => 30_000,
        _ => 600_000,
    };
    due.div_euclid(grain).saturating_add(1).saturating_mul(grain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_in_hand_and_deferred_ones_count_until_they_end_or_are_due() {
        let mut jobs = Unfinished::new();
        assert_eq!(jobs.oldest(1000, false), None);
        jobs.take(500, false);
        jobs.take(500, false);
        jobs.take(300, true);
        assert_eq!((jobs.oldest(1000, false), jobs.oldest(1000, true)), (Some(300), Some(500)));
        jobs.release(300, true);
        jobs.release(500, false);
        assert_eq!(jobs.oldest(1000, false), Some(500));
        jobs.release(500, false);
        assert_eq!(jobs.oldest(1000, false), None);
        jobs.defer(200, 20_000, false, 1000);
        jobs.defer(100, 30_000, true, 1000);
        assert_eq!((jobs.oldest(2000, false), jobs.oldest(2000, true)), (Some(100), Some(200)));
        assert_eq!(jobs.oldest(25_000, false), Some(100), "one of them came back");
        assert_eq!(jobs.oldest(32_000, false), None);
    }

    #[test]
    fn a_job_that_is_to_be_sent_later_is_not_late_before_that() {
        let mut jobs = Unfinished::new();
        jobs.defer(50_000, 50_000, false, 0);
        assert_eq!(jobs.oldest(10_000, false), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgets_no_age() {
        let mut jobs = Unfinished::new();
        for n in 0..100_000_i64 {
            jobs.defer(n, 4_000_000 + n * 600_000, false, 0);
        }
        assert!(jobs.deferred[0].len() <= DEFERRED_MAX);
        assert_eq!(jobs.oldest(100_000, false), Some(0));
    }
}
