//! What a relay is told, checked once. Holds no connection and reads no file.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use crate::policy::answers::Answers;

/// How to reach a relay and how to treat it.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// A name or an IP address; with TLS, the name that the certificate must bear.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Whether and when the connection is encrypted.
    pub tls: TlsMode,
    /// Certificates (PEM) to trust beside those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// The name for EHLO: a host name or an IP address; the machine's name when empty.
    pub hello: String,
    /// Credentials, for a relay that wants them.
    pub auth: Option<Auth>,
    /// Allows credentials on an unencrypted connection to another machine.
    pub allow_plaintext_auth: bool,
    /// Most connections open at once, at least 1.
    pub connections: usize,
    /// Most messages on one connection, at least 1.
    pub messages_per_connection: u32,
    /// How long an unused connection stays open.
    pub idle: Duration,
    /// Send the envelope in one go where the relay offers that.
    pub pipelining: bool,
    /// Whom a reply is about.
    pub answers: Arc<Answers>,
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
    /// Waiting in line for one of the relay's connections.
    pub line: Duration,
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
            line: Duration::from_mins(5),
            connect: Duration::from_secs(20),
            tls: Duration::from_secs(20),
            command: Duration::from_mins(1),
            data: Duration::from_mins(2),
            body: Duration::from_mins(3),
            answer: Duration::from_mins(10),
        }
    }
}

impl StageLimits {
    /// The longest that one delivery to `recipients` recipients can take, the waiting line included: every stage at its
    /// limit, on a connection that had to be opened with STARTTLS and AUTH after an idle one turned out to be dead, and
    /// a reset at the end.
    pub fn longest(&self, recipients: usize) -> Duration {
        let recipients = u32::try_from(recipients).unwrap_or(u32::MAX);
        // Greeting, EHLO, HELO, STARTTLS, EHLO, HELO, three of AUTH, RSET, the lone dot; a write and a reply each. MAIL too,
        // once more on the dead connection.
        let commands = self.command.saturating_mul(2).saturating_mul(recipients.saturating_add(14));
        [self.line, self.connect, self.tls, self.data, self.data, self.body, self.answer, PENDING_REPLY]
            .into_iter()
            .fold(commands, Duration::saturating_add)
    }
}

/// How long a reply is looked for that may explain why the message could not be written.
pub(super) const PENDING_REPLY: Duration = Duration::from_secs(1);

/// Why a relay cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
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

impl RelaySettings {
    /// Checks everything that can be checked without a file or a connection.
    pub(super) fn check(&self) -> Result<(), RelayError> {
        let wrong = |setting, reason| Err(RelayError::Setting { setting, reason });
        if self.host.is_empty() || self.host.contains(unfit_for_a_line) {
            return wrong("host", "must be a host name or an IP address");
        }
        if self.port == 0 {
            return wrong("port", "must not be 0");
        }
        if self.hello.contains(unfit_for_a_line) || !self.hello.is_ascii() {
            return wrong("hello", "must be a host name or an IP address, in ASCII");
        }
        if self.connections == 0 || self.connections > tokio::sync::Semaphore::MAX_PERMITS {
            return wrong("connections", "must be at least 1 and not absurdly many");
        }
        if self.messages_per_connection == 0 {
            return wrong("messages_per_connection", "must be at least 1");
        }
        let limits = &self.limits;
        let limits = [limits.line, limits.connect, limits.tls, limits.command, limits.data, limits.body, limits.answer];
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
pub(super) mod tests {
    use super::*;

    /// Settings for a relay on this machine that asks for nothing.
    pub(in super::super) fn plain() -> RelaySettings {
        RelaySettings {
            host: "127.0.0.1".into(),
            port: 25,
            tls: TlsMode::None,
            ca_file: None,
            hello: "worker.example".into(),
            auth: None,
            allow_plaintext_auth: false,
            connections: 4,
            messages_per_connection: 100,
            idle: Duration::from_secs(30),
            pipelining: true,
            answers: crate::config::shipped_answers(),
            limits: StageLimits::default(),
        }
    }

    fn with_auth() -> RelaySettings {
        let auth =
            Auth { username: "app".into(), password: "s3cret".to_owned().into(), mechanism: AuthMechanism::Auto };
        RelaySettings { auth: Some(auth), ..plain() }
    }

    #[track_caller]
    fn refused(settings: &RelaySettings, name: &str) {
        let text = settings.check().unwrap_err().to_string();
        assert!(text.starts_with(&format!("`{name}` ")), "{text}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        plain().check().unwrap();
        refused(&RelaySettings { host: String::new(), ..plain() }, "host");
        refused(&RelaySettings { port: 0, ..plain() }, "port");
        refused(&RelaySettings { hello: "a\r\nMAIL".into(), ..plain() }, "hello");
        refused(&RelaySettings { connections: 0, ..plain() }, "connections");
        refused(&RelaySettings { messages_per_connection: 0, ..plain() }, "messages_per_connection");
        let limits = StageLimits { data: Duration::ZERO, ..StageLimits::default() };
        refused(&RelaySettings { limits, ..plain() }, "limits");
    }

    #[test]
    fn credentials_never_cross_a_network_in_clear_unless_that_is_asked_for() {
        with_auth().check().unwrap();
        let remote = RelaySettings { host: "smtp.example.com".into(), ..with_auth() };
        refused(&remote, "tls");
        RelaySettings { tls: TlsMode::StartTls, ..remote.clone() }.check().unwrap();
        RelaySettings { allow_plaintext_auth: true, ..remote }.check().unwrap();
    }

    #[test]
    fn neither_user_nor_password_shows_in_debug_output() {
        let text = format!("{:?}", with_auth());
        assert!(!text.contains("s3cret") && !text.contains("\"app\""), "{text}");
    }
}
