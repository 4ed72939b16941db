//! A scope as people want to see it: how fast it is now and why, what was used, who waits and for how long.

use super::scope::{Limit, Scope, WHOLE};

/// What `limits ls` and `explain` show of a scope.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
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
    pub used: (f64, f64),
    /// About so many jobs wait for their slot.
    pub waiting: f64,
    /// Tenants that wait.
    pub tenants: usize,
    /// Until there is room for a bulk message that does not have to wait behind others.
    pub next_room_s: f64,
    /// Until the slot of the last job that waits.
    pub last_slot_s: f64,
}

impl Picture {
    /// Whether it makes mail wait, or goes at another pace than configured.
    pub fn binds(&self) -> bool {
        self.tenants > 0 || self.paused_for_s.is_some() || self.set_for_s.is_some() || self.left_percent < 100.0
    }
}

/// Draws it.
pub fn picture(scope: &Scope, configured: &[Limit], now: f64) -> Picture {
    let left = scope.left(now);
    let limits = scope.limits(configured, now);
    let interval = |limit: &Limit| limit.interval_us * WHOLE / left;
    let slowest = limits.iter().map(interval).fold(0.0, f64::max);
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
    let set = scope.set.map(|set| (set.until - now) / 1e6).filter(|seconds| *seconds > 0.0);
    let is_slowed = paused > 0.0 || left < WHOLE;
    let reasons = [(set.is_some(), &scope.set_why), (is_slowed, &scope.why)];
    let reasons = reasons.into_iter().filter(|(holds, why)| *holds && !why.is_empty());
    let reasons: Vec<&str> = reasons.map(|(_, why)| why.as_str()).collect();
    Picture {
        per_second: (slowest > 0.0).then(|| 1e6 / slowest),
        left_percent: left * 100.0 / WHOLE,
        set_for_s: set,
        paused_for_s: (paused > 0.0).then_some(paused / 1e6),
        why: (!reasons.is_empty()).then(|| reasons.join("; ")),
        used,
        waiting: if slowest > 0.0 && last > 0.0 { ((last - room).max(0.0) / slowest).round() } else { 0.0 },
        tenants: ends.iter().filter(|end| **end > now).count(),
        next_room_s: room / 1e6,
        last_slot_s: last / 1e6,
    }
}

#[cfg(test)]
mod tests {
    use postrider_schemas::Lane;

    use super::*;
    use crate::decide::limits::{
        admit::{Ask, admit},
        rate::Rate,
        reaction::{Order, order},
        scope::Demand,
    };

    #[test]
    fn a_line_is_about_as_long_as_what_waits_in_it() {
        let limits = vec![Limit::from(&"20/s".parse::<Rate>().unwrap())];
        let ask = Ask::fresh(vec![Demand { scope: "g".to_owned(), limits: limits.clone() }], Lane::Bulk, "a");
        let (now, mut scopes) = (1.76e15, [Scope::default()]);
        for _ in 0..1000 {
            admit(&mut scopes, &ask, now);
        }
        let drawn = picture(&scopes[0], &limits, now);
        assert_eq!((drawn.per_second, drawn.used, drawn.tenants), (Some(20.0), (6.0, 0.0), 1));
        assert!((950.0..=1000.0).contains(&drawn.waiting), "{}", drawn.waiting);
        assert!(drawn.binds() && !picture(&scopes[0], &limits, now + 60e6).binds());
        order(&mut scopes[0], &Order::Pause { for_us: 5e6, why: "maintenance".to_owned() }, now);
        let paused = picture(&scopes[0], &limits, now);
        assert_eq!((paused.paused_for_s, paused.why.as_deref()), (Some(5.0), Some("maintenance")));
        let idle = Scope::default();
        assert!(paused.binds() && !picture(&idle, &limits, now).binds());
        assert_eq!(picture(&scopes[0], &limits, now + 6e6).why, None);
    }

    #[test]
    fn the_reasons_that_hold_are_shown_and_no_others() {
        let (now, mut scope) = (1.76e15, Scope::default());
        let why = |scope: &Scope, after_s: f64| picture(scope, &[], now + after_s * 1e6).why;
        let set = |for_us, why: &str| Order::Set { interval_us: 1e5, tolerance_us: 0.0, for_us, why: why.to_owned() };
        order(&mut scope, &set(3600e6, "warming up"), now);
        assert_eq!(why(&scope, 1.0).as_deref(), Some("warming up"));
        order(&mut scope, &Order::Pause { for_us: 60e6, why: "maintenance".to_owned() }, now);
        assert_eq!(why(&scope, 1.0).as_deref(), Some("warming up; maintenance"));
        assert_eq!(why(&scope, 61.0).as_deref(), Some("warming up"));
        order(&mut scope, &set(30e6, ""), now);
        assert_eq!(why(&scope, 31.0).as_deref(), Some("maintenance"));
        assert_eq!(why(&scope, 3601.0), None);
    }

    #[test]
    fn a_scope_without_limits_is_unlimited() {
        let drawn = picture(&Scope::default(), &[], 1.76e15);
        assert_eq!((drawn.per_second, drawn.left_percent, drawn.waiting), (None, 100.0, 0.0));
    }
}
