//! How many bytes a worker has in hand. A message takes memory three times: as it waits for its turn, as a job with its decoded files, and as the mail or
//! the request that is made of it. What waits is bounded by the [`Intake`] (and by what is fetched from a file); what is worked on by shares of a
//! budget. Small jobs have a part of it to themselves, so that they pass while large ones wait for each other.

mod limit;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use postrider_producer::rabbitmq::intake::Intake;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

pub use limit::limit;

/// Memory that a job takes for each byte of its body, from its arrival to its end: an estimate (as it came, decoded, as MIME, and room). See `docs/sizing.md`.
const FACTOR: u64 = 5;
/// Largest body of a small job.
const SMALL_MAX: u64 = 256 * 1024;
/// The unit of shares.
const UNIT: u64 = 1024;
/// Waits of large jobs that come back later: the shortest, and the longest.
const AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));
/// Copies of large messages on their way to the broker at once.
const COPIES: usize = 3;
/// How long a large job is thought to take before one was seen.
const FIRST_GUESS: Duration = Duration::from_secs(1);

/// The memory of a worker. Clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    budget: Budget,
    intake: Intake,
    small: Pool,
    large: Pool,
    /// Bytes of large messages that wait in hand for their share.
    queued: AtomicU64,
    line: Mutex<Line>,
    /// Copies of large messages on their way back to the broker, each of which takes its body once more.
    away: Semaphore,
}

/// What the parts of a worker may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What the process may take, program and connections included.
    pub limit: u64,
    /// For messages that wait.
    pub waiting: u64,
    /// For small jobs that are worked on.
    pub small: u64,
    /// For large jobs that are worked on.
    pub large: u64,
}

impl Budget {
    /// Five eighths of the limit; the rest is for the program itself, its connections, and what an allocator keeps.
    pub fn of(limit: u64) -> Self {
        Self { limit, waiting: limit / 8, small: limit / 8, large: limit / 8 * 3 }
    }

    /// All of it.
    pub fn all(&self) -> u64 {
        self.waiting + self.small + self.large
    }

    /// The largest body of which several are worked on at once.
    pub fn side_by_side(&self) -> u64 {
        self.large / 2 / FACTOR
    }

    fn small_max(&self) -> u64 {
        SMALL_MAX.min(self.small / 16 / FACTOR)
    }
}

struct Pool {
    free: Arc<Semaphore>,
    all: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        let all = u32::try_from((bytes / UNIT).max(1)).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 1);
        Self { free: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// The units of a body, and never more than there are: what is larger than all goes alone.
    fn units(&self, body: u64) -> u32 {
        u32::try_from((body.saturating_mul(FACTOR)).div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.all)
    }
}

/// Those who were sent away, and how long a large job takes.
struct Line {
    end: Instant,
    took: Duration,
}

/// A message that is in hand, counted until it is dropped.
pub struct Held {
    memory: Memory,
    bytes: u64,
    /// It waits for its turn.
    waits: bool,
    share: Option<Share>,
}

/// The right to work on a job.
struct Share {
    _units: OwnedSemaphorePermit,
    /// Since when, for a large one.
    large: Option<Instant>,
}

/// What a queue may hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Nothing waits: the first one may have any size.
    pub is_idle: bool,
    /// Bytes of large messages.
    pub large: u64,
    /// Largest message of which any number may come.
    pub small_max: u64,
}

/// What becomes of a message whose share is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has its share.
    Now,
    /// Too many wait in hand: it is to come back after this time.
    Later(Duration),
}

impl Memory {
    /// Divides what the process may take.
    pub fn new(budget: Budget) -> Self {
        Self(Arc::new(Shared {
            budget,
            intake: Intake::new(budget.waiting),
            small: Pool::new(budget.small),
            large: Pool::new(budget.large),
            queued: AtomicU64::new(0),
            line: Mutex::new(Line { end: Instant::now(), took: FIRST_GUESS }),
            away: Semaphore::new(COPIES),
        }))
    }

    /// What bounds the bytes that wait.
    pub fn intake(&self) -> &Intake {
        &self.0.intake
    }

    /// How it is divided.
    pub fn budget(&self) -> Budget {
        self.0.budget
    }

    /// Bytes that are waiting or worked on now.
    pub fn in_hand(&self) -> u64 {
        let taken = |pool: &Pool| (pool.all as usize).saturating_sub(pool.free.available_permits()) as u64 * UNIT;
        self.0.intake.waiting().0 + taken(&self.0.small) + taken(&self.0.large)
    }

    /// A message that has arrived.
    pub fn hold(&self, body: usize) -> Held {
        let bytes = body as u64;
        self.0.intake.arrived(bytes);
        Held { memory: self.clone(), bytes, waits: true, share: None }
    }

    /// What a queue may hand out now, where it can choose.
    pub fn room(&self) -> Room {
        let (waiting, most) = self.0.intake.waiting();
        Room { is_idle: waiting == 0, large: (most / 2).saturating_sub(waiting), small_max: self.small_max() }
    }

    /// The largest body of a small job.
    pub fn small_max(&self) -> u64 {
        self.0.budget.small_max()
    }

    /// For what takes a large body once more, the copy of a message on its way to the broker: a few at once.
    pub async fn few_at_once<T>(&self, something: impl Future<Output = T>) -> T {
        let _one = self.0.away.acquire().await;
        something.await
    }

    /// When a large job of which there are too many may come back: behind those that were sent away before it.
    fn away(&self, units: u32) -> Duration {
        let now = Instant::now();
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner);
        let at = line.end.max(now + AWAY.0).min(now + AWAY.1);
        line.end = at + line.took.mul_f64(f64::from(units) / f64::from(self.0.large.all));
        at - now
    }

    fn finished(&self, began: Instant) {
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.took = (line.took * 3 + began.elapsed()) / 4;
    }
}

impl Held {
    /// True for a job that waits for other large ones.
    pub fn is_large(&self) -> bool {
        self.bytes > self.memory.small_max()
    }

    /// Whether it may wait in hand for longer than a moment.
    pub fn may_linger(&self) -> bool {
        let small = &self.memory.0.small;
        !self.is_large() && small.free.available_permits() > small.all as usize / 2
    }

    /// Waits for its share: in order, small ones apart from large ones. Where `may_leave` and half of what may wait are large ones in line, it is to
    /// come back later instead.
    pub async fn turn(&mut self, may_leave: bool) -> Turn {
        let shared = Arc::clone(&self.memory.0);
        let is_large = self.is_large();
        let pool = if is_large { &shared.large } else { &shared.small };
        let units = pool.units(self.bytes);
        let units_taken = if let Ok(taken) = Arc::clone(&pool.free).try_acquire_many_owned(units) {
            taken
        } else {
            let queued = shared.queued.load(Ordering::Relaxed);
            if is_large && may_leave && queued > 0 && queued + self.bytes > shared.budget.waiting / 2 {
                return Turn::Later(self.memory.away(units));
            }
            let _queued = is_large.then(|| Queued::new(&shared, self.bytes));
            // It is never closed.
            let Ok(taken) = Arc::clone(&pool.free).acquire_many_owned(units).await else { return Turn::Now };
            taken
        };
        self.share = Some(Share { _units: units_taken, large: is_large.then(Instant::now) });
        self.no_longer_waits();
        Turn::Now
    }

    /// The memory that it is held in.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    fn no_longer_waits(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.memory.0.intake.left(self.bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.no_longer_waits();
        if let Some(began) = self.share.take().and_then(|share| share.large) {
            self.memory.finished(began);
        }
    }
}

/// A large message that waits in hand.
struct Queued<'a>(&'a Shared, u64);

impl<'a> Queued<'a> {
    fn new(shared: &'a Shared, bytes: u64) -> Self {
        shared.queued.fetch_add(bytes, Ordering::Relaxed);
        Self(shared, bytes)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const MB: usize = 1_000_000;

    async fn gets_its_turn(held: &mut Held, may_leave: bool) -> Option<Turn> {
        timeout(Duration::from_millis(20), held.turn(may_leave)).await.ok()
    }

    /// As it is shipped: four jobs of 9 MB at once, and three that wait.
    fn memory() -> Memory {
        Memory::new(Budget::of(512 << 20))
    }

    #[tokio::test]
    async fn large_jobs_wait_for_each_other_and_small_ones_pass() {
        let memory = memory();
        let mut large: Vec<Held> = (0..6).map(|_| memory.hold(9 * MB)).collect();
        let mut turns = Vec::new();
        for one in &mut large {
            turns.push(gets_its_turn(one, false).await);
        }
        assert_eq!(turns, [[Some(Turn::Now); 4].as_slice(), &[None; 2]].concat());
        let mut small: Vec<Held> = (0..100).map(|_| memory.hold(60_000)).collect();
        for one in &mut small {
            assert_eq!(gets_its_turn(one, false).await, Some(Turn::Now));
        }
        assert!(small[0].may_linger() && !large[0].may_linger());
        drop(large.remove(0));
        assert_eq!(gets_its_turn(&mut large[3], false).await, Some(Turn::Now));
        drop((large, small));
        assert_eq!(memory.in_hand(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn what_is_larger_than_all_goes_alone() {
        let memory = memory();
        let (mut giant, mut large) = (memory.hold(500 * MB), memory.hold(9 * MB));
        assert_eq!(gets_its_turn(&mut giant, true).await, Some(Turn::Now));
        assert_eq!(gets_its_turn(&mut large, false).await, None);
        drop(giant);
        assert_eq!(gets_its_turn(&mut large, false).await, Some(Turn::Now));
    }

    #[tokio::test]
    async fn more_than_may_wait_in_hand_come_back_one_after_the_other() {
        let memory = memory();
        let hold = || memory.hold(9 * MB);
        let mut now: Vec<Held> = (0..4).map(|_| hold()).collect();
        for one in &mut now {
            assert_eq!(gets_its_turn(one, true).await, Some(Turn::Now));
        }
        let mut waiting: Vec<Held> = (0..3).map(|_| hold()).collect();
        let mut later = Vec::new();
        let lines: Vec<_> = waiting.iter_mut().map(|one| one.turn(true)).collect();
        let lines = futures_util::future::join_all(lines);
        let rest = async {
            for _ in 0..4 {
                match gets_its_turn(&mut hold(), true).await {
                    Some(Turn::Later(wait)) => later.push(wait),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::select! { biased; _ = lines => panic!("no share is free"), () = rest => {} }
        assert!(
            later.is_sorted() && later[0] >= AWAY.0 && later[3] > later[0] + Duration::from_millis(500),
            "{later:?}"
        );
        assert_eq!(gets_its_turn(&mut hold(), false).await, None, "one that cannot leave waits");
    }

    #[tokio::test]
    async fn a_queue_that_can_choose_hands_out_large_ones_as_far_as_there_is_room() {
        let memory = memory();
        let room = |is_idle, large| Room { is_idle, large, small_max: SMALL_MAX };
        assert_eq!(memory.room(), room(true, 32 << 20));
        let one = memory.hold(30 * MB);
        assert_eq!(memory.room(), room(false, (32 << 20) - 30 * MB as u64));
        let more = memory.hold(9 * MB);
        assert_eq!(memory.room(), room(false, 0));
        drop((one, more));
        assert_eq!(memory.room(), room(true, 32 << 20));
    }
}
