//! `postrider trace`: what became of one job, from the ledger, the events that are kept, and the messages at rest. It says what it cannot know.

use std::process::ExitCode;

use anyhow::Context as _;
use jiff::Timestamp;
use postrider_schemas::{IdempotencyKey, JobId, Tenant, job::Identity};
use serde::Serialize;
use serde_json::Value;

use super::{
    ConfigArguments,
    output::{self, Format},
    world,
};
use crate::{
    queue::{Queue, Rest, RestMessage, RestVerdict},
    store::{Final, LedgerKey, PARTS_MAX, Record, State, Store},
};

/// Arguments of `postrider trace`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
    /// The job's idempotency key, if it has one: its record stands under it
    #[arg(long, requires = "tenant")]
    key: Option<String>,
    /// The tenant of the idempotency key
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// All that is known.
#[derive(Serialize)]
struct History {
    id: JobId,
    ledger: Vec<Ledger>,
    /// In order; nothing where the queue keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Value>>,
    messages: Vec<Message>,
    /// What could not be looked at.
    unknown: Vec<String>,
}

#[derive(Serialize)]
struct Ledger {
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u8>,
    state: String,
    generation: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    holder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

#[derive(Serialize)]
struct Message {
    place: String,
    generation: u32,
    tries: u32,
    parks: u32,
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
    let config = arguments.config.load()?;
    let store = world::store(&config).await?;
    let queue = world::queue(&config.queue).await?;
    let identity = match &arguments.key {
        None => Identity::of_id(arguments.id),
        Some(key) => {
            let tenant = arguments.tenant.as_deref().map(Tenant::parse).transpose().context("--tenant")?;
            Identity::of_key(&tenant.unwrap_or_default(), &IdempotencyKey::parse(key).context("--key")?)
        }
    };
    let mut history = History {
        id: arguments.id,
        ledger: ledger(&store, &LedgerKey::of(&identity)).await?,
        events: None,
        messages: Vec::new(),
        unknown: Vec::new(),
    };
    let id = arguments.id.to_string();
    history.events = queue
        .events_about(&id)
        .await?
        .map(|list| list.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect());
    match queue.waiting(&id).await? {
        Some(list) => history.messages.extend(list.into_iter().map(|(place, message)| described(&place, &message))),
        None => at_rest(&queue, &id, &mut history).await?,
    }
    if history.ledger.is_empty() && arguments.key.is_none() {
        history.unknown.push(
            "no record under this id; a job with an idempotency key has its record under that: --key, --tenant"
                .to_owned(),
        );
    }
    queue.close().await;
    let is_known = !history.ledger.is_empty()
        || !history.messages.is_empty()
        || history.events.as_ref().is_some_and(|list| !list.is_empty());
    match arguments.format {
        Format::Json => output::json(&history)?,
        Format::Text => output::line(text(&history).trim_end())?,
    }
    Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The record, what it stands for, and those of the parts.
async fn ledger(store: &Store, key: &LedgerKey) -> anyhow::Result<Vec<Ledger>> {
    let Some(mut record) = store.get(key).await? else { return Ok(Vec::new()) };
    let mut key = key.clone();
    if record.state == State::Alias {
        key = LedgerKey::noted(record.note.clone());
        match store.get(&key).await? {
            Some(target) => record = target,
            None => return Ok(vec![told(None, record)]),
        }
    }
    let is_split = record.state == State::Final(Final::Split);
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

fn told(part: Option<u8>, record: Record) -> Ledger {
    let state = match record.state {
        State::Claimed => "claimed: a worker is at it",
        State::Submitting => "submitting: bytes may have reached a transport",
        State::Decided => "decided: the outcome is known, and is being carried out",
        State::Parked => "parked: its copy waits",
        State::Alias => "stands for a job that nobody has seen",
        State::Final(end) => end.as_str(),
    };
    let lease = i64::try_from(record.lease_end_ms).ok().filter(|ms| *ms > 0);
    Ledger {
        part,
        state: state.to_owned(),
        generation: record.generation,
        holder: record.holder,
        lease_until: lease.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
        note: record.note,
    }
}

/// A broker shows only what is at rest: what waits in its other queues cannot be looked at without taking it.
async fn at_rest(queue: &Queue, id: &str, history: &mut History) -> anyhow::Result<()> {
    for (rest, place) in [(Rest::Dead, "dead"), (Rest::Hold, "hold")] {
        let messages = &mut history.messages;
        queue
            .rest_each(rest, async |message: &RestMessage| {
                if message.message_id.as_deref() == Some(id) {
                    messages.push(described(place, message));
                }
                RestVerdict::Keep
            })
            .await?;
    }
    history.unknown.push("RabbitMQ does not show what waits in its work queues and in the ladder".to_owned());
    history.unknown.push("events are not kept by RabbitMQ: bind a queue to postrider.events to keep them".to_owned());
    Ok(())
}

fn described(place: &str, message: &RestMessage) -> Message {
    let meta = &message.meta;
    let trace = |text: &String| text.split('-').nth(1).map(str::to_owned);
    Message {
        place: place.to_owned(),
        generation: meta.generation,
        tries: meta.attempt,
        parks: meta.parks,
        not_before: meta.not_before,
        last: meta.last.clone(),
        reason: meta.rest.as_ref().map(|rest| format!("{}: {}", rest.reason, rest.detail)),
        since: meta.rest.as_ref().map(|rest| rest.at),
        trace: meta.traceparent.as_ref().and_then(trace),
    }
}

fn text(history: &History) -> String {
    use std::fmt::Write as _;
    let mut out = format!("job {}\n", history.id);
    // Writing to a string cannot fail.
    for one in &history.ledger {
        let part = one.part.map_or_else(String::new, |part| format!(" of part {part}"));
        let _ = write!(out, "ledger{part}: {}", one.state);
        if !one.holder.is_empty() {
            let _ = write!(out, ", by {}", one.holder);
        }
        if !one.note.is_empty() {
            let _ = write!(out, " ({})", one.note);
        }
        out.push('\n');
    }
    for event in history.events.iter().flatten() {
        let data = &event["data"];
        let field = |name: &str| data[name].as_str().map(|text| format!(" {text}")).unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        let kind = kind.trim_start_matches("postrider.").trim_end_matches(".v1");
        let _ = writeln!(
            out,
            "{} {kind}: try {}{}{}{}{}",
            event["time"].as_str().unwrap_or_default(),
            data["attempt"],
            field("route"),
            field("transport"),
            field("class"),
            field("answer"),
        );
    }
    for one in &history.messages {
        let _ = write!(
            out,
            "message in {}: generation {}, {} tries, parked {} times",
            one.place, one.generation, one.tries, one.parks
        );
        for (name, value) in [("last answer", &one.last), ("reason", &one.reason), ("trace", &one.trace)] {
            if let Some(value) = value {
                let _ = write!(out, ", {name} {value}");
            }
        }
        if let Some(at) = one.not_before {
            let _ = write!(out, ", not before {at:.0}");
        }
        out.push('\n');
    }
    for unknown in &history.unknown {
        let _ = writeln!(out, "not known: {unknown}");
    }
    out
}
