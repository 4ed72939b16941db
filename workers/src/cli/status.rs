//! `postrider status`: what waits, what is broken, who works. Shows the half that answers where the queue or the store is away.

mod text;
pub(super) mod transports;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use jiff::Timestamp;
use postrider_schemas::Lane;
use serde::Serialize;

use self::transports::{StoredCircuit, TransportStatus};
use super::{
    super::delivery::context,
    ConfigArguments, limits,
    output::{self, Format},
};
use crate::{
    circuit_breakers,
    config::{Config, TransportConfig},
    queue::depths::{Depths, place},
    rate_limit::Limiter,
    store::{Store, StoreError, circuit::Circuit},
    telemetry::worker_stats::LastFailure,
    worker::heartbeat::{self, Beat},
};

/// Failures that are shown.
const FAILURES_SHOWN: usize = 10;
/// Limits that are shown.
const LIMITS_SHOWN: usize = 20;
/// Shortest time between two looks of `--watch`.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// Arguments of `postrider status`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Look again every so often, such as 2s, until interrupted
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration, num_args = 0..=1, default_missing_value = "2s")]
    watch: Option<Duration>,
}

/// All that is told. What nobody could tell is `null`, and `not_known` says why.
#[derive(Serialize)]
struct Status {
    at: Timestamp,
    lanes: Vec<LaneStatus>,
    /// Waits on the ladder for its time.
    parked: Option<u64>,
    /// What the parked jobs wait for, as far as workers that run know.
    parked_for: BTreeMap<String, u64>,
    dead: Option<u64>,
    hold: Option<u64>,
    suspect: Option<u64>,
    unroutable: Option<u64>,
    /// Each transport: its circuit, and whether it accepts what it is asked to take.
    circuits: Vec<TransportStatus>,
    /// Scopes of limits that make mail wait or are used up, or are paused, cut or held to another rate than the configured one: those with the most waiting first, in
    /// the shape of `postrider limits ls`.
    limits: Vec<serde_json::Value>,
    #[serde(skip)]
    limits_text: Vec<String>,
    workers: Option<Vec<Beat>>,
    failures: Vec<LastFailure>,
    /// What could not be looked at, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_known: Vec<String>,
}

#[derive(Serialize)]
struct LaneStatus {
    lane: Lane,
    jobs: Option<u64>,
    due: Option<u64>,
    in_hand: Option<u64>,
    /// Messages that transports took in the last minute.
    accepted_in_a_minute: Option<u64>,
    /// Age of the oldest unfinished job: waiting, in hand or deferred, since publish or `send_at`. At most: a broker does not show its oldest message.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_seconds: Option<u64>,
}

/// What the store told.
#[derive(Default)]
struct StoreHalf {
    circuits: Vec<Option<Circuit>>,
    limits: Vec<limits::LimitRow>,
    workers: Vec<Beat>,
    now_ms: u64,
}

/// Looks and prints. Exit status 0 where it could look at everything, whatever it saw; 1 where the queue or the store did not answer.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    config.store_is_shared()?;
    loop {
        let status = look(&config).await;
        match (arguments.format, arguments.watch) {
            (Format::Json, _) => output::json(&status)?,
            (Format::Text, watch) => {
                if watch.is_some() {
                    output::clear_screen()?;
                }
                output::lines(text::text(&status))?;
            }
        }
        let Some(watch) = arguments.watch else {
            return Ok(if status.not_known.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        tokio::time::sleep(watch.max(WATCH_MIN)).await;
    }
}

/// One look at both.
async fn look(config: &Config) -> Status {
    let (queue, store) = tokio::join!(look_at_queue(config), look_at_store(config));
    let mut not_known = Vec::new();
    let mut known = |what: &str, error: &anyhow::Error| not_known.push(format!("{what}: {error:#}"));
    let depths = queue.inspect_err(|error| known("the queue", error)).ok();
    let half = store.inspect_err(|error| known("the store", error)).ok();
    of(config, depths.as_ref(), half, not_known, Timestamp::now())
}

async fn look_at_queue(config: &Config) -> anyhow::Result<Depths> {
    let queue = context::existing_queue(&config.queue).await?;
    let depths = queue.depths(true).await;
    queue.close().await;
    Ok(depths?)
}

async fn look_at_store(config: &Config) -> anyhow::Result<StoreHalf> {
    let store = context::existing_store(config).await?;
    let keys: Vec<String> = config.transports.iter().map(circuit_breakers::key).collect();
    let circuits = if keys.is_empty() { Vec::new() } else { store.circuits(&keys).await? };
    let limits = binding(&store, config).await?;
    let workers = heartbeat::alive(&store).await?;
    Ok(StoreHalf { circuits, limits, workers, now_ms: store.now_ms() })
}

/// All that follows from what both told.
fn of(
    config: &Config,
    depths: Option<&Depths>,
    half: Option<StoreHalf>,
    not_known: Vec<String>,
    now: Timestamp,
) -> Status {
    let has_store = half.is_some();
    let StoreHalf { circuits, limits, workers, now_ms } = half.unwrap_or_default();
    let transports = transport_list(config, &circuits, &workers, now_ms, now);
    let told = workers.as_slice();
    let lanes = Lane::ALL.into_iter().map(|lane| lane_status(lane, depths, has_store.then_some(told), now)).collect();
    Status {
        at: now,
        lanes,
        parked: depths.and_then(Depths::parked),
        parked_for: parked_for(&workers),
        dead: depths.map(|one| one.dead),
        hold: depths.map(|one| one.hold),
        suspect: depths.map(|one| one.suspect),
        unroutable: depths.map(|one| one.unroutable),
        circuits: transports,
        limits: limits.iter().map(limits::LimitRow::json).collect(),
        limits_text: limits.iter().map(|row| limits::text(&row.scope, &row.configured, &row.drawn)).collect(),
        failures: failures(&workers),
        workers: has_store.then_some(workers),
        not_known,
    }
}

/// How each transport does, in the configuration's order.
fn transport_list(
    config: &Config,
    circuits: &[Option<Circuit>],
    workers: &[Beat],
    now_ms: u64,
    now: Timestamp,
) -> Vec<TransportStatus> {
    let known = |name: &str| !config.without_credentials.iter().any(|one| one == name);
    let of = |(n, one): (usize, &TransportConfig)| {
        let circuit = match circuits.get(n).filter(|_| known(&one.name)) {
            Some(Some(circuit)) => StoredCircuit::Open(circuit),
            Some(None) => StoredCircuit::Closed,
            None => StoredCircuit::NotAsked,
        };
        transports::of(&one.name, circuit, workers, now_ms, now)
    };
    config.transports.iter().enumerate().map(of).collect()
}

/// The same, asked of the store now.
pub(super) async fn transports_now(config: &Config, store: &Store) -> Result<Vec<TransportStatus>, StoreError> {
    let keys: Vec<String> = config.transports.iter().map(circuit_breakers::key).collect();
    let circuits = if keys.is_empty() { Vec::new() } else { store.circuits(&keys).await? };
    let workers = heartbeat::alive(store).await?;
    Ok(transport_list(config, &circuits, &workers, store.now_ms(), Timestamp::now()))
}

/// Scopes of limits that bind, those with the longest wait first.
async fn binding(store: &Store, config: &Config) -> anyhow::Result<Vec<limits::LimitRow>> {
    let limiter = Limiter::new(config, store.clone())?;
    let mut rows = limits::rows(store, &limiter).await?;
    rows.retain(|row| row.drawn.binds());
    rows.sort_by(|a, b| b.drawn.last_slot_s.total_cmp(&a.drawn.last_slot_s));
    rows.truncate(LIMITS_SHOWN);
    Ok(rows)
}

fn lane_status(lane: Lane, depths: Option<&Depths>, workers: Option<&[Beat]>, now: Timestamp) -> LaneStatus {
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let all = workers.unwrap_or_default();
    // Every worker takes from the front: the one that took last knows best.
    let taken = all.iter().filter_map(|one| one.oldest[place(lane)]).max().map(age);
    let queued = depths.and_then(|depths| depths.oldest[place(lane)].or(taken).filter(|_| depths.waiting(lane) > 0));
    let unfinished = all.iter().filter_map(|one| one.unfinished[place(lane)]).min().map(age);
    LaneStatus {
        lane,
        jobs: depths.map(|depths| depths.jobs[place(lane)]),
        due: depths.map(|depths| depths.due[place(lane)]),
        in_hand: workers.map(|all| all.iter().map(|one| one.in_hand[place(lane)]).sum()),
        accepted_in_a_minute: workers.map(|all| all.iter().map(|one| one.accepted[place(lane)]).sum()),
        oldest_seconds: queued.max(unfinished).map(|age| age.as_secs()),
    }
}

/// What the jobs wait for that workers deferred.
fn parked_for(workers: &[Beat]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (reason, count) in workers.iter().flat_map(|one| &one.waiting_for) {
        *all.entry(reason.clone()).or_default() += count;
    }
    all
}

/// Failures of all workers, those of one kind together, the most frequent ones first.
fn failures(workers: &[Beat]) -> Vec<LastFailure> {
    let mut all: Vec<LastFailure> = Vec::new();
    for one in workers.iter().flat_map(|worker| &worker.failures) {
        let same = |known: &&mut LastFailure| {
            known.transport == one.transport && known.class == one.class && known.answer == one.answer
        };
        match all.iter_mut().find(same) {
            Some(known) => {
                known.count += one.count;
                known.last = known.last.max(one.last);
            }
            None => all.push(one.clone()),
        }
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.count));
    all.truncate(FAILURES_SHOWN);
    all
}
