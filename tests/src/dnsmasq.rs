//! A private DNS server: Debian's dnsmasq, which knows what a test tells it and asks nobody.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;

use crate::folder::Folder;
use crate::ports;
use crate::process::{Process, Spec};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Dnsmasq {
    server: Process,
    _folder: Folder,
    port: u16,
}

impl Dnsmasq {
    /// Answers for `test` and `example` alone: names that `records` does not mention do not exist. Records are options such as
    /// `--mx-host=shop.example,mx.provider.test,10` or `--host-record=shop.example,127.0.0.1`.
    pub fn start(records: &[&str]) -> Result<Self> {
        let folder = Folder::new("dns")?;
        let port = ports::free_with_udp()?;
        let spec = Spec::new("server", "dnsmasq", folder.path())?
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/", "--local=/example/"])
            .args(["--user=root", "--log-facility=-", &format!("--port={port}")])
            .args(records);
        let server = Process::start_ready(spec, START_LIMIT, || answers(port))?;
        Ok(Self { server, _folder: folder, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.server.kill9()
    }

    /// Alive and silent: questions run into their limits.
    pub fn freeze(&self) {
        self.server.freeze();
    }

    /// Ends a [`Dnsmasq::freeze`].
    pub fn thaw(&self) {
        self.server.thaw();
    }
}

/// Whether the server answers a question about the name `test`.
fn answers(port: u16) -> bool {
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04test\x00\x00\x01\x00\x01";
    let ask = || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(question, ("127.0.0.1", port))?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok()
}
