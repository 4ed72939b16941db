//! One conversation with a server, from the TCP connect to QUIT: opening it and the steps that everything else is made of.
//! The envelope and the message are in `transaction`, credentials in `auth`.
//!
//! **Invariant:** a session that did not end in order is dropped. Nothing here repairs one: whoever lost count of the
//! replies would take one message's answer for another's.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt},
    time::timeout,
};

use crate::{
    ehlo_capabilities::EhloCapabilities,
    failure::{Cause, Failure, Stage},
    observer::{Observer, Span, Step},
    reply::{Garbage, Reply, SmtpReplies, SmtpReply},
    result::RecipientReply,
    settings::{Settings, SettingsError, StageLimits, TlsMode},
    tls::TlsClient,
    wire::{Wire, connect},
};

/// Where sessions lead, and how they introduce themselves.
pub struct Client {
    settings: Settings,
    /// Present unless the mode is [`TlsMode::None`].
    tls: Option<TlsClient>,
    /// What EHLO says; the address of the connection where there is nothing.
    hello: Option<String>,
}

/// One conversation. Dropping it closes the connection at once.
pub struct Session<O: Observer = ()> {
    pub(crate) observer: O,
    pub(crate) wire: Wire,
    pub(crate) replies: SmtpReplies,
    /// What is to be written next, built here so that a flight of commands is one write.
    pub(crate) out: Vec<u8>,
    pub(crate) offers: EhloCapabilities,
    pub(crate) limits: StageLimits,
    /// Transactions begun.
    pub(crate) served: u32,
    /// Replies read since the transaction began.
    pub(crate) heard: u32,
    /// Of these, replies to RCPT.
    pub(crate) answered: usize,
    /// Recipients of the transaction that were refused so far.
    pub(crate) refused: Vec<RecipientReply>,
    /// The envelope goes in steps, whatever the server offers.
    pub(crate) is_serial: bool,
    /// Whether the final dot of the transaction may have left.
    pub(crate) may_be_taken: bool,
}

impl Client {
    /// Checks the settings and reads the certificates; connects to nothing.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        let tls = if settings.tls == TlsMode::None { None } else { Some(TlsClient::new(&settings)?) };
        let hello = hello_name(&settings.hello);
        Ok(Self { settings, tls, hello })
    }

    /// The settings that it was made of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Connects, encrypts, says EHLO and logs in, as the settings say. `observer` watches the session until its end.
    pub async fn connect<O: Observer>(&self, observer: O) -> Result<Session<O>, Failure> {
        let settings = &self.settings;
        let step = observer.begin(Step::Connect);
        let stream = connect(&settings.host, settings.port, settings.limits.connect)
            .await
            .map_err(|error| Failure::new(Stage::Connect, Cause::io(error)));
        let stream = step.note(stream)?;
        drop(step);
        let name = self.hello.clone().unwrap_or_else(|| address_literal(stream.local_addr()));
        let wire = match &self.tls {
            Some(tls) if settings.tls == TlsMode::Implicit => {
                let step = observer.begin(Step::Tls);
                step.note(tls.wrap(stream, settings.limits.tls, &observer).await)?
            }
            _ => Wire::Plain(stream),
        };
        let mut session = Session {
            observer,
            wire,
            replies: SmtpReplies::default(),
            out: Vec::with_capacity(512),
            offers: EhloCapabilities::default(),
            limits: settings.limits,
            served: 0,
            heard: 0,
            answered: 0,
            refused: Vec::new(),
            is_serial: !settings.pipelining,
            may_be_taken: false,
        };
        let step = session.observer.begin(Step::Hello);
        step.note(session.greeted(&name).await)?;
        drop(step);
        if let Some(tls) = self.tls.as_ref().filter(|_| settings.tls == TlsMode::StartTls) {
            let step = session.observer.begin(Step::Tls);
            session = step.note(session.start_tls(tls).await)?;
            step.note(session.hello(&name).await)?;
        }
        if let Some(auth) = &settings.auth {
            let step = session.observer.begin(Step::Auth);
            step.note(session.authenticate(auth).await)?;
        }
        Ok(session)
    }
}

impl<O: Observer> Session<O> {
    /// The greeting and the first EHLO.
    async fn greeted(&mut self, name: &str) -> Result<(), Failure> {
        let greeting = self.reply(Stage::Greeting, self.limits.command).await?;
        self.want_positive(Stage::Greeting, greeting)?;
        self.hello(name).await
    }

    async fn hello(&mut self, name: &str) -> Result<(), Failure> {
        let reply = self.command(Stage::Hello, &["EHLO ", name]).await?;
        self.offers = EhloCapabilities::default();
        // The server is older than extensions.
        if matches!(reply.code, 500 | 502) {
            let reply = self.command(Stage::Hello, &["HELO ", name]).await?;
            return self.want_positive(Stage::Hello, reply);
        }
        self.want_positive(Stage::Hello, reply)?;
        self.offers = EhloCapabilities::parse(self.replies.texts(reply));
        Ok(())
    }

    async fn start_tls(mut self, tls: &TlsClient) -> Result<Self, Failure> {
        if !self.offers.starttls {
            return Err(Failure::setup(Stage::Tls, "the relay does not offer STARTTLS"));
        }
        let reply = self.command(Stage::Tls, &["STARTTLS"]).await?;
        self.want_positive(Stage::Tls, reply)?;
        // Somebody on the way may have put replies here that would later seem to come through the encryption.
        if !self.replies.is_empty() {
            return Err(Failure::setup(Stage::Tls, "the relay sent more than the answer to STARTTLS in clear"));
        }
        if let Wire::Plain(stream) = self.wire {
            self.wire = tls.wrap(stream, self.limits.tls, &self.observer).await?;
        }
        Ok(self)
    }

    /// One command, given in parts, and its reply.
    pub(crate) async fn command(&mut self, stage: Stage, parts: &[&str]) -> Result<SmtpReply, Failure> {
        self.out.clear();
        for part in parts {
            self.out.extend_from_slice(part.as_bytes());
        }
        self.out.extend_from_slice(b"\r\n");
        self.write_out(stage).await?;
        self.reply(stage, self.limits.command).await
    }

    /// Writes what is in `out`, in one go.
    pub(crate) async fn write_out(&mut self, stage: Stage) -> Result<(), Failure> {
        // Bytes that are here before the question are no answer to it.
        if !self.replies.is_empty() {
            return Err(Failure::new(stage, Garbage::Surplus));
        }
        let limit = self.limits.command;
        let write = async {
            self.wire.write_all(&self.out).await?;
            self.wire.flush().await
        };
        match timeout(limit, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::new(stage, Cause::io(error))),
            Err(_) => Err(Failure::new(stage, Cause::TimedOut(limit))),
        }
    }

    /// The next reply, whole and within `limit`.
    pub(crate) async fn reply(&mut self, stage: Stage, limit: Duration) -> Result<SmtpReply, Failure> {
        let reply = match self.replies.take() {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => match timeout(limit, self.read_reply()).await {
                Ok(read) => read,
                Err(_) => Err(Cause::TimedOut(limit)),
            },
            Err(garbage) => Err(Cause::Garbage(garbage)),
        };
        match reply {
            // After the dot its beginning says what matters; before, what follows could not be read.
            Ok(reply) if reply.is_cut && stage != Stage::Body => Err(Failure::new(stage, Garbage::LongReply)),
            Ok(reply) => {
                self.heard += 1;
                Ok(reply)
            }
            Err(cause) => Err(Failure::new(stage, cause)),
        }
    }

    /// Reads until a whole reply is there.
    pub(crate) async fn read_reply(&mut self) -> Result<SmtpReply, Cause> {
        loop {
            let count = self.wire.read(self.replies.spare()).await.map_err(Cause::io)?;
            if count == 0 {
                return Err(Cause::Closed);
            }
            self.replies.filled(count);
            if let Some(reply) = self.replies.take()? {
                return Ok(reply);
            }
        }
    }

    pub(crate) fn want_positive(&self, stage: Stage, reply: SmtpReply) -> Result<(), Failure> {
        if reply.is_positive() { Ok(()) } else { Err(self.unwanted(stage, reply)) }
    }

    /// `None` for a positive reply, the reply for a negative one. 421 is a failure: the server hangs up after it, so no other reply follows.
    /// So is a reply that does not belong here.
    pub(crate) fn refusal(&self, stage: Stage, reply: SmtpReply) -> Result<Option<Reply>, Failure> {
        if reply.is_positive() {
            return Ok(None);
        }
        if reply.code < 400 || reply.code == 421 {
            return Err(self.unwanted(stage, reply));
        }
        Ok(Some(self.replies.owned(reply)))
    }

    pub(crate) fn unwanted(&self, stage: Stage, reply: SmtpReply) -> Failure {
        Failure::reply(stage, self.replies.owned(reply))
    }

    /// What the server offered in its answer to EHLO.
    pub fn capabilities(&self) -> EhloCapabilities {
        self.offers
    }

    /// Sends the envelope in steps from now on, whatever the server offers.
    pub fn send_in_steps(&mut self) {
        self.is_serial = true;
    }

    /// True when nothing came since the last reply: neither bytes nor the end of the connection.
    pub fn is_quiet(&mut self) -> bool {
        self.replies.is_empty() && self.wire.is_quiet()
    }

    /// Transactions begun on this connection.
    pub fn served(&self) -> u32 {
        self.served
    }

    /// Ends whatever transaction the relay may think is under way. False when the connection is of no further use.
    pub async fn reset(&mut self) -> bool {
        match self.command(Stage::MailFrom, &["RSET"]).await {
            Ok(reply) => reply.is_positive() && self.replies.is_empty(),
            Err(_) => false,
        }
    }

    /// Says QUIT and waits for the answer, within `limit`.
    pub async fn quit(mut self, limit: Duration) {
        let _ = timeout(limit, self.command(Stage::Connect, &["QUIT"])).await;
    }

    /// Says QUIT without waiting: as polite as can be had for nothing.
    pub fn hang_up(mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.wire).poll_write(&mut context, b"QUIT\r\n");
        let _ = Pin::new(&mut self.wire).poll_flush(&mut context);
    }
}

/// What EHLO says where a name or an IP address is set.
fn hello_name(hello: &str) -> Option<String> {
    match hello.parse() {
        Ok(ip) => Some(literal(ip)),
        Err(_) => Some(hello.to_owned()).filter(|hello| !hello.is_empty()),
    }
}

/// Who has no name says the address that the server sees, as far as that is known here (RFC 5321 4.1.3).
fn address_literal(local: std::io::Result<SocketAddr>) -> String {
    literal(local.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip().to_canonical()))
}

fn literal(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("[{ip}]"),
        IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_a_name_as_the_standard_writes_it() {
        let literal = |text: &str| address_literal(Ok(text.parse().unwrap()));
        assert_eq!(literal("192.0.2.7:40000"), "[192.0.2.7]");
        assert_eq!(literal("[::ffff:192.0.2.7]:40000"), "[192.0.2.7]");
        assert_eq!(literal("[2001:db8::7]:40000"), "[IPv6:2001:db8::7]");
        assert_eq!(hello_name("192.0.2.7").as_deref(), Some("[192.0.2.7]"));
        assert_eq!(hello_name("mail.example").as_deref(), Some("mail.example"));
        assert_eq!(hello_name(""), None);
    }
}
