//! What this worker holds of the limits: tokens taken in small batches where the limits are fast, and the knowledge that nothing limits a set of
//! scopes at present. Both grow old within a second, so that a pause or another rate is heard of soon.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    policy::rate_limit::{
        admit::{Admission, AdmissionRequest},
        scope::ScopeLimits,
    },
    store::{Store, StoreError},
};

/// How long it is remembered that nothing limits a set of scopes.
const FREE_FOR: Duration = Duration::from_secs(1);
/// A batch is what the slowest limit lets through in this time, at most.
const BATCH_SECONDS: f64 = 0.05;
/// The largest batch.
const BATCH_MAX: u32 = 200;
/// A token that is so old is not used: many together would be a burst.
const STALE: Duration = Duration::from_millis(100);
/// Once somebody was deferred, all of its kind (fresh, or come back) ask side by side for so long: such an answer is of no use to the next one.
const APART_FOR: Duration = Duration::from_millis(250);
/// Sets that are kept.
const KEPT_MAX: usize = 20_000;

/// Tokens and what is free, by set of scopes.
pub struct TokenCache {
    lease_above: f64,
    sets: StdMutex<HashMap<String, Arc<Mutex<CachedTokens>>>>,
}

#[derive(Default)]
struct CachedTokens {
    free_until: Option<Instant>,
    /// Until when those who came back, and those who are fresh, ask side by side.
    apart_until: [Option<Instant>; 2],
    tokens: VecDeque<Instant>,
    /// Tokens used since, and in the window before: what a batch is made for.
    window: Option<Instant>,
    used: u32,
    used_before: u32,
}

impl TokenCache {
    /// Batches for limits above this, in messages a second.
    pub fn new(lease_above: f64) -> Self {
        Self { lease_above, sets: StdMutex::default() }
    }

    /// Nothing is held any more that was counted against one of these scopes. What has nothing to do with them is kept: it was charged, and
    /// would be lost.
    pub fn forget<'a>(&self, scopes: impl IntoIterator<Item = &'a str>) {
        let scopes: HashSet<&str> = scopes.into_iter().collect();
        self.sets().retain(|set, _| !set.split('\n').skip(2).any(|word| scopes.contains(word)));
    }

    /// A slow limit is asked for each message, side by side.
    pub fn are_asked_for_one_by_one(&self, demands: &[ScopeLimits]) -> bool {
        slowest(demands).is_some_and(|observed_rate| observed_rate <= self.lease_above)
    }

    /// Asks the store, where nothing is held.
    pub async fn admit(&self, store: &Store, ask: &AdmissionRequest) -> Result<Admission, StoreError> {
        // A store that is away answers each one as late as the other: nobody waits for that in a line.
        if self.are_asked_for_one_by_one(&ask.demands) || !store.is_up() {
            return store.admit(ask).await;
        }
        let slowest = slowest(&ask.demands);
        let held = self.held(ask);
        // One question at a time: whoever waits for it may find its token in the batch.
        let mut held = held.lock().await;
        if !store.is_up() {
            drop(held);
            return store.admit(ask).await;
        }
        let now = Instant::now();
        if held.free_until.is_some_and(|until| until > now) {
            return Ok(Admission::Free);
        }
        held.used(now);
        if let Some(at) = held.take(now) {
            let wait_us = at.saturating_duration_since(now).as_secs_f64() * 1e6;
            return Ok(Admission::Go { wait_us, tokens: 1, step_us: 0.0 });
        }
        let kind = usize::from(ask.fresh);
        if held.apart_until[kind].is_some_and(|until| until > now) {
            drop(held);
            return store.admit(ask).await;
        }
        let want = slowest.map_or(1, |observed_rate| held.want(observed_rate));
        let admission = store.admit(&AdmissionRequest { want, ..ask.clone() }).await?;
        match admission {
            Admission::Free => held.free_until = Some(now + FREE_FOR),
            Admission::Go { wait_us, tokens, step_us } => {
                let after = |n: u32| now + Duration::from_secs_f64((wait_us + f64::from(n) * step_us) / 1e6);
                held.tokens.extend((1..tokens).map(after));
            }
            Admission::Park { .. } | Admission::Full { .. } => {
                held.apart_until[kind] = Some(Instant::now() + APART_FOR);
            }
        }
        Ok(admission)
    }

    fn held(&self, ask: &AdmissionRequest) -> Arc<Mutex<CachedTokens>> {
        let mut key = format!("{}\n{}", ask.lane, ask.tenant);
        for demand in &ask.demands {
            key.push('\n');
            key.push_str(&demand.scope);
        }
        let mut sets = self.sets();
        if sets.len() >= KEPT_MAX && !sets.contains_key(&key) {
            sets.clear();
        }
        Arc::clone(sets.entry(key).or_default())
    }

    fn sets(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<CachedTokens>>>> {
        // Nothing in here can panic half-way.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages a second of the slowest limit; nothing without limits.
fn slowest(demands: &[ScopeLimits]) -> Option<f64> {
    let intervals = demands.iter().flat_map(|one| &one.limits).map(|limit| limit.interval_us);
    intervals.fold(None, |slowest: Option<f64>, interval| Some(slowest.unwrap_or(0.0).max(interval))).map(|us| 1e6 / us)
}

impl CachedTokens {
    fn take(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let at = self.tokens.pop_front()?;
            if now.saturating_duration_since(at) <= STALE {
                return Some(at);
            }
        }
    }

    fn used(&mut self, now: Instant) {
        let window = Duration::from_secs_f64(BATCH_SECONDS);
        let age = self.window.map_or(3 * window, |since| now.duration_since(since));
        if age >= window {
            self.used_before = if age < 2 * window { self.used } else { 0 };
            (self.used, self.window) = (0, Some(now));
        }
        self.used += 1;
    }

    /// As many as were used of late: nobody hoards what others could use.
    fn want(&self, observed_rate: f64) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is cut below")]
        let most = (observed_rate * BATCH_SECONDS) as u32;
        self.used_before.max(self.used).min(most).clamp(1, BATCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use postrider_schemas::Lane;

    use super::*;
    use crate::{
        policy::rate_limit::{
            rate::Rate,
            scope::{Limit, ScopeLimits},
        },
        store::StoreOptions,
    };

    fn fast(scopes: &[&str]) -> AdmissionRequest {
        let limits = vec![Limit::from(&"1000/s".parse::<Rate>().unwrap())];
        let demand = |scope: &&str| ScopeLimits { scope: (*scope).to_owned(), limits: limits.clone() };
        AdmissionRequest::fresh(scopes.iter().map(demand).collect(), Lane::Transactional, "a")
    }

    #[test]
    fn a_scope_that_is_disturbed_costs_no_other_one_its_tokens() {
        let tokens = TokenCache::new(200.0);
        let (one, other) = (fast(&["transport:r", "group:r:big ones"]), fast(&["transport:s", "group:s:g"]));
        let (of_one, of_other) = (tokens.held(&one), tokens.held(&other));
        tokens.forget(["group:r:big ones", "a", "group:s"]);
        assert!(!Arc::ptr_eq(&of_one, &tokens.held(&one)) && Arc::ptr_eq(&of_other, &tokens.held(&other)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_the_store_is_away_nobody_waits_for_the_next_one_to_hear_so() {
        // Nothing listens there. Each call looks for a tenth of a second whether the store is back.
        let store = Store::connect("redis://127.0.0.1:1/", StoreOptions::default()).await.unwrap();
        let (tokens, ask, begin) = (TokenCache::new(200.0), fast(&["transport:r"]), Instant::now());
        let answers = join_all((0..200).map(|_| tokens.admit(&store, &ask))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(StoreError::is_down)));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}
