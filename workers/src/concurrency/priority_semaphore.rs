//! So many may do something at once, such as use a connection; who comes then waits in the line of its lane. Whenever one is done the first one of the
//! transactional line goes, and bulk mail when nobody stands there: a blast holds transactional mail up for the end of one message, not of all of
//! those that wait. Bulk mail has everything that transactional mail leaves, and that may be nothing for as long as transactional mail alone
//! keeps all places busy.
//!
//! Knows neither connections nor calls: that is the pool's and the client's.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use postrider_schemas::Lane;
use tokio::sync::oneshot;

/// How many at once, and who is next.
#[derive(Debug)]
pub struct PrioritySemaphore(Mutex<SemaphoreState>);

#[derive(Debug)]
struct SemaphoreState {
    /// Places there are to be.
    limit: usize,
    /// Places that somebody has. More than there are to be where their number was made smaller a moment ago.
    taken: usize,
    /// The number of who comes next: who came earlier has a smaller one.
    next: u64,
    /// Those who wait, by lane. **Invariant:** nobody waits while a place is free.
    lines: [BTreeMap<u64, oneshot::Sender<()>>; 2],
    is_closed: bool,
}

/// The right to do what there are so many places for; given back on drop.
#[derive(Debug)]
pub struct PriorityPermit<'a>(&'a PrioritySemaphore);

/// Somebody in a line.
struct SemaphoreWaiter<'a> {
    places: &'a PrioritySemaphore,
    lane: Lane,
    number: u64,
    turn: oneshot::Receiver<()>,
}

impl PrioritySemaphore {
    /// So many at once.
    pub fn new(limit: usize) -> Self {
        Self(Mutex::new(SemaphoreState { limit, taken: 0, next: 0, lines: Default::default(), is_closed: false }))
    }

    /// Waits for a place; first come first served inside a lane. `None` once this is closed.
    pub async fn acquire(&self, lane: Lane) -> Option<PriorityPermit<'_>> {
        let mut waiting = {
            let mut state = self.state();
            if state.is_closed {
                return None;
            }
            if state.has_room() {
                state.taken += 1;
                return Some(PriorityPermit(self));
            }
            let (sender, turn) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.lines[lane as usize].insert(number, sender);
            SemaphoreWaiter { places: self, lane, number, turn }
        };
        // Once it is heard here, the place is ours and `waiting` has nothing left to give back.
        (&mut waiting.turn).await.ok().map(|()| PriorityPermit(self))
    }

    /// Whether who comes now has to wait.
    pub fn is_full(&self) -> bool {
        !self.state().has_room()
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    /// Another number of places from now on. Who has one keeps it.
    pub fn resize(&self, limit: usize) {
        let mut state = self.state();
        state.limit = limit;
        state.serve();
    }

    /// Nobody gets a place any more. Who has one keeps it.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.lines = Default::default();
    }

    fn give_back(&self) {
        let mut state = self.state();
        state.taken -= 1;
        state.serve();
    }

    fn state(&self) -> MutexGuard<'_, SemaphoreState> {
        // Nothing in here can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SemaphoreState {
    fn has_room(&self) -> bool {
        self.taken < self.limit
    }

    /// Gives free places to those who wait.
    fn serve(&mut self) {
        for lane in Lane::ALL {
            while self.has_room() {
                let Some((_, next)) = self.lines[lane as usize].pop_first() else { break };
                // Who no longer waits was about to leave the line, and has nothing to give back.
                if next.send(()).is_ok() {
                    self.taken += 1;
                }
            }
        }
    }
}

impl Drop for PriorityPermit<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Drop for SemaphoreWaiter<'_> {
    fn drop(&mut self) {
        let left = self.places.state().lines[self.lane as usize].remove(&self.number);
        // Its turn came and it went away before it heard so.
        if left.is_none() && self.turn.try_recv().is_ok() {
            self.places.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::Arc};

    use futures_util::{FutureExt as _, future::BoxFuture};

    use super::*;

    type Taking<'a> = BoxFuture<'a, Option<PriorityPermit<'a>>>;

    /// In line, or served at once.
    fn take(places: &PrioritySemaphore, lane: Lane) -> Taking<'_> {
        let mut taking = places.acquire(lane).boxed();
        assert!(poll(&mut taking).is_none(), "it waits");
        taking
    }

    fn poll<'a>(taking: &mut Taking<'a>) -> Option<PriorityPermit<'a>> {
        Pin::new(taking).now_or_never().map(Option::unwrap)
    }

    fn at_once(places: &PrioritySemaphore, lane: Lane) -> PriorityPermit<'_> {
        places.acquire(lane).now_or_never().unwrap().unwrap()
    }

    /// Serves all those who wait, each done before the next one is looked for, and says in which order they were.
    fn order<'a>(held: PriorityPermit<'a>, mut line: Vec<(&'static str, Taking<'a>)>) -> Vec<&'static str> {
        let mut order = Vec::new();
        drop(held);
        while !line.is_empty() {
            let served: Vec<_> =
                line.iter_mut().enumerate().filter_map(|(n, (_, taking))| Some((n, poll(taking)?))).collect();
            let [(n, _)] = served.as_slice() else { panic!("{} served at once", served.len()) };
            order.push(line.remove(*n).0);
            drop(served);
        }
        order
    }

    #[test]
    fn transactional_mail_is_served_first_and_each_lane_in_its_order() {
        let places = PrioritySemaphore::new(1);
        let held = at_once(&places, Lane::Bulk);
        let lanes = [("a", Lane::Bulk), ("b", Lane::Bulk), ("c", Lane::Transactional), ("d", Lane::Bulk)];
        let mut line: Vec<_> = lanes.map(|(name, lane)| (name, take(&places, lane))).into();
        line.push(("e", take(&places, Lane::Transactional)));
        assert_eq!(order(held, line), ["c", "e", "a", "b", "d"]);
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn bulk_mail_has_every_place_that_is_free() {
        let places = PrioritySemaphore::new(3);
        let held = [(); 3].map(|()| at_once(&places, Lane::Bulk));
        assert!(places.is_full());
        drop(take(&places, Lane::Bulk));
        drop(held);
        assert!(!places.is_full());
    }

    #[test]
    fn who_goes_away_takes_no_place_along() {
        let places = PrioritySemaphore::new(1);
        let held = at_once(&places, Lane::Bulk);
        let in_line = take(&places, Lane::Transactional);
        let (called, mut next) = (take(&places, Lane::Transactional), take(&places, Lane::Bulk));
        // Before its turn; and after it, without having heard so.
        drop(in_line);
        drop(held);
        assert!(poll(&mut next).is_none(), "it is the other one's turn");
        drop(called);
        let served = poll(&mut next).unwrap();
        assert_eq!(places.taken(), 1);
        drop(served);
        assert_eq!(places.taken(), 0);
        assert!(places.state().lines.iter().all(BTreeMap::is_empty));
    }

    #[test]
    fn another_number_of_places_holds_at_once_or_with_the_next_end() {
        let places = PrioritySemaphore::new(2);
        let (first, second) = (at_once(&places, Lane::Bulk), at_once(&places, Lane::Bulk));
        let (mut third, mut fourth) = (take(&places, Lane::Bulk), take(&places, Lane::Bulk));
        places.resize(1);
        drop(first);
        assert!(poll(&mut third).is_none() && places.is_full(), "there was one too many");
        drop(second);
        let third = poll(&mut third).unwrap();
        assert!(poll(&mut fourth).is_none());
        places.resize(2);
        let fourth = poll(&mut fourth).unwrap();
        assert_eq!(places.taken(), 2);
        places.resize(0);
        drop((third, fourth));
        assert!(places.is_full() && places.taken() == 0);
        let mut last = take(&places, Lane::Transactional);
        places.resize(1);
        assert!(poll(&mut last).is_some());
    }

    #[test]
    fn nobody_gets_a_place_once_it_is_closed() {
        let places = PrioritySemaphore::new(1);
        let held = at_once(&places, Lane::Bulk);
        let mut waiting = take(&places, Lane::Transactional);
        places.close();
        assert!(Pin::new(&mut waiting).now_or_never().unwrap().is_none());
        drop(held);
        assert!(places.acquire(Lane::Bulk).now_or_never().unwrap().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_lost_where_everybody_comes_and_goes_at_once() {
        let places = Arc::new(PrioritySemaphore::new(3));
        let tasks: Vec<_> = (0..200)
            .map(|n: u64| {
                let places = Arc::clone(&places);
                tokio::spawn(async move {
                    let lane = if n.is_multiple_of(3) { Lane::Transactional } else { Lane::Bulk };
                    for round in 0..50 {
                        let patience = std::time::Duration::from_micros(n * 7 % 40 * (round % 5) * 10);
                        if let Ok(permit) = tokio::time::timeout(patience, places.acquire(lane)).await {
                            assert!(places.taken() <= 4);
                            tokio::task::yield_now().await;
                            drop(permit);
                        }
                        if n == 0 {
                            places.resize(if round % 2 == 0 { 4 } else { 2 });
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let state = places.state();
        assert_eq!((state.taken, state.lines.iter().map(BTreeMap::len).sum::<usize>()), (0, 0));
    }
}
