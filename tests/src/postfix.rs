//! A private Postfix with Dovecot's authentication: the relay of record. It accepts as a real one does and hands everything
//! to a port of 127.0.0.1, where a sink counts.
//!
//! Needs root, as Postfix does. Six ports: see [`Postfix`]. Recipients that it refuses are in
//! `components/postfix_rcpt`; the sender `blocked@from.test` gets 554.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::folder::Folder;
use crate::ports;
use crate::process::{self, Process, Spec, Stop};
use crate::tls::Authority;

const START_LIMIT: Duration = Duration::from_mins(1);
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The user who may send.
pub const USER: &str = "relayuser";
/// The password of [`USER`].
pub const PASSWORD: &str = "s3cret";

/// How this Postfix differs from another.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything accepted goes.
    pub delivery_port: u16,
    /// Octets a message may have (552 above).
    pub message_size_limit: u32,
    /// Runs postgrey behind [`Postfix::greylisted`].
    pub greylisting: bool,
}

impl Options {
    /// The usual relay: 200,000 octets a message, no greylisting.
    pub fn to(delivery_port: u16) -> Self {
        Self { delivery_port, message_size_limit: 200_000, greylisting: false }
    }
}

/// A running instance. All ports are on 127.0.0.1; the certificate is for `localhost` and `relay.test`.
#[derive(Debug)]
pub struct Postfix {
    master: Process,
    _dovecot: Process,
    _postgrey: Option<Process>,
    folder: Folder,
    /// STARTTLS first (530 without), AUTH PLAIN or LOGIN.
    pub submission: u16,
    /// TLS from the first byte, then AUTH.
    pub implicit: u16,
    /// Neither needed; STARTTLS offered.
    pub plain: u16,
    /// Relays to nobody without credentials: 554 5.7.1, as a relay that does not know its client says it.
    pub strangers: u16,
    /// Like submission, but 3 messages a minute (450) and 2 connections at once (421).
    pub limited: u16,
    /// Like submission, but a new sender and recipient get 450 first and 250 after three seconds.
    pub greylisted: u16,
}

impl Postfix {
    /// Starts an instance that delivers to `delivery_port`, and waits until it answers on its ports.
    pub fn start(delivery_port: u16) -> Result<Self> {
        Self::start_with(&Options::to(delivery_port))
    }

    /// The same with options.
    pub fn start_with(options: &Options) -> Result<Self> {
        let folder = Folder::new("postfix")?;
        ensure!(std::fs::metadata(folder.path())?.uid() == 0, "Postfix can only be started by root");
        let tls = folder.inside("tls", 0o755)?;
        let authority = Authority::new(&tls)?;
        let identity = authority.issue("relay", &["localhost", "relay.test"])?;
        let mut port = [0_u16; 7];
        for slot in &mut port {
            *slot = ports::free()?;
        }
        let [submission, implicit, plain, strangers, limited, greylisted, postgrey] = port;
        let daemons = process::find(Path::new("master"))?.parent().map(Path::to_owned).unwrap_or_default();
        let fill = |template: &str| {
            [
                ("@FOLDER@", folder.path().display().to_string()),
                ("@DAEMONS@", daemons.display().to_string()),
                ("@CERTIFICATE@", identity.certificate.display().to_string()),
                ("@KEY@", identity.key.display().to_string()),
                ("@DELIVERY@", options.delivery_port.to_string()),
                ("@SIZE@", options.message_size_limit.to_string()),
                ("@SUBMISSION@", submission.to_string()),
                ("@IMPLICIT@", implicit.to_string()),
                ("@PLAIN@", plain.to_string()),
                ("@STRANGERS@", strangers.to_string()),
                ("@LIMITED@", limited.to_string()),
                ("@GREYLISTED@", greylisted.to_string()),
                ("@POSTGREY@", postgrey.to_string()),
            ]
            .iter()
            .fold(template.to_owned(), |text, (mark, value)| text.replace(mark, value))
        };
        folder.inside("etc", 0o755)?;
        folder.write("etc/main.cf", &fill(include_str!("../components/postfix_main.cf")))?;
        folder.write("etc/master.cf", &fill(include_str!("../components/postfix_master.cf")))?;
        folder.write("etc/rcpt", include_str!("../components/postfix_rcpt"))?;
        make_queue(&folder)?;

        let dovecot = start_dovecot(&folder, &fill(include_str!("../components/dovecot.conf")))?;
        let postgrey = options.greylisting.then(|| start_postgrey(&folder, postgrey)).transpose()?;
        // The daemon itself, without the script around it: the script's checks take two seconds, and it starts the daemon
        // in a group of its own.
        let spec = Spec::new("master", "master", folder.path())?
            .arg("-d")
            .env("MAIL_CONFIG", folder.path().join("etc"))
            .stop(Stop::Term(STOP_LIMIT));
        // Postfix itself listens at once; whether the daemon behind a port can start shows in its greeting.
        let ready =
            || [submission, plain, strangers, limited, greylisted].into_iter().all(greets) && ports::is_open(implicit);
        let master = Process::start_ready(spec, START_LIMIT, ready)
            .with_context(|| process::tail(&folder.path().join("maillog"), 20))?;
        Ok(Self {
            master,
            _dovecot: dovecot,
            _postgrey: postgrey,
            folder,
            submission,
            implicit,
            plain,
            strangers,
            limited,
            greylisted,
        })
    }

    /// The certificate authority to trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("tls/ca.pem")
    }

    /// Its log of every transaction.
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("maillog")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends the relay; connections to it are refused from now on.
    pub fn stop(&mut self) -> Result<()> {
        self.master.kill9()
    }

    /// Starts it again on the same ports and queue.
    pub fn restart(&mut self) -> Result<()> {
        let port = self.submission;
        self.master.start_again()?;
        self.master.wait_ready(START_LIMIT, || greets(port))
    }
}

/// Whether an SMTP greeting comes from this port.
fn greets(port: u16) -> bool {
    let read = || -> std::io::Result<[u8; 4]> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        Ok(greeting)
    };
    read().is_ok_and(|greeting| &greeting == b"220 ")
}

fn start_dovecot(folder: &Folder, config: &str) -> Result<Process> {
    folder.inside("dovecot", 0o755)?;
    folder.inside("dovecot/run", 0o755)?;
    folder.inside("dovecot/state", 0o755)?;
    folder.write("dovecot/users", &format!("{USER}:{{PLAIN}}{PASSWORD}\n"))?;
    let file = folder.write("dovecot/dovecot.conf", config)?;
    let socket = folder.path().join("auth");
    let spec =
        Spec::new("dovecot", "dovecot", folder.path())?.arg("-F").arg("-c").arg(file).stop(Stop::Term(STOP_LIMIT));
    Process::start_ready(spec, START_LIMIT, || std::os::unix::net::UnixStream::connect(&socket).is_ok())
}

fn start_postgrey(folder: &Folder, port: u16) -> Result<Process> {
    let data = folder.inside("postgrey", 0o777)?;
    let spec = Spec::new("postgrey", "postgrey", folder.path())?
        .args([&format!("--inet=127.0.0.1:{port}"), "--delay=3", "--user=nobody", "--group=nogroup"])
        .arg(format!("--dbdir={}", data.display()));
    Process::start_ready(spec, START_LIMIT, || ports::is_open(port))
}

/// The folders of a mail queue with the owners that Postfix insists on.
fn make_queue(folder: &Folder) -> Result<()> {
    let owner = id_of("/etc/passwd", "postfix")?;
    let group = id_of("/etc/group", "postdrop")?;
    folder.inside("spool", 0o755)?;
    folder.inside("spool/pid", 0o755)?;
    chown(folder.inside("lib", 0o755)?, Some(owner), None)?;
    for name in
        ["active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"]
    {
        chown(folder.inside(&format!("spool/{name}"), 0o700)?, Some(owner), None)?;
    }
    for (name, mode) in [("maildrop", 0o730), ("public", 0o710)] {
        let path = folder.inside(&format!("spool/{name}"), mode)?;
        chown(&path, Some(owner), Some(group))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// The number of a user or a group, from the file of either (`name:x:number:...`).
fn id_of(file: &str, name: &str) -> Result<u32> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok())
        .with_context(|| format!("{name} is not in {file}: run tests/setup.sh"))
}
