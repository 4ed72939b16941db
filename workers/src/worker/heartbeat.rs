//! A sign of life in the store, for `postrider status`: who works, since when, with how much in hand, and what went wrong lately. Nothing depends on it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use postrider_schemas::Lane;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{
    delivery::context::Context,
    store::Store,
    telemetry::{
        transport_stats::{OpenCircuit, TransportStats},
        worker_stats::{LastFailure, WORKER_STATS},
    },
};

/// Between two of them. The store forgets a worker that was silent for [`crate::store::BEAT_LIFE`].
const EVERY: Duration = Duration::from_secs(5);

/// What a worker says of itself. Fields that a later version adds are ignored by an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Differs for every start of a worker.
    pub id: String,
    /// Its machine, or pod.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started.
    pub since: Timestamp,
    /// When it said this.
    pub at: Timestamp,
    /// Whether it consumes.
    pub consumes: bool,
    /// Jobs in hand: transactional, bulk.
    pub in_hand: [u64; 2],
    /// Messages that transports took in the last minute: transactional, bulk.
    #[serde(default)]
    pub accepted: [u64; 2],
    /// Since when the job waited that it took last: transactional, bulk.
    pub oldest: [Option<Timestamp>; 2],
    /// Since when its oldest unfinished job is unfinished, in hand or deferred: transactional, bulk.
    #[serde(default)]
    pub unfinished: [Option<Timestamp>; 2],
    /// How many of the jobs that it deferred wait for what.
    #[serde(default)]
    pub waiting_for: BTreeMap<String, u64>,
    /// What it knows of each transport.
    #[serde(default)]
    pub transports: Vec<TransportStats>,
    /// Kinds of failure of the last minutes, the most frequent ones first.
    pub failures: Vec<LastFailure>,
}

/// Beats for as long as it is polled.
pub async fn beat(id: &str, contexts: Arc<ArcSwap<Context>>) -> Infallible {
    let since = Timestamp::now();
    let host = host_name();
    loop {
        let context = contexts.load_full();
        let at = Timestamp::now();
        let beat = Beat {
            id: id.to_owned(),
            host: host.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since,
            at,
            consumes: context.queue.consumers_up(),
            in_hand: Lane::ALL.map(|lane| WORKER_STATS.in_hand(lane)),
            accepted: Lane::ALL.map(|lane| WORKER_STATS.accepted_in_a_minute(lane, at)),
            oldest: Lane::ALL.map(|lane| WORKER_STATS.oldest(lane)),
            unfinished: Lane::ALL.map(|lane| WORKER_STATS.oldest_unfinished(lane, false, at)),
            waiting_for: WORKER_STATS.waiting_for(at),
            transports: transports(&context),
            failures: WORKER_STATS.failures(at),
        };
        // Where the store is away the worker looks dead, and says so itself elsewhere.
        let _ = context.store.beat(id, &serde_json::to_string(&beat).unwrap_or_default()).await;
        drop(context);
        sleep(EVERY).await;
    }
}

fn transports(context: &Context) -> Vec<TransportStats> {
    let mut list = WORKER_STATS.transport_list();
    for (name, circuit) in context.breakers.known() {
        let Some(circuit) = circuit else { continue };
        let open = OpenCircuit {
            since: circuit.opened(),
            probe_in_seconds: circuit.until_ms.saturating_sub(context.store.now_ms()).div_ceil(1000),
            reason: circuit.reason,
        };
        match list.iter_mut().find(|one| one.transport == name) {
            Some(one) => one.circuit = Some(open),
            None => {
                list.push(TransportStats { transport: name, circuit: Some(open), ..TransportStats::default() });
            }
        }
    }
    list
}

/// Workers that gave a sign of life lately, those that started first in front.
pub async fn alive(store: &Store) -> Result<Vec<Beat>, crate::store::StoreError> {
    let mut list: Vec<Beat> = store.beats().await?.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    list.sort_by_key(|one| one.since);
    Ok(list)
}

fn host_name() -> String {
    let read = |path| std::fs::read_to_string(path).ok().map(|name| name.trim().to_owned());
    let name =
        std::env::var("HOSTNAME").ok().or_else(|| read("/proc/sys/kernel/hostname")).or_else(|| read("/etc/hostname"));
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
