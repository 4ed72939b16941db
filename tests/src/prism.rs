//! Prism, which judges requests by the vendor's own document (`OpenAPI`), behind a proxy that keeps each judgement.
//!
//! The documents are the vendors' and not part of this repository: `POSTRIDER_VENDOR_SPECS` names the folder they lie in.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::folder::Folder;
use crate::ports;
use crate::process::{Process, Spec};

const START_LIMIT: Duration = Duration::from_secs(90);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What Prism said of one request.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// `POST /path`
    pub target: String,
    /// The status.
    pub status: u16,
    /// The violations that it found, of the request or of its own answer.
    pub violations: Option<String>,
    /// Its answer.
    pub body: String,
}

/// A running judge.
#[derive(Debug)]
pub struct Prism {
    _server: Process,
    _folder: Folder,
    port: u16,
    judgements: Arc<Mutex<Vec<Judgement>>>,
    is_over: Arc<AtomicBool>,
    proxy: Option<JoinHandle<()>>,
}

impl Prism {
    /// Starts one for this file of `POSTRIDER_VENDOR_SPECS`; the reason where that cannot be done on this machine.
    pub fn start(document: &str) -> Result<Self, String> {
        let folder = std::env::var_os("POSTRIDER_VENDOR_SPECS").ok_or("POSTRIDER_VENDOR_SPECS is not set")?;
        let document = Path::new(&folder).join(document);
        if !document.exists() {
            return Err(format!("POSTRIDER_VENDOR_SPECS holds no {}", document.display()));
        }
        let program = std::env::var_os("POSTRIDER_TEST_PRISM")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/prism"), PathBuf::from)
            .join("node_modules/.bin/prism");
        if !program.exists() {
            return Err("Prism is not installed: run tests/setup.sh".to_owned());
        }
        Self::run(&program, &document).map_err(|error| format!("{error:#}"))
    }

    fn run(program: &Path, document: &Path) -> Result<Self> {
        let folder = Folder::new("prism")?;
        let inner = ports::free()?;
        let spec = Spec::new("prism", program, folder.path())?
            .args(["mock", "-h", "127.0.0.1", "-p", &inner.to_string(), "--errors"])
            .arg(document);
        let server = Process::start_ready(spec, START_LIMIT, || ports::is_open(inner))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding the proxy")?;
        let port = listener.local_addr()?.port();
        let judgements = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (kept, over) = (judgements.clone(), is_over.clone());
        let proxy = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in between has no judgement.
                let _ = pass_on(stream, inner, &kept);
            }
        });
        Ok(Self { _server: server, _folder: folder, port, judgements, is_over, proxy: Some(proxy) })
    }

    /// Where requests go.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What was said so far; forgets it.
    pub fn judgements(&self) -> Vec<Judgement> {
        std::mem::take(&mut *self.judgements.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the proxy.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(proxy) = self.proxy.take() {
            let _ = proxy.join();
        }
    }
}

/// One request to Prism, one answer back, then the connection is closed.
fn pass_on(mut client: TcpStream, inner: u16, judgements: &Mutex<Vec<Judgement>>) -> Result<()> {
    client.set_read_timeout(Some(ANSWER_LIMIT))?;
    let (head, body) = request(&mut client)?;
    let target = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, inner));
    let mut prism = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    prism.set_read_timeout(Some(ANSWER_LIMIT))?;
    prism.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())?;
    prism.write_all(&body)?;
    let mut answer = Vec::new();
    prism.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    let violations = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("sl-violations").then(|| value.to_owned())
    });
    let judgement = Judgement { target, status, violations, body: body.to_owned() };
    // Kept before the client can know of it.
    judgements.lock().unwrap_or_else(PoisonError::into_inner).push(judgement);
    client.write_all(&answer)?;
    Ok(())
}

/// The head without its end, and the body.
fn request(client: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec())?;
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
            });
            if bytes.len() >= end + 4 + length.unwrap_or_default() {
                return Ok((head, bytes.split_off(end + 4)));
            }
        }
        let count = client.read(&mut buffer)?;
        anyhow::ensure!(count > 0, "the client went away");
        bytes.extend_from_slice(&buffer[..count]);
    }
}
