//! While the store is away: transactional mail goes on with this worker's share of every limit, for a bounded time. The same rules, over
//! states of this worker's own. The share is one part of as many workers as were alive when the store was last asked, so that all together
//! stay below the limits; a worker that never heard how many there are has no share.
//!
//! A store that comes and goes gives nothing anew: the states are kept until they are even, and the bounded time begins again once the
//! store has been well for a while. What a worker used up of a burst by itself it does not get from the store when that is back.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use postrider_schemas::Lane;
use tokio::time::Instant;
use tracing::warn;

use super::{LOG_EVERY, Limiter, say_whole};
use crate::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest, admit},
        scope::{RateOverride, RateReduction, Scope},
    },
    store::{StoreError, limiter::Overview},
};

/// Scopes that are kept. Beyond them go those that are even, then those that are nearest to it.
const KEPT_MAX: usize = 10_000;
/// Scopes whose states one look learns: two calls. Where more are not as configured, the next looks learn the others.
const LEARNED_MAX: usize = 200;
/// The store has to be well for so long before its next absence counts as another one.
const WELL_AFTER: Duration = Duration::from_mins(1);
/// This worker's clock begins here, in microseconds: a time of 0 has passed for long.
const CLOCK_START_US: f64 = 1e15;

/// This worker by itself.
pub struct LocalFallback {
    most: Duration,
    shared: Arc<FallbackShared>,
}

/// What outlives a change of the configuration.
struct FallbackShared {
    epoch: Instant,
    state: Mutex<FallbackState>,
}

#[derive(Default)]
struct FallbackState {
    /// How many workers were alive by the last two answers.
    workers: Option<[u32; 2]>,
    /// Mail goes on without the store since then, with interruptions.
    since: Option<Instant>,
    /// The store is away since then.
    away: Option<Instant>,
    /// It is back since then.
    back: Option<Instant>,
    said: Option<Instant>,
    is_said: bool,
    /// What this worker did with scopes by itself.
    own: HashMap<String, Scope>,
    overrides: HashMap<String, KnownOverride>,
}

/// How a scope differs from its configuration, by this worker's clock.
struct KnownOverride {
    heard: Instant,
    paused_until: f64,
    cut: Option<RateReduction>,
    set: Option<RateOverride>,
}

impl LocalFallback {
    /// For so long at most.
    pub fn new(most: Duration) -> Self {
        Self { most, shared: Arc::new(FallbackShared { epoch: Instant::now(), state: Mutex::default() }) }
    }

    /// The same worker with another setting: what it knows and did stays.
    pub fn renewed(&self, most: Duration) -> Self {
        Self { most, shared: Arc::clone(&self.shared) }
    }

    /// So many workers are alive, this one included. Fewer are believed when it is said twice: after a time away the others have yet to give
    /// their sign of life.
    pub fn workers(&self, count: u32) {
        let mut state = self.state();
        let before = state.workers.map_or(count, |[_, last]| last);
        state.workers = Some([before, count]);
    }

    /// How many workers were alive when the store was last asked; nothing where it never answered.
    pub fn known_workers(&self) -> Option<f64> {
        self.state().workers()
    }

    /// The store answered.
    pub fn ended(&self, now: Instant) {
        let clock = self.clock(now);
        let mut state = self.state();
        if state.away.take().is_some() {
            state.back = Some(now);
            if std::mem::take(&mut state.is_said) {
                say_whole();
            }
        } else if state.is_well(now) {
            (state.since, state.back) = (None, None);
            state.own.retain(|_, own| own.ends(clock) > clock);
        }
    }

    /// The store did not answer.
    pub fn begun(&self, now: Instant) {
        self.state().begin(now);
    }

    /// Asks this worker's own states; nothing once that went on for too long, or where nobody knows what this worker's share is.
    pub fn admit(&self, ask: &AdmissionRequest, error: &StoreError, now: Instant) -> Option<Admission> {
        let mut state = self.state();
        state.begin(now);
        if state.said.is_none_or(|last| now.saturating_duration_since(last) >= LOG_EVERY) {
            (state.said, state.is_said) = (Some(now), true);
            match state.workers() {
                Some(workers) => {
                    warn!(%error, workers, "The store is away: transactional mail goes on with a share of the limits, bulk mail waits");
                }
                None => {
                    warn!(%error, "The store is away since this worker began, which does not know its share of the limits: mail that is limited waits");
                }
            }
        }
        if now.saturating_duration_since(*state.since.get_or_insert(now)) > self.most {
            return None;
        }
        state.answer(ask, self.clock(now))
    }

    /// The question as the store is asked it: of a burst that this worker used up by itself it gets the less for as long as that is not made up for.
    /// All workers have like shares, so what is missing from this one's is taken for what is missing from the whole.
    pub fn with_less_burst<'a>(&self, ask: &'a AdmissionRequest, now: Instant) -> Cow<'a, AdmissionRequest> {
        let (clock, state) = (self.clock(now), self.state());
        let mut ask = Cow::Borrowed(ask);
        if state.own.is_empty() {
            return ask;
        }
        for demand in &mut ask.to_mut().demands {
            let own = state.own.get(&demand.scope);
            for limit in &mut demand.limits {
                let used_us = own.and_then(|own| own.buckets.get(limit.bucket)).map_or(0.0, |one| one.all - clock);
                limit.tolerance_us = (limit.tolerance_us - used_us.max(0.0)).max(0.0);
            }
        }
        ask
    }

    /// Of scopes that are not as configured, those whose states are to be asked for: what is not known first, then what is known for longest.
    pub fn to_be_learned(&self, mut overrides: Vec<String>, most: usize) -> Vec<String> {
        let state = self.state();
        overrides.sort_by_cached_key(|name| state.overrides.get(name).map(|one| one.heard));
        overrides.truncate(most);
        overrides
    }

    /// Learns how scopes differ from their configuration, by the store's clock. Others than those in `disturbed` do not.
    pub fn learn(&self, overview: Overview, overrides: impl Fn(&str) -> bool, now: Instant) {
        let shift = self.clock(now) - overview.now;
        let mut state = self.state();
        state.overrides.retain(|name, _| overrides(name));
        for (name, scope) in overview.scopes {
            let cut = scope.cut.map(|cut| RateReduction { at: cut.at + shift, ..cut });
            let set = scope.set.map(|set| RateOverride { until: set.until + shift, ..set });
            let paused_until = scope.paused_until + shift;
            state.overrides.insert(name, KnownOverride { heard: now, paused_until, cut, set });
        }
    }

    fn clock(&self, now: Instant) -> f64 {
        CLOCK_START_US + now.saturating_duration_since(self.shared.epoch).as_secs_f64() * 1e6
    }

    fn state(&self) -> MutexGuard<'_, FallbackState> {
        // Nothing in here can panic half-way.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FallbackState {
    fn workers(&self) -> Option<f64> {
        self.workers.map(|[before, last]| f64::from(before.max(last).max(1)))
    }

    fn is_well(&self, now: Instant) -> bool {
        self.back.is_some_and(|back| now.saturating_duration_since(back) >= WELL_AFTER)
    }

    fn begin(&mut self, now: Instant) {
        if self.is_well(now) {
            self.since = None;
        }
        self.back = None;
        self.away.get_or_insert(now);
    }

    fn answer(&mut self, ask: &AdmissionRequest, clock: f64) -> Option<Admission> {
        let workers = self.workers();
        let mut ask = AdmissionRequest { want: 1, ..ask.clone() };
        let mut scopes = Vec::new();
        for demand in &mut ask.demands {
            let mut scope = self.own.get(&demand.scope).cloned().unwrap_or_default();
            if let Some(known) = self.overrides.get(&demand.scope) {
                (scope.paused_until, scope.cut, scope.set) = (known.paused_until, known.cut, known.set.clone());
            }
            // Where nothing is to be divided nobody need know by how many.
            let parts = if scope.limits(&demand.limits, clock).is_empty() { 1.0 } else { workers? };
            demand.limits.iter_mut().for_each(|limit| limit.interval_us *= parts);
            scope.set.iter_mut().for_each(|set| set.interval_us *= parts);
            scope.cut.iter_mut().for_each(|cut| cut.seen_interval_us *= parts);
            scopes.push(scope);
        }
        self.make_room(clock);
        let admission = admit(&mut scopes, &ask, clock);
        for (demand, mut scope) in ask.demands.into_iter().zip(scopes) {
            (scope.paused_until, scope.cut, scope.set) = Default::default();
            if scope != Scope::default() {
                self.own.insert(demand.scope, scope);
            }
        }
        Some(admission)
    }

    /// What is even is forgotten. What is not would give its burst out once more: the nearest to it costs the least.
    fn make_room(&mut self, clock: f64) {
        if self.own.len() < KEPT_MAX {
            return;
        }
        self.own.retain(|_, own| own.ends(clock) > clock);
        let mut surplus = self.own.len().saturating_sub(KEPT_MAX - KEPT_MAX / 10);
        if surplus > 0 {
            let mut ends: Vec<f64> = self.own.values().map(|own| own.ends(clock)).collect();
            let (_, last, _) = ends.select_nth_unstable_by(surplus - 1, f64::total_cmp);
            self.own.retain(|_, own| {
                let goes = surplus > 0 && own.ends(clock) <= *last;
                surplus -= usize::from(goes);
                !goes
            });
        }
    }
}

impl Limiter {
    /// A share of the limits for transactional mail while the store is away, for a bounded time. Bulk mail waits for the store.
    pub(super) fn alone(&self, ask: &AdmissionRequest, error: &StoreError) -> Option<Admission> {
        let now = Instant::now();
        if ask.lane == Lane::Bulk {
            self.0.fallback.begun(now);
            return None;
        }
        self.0.fallback.admit(ask, error, now)
    }

    /// Learns how the scopes that are not as configured differ, for a time without the store. One call more where there are any.
    pub(super) async fn learn(&self, overrides: &HashSet<String>) {
        let names = self.0.fallback.to_be_learned(overrides.iter().cloned().collect(), LEARNED_MAX);
        let overview = if names.is_empty() { Ok(Overview::default()) } else { self.0.store.counts(&names).await };
        // What is not told now is asked for again with the next look.
        if let Ok(overview) = overview {
            self.0.fallback.learn(overview, |name| overrides.contains(name), Instant::now());
        }
    }

    /// For a rate over all workers: how many there are, or one where nobody knows.
    pub(super) fn workers(&self) -> f64 {
        self.0.fallback.known_workers().unwrap_or(1.0)
    }
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;
