//! Credentials: read from where they stand, or left out where a command does not need them: `postrider status` on a laptop needs no password of a relay.

use std::fs;

use config::{Value, ValueKind};
use secrecy::SecretString;

use super::{ConfigError, Environment, settings::Secret};

/// Stands for a credential that is not here, or an address that holds one. Nothing is ever sent with it, or to it.
const LEFT_OUT: &str = "https://not-here.invalid";

/// Whether the credentials of transports have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Yes: mail is handed over with them.
    Needed,
    /// No: the command only looks.
    MayBeMissing,
}

/// Puts something in the place of each `{ env = ".." }` and `{ file = ".." }` that leads nowhere. True where there was one.
pub(super) fn leave_out(section: &mut Value, environment: &Environment) -> bool {
    let ValueKind::Table(table) = &mut section.kind else { return false };
    if table.len() == 1 {
        let text = |key: &str| table.get(key).and_then(|value| value.clone().into_string().ok());
        let is_missing = match (text("env"), text("file")) {
            (Some(name), _) => !environment.contains_key(&name),
            (_, Some(path)) => fs::File::open(path).is_err(),
            _ => false,
        };
        if is_missing {
            section.kind = ValueKind::String(LEFT_OUT.to_owned());
            return true;
        }
    }
    let mut any = false;
    if let ValueKind::Table(table) = &mut section.kind {
        for value in table.values_mut() {
            any |= leave_out(value, environment);
        }
    }
    any
}

/// A secret, from where it stands.
pub(super) fn secret(path: &str, secret: Secret, environment: &Environment) -> Result<SecretString, ConfigError> {
    let value = match secret {
        Secret::Text(text) => text,
        Secret::Env(place) => match environment.get(&place.env) {
            Some(value) => value.clone(),
            None => return Err(ConfigError::value(path, format!("the variable {} is not set", place.env))),
        },
        Secret::File(place) => match fs::read_to_string(&place.file) {
            Ok(value) => value,
            Err(error) => return Err(ConfigError::value(path, format!("{}: {error}", place.file.display()))),
        },
    };
    // An editor puts a byte order mark in front and a line end behind.
    let value = value.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
    if value.contains(['\r', '\n', '\0']) {
        return Err(ConfigError::value(path, "holds more than one line: is it the right file or variable?"));
    }
    Ok(value.to_owned().into())
}
