//! The soft line of those who wait for a scope: which slot a job gets that has to be deferred.
//!
//! A line knows one time per tenant, the last slot it gave out. Nothing is booked: a slot is the time at which there will be room for
//! the job as things stand, and when the job comes back it asks for its token like any other. So whatever happens meanwhile - a crash,
//! another rate, a job that was cancelled - wastes nothing and lets nobody past the limit.
//!
//! A tenant's slots are as far apart as its fair share of the rate is while others wait behind them too. Slots that were
//! given out before another tenant came are too dense for that; whoever has had more than its share then yields first (see `shares`).

use super::scope::{TenantPosition, WaitQueue};

/// Slots stand closer than the rate allows by this part, so that jobs which come late leave no hole, ...
const PACKED: f64 = 0.02;
/// ... but by no more than this, in microseconds: nobody is late by as much as the slots of a slow rate are apart.
const PACKED_MAX_US: f64 = 1e4;

/// Among equals, a fair slot this near to the end of the whole line, as a part of its length, is not worth displacing somebody: it
/// becomes the end.
const NEAR: f64 = 0.1;
/// The same in microseconds, whichever is longer.
const NEAR_US: f64 = 1e6;

/// Who wants to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TenantWeight<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// Its weight among others.
    pub weight: f64,
}

/// Joins the end of the tenant's line and gives the slot, from now: not before `at`, when the scope has room for one. A slot beyond `reach_us` is not
/// given out: whoever comes back before it joins again, and would find its own slot in front of it. The line then says at most that somebody waits.
pub fn join(line: &mut WaitQueue, who: TenantWeight<'_>, at: f64, interval_us: f64, now: f64, reach_us: f64) -> f64 {
    line.ends.retain(|_, place| place.end > now);
    let step = interval_us - (interval_us * PACKED).min(PACKED_MAX_US);
    // The first one's slot is when there is room for one.
    let start = at - step;
    let base = line.ends.get(who.tenant).map_or(start, |place| place.end.max(start));
    let others = line.ends.iter().filter(|(tenant, place)| *tenant != who.tenant && place.end > base);
    let above: f64 = others.map(|(_, place)| place.weight).sum();
    let last = line.ends.values().map(|place| place.end).fold(start, f64::max);
    let fair = (base + step * (above + who.weight) / who.weight).min(last + step);
    let equals = line.ends.values().all(|place| place.weight == who.weight);
    let slot = if equals && last - fair < NEAR_US.max((last - now) * NEAR) { last + step } else { fair };
    let end =
        if slot - now > reach_us { line.ends.get(who.tenant).map_or(now + reach_us, |place| place.end) } else { slot };
    line.ends.insert(who.tenant.to_owned(), TenantPosition { end, weight: who.weight });
    slot - now
}

/// Whether jobs of the tenant wait at least until `time`: a fresh one must not overtake them.
pub fn waits_until(line: &WaitQueue, tenant: &str, time: f64) -> bool {
    line.ends.get(tenant).is_some_and(|place| place.end > time)
}

/// Whether the tenant has had more than its share while others wait.
pub fn is_over(line: &WaitQueue, tenant: &str, now: f64, slack_us: f64) -> bool {
    line.shares.get(tenant).is_some_and(|until| *until > now + slack_us)
}

/// Notes that the tenant got `tokens` while there was not enough for all. Without others in the line there is nothing to share.
pub fn got(line: &mut WaitQueue, who: TenantWeight<'_>, tokens: f64, interval_us: f64, now: f64) {
    let others = line.ends.iter().filter(|(tenant, place)| *tenant != who.tenant && place.end > now);
    let above: f64 = others.map(|(_, place)| place.weight).sum();
    if above > 0.0 {
        let until = line.shares.get(who.tenant).copied().unwrap_or(0.0).max(now);
        line.shares.retain(|_, until| *until > now);
        let until = until + tokens * interval_us * (above + who.weight) / who.weight;
        line.shares.insert(who.tenant.to_owned(), until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(tenant: &str) -> TenantWeight<'_> {
        TenantWeight { tenant, weight: 1.0 }
    }

    /// Slots a millisecond apart.
    const STEP: f64 = 1e3;
    const FROM: f64 = 1e9;
    const FAR: f64 = f64::INFINITY;

    fn slots(line: &mut WaitQueue, tenant: TenantWeight<'_>, count: usize) -> Vec<f64> {
        let step = STEP / (1.0 - PACKED);
        (0..count).map(|_| ((join(line, tenant, FROM, step, FROM - 1.0, FAR) - 1.0) / STEP).round()).collect()
    }

    #[test]
    fn one_tenant_has_the_whole_rate() {
        assert_eq!(slots(&mut WaitQueue::default(), who("a"), 3), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn a_tenant_that_comes_later_gets_every_other_slot_from_the_front() {
        let mut line = WaitQueue::default();
        slots(&mut line, who("a"), 10_000);
        assert_eq!(slots(&mut line, who("b"), 3), [1.0, 3.0, 5.0]);
        assert_eq!(slots(&mut line, who("c"), 2), [2.0, 5.0]);
    }

    #[test]
    fn tenants_whose_lines_are_about_as_long_take_turns_at_the_end() {
        let mut line = WaitQueue::default();
        slots(&mut line, who("a"), 1000);
        assert_eq!(slots(&mut line, who("b"), 1), [1000.0], "a second is no difference");
        slots(&mut line, who("a"), 99_000);
        assert!(slots(&mut line, who("b"), 1)[0] < 2000.0);
    }

    #[test]
    fn the_line_is_never_longer_than_what_waits_in_it() {
        let mut line = WaitQueue::default();
        for n in 0..30_000 {
            slots(&mut line, who("a"), 1);
            if n < 10_000 {
                slots(&mut line, who("b"), 1);
            }
        }
        let end = line.ends.values().map(|place| place.end).fold(0.0, f64::max);
        assert!(((end - FROM) / STEP - 39_999.0).abs() <= 1.0, "{end}");
    }

    #[test]
    fn weights_are_shares() {
        let mut line = WaitQueue::default();
        slots(&mut line, who("a"), 1000);
        let heavy = TenantWeight { tenant: "b", weight: 3.0 };
        assert_eq!(slots(&mut line, heavy, 30).pop(), Some(39.0), "three of four slots");
    }

    #[test]
    fn a_time_that_has_passed_is_forgotten() {
        let mut line = WaitQueue::default();
        slots(&mut line, who("a"), 6);
        assert!(waits_until(&line, "a", FROM + 4.0 * STEP) && !waits_until(&line, "a", FROM + 5.0 * STEP));
        let at = FROM + 7.0 * STEP;
        assert_eq!(join(&mut line, who("b"), at, STEP, at - 1.0, FAR), 1.0);
        assert_eq!(line.ends.len(), 1);
    }

    #[test]
    fn who_had_more_than_its_share_while_others_wait_is_over_it() {
        let mut line = WaitQueue::default();
        slots(&mut line, who("a"), 10);
        got(&mut line, who("a"), 5.0, STEP, FROM - 1.0);
        assert!(!is_over(&line, "a", FROM - 1.0, 0.0), "nobody else waits");
        slots(&mut line, who("b"), 10);
        got(&mut line, who("a"), 5.0, STEP, FROM - 1.0);
        let ten = 10.0 * STEP;
        assert!(is_over(&line, "a", FROM - 1.0, ten - 1.0) && !is_over(&line, "a", FROM - 1.0, ten));
        assert!(!is_over(&line, "b", FROM - 1.0, 0.0));
    }
}
