//! `[[throttle]]`: how fast groups of domains may be sent to. What a throttle covers follows from what it names, and is kept for people to see: one
//! whose name is misspelt covers something else than was meant.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    ConfigError,
    names::{ScopeNames, distinct, named},
    reading::{rates, shipped},
};
use crate::policy::{
    mailbox_provider::{MailboxProvider, MailboxProviders},
    rate_limit::rate::Rate,
    route::pattern::domain_or_end,
};

const GROUPS: &str = include_str!("../config.groups.toml");
/// Words of which one in its name says that a throttle is meant for all other domains.
const OTHERS: [&str; 14] = [
    "all",
    "any",
    "anybody",
    "anyone",
    "catch-all",
    "catchall",
    "default",
    "else",
    "everybody",
    "everyone",
    "everything",
    "other",
    "others",
    "rest",
];

/// A throttle.
#[derive(Debug, Clone, PartialEq)]
pub struct MailboxProviderLimit {
    /// Its name.
    pub name: String,
    /// The transport that it is for; every one where absent.
    pub transport: Option<String>,
    /// Its rates; none where it only names a group.
    pub rates: Vec<Rate>,
    /// Whom it is for.
    pub covers: Covers,
}

/// Whom a throttle is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Covers {
    /// Domains or mail exchangers that it names itself.
    Own,
    /// The list of domains of that name in `[groups]`.
    Listed,
    /// The group of that name that ships.
    Shipped,
    /// Every domain that is in no group with a rate, and every group without one.
    Others {
        /// Why that may not be what was meant.
        doubt: Option<Doubt>,
    },
}

/// Why a throttle for all other domains may be meant for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// Its name is all but that of this group.
    LooksLike(String),
    /// Its name does not say that it is for all others.
    SaysNothing,
}

impl MailboxProviderLimit {
    /// What to tell whoever wrote it, where it may be meant for something else than it covers.
    pub fn warning(&self) -> Option<String> {
        let Covers::Others { doubt: Some(doubt) } = &self.covers else { return None };
        let name = &self.name;
        let mend = match doubt {
            Doubt::LooksLike(group) => format!("If the group `{group}` is meant, write its name so"),
            Doubt::SaysNothing => "If one group is meant, give it `domains` or `mx`, or the name of a group".to_owned(),
        };
        Some(format!(
            "The throttle `{name}` names no domains and no known group, so it is for every other domain, each on its own. {mend}; if all others are, call it `others`"
        ))
    }
}

/// The file of groups that ships.
#[derive(Deserialize)]
struct ShippedGroups {
    group: Vec<MailboxProviderLimitSettings>,
}

#[derive(Deserialize)]
pub(super) struct MailboxProviderLimitSettings {
    pub(super) name: String,
    #[serde(default)]
    pub(super) domains: Vec<String>,
    #[serde(default)]
    pub(super) mx: Vec<String>,
    /// For this transport alone.
    transport: Option<String>,
    #[serde(default, deserialize_with = "rates")]
    rate: Vec<Rate>,
}

/// Rates of groups at one transport, which go before those for every one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupRatesAt {
    /// By the group's name.
    pub groups: BTreeMap<String, Vec<Rate>>,
    /// Of each domain and group without a rate.
    pub others: Option<Vec<Rate>>,
}

/// What throttles come to.
pub(super) struct GroupLimits {
    pub(super) throttles: Vec<MailboxProviderLimit>,
    pub(super) groups: MailboxProviders,
    pub(super) group_rates: BTreeMap<String, Vec<Rate>>,
    pub(super) other_rates: Vec<Rate>,
    pub(super) rates_at: BTreeMap<String, GroupRatesAt>,
    pub(super) lists: Vec<MailboxProvider>,
}

pub(super) fn check(
    settings: Vec<MailboxProviderLimitSettings>,
    names: &ScopeNames<'_>,
) -> Result<GroupLimits, ConfigError> {
    let shipped = shipped::<ShippedGroups>(GROUPS)?.group;
    let (of_one, settings): (Vec<_>, Vec<_>) = settings.into_iter().partition(|one| one.transport.is_some());
    let mut known: Vec<String> = shipped.iter().map(|one| one.name.clone()).collect();
    known.extend(names.groups.keys().cloned());
    known.extend(settings.iter().filter(|one| one.is_own()).map(|one| one.name.clone()));
    let mut listed = lists(names)?;
    let (mut throttles, mut list): (Vec<MailboxProviderLimit>, Vec<MailboxProvider>) = Default::default();
    let mut seen = BTreeSet::new();
    for one in settings {
        let at = format!("throttle `{}`", one.name);
        named(&at, &one.name)?;
        if !seen.insert(one.name.clone()) {
            return Err(ConfigError::value(at, "the name is used twice"));
        }
        distinct(&format!("{at}: rate"), &one.rate)?;
        let covers = if one.is_own() {
            Covers::Own
        } else if names.groups.contains_key(&one.name) {
            Covers::Listed
        } else if shipped.iter().any(|group| group.name == one.name) {
            Covers::Shipped
        } else {
            others(&at, &one, &throttles, &known)?
        };
        if matches!(covers, Covers::Own | Covers::Listed) {
            let own = group(&at, one.name.clone(), &one.domains, &one.mx)?;
            let listed = listed.remove(&one.name).filter(|_| own.domains.is_empty());
            list.push(MailboxProvider { domains: listed.map_or(own.domains, |group| group.domains), ..own });
        }
        throttles.push(MailboxProviderLimit { name: one.name, transport: None, rates: one.rate, covers });
    }
    // Who has a throttle comes first.
    let (limited, rest): (Vec<_>, Vec<_>) = shipped.into_iter().partition(|one| seen.contains(&one.name));
    for one in limited.into_iter().chain(rest) {
        if let Some(own) = listed.remove(&one.name) {
            list.push(own);
        } else if !list.iter().any(|group| group.name == one.name) {
            list.push(group("config.groups.toml", one.name, &one.domains, &one.mx)?);
        }
    }
    let rates_at = of_one_transport(of_one, &mut throttles, &list, names)?;
    let lists = listed.into_values().collect();
    let (mut group_rates, mut other_rates) = (BTreeMap::new(), Vec::new());
    for one in throttles.iter().filter(|one| !one.rates.is_empty() && one.transport.is_none()) {
        match one.covers {
            Covers::Others { .. } => other_rates.clone_from(&one.rates),
            Covers::Own | Covers::Listed | Covers::Shipped => {
                group_rates.insert(one.name.clone(), one.rates.clone());
            }
        }
    }
    Ok(GroupLimits { throttles, groups: MailboxProviders(list), group_rates, other_rates, rates_at, lists })
}

/// Throttles for one transport: of a group that is known, or of all others.
fn of_one_transport(
    settings: Vec<MailboxProviderLimitSettings>,
    throttles: &mut Vec<MailboxProviderLimit>,
    groups: &[MailboxProvider],
    names: &ScopeNames<'_>,
) -> Result<BTreeMap<String, GroupRatesAt>, ConfigError> {
    let mut all: BTreeMap<String, GroupRatesAt> = BTreeMap::new();
    for one in settings {
        let transport = one.transport.clone().unwrap_or_default();
        let at = format!("throttle `{}`", one.name);
        let wrong = |reason: String| Err(ConfigError::value(&at, reason));
        named(&at, &one.name)?;
        if !names.knows_transport(&transport) {
            return wrong(format!("there is no transport `{transport}`"));
        }
        if one.is_own() {
            return wrong(
                "names domains or mx: those stand in a throttle of the same name without `transport`, or in [groups]"
                    .to_owned(),
            );
        }
        if one.rate.is_empty() {
            return wrong("has no rate".to_owned());
        }
        distinct(&format!("{at}: rate"), &one.rate)?;
        let rates = all.entry(transport.clone()).or_default();
        let is_group = groups.iter().any(|group| group.name == one.name);
        let before = if is_group {
            rates.groups.insert(one.name.clone(), one.rate.clone())
        } else if says_others(&one.name) {
            rates.others.replace(one.rate.clone())
        } else {
            return wrong("names no known group; for all other domains of this transport call it `others`".to_owned());
        };
        if before.is_some() {
            return wrong(format!("there are two for the transport `{transport}`"));
        }
        let covers = if is_group { Covers::Own } else { Covers::Others { doubt: None } };
        throttles.push(MailboxProviderLimit { name: one.name, transport: Some(transport), rates: one.rate, covers });
    }
    Ok(all)
}

/// The lists of `[groups]` by name, whoever uses them.
fn lists(names: &ScopeNames<'_>) -> Result<BTreeMap<String, MailboxProvider>, ConfigError> {
    let list = |(name, domains): (&String, &Vec<String>)| {
        let at = format!("groups.{name}");
        named(&at, name)?;
        if domains.is_empty() {
            return Err(ConfigError::value(at, "lists no domain"));
        }
        Ok((name.clone(), group(&at, name.clone(), domains, &[])?))
    };
    names.groups.iter().map(list).collect()
}

impl MailboxProviderLimitSettings {
    fn is_own(&self) -> bool {
        !self.domains.is_empty() || !self.mx.is_empty()
    }
}

/// A throttle that names nobody.
fn others(
    at: &str,
    one: &MailboxProviderLimitSettings,
    before: &[MailboxProviderLimit],
    known: &[String],
) -> Result<Covers, ConfigError> {
    let near = known.iter().filter_map(|group| Some((distance(&one.name, group)?, group))).min();
    let near = near.map(|(_, group)| group.clone());
    let hint = near.as_ref().map_or(String::new(), |group| format!("; is the group `{group}` meant?"));
    if one.rate.is_empty() {
        return Err(ConfigError::value(at, format!("names neither domains, nor mx, nor a rate{hint}")));
    }
    if let Some(first) = before.iter().find(|one| matches!(one.covers, Covers::Others { .. })) {
        let reason = format!(
            "names neither domains nor a known group, and `{}` is for all other domains already{hint}",
            first.name
        );
        return Err(ConfigError::value(at, reason));
    }
    let doubt = if says_others(&one.name) { None } else { Some(near.map_or(Doubt::SaysNothing, Doubt::LooksLike)) };
    Ok(Covers::Others { doubt })
}

/// Whether a name says that it is for all others.
fn says_others(name: &str) -> bool {
    let name = name.trim().to_lowercase();
    let mut words = name.split(|c: char| !c.is_alphanumeric());
    name == "*" || OTHERS.contains(&name.as_str()) || words.any(|word| OTHERS.contains(&word))
}

/// How many letters are to be changed, added or left out to make one name the other; nothing where that are more than two, or half of it.
fn distance(name: &str, group: &str) -> Option<usize> {
    const FAR: usize = 2;
    let (name, group): (Vec<char>, Vec<char>) =
        (name.to_lowercase().chars().collect(), group.to_lowercase().chars().collect());
    if name.len().abs_diff(group.len()) > FAR {
        return None;
    }
    // Of what begins `name` to what begins `group`, a row for each letter of `name`.
    let mut row: Vec<usize> = (0..=group.len()).collect();
    for (n, letter) in name.iter().enumerate() {
        let mut next = vec![n + 1];
        for (m, other) in group.iter().enumerate() {
            let changed = row[m] + usize::from(letter != other);
            next.push(changed.min(row[m + 1] + 1).min(next[m] + 1));
        }
        row = next;
    }
    row.pop().filter(|letters| *letters <= FAR && 2 * letters <= group.len())
}

fn group(at: &str, name: String, domains: &[String], mx: &[String]) -> Result<MailboxProvider, ConfigError> {
    let all = |list: &[String], read: fn(&str) -> Result<String, String>| -> Result<Vec<String>, ConfigError> {
        let one = |text: &String| {
            // `*.example.com` is written for `.example.com` as well, and a name may end with the dot of the root.
            let text = text.strip_prefix('*').filter(|end| end.starts_with('.')).unwrap_or(text);
            let end = format!("`{text}` is no domain and no end of one, such as .google.com");
            read(text.strip_suffix('.').unwrap_or(text)).map_err(|_| ConfigError::value(at, end))
        };
        list.iter().map(one).collect()
    };
    Ok(MailboxProvider { name, domains: all(domains, domain_or_end)?, mx: all(mx, host_or_end)? })
}

/// The name of a mail exchanger or the end of one. Unlike a domain of addresses it may have underscores.
fn host_or_end(text: &str) -> Result<String, String> {
    let (known, labels) = (domain_or_end(text), text.strip_prefix('.').unwrap_or(text));
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        (1..=63).contains(&label.len()) && is_plain
    };
    known.or_else(|error| if labels.split('.').all(is_label) { Ok(text.to_ascii_lowercase()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    /// What a throttle of this name with a rate and nothing else covers, beside a group `partners` of the routes.
    fn covers(name: &str) -> Covers {
        let text = format!(
            "[transport.relay]\nkind = \"smtp\"\nhost = \"relay.test\"\n[[route]]\nname = \"all\"\nsend = [\"relay\"]\n\
             [groups]\npartners = [\"partner.example\"]\n[[throttle]]\nname = \"{name}\"\nrate = \"1/s\"\n"
        );
        load_text(&text).unwrap().limits.throttles.remove(0).covers
    }

    #[track_caller]
    fn check(names: &[&str], expected: &Covers) {
        for name in names {
            assert_eq!(covers(name), *expected, "{name}");
        }
    }

    #[test]
    fn a_name_tells_whom_a_throttle_is_for_and_a_misspelt_one_is_doubted() {
        let others = |doubt| Covers::Others { doubt };
        let like = |group: &str| others(Some(Doubt::LooksLike(group.to_owned())));
        check(&["google", "qq"], &Covers::Shipped);
        check(&["partners"], &Covers::Listed);
        let plain =
            ["*", "other", "others", "rest", "default", "everybody else", "All other domains", "the-rest", "catch-all"];
        check(&plain, &others(None));
        check(&["gogle", "Google", "goolge", "googel", "google."], &like("google"));
        check(&["partner", "partnres"], &like("partners"));
        check(&["mircosoft"], &like("microsoft"));
        check(&["gmail", "slow ones", "xy", "a", "zz"], &others(Some(Doubt::SaysNothing)));
    }

    #[test]
    fn a_warning_says_whom_it_is_for_and_what_to_write() {
        let warning = |name: &str| {
            MailboxProviderLimit { name: name.to_owned(), transport: None, rates: Vec::new(), covers: covers(name) }
                .warning()
        };
        let gogle = warning("gogle").unwrap();
        for part in ["`gogle`", "every other domain", "`google`", "`others`"] {
            assert!(gogle.contains(part), "{part} in {gogle}");
        }
        assert!(warning("slow ones").unwrap().contains("`domains`"));
        assert_eq!([warning("others"), warning("google")], [None, None]);
    }
}
