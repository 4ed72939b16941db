//! A relay that takes so many messages a second and answers `421 4.7.0` above that: written here, because no program we know does
//! only this. It counts what it took and what it refused, and when.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// The reply above the limit.
const REFUSAL: &str = "421 4.7.0 You send too fast, slow down and try again later";

/// A running relay; it ends on drop.
#[derive(Debug)]
pub struct ThrottlingRelay {
    shared: Arc<Shared>,
    port: u16,
}

#[derive(Debug)]
struct Shared {
    per_second: AtomicUsize,
    stop: AtomicBool,
    taken: Mutex<Vec<Instant>>,
    domains: Mutex<Vec<String>>,
    refused: Mutex<Vec<Instant>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    answer_ms: AtomicUsize,
}

impl ThrottlingRelay {
    /// Takes so many messages in any second.
    pub fn start(per_second: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            per_second: AtomicUsize::new(per_second),
            stop: AtomicBool::new(false),
            taken: Mutex::default(),
            domains: Mutex::default(),
            refused: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            answer_ms: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || {
                    let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
                    shared.most_open.fetch_max(open, Ordering::SeqCst);
                    shared.converse(&stream);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { shared, port })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another limit from now on.
    pub fn allow(&self, per_second: usize) {
        self.shared.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Connections that are open, and the most that were at once.
    pub fn connections(&self) -> (usize, usize) {
        (self.shared.open.load(Ordering::SeqCst), self.shared.most_open.load(Ordering::SeqCst))
    }

    /// Each message is answered so much later.
    pub fn answer_after(&self, time: Duration) {
        self.shared.answer_ms.store(usize::try_from(time.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// When it took messages.
    pub fn taken(&self) -> Vec<Instant> {
        self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The domains that messages were for, in the order in which they came.
    pub fn domains(&self) -> Vec<String> {
        self.shared.domains.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it refused them.
    pub fn refused(&self) -> Vec<Instant> {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ThrottlingRelay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// One connection; an error is its end.
    fn converse(&self, stream: &TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let mut out = stream;
        let mut say = |text: &str| out.write_all(format!("{text}\r\n").as_bytes()).ok();
        say("220 pacing.test ESMTP")?;
        while let Some(Ok(line)) = lines.next() {
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" | "HELO" => say("250 pacing.test")?,
                "MAIL" if !self.has_room() => {
                    say(REFUSAL)?;
                    return Some(());
                }
                "RCPT" => {
                    let domain = line.split(['@', '>']).nth(1).unwrap_or_default().to_owned();
                    self.domains.lock().unwrap_or_else(PoisonError::into_inner).push(domain);
                    say("250 2.1.5 ok")?;
                }
                "DATA" => {
                    say("354 go")?;
                    while lines.next()?.ok()? != "." {}
                    // A relay that takes its time, not a wait for something to happen.
                    let late = u64::try_from(self.answer_ms.load(Ordering::Relaxed)).unwrap_or(0);
                    std::thread::sleep(Duration::from_millis(late));
                    say("250 2.0.0 taken")?;
                }
                "QUIT" => return say("221 bye"),
                _ => say("250 2.1.0 ok")?,
            }
        }
        Some(())
    }

    /// Counts a message as taken or refused.
    fn has_room(&self) -> bool {
        let now = Instant::now();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = taken.iter().rev().take_while(|at| now.duration_since(**at) < Duration::from_secs(1)).count();
        let has_room = recent < self.per_second.load(Ordering::Relaxed);
        if has_room {
            taken.push(now);
        } else {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(now);
        }
        has_room
    }
}
