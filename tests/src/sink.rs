//! Postfix's `smtp-sink`: a relay that stores every message in a file of its own, or fails in one chosen way.
//!
//! It counts what really arrived, in a program that nobody here wrote. It offers PIPELINING and no TLS, and announces AUTH
//! without checking it.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::deadline;
use crate::folder::Folder;
use crate::ports;
use crate::process::{Process, Spec};

const START_LIMIT: Duration = Duration::from_secs(20);
/// Bytes that hold at least one whole line of the sink's counters.
const COUNTER_TAIL: u64 = 256;

/// What goes wrong at the sink. Commands are `CONNECT EHLO MAIL RCPT DATA . RSET QUIT`, several joined by commas.
#[derive(Clone, Debug)]
pub enum SinkFault {
    /// After this command the connection is dropped without a reply. With `.` the message is stored first: whoever sent it
    /// cannot know.
    DropAfter(&'static str),
    /// This command gets `450 4.3.0`. Switches PIPELINING off. With `.` the message is stored all the same.
    Soft(&'static str),
    /// This command gets this whole reply instead, for example `421 4.7.0 closing`; the connection stays open.
    SoftReply(&'static str, &'static str),
    /// This command gets `500 5.3.0`. Switches PIPELINING off. With `.` the message is stored all the same.
    Hard(&'static str),
    /// This command gets this whole reply instead.
    HardReply(&'static str, &'static str),
    /// This command gets a 421, and the connection is closed.
    Closing(&'static str),
    /// The reply to DATA (354) comes this many seconds late.
    LateData(u32),
    /// The reply to this command comes this many seconds late.
    Late(&'static str, u32),
    /// This many seconds after 354 it answers 550 in the middle of the body and reads no more.
    AbortData(u32),
    /// HELO only.
    NoEsmtp,
    /// Every command waits for its reply.
    NoPipelining,
    /// Eight-bit bodies are not announced.
    No8BitMime,
}

impl SinkFault {
    fn args(&self) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::DropAfter(command) => words(&["-q", command]),
            Self::Soft(command) => words(&["-r", command]),
            Self::SoftReply(command, reply) => words(&["-r", command, "-b", reply]),
            Self::Hard(command) => words(&["-f", command]),
            Self::HardReply(command, reply) => words(&["-f", command, "-B", reply]),
            Self::Closing(command) => words(&["-Q", command]),
            Self::LateData(seconds) => words(&["-w", &seconds.to_string()]),
            Self::Late(command, seconds) => words(&["-W", &format!("{command}:{seconds}")]),
            Self::AbortData(seconds) => words(&["-A", &seconds.to_string()]),
            Self::NoEsmtp => words(&["-e"]),
            Self::NoPipelining => words(&["-p"]),
            Self::No8BitMime => words(&["-8"]),
        }
    }
}

/// How the sink behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What goes wrong; empty: nothing.
    pub faults: Vec<SinkFault>,
    /// Connections at once; more wait unanswered.
    pub connections: u32,
    /// Keep the messages. Without, it only counts them: as fast as it can be, for benchmarks.
    pub store: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { faults: Vec::new(), connections: 256, store: true }
    }
}

impl From<SinkFault> for Options {
    fn from(fault: SinkFault) -> Self {
        Self { faults: vec![fault], ..Self::default() }
    }
}

/// A running sink.
#[derive(Debug)]
pub struct SmtpSink {
    server: Process,
    /// Where the messages are; `None` when they are only counted.
    stored: Option<PathBuf>,
    folder: Folder,
    port: u16,
    /// Arrivals that were read before: a story that looks often must not read thousands of files each time.
    known: Mutex<HashMap<PathBuf, (f64, String)>>,
}

impl SmtpSink {
    /// Starts one and waits until it accepts connections.
    pub fn start(options: impl Into<Options>) -> Result<Self> {
        let options = options.into();
        let folder = Folder::new("sink")?;
        let stored = options.store.then(|| folder.inside("stored", 0o777)).transpose()?;
        let port = ports::free()?;
        let mut spec = Spec::new("server", "smtp-sink", folder.path())?;
        if std::fs::metadata(folder.path())?.uid() == 0 {
            spec = spec.args(["-u", "nobody", "-R", "/"]);
        }
        spec = match &stored {
            Some(stored) => spec.arg("-d").arg(stored.join("message.")),
            None => spec.arg("-c"),
        };
        let spec = spec
            .args(["-m", &options.connections.to_string()])
            .args(options.faults.iter().flat_map(SinkFault::args))
            .args([&format!("127.0.0.1:{port}"), "512"]);
        let server = Process::start_ready(spec, START_LIMIT, || ports::is_open(port))?;
        Ok(Self { server, stored, folder, port, known: Mutex::default() })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process, for figures of its own use of the machine.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// SIGKILL: the relay is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.server.kill9()
    }

    /// The relay is back on the same port; what was stored stays.
    pub fn restart(&mut self) -> Result<()> {
        let port = self.port;
        self.server.start_again()?;
        self.server.wait_ready(START_LIMIT, || ports::is_open(port))
    }

    /// Number of messages received whole.
    pub fn count(&self) -> Result<usize> {
        match &self.stored {
            Some(stored) => Ok(self.finished(stored)?.len()),
            None => counter(&self.server.spec().out_file()),
        }
    }

    /// Every message received whole, in no order; none of a sink that only counts.
    pub fn messages(&self) -> Result<Vec<StoredMessage>> {
        let Some(stored) = &self.stored else { return Ok(Vec::new()) };
        self.finished(stored)?.iter().map(|file| StoredMessage::read(file)).collect()
    }

    /// When each message was whole, by the sink's file system in seconds of the Unix epoch, and its first recipient; in order.
    pub fn arrivals(&self) -> Result<Vec<(f64, String)>> {
        let Some(stored) = &self.stored else { return Ok(Vec::new()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for file in self.finished(stored)? {
            if known.contains_key(&file) {
                continue;
            }
            let time = std::fs::metadata(&file)?.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
            let recipient = StoredMessage::read(&file)?.recipients().first().map(|one| (*one).to_owned());
            known.insert(file, (time, recipient.unwrap_or_default()));
        }
        let mut arrivals: Vec<(f64, String)> = known.values().cloned().collect();
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(arrivals)
    }

    /// Waits for at least `count` messages and gives all; the error says how many there were.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Result<Vec<StoredMessage>> {
        let enough = || self.count().ok().filter(|stored| *stored >= count);
        deadline::wait_for(&format!("{count} messages at the sink"), limit, enough)
            .with_context(|| format!("the sink holds {:?}", self.count().ok()))?;
        self.messages()
    }

    /// Files of the folder that the sink no longer writes to. Listed first, then looked at: a file is open from its birth
    /// until the message is whole, so what is not open afterwards is complete.
    fn finished(&self, stored: &Path) -> Result<Vec<PathBuf>> {
        let listed: Vec<PathBuf> =
            std::fs::read_dir(stored)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        let handles = std::fs::read_dir(format!("/proc/{}/fd", self.server.pid()));
        let open: BTreeSet<PathBuf> = handles
            .map(|handles| handles.filter_map(|handle| std::fs::read_link(handle.ok()?.path()).ok()).collect())
            .unwrap_or_default();
        Ok(listed.into_iter().filter(|file| !open.contains(file)).collect())
    }
}

/// The last `mesg=NUMBER` of the running counters, which the sink rewrites on one line: only the end of the file is read.
fn counter(file: &Path) -> Result<usize> {
    let mut file = std::fs::File::open(file)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(COUNTER_TAIL)))?;
    let mut text = String::new();
    file.take(COUNTER_TAIL).read_to_string(&mut text)?;
    Ok(last_count(&text))
}

/// A number that is not yet followed by the end of its line is still being written.
fn last_count(text: &str) -> usize {
    let whole = &text[..text.rfind('\r').unwrap_or(0)];
    whole.rsplit("mesg=").next().and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// A message as a relay stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Argument of MAIL FROM: the address in angle brackets, then parameters.
    pub mail_args: String,
    /// Argument of each RCPT TO.
    pub rcpt_args: Vec<String>,
    /// The message as it went over the line, without the sink's own headers; lines end with CR LF.
    pub raw: Vec<u8>,
}

impl StoredMessage {
    /// Reads a file in the form that `smtp-sink -d` writes: `X-...` lines, a Received header, the message, one empty line.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Self::parse(&bytes))
    }

    /// The same from its bytes.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut message = Self { mail_args: String::new(), rcpt_args: Vec::new(), raw: Vec::new() };
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
        for line in lines.by_ref() {
            let text = String::from_utf8_lossy(line);
            let text = text.trim_end();
            if let Some(args) = text.strip_prefix("X-Mail-Args: ") {
                args.clone_into(&mut message.mail_args);
            } else if let Some(args) = text.strip_prefix("X-Rcpt-Args: ") {
                message.rcpt_args.push(args.to_owned());
            } else if text.starts_with("Received: ") {
                break;
            }
        }
        while lines.next_if(|line| line.starts_with(b"\t")).is_some() {}
        for line in lines {
            message.raw.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            message.raw.extend_from_slice(b"\r\n");
        }
        message
    }

    /// The envelope sender, without brackets.
    pub fn sender(&self) -> &str {
        address(&self.mail_args)
    }

    /// The envelope recipients, without brackets, in order.
    pub fn recipients(&self) -> Vec<&str> {
        self.rcpt_args.iter().map(|args| address(args)).collect()
    }
}

fn address(args: &str) -> &str {
    args.trim_start_matches('<').split('>').next().unwrap_or(args)
}
