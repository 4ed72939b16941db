//! A scripted relay (Python's aiosmtpd) whose faults are chosen by the recipient's name, with TLS and AUTH.
//!
//! The names and what they do stand at the head of `components/aio.py`. It offers no PIPELINING.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::deadline;
use crate::folder::Folder;
use crate::ports;
use crate::process::{Process, Spec};
use crate::python;
use crate::sink::StoredMessage;
use crate::tls::Authority;

/// The access token that XOAUTH2 takes instead of the password.
pub const TOKEN: &str = "t0ken";

const START_LIMIT: Duration = Duration::from_secs(30);

/// How the line is secured. With TLS, AUTH is required (user and password as in [`crate::postfix`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not at all, no AUTH.
    None,
    /// STARTTLS is required.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// A running scripted relay.
#[derive(Debug)]
pub struct Aiosmtpd {
    _server: Process,
    stored: PathBuf,
    folder: Folder,
    port: u16,
}

impl Aiosmtpd {
    /// Starts one with a certificate for `localhost` and waits until it accepts connections.
    pub fn start(tls: Tls) -> Result<Self> {
        Self::start_as(tls, &["localhost", "relay.test"])
    }

    /// The same with a certificate for other names.
    pub fn start_as(tls: Tls, names: &[&str]) -> Result<Self> {
        let python = python::program("python")?;
        let folder = Folder::new("aiosmtpd")?;
        let stored = folder.inside("stored", 0o755)?;
        let identity = Authority::new(folder.path())?.issue("relay", names)?;
        let script = folder.write("aio.py", include_str!("../components/aio.py"))?;
        let port = ports::free()?;
        let mode = match tls {
            Tls::None => "none",
            Tls::StartTls => "starttls",
            Tls::Implicit => "implicit",
        };
        let spec = Spec::new("server", python, folder.path())?
            .arg(script)
            .arg(port.to_string())
            .arg(&stored)
            .arg(mode)
            .arg(identity.certificate)
            .arg(identity.key);
        let server = Process::start_ready(spec, START_LIMIT, || ports::is_open(port))?;
        Ok(Self { _server: server, stored, folder, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Every message it has stored, whatever it then answered, in order.
    pub fn messages(&self) -> Result<Vec<StoredMessage>> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&self.stored)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.retain(|file| file.extension().is_some());
        files.sort();
        files.iter().map(|file| StoredMessage::read(file)).collect()
    }

    /// Waits for at least `count` messages and gives all.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Result<Vec<StoredMessage>> {
        deadline::wait_for(&format!("{count} messages at aiosmtpd"), limit, || {
            self.messages().ok().filter(|messages| messages.len() >= count)
        })
        .with_context(|| format!("it holds {:?}", self.messages().map(|messages| messages.len()).ok()))
    }
}
