use proptest::prelude::*;

use super::*;
use crate::rate_limit::{
    rate::Rate,
    scope::{Limit, RateReduction},
};

const NOW: f64 = 1.76e15;

fn demand(scope: &str, rates: &[&str]) -> ScopeLimits {
    let limit = |rate: &&str| Limit::from(&rate.parse::<Rate>().unwrap());
    ScopeLimits { scope: scope.to_owned(), limits: rates.iter().map(limit).collect() }
}

fn ask(demands: Vec<ScopeLimits>) -> AdmissionRequest {
    AdmissionRequest::fresh(demands, Lane::Bulk, "a")
}

fn urgent(ask: &AdmissionRequest) -> AdmissionRequest {
    AdmissionRequest { lane: Lane::Transactional, ..ask.clone() }
}

fn wait(admission: Admission) -> Option<f64> {
    match admission {
        Admission::Go { wait_us, .. } => Some(wait_us),
        _ => None,
    }
}

#[test]
fn tokens_are_an_interval_apart_and_a_long_wait_is_parked_at_the_next_slot() {
    let ask = ask(vec![demand("t", &["4/s"])]);
    let mut scopes = [Scope::default()];
    for n in 0..2 {
        assert_eq!(wait(admit(&mut scopes, &ask, NOW)), Some(f64::from(n) * 250_000.0));
        assert_eq!(wait(admit(&mut scopes.clone(), &urgent(&ask), NOW)), Some(0.0));
    }
    for n in 2..9 {
        let Admission::Park { park_us, slot_us, scope: 0 } = admit(&mut scopes, &ask, NOW) else { panic!() };
        assert_eq!((park_us, slot_us), (slot_us, 500_000.0 + 245_000.0 * f64::from(n - 2)));
    }
}

#[test]
fn a_burst_goes_at_once_and_is_paid_back() {
    let ask = ask(vec![demand("t", &["10/s burst 3"])]);
    let mut scopes = [Scope::default()];
    let waits: Vec<_> = (0..4).map(|_| wait(admit(&mut scopes, &ask, NOW))).collect();
    assert_eq!(waits, [0.0, 0.0, 0.0, 100_000.0].map(Some));
}

#[test]
fn all_scopes_are_charged_or_none() {
    let narrow = ask(vec![demand("t", &["100/s"]), demand("g", &["1/s"])]);
    let mut scopes = [Scope::default(), Scope::default()];
    for _ in 0..2 {
        assert!(matches!(admit(&mut scopes, &narrow, NOW), Admission::Go { .. }));
    }
    let before = scopes[0].clone();
    assert!(matches!(admit(&mut scopes, &narrow, NOW), Admission::Park { scope: 1, .. }));
    assert_eq!(scopes[0], before);
    let none = AdmissionRequest { queue: false, ..narrow };
    let before = scopes.clone();
    assert!(matches!(admit(&mut scopes, &none, NOW), Admission::Full { scope: 1, .. }));
    assert_eq!(scopes, before);
}

/// How many messages go in so many minutes where each of these always has one that waits, and comes back when it is told to.
fn sent_in(minutes: f64, asks: &[AdmissionRequest]) -> usize {
    sent_from(Scope::default(), NOW, minutes, asks)
}

fn sent_from(scope: Scope, from: f64, minutes: f64, asks: &[AdmissionRequest]) -> usize {
    let (mut scopes, mut sent) = ([scope], 0);
    let mut next = vec![from; asks.len()];
    loop {
        let who = (0..asks.len()).min_by(|a, b| next[*a].total_cmp(&next[*b])).unwrap();
        let now = next[who];
        if now > from + minutes * 60e6 {
            return sent;
        }
        match admit(&mut scopes, &AdmissionRequest { fresh: false, ..asks[who].clone() }, now) {
            Admission::Go { wait_us, .. } => (sent, next[who]) = (sent + 1, now + wait_us + 1.0),
            Admission::Park { park_us, .. } => next[who] = now + park_us.max(1.0),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn workers_with_different_rates_for_a_while_do_not_void_either() {
    for (one, other, most) in [("10/min", "12/min", 125), ("1/h", "2/h", 3), ("100/h", "100/h burst 2", 22)] {
        let both = [ask(vec![demand("t", &[one])]), ask(vec![demand("t", &[other])])];
        let sent = sent_in(10.0, &both);
        assert!((1..=most).contains(&sent), "{one} and {other}: {sent} in ten minutes");
    }
}

#[test]
fn a_rate_that_was_cut_is_whole_again_once_the_cut_is_over() {
    for rate in ["10/h", "100/h", "1000/d"] {
        let ask = ask(vec![demand("t", &[rate])]);
        let cut = RateReduction { left: 20_000.0, at: NOW, recovery: WHOLE / 600.0, seen_interval_us: 0.0 };
        let mut scopes = [Scope { cut: Some(cut), ..Scope::default() }];
        assert_eq!(wait(admit(&mut scopes, &ask, NOW)), Some(0.0));
        let interval = ask.demands[0].limits[0].interval_us;
        let after = scopes[0].bucket(&ask.demands[0].limits[0], NOW + 601e6);
        assert!(after.all - NOW <= 601e6 + interval, "{rate}: {} s more", (after.all - NOW) / 1e6 - 601.0);
    }
}

/// A scope that goes no faster than this for now, by either lane.
fn used_up(rate: &str) -> Scope {
    let ask = ask(vec![demand("t", &[rate])]);
    let mut scopes = [Scope::default()];
    while matches!(admit(&mut scopes, &ask, NOW), Admission::Go { .. }) {}
    while matches!(admit(&mut scopes, &urgent(&ask), NOW), Admission::Go { .. }) {}
    scopes[0].lines.clear();
    scopes.into_iter().next().unwrap()
}

/// Who asks again whenever it is told to goes this often in so many minutes, whichever its lane.
#[track_caller]
fn check_goes_on(scope: &Scope, from: f64, rate: &str, minutes: f64, expected: std::ops::RangeInclusive<usize>) {
    let bulk = ask(vec![demand("t", &[rate])]);
    for ask in [urgent(&bulk), bulk] {
        let sent = sent_from(scope.clone(), from, minutes, std::slice::from_ref(&ask));
        assert!(expected.contains(&sent), "{rate} {}: {sent}", ask.lane);
    }
}

#[test]
fn a_burst_that_was_used_up_does_not_keep_another_rate_waiting() {
    check_goes_on(&used_up("1/s burst 3600"), NOW, "1/s", 1.0, 55..=62);
    check_goes_on(&used_up("1000/h burst 1000"), NOW, "2000/h", 1.0, 30..=35);
    check_goes_on(&used_up("20/s"), NOW, "10/s burst 100", 1.0, 570..=602);
}

#[test]
fn a_burst_that_was_used_up_goes_at_what_a_cut_left() {
    let mut scope = used_up("1000/h burst 1000");
    scope.cut = Some(RateReduction { left: WHOLE / 2.0, at: NOW, recovery: 0.0, seen_interval_us: 0.0 });
    check_goes_on(&scope, NOW, "1000/h burst 1000", 5.0, 38..=44);
}

#[test]
fn a_clock_that_is_set_back_stops_nobody_for_as_long() {
    check_goes_on(&used_up("20/s"), NOW - 600e6, "20/s", 1.0, 1130..=1202);
    let mut scopes = [used_up("20/s")];
    for ask in [ask(vec![demand("t", &["20/s"])]), urgent(&ask(vec![demand("t", &["20/s"])]))] {
        let ask = AdmissionRequest { queue: false, ..ask };
        let Admission::Full { wait_us, .. } = admit(&mut scopes, &ask, NOW - 600e6) else { panic!() };
        assert!(wait_us <= 2.2e6, "{wait_us}");
        assert!(wait(admit(&mut scopes.clone(), &ask, NOW - 598e6)).is_some(), "it was not put away, and goes then");
    }
}

#[test]
fn behind_a_pause_slots_are_as_far_apart_as_what_has_no_room_then() {
    let paused = || [Scope { paused_until: NOW + 60e6, ..Scope::default() }];
    let last = |rates: &[&str]| {
        let (mut scopes, ask) = (paused(), ask(vec![demand("t", rates)]));
        let slots = (0..100).map(|_| admit(&mut scopes, &ask, NOW)).map(|answer| match answer {
            Admission::Park { slot_us, .. } => slot_us,
            other => panic!("{other:?}"),
        });
        (slots.fold(0.0, f64::max) - 60e6) / 1e6
    };
    for rates in [["20/s", "50_000/d burst 50_000"], ["50_000/d burst 50_000", "20/s"]] {
        assert!((4.5..5.1).contains(&last(&rates)), "{rates:?}: {}", last(&rates));
    }
    for rates in [["20/s", "1000/h"], ["1000/h", "20/s"]] {
        assert!((350.0..360.0).contains(&last(&rates)), "{rates:?}: {}", last(&rates));
    }
    assert!(last(&["1000/h burst 1000"]) < 1.0, "all of them may go then");
    assert!((350.0..360.0).contains(&last(&["1000/h burst 2"])), "{}", last(&["1000/h burst 2"]));
    assert!((0.9..1.1).contains(&last(&["100/s"])), "{}", last(&["100/s"]));
    assert!(last(&["1000/s"]) < 0.25, "{}", last(&["1000/s"]));
}

#[test]
fn nobody_stays_away_for_longer_than_a_minute_while_a_rate_is_cut() {
    let cut = RateReduction { left: WHOLE / 2.0, at: NOW, recovery: WHOLE / 600.0, seen_interval_us: 1e5 };
    let (mut scopes, ask) = ([Scope { cut: Some(cut), ..Scope::default() }], ask(vec![demand("t", &[])]));
    let mut longest: f64 = 0.0;
    for n in 0..20_000 {
        if let Admission::Park { park_us, .. } = admit(&mut scopes, &ask, NOW + f64::from(n) * 100.0) {
            longest = longest.max(park_us);
        }
    }
    assert!((50e6..=60e6).contains(&longest), "{longest}");
}

#[test]
fn short_and_long_windows_hold_together() {
    let ask = ask(vec![demand("t", &["10/s", "3/min burst 3"])]);
    let mut scopes = [Scope::default()];
    let waits: Vec<_> = (0..4).map(|_| wait(admit(&mut scopes, &ask, NOW))).collect();
    assert_eq!(waits, [Some(0.0), Some(100_000.0), Some(200_000.0), None]);
}

#[test]
fn transactional_mail_passes_bulk_mail_and_bulk_mail_pays() {
    let bulk = ask(vec![demand("t", &["20/s"])]);
    let mut scopes = [Scope::default()];
    while wait(admit(&mut scopes, &bulk, NOW)).is_some() {}
    let waits: Vec<_> = (0..4).map(|_| wait(admit(&mut scopes, &urgent(&bulk), NOW))).collect();
    // Two at once by the debt, each at the pace of the rate; then the ordinary pace.
    assert_eq!(waits, [0.0, 50_000.0, 100_000.0, 150_000.0].map(Some));
    let Admission::Full { wait_us, .. } = admit(&mut scopes, &AdmissionRequest { queue: false, ..bulk }, NOW) else {
        panic!()
    };
    assert_eq!(wait_us, 500_000.0);
}

#[test]
fn transactional_mail_alone_is_held_to_the_rate() {
    let ask = urgent(&ask(vec![demand("t", &["10/s"])]));
    let mut scopes = [Scope::default()];
    let waits: Vec<_> = (0..3).map(|_| wait(admit(&mut scopes, &ask, NOW))).collect();
    assert_eq!(waits, [0.0, 100_000.0, 200_000.0].map(Some));
}

#[test]
fn a_fresh_job_does_not_overtake_its_tenants_line_unless_there_is_room_to_spare() {
    let fresh = ask(vec![demand("t", &["10/s"])]);
    let mut scopes = [Scope::default()];
    for _ in 0..50 {
        admit(&mut scopes, &fresh, NOW);
    }
    let back = AdmissionRequest { fresh: false, ..fresh.clone() };
    let soon = NOW + 200_000.0;
    assert!(matches!(admit(&mut scopes, &fresh, soon), Admission::Park { .. }), "the line is longer than that");
    assert!(matches!(admit(&mut scopes, &back, soon), Admission::Go { .. }), "its slot is there");
    let other = AdmissionRequest { tenant: "b".to_owned(), ..fresh.clone() };
    assert!(matches!(admit(&mut scopes, &other, soon), Admission::Go { .. }), "it has no line");
    let idle = NOW + 2_000_000.0;
    assert_eq!(wait(admit(&mut scopes, &fresh, idle)), Some(0.0));
}

#[test]
fn without_any_limit_everything_is_free_but_a_pause_holds_all() {
    let ask = ask(vec![demand("t", &[]), demand("g", &[])]);
    let mut scopes = [Scope::default(), Scope::default()];
    assert_eq!(admit(&mut scopes, &ask, NOW), Admission::Free);
    scopes[1].paused_until = NOW + 5e6;
    let Admission::Park { slot_us, scope: 1, .. } = admit(&mut scopes, &ask, NOW) else { panic!() };
    assert!((5e6..5.1e6).contains(&slot_us));
    assert!(matches!(admit(&mut scopes, &urgent(&ask), NOW), Admission::Park { scope: 1, .. }));
    assert!(matches!(admit(&mut scopes, &ask, NOW + 4.8e6), Admission::Go { .. }));
}

#[test]
fn a_cut_slows_the_pace() {
    let ask = ask(vec![demand("t", &["10/s"])]);
    let cut = RateReduction { left: WHOLE / 2.0, at: NOW, recovery: 0.0, seen_interval_us: 0.0 };
    let mut scopes = [Scope { cut: Some(cut), ..Scope::default() }];
    let waits: Vec<_> = (0..3).map(|_| wait(admit(&mut scopes, &ask, NOW))).collect();
    assert_eq!(waits, [Some(0.0), Some(200_000.0), None]);
}

#[test]
fn several_tokens_are_given_at_once_as_far_as_there_is_room() {
    let many = AdmissionRequest { want: 50, ..ask(vec![demand("t", &["20/s"]), demand("g", &["100/s"])]) };
    let mut scopes = [Scope::default(), Scope::default()];
    let expected = Admission::Go { wait_us: 0.0, tokens: 6, step_us: 50_000.0 };
    assert_eq!(admit(&mut scopes, &many, NOW), expected);
    assert!(matches!(admit(&mut scopes, &many, NOW), Admission::Park { .. }));
}

#[test]
fn a_line_longer_than_the_longest_park_comes_back_spread_while_it_is_still_full() {
    let fresh = ask(vec![demand("t", &["1/min"])]);
    let back = AdmissionRequest { fresh: false, ..fresh.clone() };
    let reach = PARK_MAX_US;
    for ask in [fresh, back] {
        let mut scopes = [Scope::default()];
        let mut parks: Vec<f64> = Vec::new();
        for n in 0..200 {
            if let Admission::Park { park_us, slot_us, .. } = admit(&mut scopes, &ask, NOW + f64::from(n) * 4999.0)
                && slot_us > reach
            {
                parks.push(park_us);
            }
        }
        let end = scopes[0].line(Lane::Bulk).ends["a"].end;
        assert!(end - NOW <= reach + 1e6 && end - NOW > reach - 6e7, "{end}");
        assert!(parks.len() > 150 && parks.iter().all(|park| (reach * 0.87..=reach).contains(park)), "{parks:?}");
        assert!(parks.iter().filter(|park| **park < reach * 0.9375).count() > 60, "spread");
    }
}

#[test]
fn a_clock_that_is_set_back_neither_stops_the_mail_nor_lifts_a_cut() {
    let ask = ask(vec![demand("t", &["10/s"])]);
    let cut = RateReduction { left: 20_000.0, at: NOW + 13e6, recovery: 1667.0, seen_interval_us: 0.0 };
    let mut scopes = [Scope { cut: Some(cut), ..Scope::default() }];
    assert_eq!(wait(admit(&mut scopes, &ask, NOW)), Some(0.0));
    let ahead = scopes[0].buckets["s"].all - NOW;
    assert_eq!(ahead, 5e6, "one message at a fiftieth of the rate");
}

proptest! {
    /// However requests come, in any window no more than the rate, its burst, and what bulk mail was given
    /// ahead and transactional mail overdraws, go.
    #[test]
    fn no_window_holds_more_than_the_rate_and_the_burst(
        count in 1u32..50,
        burst in 1u32..20,
        steps in proptest::collection::vec((0u32..300_000, any::<bool>(), 1u32..4), 1..400),
    ) {
        let rate: Rate = format!("{count}/s burst {burst}").parse().unwrap();
        let bulk = ask(vec![ScopeLimits { scope: "t".to_owned(), limits: vec![Limit::from(&rate)] }]);
        let mut scopes = [Scope::default()];
        let (mut now, mut times) = (NOW, Vec::new());
        for (pause, is_urgent, want) in steps {
            now += f64::from(pause);
            let ask = AdmissionRequest { want, ..if is_urgent { urgent(&bulk) } else { bulk.clone() } };
            if let Admission::Go { wait_us, tokens, step_us } = admit(&mut scopes, &ask, now) {
                prop_assert!(wait_us <= HOLD_US);
                times.extend((0..tokens).map(|n| now + wait_us + f64::from(n) * step_us));
            }
        }
        times.sort_by(f64::total_cmp);
        let debt = ((ahead_us(Lane::Bulk, rate.interval_us()) + DEBT_US.max(rate.interval_us())) / rate.interval_us()).floor() + 1.0;
        for window_us in [1e5, 1e6, 1e7] {
            let most = window_us / rate.interval_us() + f64::from(burst) + debt + 1.0;
            for (n, start) in times.iter().enumerate() {
                let held = times[n..].iter().take_while(|time| **time < start + window_us).count();
                prop_assert!(f64::from(u32::try_from(held).unwrap()) <= most, "{held} in {window_us} us, at most {most}");
            }
        }
    }
}
