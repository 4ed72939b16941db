//! Which limits are worth a look at how much of them is used: the ones that the configuration names, and of those that it does not name (tenants,
//! senders' domains, domains that are a group by themselves) the ones that made a job wait here of late. Bounded, however many there are.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Limiter, scopes};
use crate::{
    policy::rate_limit::{
        scope::Limit,
        scope_view::scope_view,
        usage::{CountSample, LimitUse},
    },
    store::StoreError,
};

/// Scopes that the configuration does not name.
const UNNAMED_MAX: usize = 64;
/// Scopes that it names.
const NAMED_MAX: usize = 512;
/// One that made nobody wait for so long is not looked at.
const LIFE: Duration = Duration::from_mins(2);

/// Scopes that made a job wait.
#[derive(Default)]
pub(super) struct BindingScopes(Mutex<HashMap<String, Instant>>);

impl BindingScopes {
    /// A job waits for this scope.
    pub fn note(&self, scope: &str, now: Instant) {
        let mut known = self.known();
        if let Some(last) = known.get_mut(scope) {
            *last = now;
            return;
        }
        if known.len() >= UNNAMED_MAX
            && let Some(oldest) = known.iter().min_by_key(|(_, last)| **last).map(|(name, _)| name.clone())
        {
            known.remove(&oldest);
        }
        known.insert(scope.to_owned(), now);
    }

    fn recent(&self, now: Instant) -> Vec<String> {
        let mut known = self.known();
        known.retain(|_, last| now.duration_since(*last) < LIFE);
        known.keys().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        // Nothing in here can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limiter {
    /// How the limits stand that are worth a look. One round trip.
    pub async fn uses(&self) -> Result<Vec<LimitUse>, StoreError> {
        let mut names = self.named();
        names.truncate(NAMED_MAX);
        names.extend(self.0.binding.recent(Instant::now()));
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let overview = self.0.store.counts(&names).await?;
        let uses = overview.scopes.into_iter().filter_map(|(scope, state)| {
            let limits: Vec<Limit> = self.configured(&scope).iter().map(Limit::from).collect();
            let drawn = scope_view(&state, &limits, overview.now);
            let is_paused = drawn.paused_for_s.is_some();
            // What is paused without a rate is used as much as anything can be.
            let per_second = drawn.per_second.or(is_paused.then_some(0.0))?;
            Some(LimitUse { scope, look: CountSample { at: overview.now, used: state.used }, per_second, is_paused })
        });
        Ok(uses.collect())
    }

    /// The scopes with a rate that the configuration names.
    fn named(&self) -> Vec<String> {
        let config = &self.0.config;
        let mut names = Vec::new();
        for (name, limits) in self.0.transports.iter().zip(&config.transports) {
            if !limits.rates.is_empty() {
                names.push(scopes::transport(name));
            }
            let here = config.rates_at.get(name).into_iter().flat_map(|here| here.groups.keys());
            let groups: BTreeSet<&String> = config.group_rates.keys().chain(here).collect();
            let limited = groups.into_iter().filter(|group| !config.rates_of(name, group).is_empty());
            names.extend(limited.map(|group| scopes::group(name, group)));
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_domains_that_wait_are_64_to_be_looked_at_and_the_last_ones() {
        let (binding, start) = (BindingScopes::default(), Instant::now());
        for n in 0..100_000_u32 {
            binding.note(&format!("group:relay:domain-{n}.example"), start + Duration::from_micros(n.into()));
        }
        let known = binding.recent(start + Duration::from_secs(1));
        assert_eq!(known.len(), UNNAMED_MAX);
        assert!(known.contains(&"group:relay:domain-99999.example".to_owned()));
        assert!(binding.recent(start + LIFE + Duration::from_secs(1)).is_empty());
    }
}
