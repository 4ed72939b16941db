//! How fast each key may send through this process: a token bucket for each.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Where a key stands after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Jobs that fit into the window, in all.
    pub limit: u32,
    /// Jobs that may follow at once.
    pub remaining: u32,
    /// Seconds until all of it is free again.
    pub reset: u64,
    /// False: refused, ask again after `reset`.
    pub is_allowed: bool,
}

/// Buckets by key. There are as many as keys.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, Bucket>>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// Takes a token of the key's bucket, which holds one second's worth, where there is one.
    pub fn take(&self, key: &str, per_second: u32, now: Instant) -> Standing {
        let full = f64::from(per_second);
        self.with(key, full, now, |tokens| {
            let is_allowed = *tokens >= 1.0;
            if is_allowed {
                *tokens -= 1.0;
            }
            let missing = if is_allowed { full - *tokens } else { 1.0 - *tokens };
            let reset = Duration::try_from_secs_f64(missing.max(0.0) / full).unwrap_or(Duration::MAX);
            Standing { limit: per_second, remaining: whole(*tokens), reset: ceiling(reset), is_allowed }
        })
    }

    /// Charges the further jobs of a request that goes, however many they are: the requests that follow wait longer for it.
    pub fn charge(&self, key: &str, per_second: u32, jobs: usize, now: Instant) {
        let jobs = f64::from(u32::try_from(jobs).unwrap_or(u32::MAX));
        self.with(key, f64::from(per_second), now, |tokens| *tokens -= jobs);
    }

    fn with<T>(&self, key: &str, full: f64, now: Instant, change: impl FnOnce(&mut f64) -> T) -> T {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(key.to_owned()).or_insert(Bucket { tokens: full, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * full).min(full);
        bucket.at = now;
        change(&mut bucket.tokens)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded below by 0 and above by a u32")]
fn whole(tokens: f64) -> u32 {
    tokens.max(0.0) as u32
}

/// At least one: a client that waits for 0 s asks in a loop.
fn ceiling(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_emptied_and_fills_again() {
        let (rates, start) = (Rates::default(), Instant::now());
        let take = |ms| rates.take("k", 10, start + Duration::from_millis(ms));
        assert_eq!(take(0), Standing { limit: 10, remaining: 9, reset: 1, is_allowed: true });
        rates.charge("k", 10, 9, start);
        assert_eq!(take(0), Standing { limit: 10, remaining: 0, reset: 1, is_allowed: false });
        assert!(take(100).is_allowed, "a tenth of a second is a token");
        assert_eq!(take(10_000).remaining, 9, "it never holds more than a second's worth");
    }

    #[test]
    fn a_large_request_goes_and_those_after_it_wait_for_it() {
        for per_second in [1, 10] {
            let (rates, start) = (Rates::default(), Instant::now());
            let jobs = 10 * per_second;
            assert!(rates.take("k", per_second, start).is_allowed);
            rates.charge("k", per_second, jobs as usize - 1, start);
            assert!(!rates.take("k", per_second, start + Duration::from_secs(9)).is_allowed);
            assert!(rates.take("k", per_second, start + Duration::from_secs(10)).is_allowed);
            assert!(rates.take("other", per_second, start).is_allowed, "keys do not share");
        }
    }
}
