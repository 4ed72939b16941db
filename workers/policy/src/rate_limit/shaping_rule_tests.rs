use super::*;
use crate::outcome::Answer;

fn refusal(code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Refusal {
    Refusal {
        class: Class::Throttled,
        answer: Answer::new(Stage::RcptTo, Some(code), enhanced, text),
        retry_after: None,
    }
}

fn rule(on: AnswerMatch) -> ShapingRule {
    ShapingRule {
        name: "slow".to_owned(),
        on,
        trigger: Trigger { count: 1, within: Duration::ZERO },
        pause: Duration::from_secs(5),
        retry_after: RetryAfter::Longer,
        keep: 0.5,
        floor: 0.1,
        recover: Duration::from_secs(100),
        target: ShapingTarget::ByStage,
    }
}

#[track_caller]
fn check(on: AnswerMatch, expected: bool) {
    let refusal = refusal(421, Some(EnhancedCode(4, 7, 28)), "unusual RATE of mail from you");
    assert_eq!(find(&[rule(on)], "relay", "google", &refusal).is_some(), expected);
}

#[test]
fn every_condition_that_is_present_must_hold() {
    let some = |text: &str| vec!["nothing".to_owned(), text.to_owned()];
    check(AnswerMatch::default(), true);
    check(AnswerMatch { codes: some("421"), ..AnswerMatch::default() }, true);
    check(AnswerMatch { codes: some("42x"), enhanced: some("4.7.x"), ..AnswerMatch::default() }, true);
    check(AnswerMatch { codes: some("45x"), ..AnswerMatch::default() }, false);
    check(AnswerMatch { enhanced: some("4.7"), ..AnswerMatch::default() }, false);
    check(AnswerMatch { texts: some("Unusual rate"), ..AnswerMatch::default() }, true);
    check(AnswerMatch { texts: some("unusual*from you"), ..AnswerMatch::default() }, true);
    check(AnswerMatch { texts: some("from*unusual"), ..AnswerMatch::default() }, false);
    check(AnswerMatch { groups: some("google"), transports: some("relay"), ..AnswerMatch::default() }, true);
    check(AnswerMatch { groups: some("google"), transports: some("other"), ..AnswerMatch::default() }, false);
    check(AnswerMatch { classes: vec![Class::Quota], ..AnswerMatch::default() }, false);
}

#[test]
fn the_floor_of_one_rule_does_not_lift_what_another_one_cut() {
    let call = |floor: f64| RuleCall {
        keep: WHOLE / 2.0,
        floor: floor * WHOLE,
        incident_us: 1.0,
        recovery: 1.0,
        ..used_up(0.0)
    };
    let (mut scope, mut now) = (Scope::default(), 1e9);
    for (floor, left) in [(0.02, 0.5), (0.02, 0.25), (0.6, 0.25), (0.2, 0.2)] {
        now += 10.0;
        assert!((react(&mut scope, &call(floor), now).left / WHOLE - left).abs() < 1e-3, "{floor}");
    }
}

#[test]
fn one_incident_cuts_once_and_the_floor_holds() {
    let mut scope = Scope::default();
    let call = rule(AnswerMatch::default()).call(&refusal(421, None, ""), None);
    assert!(react(&mut scope, &call, 1e9).is_cut);
    assert!(!react(&mut scope, &call, 1e9 + 4e6).is_cut);
    assert_eq!(scope.left(1e9), 500_000.0);
    assert_eq!(scope.paused_until, 1e9 + 9e6);
    let mut now = 1e9;
    for _ in 0..10 {
        now += 6e6;
        react(&mut scope, &call, now);
    }
    assert!(scope.left(now) >= 100_000.0 && scope.left(now) < 300_000.0, "{}", scope.left(now));
    assert_eq!(scope.left(now + 100e6), WHOLE);
}

#[test]
fn a_longer_pause_of_an_operator_stays_with_its_reason() {
    let mut scope = Scope::default();
    order(&mut scope, &LimitCommand::Pause { for_us: 3600e6, why: "maintenance".to_owned() }, 1e9);
    let call = rule(AnswerMatch::default()).call(&refusal(421, None, ""), None);
    assert!(react(&mut scope, &call, 1e9 + 1e6).is_cut);
    assert_eq!((scope.paused_until, scope.why.as_str()), (1e9 + 3600e6, "maintenance"));
    react(&mut scope, &call, 1e9 + 3601e6);
    assert!(scope.why.starts_with("slow"), "{}", scope.why);
}

#[test]
fn a_rate_that_an_operator_set_keeps_its_reason_beside_that_of_a_reaction() {
    let mut scope = Scope::default();
    let why = "warming up".to_owned();
    order(
        &mut scope,
        &LimitCommand::Set { bucket: "s".to_owned(), interval_us: 1e5, tolerance_us: 0.0, for_us: 3600e6, why },
        1e9,
    );
    react(&mut scope, &rule(AnswerMatch::default()).call(&refusal(421, None, "slowly"), None), 1e9 + 1e6);
    assert_eq!((scope.set_why.as_str(), scope.why.as_str()), ("warming up", "slow: rcpt_to: 421 slowly"));
    order(&mut scope, &LimitCommand::Resume, 1e9 + 2e6);
    assert_eq!((scope.set_why.as_str(), scope.why.as_str()), ("", ""));
}

#[test]
fn a_trigger_counts_within_its_time() {
    let trigger = Trigger { count: 3, within: Duration::from_mins(10) };
    let call = ShapingRule { trigger, ..rule(AnswerMatch::default()) }.call(&refusal(421, None, ""), None);
    let mut scope = Scope::default();
    let mut at = |seconds: f64| react(&mut scope, &call, 1e9 + seconds * 1e6).fired;
    assert_eq!([at(0.0), at(300.0), at(601.0), at(602.0), at(603.0)], [false, false, false, false, true]);
    assert!(!at(604.0), "counted anew");
}

/// The pause of a rule that has one of 300 s, in seconds, where the answer asks for this one.
#[track_caller]
fn check_pause(retry_after: RetryAfter, asks_for: Option<u64>, expected: f64) {
    let rule = ShapingRule { pause: Duration::from_secs(300), retry_after, ..rule(AnswerMatch::default()) };
    let refusal = Refusal { retry_after: asks_for.map(Duration::from_secs), ..refusal(429, None, "") };
    let call = rule.call(&refusal, None);
    assert_eq!((call.pause_us, call.incident_us), (expected * 1e6, expected.max(5.0) * 1e6));
}

#[test]
fn the_longer_wait_wins() {
    check_pause(RetryAfter::Longer, None, 300.0);
    check_pause(RetryAfter::Longer, Some(60), 300.0);
    check_pause(RetryAfter::Longer, Some(600), 600.0);
}

#[test]
fn where_the_answer_decides_its_wait_does_and_the_rules_where_it_says_nothing() {
    check_pause(RetryAfter::Decides, None, 300.0);
    check_pause(RetryAfter::Decides, Some(60), 60.0);
    check_pause(RetryAfter::Decides, Some(50_400), 50_400.0);
    check_pause(RetryAfter::Decides, Some(0), 1.0);
    check_pause(RetryAfter::Decides, Some(90_000), 86_400.0);
}

#[test]
fn a_rule_without_action_does_nothing_whatever_the_answer_asks_for() {
    let refusal = Refusal { retry_after: Some(Duration::from_secs(60)), ..refusal(429, None, "") };
    for retry_after in [RetryAfter::Longer, RetryAfter::Decides] {
        assert!(
            !ShapingRule { pause: Duration::ZERO, keep: 1.0, retry_after, ..rule(AnswerMatch::default()) }
                .acts(&refusal)
        );
    }
}

#[test]
fn without_a_rate_the_pace_that_was_seen_is_cut() {
    let mut scope = Scope::default();
    let reaction = rule(AnswerMatch::default());
    react(&mut scope, &reaction.call(&refusal(421, None, ""), Some(50.0)), 1e9);
    react(&mut scope, &reaction.call(&refusal(421, None, ""), Some(1.0)), 1e9 + 20e6);
    assert_eq!(scope.cut.unwrap().seen_interval_us, 20_000.0, "a pace that was cut already is not the pace");
}

#[test]
fn a_window_that_is_used_up_pauses_and_leaves_the_rate_as_it_is() {
    let mut scope = Scope::default();
    react(&mut scope, &used_up(3e6), 1e9);
    assert_eq!((scope.paused_until, scope.cut, scope.left(1e9)), (1e9 + 3e6, None, WHOLE));
    react(&mut scope, &used_up(1e6), 1e9);
    assert_eq!(scope.paused_until, 1e9 + 3e6, "a shorter pause ends no longer one");
}

#[test]
fn what_comes_before_the_recipient_is_about_the_transport() {
    assert!(
        ShapingTarget::ByStage.is_transport(Stage::MailFrom) && !ShapingTarget::ByStage.is_transport(Stage::RcptTo)
    );
    assert!(ShapingTarget::Transport.is_transport(Stage::Body) && !ShapingTarget::Group.is_transport(Stage::Connect));
}
