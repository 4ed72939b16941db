//! Errors of a configuration in the words of those who write it: where a setting stands, what it wants, and which setting may have been meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, Environment};

/// The compiled-in defaults; also the manual of every setting.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Conditions of `when`, which the manual explains in prose.
const CONDITIONS: [&str; 13] = [
    "lane",
    "tenants",
    "tags",
    "metadata",
    "headers",
    "sender_domains",
    "recipient_domains",
    "recipient_groups",
    "bytes_min",
    "bytes_max",
    "attachments",
    "tracking",
    "not",
];
/// What only some kinds of transport need, explained in prose as well.
const OF_SOME_KINDS: [&str; 14] = [
    "domain",
    "message_stream",
    "subaccount",
    "idempotency",
    "secret_key",
    "secret",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "token_file",
    "sts_url",
    "configuration_set",
];

/// The file that was read, for those who look for a setting in it.
pub(super) struct ConfigText<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl ConfigText<'_> {
    /// Refuses what is no TOML, with its line and the reason alone.
    pub(super) fn must_be_toml(&self) -> Result<(), ConfigError> {
        let Err(error) = DeTable::parse(self.text) else { return Ok(()) };
        let line = error.span().map_or(1, |span| line_at(self.text, span.start));
        let what = error.message().lines().next().unwrap_or_default().to_owned();
        Err(ConfigError::Text { place: self.place(Some(line)), reason: what })
    }

    fn place(&self, line: Option<usize>) -> String {
        let path = self.path.display();
        line.map_or_else(|| path.to_string(), |line| format!("{path} line {line}"))
    }

    /// The line of a setting.
    fn line(&self, setting: &str) -> Option<usize> {
        let table = DeTable::parse(self.text).ok()?;
        let start = position(table.get_ref(), &plain(setting, table.get_ref()))?;
        Some(line_at(self.text, start))
    }
}

fn line_at(text: &str, position: usize) -> usize {
    text.as_bytes()[..position.min(text.len())].split(|byte| *byte == b'\n').count()
}

/// The path of a setting with positions: ``route `a`: when.lane`` is `route[0].when.lane`.
fn plain(setting: &str, tables: &DeTable<'_>) -> String {
    let Some((kind, rest)) = setting.split_once(" `") else { return setting.to_owned() };
    let Some((name, rest)) = rest.split_once('`') else { return setting.to_owned() };
    let list = tables.iter().find(|(key, _)| key.get_ref().as_ref() == kind.replace(' ', "_"));
    let is_named = |one: &Spanned<DeValue<'_>>| {
        let name_of = one.get_ref().as_table().and_then(|table| table.iter().find(|(key, _)| key.get_ref() == "name"));
        name_of.and_then(|(_, value)| value.get_ref().as_str()) == Some(name)
    };
    let place = list.and_then(|(_, list)| list.get_ref().as_array()?.iter().position(is_named));
    let rest = rest.trim_start_matches([':', ' ']);
    let dot = if rest.is_empty() { "" } else { "." };
    place.map_or_else(|| setting.to_owned(), |n| format!("{}[{n}]{dot}{rest}", kind.replace(' ', "_")))
}

/// Where the setting begins; the table around it where it is missing.
fn position(table: &DeTable<'_>, path: &str) -> Option<usize> {
    let below = |key: &str| path.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    // The longest name first: names may have dots.
    let found = table.iter().filter_map(|(key, value)| Some((key, value, below(key.get_ref())?)));
    let (key, value, rest) = found.min_by_key(|(_, _, rest)| rest.len())?;
    let here = key.span().start;
    within(value.get_ref(), rest).or(Some(here))
}

fn within(value: &DeValue<'_>, rest: &str) -> Option<usize> {
    let rest = rest.trim_start_matches('.');
    if rest.is_empty() {
        return None;
    }
    if let Some(table) = value.as_table() {
        return position(table, rest);
    }
    // An element is written `[2]` or `2`.
    let list = value.as_array()?;
    let number = rest.trim_start_matches('[');
    let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let element = list.get(number[..digits].parse::<usize>().ok()?)?;
    let rest = number[digits..].trim_start_matches([']', '.']);
    within(element.get_ref(), rest).or(Some(element.span().start))
}

/// Adds to an error where its setting stands: in the file, or in a variable.
pub(super) fn placed(error: ConfigError, file: Option<&ConfigText<'_>>, environment: &Environment) -> ConfigError {
    let place = |path: &str| {
        let variable = variable(path);
        if environment.contains_key(&variable) {
            return Some(format!("the variable {variable}"));
        }
        file.and_then(|file| Some(file.place(Some(file.line(path)?))))
    };
    match error {
        ConfigError::Value { path, reason } => match place(&path) {
            Some(place) => ConfigError::Value { reason: format!("{reason} ({place})"), path },
            None => ConfigError::Value { path, reason },
        },
        ConfigError::Unknown(paths) => ConfigError::Unknown(
            paths
                .iter()
                .map(|path| {
                    let at = place(path).map_or_else(String::new, |place| format!(" in {place}"));
                    let meant = meant(path).map_or_else(String::new, |one| format!("; did you mean `{one}`?"));
                    format!("`{path}`{at}{meant}")
                })
                .collect(),
        ),
        error => error,
    }
}

/// The variable that sets this.
fn variable(path: &str) -> String {
    format!("POSTRIDER_{}", path.to_uppercase().replace('.', "__"))
}

/// Variables that look like settings and are none, each with what may have been meant.
pub fn strays(environment: &Environment) -> Vec<String> {
    let known = settings();
    let of_others = |rest: &str| {
        // Kubernetes sets these for a Service of our name; tests and the program itself have the others.
        ["CONFIG"].contains(&rest) || ["SERVICE_", "PORT", "TEST_"].iter().any(|start| rest.starts_with(start))
    };
    let stray = |name: &String| {
        let rest = name.strip_prefix("POSTRIDER_").filter(|rest| !rest.contains("__") && !of_others(rest))?;
        let candidate = |(n, _): (usize, char)| format!("{}__{}", &rest[..n], &rest[n + 1..]);
        let meant = rest.char_indices().filter(|(_, c)| *c == '_').map(candidate).find(|one| {
            let (section, name) = one.split_once("__").unwrap_or_default();
            known.get(&section.to_lowercase()).is_some_and(|names| names.contains(&name.to_lowercase()))
        });
        let hint = meant.map_or_else(
            || "a setting is written POSTRIDER_SECTION__NAME, with two underscores".to_owned(),
            |one| format!("did you mean POSTRIDER_{one}?"),
        );
        Some(format!("{name} is no setting and has no effect; {hint}"))
    };
    environment.keys().filter_map(stray).collect()
}

/// The names of the settings of each section, as the manual writes them: `*` stands for a name of the user's.
fn settings() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in DEFAULTS.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            section = shape(header.trim_start_matches('[').split(']').next().unwrap_or_default());
            found.entry(section.clone()).or_default();
            if let Some((above, name)) = section.rsplit_once('.').filter(|(_, name)| *name != "*") {
                found.entry(above.to_owned()).or_default().insert(name.to_owned());
            }
        } else if let Some((name, _)) = line.split_once(" = ")
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            found.entry(section.clone()).or_default().insert(name.to_owned());
        }
    }
    let words = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    found.entry("transport.*".to_owned()).or_default().extend(words(&OF_SOME_KINDS));
    found.entry("route.when".to_owned()).or_default().extend(words(&CONDITIONS));
    let sections: Vec<String> = found.keys().filter_map(|one| Some(one.split('.').next()?.to_owned())).collect();
    found.entry(String::new()).or_default().extend(sections);
    found
}

/// A section without names of the user's and without positions.
fn shape(section: &str) -> String {
    let mut parts: Vec<&str> = section.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
    let plain: Vec<&str> = parts.iter().map(|part| part.split('[').next().unwrap_or(part)).collect();
    parts.clone_from(&plain);
    match parts.as_mut_slice() {
        ["transport", name] | ["limits", "tenants", name] => *name = "*",
        _ => {}
    }
    parts.join(".")
}

/// The setting that may have been meant by an unknown one.
fn meant(path: &str) -> Option<String> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let known = settings();
    let near = |names: &BTreeSet<String>| {
        let distances = names.iter().map(|one| (strsim::damerau_levenshtein(name, one), one));
        let best = distances.min_by_key(|(distance, _)| *distance)?;
        Some(best.1.clone()).filter(|one| best.0 <= 2 && 2 * best.0 <= one.len())
    };
    known.get(&shape(section)).and_then(near)
}

/// What a reader of settings says, in words: never with a value, which may be a secret.
pub(super) fn in_words(error: &str) -> String {
    if let Some(field) = error.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return format!("`{field}` is missing");
    }
    let Some((found, expected)) = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|start| error.strip_prefix(start)?.split_once(", expected "))
    else {
        return error.to_owned();
    };
    let expected = expected.split(" for key ").next().unwrap_or(expected);
    format!("expected {}, found {}", wanted(expected), kind(found))
}

fn wanted(expected: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| expected.contains(word));
    let known = if has(&["16 bit", "u16"]) {
        "a whole number from 0 to 65535"
    } else if has(&["unsigned", "u32", "u64", "usize"]) {
        "a whole number from 0"
    } else if has(&["integer", "i64", "i32"]) {
        "a whole number"
    } else if has(&["float", "f64"]) {
        "a number"
    } else if has(&["bool"]) {
        "true or false"
    } else if has(&["sequence"]) {
        "a list"
    } else if has(&["struct", "map"]) {
        "a table"
    } else if has(&["string"]) {
        "a text"
    } else {
        return expected.to_owned();
    };
    known.to_owned()
}

fn kind(found: &str) -> &'static str {
    match found.split([' ', '`']).find(|word| !word.is_empty()).unwrap_or_default() {
        "string" => "a text",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "a table",
        "unit" | "null" => "nothing",
        _ if found.contains("float") => "a number with a fraction",
        _ if found.contains("integer") => "a number",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[queue]\nurl = \"x\"\n\n[transport.\"eu.relay\"]\nhost = \"h\"\n\n[[route]]\nname = \"a\"\n[[route]]\nname = \"b\"\nsend = [\"x\"]\nwhen = { lane = \"bulk\" }\n";

    #[test]
    fn a_setting_is_found_by_its_line() {
        let file = ConfigText { path: Path::new("postrider.toml"), text: TEXT };
        for (path, line) in [
            ("queue.url", Some(2)),
            ("queue.shards", Some(1)),
            ("transport.eu.relay.host", Some(5)),
            ("route[1].send", Some(11)),
            ("route.1.send", Some(11)),
            ("route `b`: when.lane", Some(12)),
            ("store.url", None),
        ] {
            assert_eq!(file.line(path), line, "{path}");
        }
        let broken = ConfigText { path: Path::new("postrider.toml"), text: "[worker]\nthreads = 1\n[log\n" };
        let error = broken.must_be_toml().unwrap_err().to_string();
        assert!(error.starts_with("postrider.toml line 3: ") && !error.contains("TOML parse"), "{error}");
    }

    #[test]
    fn a_near_setting_is_named() {
        for (wrong, right) in [
            ("queu", Some("queue")),
            ("queue.ulr", Some("url")),
            ("transport.relay.hots", Some("host")),
            ("transport.amazon.regoin", Some("region")),
            ("route.0.sned", Some("send")),
            ("route.0.when.lanes", Some("lane")),
            ("limits.tenants.shop.weigth", Some("weight")),
            ("worker.unlike_anything", None),
        ] {
            assert_eq!(meant(wrong).as_deref(), right, "{wrong}");
        }
    }

    #[test]
    fn what_the_manual_explains_in_prose_stands_there() {
        for word in CONDITIONS.iter().chain(&OF_SOME_KINDS) {
            assert!(DEFAULTS.contains(word), "{word}");
        }
    }

    #[test]
    fn errors_are_words_and_quote_no_value() {
        for (error, words) in [
            ("invalid type: string \"s3cret\", expected an integer", "expected a whole number, found a text"),
            (
                "invalid type: 64-bit unsigned integer `70000`, expected an unsigned 16 bit integer",
                "expected a whole number from 0 to 65535, found a number",
            ),
            ("invalid type: integer `3`, expected struct WorkerSettings", "expected a table, found a number"),
            ("invalid type: map, expected a string", "expected a text, found a table"),
            ("missing field `name`", "`name` is missing"),
            ("expected a rate such as 20/s", "expected a rate such as 20/s"),
        ] {
            assert_eq!(in_words(error), words);
        }
    }

    #[test]
    fn a_variable_that_is_no_setting_is_named_with_what_was_meant() {
        let environment = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), String::new())).collect();
        let ours =
            ["POSTRIDER_CONFIG", "POSTRIDER_QUEUE__URL", "POSTRIDER_SERVICE_HOST", "POSTRIDER_PORT_80_TCP", "HOME"];
        assert_eq!(strays(&environment(&ours)), Vec::<String>::new());
        let found = strays(&environment(&["POSTRIDER_QUEUE_URL", "POSTRIDER_VERBOSE"]));
        assert!(found[0].ends_with("did you mean POSTRIDER_QUEUE__URL?"), "{found:?}");
        assert!(found[1].contains("POSTRIDER_SECTION__NAME"), "{found:?}");
    }
}
