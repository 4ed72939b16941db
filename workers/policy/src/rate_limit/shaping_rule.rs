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
#[path = "shaping_rule_tests.rs"]
mod tests;
