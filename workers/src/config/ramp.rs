//! A rate that grows by the calendar, as a new sender's must: `rate = { from = "2026-12-01", every = "1d", steps = ["2000/d", "5000/d"] }` may stand
//! wherever a rate may. It is put in place before the configuration is read, so that nothing else knows of it; a worker reads its configuration again
//! when the next step is due.

use std::time::Duration;

use config::{Value, ValueKind};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::{ConfigError, reading::parse_duration};

/// How often a step is taken where nothing else is said.
const EVERY: Duration = Duration::from_secs(86_400);
/// What a ramp is made of.
const KEYS: [&str; 3] = ["from", "every", "steps"];

/// A ramp of the configuration, and where it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ramp {
    /// The setting, with its whole path.
    pub setting: String,
    /// The step that holds, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// When the next one holds; nothing at the last one.
    pub next: Option<Timestamp>,
}

/// Puts the rate of its present step in the place of each ramp below `root`.
///
/// # Errors
/// Names the setting of a ramp that cannot be read.
pub(super) fn resolve(root: &mut Value, now: Timestamp) -> Result<Vec<Ramp>, ConfigError> {
    let mut ramps = Vec::new();
    walk("", root, now, &mut ramps)?;
    ramps.sort_by(|a, b| a.setting.cmp(&b.setting));
    Ok(ramps)
}

fn walk(at: &str, value: &mut Value, now: Timestamp, ramps: &mut Vec<Ramp>) -> Result<(), ConfigError> {
    match &mut value.kind {
        ValueKind::Table(table) if is_rate(at) => {
            let (rate, ramp) = present(at, table, now)?;
            *value = rate;
            ramps.push(ramp);
        }
        ValueKind::Table(table) => {
            for (key, value) in table.iter_mut() {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                walk(&at, value, now, ramps)?;
            }
        }
        ValueKind::Array(list) => {
            for (n, value) in list.iter_mut().enumerate() {
                walk(&format!("{at}[{n}]"), value, now, ramps)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether rates are read there: `rate`, `sender_rate`, `tenant_rate`. A transport or a tenant of that name is no rate.
fn is_rate(at: &str) -> bool {
    let Some((section, key)) = at.rsplit_once('.') else { return false };
    !matches!(section, "transport" | "limits.tenants") && (key == "rate" || key.ends_with("_rate"))
}

/// The rate that holds now, and where its ramp is.
fn present(at: &str, table: &config::Map<String, Value>, now: Timestamp) -> Result<(Value, Ramp), ConfigError> {
    let wrong = |key: &str, reason: String| ConfigError::value(format!("{at}.{key}"), reason);
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(wrong(key, format!("is no part of a ramp, which has {}", KEYS.join(", "))));
    }
    let text = |key: &str| table.get(key).map(|value| value.clone().into_string().unwrap_or_default());
    let from = text("from").ok_or_else(|| wrong("from", "is missing: the day of the first step".to_owned()))?;
    let from = moment(&from).ok_or_else(|| wrong("from", format!("`{from}` is no day such as 2026-12-01")))?;
    let every = text("every").map_or(Ok(EVERY), |text| parse_duration(&text)).map_err(|why| wrong("every", why))?;
    let steps = table.get("steps").and_then(|steps| steps.clone().into_array().ok()).unwrap_or_default();
    if steps.is_empty() || every.is_zero() {
        let key = if every.is_zero() { "every" } else { "steps" };
        return Err(wrong(key, "expected rates such as [\"2000/d\", \"5000/d\"], one for each step".to_owned()));
    }
    let (step, next) = step(from, every, steps.len(), now);
    let ramp = Ramp { setting: at.to_owned(), step: step + 1, steps: steps.len(), next };
    Ok((steps.into_iter().nth(step).unwrap_or_default(), ramp))
}

/// A day, which begins at midnight UTC, or a time.
fn moment(text: &str) -> Option<Timestamp> {
    let day = |day: Date| day.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(|| text.parse().ok().and_then(day))
}

/// The place of the step that holds, and when the next one does. The first one holds before its day too, the last one for good.
fn step(from: Timestamp, every: Duration, steps: usize, now: Timestamp) -> (usize, Option<Timestamp>) {
    let gone = Duration::try_from(now.duration_since(from)).unwrap_or_default();
    let whole = usize::try_from(gone.as_nanos() / every.as_nanos()).unwrap_or(usize::MAX);
    let place = whole.min(steps - 1);
    let next = (place + 1 < steps).then(|| u32::try_from(place + 1).ok().and_then(|n| every.checked_mul(n))).flatten();
    (place, next.and_then(|after| from.checked_add(after).ok()))
}

#[cfg(test)]
mod tests {
    use config::{Config, File, FileFormat};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn resolved(text: &str, now: &str) -> Result<(Value, Vec<Ramp>), String> {
        let mut root = Config::builder().add_source(File::from_str(text, FileFormat::Toml)).build().unwrap().cache;
        let ramps = resolve(&mut root, at(now)).map_err(|error| error.to_string())?;
        Ok((root, ramps))
    }

    #[test]
    fn the_step_of_the_day_holds() {
        let from = at("2026-12-01T00:00:00Z");
        for (now, place, next) in [
            ("2026-11-20T00:00:00Z", 0, Some("2026-12-02T00:00:00Z")),
            ("2026-12-01T23:59:59Z", 0, Some("2026-12-02T00:00:00Z")),
            ("2026-12-02T00:00:00Z", 1, Some("2026-12-03T00:00:00Z")),
            ("2026-12-03T00:00:00Z", 2, None),
            ("2036-12-03T00:00:00Z", 2, None),
        ] {
            assert_eq!(step(from, EVERY, 3, at(now)), (place, next.map(at)), "{now}");
        }
        assert_eq!(step(from, EVERY, 1, from), (0, None), "one step is a rate");
    }

    #[test]
    fn a_ramp_stands_wherever_a_rate_may() {
        let ramp = r#"{ from = "2026-12-01", every = "12h", steps = ["2000/d", ["50/s", "5000/d"]] }"#;
        let text = format!(
            "[transport.relay]\nrate = {ramp}\nsender_rate = \"1/s\"\n[limits]\ntenant_rate = {ramp}\n[[throttle]]\nname = \"x\"\nrate = {ramp}\n\
             [transport.rate]\nkind = \"smtp\"\n"
        );
        let (root, ramps) = resolved(&text, "2026-12-01T13:00:00Z").unwrap();
        let settings: Vec<&str> = ramps.iter().map(|ramp| ramp.setting.as_str()).collect();
        assert_eq!(settings, ["limits.tenant_rate", "throttle[0].rate", "transport.relay.rate"]);
        assert!(ramps.iter().all(|ramp| (ramp.step, ramp.steps, ramp.next) == (2, 2, None)), "{ramps:?}");
        let limits = root.into_table().unwrap()["limits"].clone().into_table().unwrap();
        let rates = limits["tenant_rate"].clone().into_array().unwrap();
        assert_eq!(rates.into_iter().map(|rate| rate.into_string().unwrap()).collect::<Vec<_>>(), ["50/s", "5000/d"]);
        let (_, ramps) = resolved(&text, "2026-12-01T11:00:00Z").unwrap();
        assert_eq!(ramps[0].next, Some(at("2026-12-01T12:00:00Z")));
    }

    #[test]
    fn what_is_no_ramp_is_refused_by_name() {
        for (rate, expected) in [
            (r#"{ steps = ["1/s"] }"#, "transport.relay.rate.from"),
            (r#"{ from = "soon", steps = ["1/s"] }"#, "`soon` is no day such as 2026-12-01"),
            (r#"{ from = "2026-12-01", steps = [] }"#, "transport.relay.rate.steps"),
            (r#"{ from = "2026-12-01", every = "0s", steps = ["1/s"] }"#, "transport.relay.rate.every"),
            (r#"{ from = "2026-12-01", each = "1d", steps = ["1/s"] }"#, "transport.relay.rate.each"),
        ] {
            let error = resolved(&format!("[transport.relay]\nrate = {rate}\n"), "2026-12-01T00:00:00Z").unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
