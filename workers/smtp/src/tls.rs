//! TLS to a relay: whom to trust, the handshake, and what its failures mean. No downgrade, no way to switch checks off.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    failure::{Cause, Failure, Stage},
    observer::Observer,
    settings::{Settings, SettingsError},
    wire::Wire,
};

/// What the handshake with one relay needs.
pub struct TlsClient {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Reads the operating system's certificates and the CA file. ring is passed in so that no other part of the process
    /// decides which cryptography is used.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let name = ServerName::try_from(settings.host.clone()).map_err(|_| SettingsError::Setting {
            setting: "host",
            reason: "is no name that a certificate can bear",
        })?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| SettingsError::Tls(error.to_string()))?
            .with_root_certificates(roots(settings.ca_file.as_deref())?)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Encrypts a connection on which nothing is under way.
    pub async fn wrap(&self, stream: TcpStream, limit: Duration, observer: &impl Observer) -> Result<Wire, Failure> {
        let handshake = self.connector.connect(self.name.clone(), stream);
        match timeout(limit, handshake).await {
            Ok(Ok(stream)) => {
                if let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                    observer.certificate(certificate);
                }
                Ok(Wire::Tls(Box::new(stream)))
            }
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(Failure::new(Stage::Tls, Cause::TimedOut(limit))),
        }
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, SettingsError> {
    let mut roots = RootCertStore::empty();
    // Some certificates of an operating system are always odd; none at all is noticed below.
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let wrong = |reason: String| SettingsError::CaFile { path: path.to_owned(), reason };
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
        return Err(SettingsError::Tls(format!("no certificate to trust: {reason}; set `ca_file`")));
    }
    Ok(roots)
}

/// A broken connection may hold next time; a certificate or a protocol stays wrong until a person sees to it.
fn refused(error: io::Error) -> Failure {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Failure::new(Stage::Tls, Cause::io(error));
    };
    let text = match tls {
        rustls::Error::InvalidCertificate(reason) => certificate(reason),
        rustls::Error::InvalidMessage(_) => {
            "the relay does not speak TLS here; is this a port for STARTTLS (`tls = \"starttls\"`) or without TLS?"
                .to_owned()
        }
        other => format!("the TLS handshake failed: {other}"),
    };
    Failure::setup(Stage::Tls, text)
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
    use super::*;

    #[track_caller]
    fn refused_ca_file(path: &Path) -> String {
        let settings = Settings { ca_file: Some(path.to_owned()), ..Settings::new("127.0.0.1", 25) };
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
        let settings = Settings::new("a_b..c", 25);
        assert!(TlsClient::new(&settings).err().unwrap().to_string().starts_with("`host` "));
    }
}
