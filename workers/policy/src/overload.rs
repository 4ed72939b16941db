//! A transport that gives out its connections more slowly than jobs come, or not at all: how many of a worker's jobs may wait for it there, and
//! when the others come back. What stands behind them in the queue may be for a transport that is idle.
//!
//! There is no rate to go by but what was seen: so many got a connection of late. Those deferred take turns by tenant like those who wait for a limit.

use super::rate_limit::{
    scope::WaitQueue,
    wait_queue::{QueueReach, TenantWeight, join, waits_until},
};

/// A line whose first one waits for less moves fast enough.
const PATIENCE_US: f64 = 1e6;
/// Nobody is deferred for longer than this, in microseconds, which is about how long a transport that is well again may stand idle...
const REACH_US: f64 = 15e6;
/// ...nor for longer than this where the worker has no connection there now, because others have their turn...
const REACH_SHUT_US: f64 = 3e6;
/// ...unless more than so many are deferred each second: then longer in proportion, so that a large overload does not come and go all the time, ...
const PER_SECOND: f64 = 100.0;
/// ...up to this.
const REACH_MAX_US: f64 = 300e6;
/// Those who would all come back at the end of that are spread over this part of it.
const SPREAD: f64 = 0.25;

/// What is seen of those who wait for a transport, by lane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverloadInput {
    /// So many wait before it.
    pub ahead: usize,
    /// For so many of the lane it is at work.
    pub at_work: usize,
    /// The first one of them waits for so long, in microseconds.
    pub first_us: f64,
    /// So many a second had their turn of late.
    pub per_second: f64,
    /// So many a second were deferred of late.
    pub away_per_second: f64,
    /// So many jobs of the lane a worker has in hand at most.
    pub job_slots: usize,
    /// The transport gives out nothing now: other workers have all the connections that there may be.
    pub is_shut: bool,
}

/// For so many jobs of a lane a transport is at work at most that has not answered for a moment: of these job slots it leaves some to others.
pub fn max_in_progress(job_slots: usize) -> usize {
    part(job_slots, 5)
}

/// So many eighths of the job slots, and one at least.
fn part(job_slots: usize, eighths: usize) -> usize {
    (job_slots * eighths / 8).max(1)
}

/// When a job comes back that is not to wait for the transport in the worker; nothing where it may. `is_fresh`: it was never deferred. `dice` is from 0 to 1.
///
/// Times are microseconds of one clock.
pub fn overload_delay(
    line: &mut WaitQueue,
    who: TenantWeight<'_>,
    is_fresh: bool,
    seen: &OverloadInput,
    now: f64,
    dice: f64,
) -> Option<f64> {
    // Those who came back are let in first, those who are fresh next, and last those who are fresh while others of their tenant are deferred, whom
    // they are not to overtake. Both lanes together leave job slots to others.
    let eighths = match (is_fresh, waits_until(line, who.tenant, now + PATIENCE_US)) {
        (false, _) => 4,
        (true, false) => 3,
        (true, true) => 2,
    };
    let is_long = seen.ahead >= part(seen.job_slots, eighths);
    // What it is at work for has job slots too; somebody waits for the next connection in any case.
    let is_much = seen.ahead > 0 && seen.ahead + seen.at_work >= part(seen.job_slots, eighths + 2);
    if seen.first_us < PATIENCE_US || !is_long && !is_much {
        return None;
    }
    let reach = if seen.is_shut { REACH_SHUT_US } else { REACH_US };
    let reach = (reach * (seen.away_per_second / PER_SECOND).max(1.0)).min(REACH_MAX_US);
    let last = now + reach * (1.0 - SPREAD * dice);
    if seen.per_second <= 0.0 {
        return Some(last);
    }
    let interval = 1e6 / seen.per_second;
    #[expect(clippy::cast_precision_loss, reason = "fewer than any worker has in hand")]
    let through = now + seen.ahead as f64 * interval;
    let joined = join(line, who, through, interval, now, QueueReach { us: REACH_MAX_US, every_us: None });
    Some((now + joined.slot_us).min(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1e9;
    const SLOW: OverloadInput = OverloadInput {
        ahead: 8,
        at_work: 0,
        first_us: 2e6,
        per_second: 4.0,
        away_per_second: 1.0,
        job_slots: 20,
        is_shut: false,
    };

    fn who(tenant: &str) -> TenantWeight<'_> {
        TenantWeight { tenant, weight: 1.0 }
    }

    /// Seconds until a fresh job of a tenant comes back.
    fn fresh(line: &mut WaitQueue, tenant: &str, seen: OverloadInput) -> Option<f64> {
        overload_delay(line, who(tenant), true, &seen, NOW, 0.0).map(|slot| ((slot - NOW) / 1e5).round() / 10.0)
    }

    #[track_caller]
    fn check(seen: OverloadInput, is_fresh: bool, expected: bool) {
        let slot = overload_delay(&mut WaitQueue::default(), who("a"), is_fresh, &seen, NOW, 0.0);
        assert_eq!(slot.is_some(), expected, "{seen:?}");
    }

    #[test]
    fn three_eighths_of_what_is_in_hand_may_wait_for_a_transport_and_half_with_those_that_came_back() {
        check(OverloadInput { ahead: 6, ..SLOW }, true, false);
        check(OverloadInput { ahead: 7, ..SLOW }, true, true);
        check(OverloadInput { ahead: 9, ..SLOW }, false, false);
        check(OverloadInput { ahead: 10, ..SLOW }, false, true);
        check(OverloadInput { ahead: 0, job_slots: 1, ..SLOW }, true, false);
        check(OverloadInput { ahead: 1, job_slots: 1, ..SLOW }, true, true);
    }

    #[test]
    fn with_those_that_the_transport_is_at_work_for_it_is_five_eighths_or_six() {
        check(OverloadInput { ahead: 1, at_work: 10, ..SLOW }, true, false);
        check(OverloadInput { ahead: 1, at_work: 11, ..SLOW }, true, true);
        check(OverloadInput { ahead: 1, at_work: 13, ..SLOW }, false, false);
        check(OverloadInput { ahead: 1, at_work: 14, ..SLOW }, false, true);
        // One waits for the next connection, however many there are.
        check(OverloadInput { ahead: 0, at_work: 20, ..SLOW }, true, false);
        check(OverloadInput { ahead: 1, at_work: 20, first_us: 0.9e6, ..SLOW }, true, false);
        assert_eq!([1, 2, 16, 20].map(max_in_progress), [1, 1, 10, 12]);
    }

    #[test]
    fn nobody_is_put_away_while_the_line_moves_within_a_second() {
        check(OverloadInput { first_us: 0.9e6, ahead: 16, ..SLOW }, true, false);
    }

    #[test]
    fn who_is_put_away_comes_back_when_the_others_are_through_and_tenants_take_turns() {
        let mut line = WaitQueue::default();
        let first: Vec<_> = (0..400).filter_map(|_| fresh(&mut line, "a", SLOW)).collect();
        assert_eq!((first[0], first[4], first[399]), (2.0, 3.0, 15.0));
        assert!(fresh(&mut line, "b", SLOW).unwrap() < 3.0, "not behind four hundred of another");
    }

    #[test]
    fn a_fresh_job_does_not_overtake_those_of_its_tenant_that_were_put_away() {
        let mut line = WaitQueue::default();
        fresh(&mut line, "a", SLOW);
        let few = OverloadInput { ahead: 6, ..SLOW };
        assert_eq!((fresh(&mut line, "a", few).is_some(), fresh(&mut line, "b", few)), (true, None));
    }

    #[test]
    fn a_small_crowd_comes_back_within_seconds_and_a_large_one_does_not_come_and_go_all_the_time() {
        let stalled = |away_per_second: f64, dice: f64| {
            let seen = OverloadInput { per_second: 0.0, away_per_second, ..SLOW };
            overload_delay(&mut WaitQueue::default(), who("a"), true, &seen, NOW, dice).map(|slot| (slot - NOW) / 1e6)
        };
        assert_eq!([1.0, 100.0, 200.0, 1e4].map(|away| stalled(away, 0.0)), [15.0, 15.0, 30.0, 300.0].map(Some));
        assert_eq!(stalled(1.0, 1.0), Some(11.25), "not all at once");
    }

    #[test]
    fn where_others_have_the_connections_a_crowd_comes_back_soon() {
        let shut = |away_per_second: f64| {
            let seen = OverloadInput { per_second: 0.0, away_per_second, is_shut: true, ..SLOW };
            overload_delay(&mut WaitQueue::default(), who("a"), true, &seen, NOW, 0.0).map(|slot| (slot - NOW) / 1e6)
        };
        assert_eq!([1.0, 1000.0].map(shut), [3.0, 30.0].map(Some));
    }
}
