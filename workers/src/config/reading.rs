//! How values are read that stand in the configuration as texts: durations, sizes, words, rates.

use std::time::Duration;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, IntoDeserializer as _, value::StrDeserializer},
};

use super::ConfigError;
use crate::policy::rate_limit::rate::{Period, Rate};

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A size such as `512MiB`; nothing for `auto`.
pub(super) fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "auto" { Ok(None) } else { parse_bytes(&text).map(Some).map_err(D::Error::custom) }
}

/// A size such as `512MiB`.
pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads `512MiB`, `2 GiB`, `64KiB`, `1048576`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let shift = match text[digits..].trim() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("expected a size such as 512MiB or 2GiB, or \"auto\"".to_owned()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "expected a number before the unit".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}

/// One of the words that a setting takes, in any case.
pub(super) fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    read_word(&String::deserialize(deserializer)?)
}

pub(super) fn some_word<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

pub(super) fn words<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    texts(deserializer)?.iter().map(|text| read_word(text)).collect()
}

/// The error names the words that there are.
fn read_word<T: DeserializeOwned, E: serde::de::Error>(text: &str) -> Result<T, E> {
    let lower = text.to_lowercase();
    let word: StrDeserializer<'_, serde::de::value::Error> = lower.as_str().into_deserializer();
    T::deserialize(word).map_err(|error| E::custom(error.to_string().replacen("unknown variant", "unknown word", 1)))
}

/// A text, several of them in a list, or separated by commas as the environment writes them.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum List {
        Many(Vec<String>),
        One(String),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Many(list) => list,
        List::One(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
    })
}

pub(super) fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of durations such as [\"30s\", \"2m\"]")]
    enum List {
        Many(Vec<String>),
        /// From the environment: separated by commas.
        One(String),
    }
    let texts = match List::deserialize(deserializer)? {
        List::Many(list) => list,
        List::One(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
    };
    texts.iter().map(|text| parse_duration(text).map_err(D::Error::custom)).collect()
}

/// Beyond it clocks and stores overflow.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);

/// `500ms`, `30s`, `2m`, `12h`, `7d`: a number and one unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || "expected a duration such as 500ms, 30s, 2m, 12h or 7d".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(bad);
    let duration = match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => Err(bad()),
    }?;
    if duration > DURATION_MAX { Err("at most 3650d".to_owned()) } else { Ok(duration) }
}

/// A duration as it is written: in the longest unit of which it is a whole number.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let whole = units.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{ms}ms"), |(name, unit)| format!("{}{name}", ms / unit))
}

pub(super) fn one_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// One rate, or several; none where the text is empty.
pub(super) fn rates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rate>, D::Error> {
    let texts = texts(deserializer)?;
    let rates = texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect::<Result<Vec<Rate>, _>>()?;
    let is_short = |rate: &Rate| matches!(rate.period(), Period::Second | Period::Minute);
    Ok(if rates.iter().any(is_short) { rates.into_iter().map(Rate::quota).collect() } else { rates })
}

pub(super) fn some_rates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Rate>>, D::Error> {
    rates(deserializer).map(Some)
}

/// A file that ships with the program, as it is written.
pub(super) fn shipped<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let source = config::File::from_str(text, config::FileFormat::Toml);
    Ok(config::Config::builder().add_source(source).build()?.try_deserialize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for text in ["500ms", "30s", "90s", "30m", "90m", "12h", "7d"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(Duration::from_mins(60)), "1h");
    }
}
