//! A scope as people want to see it: how fast it is now and why, what was used, who waits and for how long.

use std::collections::BTreeSet;

use super::scope::{Limit, SET, Scope, WHOLE};

/// What `limits ls` and `explain` show of a scope.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScopeView {
    /// Messages a second now; nothing where it is unlimited.
    pub per_second: Option<f64>,
    /// Per cent of the rate that a cut left.
    pub left_percent: f64,
    /// The rate is an operator's, for so many seconds more.
    pub set_for_s: Option<f64>,
    /// Nothing goes for so many seconds more.
    pub paused_for_s: Option<f64>,
    /// Why it is set, and why it is paused or cut: the reasons that hold.
    pub why: Option<String>,
    /// Messages that got a token in this minute and the one before.
    pub used: (u64, u64),
    /// Tenants that wait.
    pub tenants: usize,
    /// Until there is room for a bulk message that does not have to wait behind others.
    pub next_room_s: f64,
    /// Until the slot of the last job that waits.
    pub last_slot_s: f64,
}

impl ScopeView {
    /// Whether it makes mail wait, or would make the next message, or goes at another pace than configured.
    pub fn binds(&self) -> bool {
        let is_as_configured = self.paused_for_s.is_none() && self.set_for_s.is_none() && self.left_percent >= 100.0;
        self.tenants > 0 || self.is_used_up() || !is_as_configured
    }

    /// Whether a message would have to wait for so long that it is deferred.
    pub fn is_used_up(&self) -> bool {
        self.next_room_s >= 1.0
    }
}

/// Draws it.
pub fn scope_view(scope: &Scope, configured: &[Limit], now: f64) -> ScopeView {
    let left = scope.left(now);
    let limits = scope.limits(configured, now);
    let interval = |limit: &Limit| limit.interval_us * WHOLE / left;
    // What an operator set stands first: it is that which is to be seen, whatever holds beside it.
    let is_set = limits.first().is_some_and(|limit| limit.bucket == SET);
    let slowest = limits.iter().take(if is_set { 1 } else { usize::MAX }).map(interval).fold(0.0, f64::max);
    let paused = (scope.paused_until - now).max(0.0);
    let room = limits.iter().map(|limit| scope.bucket(limit, now).all - limit.tolerance_us - now);
    let ends: Vec<f64> = scope.lines.values().flat_map(|line| line.ends.values().map(|place| place.end)).collect();
    let last = ends.iter().copied().fold(now, f64::max) - now;
    let room = room.fold(paused, f64::max).max(0.0);
    let minute = (now / 6e7).floor();
    let used = match minute - scope.used.minute {
        0.0 => (scope.used.count, scope.used.before),
        1.0 => (0.0, scope.used.count),
        _ => (0.0, 0.0),
    };
    let set = scope.set.as_ref().map(|set| (set.until - now) / 1e6).filter(|seconds| *seconds > 0.0);
    let is_slowed = paused > 0.0 || left < WHOLE;
    let reasons = [(set.is_some(), &scope.set_why), (is_slowed, &scope.why)];
    let reasons = reasons.into_iter().filter(|(holds, why)| *holds && !why.is_empty());
    let reasons: Vec<&str> = reasons.map(|(_, why)| why.as_str()).collect();
    ScopeView {
        per_second: (slowest > 0.0).then(|| 1e6 / slowest),
        left_percent: left * 100.0 / WHOLE,
        set_for_s: set,
        paused_for_s: (paused > 0.0).then_some(paused / 1e6),
        why: (!reasons.is_empty()).then(|| reasons.join("; ")),
        used: (whole(used.0), whole(used.1)),
        tenants: tenants_waiting(scope, now),
        next_room_s: room / 1e6,
        last_slot_s: last / 1e6,
    }
}

/// Tenants that wait, in whichever lane.
fn tenants_waiting(scope: &Scope, now: f64) -> usize {
    let ends = scope.lines.values().flat_map(|line| &line.ends);
    ends.filter(|(_, place)| place.end > now).map(|(tenant, _)| tenant).collect::<BTreeSet<_>>().len()
}

/// A count of the store, which keeps all numbers alike.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 0 and far below 2^52")]
fn whole(count: f64) -> u64 {
    count.round().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use postrider_schemas::Lane;

    use super::*;
    use crate::rate_limit::{
        admit::{AdmissionRequest, admit},
        rate::Rate,
        scope::ScopeLimits,
        shaping_rule::{LimitCommand, order},
    };

    const NOW: f64 = 1.76e15;

    #[test]
    fn the_last_slot_of_a_line_is_when_all_who_wait_in_it_have_gone() {
        let limits = vec![Limit::from(&"20/s".parse::<Rate>().unwrap())];
        let ask = AdmissionRequest::fresh(
            vec![ScopeLimits { scope: "g".to_owned(), limits: limits.clone() }],
            Lane::Bulk,
            "a",
        );
        let (now, mut scopes) = (NOW, [Scope::default()]);
        for _ in 0..1000 {
            admit(&mut scopes, &ask, now);
        }
        let drawn = scope_view(&scopes[0], &limits, now);
        assert_eq!((drawn.per_second, drawn.used, drawn.tenants), (Some(20.0), (6, 0), 1));
        assert!((48.0..50.0).contains(&drawn.last_slot_s), "{drawn:?}");
        assert!(drawn.binds() && !scope_view(&scopes[0], &limits, now + 60e6).binds());
        order(&mut scopes[0], &LimitCommand::Pause { for_us: 5e6, why: "maintenance".to_owned() }, now);
        let paused = scope_view(&scopes[0], &limits, now);
        assert_eq!((paused.paused_for_s, paused.why.as_deref()), (Some(5.0), Some("maintenance")));
        let idle = Scope::default();
        assert!(paused.binds() && !scope_view(&idle, &limits, now).binds());
        assert_eq!(scope_view(&scopes[0], &limits, now + 6e6).why, None);
    }

    #[test]
    fn a_tenant_that_waits_in_both_lanes_is_one() {
        let mut scope = Scope::default();
        order(&mut scope, &LimitCommand::Pause { for_us: 6e7, why: "maintenance".to_owned() }, NOW);
        for lane in Lane::ALL {
            let ask =
                AdmissionRequest::fresh(vec![ScopeLimits { scope: "g".to_owned(), limits: Vec::new() }], lane, "a");
            admit(std::slice::from_mut(&mut scope), &ask, NOW);
        }
        assert_eq!(scope_view(&scope, &[], NOW + 1e6).tenants, 1);
    }

    #[test]
    fn the_reasons_that_hold_are_shown_and_no_others() {
        let (now, mut scope) = (1.76e15, Scope::default());
        let why = |scope: &Scope, after_s: f64| scope_view(scope, &[], now + after_s * 1e6).why;
        let set = |for_us, why: &str| {
            let (bucket, why) = ("s".to_owned(), why.to_owned());
            LimitCommand::Set { bucket, interval_us: 1e5, tolerance_us: 0.0, for_us, why }
        };
        order(&mut scope, &set(3600e6, "warming up"), now);
        assert_eq!(why(&scope, 1.0).as_deref(), Some("warming up"));
        order(&mut scope, &LimitCommand::Pause { for_us: 60e6, why: "maintenance".to_owned() }, now);
        assert_eq!(why(&scope, 1.0).as_deref(), Some("warming up; maintenance"));
        assert_eq!(why(&scope, 61.0).as_deref(), Some("warming up"));
        order(&mut scope, &set(30e6, ""), now);
        assert_eq!(why(&scope, 31.0).as_deref(), Some("maintenance"));
        assert_eq!(why(&scope, 3601.0), None);
    }

    #[test]
    fn a_limit_that_is_used_up_binds_though_nobody_waits() {
        let limits = vec![Limit::from(&"1/d".parse::<Rate>().unwrap())];
        let ask = AdmissionRequest::fresh(
            vec![ScopeLimits { scope: "g".to_owned(), limits: limits.clone() }],
            Lane::Bulk,
            "a",
        );
        let mut scopes = [Scope::default()];
        assert!(!scope_view(&scopes[0], &limits, NOW).binds());
        admit(&mut scopes, &ask, NOW);
        let drawn = scope_view(&scopes[0], &limits, NOW);
        assert_eq!((drawn.tenants, drawn.next_room_s.round(), drawn.binds()), (0, 86_400.0, true));
        assert!(!scope_view(&scopes[0], &limits, NOW + 8.64e10).binds());
    }

    #[test]
    fn a_scope_without_limits_is_unlimited() {
        let drawn = scope_view(&Scope::default(), &[], 1.76e15);
        assert_eq!((drawn.per_second, drawn.left_percent, drawn.tenants), (None, 100.0, 0));
    }
}
