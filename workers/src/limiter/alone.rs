//! While the store is away: transactional mail goes on with this worker's share of every limit, for a bounded time. The same rules, over
//! states of this worker's own, which begin anew each time. The share is one part of as many workers as were alive when the store was last
//! asked, so that all together stay below the limits.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::warn;

use super::{Seldom, say_whole};
use crate::{
    decide::limits::{
        admit::{Admission, Ask, admit},
        scope::Scope,
    },
    store::StoreError,
};

/// Scopes that are kept; beyond them the oldest are forgotten all at once.
const KEPT_MAX: usize = 10_000;

/// This worker by itself.
pub struct Alone {
    most: Duration,
    workers: AtomicU32,
    state: Mutex<State>,
    said: Seldom,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    scopes: HashMap<String, Scope>,
}

impl Alone {
    /// For so long at most.
    pub fn new(most: Duration) -> Self {
        Self { most, workers: AtomicU32::new(1), state: Mutex::default(), said: Seldom::default() }
    }

    /// So many workers are alive, this one included.
    pub fn workers(&self, count: u32) {
        self.workers.store(count.max(1), Ordering::Relaxed);
    }

    /// Takes over what another one knew: a store that is away tells nobody how many workers there are.
    pub fn learn_from(&self, other: &Self) {
        self.workers.store(other.workers.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How many workers were alive when the store was last asked.
    pub fn known_workers(&self) -> f64 {
        f64::from(self.workers.load(Ordering::Relaxed))
    }

    /// The store answered.
    pub fn ended(&self) {
        if self.said.reset() {
            *self.state() = State::default();
            say_whole();
        }
    }

    /// Asks this worker's own states; nothing once that went on for too long.
    pub fn admit(&self, ask: &Ask, error: &StoreError, now: Instant) -> Option<Admission> {
        let workers = self.known_workers();
        if self.said.now() {
            warn!(%error, workers, "The store is away: transactional mail goes on with a share of the limits, bulk mail waits");
        }
        let mut state = self.state();
        if now.duration_since(*state.since.get_or_insert(now)) > self.most {
            return None;
        }
        let mut ask = ask.clone();
        ask.want = 1;
        for limit in ask.demands.iter_mut().flat_map(|one| &mut one.limits) {
            limit.interval_us *= workers;
        }
        if state.scopes.len() > KEPT_MAX {
            state.scopes.clear();
        }
        let mut scopes: Vec<Scope> =
            ask.demands.iter().map(|one| state.scopes.get(&one.scope).cloned().unwrap_or_default()).collect();
        #[expect(clippy::cast_precision_loss, reason = "exact until the year 2255")]
        let clock = Timestamp::now().as_microsecond() as f64;
        let admission = admit(&mut scopes, &ask, clock);
        state.scopes.extend(ask.demands.into_iter().map(|one| one.scope).zip(scopes));
        Some(admission)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use postrider_schemas::Lane;

    use super::*;
    use crate::decide::limits::{
        rate::Rate,
        scope::{Demand, Limit},
    };

    #[test]
    fn a_worker_alone_keeps_to_its_share_and_gives_up_after_a_while() {
        let alone = Alone::new(Duration::from_secs(60));
        alone.workers(4);
        let limits = vec![Limit::from(&"20/s".parse::<Rate>().unwrap())];
        let ask = Ask {
            demands: vec![Demand { scope: "t".to_owned(), limits }],
            lane: Lane::Transactional,
            tenant: "a".to_owned(),
            weight: 1.0,
            fresh: true,
            want: 5,
            queue: true,
            hold: true,
        };
        let error = StoreError::Down("away".to_owned());
        let (mut granted, now) = (0, Instant::now());
        while let Some(Admission::Go { tokens, .. }) = alone.admit(&ask, &error, now) {
            granted += tokens;
        }
        assert_eq!(granted, 6, "a second ahead at 5 a second");
        let now = now + Duration::from_secs(61);
        assert_eq!(alone.admit(&ask, &error, now), None);
        alone.ended();
        assert!(alone.admit(&ask, &error, now).is_some());
    }
}
