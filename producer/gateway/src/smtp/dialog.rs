//! One connection: reads lines, goes over to TLS, hands messages over and answers when the queue has confirmed them.

use std::{io, net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{
    PortSettings,
    command::{self, Command},
    content::{Content, Dots, Spoiled},
    message::{self, Drafted},
    session::{Action, Mechanism, Policy, Session},
};
use crate::{
    api::Draft,
    body::{Held, Memory},
    handle::{Gateway, WRONG_KEY_DELAY},
    keys::{Key, Scope},
    problem::{Kind, Problem},
};

/// Longest line of a command.
const LINE_MAX: usize = 4096;
/// Octets that are read at once.
const READ_SIZE: usize = 16 * 1024;
/// The next command of a client with a key comes within this.
const SILENCE: Duration = Duration::from_secs(300);
/// A client has shown its key within this.
const KEY_LIMIT: Duration = Duration::from_secs(60);
/// The next octets of a message come within this, ...
const MESSAGE_SILENCE: Duration = Duration::from_secs(60);
/// ... and all of it within this.
const MESSAGE_LIMIT: Duration = Duration::from_secs(600);
/// A last answer is taken within this.
const FAREWELL: Duration = Duration::from_secs(5);
/// Memory of a message is counted in steps of so many bytes.
const STEP: usize = 64 * 1024;

/// Serves one connection to its end. An error is the other side's matter.
pub async fn run(gateway: &Gateway, stream: TcpStream, peer: IpAddr, settings: &PortSettings) -> io::Result<()> {
    // An answer is one write: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let is_implicit = settings.is_implicit;
    let policy = Policy {
        has_tls: settings.tls.is_some() && !is_implicit,
        plaintext_auth: settings.plaintext_auth,
        size: settings.size,
        recipients: settings.recipients,
    };
    let mut dialog = Dialog {
        gateway,
        settings,
        peer,
        key_until: Instant::now() + KEY_LIMIT,
        session: Session::new(policy, is_implicit),
        key: None,
        input: BytesMut::new(),
        output: Vec::new(),
        incoming: None,
    };
    let mut stream = stream;
    let Some(tls) = &settings.tls else {
        dialog.reply("220 postrider ESMTP");
        return dialog.converse(&mut stream).await.map(drop);
    };
    if !is_implicit {
        dialog.reply("220 postrider ESMTP");
        if dialog.converse(&mut stream).await? == After::End {
            return Ok(());
        }
        // What came in the clear was not said behind TLS.
        dialog.session.encrypted();
        dialog.key = None;
    }
    let mut stream = timeout_at(dialog.key_until, tls.acceptor().accept(stream)).await??;
    if is_implicit {
        dialog.reply("220 postrider ESMTP");
    }
    dialog.converse(&mut stream).await?;
    // The end of TLS: without it the client cannot tell the end from a cut.
    let _ = timeout(FAREWELL, stream.shutdown()).await;
    Ok(())
}

/// What follows a part of a connection.
#[derive(Debug, PartialEq, Eq)]
enum After {
    End,
    Tls,
}

/// A message that comes, with the memory that it takes.
struct Incoming {
    content: Content,
    held: Held,
    counted: usize,
}

impl Incoming {
    fn new(max: usize) -> Self {
        Self { content: Content::new(max), held: Held::default(), counted: 0 }
    }

    /// Asks for the memory of what came. Without it the message is read to its end all the same, and let go.
    async fn count(&mut self, memory: &Memory) {
        while self.content.len() > self.counted {
            match memory.take(STEP, &mut self.held).await {
                Ok(()) => self.counted += STEP,
                Err(_) => self.content.spoil(Spoiled::NoMemory),
            }
        }
    }
}

struct Dialog<'a> {
    gateway: &'a Gateway,
    settings: &'a PortSettings,
    peer: IpAddr,
    /// When a client without a key has to go.
    key_until: Instant,
    session: Session,
    key: Option<Key>,
    /// Read, and not yet looked at: the rest of a pipeline.
    input: BytesMut,
    /// Answers that leave together, before the next read.
    output: Vec<u8>,
    /// A message in chunks.
    incoming: Option<Incoming>,
}

/// The two halves of a connection, in the clear or behind TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Dialog<'_> {
    fn reply(&mut self, text: &str) {
        self.output.extend_from_slice(text.as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    async fn converse(&mut self, stream: &mut impl Stream) -> io::Result<After> {
        loop {
            let action = match self.next_command(stream).await? {
                Some(Ok(command)) => self.session.command(command),
                Some(Err(Refused::Go(text))) => self.session.refuse(text),
                Some(Err(Refused::End(text))) => Action::End(text.to_owned()),
                None => return Ok(After::End),
            };
            if !self.session.has_chunks() {
                self.incoming = None;
            }
            let action = match action {
                Action::Auth(mechanism, initial) => self.authenticate(stream, mechanism, initial).await?,
                Action::ReadData(text) => self.data(stream, &text).await?,
                Action::ReadChunk { size, is_last, is_wanted } => self.chunk(stream, size, is_last, is_wanted).await?,
                other => other,
            };
            match action {
                Action::StartTls(_) if !self.input.is_empty() => {
                    // Commands that were sent with it would be taken for encrypted ones.
                    return self.end(stream, "501 5.5.4 Nothing may follow STARTTLS before its answer").await;
                }
                Action::StartTls(text) => {
                    self.reply(&text);
                    timeout(FAREWELL, self.flush(stream)).await??;
                    return Ok(After::Tls);
                }
                Action::End(text) => return self.end(stream, &text).await,
                Action::Say(text) => self.reply(&text),
                // These have become something to say above.
                Action::Auth(..) | Action::ReadData(_) | Action::ReadChunk { .. } => {}
            }
        }
    }

    async fn end(&mut self, stream: &mut impl Stream, text: &str) -> io::Result<After> {
        self.reply(text);
        timeout(FAREWELL, self.flush(stream)).await??;
        Ok(After::End)
    }

    /// The next command, or why there is none; nothing at the end of the connection.
    async fn next_command(&mut self, stream: &mut impl Stream) -> io::Result<Option<Result<Command, Refused>>> {
        let until = if self.key.is_some() { Instant::now() + SILENCE } else { self.key_until };
        let stop = &self.gateway.stop.clone();
        let line = tokio::select! {
            biased;
            line = timeout_at(until, self.line(stream)) => line,
            () = stop.cancelled() => return Ok(Some(Err(Refused::End("421 4.3.2 This gateway stops; send it again")))),
        };
        Ok(match line {
            Err(_) => Some(Err(Refused::End("421 4.4.2 Nothing was said for too long"))),
            Ok(Ok(None)) => None,
            Ok(Ok(Some(line))) => Some(command::parse(&line).map_err(Refused::Go)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Some(Err(Refused::End("500 5.5.2 A line ends with CR LF, and has at most 4096 octets")))
            }
            Ok(Err(error)) => return Err(error),
        })
    }

    /// The next line without its end; nothing at the end of the connection. A lone LF is no end of a line.
    async fn line(&mut self, stream: &mut impl Stream) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let mut line = self.input.split_to(end + 1);
                if end > LINE_MAX || !line.ends_with(b"\r\n") {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                line.truncate(end - 1);
                return Ok(Some(line));
            }
            if self.input.len() > LINE_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if !self.fill(stream).await? {
                return Ok(None);
            }
        }
    }

    /// Sends what is to be said, and reads. False: the other side has ended.
    async fn fill(&mut self, stream: &mut impl Stream) -> io::Result<bool> {
        self.flush(stream).await?;
        self.input.reserve(READ_SIZE);
        Ok(stream.read_buf(&mut self.input).await? > 0)
    }

    async fn flush(&mut self, stream: &mut impl Stream) -> io::Result<()> {
        if !self.output.is_empty() {
            stream.write_all(&self.output).await?;
            stream.flush().await?;
            self.output.clear();
        }
        Ok(())
    }

    /// The answer to a challenge; nothing where the client gives up.
    async fn ask(&mut self, stream: &mut impl Stream, challenge: &str) -> io::Result<Option<String>> {
        self.reply(challenge);
        let line = timeout_at(self.key_until, self.line(stream)).await??;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        Ok((text != "*").then_some(text))
    }

    async fn authenticate(
        &mut self,
        stream: &mut impl Stream,
        mechanism: Mechanism,
        initial: Option<String>,
    ) -> io::Result<Action> {
        let answer = match (mechanism, initial) {
            (Mechanism::Plain, Some(text)) => Some(text),
            (Mechanism::Plain, None) => self.ask(stream, "334 ").await?,
            // "Username:" and "Password:". Whoever it is, the password says it.
            (Mechanism::Login, None) => match self.ask(stream, "334 VXNlcm5hbWU6").await? {
                Some(_) => self.ask(stream, "334 UGFzc3dvcmQ6").await?,
                None => None,
            },
            (Mechanism::Login, Some(_)) => self.ask(stream, "334 UGFzc3dvcmQ6").await?,
        };
        let Some(answer) = answer else { return Ok(self.session.refuse("501 5.7.0 Given up")) };
        let Some(password) = password(mechanism, &answer) else {
            return Ok(self.session.refuse("501 5.5.2 The response does not have the form of the mechanism"));
        };
        let found = self.gateway.keys.load().authenticate(&password, Timestamp::now()).cloned();
        match found.and_then(|key| key.check(Scope::Send, self.peer).map(|()| key)) {
            Ok(key) => {
                self.key = Some(key);
                Ok(self.session.authenticated())
            }
            Err(problem) => {
                sleep(WRONG_KEY_DELAY).await;
                Ok(self.session.wrong_key(&problem.detail))
            }
        }
    }

    /// Reads a message up to its dot, and hands it over.
    async fn data(&mut self, stream: &mut impl Stream, go_ahead: &str) -> io::Result<Action> {
        self.reply(go_ahead);
        let (mut incoming, mut dots) = (Incoming::new(self.settings.size), Dots::default());
        let end = Instant::now() + MESSAGE_LIMIT;
        loop {
            let bytes = self.input.split();
            if let Some(used) = dots.feed(&bytes, &mut incoming.content) {
                self.input.extend_from_slice(&bytes[used..]);
                break;
            }
            incoming.count(&self.gateway.memory).await;
            self.more(stream, end).await?;
        }
        incoming.count(&self.gateway.memory).await;
        self.hand_over(incoming).await
    }

    /// Reads a chunk, and hands the message over with its last one.
    async fn chunk(
        &mut self,
        stream: &mut impl Stream,
        size: usize,
        is_last: bool,
        is_wanted: bool,
    ) -> io::Result<Action> {
        let mut incoming = self.incoming.take().unwrap_or_else(|| Incoming::new(self.settings.size));
        let (mut missing, end) = (size, Instant::now() + MESSAGE_LIMIT);
        loop {
            let bytes = self.input.split_to(missing.min(self.input.len()));
            missing -= bytes.len();
            if is_wanted {
                incoming.content.push(&bytes);
                incoming.count(&self.gateway.memory).await;
            }
            if missing == 0 {
                break;
            }
            self.more(stream, end).await?;
        }
        if !is_wanted {
            return Ok(self.session.refuse("503 5.5.1 Authenticate, then say MAIL and RCPT first"));
        }
        if is_last {
            return self.hand_over(incoming).await;
        }
        self.incoming = Some(incoming);
        Ok(Action::Say(format!("250 2.0.0 {size} octets received")))
    }

    /// Reads more of a message.
    async fn more(&mut self, stream: &mut impl Stream, end: Instant) -> io::Result<()> {
        let until = end.min(Instant::now() + MESSAGE_SILENCE);
        if timeout_at(until, self.fill(stream)).await?? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Makes a job of a message, publishes it, and says what became of it.
    async fn hand_over(&mut self, incoming: Incoming) -> io::Result<Action> {
        let Incoming { content, held, .. } = incoming;
        let envelope = self.session.take_envelope();
        let size = content.len();
        let done = match content.finish() {
            Err(spoiled) => Err(of_spoiled(spoiled)),
            Ok(message) => self.submit(&message, &envelope).await,
        };
        drop(held);
        let text = match &done {
            Ok(id) => format!("250 2.0.0 Queued as {id}"),
            Err(problem) => refusal(problem),
        };
        debug!(code = &text[..3], size, recipients = envelope.to.len(), "Answered a message by SMTP");
        Ok(Action::Say(text))
    }

    async fn submit(
        &self,
        message: &[u8],
        envelope: &super::session::Envelope,
    ) -> Result<postrider_schemas::JobId, Problem> {
        let shown = self.key.as_ref().ok_or_else(|| Problem::new(Kind::KeyMissing, "No API key was shown."))?;
        // It may have been revoked, or allow less, since it was shown.
        let key = self.gateway.keys.load().present(shown, Timestamp::now())?.clone();
        key.check(Scope::Send, self.peer)?;
        let Drafted { job, key: job_key } = message::draft(message, envelope, self.settings.derive_key)?;
        self.gateway.submit(Draft::from(job), &key, job_key).await
    }
}

/// Why a line is no command.
enum Refused {
    /// The conversation goes on.
    Go(&'static str),
    /// It ends.
    End(&'static str),
}

/// The password of a response. The user name says nothing.
fn password(mechanism: Mechanism, text: &str) -> Option<String> {
    let decoded = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    match mechanism {
        Mechanism::Login => Some(decoded),
        Mechanism::Plain => decoded.splitn(3, '\0').nth(2).map(str::to_owned),
    }
}

fn of_spoiled(spoiled: Spoiled) -> Problem {
    match spoiled {
        Spoiled::TooLarge => Problem::new(Kind::TooLarge, "The message is too large."),
        Spoiled::LoneLineEnd => Problem::new(Kind::Malformed, "Every line of a message ends with CR LF."),
        Spoiled::NoMemory => Problem::new(Kind::Slow, "This gateway is busy with large messages; send it again."),
    }
}

/// The answer of SMTP to a problem: 4xx where the client is to keep the message.
fn refusal(problem: &Problem) -> String {
    let code = match problem.kind {
        Kind::Unavailable => "451 4.3.0",
        Kind::Slow => "452 4.3.1",
        Kind::RateLimited => "450 4.7.1",
        Kind::TooLarge => "552 5.3.4",
        Kind::Forbidden | Kind::SenderForbidden | Kind::Unauthorized | Kind::KeyMissing => "550 5.7.1",
        _ => "550 5.6.0",
    };
    // One line, whatever the text is.
    let text: String = problem.sentence().chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect();
    format!("{code} {text}")
}

#[cfg(test)]
#[path = "dialog_tests.rs"]
mod tests;
