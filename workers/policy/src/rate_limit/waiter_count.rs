//! How many wait in a line, as far as a line can tell: it gives slots out, and does not see who leaves it.
//!
//! Slots are counted, not worked out from how far ahead the last one is: where a pause was ended early, or the rate is another one by now,
//! they stand closer or wider than they would be given out today.

use serde::{Deserialize, Serialize};

use super::{PARK_BACK, PARK_MAX_US};

/// Slots that a line gave out, and those who found it full.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WaiterCount {
    /// The first slot since nobody waited, ...
    pub first: f64,
    /// ... and how many were given out since then.
    pub given: f64,
    /// How many found no slot within the reach of the line, each of them once: nobody of them is back ...
    pub away: f64,
    /// ... before this time, ...
    pub back: f64,
    /// ... and whoever was ever turned away is by this one.
    pub all_back: f64,
}

impl WaiterCount {
    /// Notes that somebody joined a line that reaches so far and got this slot, or none where that is beyond it. `is_new`: nobody else waits.
    /// `back`: who gets no slot comes back then, one after the other, and not shortly before the end of the reach.
    pub fn note(&mut self, slot: f64, is_new: bool, now: f64, reach_us: f64, back: Option<f64>) {
        if is_new {
            self.given = 0.0;
        }
        if slot - now <= reach_us {
            self.first = if self.given > 0.0 { self.first.min(slot) } else { slot };
            self.given += 1.0;
            return;
        }
        let (soonest, all_back) = match back {
            None => (now + reach_us * PARK_BACK, now + reach_us),
            Some(back) => (back, back),
        };
        if now >= self.back {
            // From here on somebody may come for the second time. Where all come at once, count anew; where they come one after the other, these are left.
            self.away = if back.is_some() { self.left(now) } else { 0.0 };
            self.back = if self.away >= 1.0 { now } else { soonest };
        }
        self.away += 1.0;
        self.back = self.back.min(soonest);
        self.all_back = self.all_back.min(now + PARK_MAX_US).max(all_back);
    }

    /// Of those who found no slot, about so many are away yet.
    fn left(&self, now: f64) -> f64 {
        let all_back = self.all_back.min(now + PARK_MAX_US);
        if all_back > now { self.away * ((all_back - now) / (all_back - self.back).max(1.0)).min(1.0) } else { 0.0 }
    }

    /// About so many wait in a line with this last slot, where slots are spread evenly over it; at least so many while [`Self::is_full`].
    pub fn waiting(&self, last: f64, now: f64) -> f64 {
        let mut waiting = 0.0;
        if last > now && self.given > 0.0 {
            let length = last - self.first;
            let ahead = if length > 0.0 { ((last - now) / length).min(1.0) } else { 1.0 };
            waiting += 1.0 + (self.given - 1.0) * ahead;
        }
        waiting += self.left(now);
        waiting.round()
    }

    /// Somebody who found the line full is away.
    pub fn is_full(&self, now: f64) -> bool {
        self.all_back > now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1.76e15;
    const REACH: f64 = 1e9;

    /// So many slots from a time on, so far apart.
    fn given(tally: &mut WaiterCount, count: u32, from: f64, step: f64) -> f64 {
        let mut slot = from;
        for n in 0..count {
            slot = from + f64::from(n) * step;
            tally.note(slot, n == 0, NOW, REACH, None);
        }
        slot
    }

    #[test]
    fn those_wait_whose_slot_is_yet_to_come() {
        let mut tally = WaiterCount::default();
        let last = given(&mut tally, 101, NOW + 1e6, 1e6);
        let waiting = |seconds: f64| tally.waiting(last, NOW + seconds * 1e6);
        assert_eq!([0.0, 1.0, 51.0, 100.0, 101.0, 200.0].map(waiting), [101.0, 101.0, 51.0, 2.0, 0.0, 0.0]);
        assert!(!tally.is_full(NOW));
    }

    #[test]
    fn slots_behind_a_pause_are_as_many_when_it_ends_early() {
        let mut tally = WaiterCount::default();
        let last = given(&mut tally, 10, NOW + 6e8, 5e3);
        assert_eq!(tally.waiting(last, NOW + 1e6), 10.0);
        assert_eq!(tally.waiting(last, NOW + 6e8 + 5e3), 9.0);
        let last = given(&mut tally, 1, NOW + 6e8, 5e3);
        assert_eq!(tally.waiting(last, NOW + 1e6), 1.0, "another line");
    }

    #[test]
    fn those_who_found_the_line_full_count_once_however_often_they_come() {
        let mut tally = WaiterCount::default();
        let beyond = NOW + 1e12;
        for round in 0..3 {
            let start = NOW + f64::from(round) * REACH * 0.95;
            for n in 0..40 {
                tally.note(beyond, round == 0, start + f64::from(n) * 1e4, REACH, None);
            }
            let now = start + 1e6;
            assert!(tally.is_full(now));
            assert_eq!(tally.waiting(now, now), 40.0, "round {round}");
        }
        let end = NOW + 2.0 * REACH * 0.95 + REACH;
        assert!(tally.waiting(end, end - REACH / 16.0) < 25.0, "half of the last eighth is over");
        assert!(tally.is_full(end) && !tally.is_full(end + 1e6));
        assert_eq!(tally.waiting(end, end + 1e6), 0.0);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_anybody_away_for_as_long() {
        let mut tally = WaiterCount::default();
        tally.note(NOW + 1e13, true, NOW, REACH, None);
        let earlier = NOW - 1e12;
        assert_eq!(tally.waiting(earlier, earlier), 1.0);
        tally.note(NOW + 1e13, true, earlier, REACH, None);
        assert!(tally.is_full(earlier + REACH) && !tally.is_full(earlier + PARK_MAX_US + 1.0));
    }
}
