//! The ledger: what is remembered of every job, so that it is sent once; and the limiter beside it. An enum over two stores with the same states, the
//! same answers and one contract suite. Does not know the queue, transports, or what a decision says.

mod begun;
pub mod circuit;
pub mod clock;
pub mod embedded;
pub mod ledger;
pub mod ledger_note;
pub mod limiter;
mod notes;
mod postpone;
pub mod redis;
pub mod transitions;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use postrider_schemas::{JobId, Tenant, job::Identity};

use self::{
    embedded::EmbeddedStore,
    ledger::{DECISION_MAX, LeaseFacts, LedgerStep, LedgerStepResult},
    redis::RedisStore,
    transitions::CancelTransition,
};
pub use self::{
    ledger::{
        Cancelled, Claim, ClaimRequest, Final, Finished, Lease, LedgerKey, Postponed, Record, RecordState, Reopened,
    },
    ledger_note::LedgerNote,
};

/// Longer than the delay ladder keeps a copy (24.3 days): what must outlive every copy of a job lives this long.
const LADDER_LIFE: Duration = Duration::from_hours(30 * 24);
/// A job has at most so many recipients, and so at most so many parts.
pub const PARTS_MAX: u8 = 50;
/// A worker that gave no sign of life for so long counts as gone.
pub const BEAT_LIFE: Duration = Duration::from_secs(20);
/// A circuit that nobody asks about is forgotten after this: its transport is gone.
const CIRCUIT_LIFE: Duration = Duration::from_hours(24);
/// Refusals that nobody understands count together for so long.
const REFUSALS_LIFE: Duration = Duration::from_hours(1);
/// Most of them that are kept of a transport.
const REFUSALS_MAX: usize = 256;
/// Longest note for people at a record, in bytes: a store holds many.
pub const NOTE_MAX: usize = 512;
/// Aliases of aliases are never written; the bound is for a store that somebody else wrote into.
const ALIAS_HOPS: u32 = 3;

/// Why a call failed. The text says what to do and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Worth waiting for; the call may have run nevertheless, and repeating it is harmless.
    #[error("{0}")]
    Down(String),
    /// Waiting does not help: a setting or a program is wrong.
    #[error("{0}")]
    Broken(String),
}

impl StoreError {
    /// Whether waiting may help.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Down(_))
    }
}

/// A mark that could not be written, with the right to write it later.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unfinished {
    /// Why.
    pub error: StoreError,
    /// Unspent. Hand it to [`Store::finish`] again.
    pub lease: Lease,
}

impl From<Unfinished> for StoreError {
    fn from(unfinished: Unfinished) -> Self {
        unfinished.error
    }
}

/// How a store is to be used.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// How long a claim holds without a sign of its owner.
    pub lease: Duration,
    /// How long it is remembered that a job is over.
    pub retention: Duration,
    /// Names this worker, for people who look into the store.
    pub holder: String,
    /// Authorities that Redis is trusted by, in PEM, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether what is missing is made: a file, its tables, the epochs. Commands that only look make nothing.
    pub create: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_mins(1),
            retention: Duration::from_hours(7 * 24),
            holder: format!("pid-{}", std::process::id()),
            ca_file: None,
            create: true,
        }
    }
}

impl StoreOptions {
    /// Life of a record whose job is not over.
    fn working_life(&self) -> Duration {
        self.retention.max(LADDER_LIFE)
    }

    /// Life of a record whose job waits for a time so far ahead: until then it says so to whoever comes.
    fn life_of_postponed(&self, ahead: Duration) -> Duration {
        self.working_life().saturating_add(ahead)
    }

    /// Life of a record whose job is over. What holds back copies that still wait somewhere outlives them.
    fn life_of(&self, end: Final) -> Duration {
        match end {
            Final::Held | Final::Cancelled | Final::Dead => self.working_life(),
            Final::Sent | Final::Rejected | Final::Expired | Final::Split => self.retention,
        }
    }
}

/// A ledger. Clones share it.
#[derive(Clone)]
pub struct Store {
    backend: StoreBackend,
    holders: Arc<Holders>,
    /// In place of the store's clock in calls of the limiter.
    clock: Option<Arc<AtomicU64>>,
}

#[derive(Clone)]
enum StoreBackend {
    Redis(RedisStore),
    Embedded(EmbeddedStore),
}

/// Where the store at `url` is, for people; refuses what cannot be one. Connects to nothing.
pub fn shown(url: &str) -> Result<String, StoreError> {
    match url.strip_prefix("embedded:") {
        Some(file) => Ok(format!("file {file}")),
        None => redis::shown(url),
    }
}

/// Gives every claim a name of its own, so that two messages of one job in one worker exclude each other.
struct Holders {
    prefix: String,
    count: AtomicU64,
}

impl Store {
    /// Opens the store at `url`: `redis://`, `rediss://`, `redis+sentinel://host:port,host:port/MASTER`,
    /// `redis+cluster://host:port,host:port`, or `embedded:FILE`. Redis that is down is no error; a wrong address or password is,
    /// and so is a file that cannot be used.
    pub async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        // The random part tells a worker from the one of the same name that ran before it.
        // A bar would end the field that a record keeps it in.
        let prefix = format!("{}/{:08x}", options.holder.replace('|', "_"), random() & 0xffff_ffff);
        let backend = match url.strip_prefix("embedded:") {
            Some(file) => StoreBackend::Embedded(EmbeddedStore::connect(file, options).await?),
            None => StoreBackend::Redis(RedisStore::connect(url, options).await?),
        };
        let holders = Arc::new(Holders { prefix, count: AtomicU64::new(0) });
        Ok(Self { backend, holders, clock: None })
    }

    /// What it is, as telemetry names it.
    pub fn system(&self) -> &'static str {
        match &self.backend {
            StoreBackend::Redis(_) => "redis",
            StoreBackend::Embedded(_) => "sqlite",
        }
    }

    /// The store's clock, in ms, as far as this process knows it. For what the store keeps: circuits, beats.
    pub fn now_ms(&self) -> u64 {
        match &self.backend {
            StoreBackend::Redis(store) => store.now_ms(),
            StoreBackend::Embedded(store) => store.now_ms(),
        }
    }

    /// The time that jobs are measured by (`send_at`, `expires_at`), the same for all workers at the store. A file's processes have one wall clock; those
    /// at Redis go by its clock.
    pub fn now(&self) -> Timestamp {
        match &self.backend {
            StoreBackend::Redis(store) => {
                let ms = i64::try_from(store.now_ms()).unwrap_or(i64::MAX);
                Timestamp::from_millisecond(ms).unwrap_or_else(|_| Timestamp::now())
            }
            StoreBackend::Embedded(_) => Timestamp::now(),
        }
    }

    /// False while the store is known to be down.
    pub fn is_up(&self) -> bool {
        match &self.backend {
            StoreBackend::Redis(store) => store.is_up(),
            StoreBackend::Embedded(store) => store.is_up(),
        }
    }

    /// Where calls fail fast, waits for as long as a call would, and gives its error.
    pub async fn there(&self) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.there().await,
            // Calls are made whatever became of the last one.
            StoreBackend::Embedded(_) => Ok(()),
        }
    }

    /// Resolves when the store answers again.
    pub async fn back(&self) {
        match &self.backend {
            StoreBackend::Redis(store) => store.back().await,
            StoreBackend::Embedded(store) => store.back().await,
        }
    }

    /// Asks for the right to attempt a job.
    pub async fn claim(&self, request: &ClaimRequest) -> Result<Claim, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.claim(request, self.holder()).await,
            StoreBackend::Embedded(store) => store.claim(request, self.holder()).await,
        }
    }

    /// A right for a store that is down: it orders nothing, but a mark `Sent` made with it counts like any other. Only for
    /// messages that were not delivered before.
    pub fn lease_while_down(&self, request: &ClaimRequest) -> Lease {
        let facts = LeaseFacts {
            holder: self.holder(),
            // Like no fence that a store gave out: those count milliseconds.
            fence: (1 << 48) | (random() & ((1 << 48) - 1)),
            generation: request.generation,
            payload_hash: request.payload_hash.to_hex(),
        };
        Lease { key: request.key.clone(), facts }
    }

    /// Says that from now on bytes may reach a transport, and renews. False: the right is gone (taken over, cancelled), attempt
    /// nothing. `call` is given back to whoever finds the job after a crash; at most [`DECISION_MAX`] bytes.
    pub async fn submitting(&self, lease: &Lease, call: &str) -> Result<bool, StoreError> {
        Ok(self.step(lease, LedgerStep::Submitting(call)).await? == LedgerStepResult::Done)
    }

    /// Takes that back: what was submitted was certainly not taken. False: the right is gone.
    pub async fn withdraw(&self, lease: &Lease) -> Result<bool, StoreError> {
        Ok(self.step(lease, LedgerStep::Withdraw).await? == LedgerStepResult::Done)
    }

    /// Another lease from now on. False: the right is gone.
    pub async fn renew(&self, lease: &Lease) -> Result<bool, StoreError> {
        Ok(self.step(lease, LedgerStep::Renew).await? == LedgerStepResult::Done)
    }

    /// Notes an outcome other than "sent" before its copy is published; whoever finds the message again gets the text back.
    /// False: the right is gone. A text above [`DECISION_MAX`] bytes is refused.
    pub async fn decide(&self, lease: &Lease, decision: &str) -> Result<bool, StoreError> {
        if decision.len() > DECISION_MAX {
            return Err(StoreError::Broken(format!(
                "a decision of {} bytes; {DECISION_MAX} are allowed",
                decision.len()
            )));
        }
        Ok(self.step(lease, LedgerStep::Decide(decision)).await? == LedgerStepResult::Done)
    }

    /// Says that the copy with the next generation is confirmed, and notes for people until when and why it waits; of the note at most [`NOTE_MAX`] bytes
    /// are kept. Losing this call is harmless: the copy proves it.
    pub async fn parked(&self, lease: Lease, note: &str) -> Result<(), StoreError> {
        self.step(&lease, LedgerStep::Parked(cut(note))).await.map(drop)
    }

    /// Gives a right back with nothing tried. Losing this call costs one lease of waiting.
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.step(&lease, LedgerStep::Release).await.map(drop)
    }

    /// Writes how it ended. `Sent` is the truth and always written; the others need the right.
    pub async fn finish(&self, lease: Lease, end: Final) -> Result<Finished, Unfinished> {
        self.finish_with(lease, end, "").await
    }

    /// The same with a note for people: why it ended so. Of what was sent nothing is kept.
    pub async fn finish_with(&self, lease: Lease, end: Final, note: &str) -> Result<Finished, Unfinished> {
        match self.step(&lease, LedgerStep::Finish(end, cut(note))).await {
            Ok(stepped) => Ok(stepped.into()),
            Err(error) => Err(Unfinished { error, lease }),
        }
    }

    /// Calls a job back, by its identity or by the id of a job with an idempotency key; also one that nobody has seen yet.
    pub async fn cancel(&self, identity: &Identity) -> Result<Cancelled, StoreError> {
        let mut key = LedgerKey::of(identity);
        for _ in 0..ALIAS_HOPS {
            let answer = match &self.backend {
                StoreBackend::Redis(store) => store.cancel(&key).await?,
                StoreBackend::Embedded(store) => store.cancel(&key).await?,
            };
            match answer {
                CancelTransition::Answer(Cancelled::AlreadyFinal(Final::Split)) => {
                    return self.cancel_parts(&key).await;
                }
                CancelTransition::Answer(answer) => return Ok(answer),
                CancelTransition::Follow(target) => key = LedgerKey::noted(target),
            }
        }
        Err(StoreError::Broken("the store holds aliases that lead nowhere; another program writes into it".to_owned()))
    }

    /// Calls every part of a job back whose recipients went separate ways. The answer is the one of the part that is furthest: bytes under way,
    /// then sent already.
    async fn cancel_parts(&self, key: &LedgerKey) -> Result<Cancelled, StoreError> {
        let mut answers = Vec::new();
        for part in 1..=PARTS_MAX {
            let key = key.part(part);
            let answer = match &self.backend {
                StoreBackend::Redis(store) => store.cancel(&key).await?,
                StoreBackend::Embedded(store) => store.cancel(&key).await?,
            };
            if let CancelTransition::Answer(answer) = answer {
                answers.push(answer);
            }
        }
        let first = |wanted: &[Cancelled]| answers.iter().copied().find(|answer| wanted.contains(answer));
        // A part that nobody has seen yet, or that does not exist, answers `Now`: it says nothing unless all do.
        let telling = first(&[Cancelled::BeingSent]).or_else(|| first(&[Cancelled::AlreadySent]));
        Ok(telling.unwrap_or(Cancelled::Now))
    }

    /// Notes that the tenant's job `id` has the record `key`, so that [`Store::cancel`] finds it. Gives how the id itself ended before,
    /// which is `Cancelled` where somebody called it back first; then nothing is noted and the job must not be attempted.
    pub async fn alias(&self, tenant: &Tenant, id: JobId, key: &LedgerKey) -> Result<Option<Final>, StoreError> {
        let id = LedgerKey::of(&Identity::of_id(tenant, id));
        match &self.backend {
            StoreBackend::Redis(store) => store.alias(&id, key).await,
            StoreBackend::Embedded(store) => store.alias(&id, key).await,
        }
    }

    /// Lets a job run again whose copy of `generation` is at rest in `hold` or `dead`.
    pub async fn reopen(&self, key: &LedgerKey, generation: u32) -> Result<Reopened, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.reopen(key, generation).await,
            StoreBackend::Embedded(store) => store.reopen(key, generation).await,
        }
    }

    /// What is remembered of a job.
    pub async fn get(&self, key: &LedgerKey) -> Result<Option<Record>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.get(key).await,
            StoreBackend::Embedded(store) => store.get(key).await,
        }
    }

    /// Asks, or says, something about the circuit of a transport.
    pub async fn circuit(
        &self,
        transport: &str,
        ask: &circuit::CircuitCall,
    ) -> Result<circuit::CircuitAnswer, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.circuit(transport, ask).await,
            StoreBackend::Embedded(store) => store.circuit(transport, ask).await,
        }
    }

    /// The circuits of these transports; nothing for one that is closed.
    pub async fn circuits(&self, transports: &[String]) -> Result<Vec<Option<circuit::Circuit>>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.circuits(transports).await,
            StoreBackend::Embedded(store) => store.circuits(transports).await,
        }
    }

    /// Notes refusals that nobody understands; all of them since the transport accepted somebody, for an hour.
    pub async fn note_refusals(&self, transport: &str, marks: &[String]) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.note_refusals(transport, marks).await,
            StoreBackend::Embedded(store) => store.note_refusals(transport, marks).await,
        }
    }

    /// The transport accepted somebody.
    pub async fn forget_refusals(&self, transport: &str) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.forget_refusals(transport).await,
            StoreBackend::Embedded(store) => store.forget_refusals(transport).await,
        }
    }

    /// Of which of these transports there are such refusals.
    pub async fn have_refusals(&self, transports: &[String]) -> Result<Vec<bool>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.have_refusals(transports).await,
            StoreBackend::Embedded(store) => store.have_refusals(transports).await,
        }
    }

    /// A worker's sign of life; forgotten after [`BEAT_LIFE`].
    pub async fn beat(&self, worker: &str, text: &str) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.beat(worker, text).await,
            StoreBackend::Embedded(store) => store.beat(worker, text).await,
        }
    }

    /// What the workers said that gave a sign of life lately.
    pub async fn beats(&self) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.beats().await,
            StoreBackend::Embedded(store) => store.beats().await,
        }
    }

    /// A worker that says goodbye is forgotten at once.
    pub async fn unbeat(&self, worker: &str) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.unbeat(worker).await,
            StoreBackend::Embedded(store) => store.unbeat(worker).await,
        }
    }

    /// Asks the store for a sign of life.
    pub async fn ping(&self) -> Result<(), StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.ping().await,
            StoreBackend::Embedded(store) => store.ping().await,
        }
    }

    async fn step(&self, lease: &Lease, step: LedgerStep<'_>) -> Result<LedgerStepResult, StoreError> {
        match &self.backend {
            StoreBackend::Redis(store) => store.step(lease, step).await,
            StoreBackend::Embedded(store) => store.step(lease, step).await,
        }
    }

    fn holder(&self) -> String {
        format!("{}:{}", self.holders.prefix, self.holders.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// What is kept of a note for people.
fn cut(note: &str) -> &str {
    let mut end = note.len().min(NOTE_MAX);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

fn random() -> u64 {
    // The low half of a version 7 UUID is random but for two bits at its top.
    uuid::Uuid::now_v7().as_u64_pair().1
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
