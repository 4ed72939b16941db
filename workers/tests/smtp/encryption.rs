//! TLS: never downgraded, never to a stranger.

use std::{path::PathBuf, sync::Arc, time::Duration};

use postrider_workers::{
    policy::outcome::{Class, Outcome, Stage},
    transport::smtp::{Relay, Settings, StageLimits, TlsMode},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    FLIGHT, GO_ON, ON_THE_WIRE, PIPELINING, assert_accepted, assert_refused, assert_unknown, deliver, deliver_to,
    of_session, server::Server, session,
};

const STARTTLS: &str = "250-relay.example\r\n250 STARTTLS\r\n";

/// A relay's own certificate: `config` for the relay, `ca_file` for who trusts it.
struct Certificate {
    config: Arc<rustls::ServerConfig>,
    ca_file: PathBuf,
    _folder: tempfile::TempDir,
}

fn certificate(name: &str) -> Certificate {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    Certificate { config: Arc::new(config), ca_file, _folder: folder }
}

fn relay(port: u16, tls: TlsMode, ca_file: Option<PathBuf>) -> Relay {
    Relay::new(of_session(Settings { tls, ca_file, ..session(port) })).unwrap()
}

/// A relay with this certificate, encrypted from the first byte, that takes two messages.
async fn implicit(config: Arc<rustls::ServerConfig>) -> Server {
    Server::start(move |conn| {
        let config = Arc::clone(&config);
        async move {
            let Ok(mut conn) = conn.tls(config).await else { return };
            conn.welcome(PIPELINING).await;
            conn.take().await;
            conn.take().await;
            conn.rest().await;
        }
    })
    .await
}

#[tokio::test]
async fn implicit_tls_encrypts_from_the_first_byte_and_its_connection_is_reused() {
    let certificate = certificate("127.0.0.1");
    let server = implicit(Arc::clone(&certificate.config)).await;
    let relay = relay(server.port, TlsMode::Implicit, Some(certificate.ca_file.clone()));
    assert_accepted(&deliver(&relay).await);
    assert_accepted(&deliver(&relay).await);
    assert_eq!(server.accepted(), 1);
    drop(relay);
    server.finish().await;
}

#[tokio::test]
async fn a_certificate_for_another_name_needs_a_person() {
    let certificate = certificate("other.example");
    let server = implicit(Arc::clone(&certificate.config)).await;
    let outcome = deliver(&relay(server.port, TlsMode::Implicit, Some(certificate.ca_file.clone()))).await;
    let text = &assert_refused(&outcome, Class::Config, Stage::Tls).text;
    assert!(text.contains("another name than 127.0.0.1") && text.contains("other.example"), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_needs_a_person() {
    let (theirs, ours) = (certificate("127.0.0.1"), certificate("127.0.0.1"));
    let server = implicit(Arc::clone(&theirs.config)).await;
    let outcome = deliver(&relay(server.port, TlsMode::Implicit, Some(ours.ca_file.clone()))).await;
    assert_refused(&outcome, Class::Config, Stage::Tls);
    server.finish().await;
}

#[tokio::test]
async fn after_starttls_the_relay_is_asked_again_what_it_offers() {
    let certificate = certificate("127.0.0.1");
    let config = Arc::clone(&certificate.config);
    let server = Server::start(move |mut conn| {
        let config = Arc::clone(&config);
        async move {
            conn.welcome(STARTTLS).await;
            conn.expect("STARTTLS\r\n").await;
            conn.say("220 2.0.0 Ready\r\n").await;
            let mut conn = conn.tls(config).await.unwrap();
            conn.expect("EHLO worker.example\r\n").await;
            conn.say(PIPELINING).await;
            conn.take().await;
            conn.rest().await;
        }
    })
    .await;
    let relay = relay(server.port, TlsMode::StartTls, Some(certificate.ca_file.clone()));
    assert_accepted(&deliver(&relay).await);
    drop(relay);
    server.finish().await;
}

/// A relay that answers EHLO and STARTTLS like this and must not see anything else in clear.
async fn starttls(offers: &'static str, answer: Option<&'static str>) -> Outcome {
    let certificate = certificate("127.0.0.1");
    let server = Server::start(move |mut conn| async move {
        conn.welcome(offers).await;
        if let Some(answer) = answer {
            conn.expect("STARTTLS\r\n").await;
            conn.say(answer).await;
        }
        assert_eq!(conn.rest().await, "");
    })
    .await;
    let outcome = deliver(&relay(server.port, TlsMode::StartTls, Some(certificate.ca_file.clone()))).await;
    server.finish().await;
    outcome
}

#[tokio::test]
async fn a_relay_without_starttls_gets_nothing() {
    let outcome = starttls(PIPELINING, None).await;
    let text = &assert_refused(&outcome, Class::Config, Stage::Tls).text;
    assert_eq!(text, "the relay does not offer STARTTLS");
}

#[tokio::test]
async fn a_relay_that_refuses_starttls_gets_nothing() {
    assert_refused(&starttls(STARTTLS, Some("502 5.5.1 no\r\n")).await, Class::Config, Stage::Tls);
    assert_refused(&starttls(STARTTLS, Some("454 4.7.0 not now\r\n")).await, Class::Unavailable, Stage::Tls);
}

#[tokio::test]
async fn replies_slipped_in_before_the_encryption_are_noticed() {
    let outcome = starttls(STARTTLS, Some("220 Ready\r\n250-relay.example\r\n250 AUTH PLAIN\r\n")).await;
    assert!(assert_refused(&outcome, Class::Config, Stage::Tls).text.contains("in clear"));
}

#[tokio::test]
async fn a_relay_that_speaks_no_tls_or_nothing_at_all_is_given_up() {
    let server = Server::start(|mut conn| async move {
        if conn.number == 0 {
            conn.say("220 relay.example ESMTP\r\n").await;
        }
        conn.rest().await;
    })
    .await;
    let limits = StageLimits { tls: Duration::from_millis(100), ..StageLimits::default() };
    let session = Settings { tls: TlsMode::Implicit, limits, ..session(server.port) };
    let relay = Relay::new(of_session(session)).unwrap();
    let outcome = deliver(&relay).await;
    let text = &assert_refused(&outcome, Class::Config, Stage::Tls).text;
    assert!(text.contains("does not speak TLS here; is this a port for STARTTLS"), "{text}");
    assert_refused(&deliver(&relay).await, Class::Unavailable, Stage::Tls);
    server.finish().await;
}

#[tokio::test]
async fn a_large_message_arrives_whole_through_tls_and_a_hang_up_after_it_is_unknown() {
    let certificate = certificate("127.0.0.1");
    let config = Arc::clone(&certificate.config);
    let message = ("y".repeat(70) + "\r\n").repeat(20_000);
    let expected = message.clone() + ".\r\n";
    let server = Server::start(move |conn| {
        let (config, expected) = (Arc::clone(&config), expected.clone());
        async move {
            let mut conn = conn.tls(config).await.unwrap();
            conn.welcome(PIPELINING).await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            conn.expect(&expected).await;
            conn.say("250 Ok\r\n").await;
            conn.expect(FLIGHT).await;
            conn.say(GO_ON).await;
            conn.expect(ON_THE_WIRE).await;
        }
    })
    .await;
    let relay = relay(server.port, TlsMode::Implicit, Some(certificate.ca_file.clone()));
    assert_accepted(&deliver_to(&relay, &["ann"], message.as_bytes()).await);
    assert_unknown(&deliver(&relay).await);
    server.finish().await;
}
