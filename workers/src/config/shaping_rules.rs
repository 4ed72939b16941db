//! Shaping rules in the configuration: as they are written, and checked. Those that ship stand in `config.shaping_rules.toml`.

use std::time::Duration;

use postrider_schemas::address::Domain;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    ConfigError,
    names::{ScopeNames, named, one},
    reading::{self, shipped},
};
use crate::policy::{
    mailbox_provider::{MailboxProviders, MxHosts},
    outcome::Class,
    rate_limit::shaping_rule::{AnswerMatch, RetryAfter, ShapingRule, ShapingTarget, Trigger},
};

const SHAPING_RULES: &str = include_str!("../config.shaping_rules.toml");

/// The file of shaping rules that ships.
#[derive(Deserialize)]
struct ShippedRules {
    shaping_rule: Vec<ShapingRuleSettings>,
}

#[derive(Deserialize)]
pub(super) struct ShapingRuleSettings {
    name: String,
    #[serde(default, rename = "match")]
    on: MatchSettings,
    #[serde(default, deserialize_with = "trigger")]
    trigger: Option<Trigger>,
    #[serde(default, deserialize_with = "reading::duration")]
    pause: Duration,
    #[serde(default, deserialize_with = "retry_after")]
    retry_after: RetryAfter,
    #[serde(default = "one")]
    cut: f64,
    #[serde(default = "floor")]
    floor: f64,
    #[serde(default = "recover", deserialize_with = "reading::duration")]
    recover: Duration,
    #[serde(default, deserialize_with = "reading::word")]
    target: TargetSettings,
}

fn floor() -> f64 {
    0.02
}

fn recover() -> Duration {
    Duration::from_mins(10)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MatchSettings {
    #[serde(deserialize_with = "reading::words")]
    classes: Vec<Class>,
    codes: Vec<String>,
    enhanced: Vec<String>,
    text: Vec<String>,
    transports: Vec<String>,
    groups: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum TargetSettings {
    #[default]
    Stage,
    Group,
    Transport,
}

/// The configured ones, then those that ship.
pub(super) fn check(
    own: Vec<ShapingRuleSettings>,
    names: &ScopeNames<'_>,
    known: &MailboxProviders,
) -> Result<Vec<ShapingRule>, ConfigError> {
    let mut list: Vec<ShapingRule> = Vec::new();
    for mut settings in own {
        let at = format!("shaping rule `{}`", settings.name);
        named(&at, &settings.name)?;
        if list.iter().any(|one| one.name == settings.name) {
            return Err(ConfigError::value(at, "the name is used twice"));
        }
        if let Some(unknown) = settings.on.transports.iter().find(|name| !names.knows_transport(name)) {
            return Err(ConfigError::value(at, format!("there is no transport `{unknown}`")));
        }
        for name in &mut settings.on.groups {
            *name = group(name, known).map_err(|error| ConfigError::value(format!("{at}: match.groups"), error))?;
        }
        list.push(shaping_rule(&at, settings)?);
    }
    for settings in shipped::<ShippedRules>(SHAPING_RULES)?.shaping_rule {
        if !list.iter().any(|one| one.name == settings.name) {
            list.push(shaping_rule("config.shaping_rules.toml", settings)?);
        }
    }
    Ok(list)
}

/// The group that is meant, as mail has it: one of the lists, or a domain that stands for itself.
fn group(name: &str, known: &MailboxProviders) -> Result<String, String> {
    if known.0.iter().any(|one| one.name == name) {
        return Ok(name.to_owned());
    }
    let domain = Domain::parse(name).ok().filter(|domain| domain.as_str().contains('.'));
    let domain = domain.ok_or_else(|| {
        let names: Vec<&str> = known.0.iter().map(|one| one.name.as_str()).collect();
        format!("`{name}` is neither a domain nor a known group; there are: {}", names.join(", "))
    })?;
    match known.find(domain.as_str(), MxHosts::Unknown) {
        Some(one) => Err(format!("`{name}` belongs to the group `{}`: name that", one.name)),
        None => Ok(domain.as_str().to_owned()),
    }
}

fn shaping_rule(at: &str, settings: ShapingRuleSettings) -> Result<ShapingRule, ConfigError> {
    let wrong = |what: &str| Err(ConfigError::value(at, what));
    if !(0.0..=1.0).contains(&settings.cut) || !(0.001..=1.0).contains(&settings.floor) {
        return wrong("`cut` is what is left of the rate, from 0 to 1; `floor` from 0.001 to 1");
    }
    if settings.recover < Duration::from_secs(1) {
        return wrong("`recover` must be at least 1s");
    }
    if settings.retry_after == RetryAfter::Decides && settings.pause.is_zero() {
        return wrong("`retry_after = \"decides\"` needs a `pause`, for answers that do not say for how long");
    }
    if settings.trigger.is_some_and(|trigger| trigger.within < Duration::from_secs(1)) {
        return wrong("`trigger` counts within at least 1s, such as 3/10m");
    }
    let (on, digits) = (settings.on, |c: char| c.is_ascii_digit() || c == 'x');
    let part = |part: &str| part == "x" || (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if on.codes.iter().any(|code| code.len() != 3 || !code.chars().all(digits)) {
        return wrong("`codes` are reply codes such as 421 or 45x");
    }
    if on.enhanced.iter().any(|code| code.split('.').count() != 3 || !code.split('.').all(part)) {
        return wrong("`enhanced` are codes such as 4.7.28 or 4.7.x");
    }
    if on.text.iter().any(|text| text.chars().all(|c| c == '*' || c.is_whitespace())) {
        return wrong("`text` with nothing to look for matches every answer: leave it out, or name a part of the text");
    }
    Ok(ShapingRule {
        name: settings.name,
        on: AnswerMatch {
            classes: on.classes,
            codes: on.codes,
            enhanced: on.enhanced,
            texts: on.text,
            transports: on.transports,
            groups: on.groups,
        },
        trigger: settings.trigger.unwrap_or(Trigger { count: 1, within: Duration::from_mins(1) }),
        pause: settings.pause,
        retry_after: settings.retry_after,
        keep: settings.cut,
        floor: settings.floor,
        recover: settings.recover,
        target: match settings.target {
            TargetSettings::Stage => ShapingTarget::ByStage,
            TargetSettings::Group => ShapingTarget::Group,
            TargetSettings::Transport => ShapingTarget::Transport,
        },
    })
}

/// `3/10m`
fn trigger<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Trigger>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bad = || D::Error::custom("expected a count and a time such as 3/10m");
    let (count, within) = text.split_once('/').ok_or_else(bad)?;
    let count = count.parse().ok().filter(|count| *count > 0).ok_or_else(bad)?;
    Ok(Some(Trigger { count, within: reading::parse_duration(within).map_err(D::Error::custom)? }))
}

fn retry_after<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RetryAfter, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "longer" => Ok(RetryAfter::Longer),
        "decides" => Ok(RetryAfter::Decides),
        other => Err(D::Error::custom(format!("`{other}` is neither `longer` nor `decides`"))),
    }
}
