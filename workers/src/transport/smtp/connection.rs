//! A session of this worker: it counts as an open connection, and its steps are told as traces.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use postrider_smtp::{Client, Failure, Observer, Session, Span, Step};

use super::outcome::Reader;
use crate::{
    policy::answers::Answers,
    telemetry::{registry::attribute, traces},
    transport::certificate::Shown,
};

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

/// Tells the steps of a session as traces.
pub struct Watcher {
    shown: Arc<Shown>,
    tls: postrider_smtp::TlsMode,
}

/// A step under way.
pub struct WatchedStep(traces::TraceStep, postrider_smtp::TlsMode);

impl Observer for Watcher {
    type Span = WatchedStep;

    fn begin(&self, step: Step) -> WatchedStep {
        let begun = traces::step(match step {
            Step::Connect => "smtp connect",
            Step::Tls => "smtp tls",
            Step::Hello => "smtp hello",
            Step::Auth => "smtp auth",
            Step::Envelope => "smtp envelope",
            Step::Mail => "smtp mail",
            Step::Rcpt => "smtp rcpt",
            Step::Data => "smtp data",
            Step::Body => "smtp body",
        });
        if step == Step::Envelope {
            begun.set(attribute::SMTP_COMMANDS, "MAIL RCPT DATA");
        }
        WatchedStep(begun, self.tls)
    }

    fn certificate(&self, der: &[u8]) {
        self.shown.note(der);
    }
}

impl Span for WatchedStep {
    fn failed(&self, failure: &Failure) {
        if self.0.is_recorded() {
            let answer = Reader { answers: &Answers::default(), tls: self.1 }.answer(failure);
            self.0.fail(answer.stage.as_str(), &answer.to_string());
        }
    }
}

/// A session and its mark. Dropping it closes the connection at once.
pub struct Connection {
    /// The conversation.
    pub session: Session<Watcher>,
    _mark: OpenMark,
}

impl Connection {
    /// Connects, encrypts and logs in.
    pub async fn open(client: &Client, shown: &Arc<Shown>, mark: OpenMark) -> Result<Self, Failure> {
        let watcher = Watcher { shown: Arc::clone(shown), tls: client.settings().tls };
        let session = client.connect(watcher).await?;
        tracing::debug!(offers = ?session.capabilities(), "Opened a connection to the relay");
        Ok(Self { session, _mark: mark })
    }

    /// Says QUIT and waits for the answer, within `limit`.
    pub async fn quit(self, limit: Duration) {
        self.session.quit(limit).await;
    }

    /// Says QUIT without waiting.
    pub fn hang_up(self) {
        self.session.hang_up();
    }
}
