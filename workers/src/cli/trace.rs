//! `postrider trace`: what became of one job, from the ledger, the events that are kept, and the messages at rest. It says what it cannot know.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Context as _;
use jiff::Timestamp;
use postrider_schemas::{IdempotencyKey, JobId, JobLimits, Tenant, job::Identity, wire};
use serde::Serialize;
use serde_json::Value;

use super::{
    super::delivery::context,
    ConfigArguments,
    output::{self, Format},
    rest::tenant_of,
};
use crate::{
    queue::{Queue, Rest, RestMessage, RestVerdict},
    store::{Final, LedgerKey, LedgerNote, PARTS_MAX, Record, RecordState, Store},
};

/// Arguments of `postrider trace`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's id
    #[arg(value_name = "ID", required_unless_present = "key")]
    id: Option<JobId>,
    /// The job's idempotency key; the id is not needed then
    #[arg(long)]
    key: Option<String>,
    /// The job's tenant, `default` where none is named. Ids and keys belong to their tenants
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// What follows where a message may have been sent.
const RESEND_BOUND: &str = "it may have been sent; it is sent again once, and held if that ends without an answer too";

/// All that is known.
#[derive(Serialize)]
struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    ledger: Vec<LedgerView>,
    /// In order; nothing where the queue keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Value>>,
    messages: Vec<TracedMessage>,
    /// What could not be looked at.
    unknown: Vec<String>,
}

#[derive(Serialize)]
struct LedgerView {
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u8>,
    state: String,
    generation: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    holder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    /// Until when it waits and why, or why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<LedgerNote>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

#[derive(Serialize)]
struct TracedMessage {
    place: String,
    generation: u32,
    tries: u32,
    parks: u32,
    /// How often it may have been sent.
    unknowns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
}

/// Looks and prints. Exit status 0 if anything is known of the job, 1 if not.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let store = context::existing_store(&config).await?;
    let queue = context::existing_queue(&config.queue).await?;
    let tenant = arguments.tenant.as_deref().map(Tenant::parse).transpose().context("--tenant")?.unwrap_or_default();
    let identity = match (&arguments.key, arguments.id) {
        (Some(key), _) => Identity::of_key(&tenant, &IdempotencyKey::parse(key).context("--key")?),
        (None, Some(id)) => Identity::of_id(&tenant, id),
        (None, None) => anyhow::bail!("name the job by its ID, or by --key"),
    };
    let mut history = History {
        id: arguments.id,
        idempotency_key: arguments.key.clone(),
        ledger: ledger(&store, &LedgerKey::of(&identity)).await?,
        events: None,
        messages: Vec::new(),
        unknown: Vec::new(),
    };
    let wanted = Wanted { id: arguments.id.map(|id| id.to_string()), key: arguments.key.clone(), identity };
    let mut others = BTreeSet::new();
    // A file finds everything by the id: where that is not named, what is known by the key tells it.
    if history.id.is_none() {
        history.id = queue.id_of_key(&tenant, wanted.key.as_deref().unwrap_or_default()).await?;
    }
    let id = history.id.map(|id| id.to_string()).unwrap_or_default();
    history.events = queue.events_about(&id).await?.map(|list| {
        let all = list.iter().filter_map(|json| serde_json::from_slice::<Value>(json).ok());
        all.filter(|event| is_of(&tenant, event["data"]["tenant"].as_str(), &mut others)).collect()
    });
    let messages = match queue.waiting(&id).await? {
        Some(list) => list,
        None => at_rest(&queue, &wanted, &mut history.unknown).await?,
    };
    for (place, message) in messages {
        if is_of(&tenant, tenant_of(&message).as_deref(), &mut others) {
            history.messages.push(described(&place, &message));
        }
    }
    if !others.is_empty() {
        let names: Vec<String> = others.into_iter().collect();
        history
            .unknown
            .push(format!("what became of the job with this id of tenant {}: name it by --tenant", names.join(", ")));
    }
    if history.ledger.is_empty() && arguments.key.is_some() {
        history
            .unknown
            .push(format!("no record of tenant {} under this key; name another tenant by --tenant", tenant.as_str()));
    }
    if history.ledger.is_empty() && arguments.key.is_none() {
        history.unknown.push(
            format!(
                "no record of tenant {} under this id; name another tenant by --tenant; a job with an idempotency key may have its record under that: --key",
                tenant.as_str()
            ),
        );
    }
    queue.close().await;
    let is_known = !history.ledger.is_empty()
        || !history.messages.is_empty()
        || history.events.as_ref().is_some_and(|list| !list.is_empty());
    match arguments.format {
        Format::Json => output::json(&history)?,
        Format::Text => output::lines(text(&history))?,
    }
    Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The record, what it stands for, and those of the parts.
async fn ledger(store: &Store, key: &LedgerKey) -> anyhow::Result<Vec<LedgerView>> {
    let Some(mut record) = store.get(key).await? else { return Ok(Vec::new()) };
    let mut key = key.clone();
    if record.state == RecordState::Alias {
        key = LedgerKey::noted(record.note.clone());
        match store.get(&key).await? {
            Some(target) => record = target,
            None => return Ok(vec![told(None, record)]),
        }
    }
    let is_split = record.state == RecordState::Final(Final::Split);
    let mut list = vec![told(None, record)];
    if is_split {
        for part in 1..=PARTS_MAX {
            if let Some(record) = store.get(&key.part(part)).await? {
                list.push(told(Some(part), record));
            }
        }
    }
    Ok(list)
}

fn told(part: Option<u8>, record: Record) -> LedgerView {
    let state = match record.state {
        RecordState::Claimed => "claimed: a worker is at it",
        RecordState::Submitting => "submitting: bytes may have reached a transport",
        RecordState::Decided => "decided: the outcome is known, and is being carried out",
        RecordState::Parked => "parked: its copy waits",
        RecordState::Alias => "stands for a job that nobody has seen",
        RecordState::Final(end) => end.as_str(),
    };
    // The decision that an owner wrote down tells more than the note of one that came to its end.
    let (because, note) = match LedgerNote::parse(&record.note) {
        Some(note) if record.state != RecordState::Decided => (Some(note), String::new()),
        _ => (None, record.note),
    };
    let lease = i64::try_from(record.lease_end_ms).ok().filter(|ms| *ms > 0);
    LedgerView {
        part,
        state: state.to_owned(),
        generation: record.generation,
        holder: record.holder,
        lease_until: lease.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        because,
        note,
    }
}

/// Which job is looked for.
struct Wanted {
    id: Option<String>,
    key: Option<String>,
    identity: Identity,
}

impl Wanted {
    /// Whether a message at rest is one of it: by its id, or by the identity that its body gives.
    fn is(&self, message: &RestMessage) -> bool {
        let has_id = self.id.is_some() && message.message_id == self.id;
        let has_key = || {
            let job = wire::decode(&message.body, None, &JobLimits::DEFAULT);
            self.key.is_some() && job.is_ok_and(|job| job.identity() == self.identity)
        };
        has_id || has_key()
    }
}

/// Whether something is about a job of this tenant. What names no tenant may be; other tenants are noted.
fn is_of(tenant: &Tenant, named: Option<&str>, others: &mut BTreeSet<String>) -> bool {
    let Some(other) = named.filter(|named| *named != tenant.as_str()) else { return true };
    others.insert(other.to_owned());
    false
}

/// A broker shows only what is at rest: what waits in its other queues cannot be looked at without taking it.
async fn at_rest(
    queue: &Queue,
    wanted: &Wanted,
    unknown: &mut Vec<String>,
) -> anyhow::Result<Vec<(String, RestMessage)>> {
    let mut found = Vec::new();
    for (rest, place) in [(Rest::Dead, "dead"), (Rest::Hold, "hold")] {
        queue
            .rest_each(rest, async |message: &RestMessage| {
                if wanted.is(message) {
                    found.push((place.to_owned(), message.clone()));
                }
                RestVerdict::Keep
            })
            .await?;
    }
    unknown.push(
        "RabbitMQ does not show what waits in its work queues and in the ladder: the ledger says what it waits for"
            .to_owned(),
    );
    unknown.push("events are not kept by RabbitMQ: bind a queue to postrider.events to keep them".to_owned());
    Ok(found)
}

fn described(place: &str, message: &RestMessage) -> TracedMessage {
    let meta = &message.meta;
    let trace = |text: &String| text.split('-').nth(1).map(str::to_owned);
    TracedMessage {
        place: place.to_owned(),
        generation: meta.generation,
        tries: meta.attempt,
        parks: meta.parks,
        unknowns: meta.unknowns,
        not_before: meta.not_before,
        last: meta.last.clone(),
        reason: meta.rest.as_ref().map(|rest| format!("{}: {}", rest.reason, rest.detail)),
        since: meta.rest.as_ref().map(|rest| rest.at),
        trace: meta.traceparent.as_ref().and_then(trace),
    }
}

fn text(history: &History) -> Vec<String> {
    let name = history
        .id
        .map(|id| id.to_string())
        .or_else(|| Some(format!("with the key {}", history.idempotency_key.as_ref()?)));
    let mut out = vec![format!("job {}", name.unwrap_or_default())];
    for one in &history.ledger {
        let part = one.part.map_or_else(String::new, |part| format!(" of part {part}"));
        let holder = if one.holder.is_empty() { String::new() } else { format!(", by {}", one.holder) };
        let note = if one.note.is_empty() { String::new() } else { format!(" ({})", one.note) };
        let because = one.because.as_ref().map(LedgerNote::words).filter(|words| !words.is_empty());
        let because = because.map_or_else(String::new, |words| format!(", {words}"));
        out.push(format!("ledger{part}: {}{because}{holder}{note}", one.state));
    }
    for event in history.events.iter().flatten() {
        let data = &event["data"];
        let field = |name: &str| data[name].as_str().map(|text| format!(" {text}")).unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        let kind = kind.trim_start_matches("postrider.").trim_end_matches(".v1");
        out.push(format!(
            "{} {kind}: try {}{}{}{}{}",
            event["time"].as_str().unwrap_or_default(),
            data["attempt"],
            field("route"),
            field("transport"),
            field("class"),
            field("answer"),
        ));
        if data["reason"] == "unknown" && kind == "job.deferred" {
            out.push(format!("  {RESEND_BOUND}"));
        }
    }
    for one in &history.messages {
        let mut line = format!(
            "message in {}: generation {}, {} tries, parked {} times",
            one.place, one.generation, one.tries, one.parks
        );
        for (name, value) in [("last answer", &one.last), ("reason", &one.reason), ("trace", &one.trace)] {
            if let Some(value) = value {
                line = format!("{line}, {name} {value}");
            }
        }
        if let Some(at) = one.not_before {
            line = format!("{line}, not before {at:.0}");
        }
        if one.unknowns > 0 && one.place != "hold" {
            line = format!("{line}, {RESEND_BOUND}");
        }
        out.push(line);
    }
    out.extend(history.unknown.iter().map(|unknown| format!("not known: {unknown}")));
    out
}
