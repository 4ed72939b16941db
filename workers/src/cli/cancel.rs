//! `postrider cancel`: calls a job back.

use std::process::ExitCode;

use anyhow::Context as _;
use jiff::Timestamp;
use postrider_schemas::{Event, EventType, IdempotencyKey, JobId, Tenant, event::EventData, job::Identity};
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::{
    super::delivery::context,
    ConfigArguments,
    output::{self, Format},
    rest::tenant_of,
};
use crate::{
    config::Config,
    store::{Cancelled, Final, LedgerKey, RecordState},
};

/// Arguments of `postrider cancel`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's id
    #[arg(value_name = "ID", required_unless_present = "key", conflicts_with = "key")]
    id: Option<JobId>,
    /// The job's idempotency key
    #[arg(long, requires = "tenant")]
    key: Option<String>,
    /// The job's tenant, `default` where none is named. Ids and keys belong to their tenants
    #[arg(long)]
    tenant: Option<String>,
    /// Cancel a job that no worker has seen yet as well: it will not be sent when it comes
    #[arg(long)]
    unseen: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// Calls a job back. Exit status 0 if it will not be sent, 1 if it was, is being, or ended otherwise.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let tenant = arguments.tenant.as_deref().map(Tenant::parse).transpose().context("--tenant")?.unwrap_or_default();
    let key = arguments.key.as_deref().map(IdempotencyKey::parse).transpose().context("--key")?;
    let identity = match (&key, arguments.id) {
        (Some(key), _) => Identity::of_key(&tenant, key),
        (None, Some(id)) => Identity::of_id(&tenant, id),
        (None, None) => anyhow::bail!("name the job by its ID, or by --key and --tenant"),
    };
    let store = context::existing_store(&config).await?;
    // Looked at first: whoever names the wrong job or tenant is to hear that nobody knows it.
    let record = store.get(&LedgerKey::of(&identity)).await?;
    let is_known = record.is_some() || is_queued(&config, arguments.id, &tenant).await?;
    if !is_known && !arguments.unseen {
        return unknown(&tenant, arguments.format);
    }
    if arguments.dry_run {
        return foretell(record.map(|record| record.state), arguments.format);
    }
    let answer = store.cancel(&identity).await?;
    let (word, text) = match answer {
        Cancelled::Now => ("cancelled", "cancelled; wherever it waits, it will not be sent".to_owned()),
        Cancelled::AlreadySent => ("sent", "too late: it has been sent".to_owned()),
        Cancelled::BeingSent => {
            ("being-sent", "it is being sent at this moment; ask again to see how it ended".to_owned())
        }
        Cancelled::AlreadyFinal(Final::Cancelled) => ("cancelled", "it was cancelled before".to_owned()),
        Cancelled::AlreadyFinal(end) => (end.as_str(), format!("it is over already: {}", end.as_str())),
    };
    if answer == Cancelled::Now {
        let data = EventData {
            job_id: arguments.id,
            idempotency_key: key.map(|key| key.as_str().to_owned()),
            tenant: tenant.as_str().to_owned(),
            reason: Some("cancelled".to_owned()),
            ..EventData::default()
        };
        let queue = context::existing_queue(&config.queue).await?;
        queue
            .emit(&Event::new(EventType::Cancelled, data, Timestamp::now()))
            .await
            .context("cancelled, but the event")?;
        queue.close().await;
    }
    let told = (answer == Cancelled::Now).then(|| tenant.as_str());
    match (arguments.format, told) {
        (Format::Text, None) => output::line(&text)?,
        (Format::Text, Some(tenant)) => output::line(&format!("{text}; tenant {tenant} was told"))?,
        (Format::Json, told) => output::json(&json!({ "answer": word, "told": told, "known": is_known }))?,
    }
    Ok(if word == "cancelled" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file shows its messages; a broker does not.
async fn is_queued(config: &Config, id: Option<JobId>, tenant: &Tenant) -> anyhow::Result<bool> {
    let Some(id) = id.filter(|_| config.queue.url.expose_secret().starts_with("embedded:")) else { return Ok(false) };
    let queue = context::existing_queue(&config.queue).await?;
    let found = queue.waiting(&id.to_string()).await?.unwrap_or_default();
    queue.close().await;
    Ok(found.iter().any(|(_, message)| tenant_of(message).as_deref() == Some(tenant.as_str())))
}

fn unknown(tenant: &Tenant, format: Format) -> anyhow::Result<ExitCode> {
    if format == Format::Json {
        output::json(&json!({ "answer": "unknown", "told": null, "known": false }))?;
    } else {
        output::line(&format!("nothing was cancelled: no worker has seen this job of tenant {tenant}"))?;
    }
    output::remark(
        "if the job is another tenant's, cancel it with --tenant; if it was published and no worker has seen it yet, with --unseen",
    );
    Ok(ExitCode::FAILURE)
}

/// What a cancellation would come to at this moment.
fn foretell(state: Option<RecordState>, format: Format) -> anyhow::Result<ExitCode> {
    let (word, text) = match state {
        Some(RecordState::Final(end)) => (end.as_str(), format!("it is over already: {}", end.as_str())),
        Some(RecordState::Submitting) => ("being-sent", "it is being sent at this moment".to_owned()),
        None | Some(RecordState::Claimed | RecordState::Decided | RecordState::Parked | RecordState::Alias) => {
            ("would-cancel", "it would be cancelled".to_owned())
        }
    };
    match format {
        Format::Json => output::json(&json!({ "answer": word, "dry_run": true }))?,
        Format::Text => output::line(&format!("{text}; nothing was changed"))?,
    }
    Ok(if word == "would-cancel" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
