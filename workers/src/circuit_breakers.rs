//! What this worker knows of the transports' circuits. Asking costs nothing while a circuit is closed: a task looks into the store now and
//! then, and an own failure is known at once. The store alone says who may probe.

mod systemic_refusals;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use postrider_schemas::{Event, EventType};
use tracing::{error, info, warn};

use crate::{
    config::TransportConfig,
    policy::outcome::{Answer, Class, Mark, Outcome, Stage},
    store::{
        Store,
        circuit::{Circuit, CircuitAnswer, CircuitCall, PROBE, REASON_MAX, WAIT_MAX},
    },
    telemetry::metrics,
};

/// The first wait for a transport that is not there: most are back in a moment.
const ABSENT_WAIT: Duration = Duration::from_secs(2);

/// What hears an answer here: the circuit of the transport that gave it.
const CIRCUIT: &str = "circuit";

/// The circuits of all transports.
pub struct CircuitBreakers {
    store: Store,
    names: Vec<String>,
    keys: Vec<String>,
    seen: Mutex<Vec<Option<Circuit>>>,
    first_wait: Duration,
    /// Which transports gave an answer that no known word explains, and accepted nobody since.
    has_unexplained: Vec<AtomicBool>,
}

/// Whether a transport may be tried.
#[derive(Debug)]
pub enum BreakerPermit {
    /// Yes.
    Go,
    /// Yes, and what comes of it decides for everybody.
    Probe(Probe),
    /// No, for so long at least, because of what it said. Zero while somebody probes.
    Open(Duration, String),
}

/// The right to probe. Where it is dropped before its outcome was heard, nothing was tried, and the store hears that: nobody waits for its lease.
pub struct Probe {
    store: Store,
    key: String,
    token: Option<u64>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("key", &self.key).field("token", &self.token).finish_non_exhaustive()
    }
}

impl Probe {
    /// The token, for who says what came of it.
    fn conclude(mut self) -> u64 {
        self.token.take().unwrap_or_default()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Some(probe) = self.token.take() else { return };
        // Without a runtime the process is at its end, and the lease ends by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (store, key) = (self.store.clone(), std::mem::take(&mut self.key));
        runtime.spawn(async move {
            let _ = store.circuit(&key, &CircuitCall::Release { probe }).await;
        });
    }
}

/// What an outcome says of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It needs a person.
    Broken,
    /// It is not there just now.
    Absent,
    /// Its door is open.
    Works,
    /// Nothing good, which a probe has to tell: the circuit stays open.
    NothingGood,
    /// Nothing: it was not asked.
    Nothing,
}

/// What an outcome says of the transport.
fn says(outcome: &Outcome) -> Says {
    let Outcome::Refused { refusal, .. } = outcome else {
        return match outcome {
            Outcome::Accepted { .. } => Says::Works,
            Outcome::Unknown(answer) if answer.mark == Mark::NotTheApi => Says::Broken,
            Outcome::Unknown(_) => Says::NothingGood,
            Outcome::Refused { .. } | Outcome::LostClaim => Says::Nothing,
        };
    };
    let answer = &refusal.answer;
    match refusal.class {
        Class::Config => Says::Broken,
        Class::Unavailable => Says::Absent,
        // A relay that speaks of a recipient or of a message let us in; not one that hangs up (421).
        Class::Transient
            if answer.code.is_some_and(|code| code != 421)
                && matches!(answer.stage, Stage::RcptTo | Stage::Data | Stage::Body) =>
        {
            Says::Works
        }
        Class::Transient => Says::NothingGood,
        // It said something about the mail: its door is open.
        _ if answer.code.is_some() => Says::Works,
        Class::Throttled | Class::Quota => Says::NothingGood,
        // Nothing was asked of it.
        Class::Recipient
        | Class::Message
        | Class::TemplateLimit
        | Class::Unsupported
        | Class::Sender
        | Class::Local => Says::Nothing,
    }
}

impl CircuitBreakers {
    /// All closed, until the store says otherwise. `first_wait` is the wait before the first probe.
    pub fn new(store: Store, transports: &[TransportConfig], first_wait: Duration) -> Arc<Self> {
        let seen = Mutex::new(vec![None; transports.len()]);
        let names = transports.iter().map(|one| one.name.clone()).collect();
        let keys = transports.iter().map(key).collect();
        let has_unexplained = transports.iter().map(|_| AtomicBool::new(false)).collect();
        Arc::new(Self { store, names, keys, seen, first_wait, has_unexplained })
    }

    /// Looks into the store.
    pub async fn look(&self) {
        // While the store is away, what was seen last stands.
        if let Ok(list) = self.store.circuits(&self.keys).await {
            *self.seen() = list;
        }
        self.look_at_refusals().await;
    }

    /// Takes over what others knew of the same circuits, so that a changed configuration does not try what is known to be broken.
    pub fn inherit(&self, others: &Self) {
        let known = others.seen().clone();
        for (key, seen) in self.keys.iter().zip(self.seen().iter_mut()) {
            if let Some(place) = others.keys.iter().position(|one| one == key) {
                seen.clone_from(&known[place]);
            }
        }
    }

    /// What is known of each transport's circuit, in the configuration's order; nothing for one that is closed.
    pub fn known(&self) -> Vec<(String, Option<Circuit>)> {
        self.names.iter().cloned().zip(self.seen().iter().cloned()).collect()
    }

    /// False where something is wrong with the transport, as far as this worker knows.
    pub fn is_closed(&self, transport: usize) -> bool {
        self.seen()[transport].is_none()
    }

    /// For how long and why everybody leaves the transport alone, as far as this worker knows. Asks nobody.
    pub fn kept_away(&self, transport: usize) -> Option<(Duration, String)> {
        kept_away(self.seen()[transport].as_ref()?, self.store.now_ms())
    }

    /// May this transport be tried now? To be asked by who has everything else: a probe that is not made keeps others waiting.
    pub async fn ask(&self, transport: usize) -> BreakerPermit {
        let Some(circuit) = self.seen()[transport].clone() else { return BreakerPermit::Go };
        if let Some((wait, reason)) = kept_away(&circuit, self.store.now_ms()) {
            return BreakerPermit::Open(wait, reason);
        }
        match self.store.circuit(&self.keys[transport], &CircuitCall::Probe).await {
            Ok(CircuitAnswer::Probe(token)) => {
                info!(transport = self.names[transport], "Trying whether the transport works again");
                let (store, key) = (self.store.clone(), self.keys[transport].clone());
                BreakerPermit::Probe(Probe { store, key, token: Some(token) })
            }
            Ok(CircuitAnswer::Open(circuit)) => {
                let (wait, reason) =
                    kept_away(&circuit, self.store.now_ms()).unwrap_or((Duration::ZERO, circuit.reason.clone()));
                self.seen()[transport] = Some(circuit);
                BreakerPermit::Open(wait, reason)
            }
            Ok(_) => {
                self.seen()[transport] = None;
                BreakerPermit::Go
            }
            // Nobody can say. What the store would protect is a transport, not mail.
            Err(_) => BreakerPermit::Go,
        }
    }

    /// Draws the conclusion from an outcome, once where several jobs have it from one call; the outcome of a probe ends the probe. The event is to be
    /// published; one worker gets it.
    pub async fn heard(&self, transport: usize, outcome: &Outcome, probe: Option<Probe>) -> Option<Event> {
        let answer = match outcome {
            Outcome::Refused { refusal, .. } => Some(&refusal.answer),
            Outcome::Unknown(answer) => Some(answer),
            Outcome::Accepted { .. } | Outcome::LostClaim => None,
        };
        match (says(outcome), answer, probe) {
            (Says::NothingGood, Some(answer), Some(probe)) => {
                self.failed(transport, answer, probe.conclude()).await;
                None
            }
            (Says::Broken | Says::Absent | Says::Works, Some(answer), _) if !answer.hear(CIRCUIT) => None,
            (said @ (Says::Broken | Says::Absent), Some(answer), probe) => {
                let is_probe = probe.map(Probe::conclude).is_some();
                self.broken(transport, answer, said == Says::Absent, is_probe).await
            }
            (Says::Works, _, probe) => {
                probe.map(Probe::conclude);
                self.healed(transport).await
            }
            // A probe that is dropped here is released.
            (Says::Broken | Says::Absent | Says::NothingGood | Says::Nothing, ..) => None,
        }
    }

    /// The probe found the transport still of no use. Where the store does not hear it, the probe's lease ends by itself.
    async fn failed(&self, transport: usize, answer: &Answer, probe: u64) {
        let reason = reason_of(answer);
        let ask = CircuitCall::Fail { probe, reason: reason.clone(), wait: self.first_wait };
        if let Ok(CircuitAnswer::Open(circuit)) = self.store.circuit(&self.keys[transport], &ask).await {
            self.still_broken(transport, &reason, &circuit);
            self.seen()[transport] = Some(circuit);
        }
    }

    fn still_broken(&self, transport: usize, reason: &str, circuit: &Circuit) {
        let (name, next_s) = (&self.names[transport], circuit.until_ms.saturating_sub(self.store.now_ms()) / 1000);
        warn!(
            transport = name,
            answer = reason,
            next_s,
            "Transport {name} still does not work; it is tried again later"
        );
    }

    async fn broken(&self, transport: usize, answer: &Answer, is_absent: bool, is_probe: bool) -> Option<Event> {
        let reason = reason_of(answer);
        let first_wait = if is_absent { self.first_wait.min(ABSENT_WAIT) } else { self.first_wait };
        let name = &self.names[transport];
        let now_ms = self.store.now_ms();
        let until_ms = now_ms.saturating_add(u64::try_from(first_wait.as_millis()).unwrap_or(u64::MAX));
        let own = Circuit { opened_ms: now_ms, until_ms, failures: 1, probe_ms: 0, reason: reason.clone() };
        // Known here before the store answers: whoever gets this connection's place next does not knock as well.
        self.seen()[transport].get_or_insert_with(|| own.clone());
        let ask = CircuitCall::Open { reason: reason.clone(), wait: first_wait };
        let (circuit, is_new) = match self.store.circuit(&self.keys[transport], &ask).await {
            Ok(CircuitAnswer::Opened(circuit)) => (circuit, true),
            Ok(CircuitAnswer::Open(circuit)) => (circuit, false),
            Ok(_) => return None,
            Err(error) => {
                warn!(transport = name, %error, "The store did not hear that a transport needs a person");
                (own, false)
            }
        };
        if is_probe && !is_new {
            self.still_broken(transport, &reason, &circuit);
        }
        self.seen()[transport] = Some(circuit.clone());
        is_new.then(|| {
            if answer.mark == Mark::Unexplained {
                metrics::refuses_everybody(name);
            }
            if is_absent {
                warn!(
                    transport = name,
                    answer = reason,
                    "Transport {name} cannot be reached; jobs wait or go another way, and it is tried again"
                );
            } else {
                error!(
                    transport = name,
                    answer = reason,
                    "Transport {name} needs a person; jobs wait or go another way"
                );
            }
            let now = self.store.now();
            Event::about_circuit(EventType::CircuitOpened, name, circuit.opened(), &reason, now)
        })
    }

    async fn healed(&self, transport: usize) -> Option<Event> {
        let known = self.seen()[transport].clone()?;
        let name = &self.names[transport];
        let told = self.store.circuit(&self.keys[transport], &CircuitCall::Close).await;
        self.seen()[transport] = None;
        let Ok(CircuitAnswer::Healed(circuit)) = told else { return None };
        info!(transport = name, "Transport {name} works again");
        Some(Event::about_circuit(EventType::CircuitClosed, name, circuit.opened(), &known.reason, self.store.now()))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Option<Circuit>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a transport's circuit in the store. Workers with other settings have another one: what is mended is tried at once, and a worker
/// that was started with a mistake stops nobody else.
pub fn key(transport: &TransportConfig) -> String {
    format!("{}@{:04x}", transport.name, transport.fingerprint())
}

/// How long the circuit keeps everybody away, by the store's clock; nothing where it is time for a probe.
fn kept_away(circuit: &Circuit, now_ms: u64) -> Option<(Duration, String)> {
    let left = |end: u64| Some(Duration::from_millis(end.saturating_sub(now_ms))).filter(|left| !left.is_zero());
    let wait = match (left(circuit.until_ms), left(circuit.probe_ms)) {
        // What is further ahead was written before the store's clock was set back; the store says so.
        (Some(left), _) if left <= WAIT_MAX => left,
        (_, Some(left)) if left <= PROBE => Duration::ZERO,
        _ => return None,
    };
    Some((wait, circuit.reason.clone()))
}

/// As much of an answer as a record keeps.
fn reason_of(answer: &Answer) -> String {
    let mut reason = match answer.mark {
        Mark::Unexplained => format!("several recipients were told the same, and nobody was accepted: {answer}"),
        _ => answer.to_string(),
    };
    let end = (0..=REASON_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
    reason
}

#[cfg(test)]
#[path = "circuit_breakers_tests.rs"]
mod tests;
