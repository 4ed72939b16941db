//! Messages at rest, and what a person decides about them: what `postrider dead`, `hold` and `unroutable` share.

mod row;
mod selection;

use std::{process::ExitCode, time::Duration};

use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, Meta, wire};
use tokio::time::{Instant, sleep_until};

use self::row::{RestRow, name};
pub use self::selection::{RetryArguments, Selection};
use super::{
    super::delivery::context,
    output::{self, Format, table},
};
pub(super) use crate::cli::rest::row::tenant_of;
use crate::{
    config::Config,
    policy::{headers::flaw, publisher},
    queue::{Queue, Rest, RestMessage, RestVerdict},
    store::{LedgerKey, Reopened, Store},
};

/// Lists what is selected; `whole` shows each with headers and body.
pub(super) async fn list(rest: Rest, selection: Selection, whole: bool) -> anyhow::Result<ExitCode> {
    let (_, queue) = connect(&selection).await?;
    let (now, mut trouble, mut rows) = (Timestamp::now(), None, Vec::new());
    queue
        .rest_each(rest, async |message| {
            if selection.holds(message, now) {
                let row = RestRow::of(rest, message);
                if let Err(error) = row::show(&row, message, selection.format, whole) {
                    trouble.get_or_insert(error);
                }
                rows.push(row);
            }
            RestVerdict::Keep
        })
        .await?;
    queue.close().await;
    trouble.map_or(Ok(()), Err)?;
    if selection.format == Format::Text && !whole {
        rows.sort_by_key(|row| selection.order(row));
        let columns = if selection.wide { row::HEADER.len() } else { row::NARROW };
        output::lines(table(&row::HEADER[..columns], &row::cells(&rows, now, columns), selection.wide))?;
        output::remark(&format!("{} shown{}", rows.len(), row::next_commands(rest, rows.len())));
    }
    Ok(if rows.is_empty() && (whole || selection.names_jobs()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Deletes what is selected.
pub(super) async fn delete(rest: Rest, selection: Selection) -> anyhow::Result<ExitCode> {
    selection.must_select()?;
    let (_, queue) = connect(&selection).await?;
    selection.must_mean_one_tenant(&queue, rest).await?;
    let (now, mut deleted) = (Timestamp::now(), 0_u64);
    queue
        .rest_each(rest, async |message| {
            if !selection.holds(message, now) {
                return RestVerdict::Keep;
            }
            deleted += 1;
            if selection.dry_run { RestVerdict::Keep } else { RestVerdict::Drop }
        })
        .await?;
    queue.close().await;
    report(&selection, &[("dropped", deleted)], deleted)
}

/// Lets what is selected run again.
pub(super) async fn retry_selected(
    rest: Rest,
    RetryArguments { selection, rate }: RetryArguments,
) -> anyhow::Result<ExitCode> {
    selection.must_select()?;
    let (config, queue) = connect(&selection).await?;
    let store = context::existing_store(&config).await?;
    selection.must_mean_one_tenant(&queue, rest).await?;
    let (now, start) = (Timestamp::now(), Instant::now());
    let (mut again, mut kept, mut sent) = (0_u32, 0_u64, 0_u64);
    queue
        .rest_each(rest, async |message| {
            if !selection.holds(message, now) {
                return RestVerdict::Keep;
            }
            if selection.dry_run {
                again += 1;
                return RestVerdict::Keep;
            }
            if let Some(rate) = rate {
                sleep_until(start + Duration::from_secs_f64(f64::from(again) / f64::from(rate))).await;
            }
            let answer = match rest {
                Rest::Unroutable => moved(&config, message),
                Rest::Dead | Rest::Hold => reopen(&store, message).await,
            };
            match answer {
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
    let found = u64::from(again) + sent + kept;
    let code = report(&selection, &[("again", again.into()), ("over-meanwhile", sent), ("kept", kept)], found)?;
    Ok(if kept == 0 { code } else { ExitCode::FAILURE })
}

/// Brings a message that no queue wanted on its way. Who may publish for whom is judged here, because its copy is ours. Where it is a worker's, it
/// goes on as it was.
fn moved(config: &Config, message: &RestMessage) -> Result<(Reopened, RestVerdict), String> {
    let job = job(message)?;
    if let Some(refusal) = publisher::refusal(&config.queue.publishers, message.meta.publisher.as_deref(), job.tenant())
    {
        return Err(refusal);
    }
    if let Some(flaw) = flaw(&message.meta, job.recipients().len(), Timestamp::now()) {
        return Err(flaw);
    }
    let meta = Meta { publisher: None, ..message.meta.clone() };
    Ok((Reopened::Go, RestVerdict::Again(Box::new(meta), job.lane())))
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

async fn connect(selection: &Selection) -> anyhow::Result<(Config, Queue)> {
    let config = selection.config.load_to_look()?;
    config.store_is_shared()?;
    let queue = context::existing_queue(&config.queue).await?;
    Ok((config, queue))
}

/// Says what was done, or would be. Exit status 1 where jobs were named and none of them rests here.
fn report(selection: &Selection, counts: &[(&str, u64)], found: u64) -> anyhow::Result<ExitCode> {
    match selection.format {
        Format::Json => {
            let mut map: serde_json::Map<String, serde_json::Value> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            if selection.dry_run {
                map.insert("dry_run".to_owned(), true.into());
            }
            output::json(&map)?;
        }
        Format::Text if selection.dry_run => {
            output::line(&format!("{} selected; nothing was changed", output::count(found, "message")))?;
        }
        Format::Text => {
            let list: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            output::line(&list.join(", "))?;
        }
    }
    if found == 0 && selection.names_jobs() {
        output::remark("no such job rests here; `postrider trace ID` tells where it is");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
