//! For what the jobs wait that this worker deferred: how many, by reason, until their time comes. Bounded.

use std::collections::BTreeMap;

/// Most remembered times of one reason. Beyond them jobs count as coming back with the last ones.
const TIMES_MAX: usize = 1024;

/// Deferred jobs by reason, and by the time at which they come back, in ms.
#[derive(Debug, Default)]
pub struct Deferred(BTreeMap<&'static str, BTreeMap<i64, u64>>);

impl Deferred {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// A job is deferred until then.
    pub fn add(&mut self, reason: &'static str, due: i64) {
        let times = self.0.entry(reason).or_default();
        *times.entry(due.div_euclid(1000) * 1000).or_default() += 1;
        if times.len() > TIMES_MAX
            && let Some((_, count)) = times.pop_last()
            && let Some(mut last) = times.last_entry()
        {
            *last.get_mut() += count;
        }
    }

    /// How many still wait, by reason.
    pub fn counts(&mut self, now: i64) -> BTreeMap<String, u64> {
        for times in self.0.values_mut() {
            *times = times.split_off(&now);
        }
        self.0.retain(|_, times| !times.is_empty());
        self.0.iter().map(|(reason, times)| ((*reason).to_owned(), times.values().sum())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_count_until_they_come_back_and_what_is_remembered_is_bounded() {
        let mut jobs = Deferred::new();
        for due in [5000, 5500, 90_000] {
            jobs.add("limit", due);
        }
        jobs.add("retry", 90_000);
        let counts = |jobs: &mut Deferred, now| jobs.counts(now).into_iter().collect::<Vec<_>>();
        assert_eq!(counts(&mut jobs, 1000), [("limit".to_owned(), 3), ("retry".to_owned(), 1)]);
        assert_eq!(counts(&mut jobs, 6000), [("limit".to_owned(), 1), ("retry".to_owned(), 1)]);
        assert!(counts(&mut jobs, 91_000).is_empty());
        (0..5000).for_each(|n| jobs.add("limit", 100_000 + n * 1000));
        assert_eq!(counts(&mut jobs, 91_000), [("limit".to_owned(), 5000)]);
        assert!(jobs.0["limit"].len() <= TIMES_MAX);
    }
}
