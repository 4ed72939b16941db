//! The certificate of SMTP submission. A renewed one applies to the next connection.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

/// A certificate with its key, and the files that they come from.
pub struct Tls {
    files: [PathBuf; 2],
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads PEM files: the chain of certificates, and the key of the first one.
    pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let config = ArcSwap::from(config(certificate, key)?);
        Ok(Self { files: [certificate.to_owned(), key.to_owned()], config })
    }

    /// Its files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reads the files anew. After an error the old certificate stays.
    pub fn reload(&self) -> anyhow::Result<()> {
        let [certificate, key] = &self.files;
        self.config.store(config(certificate, key)?);
        Ok(())
    }

    /// For a connection that begins.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

fn config(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let at = |path: &Path| path.display().to_string();
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect).with_context(|| at(certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| at(key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("{} and {}", at(certificate), at(key)))?;
    Ok(Arc::new(config))
}
