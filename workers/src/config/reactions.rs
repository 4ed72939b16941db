//! Reactions in the configuration: as they are written, and checked. Those that ship stand in `config.reactions.toml`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    ConfigError,
    limits::{Names, one, shipped},
    settings,
};
use crate::{
    decide::limits::reaction::{Match, Reaction, RetryAfter, Target, Trigger},
    outcome::Class,
};

const REACTIONS: &str = include_str!("../config.reactions.toml");

#[derive(Deserialize)]
pub(super) struct ReactionSettings {
    name: String,
    #[serde(default, rename = "match")]
    on: MatchSettings,
    #[serde(default, deserialize_with = "trigger")]
    trigger: Option<Trigger>,
    #[serde(default, deserialize_with = "settings::duration")]
    pause: Duration,
    #[serde(default, deserialize_with = "retry_after")]
    retry_after: RetryAfter,
    #[serde(default = "one")]
    cut: f64,
    #[serde(default = "floor")]
    floor: f64,
    #[serde(default = "recover", deserialize_with = "settings::duration")]
    recover: Duration,
    #[serde(default)]
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
pub(super) fn check(own: Vec<ReactionSettings>, names: &Names<'_>) -> Result<Vec<Reaction>, ConfigError> {
    let mut list: Vec<Reaction> = Vec::new();
    for settings in own {
        let at = format!("reaction `{}`", settings.name);
        if list.iter().any(|one| one.name == settings.name) {
            return Err(ConfigError::value(at, "the name is used twice"));
        }
        if let Some(unknown) = settings.on.transports.iter().find(|name| !names.transports.contains(&name.as_str())) {
            return Err(ConfigError::value(at, format!("there is no transport `{unknown}`")));
        }
        list.push(reaction(&at, settings)?);
    }
    for settings in shipped(REACTIONS)?.reaction {
        if !list.iter().any(|one| one.name == settings.name) {
            list.push(reaction("config.reactions.toml", settings)?);
        }
    }
    Ok(list)
}

fn reaction(at: &str, settings: ReactionSettings) -> Result<Reaction, ConfigError> {
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
    let (on, digits) = (settings.on, |c: char| c.is_ascii_digit() || c == 'x');
    if on.codes.iter().any(|code| code.len() != 3 || !code.chars().all(digits)) {
        return wrong("`codes` are reply codes such as 421 or 45x");
    }
    if on.enhanced.iter().any(|code| code.split('.').count() != 3) {
        return wrong("`enhanced` are codes such as 4.7.28 or 4.7.x");
    }
    Ok(Reaction {
        name: settings.name,
        on: Match {
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
            TargetSettings::Stage => Target::ByStage,
            TargetSettings::Group => Target::Group,
            TargetSettings::Transport => Target::Transport,
        },
    })
}

/// `3/10m`
fn trigger<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Trigger>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bad = || D::Error::custom("expected a count and a time such as 3/10m");
    let (count, within) = text.split_once('/').ok_or_else(bad)?;
    let count = count.parse().ok().filter(|count| *count > 0).ok_or_else(bad)?;
    Ok(Some(Trigger { count, within: settings::parse_duration(within).map_err(D::Error::custom)? }))
}

fn retry_after<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RetryAfter, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "longer" => Ok(RetryAfter::Longer),
        "decides" => Ok(RetryAfter::Decides),
        other => Err(D::Error::custom(format!("`{other}` is neither `longer` nor `decides`"))),
    }
}
