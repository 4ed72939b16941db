//! May a message go now? All scopes are asked in one step: either every one of them is charged, or none.

use postrider_schemas::Lane;

use super::{
    PARK_BACK, PARK_MAX_US,
    scope::{Bucket, REACH_US, Scope, ScopeLimits, WHOLE},
    wait_queue::{self, TenantWeight},
};

/// Longest wait that is spent in the worker.
pub const HOLD_US: f64 = REACH_US;
/// So far ahead bulk mail gets tokens, or one message where the rate is slower. What has to wait for longer gets a slot, and asks again
/// then: tokens that are given out cannot be taken back when transactional mail comes, which goes besides them.
pub const BULK_AHEAD_US: f64 = 2.5e5;
/// Reach of the line while the rate is cut, from the end of a pause. Who finds it full stays away for longer, up to the longest time.
pub const PARK_MAX_CUT_US: f64 = 6e7;
/// So far may transactional mail overdraw a bucket that bulk mail has filled; bulk mail pays it back.
pub const DEBT_US: f64 = 1e5;
/// So far may a tenant run ahead of its fair share while others wait, before it yields to them.
const SHARE_SLACK_US: f64 = 5e5;
/// Spacing of slots where only a pause is in the way.
const PAUSE_SPACING_US: f64 = 5e3;

/// A message that wants to go, or several of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmissionRequest {
    /// What it is counted against. No scope twice.
    pub demands: Vec<ScopeLimits>,
    /// Its lane.
    pub lane: Lane,
    /// Its tenant.
    pub tenant: String,
    /// The tenant's weight.
    pub weight: f64,
    /// It was never deferred: it must not overtake those that were.
    pub fresh: bool,
    /// Tokens wanted, for this message and others like it.
    pub want: u32,
    /// Whether it joins the line where it has to wait for long.
    pub queue: bool,
    /// Whether it may wait in the worker for a token. Where too many do already, it joins the line for any wait.
    pub hold: bool,
}

impl AdmissionRequest {
    /// One message that was never deferred, of a tenant without a weight, which waits where it has to.
    pub fn fresh(demands: Vec<ScopeLimits>, lane: Lane, tenant: &str) -> Self {
        let tenant = tenant.to_owned();
        Self { demands, lane, tenant, weight: 1.0, fresh: true, want: 1, queue: true, hold: true }
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Admission {
    /// Nothing limits these scopes at present.
    Free,
    /// It may go after this wait; further tokens follow, a step apart.
    Go {
        /// Until the first token may be used.
        wait_us: f64,
        /// How many were given.
        tokens: u32,
        /// From one to the next.
        step_us: f64,
    },
    /// It has a slot. Up to [`HOLD_US`] it waits in the worker and asks again; longer, it is deferred.
    Park {
        /// For so long.
        park_us: f64,
        /// Its slot, from now; beyond `park_us` where that was cut.
        slot_us: f64,
        /// The scope that is in the way: position in [`AdmissionRequest::demands`].
        scope: usize,
    },
    /// Too long to wait, and nothing was put in line.
    Full {
        /// Until there is room for one more.
        wait_us: f64,
        /// The scope that is in the way: position in [`AdmissionRequest::demands`].
        scope: usize,
    },
}

/// A bucket that is charged if the message goes.
struct BucketCharge {
    scope: usize,
    name: &'static str,
    bucket: Bucket,
}

/// What is in the way, if anything.
struct Obstacle {
    at: f64,
    scope: usize,
    interval_us: f64,
}

/// Decides, and charges `scopes`, which are those of `ask.demands` in the same order. A `Free` changes nothing, a `Full` nothing but what a clock
/// that was set back left behind.
pub fn admit(scopes: &mut [Scope], ask: &AdmissionRequest, now: f64) -> Admission {
    let mut obstacle = Obstacle { at: now, scope: 0, interval_us: 0.0 };
    let mut charges = Vec::new();
    let mut step_us: f64 = 0.0;
    let mut is_paused = false;
    for (index, (scope, demand)) in scopes.iter_mut().zip(&ask.demands).enumerate() {
        let pause = scope.paused_until;
        if pause > now {
            is_paused = true;
        }
        if pause > obstacle.at {
            obstacle = Obstacle { at: pause, scope: index, interval_us: 0.0 };
        }
        for limit in scope.limits(&demand.limits, now) {
            scope.mend(&limit, now);
            let bucket = scope.bucket(&limit, now);
            let (interval, tolerance) = (bucket.interval_us, limit.tolerance_us);
            let all = bucket.all.max(now).max(pause);
            let urgent = bucket.urgent.max(now).max(pause);
            let at = match ask.lane {
                Lane::Bulk => (all - tolerance).max(pause),
                Lane::Transactional => {
                    let debt = ahead_us(Lane::Bulk, interval) + DEBT_US.max(interval);
                    (urgent - tolerance).max(bucket.all - tolerance - debt).max(pause)
                }
            };
            // Among those that have room at the same time the slowest one spaces the slots; one with room for all at the end of a pause does not.
            let has_more =
                at == pause && all - tolerance + interval * (1.0 + slots_after(scope, ask.lane, pause)) <= pause;
            if at > now && (at > obstacle.at || at == obstacle.at && interval >= obstacle.interval_us) && !has_more {
                obstacle = Obstacle { at, scope: index, interval_us: interval };
            }
            step_us = step_us.max(interval);
            charges.push(BucketCharge { scope: index, name: limit.bucket, bucket: Bucket { all, urgent, ..bucket } });
        }
    }
    if charges.is_empty() && !is_paused {
        return Admission::Free;
    }
    if obstacle.interval_us <= 0.0 {
        obstacle.interval_us = PAUSE_SPACING_US;
    }
    let wait = obstacle.at - now;
    let ahead = ahead_us(ask.lane, obstacle.interval_us);
    let who = TenantWeight { tenant: &ask.tenant, weight: ask.weight };
    if wait > 0.0 {
        let line = scopes[obstacle.scope].line(ask.lane);
        let most = if ask.queue && !ask.hold {
            0.0
        } else if wait_queue::is_over(line, &ask.tenant, now, SHARE_SLACK_US) {
            ahead / 2.0
        } else {
            ahead
        };
        let joins = ask.fresh && ask.queue && wait_queue::waits_until(line, &ask.tenant, now + ahead);
        if wait > most || joins {
            return if ask.queue { park(scopes, &obstacle, ask, who, now) } else { full(&obstacle, now) };
        }
    }
    let room = if step_us > 0.0 { 1.0 + ((now + ahead - obstacle.at) / step_us).floor() } else { 1.0 };
    let tokens = f64::from(ask.want).min(room).max(1.0);
    if wait > 0.0 {
        wait_queue::got(scopes[obstacle.scope].line(ask.lane), who, tokens, obstacle.interval_us, now);
    }
    let mut counted = None;
    for one in charges {
        // Charges stand in the order of their scopes. What has no limit is not counted: a store need not know it.
        if counted != Some(one.scope) {
            scopes[one.scope].count(tokens, now);
            counted = Some(one.scope);
        }
        let mut bucket = one.bucket;
        bucket.all += tokens * bucket.interval_us;
        if ask.lane == Lane::Transactional {
            bucket.urgent += tokens * bucket.interval_us;
        }
        scopes[one.scope].buckets.insert(one.name.to_owned(), bucket);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to `ask.want`")]
    Admission::Go { wait_us: wait, tokens: tokens as u32, step_us }
}

/// About so many slots a line gave out behind a pause, which stand close together as long as there is room for all of them at its end.
fn slots_after(scope: &Scope, lane: Lane, pause: f64) -> f64 {
    let ends = scope.lines.get(lane.as_str()).into_iter().flat_map(|line| line.ends.values());
    let last = ends.map(|place| place.end).fold(0.0, f64::max);
    if last >= pause { 1.0 + (last - pause) / PAUSE_SPACING_US } else { 0.0 }
}

/// How far ahead tokens are given out.
fn ahead_us(lane: Lane, interval_us: f64) -> f64 {
    match lane {
        Lane::Transactional => HOLD_US,
        Lane::Bulk => interval_us.clamp(BULK_AHEAD_US, HOLD_US),
    }
}

fn park(
    scopes: &mut [Scope],
    obstacle: &Obstacle,
    ask: &AdmissionRequest,
    who: TenantWeight<'_>,
    now: f64,
) -> Admission {
    let scope = &mut scopes[obstacle.scope];
    // A cut recovers: those who wait behind it come back soon to see, but not before a pause is over.
    let pause = (scope.paused_until - now).max(0.0);
    let reach_us = if scope.left(now) < WHOLE { (pause + PARK_MAX_CUT_US).min(PARK_MAX_US) } else { PARK_MAX_US };
    let slot_us = wait_queue::join(scope.line(ask.lane), who, obstacle.at, obstacle.interval_us, now, reach_us);
    // Who finds no slot comes back spread over the last part of the reach, while the line is still full.
    let spread_us = reach_us - now.floor() % 1e6 / 1e6 * reach_us * (1.0 - PARK_BACK);
    let park_us = if slot_us <= reach_us { slot_us } else { spread_us };
    Admission::Park { park_us, slot_us, scope: obstacle.scope }
}

fn full(obstacle: &Obstacle, now: f64) -> Admission {
    Admission::Full { wait_us: obstacle.at - now, scope: obstacle.scope }
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
