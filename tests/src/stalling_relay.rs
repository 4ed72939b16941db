//! A relay that falls silent: at one stage of its first conversations it says nothing more and leaves the connection open. Afterwards it is a
//! sound relay. It keeps what it was given, answered or not.
//!
//! It offers STARTTLS and AUTH and has neither certificate nor password: it is for what happens before these.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::background::Background;

/// Where it falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallPoint {
    /// It accepts the connection and does not greet.
    Greeting,
    /// In the middle of the answer to EHLO.
    Hello,
    /// Instead of the answer to STARTTLS.
    StartTls,
    /// Instead of the answer to AUTH.
    Auth,
    /// Instead of the answer to MAIL.
    Mail,
    /// Instead of the answer to RCPT.
    Rcpt,
    /// Instead of the answer to DATA.
    Data,
    /// After the final dot: the message is kept.
    Dot,
}

/// A running relay.
#[derive(Debug)]
pub struct StallingRelay {
    server: Background,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    silence: StallPoint,
    /// Silences still to come.
    left: Mutex<u32>,
    kept: Mutex<Vec<String>>,
}

impl Shared {
    /// Whether it falls silent here, which uses up one of its silences.
    fn is_silent_at(&self, stage: StallPoint) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = stage == self.silence && *left > 0;
        *left -= u32::from(is_silent);
        is_silent
    }
}

impl StallingRelay {
    /// A relay that falls silent so many times.
    pub fn start(silence: StallPoint, times: u32) -> Result<Self> {
        let shared = Arc::new(Shared { silence, left: Mutex::new(times), kept: Mutex::default() });
        let server = Background::serve({
            let shared = shared.clone();
            move |client| converse(client, shared.clone())
        })?;
        Ok(Self { server, shared })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// No silence any more, but those that are under way.
    pub fn speak(&self) {
        *self.shared.left.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    /// The messages that it was given whole, in order.
    pub fn kept(&self) -> Vec<String> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One conversation. Silence is to read on until the client gives up.
async fn converse(client: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let mut stream = BufReader::new(client);
    if shared.is_silent_at(StallPoint::Greeting) {
        return silence(stream).await;
    }
    stream.write_all(b"220 relay.test ESMTP\r\n").await?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let (stage, answer) = match line.get(..4).unwrap_or_default() {
            "EHLO" => {
                (Some(StallPoint::Hello), "250-relay.test\r\n250-STARTTLS\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n")
            }
            "STAR" => (Some(StallPoint::StartTls), "454 4.7.0 not now\r\n"),
            "AUTH" => (Some(StallPoint::Auth), "235 2.7.0 Ok\r\n"),
            "MAIL" => (Some(StallPoint::Mail), "250 2.1.0 Ok\r\n"),
            "RCPT" => (Some(StallPoint::Rcpt), "250 2.1.5 Ok\r\n"),
            "DATA" => (Some(StallPoint::Data), "354 go on\r\n"),
            "QUIT" => (None, "221 2.0.0 bye\r\n"),
            _ => (None, "250 2.0.0 Ok\r\n"),
        };
        if stage.is_some_and(|stage| shared.is_silent_at(stage)) {
            if stage == Some(StallPoint::Hello) {
                stream.write_all(b"250-relay.test\r\n").await?;
            }
            return silence(stream).await;
        }
        stream.write_all(answer.as_bytes()).await?;
        if stage != Some(StallPoint::Data) {
            continue;
        }
        let mut message = String::new();
        while !message.ends_with("\r\n.\r\n") {
            if stream.read_line(&mut message).await? == 0 {
                return Ok(());
            }
        }
        shared.kept.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        if shared.is_silent_at(StallPoint::Dot) {
            return silence(stream).await;
        }
        stream.write_all(b"250 2.0.0 Ok: kept\r\n").await?;
    }
}

async fn silence(mut stream: BufReader<TcpStream>) -> Result<()> {
    let mut chunk = [0; 4096];
    while stream.read(&mut chunk).await? > 0 {}
    Ok(())
}
