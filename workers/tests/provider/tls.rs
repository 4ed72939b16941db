//! Calls over TLS.

use std::{io::Write as _, sync::Arc};

use postrider_workers::policy::outcome::Class;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use crate::{
    accepted, config, deliver, job, refused,
    server::{Server, ok},
    transport_of,
};

/// A server whose certificate is for `name`, and the file of its authority.
async fn server(name: &str) -> (Server, tempfile::NamedTempFile) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let answer = ok(json!({ "MessageID": "b7", "ErrorCode": 0, "Message": "OK" }));
    (Server::start_tls(TlsAcceptor::from(Arc::new(tls)), move |_, _| answer.clone()).await, file)
}

#[tokio::test]
async fn an_authority_from_the_configuration_is_trusted() {
    let (server, authority) = server("localhost").await;
    let mut settings = config("postmark", &format!("https://localhost:{}", server.port));
    settings.http.ca_file = Some(authority.path().to_owned());
    assert_eq!(accepted(&deliver(&transport_of(settings), &job(json!({}))).await), "b7");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_matter_for_a_person() {
    let (server, authority) = server("other.example").await;
    let mut settings = config("postmark", &format!("https://localhost:{}", server.port));
    settings.http.ca_file = Some(authority.path().to_owned());
    let outcome = deliver(&transport_of(settings), &job(json!({}))).await;
    assert_eq!(refused(&outcome), Class::Config);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_certificate_of_nobody_known_is_a_matter_for_a_person() {
    let (server, _authority) = server("localhost").await;
    let settings = config("postmark", &format!("https://localhost:{}", server.port));
    assert_eq!(refused(&deliver(&transport_of(settings), &job(json!({}))).await), Class::Config);
    assert!(server.seen().is_empty());
}
