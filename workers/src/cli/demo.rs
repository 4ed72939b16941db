//! `postrider demo`: the whole journey on one machine, counted at its end by what the mail catcher really received.

use std::{
    collections::HashMap,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use postrider_producer::Publisher;
use postrider_schemas::{Job, JobId, JobLimits, JobV1, Lane, examples, wire};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{super::delivery::context, output};
use crate::{
    config,
    mail_catcher::{CaughtMail, MailCatcher},
    message,
    worker::consumer,
};

/// Without any arrival for this long the demo ends and counts.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How often progress is told where there is no bar.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `postrider demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Number of jobs
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    jobs: u32,
    /// Queue to use (amqp://..., embedded:FILE); a file of its own that is removed afterwards where absent
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
    /// Store to use (redis://..., embedded:FILE); the same file where absent
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

/// What was seen of a job.
struct Trip {
    job: Job,
    published: Option<Instant>,
    delivered: Option<Instant>,
    copies: u32,
    intact: bool,
}

/// What the demo came to.
struct DemoCounts {
    published: usize,
    delivered: usize,
    duplicates: u32,
    lost: usize,
    damaged: usize,
    took: Duration,
    /// Publish to delivery, sorted.
    waits: Vec<Duration>,
}

/// Publishes, delivers, counts. Exit status 0 only if nothing was lost, doubled or damaged.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let folder = std::env::temp_dir().join(format!("postrider-demo-{}", uuid::Uuid::now_v7()));
    private_folder(&folder).with_context(|| format!("{}", folder.display()))?;
    let tally = demo(&arguments, &format!("embedded:{}", folder.join("demo.db").display())).await;
    std::fs::remove_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    let tally = tally?;
    output::lines(tally.table())?;
    output::remark(
        "p50, p99: half of the messages, and 99 of 100, arrived within this time after their publish; all jobs are published at once, so \
         it is mostly their wait for a turn",
    );
    Ok(if tally.is_perfect() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn demo(arguments: &Arguments, file: &str) -> anyhow::Result<DemoCounts> {
    let (sender, caught) = mpsc::channel(1024);
    let catcher = MailCatcher::start(([127, 0, 0, 1], 0).into(), sender).await?;
    let queue = arguments.queue.as_deref().unwrap_or(file);
    let store = arguments.store.as_deref().unwrap_or(file);
    let config = config::to_catcher(queue, store, catcher.address())?;
    // The worker's connection declares the topology that the publisher needs.
    let context = context::connect(config).await?;
    // Redis that is away is no error for a worker, which waits for it; here nothing would happen.
    context.store.ping().await.context("--store")?;
    let context = Arc::new(ArcSwap::from_pointee(context));
    let publisher = Publisher::connect(queue).await.context("--queue")?;
    let stop = CancellationToken::new();
    let worker = tokio::spawn(consumer::run(context, stop.clone()));

    let trips = (0..arguments.jobs).map(generate).collect::<anyhow::Result<Vec<_>>>()?;
    let mut trips: HashMap<JobId, Trip> = trips.into_iter().map(|trip| (trip.job.id(), trip)).collect();
    let jobs: Vec<Job> = trips.values().map(|trip| trip.job.clone()).collect();
    let start = Instant::now();
    let (confirmed, mut confirms) = mpsc::unbounded_channel();
    let publishing = async {
        let done = stream::iter(jobs)
            .map(|job| {
                let publisher = &publisher;
                async move { (job.id(), Instant::now(), publisher.publish(&job).await) }
            })
            .buffer_unordered(256)
            .for_each(|result| {
                let _ = confirmed.send(result);
                async {}
            });
        done.await;
    };
    let ((), took) = tokio::join!(publishing, watch(&mut trips, caught, start));
    while let Ok((id, at, result)) = confirms.try_recv() {
        result.context("publishing")?;
        if let Some(trip) = trips.get_mut(&id) {
            trip.published = Some(at);
        }
    }
    publisher.close().await;
    stop.cancel();
    let _ = worker.await;
    Ok(tally(&trips, took))
}

/// Takes arrivals down until every job arrived and nothing more comes, or nothing comes for long.
async fn watch(trips: &mut HashMap<JobId, Trip>, mut caught: mpsc::Receiver<CaughtMail>, start: Instant) -> Duration {
    let bar = output::progress(trips.len() as u64, "delivered");
    let (mut missing, mut last, mut told) = (trips.len(), start, start);
    loop {
        // Once all have arrived, a duplicate would follow at once or never.
        let end = if missing == 0 { last + Duration::from_secs(1) } else { last + SILENCE_MAX };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let arrival = timeout(left.min(PROGRESS_EVERY), caught.recv()).await;
        if bar.is_hidden() && missing > 0 && told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            let arrived = trips.len() - missing;
            output::remark(&format!(
                "{arrived} of {} arrived; the demo ends after {SILENCE_MAX:?} without an arrival",
                trips.len()
            ));
        }
        let mail = match arrival {
            Ok(Some(mail)) => mail,
            Ok(None) => break,
            Err(_) => continue,
        };
        let Some(trip) = job_id(&mail.message).and_then(|id| trips.get_mut(&id)) else { continue };
        trip.copies += 1;
        if trip.delivered.is_none() {
            last = Instant::now();
            trip.delivered = Some(last);
            trip.intact = is_intact(&trip.job, &mail);
            missing -= 1;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    last.duration_since(start)
}

/// The n-th job: one of the examples with a recipient and an identity of its own, due at once.
fn generate(n: u32) -> anyhow::Result<Trip> {
    let (_, document) = examples::ALL[n as usize % examples::ALL.len()];
    let mut job: JobV1 = wire::decode_v1(document.as_bytes())?;
    job.id = Some(JobId::generate());
    job.idempotency_key = n.is_multiple_of(5).then(|| format!("demo/{}", uuid::Uuid::now_v7()));
    job.lane = if n.is_multiple_of(4) { Lane::Transactional } else { Lane::Bulk };
    job.send_at = None;
    job.to = vec![format!("Customer {n} <customer-{n}@dest-{}.example>", n % 97).into()];
    let job = job.parse(&JobLimits::DEFAULT)?;
    Ok(Trip { job, published: None, delivered: None, copies: 0, intact: false })
}

/// The job of a message, by its `Message-ID`.
fn job_id(message: &[u8]) -> Option<JobId> {
    let text = String::from_utf8_lossy(&message[..message.len().min(16 * 1024)]);
    let line = text.lines().find_map(|line| line.strip_prefix("Message-ID: <"))?;
    line.split('@').next()?.parse().ok()
}

/// Envelope and message are those of the job; the date alone may differ.
fn is_intact(job: &Job, mail: &CaughtMail) -> bool {
    let without_date = |message: &[u8]| -> Vec<u8> {
        let date = |line: &&[u8]| !line.starts_with(b"Date: ");
        message.split_inclusive(|byte| *byte == b'\n').filter(date).flatten().copied().collect()
    };
    let Ok(expected) = message::compose(job, Timestamp::now()) else { return false };
    let recipients: Vec<String> = job.recipients().iter().map(|one| one.address.to_string()).collect();
    without_date(&expected.message) == without_date(&mail.message)
        && mail.recipients == recipients
        && mail.from == job.from().address().to_string()
}

fn tally(trips: &HashMap<JobId, Trip>, took: Duration) -> DemoCounts {
    let delivered: Vec<&Trip> = trips.values().filter(|trip| trip.copies > 0).collect();
    let mut waits: Vec<Duration> =
        delivered.iter().filter_map(|trip| Some(trip.delivered?.saturating_duration_since(trip.published?))).collect();
    waits.sort_unstable();
    DemoCounts {
        published: trips.values().filter(|trip| trip.published.is_some()).count(),
        delivered: delivered.len(),
        duplicates: delivered.iter().map(|trip| trip.copies - 1).sum(),
        lost: trips.len() - delivered.len(),
        damaged: delivered.iter().filter(|trip| !trip.intact).count(),
        took,
        waits,
    }
}

impl DemoCounts {
    fn is_perfect(&self) -> bool {
        self.lost == 0 && self.duplicates == 0 && self.damaged == 0
    }

    fn table(&self) -> Vec<String> {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.delivered as f64 / self.took.as_secs_f64().max(0.001);
        let percentile = |share: usize| {
            let place = (self.waits.len() * share / 100).min(self.waits.len().saturating_sub(1));
            self.waits.get(place).map_or("-".to_owned(), |wait| format!("{:.1} ms", wait.as_secs_f64() * 1000.0))
        };
        [
            ("published", self.published.to_string()),
            ("delivered", self.delivered.to_string()),
            ("duplicates", self.duplicates.to_string()),
            ("lost", self.lost.to_string()),
            ("damaged", self.damaged.to_string()),
            ("rate", format!("{rate:.0} messages/s")),
            ("p50", percentile(50)),
            ("p99", percentile(99)),
        ]
        .iter()
        .map(|(name, value)| format!("{name:<12}{value:>20}"))
        .collect()
    }
}
/// A folder for this user alone.
fn private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
