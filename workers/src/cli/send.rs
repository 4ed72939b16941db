//! `postrider send`: job documents in, confirmed publishes out.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use postrider_producer::{PublishError, Publisher, rabbitmq};
use postrider_schemas::{Job, JobId};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, sleep_until};

use super::{
    ConfigArguments,
    documents::{self, Documents},
    output::{self, Format},
};

/// Publishes that wait for their confirm at once.
const IN_FLIGHT_MAX: usize = 256;

/// Arguments of `postrider send`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File with one job document, a list of them, or one a line; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArguments,
    /// Queue to publish to, instead of the configuration's `queue.url`
    #[arg(long, value_name = "URL", env = "POSTRIDER_QUEUE__URL", hide_env_values = true)]
    queue: Option<String>,
    /// At most this many jobs a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Stop at the first document that is not a job
    #[arg(long)]
    strict: bool,
    /// Skip documents that begin before this line (the first line is 1)
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Check each job and make its message, templates included; publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Default)]
struct SendCounts {
    published: u64,
    refused: u64,
    failed: u64,
    /// The first line whose job was not confirmed though it is one.
    first_failed: Option<u64>,
}

/// Publishes, and prints the id of each job that is confirmed. Exit status 0 if every document was published, 1 otherwise.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let documents = documents::open(&arguments.file, config.job)?;
    if arguments.dry_run {
        return rehearse(documents, &arguments);
    }
    let url = arguments.queue.as_deref().unwrap_or(config.queue.url.expose_secret());
    let mut publisher = Publisher::connect(url).await.context("the queue")?.with_shards(config.queue.shards);
    if let Some(user) = rabbitmq::user(url).filter(|_| config.queue.publishers.is_some()) {
        publisher = publisher.with_user_id(user);
    }
    let counts = publish_all(documents, &publisher, &arguments).await;
    publisher.close().await;
    let SendCounts { published, refused, failed, first_failed } = counts?;
    output::remark(&format!("published {published}, not a job {refused}, not confirmed {failed}"));
    if let Some(line) = first_failed {
        output::remark(&format!(
            "to go on: --from-line {line} (a job with an `id` or `idempotency_key` of its own is sent once however often it is published; without, it is new each time)"
        ));
    }
    Ok(if refused + failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes every message, and says what it came to.
fn rehearse(mut documents: Documents, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (mut sound, mut refused) = (0_u64, 0_u64);
    while let Some(document) = documents.next()? {
        if document.line < arguments.from_line {
            continue;
        }
        match document.made(Timestamp::now()) {
            Ok((job, bytes)) => {
                sound += 1;
                tell_rehearsed(job, bytes, arguments.format)?;
            }
            Err(reason) => {
                refused += 1;
                output::remark(&format!("line {}: {reason}", document.line));
                if arguments.strict {
                    break;
                }
            }
        }
    }
    output::remark(&format!("would publish {sound}, not a job {refused}; nothing was published"));
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell_rehearsed(job: &Job, bytes: usize, format: Format) -> anyhow::Result<()> {
    let (id, lane, recipients) = (job.id(), job.lane(), job.recipients().len());
    match format {
        Format::Json => output::json(&serde_json::json!({
            "id": id, "lane": lane, "tenant": job.tenant().as_str(), "recipients": recipients, "bytes": bytes
        }))?,
        Format::Text => {
            let recipients = output::count(recipients, "recipient");
            output::line(&format!("{id}  {}, {recipients}, a message of {bytes} bytes", lane.as_str()))?;
        }
    }
    Ok(())
}

async fn publish_all(documents: Documents, publisher: &Publisher, arguments: &Arguments) -> anyhow::Result<SendCounts> {
    let mut documents = documents.apart();
    let bar = output::progress(0, "published");
    let mut counts = SendCounts::default();
    let mut open = FuturesUnordered::new();
    let (start, mut sent) = (Instant::now(), 0_u32);
    loop {
        let document = tokio::select! {
            document = documents.recv(), if open.len() < IN_FLIGHT_MAX => document,
            done = open.next(), if !open.is_empty() => {
                note(done, &mut counts, &bar, arguments.format)?;
                continue;
            }
        };
        let Some(document) = document.transpose()? else { break };
        if document.line < arguments.from_line {
            continue;
        }
        let job = match document.job {
            Ok(job) => job,
            Err(reason) => {
                output::remark(&format!("line {}: {reason}", document.line));
                counts.refused += 1;
                if arguments.strict {
                    break;
                }
                continue;
            }
        };
        if let Some(rate) = arguments.rate {
            sleep_until(start + Duration::from_secs_f64(f64::from(sent) / f64::from(rate))).await;
            sent += 1;
        }
        open.push(publish(publisher, document.line, job));
        bar.inc_length(1);
    }
    while !open.is_empty() {
        note(open.next().await, &mut counts, &bar, arguments.format)?;
    }
    bar.finish_and_clear();
    Ok(counts)
}

type Published = (u64, JobId, Result<(), PublishError>);

async fn publish(publisher: &Publisher, line: u64, job: Job) -> Published {
    (line, job.id(), publisher.publish(&job).await)
}

fn note(
    done: Option<Published>,
    counts: &mut SendCounts,
    bar: &indicatif::ProgressBar,
    format: Format,
) -> anyhow::Result<()> {
    match done {
        Some((_, id, Ok(()))) => {
            counts.published += 1;
            bar.inc(1);
            bar.suspend(|| match format {
                Format::Text => output::line(&id.to_string()).map_err(anyhow::Error::from),
                Format::Json => output::json(&serde_json::json!({ "id": id })),
            })?;
        }
        Some((line, _, Err(error))) => {
            output::remark(&format!("line {line}: {error}"));
            counts.failed += 1;
            counts.first_failed = Some(counts.first_failed.map_or(line, |first| first.min(line)));
        }
        None => {}
    }
    Ok(())
}
