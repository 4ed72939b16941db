//! How many of a lane's job slots one transport may occupy, waiting and delivering together, and how many one tenant may occupy there. What stands behind in
//! the queue may be for a transport that is idle, or of another tenant.
//!
//! A job that finds no room waits a second for it. Where the transport gave nobody a turn for as long, it does not wait at all: it is deferred, or fails over.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// The part of a lane's job slots that one transport may occupy, ...
const TRANSPORT_EIGHTHS: usize = 6;
/// ... and the part that one tenant may occupy there: another one always finds room.
const TENANT_EIGHTHS: usize = 5;
/// How long a job waits for room; and a transport at which nothing moved for so long gives nobody a reason to wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// When the first one comes back of those of a tenant that are deferred, ...
const BACK_FIRST: Duration = Duration::from_secs(5);
/// ... how long after it each further one does, ...
const BACK_STEP: Duration = Duration::from_millis(40);
/// ... and the longest time until then.
const BACK_MAX: Duration = Duration::from_mins(5);
/// Tenants that are remembered before it is looked which of them are history.
const TENANTS_KEPT: usize = 1000;

/// A job that wants to use the transport.
#[derive(Debug, Clone, Copy)]
pub struct EntryRequest<'a> {
    /// Its tenant.
    pub tenant: &'a str,
    /// So many jobs of its lane are in hand at once.
    pub job_slots: usize,
    /// From 0 to 1, another one for each.
    pub dice: f64,
}

/// The jobs of one lane at one transport.
#[derive(Debug)]
pub struct Bulkhead {
    /// Room for all tenants; its size is known once somebody comes.
    room: OnceLock<Arc<Semaphore>>,
    state: Mutex<BulkheadState>,
}

#[derive(Debug)]
struct BulkheadState {
    /// The number of who comes next.
    next: u64,
    occupied: usize,
    /// Since when somebody is here.
    since: Instant,
    /// When somebody had a turn last, or left.
    moved: Instant,
    /// Since when each one waits for a connection or a call.
    waiting: BTreeMap<u64, Instant>,
    /// Room of each tenant, for as long as somebody uses it.
    tenants: HashMap<String, Weak<Semaphore>>,
    /// When the last one of each tenant comes back that was deferred.
    back: HashMap<String, Instant>,
}

/// A job that waits or is delivered, until it is dropped.
#[derive(Debug)]
pub struct Occupant<'a> {
    bulkhead: &'a Bulkhead,
    number: u64,
    _room: Option<[OwnedSemaphorePermit; 2]>,
}

impl Bulkhead {
    /// Of nobody.
    pub fn new(now: Instant) -> Self {
        let state = BulkheadState {
            next: 0,
            occupied: 0,
            since: now,
            moved: now,
            waiting: BTreeMap::new(),
            tenants: HashMap::new(),
            back: HashMap::new(),
        };
        Self { room: OnceLock::new(), state: Mutex::new(state) }
    }

    /// Lets a job in where there is room for it, or soon is. Otherwise says for how long it is deferred.
    pub async fn enter(&self, request: &EntryRequest<'_>) -> Result<Occupant<'_>, Duration> {
        let mut room = pin!(self.room(request));
        if let Some(room) = room.as_mut().now_or_never() {
            return Ok(self.occupy(Some(room)));
        }
        if !self.state().is_stuck(Instant::now())
            && let Ok(room) = timeout(PATIENCE, room).await
        {
            return Ok(self.occupy(Some(room)));
        }
        Err(self.state().back_after(request, Instant::now()))
    }

    /// Lets a job in that cannot be deferred.
    pub fn enter_at_once(&self) -> Occupant<'_> {
        self.occupy(None)
    }

    /// The tenant's room first: who waits for that keeps nobody else out.
    async fn room(&self, request: &EntryRequest<'_>) -> [OwnedSemaphorePermit; 2] {
        let all = self.room.get_or_init(|| Arc::new(Semaphore::new(part(request.job_slots, TRANSPORT_EIGHTHS))));
        let own = self.state().tenant_room(request);
        // Neither is ever closed.
        loop {
            let Ok(own) = Arc::clone(&own).acquire_owned().await else { continue };
            let Ok(all) = Arc::clone(all).acquire_owned().await else { continue };
            return [own, all];
        }
    }

    fn occupy(&self, room: Option<[OwnedSemaphorePermit; 2]>) -> Occupant<'_> {
        let (mut state, now) = (self.state(), Instant::now());
        let number = state.next;
        state.next += 1;
        if state.occupied == 0 {
            (state.since, state.moved) = (now, now);
        }
        state.occupied += 1;
        state.waiting.insert(number, now);
        Occupant { bulkhead: self, number, _room: room }
    }

    /// Whether anybody is being delivered.
    pub fn is_at_work(&self) -> bool {
        let state = self.state();
        state.occupied > state.waiting.len()
    }

    /// For how long the first one waits for its turn.
    pub fn first_waits(&self, now: Instant) -> Duration {
        self.state().first_waits(now)
    }

    /// Since when there was somebody here, all the time; nothing where nobody is.
    pub fn since(&self) -> Option<Instant> {
        let state = self.state();
        (state.occupied > 0).then_some(state.since)
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

    fn is_stuck(&self, now: Instant) -> bool {
        self.first_waits(now) >= PATIENCE || now.saturating_duration_since(self.moved) >= PATIENCE
    }

    fn tenant_room(&mut self, request: &EntryRequest<'_>) -> Arc<Semaphore> {
        if let Some(room) = self.tenants.get(request.tenant).and_then(Weak::upgrade) {
            return room;
        }
        if self.tenants.len() >= TENANTS_KEPT {
            self.tenants.retain(|_, room| room.strong_count() > 0);
        }
        let room = Arc::new(Semaphore::new(part(request.job_slots, TENANT_EIGHTHS)));
        self.tenants.insert(request.tenant.to_owned(), Arc::downgrade(&room));
        room
    }

    /// Those of a tenant come back one after the other: a large blast does not come and go all the time, and a small tenant does not wait for that.
    fn back_after(&mut self, request: &EntryRequest<'_>, now: Instant) -> Duration {
        if self.back.len() >= TENANTS_KEPT {
            self.back.retain(|_, back| *back > now);
        }
        let first = now + BACK_FIRST;
        let back = self.back.get(request.tenant).map_or(first, |last| first.max(*last + BACK_STEP));
        let back = back.min(now + BACK_MAX);
        self.back.insert(request.tenant.to_owned(), back);
        (back - now).mul_f64(1.0 - request.dice / 4.0)
    }
}

/// So many eighths of the job slots, and one at least.
fn part(job_slots: usize, eighths: usize) -> usize {
    (job_slots * eighths).div_ceil(8).max(1)
}

impl Occupant<'_> {
    /// It has a connection or a call.
    pub fn has_turn(&self) {
        let mut state = self.bulkhead.state();
        state.moved = Instant::now();
        state.waiting.remove(&self.number);
    }
}

impl Drop for Occupant<'_> {
    fn drop(&mut self) {
        let mut state = self.bulkhead.state();
        state.moved = Instant::now();
        state.occupied -= 1;
        state.waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: usize = 16;

    fn request(tenant: &str) -> EntryRequest<'_> {
        EntryRequest { tenant, job_slots: SLOTS, dice: 0.0 }
    }

    async fn enter_all<'a>(bulkhead: &'a Bulkhead, tenant: &str, count: usize) -> Vec<Occupant<'a>> {
        let mut inside = Vec::new();
        for _ in 0..count {
            inside.push(bulkhead.enter(&request(tenant)).await.unwrap());
        }
        inside
    }

    #[tokio::test]
    async fn one_tenant_has_a_part_of_the_slots_and_leaves_room_for_another() {
        let bulkhead = Bulkhead::new(Instant::now());
        let mut large = enter_all(&bulkhead, "large", 10).await;
        let (next, other) = (request("large"), request("other"));
        let mut next = pin!(bulkhead.enter(&next));
        assert!(next.as_mut().now_or_never().is_none(), "ten of sixteen for one tenant");
        let small = enter_all(&bulkhead, "small", 2).await;
        let mut other = pin!(bulkhead.enter(&other));
        assert!(other.as_mut().now_or_never().is_none(), "twelve of sixteen for all");
        large.pop();
        // Each is let in, and leaves again.
        assert!(other.as_mut().now_or_never().is_some_and(|entered| entered.is_ok()));
        assert!(next.as_mut().now_or_never().is_some_and(|entered| entered.is_ok()));
        drop((large, small));
        assert_eq!((bulkhead.since(), bulkhead.is_at_work()), (None, false));
        assert_eq!([1, 2, 3, 8, 128].map(|slots| part(slots, TRANSPORT_EIGHTHS)), [1, 2, 3, 6, 96]);
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_a_second_for_it_and_not_at_all_where_nothing_moves() {
        let bulkhead = Bulkhead::new(Instant::now());
        let _inside = enter_all(&bulkhead, "a", 10).await;
        let begun = Instant::now();
        assert_eq!(bulkhead.enter(&request("a")).await.unwrap_err(), BACK_FIRST);
        assert!(begun.elapsed() >= PATIENCE);
        assert!(bulkhead.enter(&request("a")).now_or_never().is_some_and(|entered| entered.is_err()));
    }

    #[tokio::test]
    async fn nothing_moves_where_nobody_has_a_turn_or_the_first_one_waits_for_long() {
        let bulkhead = Bulkhead::new(Instant::now());
        let inside = enter_all(&bulkhead, "a", 10).await;
        let later = Instant::now() + PATIENCE;
        assert!(!bulkhead.state().is_stuck(Instant::now()) && bulkhead.state().is_stuck(later));
        bulkhead.state().moved = later;
        assert!(bulkhead.state().is_stuck(later), "the first one waits");
        assert!(bulkhead.first_waits(later) >= PATIENCE && !bulkhead.is_at_work());
        inside.iter().for_each(Occupant::has_turn);
        bulkhead.state().moved = later;
        assert!(!bulkhead.state().is_stuck(later) && bulkhead.is_at_work());
    }

    #[test]
    fn a_tenant_with_many_deferred_jobs_gets_them_back_one_after_the_other_and_others_do_not_wait_for_that() {
        let now = Instant::now();
        let bulkhead = Bulkhead::new(now);
        let back =
            |tenant: &str, dice: f64| bulkhead.state().back_after(&EntryRequest { dice, ..request(tenant) }, now);
        let large: Vec<Duration> = (0..40_000).map(|_| back("large", 0.0)).collect();
        assert_eq!((large[0], large[1], large[39_999]), (BACK_FIRST, BACK_FIRST + BACK_STEP, BACK_MAX));
        assert_eq!((back("small", 0.0), back("other", 1.0)), (BACK_FIRST, BACK_FIRST * 3 / 4));
    }
}
