//! Credentials: read from where they stand, or left out where a command does not need them: `postrider status` on a laptop needs no password of a relay.

use std::fs;

use config::{Value, ValueKind};
use secrecy::SecretString;

use super::{ConfigError, Environment, settings::Secret};

/// Stands for a credential that is not here. Nothing is ever sent with it.
const LEFT_OUT: &str = "not-here";

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
    match secret {
        Secret::Text(text) => Ok(text.into()),
        Secret::Env(place) => match environment.get(&place.env) {
            Some(value) => Ok(value.clone().into()),
            None => Err(ConfigError::value(path, format!("the variable {} is not set", place.env))),
        },
        Secret::File(place) => match fs::read_to_string(&place.file) {
            Ok(value) => Ok(value.trim_end_matches(['\r', '\n']).to_owned().into()),
            Err(error) => Err(ConfigError::value(path, format!("{}: {error}", place.file.display()))),
        },
    }
}
