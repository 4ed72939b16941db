//! TLS to a relay: whom to trust, the handshake, and what its failures mean. No downgrade, no way to switch checks off.

use std::{io, path::Path, sync::Arc};

use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    failure::{SmtpFailure, SmtpTrouble},
    settings::{RelayError, RelaySettings},
    wire::Wire,
};
use crate::{
    policy::{
        classify::DataPhase,
        outcome::{Class, Stage},
    },
    transport::certificate::Shown,
};

/// What the handshake with one relay needs.
pub struct TlsClient {
    connector: TlsConnector,
    name: ServerName<'static>,
    shown: Shown,
}

impl TlsClient {
    /// Reads the operating system's certificates and the CA file. ring is passed in so that no other part of the process
    /// decides which cryptography is used.
    pub fn new(settings: &RelaySettings) -> Result<Self, RelayError> {
        let name = ServerName::try_from(settings.host.clone())
            .map_err(|_| RelayError::Setting { setting: "host", reason: "is no name that a certificate can bear" })?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| RelayError::Tls(error.to_string()))?
            .with_root_certificates(roots(settings.ca_file.as_deref())?)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, shown: Shown::default() })
    }

    /// When the certificate ends that was shown last.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.shown.end()
    }

    /// Encrypts a connection on which nothing is under way.
    pub async fn wrap(&self, stream: TcpStream, limit: std::time::Duration) -> Result<Wire, SmtpFailure> {
        let handshake = self.connector.connect(self.name.clone(), stream);
        match timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                if let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                    self.shown.note(certificate);
                }
                Ok(Wire::Tls(Box::new(stream)))
            }
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(SmtpFailure::trouble(Stage::Tls, &SmtpTrouble::TimedOut(limit), DataPhase::No)),
        }
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, RelayError> {
    let mut roots = RootCertStore::empty();
    // Some certificates of an operating system are always odd; none at all is noticed below.
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let wrong = |reason: String| RelayError::CaFile { path: path.to_owned(), reason };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(wrong("holds no certificate in PEM form".to_owned()));
        }
    }
    if roots.is_empty() {
        let reason = native.errors.first().map_or("the operating system has none".to_owned(), ToString::to_string);
        return Err(RelayError::Tls(format!("no certificate to trust: {reason}; set `ca_file`")));
    }
    Ok(roots)
}

/// A broken connection may hold next time; a certificate or a protocol stays wrong until a person sees to it.
fn refused(error: io::Error) -> SmtpFailure {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return SmtpFailure::trouble(Stage::Tls, &SmtpTrouble::from(error), DataPhase::No);
    };
    let text = match tls {
        rustls::Error::InvalidCertificate(reason) => certificate(reason),
        rustls::Error::InvalidMessage(_) => {
            "the relay does not speak TLS here; is this a port for STARTTLS (`tls = \"starttls\"`) or without TLS?"
                .to_owned()
        }
        other => format!("the TLS handshake failed: {other}"),
    };
    SmtpFailure::local(Stage::Tls, Class::Config, &text)
}

fn certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::NotValidForNameContext { expected, .. } => {
            format!("the relay's certificate is for another name than {}: {reason}", expected.to_str())
        }
        CertificateError::UnknownIssuer => {
            "the relay's certificate is signed by nobody that is trusted here; its issuer may belong into `ca_file`"
                .to_owned()
        }
        other => format!("the relay's certificate is not acceptable: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::settings::tests::plain, *};

    #[track_caller]
    fn refused_ca_file(path: &Path) -> String {
        let settings = RelaySettings { ca_file: Some(path.to_owned()), ..plain() };
        TlsClient::new(&settings).err().unwrap().to_string()
    }

    #[test]
    fn a_ca_file_that_is_missing_or_holds_no_certificate_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(refused_ca_file(&path).contains("ca.pem"));
        std::fs::write(&path, "nothing here\n").unwrap();
        let text = refused_ca_file(&path);
        assert!(text.contains("ca.pem") && text.contains("no certificate"), "{text}");
    }

    #[test]
    fn a_host_that_no_certificate_can_name_is_an_error() {
        let settings = RelaySettings { host: "a_b..c".into(), ..plain() };
        assert!(TlsClient::new(&settings).err().unwrap().to_string().starts_with("`host` "));
    }
}
