//! What the gateways remember together of requests and jobs, and what the ledger knows. None of it is needed to take a job: while the store is away, jobs
//! are taken all the same, and questions are answered with 503.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Event, EventType, Job, JobId, Tenant, event::EventData, job::Identity};
use postrider_store::{
    Cancelled, Final, LedgerKey, LedgerNote, PARTS_MAX, Postponed, Record, RecordState, Store, StoreError,
};
use serde::Serialize;
use tracing::warn;

use crate::problem::{Kind, Problem};

/// How long it is remembered what an idempotency key was used for.
const KEY_LIFE: Duration = Duration::from_hours(24);
/// How long a job can be asked for that no worker has seen, from the time at which it is to be sent.
const JOB_LIFE: Duration = Duration::from_hours(24);
/// What a job waits for that was given a later time.
const SEND_AT: &str = "send_at";

/// The store, as gateways use it.
#[derive(Clone)]
pub struct Records(Store);

/// What became of a job, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
    /// When it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Where its recipients went separate ways: the state of each part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<JobState>,
}

/// Where a job, or a part of one, stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct JobState {
    /// One word.
    pub status: &'static str,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// What it waits for, or why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tries that were used up, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The last answer of a transport.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer: Option<String>,
}

/// What a gateway noted when it took a job.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    at: Option<Timestamp>,
    send_at: Option<Timestamp>,
    key: LedgerKey,
}

/// All that is known of a job.
struct Known {
    taken: Option<Taken>,
    key: LedgerKey,
    record: Option<Record>,
}

impl Records {
    /// On this store.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Notes what an idempotency key is used for. Gives the time of its first request; a problem where that was another one. While the store is away, each
    /// request is a first one.
    pub async fn remember_key(
        &self,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
        now: Timestamp,
    ) -> Result<Timestamp, Problem> {
        if !self.0.is_up() {
            return Ok(now);
        }
        let note = format!("{fingerprint} {}", now.as_millisecond());
        match self.0.note(tenant, vec![(format!("k:{key}"), note)], KEY_LIFE).await {
            Ok(found) => first_request(found.first().map_or("", String::as_str), fingerprint, now),
            Err(error) => {
                warn!(%error, "An idempotency key could not be noted; the job is taken, and its payload is not compared");
                Ok(now)
            }
        }
    }

    /// Notes jobs, so that they can be asked for before a worker has seen them.
    pub async fn remember_jobs(&self, tenant: &Tenant, jobs: impl IntoIterator<Item = &Job>, now: Timestamp) {
        let mut last = now;
        let mut notes = Vec::new();
        for job in jobs {
            last = last.max(job.send_at().unwrap_or(now));
            notes.push((format!("i:{}", job.id()), Taken::of(job, now).encode()));
        }
        if notes.is_empty() || !self.0.is_up() {
            return;
        }
        let life = JOB_LIFE.saturating_add(Duration::try_from(last.duration_since(now)).unwrap_or_default());
        if let Err(error) = self.0.note(tenant, notes, life).await {
            warn!(%error, "Jobs could not be noted; until a worker has seen them, nobody can ask for them");
        }
    }

    /// What became of a job.
    pub async fn view(&self, tenant: &Tenant, id: JobId, now: Timestamp) -> Result<JobView, Problem> {
        let known = self.known(tenant, id).await?;
        let mut parts = Vec::new();
        if known.record.as_ref().is_some_and(|record| record.state == RecordState::Final(Final::Split)) {
            for part in 1..=PARTS_MAX {
                match self.0.get(&known.key.part(part)).await.map_err(|error| away(&error))? {
                    Some(record) => parts.push(state_of(Some(&record), None, now)),
                    None => break,
                }
            }
        }
        let send_at = known.taken.as_ref().and_then(|taken| taken.send_at);
        Ok(JobView {
            id,
            state: state_of(known.record.as_ref(), send_at, now),
            created_at: known.taken.and_then(|taken| taken.at),
            parts,
        })
    }

    /// The note and the record of a job; a problem where there is neither.
    async fn known(&self, tenant: &Tenant, id: JobId) -> Result<Known, Problem> {
        self.look(tenant, id)
            .await
            .map_err(|error| away(&error))?
            .ok_or_else(|| Problem::new(Kind::NotFound, "No job of this id is known."))
    }

    async fn look(&self, tenant: &Tenant, id: JobId) -> Result<Option<Known>, StoreError> {
        let noted = self.0.noted(tenant, &format!("i:{id}")).await?;
        let taken = noted.as_deref().and_then(Taken::parse);
        let mut key = LedgerKey::of(&Identity::of_id(tenant, id));
        let mut record = self.0.get(&key).await?;
        let other = match &record {
            Some(record) if record.state == RecordState::Alias => Some(LedgerKey::noted(record.note.clone())),
            // A job with an idempotency key has its record under that key, and an alias when a worker has seen it.
            None => taken.as_ref().map(|taken| taken.key.clone()),
            Some(_) => None,
        };
        if let Some(other) = other {
            record = self.0.get(&other).await?;
            key = other;
        }
        let is_known = taken.is_some() || record.is_some();
        Ok(is_known.then_some(Known { taken, key, record }))
    }

    /// Calls a job back. Gives the event that its tenant is to be told, where this call did it.
    pub async fn cancel(&self, tenant: &Tenant, id: JobId, now: Timestamp) -> Result<Option<Event>, Problem> {
        // Whoever names the wrong job is to hear that nobody knows it.
        self.known(tenant, id).await?;
        match self.0.cancel(&Identity::of_id(tenant, id)).await.map_err(|error| away(&error))? {
            Cancelled::Now => {
                let data = EventData {
                    job_id: Some(id),
                    tenant: tenant.as_str().to_owned(),
                    reason: Some("cancelled".to_owned()),
                    ..EventData::default()
                };
                Ok(Some(Event::new(EventType::Cancelled, data, now)))
            }
            Cancelled::AlreadyFinal(Final::Cancelled) => Ok(None),
            Cancelled::AlreadySent => Err(over(Final::Sent)),
            Cancelled::BeingSent => Err(in_hand()),
            Cancelled::AlreadyFinal(end) => Err(over(end)),
        }
    }

    /// Moves the time of a job that waits for its time: later only, because its copy in the queue comes when it was to come.
    pub async fn postpone(&self, tenant: &Tenant, id: JobId, until: Timestamp, now: Timestamp) -> Result<(), Problem> {
        let known = self.known(tenant, id).await?;
        let send_at = known.taken.as_ref().and_then(|taken| taken.send_at);
        let state = state_of(known.record.as_ref(), send_at, now);
        match (state.status, state.due_at) {
            ("scheduled", Some(due)) if until >= due => {}
            ("scheduled", _) => {
                let detail = "A job can be moved to a later time only; to send it earlier, cancel it and send another.";
                return Err(Problem::new(Kind::Conflict, detail));
            }
            ("sending", _) => return Err(in_hand()),
            (status, _) => {
                let detail = format!("Only a job that waits for its time can be moved; this one is {status}.");
                return Err(Problem::new(Kind::Conflict, detail));
            }
        }
        let note = LedgerNote { until: Some(until), why: SEND_AT.to_owned(), ..LedgerNote::default() };
        match self.0.postpone(&known.key, until, &note.encode()).await.map_err(|error| away(&error))? {
            Postponed::Done => Ok(()),
            Postponed::InHand => Err(in_hand()),
            Postponed::Over(end) => Err(over(end)),
        }
    }
}

impl Taken {
    fn of(job: &Job, now: Timestamp) -> Self {
        Self { at: Some(now), send_at: job.send_at(), key: LedgerKey::of(&job.identity()) }
    }

    fn encode(&self) -> String {
        let ms = |time: Option<Timestamp>| time.map(|time| time.as_millisecond().to_string()).unwrap_or_default();
        format!("{} {} {}", ms(self.at), ms(self.send_at), self.key.as_str())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(3, ' ');
        let mut time = || Some(Timestamp::from_millisecond(fields.next()?.parse().ok()?).ok());
        let (at, send_at) = (time().flatten(), time().flatten());
        Some(Self { at, send_at, key: LedgerKey::noted(text.splitn(3, ' ').nth(2)?.to_owned()) })
    }
}

fn away(error: &StoreError) -> Problem {
    warn!(%error, "A question could not be answered");
    Problem::new(Kind::Unavailable, "The store, which knows what became of jobs, does not answer.").retry_after(5)
}

fn in_hand() -> Problem {
    Problem::new(Kind::Conflict, "A worker has the job in hand at this moment; ask again to see how it ends.")
}

fn over(end: Final) -> Problem {
    let detail = match end {
        Final::Sent => "It is too late: the job has been sent.".to_owned(),
        end => format!("The job is over already: {}.", end.as_str()),
    };
    Problem::new(Kind::Conflict, detail)
}

/// The time of the first request with a key, from what was noted of it.
fn first_request(noted: &str, fingerprint: &str, now: Timestamp) -> Result<Timestamp, Problem> {
    let (first, at) = noted.split_once(' ').unwrap_or((noted, ""));
    if first != fingerprint {
        return Err(Problem::new(
            Kind::KeyReused,
            "This idempotency key was used for another request within the last 24 hours; nothing was sent.",
        ));
    }
    let ms: i64 = at.parse().unwrap_or_default();
    // Notes are exact to the millisecond: this request itself was the first one.
    let is_this = ms == now.as_millisecond();
    Ok(Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0 && !is_this).unwrap_or(now))
}

fn state_of(record: Option<&Record>, send_at: Option<Timestamp>, now: Timestamp) -> JobState {
    let ahead = send_at.filter(|time| *time > now);
    let Some(record) = record else {
        let status = if ahead.is_some() { "scheduled" } else { "queued" };
        return JobState { status, due_at: ahead, ..JobState::default() };
    };
    // Records at work hold other texts.
    let is_at_rest = matches!(record.state, RecordState::Parked | RecordState::Final(_));
    let note = LedgerNote::parse(&record.note).filter(|_| is_at_rest);
    let until = note.as_ref().and_then(|note| note.until).or(ahead);
    let is_for_its_time = note.as_ref().is_none_or(|note| note.why == SEND_AT) && until.is_some_and(|time| time > now);
    let status = match record.state {
        RecordState::Parked if is_for_its_time => "scheduled",
        RecordState::Parked => "deferred",
        RecordState::Claimed | RecordState::Submitting | RecordState::Decided => "sending",
        RecordState::Final(end) => end.as_str(),
        RecordState::Alias => "queued",
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let due_at = until.filter(|_| record.state == RecordState::Parked);
    match note {
        None => JobState { status, due_at, ..JobState::default() },
        Some(note) => JobState {
            status,
            due_at,
            reason: text(note.why),
            attempts: Some(note.tries),
            last_answer: text(note.last),
        },
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
