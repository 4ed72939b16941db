//! How many jobs are in hand at once, and who is next. Some job slots are kept for transactional mail; bulk mail borrows what that leaves idle.
//! Inside a lane those who wait are served in turn by tenant and transport, so that ten thousand jobs of one do not delay the one of
//! another. Whoever only waits for its time leaves its job slot meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use postrider_schemas::Lane;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// What is there as soon as this is waited for with the job slot.
const MOMENT: Duration = Duration::from_millis(50);

/// All job slots of a worker. Clones share them.
#[derive(Clone)]
pub struct JobSlots(Arc<SlotPool>);

struct SlotPool {
    all: usize,
    bulk_max: usize,
    state: Mutex<SlotState>,
    /// Fresh jobs that wait for their turn at a limit, or for what has to be known before, without a job slot.
    holding: [AtomicUsize; 2],
    /// Fresh jobs that are fetched at once.
    fetched: [usize; 2],
}

#[derive(Default)]
struct SlotState {
    taken: [usize; 2],
    lines: [TenantLine; 2],
}

/// Those who wait in a lane.
#[derive(Default)]
struct TenantLine {
    /// Whose turn it is.
    turns: VecDeque<String>,
    waiting: HashMap<String, VecDeque<oneshot::Sender<HeldSlot>>>,
}

/// A job slot that is taken; given back on drop.
struct HeldSlot {
    job_slots: Option<JobSlots>,
    lane: Lane,
}

/// The right to work on a job.
pub struct JobSlot {
    job_slots: JobSlots,
    lane: Lane,
    whose: String,
    taken: tokio::sync::Mutex<Option<HeldSlot>>,
    /// While it waits, another one of its queue less is fetched.
    is_fresh: bool,
    /// It is one besides all others.
    is_beside: bool,
    /// Its job takes too much memory to wait here for a limit.
    is_heavy: bool,
}

fn place(lane: Lane) -> usize {
    match lane {
        Lane::Transactional => 0,
        Lane::Bulk => 1,
    }
}

impl JobSlots {
    /// `transactional` job slots, of which bulk mail may borrow half while they are idle, and `bulk` more.
    pub fn new(transactional: u16, bulk: u16) -> Self {
        let (transactional, bulk) = (usize::from(transactional), usize::from(bulk));
        let bulk_max = bulk + transactional / 2;
        Self(Arc::new(SlotPool {
            all: transactional + bulk,
            bulk_max,
            state: Mutex::default(),
            holding: Default::default(),
            fetched: [transactional, bulk_max],
        }))
    }

    /// Most job slots that bulk mail may have.
    pub fn bulk_most(&self) -> u16 {
        u16::try_from(self.0.bulk_max).unwrap_or(u16::MAX)
    }

    /// Waits for a job slot. `whose` names those among whom turns are taken; `is_fresh` is what comes from the queue of jobs.
    pub async fn take(&self, lane: Lane, whose: String, is_fresh: bool) -> JobSlot {
        let taken = self.wait(lane, &whose).await;
        JobSlot {
            job_slots: self.clone(),
            lane,
            whose,
            taken: tokio::sync::Mutex::new(taken),
            is_fresh,
            is_beside: false,
            is_heavy: false,
        }
    }

    async fn wait(&self, lane: Lane, whose: &str) -> Option<HeldSlot> {
        let turn = {
            let mut state = self.state();
            let nobody_waits = state.lines[place(lane)].turns.is_empty();
            if nobody_waits && self.has_room(&state, lane) {
                state.taken[place(lane)] += 1;
                return Some(HeldSlot { job_slots: Some(self.clone()), lane });
            }
            let (sender, turn) = oneshot::channel();
            state.lines[place(lane)].join(whose, sender);
            turn
        };
        // The sender lives in the line until it is served.
        turn.await.ok()
    }

    /// A job slot besides all others, for what the queue hands out one at a time.
    pub fn beside(&self, lane: Lane) -> JobSlot {
        let taken = tokio::sync::Mutex::default();
        JobSlot {
            job_slots: self.clone(),
            lane,
            whose: String::new(),
            taken,
            is_fresh: false,
            is_beside: true,
            is_heavy: false,
        }
    }

    fn has_room(&self, state: &SlotState, lane: Lane) -> bool {
        let all = state.taken[0] + state.taken[1] < self.0.all;
        all && (lane == Lane::Transactional || state.taken[1] < self.0.bulk_max)
    }

    fn give_back(&self, lane: Lane) {
        let mut state = self.state();
        state.taken[place(lane)] -= 1;
        for lane in Lane::ALL {
            while self.has_room(&state, lane) {
                let Some(next) = state.lines[place(lane)].next() else { break };
                let taken = HeldSlot { job_slots: Some(self.clone()), lane };
                match next.send(taken) {
                    Ok(()) => state.taken[place(lane)] += 1,
                    // It no longer waits. Nothing was counted, so nothing is given back.
                    Err(mut unused) => unused.job_slots = None,
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        // Nothing in here can panic half-way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TenantLine {
    fn join(&mut self, whose: &str, sender: oneshot::Sender<HeldSlot>) {
        let own = self.waiting.entry(whose.to_owned()).or_default();
        if own.is_empty() {
            self.turns.push_back(whose.to_owned());
        }
        own.push_back(sender);
    }

    /// The first one of those whose turn it is, who go to the end of the turns.
    fn next(&mut self) -> Option<oneshot::Sender<HeldSlot>> {
        let whose = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&whose)?;
        let next = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&whose);
        } else {
            self.turns.push_back(whose);
        }
        next
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        if let Some(job_slots) = self.job_slots.take() {
            job_slots.give_back(self.lane);
        }
    }
}

/// A fresh job that waits for its turn, counted until it is dropped.
struct WaitingWithoutSlot<'a>(&'a AtomicUsize);

impl Drop for WaitingWithoutSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl JobSlot {
    /// The same for a job that takes much memory: it does not wait here for a limit.
    #[must_use]
    pub fn heavy(self) -> Self {
        Self { is_heavy: true, ..self }
    }

    /// So many fresh jobs of its lane are in hand at once; nothing for a job slot besides all others.
    pub fn in_hand(&self) -> Option<usize> {
        (!self.is_beside).then(|| self.job_slots.0.fetched[place(self.lane)])
    }

    /// Whether a wait for a limit may be spent in the worker. Where half of what is fetched at once does that already, fresh jobs wait
    /// elsewhere: what stands behind them in the queue may be for somebody who is not limited.
    pub fn may_hold(&self) -> bool {
        let (lane, job_slots) = (place(self.lane), &self.job_slots.0);
        !self.is_heavy
            && (!self.is_fresh
                || job_slots.holding[lane].load(Ordering::Relaxed) < (job_slots.fetched[lane] / 2).max(1))
    }

    /// Waits for its turn at a limit without the job slot.
    pub async fn hold(&self, time: Duration) {
        let _holding = self.holding();
        self.wait(time).await;
    }

    /// Waits for something that may take long without the job slot. Meanwhile it is one of those that [`Self::may_hold`] counts.
    pub async fn hold_until<T>(&self, something: impl Future<Output = T>) -> T {
        let _holding = self.holding();
        self.without(something).await
    }

    /// Waits for what is most often there in a moment: longer than that without the job slot. It cannot be waited for elsewhere, so it is waited for here
    /// however many do; those who wait for a limit make room for them.
    pub async fn hold_while<T>(&self, something: impl Future<Output = T>) -> T {
        let mut something = pin!(something);
        if let Ok(done) = timeout(MOMENT, &mut something).await {
            return done;
        }
        let _holding = self.holding();
        self.without(something).await
    }

    fn holding(&self) -> Option<WaitingWithoutSlot<'_>> {
        self.is_fresh.then(|| {
            let holding = &self.job_slots.0.holding[place(self.lane)];
            holding.fetch_add(1, Ordering::Relaxed);
            WaitingWithoutSlot(holding)
        })
    }

    /// Waits for its time without the job slot.
    pub async fn wait(&self, time: Duration) {
        if !time.is_zero() {
            self.without(sleep(time)).await;
        }
    }

    /// Waits for something without the job slot, which somebody else may have meanwhile.
    pub async fn without<T>(&self, something: impl Future<Output = T>) -> T {
        let mut taken = self.taken.lock().await;
        drop(taken.take());
        let done = something.await;
        if !self.is_beside {
            *taken = self.job_slots.wait(self.lane, &self.whose).await;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(job_slots: &JobSlots, lane: Lane, whose: &str) -> JobSlot {
        job_slots.take(lane, whose.to_owned(), true).await
    }

    #[tokio::test]
    async fn bulk_mail_borrows_half_of_what_is_idle_and_transactional_mail_may_have_all() {
        let job_slots = JobSlots::new(4, 2);
        let mut bulk = Vec::new();
        for _ in 0..4 {
            bulk.push(take(&job_slots, Lane::Bulk, "a").await);
        }
        let fifth = take(&job_slots, Lane::Bulk, "a");
        assert!(tokio::time::timeout(Duration::from_millis(20), fifth).await.is_err());
        let urgent =
            [take(&job_slots, Lane::Transactional, "a").await, take(&job_slots, Lane::Transactional, "a").await];
        assert!(
            tokio::time::timeout(Duration::from_millis(20), take(&job_slots, Lane::Transactional, "a")).await.is_err()
        );
        drop(bulk);
        let more = [take(&job_slots, Lane::Transactional, "a").await, take(&job_slots, Lane::Transactional, "a").await];
        drop((urgent, more));
        assert_eq!(job_slots.state().taken, [0, 0], "who gave up left nothing behind");
    }

    #[tokio::test]
    async fn tenants_take_turns() {
        let job_slots = JobSlots::new(1, 1);
        let held = [take(&job_slots, Lane::Bulk, "x").await];
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for whose in ["a", "a", "a", "a", "b", "c", "b"] {
            let (job_slots, order) = (job_slots.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _seat = take(&job_slots, Lane::Bulk, whose).await;
                order.lock().unwrap().push(whose);
            }));
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "b", "a", "a"]);
    }

    #[tokio::test]
    async fn no_more_than_half_of_the_fresh_jobs_of_a_lane_wait_for_a_limit_in_the_worker() {
        let job_slots = JobSlots::new(4, 2);
        let held = [take(&job_slots, Lane::Bulk, "a").await, take(&job_slots, Lane::Bulk, "a").await];
        let returned = job_slots.take(Lane::Bulk, "a".to_owned(), false).await;
        let urgent = take(&job_slots, Lane::Transactional, "a").await;
        let mut waits: Vec<_> = held.iter().map(|job_slot| Box::pin(job_slot.hold(Duration::from_secs(60)))).collect();
        assert!(held[0].may_hold());
        for wait in &mut waits {
            assert!(tokio::time::timeout(Duration::from_millis(5), wait).await.is_err());
        }
        assert!(!held[0].may_hold() && returned.may_hold() && urgent.may_hold());
        drop(waits);
        assert!(held[0].may_hold(), "who gave up does not count");
    }

    #[tokio::test]
    async fn who_waits_for_longer_than_a_moment_leaves_its_seat_and_has_one_again() {
        let job_slots = JobSlots::new(1, 0);
        let first = take(&job_slots, Lane::Transactional, "a").await;
        let begin = tokio::time::Instant::now();
        let slow = async {
            first.hold_while(sleep(2 * MOMENT)).await;
            begin.elapsed()
        };
        let other = async {
            let second = timeout(Duration::from_secs(10), take(&job_slots, Lane::Transactional, "b")).await;
            assert!(second.is_ok(), "the seat was not left");
            let had_after = begin.elapsed();
            assert!(!first.may_hold(), "it counts among those who wait in the worker");
            sleep(4 * MOMENT).await;
            had_after
        };
        let (took, had_after) = tokio::join!(slow, other);
        assert!(had_after >= MOMENT && took >= had_after + 4 * MOMENT, "{had_after:?}, {took:?}");
        assert_eq!(job_slots.state().taken, [1, 0]);
        let quick = first.hold_while(async { job_slots.state().taken }).await;
        assert_eq!(quick, [1, 0], "a moment is waited for with the seat");
    }

    #[tokio::test]
    async fn who_waits_for_its_time_leaves_its_seat() {
        let job_slots = JobSlots::new(1, 0);
        let first = take(&job_slots, Lane::Transactional, "a").await;
        let waiting = first.wait(Duration::from_millis(50));
        let other = async {
            let _second = take(&job_slots, Lane::Transactional, "b").await;
        };
        tokio::join!(waiting, other);
        assert_eq!(job_slots.state().taken, [1, 0]);
    }
}
