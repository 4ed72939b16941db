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

/// A secret, from where it stands. Editors and `echo` leave a byte order mark and line ends, and no secret holds one.
pub(super) fn secret(path: &str, secret: Secret, environment: &Environment) -> Result<SecretString, ConfigError> {
    let text = match secret {
        Secret::Text(text) => text,
        Secret::Env(place) => match environment.get(&place.env) {
            Some(value) => value.clone(),
            None => return Err(ConfigError::value(path, format!("the variable {} is not set", place.env))),
        },
        Secret::File(place) => fs::read_to_string(&place.file)
            .map_err(|error| ConfigError::value(path, format!("{}: {error}", place.file.display())))?,
    };
    let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
    if text.contains(char::is_control) {
        return Err(ConfigError::value(path, "holds a line end or another control character"));
    }
    Ok(text.to_owned().into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::settings::{SecretInEnv, SecretInFile};

    #[test]
    fn a_secret_loses_what_editors_leave_wherever_it_comes_from() {
        let folder = tempfile::tempdir().unwrap();
        let environment: Environment = [("S".to_owned(), "\u{feff}s3cret\r\n".to_owned())].into_iter().collect();
        let file = folder.path().join("secret");
        fs::write(&file, "\u{feff}s3cret\n").unwrap();
        for given in [
            Secret::Text("s3cret\n".to_owned()),
            Secret::Env(SecretInEnv { env: "S".to_owned() }),
            Secret::File(SecretInFile { file: file.clone() }),
        ] {
            assert_eq!(secret("key", given, &environment).unwrap().expose_secret(), "s3cret");
        }
        fs::write(&file, "first\nsecond\n").unwrap();
        let two = Secret::File(SecretInFile { file });
        let error = secret("transport.relay.password", two, &environment).unwrap_err().to_string();
        assert!(error.contains("transport.relay.password") && error.contains("line end"), "{error}");
        assert!(!error.contains("second"), "{error}");
    }
}
