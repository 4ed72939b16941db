//! The ways out. Each transport takes a composed message and answers with an [`Outcome`].

pub mod smtp;

use postrider_schemas::{EmailAddress, Job};

use crate::{
    compose::Composed,
    config::{Mechanism, SmtpConfig, Tls, TransportConfig, TransportKind},
    outcome::{Outcome, RecipientRefusal},
};

/// A configured way out.
pub struct Transport {
    /// Its name in the configuration.
    pub name: String,
    way: Way,
}

enum Way {
    Smtp(smtp::Relay),
}

impl Transport {
    /// Sets a transport up; connects to nothing yet.
    pub fn new(config: &TransportConfig) -> Result<Self, smtp::RelayError> {
        let TransportKind::Smtp(smtp) = &config.kind;
        Ok(Self { name: config.name.clone(), way: Way::Smtp(smtp::Relay::new(relay_settings(smtp))?) })
    }

    /// Delivers to the recipients at these envelope indices (all where absent), at most once. `may_submit` is asked before the first
    /// byte of the message goes out.
    pub async fn deliver<F>(&self, job: &Job, pending: Option<&[u8]>, composed: &Composed, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let all = job.recipients();
        let indices: Vec<usize> = match pending {
            None => (0..all.len()).collect(),
            Some(list) => list.iter().map(|index| usize::from(*index)).filter(|index| *index < all.len()).collect(),
        };
        let recipients: Vec<&EmailAddress> = indices.iter().map(|index| all[*index].address).collect();
        let Way::Smtp(relay) = &self.way;
        let mail = smtp::Mail { from: Some(job.from().address()), recipients: &recipients, message: &composed.message };
        in_terms_of_the_job(relay.deliver(mail, may_submit).await, &indices)
    }

    /// Says goodbye on idle connections, within a limit of its own.
    pub async fn close(&self) {
        let Way::Smtp(relay) = &self.way;
        relay.close().await;
    }
}

/// Transports name recipients by their position in the call; a job names them by their position in its envelope.
fn in_terms_of_the_job(outcome: Outcome, indices: &[usize]) -> Outcome {
    let rename = |list: Vec<RecipientRefusal>| {
        list.into_iter()
            .filter_map(|one| Some(RecipientRefusal { index: *indices.get(one.index)?, refusal: one.refusal }))
            .collect()
    };
    match outcome {
        Outcome::Accepted { receipt, refused } => Outcome::Accepted { receipt, refused: rename(refused) },
        Outcome::Refused { refusal, recipients } => Outcome::Refused { refusal, recipients: rename(recipients) },
        other => other,
    }
}

fn relay_settings(smtp: &SmtpConfig) -> smtp::RelaySettings {
    smtp::RelaySettings {
        host: smtp.host.clone(),
        port: smtp.port,
        tls: match smtp.tls {
            Tls::None => smtp::TlsMode::None,
            Tls::Starttls => smtp::TlsMode::StartTls,
            Tls::Implicit => smtp::TlsMode::Implicit,
        },
        ca_file: smtp.ca_file.clone(),
        hello: smtp.hello.clone().unwrap_or_default(),
        auth: smtp.login.as_ref().map(|login| smtp::Auth {
            username: login.username.clone(),
            password: login.password.clone(),
            mechanism: match login.mechanism {
                Mechanism::Auto => smtp::AuthMechanism::Auto,
                Mechanism::Plain => smtp::AuthMechanism::Plain,
                Mechanism::Login => smtp::AuthMechanism::Login,
                Mechanism::Xoauth2 => smtp::AuthMechanism::Xoauth2,
            },
        }),
        allow_plaintext_auth: smtp.plaintext_auth,
        connections: smtp.connections,
        messages_per_connection: smtp.messages_per_connection,
        idle: smtp.idle,
        limits: smtp::StageLimits {
            connect: smtp.connect_timeout,
            tls: smtp.connect_timeout,
            command: smtp.command_timeout,
            data: smtp.command_timeout,
            body: smtp.command_timeout,
            answer: smtp.final_timeout,
            ..smtp::StageLimits::default()
        },
    }
}
