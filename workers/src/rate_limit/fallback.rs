//! While the store is away: transactional mail goes on with this worker's share of every limit, for a bounded time. The same rules, over
//! states of this worker's own. The share is one part of as many workers as were alive when the store was last asked, so that all together
//! stay below the limits; a worker that never heard how many there are has no share.
//!
//! A store that comes and goes gives nothing anew: the states are kept until they are even, and the bounded time begins again once the
//! store has been well for a while. What went out is owed to the store, which is told when it is back (see `debts`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use super::{LOG_EVERY, say_whole};
use crate::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest, admit},
        reconcile::{UnreportedCount, UnreportedUsage},
        scope::{Limit, RateOverride, RateReduction, Scope},
    },
    store::{StoreError, limiter::Overview},
};

/// Scopes that are kept. Beyond them go those that are even, then those that are nearest to it.
const KEPT_MAX: usize = 10_000;
/// The store has to be well for so long before its next absence counts as another one.
const WELL_AFTER: Duration = Duration::from_mins(1);
/// Who was away for so long may have left much unsaid, ...
const LONG: Duration = Duration::from_secs(1);
/// ... and everybody has this time to say it: each worker looks at the store once a second.
const SETTLES_FOR: Duration = Duration::from_secs(2);
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
    settles_until: Option<Instant>,
    said: Option<Instant>,
    is_said: bool,
    owes: bool,
    own: HashMap<String, LocalScope>,
    overrides: HashMap<String, KnownOverride>,
}

/// What this worker did with a scope by itself.
#[derive(Default)]
struct LocalScope {
    scope: Scope,
    /// The limits that it was last asked with, over all workers, ...
    limits: Vec<Limit>,
    /// ... and the workers that they were divided by.
    workers: f64,
    /// Messages that the store has yet to hear of, ...
    owed: f64,
    /// ... and those of them that it is being told.
    told: f64,
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
        if let Some(away) = state.away.take() {
            state.back = Some(now);
            if now.saturating_duration_since(away) >= LONG {
                state.settles_until = Some(now + SETTLES_FOR);
            }
            if std::mem::take(&mut state.is_said) {
                say_whole();
            }
        } else if state.is_well(now) {
            (state.since, state.back) = (None, None);
            state.own.retain(|_, own| own.scope.ends(clock) > clock);
        }
    }

    /// The store did not answer.
    pub fn begun(&self, now: Instant) {
        self.state().begin(now);
    }

    /// The store is back, and this worker and others have yet to tell it what went out without it.
    pub fn settles(&self, now: Instant) -> Option<Duration> {
        let until = self.state().settles_until?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether the store is to hear something before it is asked.
    pub fn has_unreported(&self) -> bool {
        self.state().owes
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

    /// Asks them while the store settles.
    pub fn admit_meanwhile(&self, ask: &AdmissionRequest, now: Instant) -> Option<Admission> {
        self.state().answer(ask, self.clock(now))
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

    /// What the store has yet to hear of. One teller at a time.
    pub fn unreported(&self, now: Instant) -> Vec<UnreportedUsage> {
        let clock = self.clock(now);
        let mut state = self.state();
        let mut unreported = Vec::new();
        for (name, own) in &mut state.own {
            own.told = own.owed;
            let charges: Vec<UnreportedCount> =
                own.limits.iter().filter_map(|limit| own.charge(limit, clock)).collect();
            if !charges.is_empty() {
                unreported.push(UnreportedUsage { scope: name.clone(), charges });
            }
        }
        unreported
    }

    /// The store heard it.
    pub fn reported(&self) {
        let mut state = self.state();
        for own in state.own.values_mut() {
            own.owed -= std::mem::take(&mut own.told);
        }
        state.owes = state.own.values().any(|own| own.owed > 0.0);
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
        let (mut scopes, mut whole) = (Vec::new(), Vec::new());
        for demand in &mut ask.demands {
            let mut scope = self.own.get(&demand.scope).map(|own| own.scope.clone()).unwrap_or_default();
            if let Some(known) = self.overrides.get(&demand.scope) {
                (scope.paused_until, scope.cut, scope.set) = (known.paused_until, known.cut, known.set.clone());
            }
            let limits = scope.limits(&demand.limits, clock);
            // Where nothing is to be divided nobody need know by how many.
            let parts = if limits.is_empty() { 1.0 } else { workers? };
            demand.limits.iter_mut().for_each(|limit| limit.interval_us *= parts);
            scope.set.iter_mut().for_each(|set| set.interval_us *= parts);
            scope.cut.iter_mut().for_each(|cut| cut.seen_interval_us *= parts);
            whole.push(limits);
            scopes.push(scope);
        }
        self.make_room(clock);
        let admission = admit(&mut scopes, &ask, clock);
        let is_granted = matches!(admission, Admission::Go { .. });
        for ((demand, mut scope), limits) in ask.demands.into_iter().zip(scopes).zip(whole) {
            (scope.paused_until, scope.cut, scope.set) = Default::default();
            if limits.is_empty() && scope == Scope::default() {
                continue;
            }
            let own = self.own.entry(demand.scope).or_default();
            if is_granted && !limits.is_empty() {
                own.owed += 1.0;
                self.owes = true;
            }
            (own.scope, own.limits, own.workers) = (scope, limits, workers.unwrap_or(1.0));
        }
        Some(admission)
    }

    /// What is even has nothing to tell. What is not would give its burst out once more: the nearest to it costs the least.
    fn make_room(&mut self, clock: f64) {
        if self.own.len() < KEPT_MAX {
            return;
        }
        self.own.retain(|_, own| own.scope.ends(clock) > clock);
        let mut surplus = self.own.len().saturating_sub(KEPT_MAX - KEPT_MAX / 10);
        if surplus > 0 {
            let mut ends: Vec<f64> = self.own.values().map(|own| own.scope.ends(clock)).collect();
            let (_, last, _) = ends.select_nth_unstable_by(surplus - 1, f64::total_cmp);
            self.own.retain(|_, own| {
                let goes = surplus > 0 && own.scope.ends(clock) <= *last;
                surplus -= usize::from(goes);
                !goes
            });
        }
    }
}

impl LocalScope {
    /// What is to be charged to a limit: no more than this worker's own bucket has not made up for yet.
    fn charge(&self, limit: &Limit, clock: f64) -> Option<UnreportedCount> {
        let bucket = self.scope.buckets.get(limit.bucket)?;
        let messages = self.owed.min((bucket.all - clock) / (limit.interval_us * self.workers));
        (messages > 0.0).then(|| UnreportedCount { limit: limit.clone(), messages })
    }
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;
