//! Those of one lane who wait for a connection or a call of a transport, how fast they have their turn, and for how many it is at work. What follows from it is decided in
//! [`crate::policy::overload`].

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::policy::{
    overload::{OverloadInput, overload_delay},
    rate_limit::{scope::WaitQueue, wait_queue::TenantWeight},
};

/// Turns, and those deferred, are counted over this time and the one before it.
const COUNTED: Duration = Duration::from_secs(5);

/// Who comes to a overload.
#[derive(Debug, Clone, Copy)]
pub struct WaitRequest<'a> {
    /// Its tenant.
    pub who: TenantWeight<'a>,
    /// It was never deferred.
    pub is_fresh: bool,
    /// So many fresh jobs of its lane are in hand at once.
    pub job_slots: usize,
    /// From 0 to 1, another one for each.
    pub dice: f64,
}

/// The overload of a lane.
#[derive(Debug)]
pub struct Bulkhead {
    began: Instant,
    state: Mutex<BulkheadState>,
}

#[derive(Debug)]
struct BulkheadState {
    /// The number of who comes next.
    next: u64,
    /// Since when each one waits.
    waiting: BTreeMap<u64, Instant>,
    /// Since when somebody does.
    since: Instant,
    /// So many have their turn now.
    at_work: usize,
    turns: RollingRate,
    away: RollingRate,
    /// The slots of those who were deferred.
    line: WaitQueue,
}

/// How many of late.
#[derive(Debug)]
struct RollingRate {
    since: Instant,
    since_then: u32,
    before: Option<u32>,
}

/// Somebody who has its turn, until it is dropped.
pub struct InProgress<'a>(&'a Bulkhead);

/// Somebody who waits, until it is dropped.
pub struct BulkheadWaiter<'a> {
    bulkhead: &'a Bulkhead,
    number: u64,
}

impl Bulkhead {
    /// Of nobody.
    pub fn new(now: Instant) -> Self {
        let (turns, away) = (RollingRate::new(now), RollingRate::new(now));
        let (waiting, line) = (BTreeMap::new(), WaitQueue::default());
        let state = BulkheadState { next: 0, waiting, since: now, at_work: 0, turns, away, line };
        Self { began: now, state: Mutex::new(state) }
    }

    /// One more who waits.
    pub fn enter(&self, now: Instant) -> BulkheadWaiter<'_> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.waiting.is_empty() {
            state.since = now;
        }
        state.waiting.insert(number, now);
        BulkheadWaiter { bulkhead: self, number }
    }

    /// Whether anybody is being delivered.
    pub fn is_at_work(&self) -> bool {
        self.state().at_work > 0
    }

    /// One more who has its turn.
    pub fn begin(&self) -> InProgress<'_> {
        self.state().at_work += 1;
        InProgress(self)
    }

    /// For how long the first one waits.
    pub fn first_waits(&self, now: Instant) -> Duration {
        self.state().first_waits(now)
    }

    /// Since when there was somebody who waited, all the time; nothing where nobody does.
    pub fn since(&self) -> Option<Instant> {
        let state = self.state();
        (!state.waiting.is_empty()).then_some(state.since)
    }

    /// For how long a job that would be the last one is deferred; nothing where it may wait here. `is_shut`: the transport gives out nothing now.
    pub fn overload_delay(&self, wait_request: &WaitRequest<'_>, is_shut: bool, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        let ahead = state.waiting.len();
        self.decide(&mut state, ahead, wait_request, is_shut, now)
    }

    fn decide(
        &self,
        state: &mut BulkheadState,
        ahead: usize,
        wait_request: &WaitRequest<'_>,
        is_shut: bool,
        now: Instant,
    ) -> Option<Duration> {
        let seen = OverloadInput {
            ahead,
            at_work: state.at_work,
            first_us: us(state.first_waits(now)),
            per_second: state.turns.per_second(now),
            away_per_second: state.away.per_second(now),
            job_slots: wait_request.job_slots,
            is_shut,
        };
        let now_us = us(now.duration_since(self.began));
        let back =
            overload_delay(&mut state.line, wait_request.who, wait_request.is_fresh, &seen, now_us, wait_request.dice)?;
        state.away.one(now);
        Some(Duration::from_secs_f64((back - now_us).max(0.0) / 1e6))
    }

    fn state(&self) -> MutexGuard<'_, BulkheadState> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BulkheadState {
    fn first_waits(&self, now: Instant) -> Duration {
        let first = self.waiting.first_key_value();
        first.map(|(_, since)| now.saturating_duration_since(*since)).unwrap_or_default()
    }
}

impl BulkheadWaiter<'_> {
    /// For how long it is deferred, because too many wait before it and their turn does not come; nothing where it may go on waiting here.
    pub fn overload_delay(&self, wait_request: &WaitRequest<'_>, is_shut: bool, now: Instant) -> Option<Duration> {
        let mut state = self.bulkhead.state();
        let ahead = state.waiting.range(..self.number).count();
        self.bulkhead.decide(&mut state, ahead, wait_request, is_shut, now)
    }

    /// Its turn came.
    pub fn served(self, now: Instant) {
        self.bulkhead.state().turns.one(now);
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.state().at_work -= 1;
    }
}

impl Drop for BulkheadWaiter<'_> {
    fn drop(&mut self) {
        self.bulkhead.state().waiting.remove(&self.number);
    }
}

impl RollingRate {
    fn new(now: Instant) -> Self {
        Self { since: now, since_then: 0, before: None }
    }

    fn roll(&mut self, now: Instant) {
        let age = now.duration_since(self.since);
        if age >= COUNTED {
            self.before = Some(if age < 2 * COUNTED { self.since_then } else { 0 });
            (self.since, self.since_then) = (now, 0);
        }
    }

    fn one(&mut self, now: Instant) {
        self.roll(now);
        self.since_then += 1;
    }

    fn per_second(&mut self, now: Instant) -> f64 {
        self.roll(now);
        let age = now.duration_since(self.since).as_secs_f64();
        let (count, over) = match self.before {
            Some(before) => (self.since_then + before, age + COUNTED.as_secs_f64()),
            None => (self.since_then, age),
        };
        if count == 0 { 0.0 } else { f64::from(count) / over.max(0.1) }
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT_REQUEST: WaitRequest<'_> =
        WaitRequest { who: TenantWeight { tenant: "a", weight: 1.0 }, is_fresh: true, job_slots: 4, dice: 0.0 };

    fn after(begun: Instant, seconds: f64) -> Instant {
        begun + Duration::from_secs_f64(seconds)
    }

    fn put_away_at(bulkhead: &Bulkhead, now: Instant) -> Option<Duration> {
        bulkhead.overload_delay(&WAIT_REQUEST, false, now)
    }

    #[test]
    fn who_leaves_is_no_longer_waited_behind() {
        let begun = Instant::now();
        let bulkhead = Bulkhead::new(begun);
        let first = bulkhead.enter(begun);
        let _second = bulkhead.enter(after(begun, 4.0));
        let _third = bulkhead.enter(after(begun, 4.5));
        assert!(put_away_at(&bulkhead, after(begun, 4.6)).is_some());
        drop(first);
        assert_eq!(put_away_at(&bulkhead, after(begun, 4.6)), None, "the first one now waits for less than a second");
        assert!(put_away_at(&bulkhead, after(begun, 5.1)).is_some());
    }

    #[test]
    fn a_crowd_begins_when_nobody_waited_before() {
        let begun = Instant::now();
        let bulkhead = Bulkhead::new(begun);
        assert_eq!(bulkhead.since(), None);
        drop(bulkhead.enter(begun));
        let first = bulkhead.enter(after(begun, 1.0));
        let _second = bulkhead.enter(after(begun, 2.0));
        drop(first);
        assert_eq!(bulkhead.since(), Some(after(begun, 1.0)));
    }

    #[test]
    fn only_those_leave_before_whom_too_many_wait() {
        let begun = Instant::now();
        let bulkhead = Bulkhead::new(begun);
        let waiting = [(); 3].map(|()| bulkhead.enter(begun));
        let leaves = |seconds: f64| {
            let now = after(begun, seconds);
            waiting.each_ref().map(|one| one.overload_delay(&WAIT_REQUEST, false, now).is_some())
        };
        assert_eq!((leaves(0.5), leaves(1.0)), ([false; 3], [false, true, true]));
    }

    #[test]
    fn those_that_a_transport_is_at_work_for_count_until_they_end() {
        let begun = Instant::now();
        let bulkhead = Bulkhead::new(begun);
        let at_work = bulkhead.begin();
        let _waiting = bulkhead.enter(begun);
        let job_slots = |job_slots: usize| {
            bulkhead.overload_delay(&WaitRequest { job_slots, ..WAIT_REQUEST }, false, after(begun, 2.0)).is_some()
        };
        assert_eq!((job_slots(4), job_slots(8)), (true, false));
        drop(at_work);
        assert!(job_slots(3) && !job_slots(6));
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let begun = Instant::now();
        let mut turns = RollingRate::new(begun);
        let mut pace_at = |from: f64, to: f64, count: u32| {
            for n in 0..count {
                turns.one(after(begun, from + (to - from) * f64::from(n) / f64::from(count)));
            }
            format!("{:.0}", turns.per_second(after(begun, to)))
        };
        assert_eq!(pace_at(0.0, 2.0, 20), "10");
        assert_eq!(pace_at(2.0, 4.9, 29), "10");
        assert_eq!(pace_at(4.9, 9.0, 41), "10");
        assert_eq!(pace_at(9.0, 14.0, 10), "6", "some of those before it are counted still");
        assert_eq!(pace_at(14.0, 30.0, 0), "0", "it stands still");
    }

    #[test]
    fn where_nothing_moves_jobs_are_put_away_for_a_while() {
        let begun = Instant::now();
        let bulkhead = Bulkhead::new(begun);
        let waiting = [(); 2].map(|()| bulkhead.enter(begun));
        assert_eq!(put_away_at(&bulkhead, after(begun, 2.0)), Some(Duration::from_secs(15)));
        for one in waiting {
            one.served(after(begun, 2.0));
        }
        assert_eq!(put_away_at(&bulkhead, after(begun, 2.1)), None);
    }
}
