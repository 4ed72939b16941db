//! What a relay is told, and how its connections are kept.

use std::{sync::Arc, time::Duration};

use postrider_smtp::{Auth, AuthMechanism, Settings, SettingsError, StageLimits, TlsMode};

use crate::{
    config::{Mechanism, SmtpConfig, Tls},
    policy::answers::Answers,
};

/// How long a message may wait for a connection.
const LINE_LIMIT: Duration = Duration::from_mins(5);

/// How to reach a relay and how to treat it.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// How one session is opened and led.
    pub session: Settings,
    /// Most connections open at once, at least 1.
    pub connections: usize,
    /// Most messages on one connection, at least 1.
    pub messages_per_connection: u32,
    /// How long an unused connection stays open.
    pub idle: Duration,
    /// How long a message may wait for one of the connections.
    pub line: Duration,
    /// Whom a reply is about.
    pub answers: Arc<Answers>,
}

impl RelaySettings {
    /// Most connections, an upper bound that a semaphore can hold.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let wrong = |setting, reason| Err(SettingsError::Setting { setting, reason });
        if self.connections == 0 || self.connections > tokio::sync::Semaphore::MAX_PERMITS {
            return wrong("connections", "must be at least 1 and not absurdly many");
        }
        if self.messages_per_connection == 0 {
            return wrong("messages_per_connection", "must be at least 1");
        }
        Ok(())
    }
}

impl From<&SmtpConfig> for RelaySettings {
    fn from(smtp: &SmtpConfig) -> Self {
        let session = Settings {
            host: smtp.host.clone(),
            port: smtp.port,
            tls: match smtp.tls {
                Tls::None => TlsMode::None,
                Tls::Starttls => TlsMode::StartTls,
                Tls::Implicit => TlsMode::Implicit,
            },
            ca_file: smtp.ca_file.clone(),
            hello: smtp.hello.clone().unwrap_or_default(),
            auth: smtp.login.as_ref().map(|login| Auth {
                username: login.username.clone(),
                password: login.password.clone(),
                mechanism: match login.mechanism {
                    Mechanism::Auto => AuthMechanism::Auto,
                    Mechanism::Plain => AuthMechanism::Plain,
                    Mechanism::Login => AuthMechanism::Login,
                    Mechanism::Xoauth2 => AuthMechanism::Xoauth2,
                },
            }),
            allow_plaintext_auth: smtp.plaintext_auth,
            pipelining: smtp.pipelining,
            limits: StageLimits {
                connect: smtp.connect_timeout,
                tls: smtp.connect_timeout,
                command: smtp.command_timeout,
                data: smtp.command_timeout,
                body: smtp.command_timeout,
                answer: smtp.final_timeout,
            },
        };
        Self {
            session,
            connections: smtp.connections,
            messages_per_connection: smtp.messages_per_connection,
            idle: smtp.idle,
            line: LINE_LIMIT,
            answers: Arc::clone(&smtp.answers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_cannot_work_is_refused_by_name() {
        let plain = RelaySettings {
            session: Settings::new("127.0.0.1", 25),
            connections: 4,
            messages_per_connection: 100,
            idle: Duration::from_secs(30),
            line: Duration::from_mins(5),
            answers: Arc::default(),
        };
        plain.check().unwrap();
        let refused = |settings: RelaySettings| settings.check().unwrap_err().to_string();
        assert!(refused(RelaySettings { connections: 0, ..plain.clone() }).starts_with("`connections` "));
        assert!(
            refused(RelaySettings { messages_per_connection: 0, ..plain }).starts_with("`messages_per_connection` ")
        );
    }
}
