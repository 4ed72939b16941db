//! `postrider status`: what waits, what is broken, who works.

use std::{process::ExitCode, time::Duration};

use jiff::Timestamp;
use postrider_schemas::Lane;
use serde::Serialize;

use super::{
    super::worker::context,
    ConfigArguments, limits,
    output::{self, Format},
};
use crate::{
    circuit_breakers,
    config::Config,
    queue::depths::{Depths, place},
    rate_limit::Limiter,
    store::{Store, circuit::Circuit},
    telemetry::worker_stats::LastFailure,
    worker::heartbeat::{self, Beat},
};

/// Failures that are shown.
const FAILURES_SHOWN: usize = 10;
/// Limits that are shown.
const LIMITS_SHOWN: usize = 20;

/// Arguments of `postrider status`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// All that is told.
#[derive(Serialize)]
struct Status {
    at: Timestamp,
    lanes: Vec<LaneStatus>,
    /// Waits on the ladder for its time.
    parked: Option<u64>,
    dead: u64,
    hold: u64,
    suspect: u64,
    unroutable: u64,
    circuits: Vec<CircuitStatus>,
    /// Scopes of limits that make mail wait or are used up, or are paused, cut or held to another rate than the configured one: those with the most waiting first, in
    /// the shape of `postrider limits ls`.
    limits: Vec<serde_json::Value>,
    #[serde(skip)]
    limits_text: Vec<String>,
    workers: Vec<Beat>,
    failures: Vec<LastFailure>,
}

#[derive(Serialize)]
struct LaneStatus {
    lane: Lane,
    jobs: u64,
    due: u64,
    in_hand: u64,
    /// Messages that transports took in the last minute.
    accepted_in_a_minute: u64,
    /// At most: a broker does not show its oldest message. Nothing where no worker that lives took any.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_seconds: Option<u64>,
}

#[derive(Serialize)]
struct CircuitStatus {
    transport: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_in_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Looks and prints. Exit status 0 where it could look, whatever it saw.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    config.store_is_shared()?;
    let queue = context::queue(&config.queue).await?;
    let store = context::store(&config).await?;
    let depths = queue.depths(true).await?;
    let keys: Vec<String> = config.transports.iter().map(circuit_breakers::key).collect();
    let circuits = if keys.is_empty() { Vec::new() } else { store.circuits(&keys).await? };
    let limits = binding(&store, &config).await?;
    let workers = heartbeat::alive(&store).await?;
    queue.close().await;
    let now = Timestamp::now();
    let names = config.transports.iter().map(|one| one.name.as_str());
    let status = Status {
        at: now,
        lanes: Lane::ALL.into_iter().map(|lane| lane_status(lane, &depths, &workers, now)).collect(),
        parked: depths.parked(),
        dead: depths.dead,
        hold: depths.hold,
        suspect: depths.suspect,
        unroutable: depths.unroutable,
        circuits: names.zip(circuits).map(|(name, circuit)| circuit_status(name, circuit, store.now_ms())).collect(),
        limits: limits.iter().map(limits::LimitRow::json).collect(),
        limits_text: limits.iter().map(|row| limits::text(&row.scope, &row.configured, &row.drawn)).collect(),
        failures: failures(&workers),
        workers,
    };
    match arguments.format {
        Format::Json => output::json(&status)?,
        Format::Text => output::lines(text(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Scopes of limits that bind, those with the most waiting first.
async fn binding(store: &Store, config: &Config) -> anyhow::Result<Vec<limits::LimitRow>> {
    let limiter = Limiter::new(config, store.clone())?;
    let mut rows = limits::rows(store, &limiter).await?;
    rows.retain(|row| row.drawn.binds());
    rows.sort_by_key(|row| std::cmp::Reverse(row.drawn.waiting));
    rows.truncate(LIMITS_SHOWN);
    Ok(rows)
}

fn lane_status(lane: Lane, depths: &Depths, workers: &[Beat], now: Timestamp) -> LaneStatus {
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    // Every worker takes from the front: the one that took last knows best.
    let taken = workers.iter().filter_map(|one| one.oldest[place(lane)]).max().map(age);
    let oldest = depths.oldest[place(lane)].or(taken).filter(|_| depths.waiting(lane) > 0);
    LaneStatus {
        lane,
        jobs: depths.jobs[place(lane)],
        due: depths.due[place(lane)],
        in_hand: workers.iter().map(|one| one.in_hand[place(lane)]).sum(),
        accepted_in_a_minute: workers.iter().map(|one| one.accepted[place(lane)]).sum(),
        oldest_seconds: oldest.map(|age| age.as_secs()),
    }
}

fn circuit_status(name: &str, circuit: Option<Circuit>, now_ms: u64) -> CircuitStatus {
    let transport = name.to_owned();
    let Some(circuit) = circuit else {
        return CircuitStatus { transport, state: "closed", since: None, probe_in_seconds: None, reason: None };
    };
    let wait = circuit.until_ms.saturating_sub(now_ms).div_ceil(1000);
    CircuitStatus {
        transport,
        state: if wait > 0 { "open" } else { "half_open" },
        since: Some(circuit.opened()),
        probe_in_seconds: Some(wait),
        reason: Some(circuit.reason),
    }
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

fn text(status: &Status) -> Vec<String> {
    let mut out = vec![format!(
        "{:<15}{:>10}{:>12}{:>10}{:>10}{:>12}",
        "lane", "fresh", "come back", "in hand", "oldest", "sent/min"
    )];
    for lane in &status.lanes {
        let oldest = lane.oldest_seconds.map_or_else(|| "-".to_owned(), span);
        out.push(format!(
            "{:<15}{:>10}{:>12}{:>10}{oldest:>10}{:>12}",
            lane.lane.as_str(),
            lane.jobs,
            lane.due,
            lane.in_hand,
            lane.accepted_in_a_minute
        ));
    }
    let parked = status.parked.map_or_else(|| "?".to_owned(), |count| count.to_string());
    out.push(format!(
        "parked {parked}   dead {}   hold {}   suspect {}   unroutable {}",
        status.dead, status.hold, status.suspect, status.unroutable
    ));
    out.push(String::new());
    for circuit in &status.circuits {
        let mut line = format!("transport {}: circuit {}", circuit.transport, circuit.state);
        if let (Some(since), Some(reason)) = (circuit.since, &circuit.reason) {
            let next = span(circuit.probe_in_seconds.unwrap_or(0));
            line = format!("{line} since {since:.0}: {reason}; next try in {next}");
        }
        out.push(line);
    }
    out.extend(status.limits_text.iter().map(|limit| format!("limit {limit}")));
    out.extend([String::new(), output::count(status.workers.len(), "worker")]);
    for worker in &status.workers {
        let in_hand: u64 = worker.in_hand.iter().sum();
        let does = if worker.consumes { "consumes" } else { "does not consume" };
        out.push(format!(
            "  {} pid {} version {} since {:.0}: {does}, {in_hand} in hand",
            worker.host, worker.pid, worker.version, worker.since
        ));
    }
    if !status.failures.is_empty() {
        out.extend([String::new(), "failures of the last minutes".to_owned()]);
    }
    for failure in &status.failures {
        out.push(format!("{:>8} x {} {}: {}", failure.count, failure.transport, failure.class, failure.answer));
    }
    out
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}
