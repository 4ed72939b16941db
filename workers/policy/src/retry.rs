//! When the next try is due.

use std::time::Duration;

/// The waits between tries, and how much they vary.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySchedule {
    /// The wait after the first failed try, the second, and so on. Its length is the number of retries.
    pub waits: Vec<Duration>,
    /// How much a wait may grow, from 0 (not at all) to 1 (double), so that jobs that failed together do not come back together.
    pub jitter: f64,
}

impl RetrySchedule {
    /// The wait before the next try, or nothing when `tries` failed ones used the schedule up.
    ///
    /// `dice` is any evenly spread number; taken from the job id, it gives a job the same wait however often it is asked.
    pub fn wait_after(&self, tries: u32, dice: u64) -> Option<Duration> {
        let wait = *self.waits.get(usize::try_from(tries.checked_sub(1)?).ok()?)?;
        Some(self.jittered(wait, tries, dice))
    }

    /// `wait`, longer by this schedule's jitter: for jobs that wait for the same thing. `n` counts the waits of the job.
    pub fn jittered(&self, wait: Duration, n: u32, dice: u64) -> Duration {
        wait.mul_f64(1.0 + self.jitter.clamp(0.0, 1.0) * spread(dice, n))
    }
}

/// A number from 0 to 1 out of a job's dice, another one for each try (`SplitMix64`'s finaliser).
pub fn spread(dice: u64, tries: u32) -> f64 {
    let mut z = dice.wrapping_add(u64::from(tries).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let top = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(u32::MAX);
    f64::from(top) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(jitter: f64) -> RetrySchedule {
        RetrySchedule { waits: [30, 120, 600].map(Duration::from_secs).to_vec(), jitter }
    }

    #[test]
    fn the_schedule_is_followed_and_ends() {
        let waits: Vec<Option<u64>> =
            (0..5).map(|tries| schedule(0.0).wait_after(tries, 1).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [None, Some(30), Some(120), Some(600), None]);
    }

    #[test]
    fn jitter_spreads_but_never_shortens_and_is_the_same_each_time() {
        let waits: Vec<f64> =
            (0..1000).filter_map(|dice| schedule(0.2).wait_after(1, dice)).map(|wait| wait.as_secs_f64()).collect();
        let mean = waits.iter().sum::<f64>() / 1000.0;
        assert!(waits.iter().all(|wait| (30.0..=36.0).contains(wait)));
        assert!((32.5..33.5).contains(&mean), "{mean}");
        assert_eq!(schedule(0.2).wait_after(2, 7), schedule(0.2).wait_after(2, 7));
    }
}
