//! One conversation with a relay, from the TCP connect to QUIT: opening it and the steps that everything else is made of.
//! The envelope and the message are in `transaction`, credentials in `auth`.
//!
//! **Invariant:** a session that did not end in order is dropped. Nothing here repairs one: whoever lost count of the
//! replies would take one message's answer for another's.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use lettre::transport::smtp::extension::ClientId;
use tokio::{
    io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt},
    time::timeout,
};

use super::{
    ehlo_capabilities::EhloCapabilities,
    failure::{Kind, SmtpFailure, SmtpTrouble},
    reply::{Garbage, SmtpReplies, SmtpReply},
    settings::{RelaySettings, StageLimits, TlsMode},
    tls::TlsClient,
    wire::{Wire, connect},
};
use crate::{
    policy::{
        answers::Answers,
        classify::DataPhase,
        outcome::{Answer, Class, RecipientRefusal, Refusal, Stage},
    },
    telemetry::traces,
};

/// Where sessions lead, and how they introduce themselves.
pub struct RelayAddress {
    /// As they were given.
    pub settings: RelaySettings,
    /// Present unless the mode is [`TlsMode::None`].
    pub tls: Option<TlsClient>,
    /// The name for EHLO; the address of the connection, as a literal, where there is none.
    pub hello: Option<ClientId>,
}

/// Counts as one open connection for as long as it lives.
pub struct OpenMark(Arc<AtomicUsize>);

impl OpenMark {
    /// Adds one to `open` until it is dropped.
    pub fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One conversation. Dropping it closes the connection at once.
pub struct Session {
    pub(super) wire: Wire,
    pub(super) replies: SmtpReplies,
    /// What is to be written next, built here so that a flight of commands is one write.
    pub(super) out: Vec<u8>,
    pub(super) offers: EhloCapabilities,
    pub(super) limits: StageLimits,
    pub(super) answers: Arc<Answers>,
    /// Transactions begun.
    pub(super) served: u32,
    /// Replies read since the transaction began.
    pub(super) heard: u32,
    /// Of these, replies to RCPT.
    pub(super) answered: usize,
    /// Recipients of the transaction that were refused so far.
    pub(super) refused: Vec<RecipientRefusal>,
    /// The envelope goes in steps, whatever the relay offers.
    pub(super) is_serial: bool,
    /// Whether the final dot of the transaction may have left.
    pub(super) handover: DataPhase,
    _mark: OpenMark,
}

impl Session {
    /// Connects, encrypts, introduces itself and logs in, as the settings say.
    pub async fn open(target: &RelayAddress, mark: OpenMark) -> Result<Self, SmtpFailure> {
        let settings = &target.settings;
        let step = traces::step("smtp connect");
        let stream = connect(&settings.host, settings.port, settings.limits.connect)
            .await
            .map_err(|error| SmtpFailure::trouble(Stage::Connect, &SmtpTrouble::from(error), DataPhase::No));
        let stream = noted(&step, stream)?;
        drop(step);
        let name = target.hello.clone().unwrap_or_else(|| address_literal(stream.local_addr()));
        let wire = match &target.tls {
            Some(tls) if settings.tls == TlsMode::Implicit => {
                let step = traces::step("smtp tls");
                noted(&step, tls.wrap(stream, settings.limits.tls).await)?
            }
            _ => Wire::Plain(stream),
        };
        let mut session = Self {
            wire,
            replies: SmtpReplies::default(),
            out: Vec::with_capacity(512),
            offers: EhloCapabilities::default(),
            limits: settings.limits,
            answers: Arc::clone(&settings.answers),
            served: 0,
            heard: 0,
            answered: 0,
            refused: Vec::new(),
            is_serial: !settings.pipelining,
            handover: DataPhase::No,
            _mark: mark,
        };
        let step = traces::step("smtp hello");
        noted(&step, session.greeted(&name, settings.tls).await)?;
        drop(step);
        if let Some(tls) = target.tls.as_ref().filter(|_| settings.tls == TlsMode::StartTls) {
            let step = traces::step("smtp tls");
            session = noted(&step, session.start_tls(tls).await)?;
            noted(&step, session.hello(&name).await)?;
        }
        if let Some(auth) = &settings.auth {
            let step = traces::step("smtp auth");
            noted(&step, session.authenticate(auth).await)?;
        }
        tracing::debug!(offers = ?session.offers, "Opened a connection to the relay");
        Ok(session)
    }

    /// The greeting and the first EHLO.
    async fn greeted(&mut self, name: &ClientId, tls: TlsMode) -> Result<(), SmtpFailure> {
        let greeting = self.reply(Stage::Connect, self.limits.command).await;
        let greeting = greeting.map_err(|failure| match (failure.kind, tls) {
            (Kind::Silent | Kind::Lost, TlsMode::None | TlsMode::StartTls) => {
                failure.with_hint("there was no greeting: is this port implicit TLS (`tls = \"implicit\"`)?")
            }
            _ => failure,
        })?;
        self.want_positive(Stage::Connect, greeting).map_err(|failure| match failure.answer.code {
            Some(521 | 554) => {
                failure.with_hint("it refuses every connection from here: is `host` a relay for this machine?")
            }
            _ => failure,
        })?;
        self.hello(name).await
    }

    async fn hello(&mut self, name: &ClientId) -> Result<(), SmtpFailure> {
        let name = name.to_string();
        let reply = self.command(Stage::Hello, &["EHLO ", &name]).await?;
        self.offers = EhloCapabilities::default();
        // The relay is older than extensions.
        if matches!(reply.code, 500 | 502) {
            let reply = self.command(Stage::Hello, &["HELO ", &name]).await?;
            return self.want_positive(Stage::Hello, reply);
        }
        self.want_positive(Stage::Hello, reply)?;
        self.offers = EhloCapabilities::parse(self.replies.texts(reply));
        Ok(())
    }

    async fn start_tls(mut self, tls: &TlsClient) -> Result<Self, SmtpFailure> {
        if !self.offers.starttls {
            return Err(SmtpFailure::local(Stage::Tls, Class::Config, "the relay does not offer STARTTLS"));
        }
        let reply = self.command(Stage::Tls, &["STARTTLS"]).await?;
        self.want_positive(Stage::Tls, reply)?;
        // Somebody on the way may have put replies here that would later seem to come through the encryption.
        if !self.replies.is_empty() {
            let text = "the relay sent more than the answer to STARTTLS in clear";
            return Err(SmtpFailure::local(Stage::Tls, Class::Config, text));
        }
        if let Wire::Plain(stream) = self.wire {
            self.wire = tls.wrap(stream, self.limits.tls).await?;
        }
        Ok(self)
    }

    /// One command, given in parts, and its reply.
    pub(super) async fn command(&mut self, stage: Stage, parts: &[&str]) -> Result<SmtpReply, SmtpFailure> {
        self.out.clear();
        for part in parts {
            self.out.extend_from_slice(part.as_bytes());
        }
        self.out.extend_from_slice(b"\r\n");
        self.send(stage).await?;
        self.reply(stage, self.limits.command).await
    }

    /// Writes what is in `out`, in one go.
    pub(super) async fn send(&mut self, stage: Stage) -> Result<(), SmtpFailure> {
        // Bytes that are here before the question are no answer to it.
        if !self.replies.is_empty() {
            return Err(self.trouble(stage, &SmtpTrouble::Garbage(Garbage::Surplus)));
        }
        let limit = self.limits.command;
        let write = async {
            self.wire.write_all(&self.out).await?;
            self.wire.flush().await
        };
        match timeout(limit, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.trouble(stage, &SmtpTrouble::from(error))),
            Err(_) => Err(self.trouble(stage, &SmtpTrouble::TimedOut(limit))),
        }
    }

    /// The next reply, whole and within `limit`.
    pub(super) async fn reply(&mut self, stage: Stage, limit: Duration) -> Result<SmtpReply, SmtpFailure> {
        let reply = match self.replies.take() {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => match timeout(limit, self.read_reply()).await {
                Ok(read) => read,
                Err(_) => Err(SmtpTrouble::TimedOut(limit)),
            },
            Err(garbage) => Err(SmtpTrouble::Garbage(garbage)),
        };
        match reply {
            // After the dot its beginning says what matters; before, what follows could not be read.
            Ok(reply) if reply.is_cut && stage != Stage::Body => {
                Err(self.trouble(stage, &SmtpTrouble::Garbage(Garbage::LongReply)))
            }
            Ok(reply) => {
                self.heard += 1;
                Ok(reply)
            }
            Err(trouble) => Err(self.trouble(stage, &trouble)),
        }
    }

    /// Reads until a whole reply is there.
    pub(super) async fn read_reply(&mut self) -> Result<SmtpReply, SmtpTrouble> {
        loop {
            let count = self.wire.read(self.replies.spare()).await?;
            if count == 0 {
                return Err(SmtpTrouble::Closed);
            }
            self.replies.filled(count);
            if let Some(reply) = self.replies.take()? {
                return Ok(reply);
            }
        }
    }

    pub(super) fn want_positive(&self, stage: Stage, reply: SmtpReply) -> Result<(), SmtpFailure> {
        if reply.is_positive() { Ok(()) } else { Err(self.unwanted(stage, reply)) }
    }

    /// `None` for a positive reply, the refusal for a negative one. 421 is a failure: the relay hangs up after it, so no
    /// other reply follows. So is a reply that does not belong here.
    pub(super) fn refusal(&self, stage: Stage, reply: SmtpReply) -> Result<Option<Refusal>, SmtpFailure> {
        if reply.is_positive() {
            return Ok(None);
        }
        let failure = self.unwanted(stage, reply);
        if reply.code < 400 || reply.code == 421 {
            return Err(failure);
        }
        Ok(failure.into_refusal())
    }

    pub(super) fn answer(&self, stage: Stage, reply: SmtpReply) -> Answer {
        self.replies.answer(stage, reply)
    }

    pub(super) fn unwanted(&self, stage: Stage, reply: SmtpReply) -> SmtpFailure {
        let (_, text) = self.replies.words(reply);
        SmtpFailure::reply(&self.answers, self.answer(stage, reply), &text, self.handover)
    }

    pub(super) fn trouble(&self, stage: Stage, trouble: &SmtpTrouble) -> SmtpFailure {
        SmtpFailure::trouble(stage, trouble, self.handover)
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

/// What a machine without a full name is called: the address that the relay sees, as far as that is known here (RFC 5321 4.1.3).
fn address_literal(local: std::io::Result<SocketAddr>) -> ClientId {
    match local.map(|address| address.ip().to_canonical()) {
        Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
        Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
        Err(_) => ClientId::default(),
    }
}

/// Marks a step as failed where it is.
pub(super) fn noted<T>(step: &traces::TraceStep, result: Result<T, SmtpFailure>) -> Result<T, SmtpFailure> {
    if step.is_recorded()
        && let Err(failure) = &result
    {
        step.fail(failure.answer.stage.as_str(), &failure.answer.to_string());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_a_name_as_the_standard_writes_it() {
        let literal = |text: &str| address_literal(Ok(text.parse().unwrap())).to_string();
        assert_eq!(literal("192.0.2.7:40000"), "[192.0.2.7]");
        assert_eq!(literal("[::ffff:192.0.2.7]:40000"), "[192.0.2.7]");
        assert_eq!(literal("[2001:db8::7]:40000"), "[IPv6:2001:db8::7]");
    }
}
