//! Reads the three layers and hands them to the check.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use config::{Config as Layers, ConfigBuilder, File, FileFormat, builder::DefaultState};
use jiff::Timestamp;
use postrider_providers::description::{Description, SettingForm, SettingValue};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::{
    Config, ConfigError, Environment,
    check::{self, Section},
    credentials::{self, Credentials},
    limits::PACE_KEYS,
    provider::OwnSetting,
    ramp,
    settings::Settings,
    words::{self, ConfigText, DEFAULTS},
};
use crate::{policy::capabilities::TransportType, redact};

/// Loads the configuration of this process. From then on no answer, error or log line of the process holds its secrets.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    load_here(file, Credentials::Needed)
}

/// The same for commands that hand nothing to a transport: credentials of transports that are not here are left out.
pub fn load_without_credentials(file: Option<&Path>) -> Result<Config, ConfigError> {
    load_here(file, Credentials::MayBeMissing)
}

fn load_here(file: Option<&Path>, credentials: Credentials) -> Result<Config, ConfigError> {
    let environment = super::process_environment();
    redact::learn(&of_environment(&environment));
    let config = load_with(file, environment, credentials)?;
    redact::learn(&config.unspeakable());
    Ok(config)
}

/// Secrets that variables hold whatever the configuration says: those in URLs, and the headers for a collector.
fn of_environment(environment: &Environment) -> Vec<SecretString> {
    let is_ours = |name: &str| name.starts_with("POSTRIDER_") || name.starts_with("OTEL_");
    let of = |(name, value): (&String, &String)| {
        let mut list = redact::of_url(value);
        if name.starts_with("OTEL_") && name.ends_with("_HEADERS") {
            let values = value.split(',').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value.trim());
            list.extend(values.flat_map(|value| value.split(' ')).map(SecretString::from));
        }
        list
    };
    environment.iter().filter(|(name, _)| is_ours(name)).flat_map(of).collect()
}

/// Loads a configuration with these variables instead of the process environment.
pub fn load_from(file: Option<&Path>, environment: Environment) -> Result<Config, ConfigError> {
    load_with(file, environment, Credentials::Needed)
}

fn load_with(file: Option<&Path>, environment: Environment, credentials: Credentials) -> Result<Config, ConfigError> {
    let layers = Layers::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    let Some(path) = file else {
        return build(layers, &environment, credentials).map_err(|error| words::placed(error, None, &environment));
    };
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError::Text { place: path.display().to_string(), reason: error.to_string() })?;
    let file = ConfigText { path, text: &text };
    file.must_be_toml()?;
    let layers = layers.add_source(File::from_str(&text, FileFormat::Toml));
    let built = build(layers, &environment, credentials);
    built.map_err(|error| words::placed(located(error, &file), Some(&file), &environment))
}

/// Loads a configuration from a text over the defaults; the environment has no part in it.
pub fn load_text(text: &str) -> Result<Config, ConfigError> {
    let layers = Layers::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    build(layers.add_source(File::from_str(text, FileFormat::Toml)), &Environment::new(), Credentials::Needed)
}

/// The configuration of a process that delivers everything to a mail catcher.
pub fn to_catcher(queue: &str, store: &str, catcher: SocketAddr) -> Result<Config, ConfigError> {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    load_text(&format!(
        "[queue]\nurl = {}\n[store]\nurl = {}\nsingle_machine = true\n[transport.catcher]\nkind = \"smtp\"\nhost = \"{}\"\nport = {}\ntls = \"none\"\n\
         [[route]]\nname = \"everything\"\nsend = [\"catcher\"]\n",
        quoted(queue),
        quoted(store),
        catcher.ip(),
        catcher.port(),
    ))
}

fn build(
    layers: ConfigBuilder<DefaultState>,
    environment: &Environment,
    credentials: Credentials,
) -> Result<Config, ConfigError> {
    // No `try_parsing`: it would turn the password 00123 into a number. The fields themselves say what they want.
    let variables =
        config::Environment::with_prefix("POSTRIDER").prefix_separator("_").separator("__").ignore_empty(true).source(
            Some(
                environment.iter().filter(|(name, _)| is_setting(name)).map(|(k, v)| (k.clone(), v.clone())).collect(),
            ),
        );
    let (layers, mut files) = with_tenants(layers, &variables)?;
    let mut tree = layers.add_source(variables).build()?;
    let ramps = ramp::resolve(&mut tree.cache, Timestamp::now())?;
    files_of(&tree.clone().try_deserialize()?, &mut files);
    let files = files.into_iter().collect();
    let mut unknown = BTreeSet::new();
    let transports = tree.get_table("transport").or_else(|error| match error {
        config::ConfigError::NotFound(_) => Ok(config::Map::new()),
        error => Err(error),
    })?;
    let (mut sections, mut paces, mut without_credentials) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (name, mut value) in transports {
        let at = format!("transport.{name}");
        let pace = take(&mut value, &PACE_KEYS);
        if credentials == Credentials::MayBeMissing && credentials::leave_out(&mut value, environment) {
            without_credentials.push(name.clone());
        }
        paces.insert(name.clone(), read(&at, pace, &mut unknown)?);
        sections.insert(name, transport(&at, value, &mut unknown)?);
    }
    without_credentials.sort_unstable();
    let settings: Settings = read("", tree, &mut unknown)?;
    unknown.retain(|path| path != "transport");
    if !unknown.is_empty() {
        return Err(ConfigError::Unknown(unknown.into_iter().collect()));
    }
    let config = check::check(settings, sections, paces, environment)?;
    Ok(Config { files, without_credentials, ramps, ..config })
}

/// Adds the tenants that have a file of their own, in the folder that the setting names. Gives what is to be watched for changes.
fn with_tenants(
    mut layers: ConfigBuilder<DefaultState>,
    variables: &config::Environment,
) -> Result<(ConfigBuilder<DefaultState>, BTreeSet<PathBuf>), ConfigError> {
    let mut files = BTreeSet::new();
    let Ok(folder) = layers.clone().add_source(variables.clone()).build()?.get_string("limits.tenants_folder") else {
        return Ok((layers, files));
    };
    let wrong = |path: &Path, error: std::io::Error| {
        ConfigError::value("limits.tenants_folder", format!("{}: {error}", path.display()))
    };
    let folder = PathBuf::from(folder);
    for entry in fs::read_dir(&folder).map_err(|error| wrong(&folder, error))? {
        let path = entry.map_err(|error| wrong(&folder, error))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.insert(path);
        }
    }
    for path in &files {
        let text = fs::read_to_string(path).map_err(|error| wrong(path, error))?;
        ConfigText { path, text: &text }.must_be_toml()?;
        let name = path.file_stem().map(|name| name.to_string_lossy()).unwrap_or_default();
        let name = serde_json::to_string(&name).unwrap_or_default();
        layers = layers.add_source(File::from_str(&format!("[limits.tenants.{name}]\n{text}"), FileFormat::Toml));
    }
    // A file that comes or goes changes the folder.
    files.insert(folder);
    Ok((layers, files))
}

/// The parser does not say where a number is too large.
fn located(error: ConfigError, file: &ConfigText<'_>) -> ConfigError {
    let is_meant = error.to_string().contains("number too large");
    let Some((n, line)) = file.text.lines().enumerate().find(|(_, line)| is_meant && is_too_large(line)) else {
        return error;
    };
    let key = line.split('=').next().unwrap_or_default().trim();
    let place = format!("{} line {}", file.path.display(), n + 1);
    ConfigError::value(key, format!("a number is too large; the largest is {} ({place})", i64::MAX))
}

/// Whether a line of TOML sets something to a whole number that is too large.
fn is_too_large(line: &str) -> bool {
    let Some((_, value)) = line.split_once('=') else { return false };
    let mut numbers = value.split(|c: char| !c.is_ascii_digit() && c != '_').map(|number| number.replace('_', ""));
    numbers.any(|number| !number.is_empty() && number.parse::<i64>().is_err())
}

/// The files that a configuration names: `{ file = ".." }` wherever a secret may stand, and authorities.
fn files_of(value: &serde_json::Value, files: &mut BTreeSet<PathBuf>) {
    match value {
        serde_json::Value::Object(table) => {
            for (key, value) in table {
                match value.as_str() {
                    Some(path) if matches!(key.as_str(), "file" | "ca_file") => drop(files.insert(path.into())),
                    _ => files_of(value, files),
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| files_of(value, files)),
        _ => {}
    }
}

/// Takes these keys out of a table into one of their own.
fn take(value: &mut config::Value, keys: &[&str]) -> config::Value {
    let mut taken = config::Map::new();
    if let config::ValueKind::Table(table) = &mut value.kind {
        taken.extend(keys.iter().filter_map(|key| table.remove_entry(*key)));
    }
    config::Value::new(None, taken)
}

/// The section of one transport, in the form of its kind.
fn transport(at: &str, value: config::Value, unknown: &mut BTreeSet<String>) -> Result<Section, ConfigError> {
    let kind = value.clone().into_table().map_err(|error| ConfigError::value(at, error))?.remove("kind");
    let kind = kind.ok_or_else(|| ConfigError::value(format!("{at}.kind"), "is missing"))?;
    let word = kind.into_string().map_err(|error| ConfigError::value(format!("{at}.kind"), error))?;
    if word == TransportType::Smtp.as_str() {
        return Ok(Section::Relay(Box::new(read(at, value, unknown)?)));
    }
    let Some(kind) = postrider_providers::find(&word) else {
        let known: Vec<&str> = postrider_providers::ALL.iter().map(|kind| kind.kind).collect();
        let reason = format!("`{word}` is not a kind of transport; known: smtp, {}", known.join(", "));
        return Err(ConfigError::value(format!("{at}.kind"), reason));
    };
    let mut value = value;
    let own = own_settings(at, kind, &mut value, unknown)?;
    Ok(Section::Provider(kind, Box::new(read(at, value, unknown)?), own))
}

/// Takes the settings out of a section that only its kind of provider has. Those of other kinds are mistakes.
fn own_settings(
    at: &str,
    kind: &'static Description,
    value: &mut config::Value,
    unknown: &mut BTreeSet<String>,
) -> Result<BTreeMap<&'static str, OwnSetting>, ConfigError> {
    let names: Vec<&str> = kind.settings.iter().map(|one| one.name).collect();
    let taken = take(value, &names).into_table().unwrap_or_default();
    let config::ValueKind::Table(left) = &value.kind else { return Ok(BTreeMap::new()) };
    let others = postrider_providers::ALL.iter().flat_map(|one| one.settings);
    if let Some(foreign) = { others }.find(|one| left.contains_key(one.name)) {
        let reason = format!("is no setting of a {} transport", kind.kind);
        return Err(ConfigError::value(format!("{at}.{}", foreign.name), reason));
    }
    let mut own = BTreeMap::new();
    for (name, value) in taken {
        let Some(setting) = kind.settings.iter().find(|one| one.name == name) else { continue };
        let at = format!("{at}.{name}");
        let setting_value = match setting.form {
            SettingForm::Secret => OwnSetting::Secret(read(&at, value, unknown)?),
            SettingForm::Text => OwnSetting::Text(read(&at, value, unknown)?),
            SettingForm::Flag => OwnSetting::Plain(SettingValue::Flag(read(&at, value, unknown)?)),
            SettingForm::Path => OwnSetting::Plain(SettingValue::Path(read(&at, value, unknown)?)),
            SettingForm::Url => OwnSetting::Plain(SettingValue::Url(read(&at, value, unknown)?)),
        };
        own.insert(setting.name, setting_value);
    }
    Ok(own)
}

/// Reads a part of the tree; errors and unknown keys are named by their whole path.
fn read<'de, T: Deserialize<'de>>(
    at: &str,
    tree: impl Deserializer<'de, Error = config::ConfigError>,
    unknown: &mut BTreeSet<String>,
) -> Result<T, ConfigError> {
    let whole = |path: String| match (at, path.as_str()) {
        ("", _) => path,
        (at, "" | ".") => at.to_owned(),
        (at, path) => format!("{at}.{path}"),
    };
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(tree, &mut track);
    let value = serde_ignored::deserialize(reader, |path| {
        unknown.insert(whole(path.to_string()));
    });
    value.map_err(|error: config::ConfigError| match error {
        // It comes as the whole path of the field, or as a part of it.
        config::ConfigError::NotFound(field) => {
            let field = field.rsplit(['.', ']']).next().unwrap_or_default().to_owned();
            ConfigError::value(whole(track.path().to_string()), format!("`{field}` is missing"))
        }
        // The key stands in front already, with its whole path.
        error => {
            let text = error.to_string();
            let what = text.split(" for key `").next().unwrap_or_default();
            ConfigError::value(whole(track.path().to_string()), words::in_words(what))
        }
    })
}

/// `POSTRIDER_SECTION__KEY`; other variables with the prefix (those of tests, for example) are not settings.
fn is_setting(name: &str) -> bool {
    name.starts_with("POSTRIDER_") && name.contains("__")
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
