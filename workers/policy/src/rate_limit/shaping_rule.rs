//! What follows for the pace when a transport asks for patience: which rule matches its answer, and what the rule does to a scope.
//!
//! Rules are data. The first one that matches decides; one without an action says that an answer is no reason to slow down.

use std::time::Duration;

use super::scope::{RateOverride, RateReduction, RuleCalls, Scope, WHOLE};
use crate::outcome::{Class, EnhancedCode, Refusal, Stage};

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct ShapingRule {
    /// Its name, shown where it was the reason.
    pub name: String,
    /// Which answers it is about.
    pub on: AnswerMatch,
    /// How often such an answer has to come.
    pub trigger: Trigger,
    /// Nothing goes for so long.
    pub pause: Duration,
    /// What a wait that the answer asks for means for that.
    pub retry_after: RetryAfter,
    /// What is left of the rate, from 0 to 1; 1 cuts nothing.
    pub keep: f64,
    /// The rate is never cut below this part of it.
    pub floor: f64,
    /// From nothing to the whole rate in this time.
    pub recover: Duration,
    /// What is slowed down.
    pub target: ShapingTarget,
}

/// Conditions; all that are present must hold, each by any of its entries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerMatch {
    /// Classes of refusals.
    pub classes: Vec<Class>,
    /// Reply codes; `x` stands for any digit.
    pub codes: Vec<String>,
    /// Enhanced status codes; `x` stands for any number.
    pub enhanced: Vec<String>,
    /// Parts of the text, in any case; `*` stands for anything between two parts.
    pub texts: Vec<String>,
    /// Names of transports.
    pub transports: Vec<String>,
    /// Names of groups.
    pub groups: Vec<String>,
}

/// So many answers within a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    /// How many, over all workers.
    pub count: u32,
    /// Within this time.
    pub within: Duration,
}

/// What counts where a rule has a pause and the answer asks for a wait of its own (`Retry-After`, RFC 9110 10.2.3, and what vendors have instead).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryAfter {
    /// The longer one of the two.
    #[default]
    Longer,
    /// The answer's, which knows when it is over; the rule's where the answer does not say.
    Decides,
}

/// Limits of a wait that decides alone: no answer keeps every worker asking without a pause, and none stops a transport for more than a day.
const DECIDES_MIN: Duration = Duration::from_secs(1);
const DECIDES_MAX: Duration = Duration::from_hours(24);

/// Whose pace a shaping rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShapingTarget {
    /// By the stage: up to MAIL FROM nothing is known of the recipient, so it is the transport; from then on the group.
    ByStage,
    /// The group at this transport.
    Group,
    /// The whole transport.
    Transport,
}

impl ShapingTarget {
    /// Whether the whole transport is meant.
    pub fn is_transport(self, stage: Stage) -> bool {
        match self {
            Self::Transport => true,
            Self::Group => false,
            Self::ByStage => !matches!(stage, Stage::RcptTo | Stage::Data | Stage::Body),
        }
    }
}

impl AnswerMatch {
    fn holds(&self, transport: &str, group: &str, refusal: &Refusal) -> bool {
        let any = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
        let answer = &refusal.answer;
        (self.classes.is_empty() || self.classes.contains(&refusal.class))
            && (self.codes.is_empty()
                || answer.code.is_some_and(|code| self.codes.iter().any(|one| is_code(one, code))))
            && (self.enhanced.is_empty()
                || answer.enhanced.is_some_and(|code| self.enhanced.iter().any(|one| is_enhanced(one, code))))
            && (self.texts.is_empty() || self.texts.iter().any(|one| is_in(one, &answer.text)))
            && any(&self.transports, transport)
            && any(&self.groups, group)
    }
}

fn is_code(pattern: &str, code: u16) -> bool {
    let code = code.to_string();
    pattern.len() == code.len() && pattern.chars().zip(code.chars()).all(|(want, is)| want == 'x' || want == is)
}

fn is_enhanced(pattern: &str, code: EnhancedCode) -> bool {
    let code = code.to_string();
    let (mut want, mut is) = (pattern.split('.'), code.split('.'));
    loop {
        match (want.next(), is.next()) {
            (None, None) => return true,
            (Some(want), Some(is)) if want == "x" || want == is => {}
            _ => return false,
        }
    }
}

fn is_in(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut rest = text.as_str();
    pattern.split('*').all(|part| match rest.find(part) {
        Some(place) => {
            rest = &rest[place + part.len()..];
            true
        }
        None => false,
    })
}

/// The first rule that matches a refusal.
pub fn find<'a>(
    shaping_rules: &'a [ShapingRule],
    transport: &str,
    group: &str,
    refusal: &Refusal,
) -> Option<&'a ShapingRule> {
    shaping_rules.iter().find(|one| one.on.holds(transport, group, refusal))
}

impl ShapingRule {
    /// Whether the rule does anything.
    pub fn acts(&self, refusal: &Refusal) -> bool {
        self.keep < 1.0 || !self.pause_after(refusal).is_zero()
    }

    fn pause_after(&self, refusal: &Refusal) -> Duration {
        // A rule without an action stays without one, whatever the answer asks for: the job itself waits for that long.
        if self.pause.is_zero() && self.keep >= 1.0 {
            return Duration::ZERO;
        }
        match (self.retry_after, refusal.retry_after) {
            (_, None) => self.pause,
            (RetryAfter::Longer, Some(wait)) => self.pause.max(wait),
            (RetryAfter::Decides, Some(wait)) => wait.clamp(DECIDES_MIN, DECIDES_MAX),
        }
    }

    /// What is to be done to the scope. `seen_per_second` is the pace of the scope over all workers where no rate is configured.
    pub fn call(&self, refusal: &Refusal, seen_per_second: Option<f64>) -> RuleCall {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let pause_us = us(self.pause_after(refusal)).round();
        RuleCall {
            reaction: self.name.clone(),
            count: self.trigger.count,
            within_us: us(self.trigger.within),
            pause_us,
            keep: (self.keep * WHOLE).round(),
            floor: (self.floor * WHOLE).round().max(1.0),
            recovery: (WHOLE / self.recover.as_secs_f64().max(1.0)).ceil(),
            // What is under way still comes back refused: that is the same incident.
            incident_us: pause_us.max(us(INCIDENT)),
            seen_interval_us: seen_per_second.map_or(0.0, |pace| (1e6 / pace.max(0.01)).round().max(1.0)),
            why: format!("{}: {}", self.name, refusal.answer),
        }
    }
}

/// A pause without a cut, for a transport whose answers say that nothing is left.
pub fn used_up(pause_us: f64) -> RuleCall {
    RuleCall {
        reaction: "used up".to_owned(),
        count: 1,
        within_us: 0.0,
        pause_us: pause_us.round(),
        keep: WHOLE,
        floor: WHOLE,
        recovery: WHOLE,
        incident_us: 0.0,
        seen_interval_us: 0.0,
        why: "used up: the headers of an answer say that nothing is left".to_owned(),
    }
}

/// Answers within this time of a cut belong to the same incident.
const INCIDENT: Duration = Duration::from_secs(5);

/// A shaping rule in numbers, for a store.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleCall {
    /// Its name.
    pub reaction: String,
    /// How many calls it takes.
    pub count: u32,
    /// Within this time.
    pub within_us: f64,
    /// Nothing goes for so long.
    pub pause_us: f64,
    /// What is left of the rate, in millionths.
    pub keep: f64,
    /// Never less than this, in millionths.
    pub floor: f64,
    /// What comes back each second, in millionths.
    pub recovery: f64,
    /// No second cut within this time.
    pub incident_us: f64,
    /// Where no rate is configured: the interval of the pace that was seen. Else 0.
    pub seen_interval_us: f64,
    /// For people.
    pub why: String,
}

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShapingEffect {
    /// The trigger was reached.
    pub fired: bool,
    /// The rate was cut by this call.
    pub is_cut: bool,
    /// What is left of the rate, in millionths.
    pub left: f64,
    /// Nothing goes for so long from now.
    pub pause_us: f64,
}

/// Applies a call to a scope.
pub fn react(scope: &mut Scope, call: &RuleCall, now: f64) -> ShapingEffect {
    let mut reacted = ShapingEffect {
        fired: false,
        is_cut: false,
        left: scope.left(now),
        pause_us: (scope.paused_until - now).max(0.0),
    };
    if call.count > 1 {
        let fresh = RuleCalls { count: 0, since: now, until: now + call.within_us };
        let calls = scope.calls.entry(call.reaction.clone()).or_insert(fresh);
        if !(0.0..=call.within_us).contains(&(now - calls.since)) {
            *calls = fresh;
        }
        calls.count += 1;
        if calls.count < call.count {
            return reacted;
        }
        scope.calls.remove(&call.reaction);
    }
    reacted.fired = true;
    // A pause that outlasts this one, of an operator as a rule, keeps its reason.
    if scope.paused_until <= now + call.pause_us {
        scope.why.clone_from(&call.why);
    }
    if call.pause_us > 0.0 {
        scope.paused_until = scope.paused_until.max(now + call.pause_us);
        reacted.pause_us = scope.paused_until - now;
    }
    let same_incident = scope.cut.is_some_and(|cut| (0.0..=call.incident_us).contains(&(now - cut.at)));
    if call.keep < WHOLE && !same_incident {
        let seen = match scope.cut {
            Some(cut) if reacted.left < WHOLE && cut.seen_interval_us > 0.0 => cut.seen_interval_us,
            _ => call.seen_interval_us,
        };
        // The floor of one rule is no reason to go faster than another one left.
        let floor = call.floor.min(reacted.left);
        reacted.left = (reacted.left * call.keep / WHOLE).floor().max(floor);
        reacted.is_cut = true;
        scope.cut =
            Some(RateReduction { left: reacted.left, at: now, recovery: call.recovery, seen_interval_us: seen });
    }
    reacted
}

/// What an operator wants of a scope.
#[derive(Debug, Clone, PartialEq)]
pub enum LimitCommand {
    /// Nothing goes for so long.
    Pause {
        /// How long.
        for_us: f64,
        /// For people.
        why: String,
    },
    /// Whatever was paused, cut or set is over.
    Resume,
    /// Another rate for a time, beside the configured ones for longer times.
    Set {
        /// The name of the bucket of such a configured rate: the unit.
        bucket: String,
        /// Time between two messages.
        interval_us: f64,
        /// How far the bucket may run ahead.
        tolerance_us: f64,
        /// How long.
        for_us: f64,
        /// For people.
        why: String,
    },
}

/// Carries an order out.
pub fn order(scope: &mut Scope, order: &LimitCommand, now: f64) {
    match order {
        LimitCommand::Pause { for_us, why } => {
            scope.paused_until = now + for_us;
            scope.why.clone_from(why);
        }
        LimitCommand::Resume => {
            (scope.paused_until, scope.cut, scope.set) = (0.0, None, None);
            scope.why.clear();
            scope.set_why.clear();
        }
        LimitCommand::Set { bucket, interval_us, tolerance_us, for_us, why } => {
            let (bucket, until) = (bucket.clone(), now + for_us);
            scope.set = Some(RateOverride { bucket, interval_us: *interval_us, tolerance_us: *tolerance_us, until });
            scope.set_why.clone_from(why);
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert!(
            ShapingTarget::Transport.is_transport(Stage::Body) && !ShapingTarget::Group.is_transport(Stage::Connect)
        );
    }
}
