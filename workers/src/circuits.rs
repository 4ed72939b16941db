//! What this worker knows of the transports' circuits. Asking costs nothing while a circuit is closed: a task looks into the store now and
//! then, and an own failure is known at once. The store alone says who may probe.

mod doubts;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use postrider_schemas::{Event, EventType};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    attempt::World,
    config::TransportConfig,
    outcome::{Answer, Class, Mark, Outcome},
    store::{
        Store,
        circuit::{Ask, Circuit, REASON_MAX, Told},
    },
};

/// How often the store is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The wait of jobs while somebody probes.
const PROBED_WAIT: Duration = Duration::from_secs(2);

/// The first wait for a transport that is not there: most are back in a moment.
const ABSENT_WAIT: Duration = Duration::from_secs(2);

/// What hears an answer here: the circuit of the transport that gave it.
const CIRCUIT: &str = "circuit";

/// The circuits of all transports.
pub struct Circuits {
    store: Store,
    names: Vec<String>,
    keys: Vec<String>,
    seen: Mutex<Vec<Option<Circuit>>>,
    first_wait: Duration,
    /// Transports that gave an answer which nobody understands, and accepted nobody since.
    doubts: Vec<AtomicBool>,
}

/// Whether a transport may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permit {
    /// Yes.
    Go,
    /// Yes, and what comes of it decides for everybody.
    Probe,
    /// No, for so long, because of what it said.
    Open(Duration, String),
}

impl Circuits {
    /// All closed, until the store says otherwise. `first_wait` is the wait before the first probe.
    pub fn new(store: Store, transports: &[TransportConfig], first_wait: Duration) -> Arc<Self> {
        let seen = Mutex::new(vec![None; transports.len()]);
        let names = transports.iter().map(|one| one.name.clone()).collect();
        let keys = transports.iter().map(key).collect();
        let doubts = transports.iter().map(|_| AtomicBool::new(false)).collect();
        Arc::new(Self { store, names, keys, seen, first_wait, doubts })
    }

    /// Looks into the store.
    pub async fn look(&self) {
        // While the store is away, what was seen last stands.
        if let Ok(list) = self.store.circuits(&self.keys).await {
            *self.seen() = list;
        }
        self.look_at_doubts().await;
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
        kept_away(self.seen()[transport].as_ref()?)
    }

    /// May this transport be tried now? To be asked by who has everything else: a probe that is not made keeps others waiting.
    pub async fn ask(&self, transport: usize) -> Permit {
        let Some(circuit) = self.seen()[transport].clone() else { return Permit::Go };
        if let Some((wait, reason)) = kept_away(&circuit) {
            return Permit::Open(wait, reason);
        }
        match self.store.circuit(&self.keys[transport], &Ask::Probe).await {
            Ok(Told::Probe) => {
                info!(transport = self.names[transport], "Trying whether the transport works again");
                Permit::Probe
            }
            Ok(Told::Open(circuit)) => {
                let (wait, reason) = kept_away(&circuit).unwrap_or((PROBED_WAIT, circuit.reason.clone()));
                self.seen()[transport] = Some(circuit);
                Permit::Open(wait, reason)
            }
            Ok(_) => {
                self.seen()[transport] = None;
                Permit::Go
            }
            // Nobody can say. What the store would protect is a transport, not mail.
            Err(_) => Permit::Go,
        }
    }

    /// Draws the conclusion from an outcome, once where several jobs have it from one call. The event is to be published; one worker gets it.
    pub async fn heard(&self, transport: usize, outcome: &Outcome) -> Option<Event> {
        match outcome {
            Outcome::Refused { refusal, .. } if !refusal.answer.hear(CIRCUIT) => None,
            Outcome::Refused { refusal, .. } if refusal.class == Class::Config => {
                self.broken(transport, &refusal.answer, self.first_wait).await
            }
            Outcome::Refused { refusal, .. } if refusal.class == Class::Unavailable => {
                self.broken(transport, &refusal.answer, self.first_wait.min(ABSENT_WAIT)).await
            }
            Outcome::Accepted { .. } => self.healed(transport).await,
            // It said something about the mail: its door is open.
            Outcome::Refused { refusal, .. }
                if refusal.answer.code.is_some()
                    && (refusal.class != Class::Transient || refusal.answer.stage.is_of_a_message()) =>
            {
                self.healed(transport).await
            }
            Outcome::Refused { .. } | Outcome::Unknown(_) | Outcome::LostClaim => None,
        }
    }

    async fn broken(&self, transport: usize, answer: &Answer, first_wait: Duration) -> Option<Event> {
        let mut reason = match answer.mark {
            Mark::Pause => format!("several recipients were told the same, and nobody was accepted: {answer}"),
            _ => answer.to_string(),
        };
        let end = (0..=REASON_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or(0));
        let name = &self.names[transport];
        let ask = Ask::Open { reason: reason.clone(), wait: first_wait };
        let (circuit, is_new) = match self.store.circuit(&self.keys[transport], &ask).await {
            Ok(Told::Opened(circuit)) => (circuit, true),
            Ok(Told::Open(circuit)) => (circuit, false),
            Ok(_) => return None,
            Err(error) => {
                warn!(transport = name, %error, "The store did not hear that a transport needs a person");
                let now_ms = now_ms();
                let wait = u64::try_from(first_wait.as_millis()).unwrap_or(u64::MAX);
                let until_ms = now_ms.saturating_add(wait);
                (Circuit { opened_ms: now_ms, until_ms, failures: 1, probe_ms: 0, reason: reason.clone() }, false)
            }
        };
        self.seen()[transport] = Some(circuit.clone());
        is_new.then(|| {
            if answer.code.is_none() {
                warn!(
                    transport = name,
                    answer = reason,
                    "Transport {name} is out of order; jobs wait or go another way, and it is tried again"
                );
            } else {
                error!(
                    transport = name,
                    answer = reason,
                    "Transport {name} needs a person; jobs wait or go another way"
                );
            }
            let now = Timestamp::now();
            Event::about_circuit(EventType::CircuitOpened, name, circuit.opened(), &reason, now)
        })
    }

    async fn healed(&self, transport: usize) -> Option<Event> {
        let known = self.seen()[transport].clone()?;
        let name = &self.names[transport];
        let told = self.store.circuit(&self.keys[transport], &Ask::Close).await;
        self.seen()[transport] = None;
        let Ok(Told::Healed(circuit)) = told else { return None };
        info!(transport = name, "Transport {name} works again");
        Some(Event::about_circuit(EventType::CircuitClosed, name, circuit.opened(), &known.reason, Timestamp::now()))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Option<Circuit>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what the present world knows of circuits true until `stop`.
pub async fn watch(worlds: Arc<ArcSwap<World>>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        worlds.load_full().circuits.look().await;
    }
}

/// The name of a transport's circuit in the store. Workers with other settings have another one: what is mended is tried at once, and a worker
/// that was started with a mistake stops nobody else.
pub fn key(transport: &TransportConfig) -> String {
    format!("{}@{:04x}", transport.name, transport.fingerprint())
}

/// How long the circuit keeps everybody away; nothing where it is time for a probe.
fn kept_away(circuit: &Circuit) -> Option<(Duration, String)> {
    let now_ms = now_ms();
    let wait = match circuit.until_ms.checked_sub(now_ms) {
        Some(left) if left > 0 => Duration::from_millis(left),
        _ if circuit.probe_ms > now_ms => PROBED_WAIT,
        _ => return None,
    };
    Some((wait, circuit.reason.clone()))
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::load_text,
        outcome::{Refusal, Stage},
        store::Options,
    };

    const CONFIG: &str = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.api]\nkind = \"postmark\"\napi_key = \"k\"\n\
                          [[route]]\nname = \"all\"\nsend = [\"api\"]\n";

    #[tokio::test]
    async fn an_answer_that_jobs_share_opens_the_circuit_once() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}", folder.path().join("store.db").display());
        let store = Store::connect(&url, Options::default()).await.unwrap();
        let transports = load_text(CONFIG).unwrap().transports;
        let circuits = Circuits::new(store.clone(), &transports, Duration::from_mins(1));
        let refused = || {
            let answer = Answer::new(Stage::Call, Some(401), None, "who are you");
            let refusal = Refusal { class: Class::Config, answer, retry_after: None };
            Outcome::Refused { refusal, recipients: Vec::new() }
        };
        let of_all = refused().of_all();
        assert!(circuits.heard(0, &of_all).await.is_some());
        store.circuit(&circuits.keys[0], &Ask::Close).await.unwrap();
        // Somebody mended it before the others of that call had their turn.
        assert!(circuits.heard(0, &of_all.clone()).await.is_none());
        assert_eq!(store.circuits(&circuits.keys).await.unwrap(), [None]);
        assert!(circuits.heard(0, &refused().of_all()).await.is_some(), "another call says it anew");
    }
}
