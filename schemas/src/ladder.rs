//! The delay ladder: a wait in whole seconds as seven octal digits, each waited out in a queue of its own level.
//!
//! A message with routing key `d6.d5.d4.d3.d2.d1.d0.<lane>.<shard>` enters at the exchange of its highest non-zero digit; the queue of
//! level `L` and digit `d` holds it for `d * 8^L` seconds and dead-letters it to the next lower exchange, the last one to `postrider.due`.
//! One second of grain, 24 days of range, at most seven hops, and no message waits behind another one.

use std::time::Duration;

use crate::fields::Lane;

/// Where work comes back, with the seven digits of the ladder in front of `<lane>.<shard>`.
pub const DUE_EXCHANGE: &str = "postrider.due";
/// Number of levels, and of octal digits.
pub const LEVELS: u8 = 7;
/// Longest wait: `8^7 - 1` seconds, a little over 24 days. A longer one is parked again on arrival.
pub const WAIT_MAX: Duration = Duration::from_secs(8u64.pow(LEVELS as u32) - 1);
/// Shortest wait worth a hop; below it a job waits in the worker.
pub const WAIT_MIN: Duration = Duration::from_millis(1500);

/// Where a waiting message is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// The rung for a wait. Rounds up to whole seconds and cuts at [`WAIT_MAX`].
pub fn rung(wait: Duration, lane: Lane, shard: u16) -> Rung {
    let wait = wait.min(WAIT_MAX);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let digits: Vec<u64> = (0..LEVELS).rev().map(|level| (seconds >> (3 * level)) & 7).collect();
    let exchange = match digits.iter().position(|digit| *digit > 0) {
        Some(place) => exchange_name(LEVELS - 1 - u8::try_from(place).unwrap_or(0)),
        None => DUE_EXCHANGE.to_owned(),
    };
    let digits: Vec<String> = digits.iter().map(u64::to_string).collect();
    Rung { exchange, routing_key: format!("{}.{}", digits.join("."), target(lane, shard)) }
}

/// The exchange of a level.
pub fn exchange_name(level: u8) -> String {
    format!("postrider.delay.{level}")
}

/// The queue of a level and a digit from 1 to 7.
pub fn queue_name(level: u8, digit: u8) -> String {
    format!("postrider.v1.delay.{level}.{digit}")
}

/// How long the queue of a level and digit holds a message.
pub fn queue_wait(level: u8, digit: u8) -> Duration {
    Duration::from_secs(u64::from(digit) * 8u64.pow(u32::from(level)))
}

/// The binding key under which an exchange of a level finds a digit.
pub fn binding_key(level: u8, digit: u8) -> String {
    format!("{}{digit}.#", "*.".repeat(usize::from(LEVELS - 1 - level)))
}

/// The last two words of a routing key: `<lane>.<shard>`.
pub fn target(lane: Lane, shard: u16) -> String {
    format!("{lane}.{shard:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wait: Duration, exchange: &str, key: &str) {
        let rung = rung(wait, Lane::Bulk, 3);
        assert_eq!((rung.exchange.as_str(), rung.routing_key.as_str()), (exchange, key));
    }

    #[test]
    fn a_wait_enters_at_its_highest_digit() {
        check(Duration::from_secs(2), "postrider.delay.0", "0.0.0.0.0.0.2.bulk.03");
        check(Duration::from_secs(9), "postrider.delay.1", "0.0.0.0.0.1.1.bulk.03");
        check(Duration::from_secs(65), "postrider.delay.2", "0.0.0.0.1.0.1.bulk.03");
        check(WAIT_MAX, "postrider.delay.6", "7.7.7.7.7.7.7.bulk.03");
    }

    #[test]
    fn waits_round_up_and_stay_in_range() {
        check(Duration::from_millis(1001), "postrider.delay.0", "0.0.0.0.0.0.2.bulk.03");
        check(Duration::ZERO, "postrider.due", "0.0.0.0.0.0.0.bulk.03");
        check(Duration::MAX, "postrider.delay.6", "7.7.7.7.7.7.7.bulk.03");
    }

    #[test]
    fn the_rungs_of_any_wait_add_up_to_it() {
        for seconds in [1, 7, 8, 63, 64, 4711, 86_400, 2_000_000, WAIT_MAX.as_secs()] {
            let key = rung(Duration::from_secs(seconds), Lane::Bulk, 0).routing_key;
            let sum: u64 = key
                .split('.')
                .take(7)
                .zip((0..LEVELS).rev())
                .map(|(digit, level)| digit.parse::<u8>().map_or(0, |digit| queue_wait(level, digit).as_secs()))
                .sum();
            assert_eq!(sum, seconds);
        }
    }
}
