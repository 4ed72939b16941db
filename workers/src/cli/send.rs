//! `postrider send`: JSON lines in, confirmed publishes out.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use postrider_producer::{PublishError, Publisher, rabbitmq};
use postrider_schemas::{Job, JobLimits, wire};
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    time::{Instant, sleep_until},
};

use super::{ConfigArguments, output};

/// Publishes that wait for their confirm at once.
const IN_FLIGHT_MAX: usize = 256;

/// Arguments of `postrider send`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File with one job per line; `-` reads standard input
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
    /// Stop at the first line that is not a job
    #[arg(long)]
    strict: bool,
    /// Skip the lines before this one (the first line is 1)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
}

#[derive(Default)]
struct SendCounts {
    published: u64,
    refused: u64,
    failed: u64,
    /// The first line whose job was not confirmed though it is one.
    first_failed: Option<u64>,
}

/// Publishes. Exit status 0 if every line was published, 1 otherwise.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let url = arguments.queue.as_deref().unwrap_or(config.queue.url.expose_secret());
    let mut publisher = Publisher::connect(url).await.context("the queue")?.with_shards(config.queue.shards);
    if let Some(user) = rabbitmq::user(url).filter(|_| config.queue.publishers.is_some()) {
        publisher = publisher.with_user_id(user);
    }
    let mut reader: Box<dyn AsyncBufRead + Unpin> = if arguments.file.as_os_str() == "-" {
        Box::new(BufReader::new(tokio::io::stdin()))
    } else {
        let file = tokio::fs::File::open(&arguments.file).await;
        Box::new(BufReader::new(file.with_context(|| format!("{}", arguments.file.display()))?))
    };
    let counts = publish_lines(&mut reader, &publisher, &config.job, &arguments).await?;
    publisher.close().await;
    let SendCounts { published, refused, failed, first_failed } = counts;
    output::remark(&format!("published {published}, not a job {refused}, not confirmed {failed}"));
    if let Some(line) = first_failed {
        output::remark(&format!(
            "to go on: --from-line {line} (a job with an `id` or `idempotency_key` of its own is sent once however often it is published; without, it is new each time)"
        ));
    }
    Ok(if refused + failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn publish_lines(
    reader: &mut (impl AsyncBufRead + Unpin),
    publisher: &Publisher,
    limits: &JobLimits,
    arguments: &Arguments,
) -> anyhow::Result<SendCounts> {
    let bar = output::progress(0, "published");
    let mut counts = SendCounts::default();
    let mut open = FuturesUnordered::new();
    let (start, mut sent) = (Instant::now(), 0_u32);
    let mut number = 0;
    while let Some(line) = next_line(reader, limits.bytes_max).await? {
        number += 1;
        if number < arguments.from_line || line.is_blank() {
            continue;
        }
        let job = match line.job(limits) {
            Ok(job) => job,
            Err(reason) => {
                output::remark(&format!("line {number}: {reason}"));
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
        open.push(publish(publisher, number, job));
        bar.inc_length(1);
        while open.len() >= IN_FLIGHT_MAX {
            note(open.next().await, &mut counts, &bar);
        }
    }
    while !open.is_empty() {
        note(open.next().await, &mut counts, &bar);
    }
    bar.finish_and_clear();
    Ok(counts)
}

async fn publish(publisher: &Publisher, line: u64, job: Job) -> (u64, Result<(), PublishError>) {
    (line, publisher.publish(&job).await)
}

fn note(done: Option<(u64, Result<(), PublishError>)>, counts: &mut SendCounts, bar: &indicatif::ProgressBar) {
    match done {
        Some((_, Ok(()))) => {
            counts.published += 1;
            bar.inc(1);
        }
        Some((line, Err(error))) => {
            output::remark(&format!("line {line}: {error}"));
            counts.failed += 1;
            counts.first_failed = Some(counts.first_failed.map_or(line, |first| first.min(line)));
        }
        None => {}
    }
}

/// A line, or the news that it is longer than a job may be.
enum InputLine {
    Text(Vec<u8>),
    TooLong(usize),
}

impl InputLine {
    fn is_blank(&self) -> bool {
        matches!(self, Self::Text(text) if text.iter().all(u8::is_ascii_whitespace))
    }

    fn job(self, limits: &JobLimits) -> Result<Job, String> {
        match self {
            Self::TooLong(max) => Err(format!("longer than the {max} bytes that a job may have")),
            Self::Text(text) => {
                wire::decode_v1(&text).and_then(|job| job.parse(limits)).map_err(|error| error.to_string())
            }
        }
    }
}

/// Reads a line into a bounded buffer; what is too long is skipped up to its end.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> std::io::Result<Option<InputLine>> {
    let mut text = Vec::new();
    let read = (&mut *reader).take(bytes_max as u64 + 1).read_until(b'\n', &mut text).await?;
    if read == 0 {
        return Ok(None);
    }
    if text.len() <= bytes_max || text.ends_with(b"\n") {
        return Ok(Some(InputLine::Text(text)));
    }
    loop {
        let chunk = reader.fill_buf().await?;
        let (used, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(place) => (place + 1, true),
            None => (chunk.len(), chunk.is_empty()),
        };
        reader.consume(used);
        if ended {
            return Ok(Some(InputLine::TooLong(bytes_max)));
        }
    }
}
