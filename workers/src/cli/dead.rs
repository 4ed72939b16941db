//! `postrider dead` and `postrider hold`: messages at rest, and what a person decides about them.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use postrider_schemas::{
    Job, JobId, JobLimits, Meta, Tenant,
    wire::{self, decode_v1},
};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::{
    super::worker::context,
    ConfigArguments,
    output::{self, Format},
};
use crate::{
    config::parse_duration,
    policy::headers::flaw,
    queue::{Queue, Rest, RestMessage, RestVerdict},
    store::{LedgerKey, Reopened, Store},
};

/// Arguments of `postrider dead`.
#[derive(clap::Args)]
pub struct DeadArguments {
    #[command(subcommand)]
    action: DeadAction,
}

#[derive(clap::Subcommand)]
enum DeadAction {
    /// List jobs that were given up
    Ls(Selection),
    /// Show one whole, body included
    Show(Selection),
    /// Try again
    Retry(RetryArguments),
    /// Delete
    Drop(Selection),
}

/// Which messages. All conditions must hold.
#[derive(clap::Args)]
pub(super) struct Selection {
    /// Ids of jobs
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Every message; needed where nothing else selects and the command changes something
    #[arg(long)]
    all: bool,
    /// Why it came to rest, such as retries-exhausted, conflict, unreadable, unknown
    #[arg(long)]
    reason: Option<String>,
    /// The job's tenant. Needed to change something where jobs of several tenants have the same ID
    #[arg(long)]
    tenant: Option<String>,
    /// At rest for at least this long, such as 12h
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older: Option<Duration>,
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(clap::Args)]
pub(super) struct RetryArguments {
    #[command(flatten)]
    selection: Selection,
    /// At most this many a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// What is told of a message.
#[derive(Serialize)]
struct RestRow<'a> {
    id: &'a str,
    reason: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    at: Option<Timestamp>,
    attempts: u32,
    times: u32,
    bytes: usize,
}

/// Runs `postrider dead`.
pub async fn dead(arguments: DeadArguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        DeadAction::Ls(selection) => list(Rest::Dead, selection, false).await,
        DeadAction::Show(selection) => list(Rest::Dead, selection, true).await,
        DeadAction::Retry(retry) => retry_selected(Rest::Dead, retry).await,
        DeadAction::Drop(selection) => delete(Rest::Dead, selection).await,
    }
}

pub(super) async fn list(rest: Rest, selection: Selection, whole: bool) -> anyhow::Result<ExitCode> {
    let (queue, _) = connect(&selection).await?;
    let (now, mut shown, mut trouble) = (Timestamp::now(), 0_u64, None);
    queue
        .rest_each(rest, async |message| {
            if selection.holds(message, now) {
                shown += 1;
                if let Err(error) = show(message, selection.format, whole) {
                    trouble.get_or_insert(error);
                }
            }
            RestVerdict::Keep
        })
        .await?;
    queue.close().await;
    trouble.map_or(Ok(()), Err)?;
    if selection.format == Format::Text {
        output::remark(&format!("{shown} shown"));
    }
    Ok(if whole && shown == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(super) async fn delete(rest: Rest, selection: Selection) -> anyhow::Result<ExitCode> {
    selection.must_select()?;
    let (queue, _) = connect(&selection).await?;
    selection.must_mean_one_tenant(&queue, rest).await?;
    let (now, mut deleted) = (Timestamp::now(), 0_u64);
    queue
        .rest_each(rest, async |message| {
            if selection.holds(message, now) {
                deleted += 1;
                RestVerdict::Drop
            } else {
                RestVerdict::Keep
            }
        })
        .await?;
    queue.close().await;
    report(selection.format, &[("dropped", deleted)])
}

pub(super) async fn retry_selected(
    rest: Rest,
    RetryArguments { selection, rate }: RetryArguments,
) -> anyhow::Result<ExitCode> {
    selection.must_select()?;
    let (queue, store) = connect(&selection).await?;
    selection.must_mean_one_tenant(&queue, rest).await?;
    let (now, start) = (Timestamp::now(), Instant::now());
    let (mut again, mut kept, mut sent) = (0_u32, 0_u64, 0_u64);
    queue
        .rest_each(rest, async |message| {
            if !selection.holds(message, now) {
                return RestVerdict::Keep;
            }
            if let Some(rate) = rate {
                sleep_until(start + Duration::from_secs_f64(f64::from(again) / f64::from(rate))).await;
            }
            match reopen(&store, message).await {
                Ok((Reopened::Go, verdict)) => {
                    again += 1;
                    verdict
                }
                Ok((Reopened::AlreadySent | Reopened::Cancelled, _)) => {
                    sent += 1;
                    RestVerdict::Drop
                }
                Ok((Reopened::Other, _)) => {
                    kept += 1;
                    output::remark(&format!("{}: kept, somebody works on it or it is not to be sent", name(message)));
                    RestVerdict::Keep
                }
                Err(reason) => {
                    kept += 1;
                    output::remark(&format!("{}: kept, {reason}", name(message)));
                    RestVerdict::Keep
                }
            }
        })
        .await?;
    queue.close().await;
    let code = report(selection.format, &[("again", again.into()), ("over-meanwhile", sent), ("kept", kept)])?;
    Ok(if kept == 0 { code } else { ExitCode::FAILURE })
}

/// Asks the ledger whether a message at rest may run again, and makes its next generation.
async fn reopen(store: &Store, message: &RestMessage) -> Result<(Reopened, RestVerdict), String> {
    let job = job(message)?;
    // What rests carries the generation after the one that came to its end.
    let before = message.meta.generation.saturating_sub(1);
    let reason = message.meta.rest.as_ref().map_or("", |rest| rest.reason.as_str());
    if reason == "conflict" {
        return Err("its identity was used for another payload; publish it anew under another key".to_owned());
    }
    if let Some(flaw) = flaw(&message.meta, job.recipients().len(), Timestamp::now()) {
        return Err(format!("{flaw}; publish it anew"));
    }
    let answer = store
        .reopen(&LedgerKey::of_message(&job.identity(), message.meta.part), before)
        .await
        .map_err(|error| error.to_string())?;
    // Tries begin anew; why it came to rest stays, to be counted if it happens again.
    let meta = Meta {
        generation: message.meta.generation.max(1),
        attempt: 0,
        waits: 0,
        losses: 0,
        not_before: None,
        // Its age counts from here on.
        published: Some(Timestamp::now()),
        rest: message.meta.rest.clone(),
        ..message.meta.clone()
    };
    Ok((answer, RestVerdict::Again(Box::new(meta), job.lane())))
}

fn job(message: &RestMessage) -> Result<Job, String> {
    wire::decode(&message.body, None, &JobLimits::DEFAULT).map_err(|error| format!("it is not a job: {error}"))
}

async fn connect(selection: &Selection) -> anyhow::Result<(Queue, Store)> {
    let config = selection.config.load_to_look()?;
    config.store_is_shared()?;
    Ok((context::existing_queue(&config.queue).await?, context::existing_store(&config).await?))
}

impl Selection {
    fn must_select(&self) -> anyhow::Result<()> {
        let selects =
            self.all || !self.ids.is_empty() || self.reason.is_some() || self.tenant.is_some() || self.older.is_some();
        anyhow::ensure!(selects, "name jobs by id, --reason, --tenant or --older, or say --all");
        Ok(())
    }

    /// Jobs of several tenants may have the same id: nothing is changed before it is clear whose is meant.
    async fn must_mean_one_tenant(&self, queue: &Queue, rest: Rest) -> anyhow::Result<()> {
        if self.ids.is_empty() || self.tenant.is_some() {
            return Ok(());
        }
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        queue
            .rest_each(rest, async |message| {
                if self.is_named(message) {
                    let tenant = tenant_of(message).unwrap_or_else(|| "(none that can be read)".to_owned());
                    found.entry(name(message).to_owned()).or_default().insert(tenant);
                }
                RestVerdict::Keep
            })
            .await?;
        for (id, tenants) in found {
            let names: Vec<String> = tenants.into_iter().collect();
            anyhow::ensure!(
                names.len() == 1,
                "{id} is a job of the tenants {}: name one by --tenant",
                names.join(", ")
            );
        }
        Ok(())
    }

    fn is_named(&self, message: &RestMessage) -> bool {
        self.ids.is_empty() || self.ids.iter().any(|id| id.parse::<JobId>().is_ok_and(|id| named(message, id)))
    }

    fn holds(&self, message: &RestMessage, now: Timestamp) -> bool {
        let rest = message.meta.rest.as_ref();
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        self.is_named(message)
            && self.reason.as_ref().is_none_or(|reason| rest.is_some_and(|rest| rest.reason == *reason))
            && self.older.is_none_or(|limit| rest.is_some_and(|rest| age(rest.at) >= limit))
            && self.tenant.as_ref().is_none_or(|tenant| tenant_of(message).as_ref() == Some(tenant))
    }
}

fn named(message: &RestMessage, id: JobId) -> bool {
    message.message_id.as_deref().is_some_and(|text| text.parse() == Ok(id))
}

fn name(message: &RestMessage) -> &str {
    message.message_id.as_deref().unwrap_or("(no id)")
}

/// Nothing where the body, or what stands in the field, is none: it may hold anything then.
pub(super) fn tenant_of(message: &RestMessage) -> Option<String> {
    let document = decode_v1(&message.body).ok()?;
    let tenant = document.tenant.unwrap_or_else(|| Tenant::DEFAULT.to_owned());
    Tenant::parse(&tenant).ok().map(|tenant| tenant.as_str().to_owned())
}

fn show(message: &RestMessage, format: Format, whole: bool) -> anyhow::Result<()> {
    let (rest, cut) = (message.meta.rest.as_ref(), message.cut.as_ref());
    let tenant = tenant_of(message);
    let row = RestRow {
        id: name(message),
        reason: rest.map_or(if cut.is_some() { "unreadable" } else { "delivery-limit" }, |rest| &rest.reason),
        detail: rest.map_or(cut.map_or("", |cut| &cut.reason), |rest| &rest.detail),
        tenant: tenant.as_deref(),
        at: rest.map(|rest| rest.at),
        attempts: message.meta.attempt,
        times: rest.map_or(1, |rest| rest.times),
        bytes: message.body.len(),
    };
    if format == Format::Json {
        let mut value = serde_json::to_value(&row)?;
        if whole {
            value["headers"] = serde_json::to_value(message.meta.to_pairs())?;
            value["body"] = String::from_utf8_lossy(&message.body).into();
        }
        return output::json(&value);
    }
    let at = row.at.map_or("-".to_owned(), |at| at.to_string());
    let again = if row.times > 1 { format!(" (for the {} time)", ordinal(row.times)) } else { String::new() };
    output::line(&format!("{}  {}{again}  {at}  tries {}  {}", row.id, row.reason, row.attempts, row.detail))?;
    if whole {
        for (name, value) in message.meta.to_pairs() {
            output::line(&format!("  {name}: {value}"))?;
        }
        output::json_text(&String::from_utf8_lossy(&message.body))?;
    }
    Ok(())
}

fn ordinal(n: u32) -> String {
    match n {
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        n => format!("{n}th"),
    }
}

fn report(format: Format, counts: &[(&str, u64)]) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => {
            let map: serde_json::Map<String, serde_json::Value> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            output::json(&map)?;
        }
        Format::Text => {
            let list: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            output::line(&list.join(", "))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
