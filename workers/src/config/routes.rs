//! Rules as they are written -> rules that can be followed. A rule that names what does not exist, that can never match, or that needs
//! what one of its transports lacks is refused here.

use postrider_schemas::Tenant;

use super::{ConfigError, TransportConfig, settings};
use crate::policy::{
    capabilities::Needs,
    mailbox_provider::MailboxProviders,
    route::{
        Condition, OnLimit, OnUnknown, Route, Routes, Send, When,
        pattern::{DomainPatterns, TextPatterns},
        when::Range,
    },
};

pub(super) fn check(
    list: Vec<settings::RouteSettings>,
    groups: &MailboxProviders,
    transports: &[TransportConfig],
) -> Result<Routes, ConfigError> {
    let mut routes: Vec<Route> = Vec::with_capacity(list.len());
    for settings in list {
        let at = format!("route `{}`", settings.name);
        let route = route(&at, settings, groups, transports)?;
        may_match(&at, &route, &routes)?;
        can_carry(&at, &route, transports)?;
        routes.push(route);
    }
    if !transports.is_empty() && !routes.iter().any(|route| route.when.is_catch_all()) {
        return Err(ConfigError::value("route", "the last route must be a catch-all: one without `when`"));
    }
    let is_used = |n: usize| routes.iter().any(|route| route.transports().any(|one| one == n));
    if let Some(unused) = (0..transports.len()).find(|n| !is_used(*n)) {
        return Err(ConfigError::value(format!("transport.{}", transports[unused].name), "no route sends by it"));
    }
    Ok(Routes::new(routes))
}

fn route(
    at: &str,
    settings: settings::RouteSettings,
    groups: &MailboxProviders,
    transports: &[TransportConfig],
) -> Result<Route, ConfigError> {
    Ok(Route {
        when: when(&format!("{at}: when"), settings.when, groups)?,
        send: send(&format!("{at}: send"), settings.send, transports)?,
        name: settings.name,
        on_limit: match settings.on_limit {
            settings::OnLimitSetting::Wait => OnLimit::Wait,
            settings::OnLimitSetting::Next => OnLimit::Next,
            settings::OnLimitSetting::Expire => OnLimit::Expire,
        },
        on_unknown: settings.on_unknown.map(|policy| match policy {
            settings::OnUnknownSetting::Hold => OnUnknown::Hold,
            settings::OnUnknownSetting::Resend => OnUnknown::Resend,
        }),
    })
}

fn send(at: &str, settings: settings::SendSetting, transports: &[TransportConfig]) -> Result<Send, ConfigError> {
    let find = |name: &str| {
        transports.iter().position(|one| one.name == name).ok_or_else(|| {
            let known: Vec<&str> = transports.iter().map(|one| one.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            ConfigError::value(at, format!("there is no transport `{name}`; there are: {known}"))
        })
    };
    match settings {
        settings::SendSetting::Ordered(names) => {
            let list = names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
            if list.is_empty() {
                return Err(ConfigError::value(at, "names at least one transport"));
            }
            if let Some(twice) = (1..list.len()).find(|n| list[..*n].contains(&list[*n])) {
                return Err(ConfigError::value(at, format!("`{}` stands twice", names[twice])));
            }
            Ok(Send::Ordered(list))
        }
        settings::SendSetting::Weighted(weights) => {
            if weights.is_empty() {
                return Err(ConfigError::value(at, "names at least one transport"));
            }
            if let Some((name, _)) = weights.iter().find(|(_, weight)| **weight == 0) {
                let reason = format!("the weight of `{name}` is 0: leave it out, or give it at least 1");
                return Err(ConfigError::value(at, reason));
            }
            let list = weights.iter().map(|(name, weight)| Ok((find(name)?, *weight)));
            Ok(Send::Weighted(list.collect::<Result<_, ConfigError>>()?))
        }
    }
}

fn when(at: &str, settings: settings::WhenSettings, groups: &MailboxProviders) -> Result<When, ConfigError> {
    let wrong = |field: &str, error: String| ConfigError::value(format!("{at}.{field}"), error);
    let domains = |field: &'static str, list: Option<Vec<String>>| {
        list.map(|list| DomainPatterns::parse(list.iter().map(String::as_str)).map_err(|error| wrong(field, error)))
            .transpose()
    };
    let mut conditions = Vec::new();
    conditions.extend(settings.lane.map(Condition::Lane));
    if let Some(names) = &settings.tenants {
        let tenants = names.iter().map(|name| Tenant::parse(name)).collect::<Result<_, _>>();
        conditions.push(Condition::Tenants(tenants.map_err(|error| wrong("tenants", error.to_string()))?));
    }
    if let Some(tags) = settings.tags {
        conditions.push(Condition::Tags(texts(tags).map_err(|error| wrong("tags", error))?));
    }
    for (key, values) in settings.metadata {
        let values = texts(values).map_err(|error| wrong(&format!("metadata.{key}"), error))?;
        conditions.push(Condition::Metadata(key, values));
    }
    conditions.extend(domains("sender_domains", settings.sender_domains)?.map(Condition::SenderDomains));
    conditions.extend(domains("recipient_domains", settings.recipient_domains)?.map(Condition::RecipientDomains));
    if let Some(names) = settings.recipient_groups {
        let members = names.iter().try_fold(DomainPatterns::default(), |all, name| {
            let known = || groups.0.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
            let group = groups.0.iter().find(|group| group.name == *name);
            let group = group.ok_or_else(|| format!("there is no group `{name}`; there are: {}", known()))?;
            Ok(all.or(DomainPatterns::parse(group.domains.iter().map(String::as_str))?))
        });
        conditions.push(Condition::RecipientGroups(names, members.map_err(|error| wrong("recipient_groups", error))?));
    }
    for (name, values) in settings.headers {
        let values = texts(values).map_err(|error| wrong(&format!("headers.{name}"), error))?;
        conditions.push(Condition::Header(name, values));
    }
    conditions.extend(range(settings.bytes_min, settings.bytes_max).map(Condition::Bytes));
    conditions.extend(settings.attachments.map(Condition::Attachments));
    conditions.extend(settings.tracking.map(Condition::Tracking));
    conditions.extend(range(settings.recipients_min, settings.recipients_max).map(Condition::Recipients));
    if let Some(inner) = settings.not {
        conditions.push(Condition::Not(when(&format!("{at}.not"), *inner, groups)?));
    }
    Ok(When(conditions))
}

fn texts(settings: settings::TextsSetting) -> Result<TextPatterns, String> {
    match settings {
        settings::TextsSetting::One(text) => TextPatterns::parse([text.as_str()]),
        settings::TextsSetting::Many(list) => TextPatterns::parse(list.iter().map(String::as_str)),
        settings::TextsSetting::Regex(regex) => TextPatterns::regex(&regex.regex),
    }
}

fn range(min: Option<usize>, max: Option<usize>) -> Option<Range> {
    (min.is_some() || max.is_some()).then(|| Range { min: min.unwrap_or(0), max: max.unwrap_or(usize::MAX) })
}

/// Refuses a rule that no job reaches.
fn may_match(at: &str, route: &Route, earlier: &[Route]) -> Result<(), ConfigError> {
    if earlier.iter().any(|one| one.name == route.name) {
        return Err(ConfigError::value(at, "the name is used twice"));
    }
    if let Some(contradiction) = route.when.contradiction() {
        return Err(ConfigError::value(at, format!("can never match: {contradiction}")));
    }
    if let Some(wider) = earlier.iter().find(|one| one.when.covers(&route.when)) {
        let what = if wider.when.is_catch_all() { "every job" } else { "every job that this one would" };
        return Err(ConfigError::value(at, format!("can never match: `{}` before it takes {what}", wider.name)));
    }
    Ok(())
}

/// Refuses a rule whose jobs one of its transports could never carry.
fn can_carry(at: &str, route: &Route, transports: &[TransportConfig]) -> Result<(), ConfigError> {
    let needs = Needs::of_rule(&route.when);
    for transport in route.transports().map(|n| &transports[n]) {
        if let Some(lack) = transport.capabilities().lack(&needs) {
            let reason =
                format!("`{}` ({}) {lack}, which every job of this route needs", transport.name, transport.kind());
            return Err(ConfigError::value(format!("{at}: send"), reason));
        }
    }
    Ok(())
}
