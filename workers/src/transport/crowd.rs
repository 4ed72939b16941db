//! Those of one lane who wait for a connection or a call of a transport, how fast they have their turn, and for how many it is at work. What follows from it is decided in
//! [`crate::decide::crowd`].

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::decide::{
    crowd::{Seen, put_away},
    limits::{line::Who, scope::Line},
};

/// Turns, and those put away, are counted over this time and the one before it.
const COUNTED: Duration = Duration::from_secs(5);

/// Who comes to a crowd.
#[derive(Debug, Clone, Copy)]
pub struct Comer<'a> {
    /// Its tenant.
    pub who: Who<'a>,
    /// It was never put away.
    pub is_fresh: bool,
    /// So many fresh jobs of its lane are in hand at once.
    pub seats: usize,
    /// From 0 to 1, another one for each.
    pub dice: f64,
}

/// The crowd of a lane.
#[derive(Debug)]
pub struct Crowd {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of who comes next.
    next: u64,
    /// Since when each one waits.
    waiting: BTreeMap<u64, Instant>,
    /// Since when somebody does.
    since: Instant,
    /// So many have their turn now.
    at_work: usize,
    turns: Count,
    away: Count,
    /// The slots of those who were put away.
    line: Line,
}

/// How many of late.
#[derive(Debug)]
struct Count {
    since: Instant,
    since_then: u32,
    before: Option<u32>,
}

/// Somebody who has its turn, until it is dropped.
pub struct AtWork<'a>(&'a Crowd);

/// Somebody who waits, until it is dropped.
pub struct Waiting<'a> {
    crowd: &'a Crowd,
    number: u64,
}

impl Crowd {
    /// Of nobody.
    pub fn new(now: Instant) -> Self {
        let (turns, away) = (Count::new(now), Count::new(now));
        let (waiting, line) = (BTreeMap::new(), Line::default());
        let state = State { next: 0, waiting, since: now, at_work: 0, turns, away, line };
        Self { began: now, state: Mutex::new(state) }
    }

    /// One more who waits.
    pub fn enter(&self, now: Instant) -> Waiting<'_> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.waiting.is_empty() {
            state.since = now;
        }
        state.waiting.insert(number, now);
        Waiting { crowd: self, number }
    }

    /// Whether anybody is being delivered.
    pub fn is_at_work(&self) -> bool {
        self.state().at_work > 0
    }

    /// One more who has its turn.
    pub fn begin(&self) -> AtWork<'_> {
        self.state().at_work += 1;
        AtWork(self)
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

    /// For how long a job that would be the last one is put away; nothing where it may wait here. `is_shut`: the transport gives out nothing now.
    pub fn put_away(&self, comer: &Comer<'_>, is_shut: bool, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        let ahead = state.waiting.len();
        self.decide(&mut state, ahead, comer, is_shut, now)
    }

    fn decide(
        &self,
        state: &mut State,
        ahead: usize,
        comer: &Comer<'_>,
        is_shut: bool,
        now: Instant,
    ) -> Option<Duration> {
        let seen = Seen {
            ahead,
            at_work: state.at_work,
            first_us: us(state.first_waits(now)),
            per_second: state.turns.per_second(now),
            away_per_second: state.away.per_second(now),
            seats: comer.seats,
            is_shut,
        };
        let now_us = us(now.duration_since(self.began));
        let back = put_away(&mut state.line, comer.who, comer.is_fresh, &seen, now_us, comer.dice)?;
        state.away.one(now);
        Some(Duration::from_secs_f64((back - now_us).max(0.0) / 1e6))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first_waits(&self, now: Instant) -> Duration {
        let first = self.waiting.first_key_value();
        first.map(|(_, since)| now.saturating_duration_since(*since)).unwrap_or_default()
    }
}

impl Waiting<'_> {
    /// For how long it is put away, because too many wait before it and their turn does not come; nothing where it may go on waiting here.
    pub fn put_away(&self, comer: &Comer<'_>, is_shut: bool, now: Instant) -> Option<Duration> {
        let mut state = self.crowd.state();
        let ahead = state.waiting.range(..self.number).count();
        self.crowd.decide(&mut state, ahead, comer, is_shut, now)
    }

    /// Its turn came.
    pub fn served(self, now: Instant) {
        self.crowd.state().turns.one(now);
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state().at_work -= 1;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.crowd.state().waiting.remove(&self.number);
    }
}

impl Count {
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

    const COMER: Comer<'_> = Comer { who: Who { tenant: "a", weight: 1.0 }, is_fresh: true, seats: 4, dice: 0.0 };

    fn after(begun: Instant, seconds: f64) -> Instant {
        begun + Duration::from_secs_f64(seconds)
    }

    fn put_away_at(crowd: &Crowd, now: Instant) -> Option<Duration> {
        crowd.put_away(&COMER, false, now)
    }

    #[test]
    fn who_leaves_is_no_longer_waited_behind() {
        let begun = Instant::now();
        let crowd = Crowd::new(begun);
        let first = crowd.enter(begun);
        let _second = crowd.enter(after(begun, 4.0));
        let _third = crowd.enter(after(begun, 4.5));
        assert!(put_away_at(&crowd, after(begun, 4.6)).is_some());
        drop(first);
        assert_eq!(put_away_at(&crowd, after(begun, 4.6)), None, "the first one now waits for less than a second");
        assert!(put_away_at(&crowd, after(begun, 5.1)).is_some());
    }

    #[test]
    fn a_crowd_begins_when_nobody_waited_before() {
        let begun = Instant::now();
        let crowd = Crowd::new(begun);
        assert_eq!(crowd.since(), None);
        drop(crowd.enter(begun));
        let first = crowd.enter(after(begun, 1.0));
        let _second = crowd.enter(after(begun, 2.0));
        drop(first);
        assert_eq!(crowd.since(), Some(after(begun, 1.0)));
    }

    #[test]
    fn only_those_leave_before_whom_too_many_wait() {
        let begun = Instant::now();
        let crowd = Crowd::new(begun);
        let waiting = [(); 3].map(|()| crowd.enter(begun));
        let leaves = |seconds: f64| {
            let now = after(begun, seconds);
            waiting.each_ref().map(|one| one.put_away(&COMER, false, now).is_some())
        };
        assert_eq!((leaves(0.5), leaves(1.0)), ([false; 3], [false, true, true]));
    }

    #[test]
    fn those_that_a_transport_is_at_work_for_count_until_they_end() {
        let begun = Instant::now();
        let crowd = Crowd::new(begun);
        let at_work = crowd.begin();
        let _waiting = crowd.enter(begun);
        let seats = |seats: usize| crowd.put_away(&Comer { seats, ..COMER }, false, after(begun, 2.0)).is_some();
        assert_eq!((seats(4), seats(8)), (true, false));
        drop(at_work);
        assert!(seats(3) && !seats(6));
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let begun = Instant::now();
        let mut turns = Count::new(begun);
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
        let crowd = Crowd::new(begun);
        let waiting = [(); 2].map(|()| crowd.enter(begun));
        assert_eq!(put_away_at(&crowd, after(begun, 2.0)), Some(Duration::from_secs(15)));
        for one in waiting {
            one.served(after(begun, 2.0));
        }
        assert_eq!(put_away_at(&crowd, after(begun, 2.1)), None);
    }
}
