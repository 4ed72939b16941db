//! Which scopes are not as configured, as this worker knows: what the store said when it was asked last, and what answers here brought about
//! since. Those without a configured limit are asked about only while they are in here.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

/// Scopes, and when an answer here disturbed them; no time where only the store said so.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides(HashMap<String, Option<Instant>>);

impl Overrides {
    /// An answer that was heard here disturbs a scope, and the store knows.
    pub(super) fn note(&mut self, scope: &str, now: Instant) {
        self.0.insert(scope.to_owned(), Some(now));
    }

    /// Whether a scope is not as configured.
    pub(super) fn contains(&self, scope: &str) -> bool {
        self.0.contains_key(scope)
    }

    /// Takes over what the store says to a question of `asked`. It may have said so before it heard what was noted here since: that is kept, and
    /// is for the next look to end. What comes back are the scopes that are disturbed now and were not, or the other way round.
    pub(super) fn looked(&mut self, asked: Instant, scopes: &HashSet<String>) -> Vec<String> {
        let mut changed: Vec<String> = scopes.iter().filter(|scope| !self.contains(scope)).cloned().collect();
        self.0.extend(changed.iter().map(|scope| (scope.clone(), None)));
        self.0.retain(|scope, noted| {
            let is_kept = scopes.contains(scope) || noted.is_some_and(|noted| noted >= asked);
            if !is_kept {
                changed.push(scope.clone());
            }
            is_kept
        });
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scopes(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// What is known after a look that was asked at second 10, with these noted at these seconds before its answer was read.
    #[track_caller]
    fn check(before: &[&str], noted: &[(&str, u64)], said: &[&str], known: &[&str], changed: &[&str]) {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut overrides = Overrides::default();
        overrides.looked(at(0), &scopes(before));
        for (scope, second) in noted {
            overrides.note(scope, at(*second));
        }
        let is_changed = overrides.looked(at(10), &scopes(said));
        let is_known: HashSet<String> = overrides.0.keys().cloned().collect();
        assert_eq!((is_known, scopes(changed)), (scopes(known), is_changed.into_iter().collect()));
    }

    #[test]
    fn what_the_store_says_holds() {
        check(&[], &[], &["a"], &["a"], &["a"]);
        check(&["a", "b"], &[], &["b", "c"], &["b", "c"], &["a", "c"]);
        check(&["a"], &[], &["a"], &["a"], &[]);
    }

    #[test]
    fn what_was_noted_after_the_store_was_asked_is_kept() {
        check(&[], &[("a", 11)], &[], &["a"], &[]);
        check(&[], &[("a", 10)], &[], &["a"], &[]);
        check(&["b"], &[("a", 11)], &["c"], &["a", "c"], &["b", "c"]);
        check(&["a"], &[("a", 11)], &[], &["a"], &[]);
    }

    #[test]
    fn what_was_noted_before_is_the_stores_to_keep_or_to_end() {
        check(&[], &[("a", 9)], &[], &[], &["a"]);
        check(&[], &[("a", 9)], &["a"], &["a"], &[]);
    }

    #[test]
    fn the_next_look_ends_what_the_last_one_kept() {
        let asked = Instant::now();
        let mut overrides = Overrides::default();
        overrides.note("a", asked);
        assert!(overrides.looked(asked, &scopes(&[])).is_empty() && overrides.contains("a"));
        assert_eq!(overrides.looked(asked + Duration::from_nanos(1), &scopes(&[])), ["a"]);
        assert!(!overrides.contains("a"));
    }
}
