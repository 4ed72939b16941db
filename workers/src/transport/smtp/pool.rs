//! The connections of one relay: how many at once, who is next, and which of them wait for work.
//!
//! A [`ConnectionPermit`] is the right to use one connection, new or parked. New ones are opened only by who holds a place and found
//! nothing parked, so there are never more connections than places. Whatever is not parked on purpose is closed by being
//! dropped: a cancelled delivery leaves nothing behind.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use postrider_schemas::Lane;
use tokio::time::{Duration, Instant, sleep_until};

use super::connection::{Connection, OpenMark};
use crate::concurrency::priority_semaphore::{PriorityPermit, PrioritySemaphore};

/// The right to use one connection.
pub struct ConnectionPermit<'a> {
    pool: &'a Pool,
    /// A connection is in use under it.
    is_used: AtomicBool,
    /// Given back last: whoever has it next finds what was parked under this one.
    _permit: PriorityPermit<'a>,
}

/// Somebody who wants a place or has one.
struct ConnectionWaiter<'a>(&'a Pool);

/// The connections of one relay.
pub struct Pool {
    places: PrioritySemaphore,
    yard: Mutex<PoolState>,
    open: Arc<AtomicUsize>,
    idle: Duration,
}

#[derive(Default)]
struct PoolState {
    /// The one parked last is taken first, so the oldest is in front and the surplus grows old and goes.
    parked: Vec<IdleConnection>,
    /// A task is looking for connections that are idle for too long.
    is_swept: bool,
    is_closed: bool,
    /// Another relay stands for it: nothing is kept that nobody here waits for.
    is_replaced: bool,
    /// Places there are to be.
    limit: usize,
    held: usize,
    /// Of those held, places with a connection. The others take what is parked before they open one.
    used: usize,
    asking: usize,
    /// The most that asked at once since somebody looked.
    asking_most: usize,
}

/// How a relay uses its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionUse {
    /// Connections it may have.
    pub limit: usize,
    /// Deliveries that have a connection or wait for one.
    pub asking: usize,
    /// Connections that are open or about to be.
    pub open: usize,
}

struct IdleConnection {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// At most `connections` at once, each parked for at most `idle`.
    pub fn new(connections: usize, idle: Duration) -> Arc<Self> {
        let yard = Mutex::new(PoolState { limit: connections, ..PoolState::default() });
        Arc::new(Self { places: PrioritySemaphore::new(connections), yard, open: Arc::default(), idle })
    }

    /// Waits in the line of its lane. `None` once the pool is closed.
    pub async fn acquire(&self, lane: Lane) -> Option<ConnectionPermit<'_>> {
        {
            let mut yard = self.yard();
            yard.asking += 1;
            yard.asking_most = yard.asking_most.max(yard.asking);
        }
        let asking = ConnectionWaiter(self);
        let permit = self.places.acquire(lane).await?;
        // The place itself asks from here on.
        std::mem::forget(asking);
        self.yard().held += 1;
        Some(ConnectionPermit { pool: self, is_used: AtomicBool::new(false), _permit: permit })
    }

    /// Whether nobody gets a place at once.
    pub fn is_saturated(&self) -> bool {
        self.places.is_full()
    }

    /// Another number of places from now on. What is in use stays until its end; what is parked beyond the number is closed.
    pub fn resize(&self, connections: usize) {
        let mut yard = self.yard();
        yard.limit = connections;
        self.places.resize(connections);
        let surplus = (yard.parked.len() + yard.used).saturating_sub(connections).min(yard.parked.len());
        let closed: Vec<_> = yard.parked.drain(..surplus).collect();
        drop(yard);
        for parked in closed {
            parked.connection.hang_up();
        }
    }

    /// The most places that were asked for at once since the last look, and the connections that there are or are about to be.
    pub fn demand(&self) -> (usize, usize) {
        let mut yard = self.yard();
        let (most, now) = (yard.asking_most, yard.asking);
        yard.asking_most = now;
        (most, yard.open())
    }

    /// A parked connection that seems alive.
    pub fn take(&self, place: &ConnectionPermit<'_>) -> Option<Connection> {
        loop {
            let mut parked = {
                let mut yard = self.yard();
                let parked = yard.parked.pop()?;
                yard.use_by(place, true);
                parked
            };
            if parked.since.elapsed() >= self.idle {
                parked.connection.hang_up();
            } else if parked.connection.session.is_quiet() {
                return Some(parked.connection);
            }
            self.yard().use_by(place, false);
        }
    }

    /// Counts a connection that is about to be opened.
    pub fn mark(&self, place: &ConnectionPermit<'_>) -> OpenMark {
        self.yard().use_by(place, true);
        OpenMark::new(&self.open)
    }

    /// Keeps a connection for the next message. Its place is given back next.
    pub fn park(self: &Arc<Self>, place: &ConnectionPermit<'_>, connection: Connection) {
        let mut yard = self.yard();
        let is_too_many = yard.parked.len() + yard.used > yard.limit;
        let is_left = yard.is_replaced && yard.asking == yard.held;
        if yard.is_closed || is_too_many || is_left {
            drop(yard);
            connection.hang_up();
            return;
        }
        yard.use_by(place, false);
        yard.parked.push(IdleConnection { connection, since: Instant::now() });
        if !yard.is_swept {
            yard.is_swept = true;
            tokio::spawn(sweep(Arc::downgrade(self), Instant::now() + self.idle));
        }
    }

    /// Another relay stands for it from now on: who is here already goes on, and what is parked is closed.
    pub fn replace(&self) {
        let mut yard = self.yard();
        yard.is_replaced = true;
        let closed = std::mem::take(&mut yard.parked);
        drop(yard);
        for parked in closed {
            parked.connection.hang_up();
        }
    }

    /// Places there are to be, those who want one or have one, and the connections that there are or are about to be.
    pub fn use_now(&self) -> ConnectionUse {
        let yard = self.yard();
        ConnectionUse { limit: yard.limit, asking: yard.asking, open: yard.open() }
    }

    /// Lets nobody in any more and hands out what is parked.
    pub fn close(&self) -> Vec<Connection> {
        self.places.close();
        let mut yard = self.yard();
        yard.is_closed = true;
        std::mem::take(&mut yard.parked).into_iter().map(|parked| parked.connection).collect()
    }

    /// Connections that are open or being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that wait for work.
    pub fn parked(&self) -> usize {
        self.yard().parked.len()
    }

    /// Closes what is idle for too long; when to look again, if anything is left.
    fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let (expired, next) = {
            let mut yard = self.yard();
            let fresh = yard.parked.iter().position(|parked| now.duration_since(parked.since) < self.idle);
            let count = fresh.unwrap_or(yard.parked.len());
            let expired: Vec<_> = yard.parked.drain(..count).collect();
            let next = yard.parked.first().map(|parked| parked.since + self.idle);
            yard.is_swept = next.is_some();
            (expired, next)
        };
        for parked in expired {
            parked.connection.hang_up();
        }
        next
    }

    fn yard(&self) -> MutexGuard<'_, PoolState> {
        // Nothing in here can panic half-way, so a poisoned lock guards a whole yard.
        self.yard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolState {
    /// Connections that there are or are about to be.
    fn open(&self) -> usize {
        self.used + self.parked.len().max(self.held - self.used)
    }

    /// Whether a place has a connection from now on.
    fn use_by(&mut self, place: &ConnectionPermit<'_>, is_used: bool) {
        match (place.is_used.swap(is_used, Ordering::Relaxed), is_used) {
            (false, true) => self.used += 1,
            (true, false) => self.used -= 1,
            _ => {}
        }
    }
}

impl Drop for ConnectionWaiter<'_> {
    fn drop(&mut self) {
        self.0.yard().asking -= 1;
    }
}

impl Drop for ConnectionPermit<'_> {
    fn drop(&mut self) {
        let mut yard = self.pool.yard();
        yard.asking -= 1;
        yard.held -= 1;
        yard.use_by(self, false);
    }
}

/// Runs for as long as something is parked.
async fn sweep(pool: Weak<Pool>, first: Instant) {
    let mut next = Some(first);
    while let Some(at) = next {
        sleep_until(at).await;
        next = pool.upgrade().and_then(|pool| pool.expire());
    }
}
