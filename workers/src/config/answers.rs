//! `[[answer]]` in the configuration: as it is written, and checked. The table that ships is `config.answers.toml`.

use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{ConfigError, reading};
use crate::policy::{
    answers::{Answers, Entry, Pattern},
    outcome::{Class, Mark, Stage},
};

const SHIPPED: &str = include_str!("../config.answers.toml");

#[derive(Deserialize)]
pub(super) struct AnswerSettings {
    name: String,
    #[serde(default, deserialize_with = "reading::words")]
    stages: Vec<Stage>,
    #[serde(default)]
    temporary: Option<bool>,
    #[serde(default)]
    codes: Vec<String>,
    #[serde(default)]
    enhanced: Vec<String>,
    #[serde(default)]
    text: Vec<String>,
    #[serde(default)]
    and: Vec<String>,
    #[serde(default)]
    unless: Vec<String>,
    #[serde(deserialize_with = "reading::word")]
    class: Class,
    #[serde(default, deserialize_with = "mark")]
    mark: Mark,
}

#[derive(Deserialize)]
struct Table {
    answer: Vec<AnswerSettings>,
}

/// The table that ships.
pub fn shipped() -> Arc<Answers> {
    static TABLE: LazyLock<Arc<Answers>> = LazyLock::new(|| {
        // A test reads it: it is there.
        Arc::new(read().unwrap_or_default())
    });
    Arc::clone(&TABLE)
}

/// The configured ones, then those that ship.
pub(super) fn check(own: Vec<AnswerSettings>) -> Result<Arc<Answers>, ConfigError> {
    if own.is_empty() {
        return Ok(shipped());
    }
    let mut list: Vec<Entry> = Vec::new();
    for one in own {
        let at = format!("answer `{}`", one.name);
        if list.iter().any(|other| other.name == one.name) {
            return Err(ConfigError::value(at, "the name is used twice"));
        }
        list.push(entry(&at, one, true)?);
    }
    for one in read()?.0 {
        if !list.iter().any(|own| own.name == one.name) {
            list.push(one);
        }
    }
    Ok(Arc::new(Answers(list)))
}

fn read() -> Result<Answers, ConfigError> {
    let source = config::File::from_str(SHIPPED, config::FileFormat::Toml);
    let table: Table = config::Config::builder().add_source(source).build()?.try_deserialize()?;
    let list: Result<_, _> = table.answer.into_iter().map(|one| entry("config.answers.toml", one, false)).collect();
    Ok(Answers(list?))
}

fn entry(at: &str, settings: AnswerSettings, is_own: bool) -> Result<Entry, ConfigError> {
    let wrong = |what: String| Err(ConfigError::value(at, what));
    if settings.name.trim().is_empty() {
        return wrong("`name` is empty".to_owned());
    }
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b == b'x');
    if settings.codes.iter().any(|code| code.len() != 3 || !is_part(code)) {
        return wrong("`codes` are reply codes such as 550 or 45x".to_owned());
    }
    let is_enhanced = |code: &String| code == "none" || (code.split('.').count() == 3 && code.split('.').all(is_part));
    if !settings.enhanced.iter().all(is_enhanced) {
        return wrong("`enhanced` are codes such as 5.7.1 or 4.7.x, or `none`".to_owned());
    }
    let patterns = |what: &str, list: Vec<String>| -> Result<Vec<Pattern>, ConfigError> {
        let read = |text: String| {
            let reason = format!("`{what}` with nothing to look for matches every answer: {text:?}");
            Pattern::new(&text).ok_or_else(|| ConfigError::value(at, reason))
        };
        list.into_iter().map(read).collect()
    };
    Ok(Entry {
        text: patterns("text", settings.text)?,
        and: patterns("and", settings.and)?,
        unless: patterns("unless", settings.unless)?,
        name: settings.name,
        stages: settings.stages,
        temporary: settings.temporary,
        codes: settings.codes,
        enhanced: settings.enhanced,
        class: settings.class,
        mark: settings.mark,
        is_own,
    })
}

fn mark<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mark, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "none" => Ok(Mark::Plain),
        "unexplained" => Ok(Mark::Unexplained),
        "too_many_recipients" => Ok(Mark::TooManyRecipients),
        other => Err(D::Error::custom(format!("`{other}` is none of `none`, `unexplained` and `too_many_recipients`"))),
    }
}

#[cfg(test)]
#[path = "classification_tests.rs"]
mod classification;
#[cfg(test)]
#[path = "answers_tests.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    #[test]
    fn the_table_that_ships_can_be_read_and_matches_every_negative_reply() {
        let table = read().unwrap();
        assert!(table.0.len() > 40);
        for stage in
            [Stage::Connect, Stage::Tls, Stage::Hello, Stage::Auth, Stage::MailFrom, Stage::RcptTo, Stage::Data]
        {
            for code in 400..600 {
                assert_ne!(table.read(stage, code, None, "").name, "", "{stage:?} {code}");
            }
        }
    }

    #[test]
    fn an_own_entry_stands_in_front_and_replaces_the_one_of_its_name() {
        let config = |more: &str| {
            load_text(&format!(
                "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[[answer]]\nname = \"ours\"\n{more}\n"
            ))
        };
        let answers = config("codes = [\"550\"]\ntext = [\"pink\"]\nclass = \"quota\"").unwrap().answers;
        assert_eq!(answers.read(Stage::RcptTo, 550, None, "the Pink one").class, Class::Quota);
        assert_eq!(answers.read(Stage::RcptTo, 550, None, "user unknown").class, Class::Recipient);
        for (wrong, what) in [
            ("class = \"pink\"", "pink"),
            ("class = \"quota\"\ntext = [\" * \"]", "nothing to look for"),
            ("class = \"quota\"\ncodes = [\"5\"]", "reply codes"),
            ("class = \"quota\"\nenhanced = [\"5.7\"]", "5.7.1"),
            ("class = \"quota\"\nmark = \"often\"", "often"),
        ] {
            let error = config(wrong).unwrap_err().to_string();
            assert!(error.contains(what), "{wrong}: {error}");
        }
    }
}
