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
mod tests {
    use std::io::Write as _;

    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::TransportKind;

    const RELAY: &str = "[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\n";
    const CATCH_ALL: &str = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load_from(Some(file.path()), environment).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &[&str]) {
        let error = read(text, &[]).expect_err("must be refused");
        for part in expected {
            assert!(error.contains(part), "expected {part:?} in: {error}");
        }
    }

    #[test]
    fn users_of_the_broker_are_told_their_tenants_and_a_file_has_none() {
        let text =
            |url: &str, tenants: &str| format!("[queue]\nurl = \"{url}\"\ntenants = {tenants}\n{RELAY}{CATCH_ALL}");
        let tenants = "{ Shop-API = \"shop\", office = [\"shop\", \"news\"], platform = \"*\" }";
        let config = read(&text("amqp://broker", tenants), &[]).unwrap();
        let publishers = config.queue.publishers.unwrap();
        assert_eq!(publishers.keys().map(String::as_str).collect::<Vec<_>>(), ["Shop-API", "office", "platform"]);
        assert_eq!(publishers["platform"], crate::policy::publisher::Tenants::Any);
        check_refused(&text("embedded:queue.db", tenants), &["queue.tenants"]);
        check_refused(&text("amqp://broker", "{ office = \"No Tenant\" }"), &["queue.tenants.office"]);
        check_refused(&text("amqp://broker", "{ office = 7 }"), &["queue.tenants"]);
    }

    #[test]
    fn defaults_alone_are_a_configuration() {
        let config = load_from(None, Environment::new()).unwrap();
        assert_eq!(config.retry.waits.len(), 7);
        assert!(config.transports.is_empty() && config.routes.is_empty());
    }

    #[test]
    fn the_commented_example_of_the_defaults_is_a_configuration() {
        // Settings and sections; explanations are prose, or indented.
        let is_setting = |line: &&str| {
            line.starts_with('[')
                || line.split_once(" = ").is_some_and(|(key, _)| !key.is_empty() && !key.contains(' '))
        };
        let example: String = DEFAULTS
            .lines()
            .skip_while(|line| !line.starts_with("# [transport.relay]"))
            .filter_map(|line| line.strip_prefix("# ").filter(is_setting))
            // Files that are not there.
            .map(|line| line.replace("{ file = \"/run/secrets/sendgrid\" }", "{ env = \"RELAY_PASSWORD\" }"))
            .fold(String::new(), |all, line| all + &line + "\n");
        let config = read(&example, &[("RELAY_PASSWORD", "s3cret")]).unwrap();
        assert_eq!((config.transports.len(), config.routes.list().len()), (2, 3));
    }

    #[test]
    fn the_environment_wins_over_the_file_and_keeps_passwords_as_they_are() {
        let text = format!("[queue]\nurl = \"amqp://file\"\n{RELAY}username = \"app\"\npassword = \"x\"\n{CATCH_ALL}");
        let environment = [("POSTRIDER_QUEUE__URL", "amqp://env"), ("POSTRIDER_TRANSPORT__RELAY__PASSWORD", "00123")];
        let config = read(&text, &environment).unwrap();
        assert_eq!(config.queue.url.expose_secret(), "amqp://env");
        let TransportKind::Smtp(smtp) = &config.transports[0].kind else { panic!("a relay") };
        assert_eq!(smtp.login.as_ref().unwrap().password.expose_secret(), "00123");
        assert!(!format!("{config:?}").contains("00123"), "Debug output shows no secret");
    }

    #[test]
    fn a_shared_queue_beside_a_ledger_of_this_machine_is_refused() {
        let local = read("[queue]\nurl = \"amqp://file\"\n", &[]).unwrap();
        let error = local.store_is_shared().unwrap_err().to_string();
        for part in ["`store.url`", "would send a job twice", "redis://host:6379/0", "store.single_machine = true"] {
            assert!(error.contains(part), "{error}");
        }
        for sound in [
            "",
            "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"redis://r\"\n",
            "[queue]\nurl = \"amqp://file\"\n[store]\nurl = \"redis://r\"\n",
            "[queue]\nurl = \"amqp://file\"\n[store]\nsingle_machine = true\n",
        ] {
            read(sound, &[]).unwrap().store_is_shared().unwrap();
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        check_refused("[queue]\nprefech = 1\n[worker]\nthread = 2\n", &["queue.prefech", "worker.thread"]);
        check_refused(&format!("{RELAY}hots = \"x\"\n{CATCH_ALL}"), &["transport.relay.hots"]);
    }

    #[test]
    fn wrong_types_name_the_key_and_the_file() {
        check_refused("[queue]\nshards = \"many\"\n", &["queue.shards", ".toml"]);
        check_refused("[retry]\nconfig_wait = \"soon\"\n", &["retry.config_wait", "duration such as"]);
        check_refused("[retry]\nconfig_wait = \"4000d\"\n", &["retry.config_wait", "at most 3650d"]);
        check_refused("[store]\nretention = \"0s\"\n", &["store.retention", "at least 1s"]);
        check_refused("[store]\nlease = \"11m\"\n", &["store.lease", "at most 10m"]);
        check_refused("[retry]\nschedule = [\"1m\", \"13d\"]\n", &["retry.schedule", "at most 12d"]);
        let error = read("[worker]\nthreads = \"x\"\n", &[]).unwrap_err();
        assert!(error.starts_with("setting `worker.threads`: ") && !error.contains("for key"), "{error}");
        check_refused("[queue\n", &[".toml line 1: "]);
        check_refused(
            "\n[queue]\nulr = \"x\"\n",
            &["unknown setting `queue.ulr` in ", ".toml line 3; did you mean `url`?"],
        );
        check_refused("[worker]\ntransactional = 70000\n", &["a whole number from 0 to 65535", ".toml line 2)"]);
        let from_variable = read("", &[("POSTRIDER_WORKER__THREADS", "many")]).unwrap_err();
        assert!(from_variable.contains("(the variable POSTRIDER_WORKER__THREADS)"), "{from_variable}");
        let large = format!("{RELAY}connections_total = 99_999_999_999_999_999_999\n{CATCH_ALL}");
        check_refused(&large, &["`connections_total`", "too large", "line 4", ".toml"]);
    }

    #[test]
    fn addresses_and_levels_are_read_before_anything_connects() {
        check_refused("[queue]\nurl = \"amqb://broker\"\n", &["`queue.url`", "amqp://", "embedded:", "line 2"]);
        check_refused("[store]\nurl = \"http://redis\"\n", &["`store.url`", "redis+cluster", "line 2"]);
        check_refused("[store]\nurl = \"embedded:\"\n", &["`store.url`", "embedded:FILE"]);
        for level in ["verbose", "info,postrider_workers=loud", ""] {
            check_refused(&format!("[log]\nlevel = \"{level}\"\n"), &["`log.level`", "debug", "line 2"]);
        }
        for level in ["WARN", "info,postrider_workers=debug", "off"] {
            read(&format!("[log]\nlevel = \"{level}\"\n"), &[]).unwrap();
        }
    }

    #[test]
    fn a_port_that_speaks_another_kind_of_tls_is_doubted() {
        let relay = |more: &str| read(&format!("{RELAY}{more}{CATCH_ALL}"), &[]).unwrap().warnings();
        assert_eq!(relay(""), Vec::<String>::new());
        assert!(relay("port = 465\n")[0].contains("tls = \"implicit\""));
        assert!(relay("port = 587\ntls = \"implicit\"\n")[0].contains("tls = \"starttls\""));
    }

    #[test]
    fn routes_must_be_complete() {
        check_refused(&format!("{RELAY}[[route]]\nname = \"a\"\nsend = [\"rely\"]\n"), &["route `a`", "rely", "relay"]);
        let bulk = "[[route]]\nname = \"a\"\nwhen = { lane = \"bulk\" }\nsend = [\"relay\"]\n";
        check_refused(&format!("{RELAY}{bulk}"), &["catch-all"]);
        check_refused(&format!("{RELAY}{CATCH_ALL}{bulk}"), &["route `a`", "can never match"]);
        check_refused(&format!("{RELAY}{CATCH_ALL}{CATCH_ALL}"), &["route `all`"]);
        check_refused(
            &format!("{RELAY}{CATCH_ALL}[transport.b]\nkind = \"smtp\"\nhost = \"b\"\n"),
            &["transport.b", "no route"],
        );
        check_refused(CATCH_ALL, &["route `all`", "relay"]);
    }

    #[test]
    fn transports_must_be_complete() {
        check_refused(&format!("[transport.relay]\nkind = \"smtp\"\n{CATCH_ALL}"), &["transport.relay.host"]);
        check_refused(
            &format!("[transport.relay]\nkind = \"pigeon\"\n{CATCH_ALL}"),
            &["transport.relay.kind", "pigeon"],
        );
        check_refused(&format!("{RELAY}username = \"app\"\n{CATCH_ALL}"), &["transport.relay.password"]);
        check_refused(&format!("{RELAY}connections = 0\n{CATCH_ALL}"), &["transport.relay.connections"]);
    }

    #[test]
    fn a_command_that_only_looks_needs_no_credentials_of_transports() {
        let relay = format!("{RELAY}username = \"app\"\npassword = {{ env = \"NOT_SET\" }}\n");
        let hook = "[transport.hook]\nkind = \"webhook\"\nbase_url = \"https://hooks.example\"\nsecret = { file = \"/nonexistent/x\" }\n";
        let text = format!("{relay}{hook}{}", CATCH_ALL.replace("[\"relay\"]", "[\"relay\", \"hook\"]"));
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let load = |credentials| load_with(Some(file.path()), Environment::new(), credentials);
        assert!(load(Credentials::Needed).is_err());
        let config = load(Credentials::MayBeMissing).unwrap();
        assert_eq!(config.without_credentials, ["hook", "relay"]);
        // What the command itself connects to is needed.
        fs::write(file.path(), "[queue]\nurl = { env = \"NOT_SET\" }\n").unwrap();
        assert!(load(Credentials::MayBeMissing).is_err());
    }

    #[test]
    fn a_key_or_an_address_that_holds_one_may_stand_elsewhere() {
        let text = format!(
            "{RELAY}username = {{ env = \"ID\" }}\npassword = {{ env = \"KEY\" }}\n\
             [transport.hook]\nkind = \"webhook\"\nbase_url = {{ env = \"HOOK\" }}\nproxy = {{ env = \"PROXY\" }}\nsecret = {{ env = \"KEY\" }}\n\
             [transport.amazon]\nkind = \"ses\"\nregion = \"eu-central-1\"\naccess_key_id = {{ env = \"ID\" }}\nsecret_access_key = {{ env = \"KEY\" }}\n{}",
            CATCH_ALL.replace("[\"relay\"]", "[\"relay\", \"hook\", \"amazon\"]")
        );
        let environment = [
            ("ID", "\u{feff}the-id\n"),
            ("KEY", "k3y-k3y"),
            ("HOOK", "https://hooks.example/s3cr3t-s3cr3t-s3cr3t"),
            ("PROXY", "http://user:pr0xy@proxy:3128"),
        ];
        let config = read(&text, &environment).unwrap();
        let TransportKind::Smtp(smtp) = &config.transports[2].kind else { panic!("a relay") };
        assert_eq!(smtp.login.as_ref().unwrap().username, "the-id");
        let hidden: Vec<_> = config.unspeakable().iter().map(|one| one.expose_secret().to_owned()).collect();
        assert!(
            hidden.contains(&"pr0xy".to_owned()) && hidden.contains(&"s3cr3t-s3cr3t-s3cr3t".to_owned()),
            "{hidden:?}"
        );
        let error = read(&text, &environment[..3]).unwrap_err();
        assert!(error.contains("transport.hook.proxy") && error.contains("PROXY is not set"), "{error}");
        let error = read(&text, &[environment[0], ("KEY", "a\nb"), environment[2], environment[3]]).unwrap_err();
        assert!(error.contains("line end"), "{error}");
    }

    #[test]
    fn each_tenant_may_have_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shop.toml"), "rate = \"20/s\"\nweight = 2\n").unwrap();
        fs::write(folder.path().join("README"), "no tenant").unwrap();
        let text = format!(
            "[limits]\ntenants_folder = \"{}\"\n[limits.tenants.news]\nweight = 0.5\n",
            folder.path().display()
        );
        let config = read(&text, &[]).unwrap();
        assert_eq!(config.limits.tenants.keys().collect::<Vec<_>>(), ["news", "shop"]);
        assert!(
            config.files.contains(&folder.path().join("shop.toml")) && config.files.contains(&folder.path().to_owned())
        );
        fs::write(folder.path().join("shop.toml"), "rate = \"20/s\"\nweigth = 2\n").unwrap();
        assert!(read(&text, &[]).unwrap_err().contains("limits.tenants.shop.weigth"));
        fs::write(folder.path().join("shop.toml"), "rate = \n").unwrap();
        assert!(read(&text, &[]).unwrap_err().contains("shop.toml line 1: "));
        check_refused("[limits]\ntenants_folder = \"/nonexistent\"\n", &["`limits.tenants_folder`", "/nonexistent"]);
    }

    #[test]
    fn a_missing_secret_says_where_it_was_looked_for() {
        let with = |secret: &str| format!("{RELAY}username = \"app\"\npassword = {secret}\n{CATCH_ALL}");
        check_refused(&with("{ env = \"NOT_SET\" }"), &["transport.relay.password", "NOT_SET"]);
        check_refused(&with("{ file = \"/nonexistent/x\" }"), &["transport.relay.password", "/nonexistent/x"]);
    }
}
