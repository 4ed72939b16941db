//! The ways out. Each transport takes a message and answers with an [`Outcome`].

mod certificate;

pub mod local;

pub mod provider;
pub mod smtp;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use postrider_providers::batch::Item;
use postrider_schemas::Lane;
use tokio::time::Instant;

use self::provider::batcher::{BatchTicket, Batcher};
use crate::{
    concurrency::bulkhead::{Bulkhead, EntryRequest, Occupant},
    config::{TransportConfig, TransportKind},
    message::{ComposeError, outgoing::OutgoingMessage},
    policy::{
        capabilities::{Capabilities, TransportType},
        outcome::{Answer, Class, Outcome, RecipientRefusal, Refusal, Stage},
    },
    redact,
    telemetry::traces,
};

/// Who waits for a place for longer than this might have a token that is late by then.
const LONG_WAIT_US: u64 = 50_000;

/// A transport that answers nobody for so long, while jobs wait for it, is silent.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// A configured way out.
pub struct Transport {
    /// Its name in the configuration.
    pub name: String,
    /// What it can carry.
    pub capabilities: Capabilities,
    /// What it is.
    pub kind: TransportType,
    /// Name, host and port, as every attempt's trace tells them.
    pub(crate) told: (Arc<str>, Arc<str>, u16),
    way: TransportBackend,
    /// How long the one waited, in microseconds, who got a place last, by lane.
    waited_us: [AtomicU64; 2],
    /// Those who wait for one or have one, by lane.
    bulkheads: [Bulkhead; 2],
    began: Instant,
    /// Since when nobody was answered who had a place, in microseconds since `began`; zero where nobody has asked.
    asked_us: AtomicU64,
}

enum TransportBackend {
    Smtp(Box<smtp::Relay>),
    Provider {
        provider: Arc<provider::Provider>,
        /// Where jobs of the bulk lane may share calls.
        batcher: Option<Batcher>,
    },
}

/// What a delivery has to wait for before its token is spent.
pub struct TransportPermit<'a> {
    turn: TransportTurn<'a>,
    _occupant: Occupant<'a>,
}

enum TransportTurn<'a> {
    /// A connection to a relay.
    Connection(smtp::ConnectionPermit<'a>),
    /// A call to a provider.
    Call(provider::CallPermit<'a>),
    /// A part of a call that others share and that is about to be made.
    Shared(BatchTicket),
}

/// Why a delivery gets none.
#[derive(Debug)]
pub enum NoPermit {
    /// It ends here.
    Outcome(Outcome),
    /// Too many wait before it: it is deferred for so long.
    Overloaded(Duration),
}

impl TransportBackend {
    /// Host and port.
    fn address(&self) -> (&str, u16) {
        match self {
            Self::Smtp(relay) => relay.address(),
            Self::Provider { provider, .. } => provider.address(),
        }
    }
}

/// Why a transport cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TransportSetupError {
    /// A relay.
    #[error(transparent)]
    Relay(#[from] smtp::SettingsError),
    /// A provider.
    #[error(transparent)]
    Provider(#[from] provider::client::ClientError),
}

impl Transport {
    /// Sets a transport up; connects to nothing yet.
    pub fn new(config: &TransportConfig) -> Result<Self, TransportSetupError> {
        redact::learn(&config.unspeakable());
        let capabilities = config.capabilities();
        let way = match &config.kind {
            TransportKind::Smtp(smtp) => TransportBackend::Smtp(Box::new(smtp::Relay::new(smtp.as_ref().into())?)),
            TransportKind::Provider(settings) => {
                let provider = Arc::new(provider::Provider::new(settings)?);
                let batching = provider.batching().filter(|_| capabilities.batch_max > 1);
                let batcher = batching
                    .map(|batching| Batcher::new(provider.clone(), batching, &capabilities, settings.batch_linger));
                TransportBackend::Provider { provider, batcher }
            }
        };
        let (host, port) = way.address();
        let told = (config.name.as_str().into(), host.into(), port);
        let waited_us = Default::default();
        let began = Instant::now();
        let bulkheads = [(); 2].map(|()| Bulkhead::new(began));
        let (name, kind) = (config.name.clone(), config.kind());
        let asked_us = AtomicU64::default();
        Ok(Self { name, capabilities, kind, told, way, waited_us, bulkheads, began, asked_us })
    }

    /// Connects to a relay, says who we are, logs in, and says goodbye. The text says what went wrong. An API is not asked: a call would be a message.
    pub async fn greet(&self) -> Result<(), String> {
        match &self.way {
            TransportBackend::Smtp(relay) => relay.greet().await,
            TransportBackend::Provider { .. } => Ok(()),
        }
    }

    /// Whether whoever comes now waits for a connection or a call, and for long, as far as the last one of its lane and the first one in line tell.
    pub fn is_saturated(&self, lane: Lane) -> bool {
        let is_full = match &self.way {
            TransportBackend::Smtp(relay) => relay.is_saturated(),
            TransportBackend::Provider { provider, .. } => provider.is_saturated(),
        };
        let is_long = |waited_us: u64| waited_us > LONG_WAIT_US;
        let first_us = || micros(self.bulkheads[lane as usize].first_waits(Instant::now()));
        is_full && (is_long(self.waited_us[lane as usize].load(Ordering::Relaxed)) || is_long(first_us()))
    }

    /// Hears what came of an attempt.
    pub fn heard(&self, outcome: &Outcome) {
        let is_answer = match outcome {
            Outcome::Accepted { .. } => true,
            Outcome::Refused { refusal, .. } => refusal.answer.code.is_some(),
            Outcome::Unknown(_) | Outcome::LostClaim => false,
        };
        if is_answer {
            let now = micros(self.began.elapsed()).max(1);
            let is_at_work = self.bulkheads.iter().any(Bulkhead::is_at_work);
            self.asked_us.store(if is_at_work { now } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Whether it answered nobody for a while who had a place, though jobs of the lane were here. A worker whose turn it is not has asked nothing.
    pub fn is_silent(&self, lane: Lane) -> bool {
        self.is_silent_at(lane, Instant::now())
    }

    fn is_silent_at(&self, lane: Lane, now: Instant) -> bool {
        let asked = self.asked_us.load(Ordering::Relaxed);
        let since = self.bulkheads[lane as usize].since().filter(|_| asked > 0);
        let asked = self.began + Duration::from_micros(asked);
        since.is_some_and(|since| now.duration_since(since.max(asked)) > SILENT_AFTER)
    }

    /// Waits for a connection, or for the right to make a call, for this message; with others, where it shares the call. Transactional mail goes before bulk
    /// mail. Where an entry request is given, the job is deferred instead where its transport or its tenant occupies its share of the job slots.
    pub async fn acquire(
        &self,
        message: &OutgoingMessage<'_>,
        request: Option<&EntryRequest<'_>>,
    ) -> Result<TransportPermit<'_>, NoPermit> {
        if let TransportBackend::Smtp(_) = &self.way {
            // Made before: nobody waits for a connection on which a message is being made.
            let composing = traces::step("compose");
            let composed = message.compose().await.map(drop);
            drop(composing);
            composed.map_err(|error| NoPermit::Outcome(cannot_be_made(&error)))?;
        }
        let (lane, begun) = (message.job.lane(), Instant::now());
        let bulkhead = &self.bulkheads[lane as usize];
        let occupant = match request {
            Some(request) => bulkhead.enter(request).await.map_err(NoPermit::Overloaded)?,
            None => bulkhead.enter_at_once(),
        };
        let (turn, on_purpose) = self.turn(message).await;
        let waited_us = micros(begun.elapsed().saturating_sub(on_purpose));
        self.waited_us[lane as usize].store(waited_us, Ordering::Relaxed);
        let turn = turn.map_err(NoPermit::Outcome)?;
        self.asks(Instant::now());
        occupant.has_turn();
        Ok(TransportPermit { turn, _occupant: occupant })
    }

    /// Somebody has a place.
    fn asks(&self, now: Instant) {
        let now = micros(now.duration_since(self.began)).max(1);
        let _ = self.asked_us.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The place, once it is this message's turn, and how long at most it waits for others on purpose.
    async fn turn(&self, message: &OutgoingMessage<'_>) -> (Result<TransportTurn<'_>, Outcome>, Duration) {
        let lane = message.job.lane();
        let place = match &self.way {
            TransportBackend::Smtp(relay) => relay.acquire(lane).await.map(TransportTurn::Connection),
            TransportBackend::Provider { provider, batcher } => match with_others(batcher.as_ref(), message).await {
                Some((batcher, item)) => {
                    return (batcher.join(message, item).await.map(TransportTurn::Shared), batcher.linger());
                }
                None => provider.acquire(lane).await.map(TransportTurn::Call),
            },
        };
        (place, Duration::ZERO)
    }

    /// So long at most a message that has this place waited for others on purpose. Its token is none the worse for that.
    pub fn lingered(&self, place: &TransportPermit<'_>) -> Duration {
        match (&self.way, &place.turn) {
            (TransportBackend::Provider { batcher: Some(batcher), .. }, TransportTurn::Shared(_)) => batcher.linger(),
            _ => Duration::ZERO,
        }
    }

    /// Waits for a place and delivers: see [`Transport::deliver_with`].
    pub async fn deliver<F>(&self, message: &OutgoingMessage<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        match self.acquire(message, None).await {
            Ok(place) => self.deliver_with(place, message, may_submit).await,
            Err(NoPermit::Outcome(outcome)) => outcome,
            // Nobody came who could be deferred.
            Err(NoPermit::Overloaded(_)) => Outcome::LostClaim,
        }
    }

    /// Delivers to the recipients of the message, at most once. `may_submit` is asked before the first byte of the message goes out.
    pub async fn deliver_with<F>(
        &self,
        place: TransportPermit<'_>,
        message: &OutgoingMessage<'_>,
        may_submit: F,
    ) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let TransportPermit { turn, _occupant } = place;
        let (relay, place) = match (&self.way, turn) {
            (TransportBackend::Smtp(relay), TransportTurn::Connection(place)) => (relay, place),
            (TransportBackend::Provider { .. }, TransportTurn::Shared(joined)) => {
                return joined.deliver(may_submit).await;
            }
            (TransportBackend::Provider { provider, .. }, TransportTurn::Call(place)) => {
                return provider.deliver_with(place, message, may_submit).await;
            }
            _ => return elsewhere(),
        };
        let composed = match message.mime() {
            Ok(composed) => composed,
            Err(error) => return cannot_be_made(&error),
        };
        let recipients = message.recipients();
        let from = message.job.sender();
        let mail = smtp::Mail { from, recipients: &recipients, message: &composed.message };
        in_terms_of_the_job(relay.deliver_with(place, mail, may_submit).await, &message.indices)
    }

    /// True for an SMTP relay.
    pub fn is_relay(&self) -> bool {
        matches!(self.way, TransportBackend::Smtp(_))
    }

    /// When the transport may be used again, where an answer said that nothing is left until then. Said once, to whoever asks first.
    pub fn used_up_until(&self) -> Option<Instant> {
        match &self.way {
            TransportBackend::Smtp(_) => None,
            TransportBackend::Provider { provider, .. } => provider.used_up_until(),
        }
    }

    /// Connections at work, idle ones, and how many there may be.
    pub fn connections(&self) -> (usize, usize, usize) {
        match &self.way {
            TransportBackend::Smtp(relay) => {
                let (open, idle) = (relay.open_connections(), relay.idle_connections());
                (open.saturating_sub(idle), idle, relay.connections_max())
            }
            TransportBackend::Provider { provider, .. } => {
                let (busy, most) = provider.calls();
                (busy, 0, most)
            }
        }
    }

    /// When the certificate ends that the relay or the API showed last; nothing where there was none yet.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        match &self.way {
            TransportBackend::Smtp(relay) => relay.certificate_end(),
            TransportBackend::Provider { provider, .. } => provider.certificate_end(),
        }
    }

    /// For so long the delivery of this message may be repeated at this transport after an unknown outcome: the provider recognises the call by its
    /// key. Nothing where there is no key, and where the message shares a call with others, whose company would differ the next time.
    pub fn repeatable_for(&self, message: &OutgoingMessage<'_>) -> Option<Duration> {
        match &self.way {
            TransportBackend::Provider { batcher: Some(batcher), .. } if batcher.item(message).is_some() => None,
            _ => self.capabilities.idempotency,
        }
    }

    /// The relay, where it is one.
    pub fn relay(&self) -> Option<&smtp::Relay> {
        match &self.way {
            TransportBackend::Smtp(relay) => Some(relay),
            TransportBackend::Provider { .. } => None,
        }
    }

    /// Another transport stands for it from now on. Attempts that have begun with it go on; connections that nobody waits for are closed.
    pub fn replace(&self) {
        if let TransportBackend::Smtp(relay) = &self.way {
            relay.replace();
        }
    }

    /// Says goodbye on idle connections, within a limit of its own.
    pub async fn close(&self) {
        if let TransportBackend::Smtp(relay) = &self.way {
            relay.close().await;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The item of a message that may share a call, and who brings those together.
async fn with_others<'a>(batcher: Option<&'a Batcher>, message: &OutgoingMessage<'_>) -> Option<(&'a Batcher, Item)> {
    let batcher = batcher?;
    let asked = batcher.clone();
    let item = message.aside(move |message| asked.item(message)).await?;
    Some((batcher, item))
}

/// A place at another transport than this one: nothing was said to anybody.
fn elsewhere() -> Outcome {
    let answer = Answer::local(Stage::Connect, "the place is another transport's");
    Outcome::Refused { refusal: Refusal { class: Class::Transient, answer, retry_after: None }, recipients: Vec::new() }
}

/// A message that no transport can send, because it cannot be made.
pub fn cannot_be_made(error: &ComposeError) -> Outcome {
    let answer = Answer::local(Stage::Compose, &error.to_string());
    let class = if error.is_limit() { Class::TemplateLimit } else { Class::Message };
    let refusal = Refusal { class, answer, retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

/// Transports name recipients by their position in the call; a job names them by their position in its envelope.
fn in_terms_of_the_job(outcome: Outcome, indices: &[usize]) -> Outcome {
    let rename = |list: Vec<RecipientRefusal>| {
        list.into_iter()
            .filter_map(|one| Some(RecipientRefusal { index: *indices.get(one.index)?, refusal: one.refusal }))
            .collect()
    };
    match outcome {
        Outcome::Accepted { receipt, refused } => Outcome::Accepted { receipt, refused: rename(refused) },
        Outcome::Refused { refusal, recipients } => Outcome::Refused { refusal, recipients: rename(recipients) },
        other => other,
    }
}

#[cfg(test)]
mod tests;
