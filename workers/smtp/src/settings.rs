//! How a server is reached, checked once. Holds no connection and reads no file.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};

/// How to reach a server and how to speak to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A name or an IP address; with TLS, the name that the certificate must bear.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Whether and when the connection is encrypted.
    pub tls: TlsMode,
    /// Certificates (PEM) to trust beside those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// The name for EHLO: a host name or an IP address; the connection's own address when empty.
    pub hello: String,
    /// Credentials, for a relay that wants them.
    pub auth: Option<Auth>,
    /// Allows credentials on an unencrypted connection to another machine.
    pub allow_plaintext_auth: bool,
    /// Send the envelope in one go where the server offers that.
    pub pipelining: bool,
    /// How long each stage may take.
    pub limits: StageLimits,
}

/// Whether and when a connection is encrypted. There is no "if offered": a downgrade is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    None,
    /// In clear until STARTTLS, which the relay must offer.
    StartTls,
    /// From the first byte (port 465).
    Implicit,
}

/// Credentials for a relay.
#[derive(Clone)]
pub struct Auth {
    /// The user name.
    pub username: String,
    /// The password; for XOAUTH2, the access token.
    pub password: SecretString,
    /// How they are presented.
    pub mechanism: AuthMechanism,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

/// How credentials are presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMechanism {
    /// PLAIN where it is offered, else LOGIN.
    Auto,
    /// PLAIN only.
    Plain,
    /// LOGIN only.
    Login,
    /// XOAUTH2 only; the password is an access token.
    Xoauth2,
}

/// How long each stage may take. The defaults stay near RFC 5321 4.5.3.2 where giving up early is dangerous (after the
/// dot, where it makes an unknown) and below it where it only costs another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageLimits {
    /// Name resolution and TCP connect, all addresses together.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// The greeting, and each reply to a command but DATA.
    pub command: Duration,
    /// The reply to DATA; also the wait for the permission to submit once that reply is there.
    pub data: Duration,
    /// Writing the message.
    pub body: Duration,
    /// The answer to the final dot.
    pub answer: Duration,
}

impl Default for StageLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            tls: Duration::from_secs(20),
            command: Duration::from_mins(1),
            data: Duration::from_mins(2),
            body: Duration::from_mins(3),
            answer: Duration::from_mins(10),
        }
    }
}

/// How long a reply is looked for that may explain why the message could not be written.
pub(crate) const PENDING_REPLY: Duration = Duration::from_secs(1);

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A setting has a value that cannot work.
    #[error("`{setting}` {reason}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The CA file cannot be read or holds no certificate.
    #[error("`ca_file` {}: {reason}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl Settings {
    /// For a server that asks for nothing: no TLS, no credentials, usual limits.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            tls: TlsMode::None,
            ca_file: None,
            hello: String::new(),
            auth: None,
            allow_plaintext_auth: false,
            pipelining: true,
            limits: StageLimits::default(),
        }
    }

    /// Checks everything that can be checked without a file or a connection.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let wrong = |setting, reason| Err(SettingsError::Setting { setting, reason });
        if self.host.is_empty() || self.host.contains(unfit_for_a_line) {
            return wrong("host", "must be a host name or an IP address");
        }
        if self.port == 0 {
            return wrong("port", "must not be 0");
        }
        if self.hello.contains(unfit_for_a_line) || !self.hello.is_ascii() {
            return wrong("hello", "must be a host name or an IP address, in ASCII");
        }
        let limits = &self.limits;
        let limits = [limits.connect, limits.tls, limits.command, limits.data, limits.body, limits.answer];
        if limits.contains(&Duration::ZERO) {
            return wrong("limits", "must all be longer than 0");
        }
        let Some(auth) = &self.auth else { return Ok(()) };
        if auth.username.is_empty() || auth.username.contains(char::is_control) {
            return wrong("username", "must not be empty nor hold control characters");
        }
        if auth.password.expose_secret().is_empty() || auth.password.expose_secret().contains(char::is_control) {
            return wrong("password", "must not be empty nor hold control characters");
        }
        if self.tls == TlsMode::None && !self.allow_plaintext_auth && !is_loopback(&self.host) {
            return wrong(
                "tls",
                "is none, and the credentials would cross the network in clear; use starttls or implicit, or set `plaintext_auth = true`",
            );
        }
        Ok(())
    }
}

fn unfit_for_a_line(c: char) -> bool {
    c.is_control() || c.is_whitespace()
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Settings {
        Settings::new("127.0.0.1", 25)
    }

    fn with_auth() -> Settings {
        let auth =
            Auth { username: "app".into(), password: "s3cret".to_owned().into(), mechanism: AuthMechanism::Auto };
        Settings { auth: Some(auth), ..plain() }
    }

    #[track_caller]
    fn refused(settings: &Settings, name: &str) {
        let text = settings.check().unwrap_err().to_string();
        assert!(text.starts_with(&format!("`{name}` ")), "{text}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        plain().check().unwrap();
        refused(&Settings { host: String::new(), ..plain() }, "host");
        refused(&Settings { port: 0, ..plain() }, "port");
        refused(&Settings { hello: "a\r\nMAIL".into(), ..plain() }, "hello");
        let limits = StageLimits { data: Duration::ZERO, ..StageLimits::default() };
        refused(&Settings { limits, ..plain() }, "limits");
    }

    #[test]
    fn credentials_never_cross_a_network_in_clear_unless_that_is_asked_for() {
        with_auth().check().unwrap();
        let remote = Settings { host: "smtp.example.com".into(), ..with_auth() };
        refused(&remote, "tls");
        Settings { tls: TlsMode::StartTls, ..remote.clone() }.check().unwrap();
        Settings { allow_plaintext_auth: true, ..remote }.check().unwrap();
    }

    #[test]
    fn neither_user_nor_password_shows_in_debug_output() {
        let text = format!("{:?}", with_auth());
        assert!(!text.contains("s3cret") && !text.contains("\"app\""), "{text}");
    }
}
