//! What a worker knows of itself whether or not anybody measures it: jobs in hand, the age of what it takes, and the failures it saw last. Small,
//! bounded, and told to the store with each heartbeat.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use postrider_schemas::Lane;
use serde::{Deserialize, Serialize};

use super::{
    deferred::Deferred,
    transport_stats::{TransportStats, Transports},
    unfinished::Unfinished,
};
use crate::{policy::outcome::Answer, queue::depths::place};

/// Kinds of failure that are remembered.
const FAILURES_MAX: usize = 20;
/// One that was not seen for so long is forgotten.
const FAILURE_LIFE: Duration = Duration::from_mins(10);

/// Of this process.
pub static WORKER_STATS: WorkerStats = WorkerStats::new();

/// See the module.
pub struct WorkerStats {
    in_hand: [AtomicU64; 2],
    /// When the job was published, or due, that was taken last, in ms.
    taken: [AtomicI64; 2],
    accepted: [Mutex<MinuteCounter>; 2],
    /// Jobs taken that were never deferred, and how many of them limits deferred at once: since the start.
    fresh: [AtomicU64; 2],
    limited: [AtomicU64; 2],
    failures: Mutex<Vec<LastFailure>>,
    unfinished: [Mutex<Unfinished>; 2],
    deferred: Mutex<Deferred>,
    transports: Mutex<Transports>,
}

/// How much there was in this minute and in the one before, counted from the first.
struct MinuteCounter {
    minute: i64,
    present: u64,
    before: u64,
}

/// A kind of failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// The transport.
    pub transport: String,
    /// The class, or `unknown`.
    pub class: String,
    /// The last answer of this kind, without addresses.
    pub answer: String,
    /// How often.
    pub count: u64,
    /// When it was seen last.
    pub last: Timestamp,
}

impl WorkerStats {
    const fn new() -> Self {
        Self {
            in_hand: [AtomicU64::new(0), AtomicU64::new(0)],
            taken: [AtomicI64::new(0), AtomicI64::new(0)],
            accepted: [const { Mutex::new(MinuteCounter { minute: 0, present: 0, before: 0 }) }; 2],
            fresh: [AtomicU64::new(0), AtomicU64::new(0)],
            limited: [AtomicU64::new(0), AtomicU64::new(0)],
            failures: Mutex::new(Vec::new()),
            unfinished: [const { Mutex::new(Unfinished::new()) }; 2],
            deferred: Mutex::new(Deferred::new()),
            transports: Mutex::new(Transports::new()),
        }
    }

    /// A transport is asked to take a message.
    pub fn asked(&self, transport: &str, now: Timestamp) {
        self.transports().asked(transport, now);
    }

    /// A transport took a message.
    pub fn accepted(&self, lane: Lane, transport: &str, now: Timestamp) {
        self.minutes(lane).add(now);
        self.transports().accepted(transport, now);
    }

    /// What is known of each transport.
    pub fn transport_list(&self) -> Vec<TransportStats> {
        self.transports().list()
    }

    fn transports(&self) -> std::sync::MutexGuard<'_, Transports> {
        self.transports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages that transports took in the last minute, as far as whole minutes and this one tell.
    pub fn accepted_in_a_minute(&self, lane: Lane, now: Timestamp) -> u64 {
        self.minutes(lane).last_minute(now)
    }

    fn minutes(&self, lane: Lane) -> std::sync::MutexGuard<'_, MinuteCounter> {
        self.accepted[place(lane)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a job as in hand for as long as the answer lives. It is unfinished since then.
    pub fn take(&'static self, lane: Lane, since: Option<Timestamp>, was_refused: bool) -> InFlight {
        self.in_hand[place(lane)].fetch_add(1, Ordering::Relaxed);
        let since = since.map(Timestamp::as_millisecond);
        if let Some(since) = since {
            self.unfinished(lane).take(since, was_refused);
        }
        InFlight { stats: self, lane, since, was_refused }
    }

    /// A job that is unfinished since then is deferred until `due`.
    pub fn deferred(&self, lane: Lane, since: Timestamp, due: Timestamp, was_refused: bool, now: Timestamp) {
        let [since, due, now] = [since, due, now].map(Timestamp::as_millisecond);
        self.unfinished(lane).defer(since, due, was_refused, now);
    }

    /// A job waits for this until then.
    pub fn waits_for(&self, reason: &'static str, due: Timestamp) {
        self.reasons().add(reason, due.as_millisecond());
    }

    /// How many jobs that this worker deferred wait for what.
    pub fn waiting_for(&self, now: Timestamp) -> BTreeMap<String, u64> {
        self.reasons().counts(now.as_millisecond())
    }

    fn reasons(&self) -> std::sync::MutexGuard<'_, Deferred> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the oldest job of this worker is unfinished, in hand or deferred; with `untried` the oldest one that no transport refused.
    pub fn oldest_unfinished(&self, lane: Lane, untried: bool, now: Timestamp) -> Option<Timestamp> {
        let oldest = self.unfinished(lane).oldest(now.as_millisecond(), untried)?;
        Timestamp::from_millisecond(oldest).ok()
    }

    fn unfinished(&self, lane: Lane) -> std::sync::MutexGuard<'_, Unfinished> {
        self.unfinished[place(lane)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs in hand.
    pub fn in_hand(&self, lane: Lane) -> u64 {
        self.in_hand[place(lane)].load(Ordering::Relaxed)
    }

    /// A job was taken that was never deferred.
    pub fn took_fresh(&self, lane: Lane) {
        self.fresh[place(lane)].fetch_add(1, Ordering::Relaxed);
    }

    /// Limits put such a job away.
    pub fn limited_fresh(&self, lane: Lane) {
        self.limited[place(lane)].fetch_add(1, Ordering::Relaxed);
    }

    /// Such jobs taken, and deferred by limits, since the start.
    pub fn fresh(&self, lane: Lane) -> (u64, u64) {
        let of = |counters: &[AtomicU64; 2]| counters[place(lane)].load(Ordering::Relaxed);
        (of(&self.fresh), of(&self.limited))
    }

    /// A job was taken that waited since then.
    pub fn waited(&self, lane: Lane, since: Timestamp) {
        self.taken[place(lane)].store(since.as_millisecond(), Ordering::Relaxed);
    }

    /// Since when the oldest job of a lane waits at most, where any waits: its queue is in order, and this is what was taken last.
    pub fn oldest(&self, lane: Lane) -> Option<Timestamp> {
        let taken = self.taken[place(lane)].load(Ordering::Relaxed);
        Timestamp::from_millisecond(taken).ok().filter(|_| taken > 0)
    }

    /// An attempt failed.
    pub fn failed(&self, transport: &str, class: &str, answer: &Answer, now: Timestamp) {
        note(&mut self.lock(), transport, class, answer, now);
    }

    /// Failures of the last minutes, the most frequent ones first.
    pub fn failures(&self, now: Timestamp) -> Vec<LastFailure> {
        let mut list = self.lock().clone();
        list.retain(|one| is_fresh(one, now));
        list.sort_by_key(|one| std::cmp::Reverse(one.count));
        list
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<LastFailure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MinuteCounter {
    fn turn(&mut self, now: Timestamp) {
        let minute = now.as_second() / 60;
        if minute != self.minute {
            self.before = if minute == self.minute + 1 { self.present } else { 0 };
            (self.minute, self.present) = (minute, 0);
        }
    }

    fn add(&mut self, now: Timestamp) {
        self.turn(now);
        self.present += 1;
    }

    /// This minute, and of the one before the part that a minute reaches back to.
    fn last_minute(&mut self, now: Timestamp) -> u64 {
        self.turn(now);
        let rest = u64::try_from(60 - now.as_second().rem_euclid(60)).unwrap_or(0);
        self.present + (self.before * rest).div_ceil(60)
    }
}

fn is_fresh(one: &LastFailure, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(one.last)).unwrap_or_default() < FAILURE_LIFE
}

/// One kind is what came from the same transport, at the same stage, with the same codes: texts hold queue ids and times.
fn note(list: &mut Vec<LastFailure>, transport: &str, class: &str, answer: &Answer, now: Timestamp) {
    let text = answer.to_string();
    let kind = |text: &str| match answer.code {
        Some(_) => text.split(' ').take(2).collect::<Vec<_>>().join(" "),
        None => text.to_owned(),
    };
    let same = list
        .iter_mut()
        .find(|one| one.transport == transport && one.class == class && kind(&one.answer) == kind(&text));
    if let Some(one) = same {
        one.count = if is_fresh(one, now) { one.count + 1 } else { 1 };
        (one.answer, one.last) = (text, now);
        return;
    }
    if list.len() >= FAILURES_MAX
        && let Some(oldest) = (0..list.len()).min_by_key(|n| list[*n].last)
    {
        list.swap_remove(oldest);
    }
    list.push(LastFailure {
        transport: transport.to_owned(),
        class: class.to_owned(),
        answer: text,
        count: 1,
        last: now,
    });
}

/// A job in hand.
pub struct InFlight {
    stats: &'static WorkerStats,
    lane: Lane,
    since: Option<i64>,
    was_refused: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.stats.in_hand[place(self.lane)].fetch_sub(1, Ordering::Relaxed);
        if let Some(since) = self.since {
            self.stats.unfinished(self.lane).release(since, self.was_refused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::outcome::Stage;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_was_taken_counts_for_a_minute() {
        let mut minutes = MinuteCounter { minute: 0, present: 0, before: 0 };
        for second in 600..660 {
            minutes.add(at(second));
        }
        assert_eq!((minutes.last_minute(at(659)), minutes.last_minute(at(690))), (60, 30));
        minutes.add(at(690));
        assert_eq!(
            (minutes.last_minute(at(719)), minutes.last_minute(at(720)), minutes.last_minute(at(840))),
            (2, 1, 0)
        );
    }

    #[test]
    fn failures_of_one_kind_are_counted_together_and_kinds_are_bounded() {
        let mut list = Vec::new();
        let answer = |code, text: &str| Answer::new(Stage::RcptTo, Some(code), None, text);
        for n in 0..5 {
            note(&mut list, "relay", "transient", &answer(450, &format!("queue id {n}")), at(n));
        }
        note(&mut list, "relay", "transient", &answer(451, "other"), at(9));
        assert_eq!(list.iter().map(|one| one.count).collect::<Vec<_>>(), [5, 1]);
        assert!(list[0].answer.contains("queue id 4"), "the last one is shown");
        for n in 0..100 {
            note(&mut list, &format!("relay-{n}"), "transient", &answer(450, "no"), at(100 + n));
        }
        assert_eq!(list.len(), FAILURES_MAX);
        assert_eq!(list.iter().map(|one| one.last).max(), Some(at(199)));
    }
}
