//! A relay without TLS that says what a story wants, and repeats what it was sent where the story wants that: no real server does so on demand.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::background::Background;

/// What it says. In an answer `{auth}` stands for what it was sent with AUTH.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Closes each connection without a word.
    pub is_gone: bool,
    /// Instead of the greeting.
    pub greeting: Option<String>,
    /// Instead of yes to AUTH.
    pub auth: Option<String>,
    /// Instead of yes to RCPT.
    pub rcpt: Option<String>,
}

/// A running relay.
#[derive(Debug)]
pub struct TalkingRelay {
    server: Background,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    manner: Manner,
    greeted: usize,
    taken: usize,
}

impl TalkingRelay {
    /// Starts one with these manners.
    pub fn start(manner: Manner) -> Result<Self> {
        let shared = Arc::new(Mutex::new(Shared { manner, greeted: 0, taken: 0 }));
        let server = Background::serve({
            let shared = Arc::clone(&shared);
            move |stream| {
                let shared = Arc::clone(&shared);
                async move { Ok(talk(stream, &shared).await?) }
            }
        })?;
        Ok(Self { server, shared })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Other manners, for connections to come.
    pub fn change(&self, manner: Manner) {
        lock(&self.shared).manner = manner;
    }

    /// Connections that it greeted.
    pub fn greeted(&self) -> usize {
        lock(&self.shared).greeted
    }

    /// Messages that it took.
    pub fn taken(&self) -> usize {
        lock(&self.shared).taken
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn talk(stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let manner = lock(shared).manner.clone();
    if manner.is_gone {
        return Ok(());
    }
    lock(shared).greeted += 1;
    let mut stream = BufReader::new(stream);
    let mut auth = String::new();
    let said = |text: Option<&String>, auth: &str, yes: &str| {
        let text = text.map_or_else(|| yes.to_owned(), |text| text.replace("{auth}", auth));
        format!("{text}\r\n").into_bytes()
    };
    let greeting = said(manner.greeting.as_ref(), "", "220 talking.test");
    stream.write_all(&greeting).await?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => b"250-talking.test\r\n250 AUTH PLAIN\r\n".to_vec(),
            "AUTH" => {
                line.trim_end().clone_into(&mut auth);
                said(manner.auth.as_ref(), &auth, "235 2.7.0 Ok")
            }
            "RCPT" => said(manner.rcpt.as_ref(), &auth, "250 2.1.5 Ok"),
            "DATA" if manner.rcpt.is_some() => b"554 5.5.1 No recipients\r\n".to_vec(),
            "DATA" => {
                stream.write_all(b"354 Go on\r\n").await?;
                while line.trim_end() != "." {
                    line.clear();
                    if stream.read_line(&mut line).await? == 0 {
                        return Ok(());
                    }
                }
                lock(shared).taken += 1;
                b"250 2.0.0 Ok\r\n".to_vec()
            }
            "QUIT" => return stream.write_all(b"221 2.0.0 Bye\r\n").await,
            _ => b"250 2.0.0 Ok\r\n".to_vec(),
        };
        stream.write_all(&answer).await?;
    }
}
