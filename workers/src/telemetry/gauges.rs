//! Present values: looked at now and then, and told from there by both ways out. Local ones every second; queues less often, because every worker
//! asks for them.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use opentelemetry::{KeyValue, metrics::Meter};
use postrider_schemas::Lane;
use tokio::time::{Instant, sleep, timeout};

use super::{
    backlog::Shares,
    label_values,
    limit_usage::LimitUsage,
    metrics::Metrics,
    registry::{INSTRUMENTS, Instrument, InstrumentKind, Name},
    worker_stats::WORKER_STATS,
};
use crate::{
    policy::rate_limit::usage::LimitUse,
    queue::{SourceKind, depths::Depths},
    store::circuit::Circuit,
};

/// How often this worker looks at itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it asks for the depths of queues, and of the ladder with its 49.
const DEPTHS_EVERY: Duration = Duration::from_secs(10);
const LADDER_EVERY: Duration = Duration::from_secs(60);
/// How often it asks the store how much of the limits is used.
const BUCKETS_EVERY: Duration = Duration::from_secs(5);

/// Longest wait for the store: other gauges wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// A worker as its gauges see it.
pub trait Observed: Sync {
    /// How it is now. Asks nobody.
    fn state(&self) -> WorkerState;

    /// How much waits in the queue; nothing where it does not answer.
    fn depths(&self, with_ladder: bool) -> impl Future<Output = Option<Depths>> + Send;

    /// How much of the limits is used; nothing where the store does not answer.
    fn limit_use(&self) -> impl Future<Output = Option<Vec<LimitUse>>> + Send;
}

/// What a worker knows of itself and of its neighbours.
#[derive(Debug, Clone, Default)]
pub struct WorkerState {
    /// The queue hands out jobs.
    pub consumers_are_up: bool,
    /// The queue takes messages.
    pub takes_messages: bool,
    /// The store answers.
    pub store_is_up: bool,
    /// The store's clock, in ms.
    pub store_now_ms: u64,
    /// Successes that the ledger has not heard of yet.
    pub pending_receipts: u64,
    /// Bytes in hand.
    pub memory_held: u64,
    /// Bytes that may be in hand.
    pub memory_budget: u64,
    /// By transport; nothing for a circuit that is closed.
    pub circuits: Vec<(String, Option<Circuit>)>,
    /// The transports.
    pub transports: Vec<TransportState>,
}

/// What a transport has open.
#[derive(Debug, Clone, Default)]
pub struct TransportState {
    /// Its name.
    pub name: String,
    /// Connections or calls that work.
    pub busy: u64,
    /// Connections that wait.
    pub idle: u64,
    /// As many as it may have.
    pub most: u64,
    /// When its certificate ends.
    pub certificate_end: Option<Timestamp>,
}

/// Values by instrument.
type Values = HashMap<&'static str, Vec<(Vec<KeyValue>, f64)>>;

/// Looks for as long as it is polled.
pub(super) async fn watch(meter: &Meter, metrics: &Metrics, worker: &impl Observed) -> Infallible {
    let values = Arc::<Mutex<Values>>::default();
    let _instruments: Vec<_> = INSTRUMENTS
        .iter()
        .filter(|one| one.kind == InstrumentKind::Gauge)
        .map(|one| observed(meter, one, Arc::clone(&values)))
        .collect();
    let mut depths: Option<Depths> = None;
    let mut ladder = None;
    let (mut depths_due, mut ladder_due, mut buckets_due) = (Instant::now(), Instant::now(), Instant::now());
    let (mut buckets, mut uses) = (LimitUsage::default(), Vec::new());
    let mut shares = Shares::default();
    loop {
        if depths_due <= Instant::now() {
            let with_ladder = ladder_due <= Instant::now();
            // A broker that does not answer has no depths that anybody knows.
            depths = worker.depths(with_ladder).await;
            ladder = depths.as_ref().and_then(|depths| depths.ladder).or(ladder);
            depths_due = Instant::now() + DEPTHS_EVERY;
            if with_ladder {
                ladder_due = Instant::now() + LADDER_EVERY;
            }
        }
        if buckets_due <= Instant::now() {
            uses = buckets.look(timeout(PATIENCE, worker.limit_use()).await.ok().flatten().as_deref(), metrics);
            buckets_due = Instant::now() + BUCKETS_EVERY;
        }
        let state = worker.state();
        let mut now = of_the_process(&state, metrics);
        shares.update(Lane::ALL.map(|lane| WORKER_STATS.fresh(lane)));
        if let Some(depths) = &depths {
            of_the_queues(&mut now, &state, &Depths { ladder, ..depths.clone() }, &shares);
        }
        for (labels, value) in &uses {
            put(&mut now, Name::BucketUse, labels.clone(), *value);
        }
        *values.lock().unwrap_or_else(PoisonError::into_inner) = now;
        sleep(LOOK_EVERY).await;
    }
}

fn observed(
    meter: &Meter,
    one: &'static Instrument,
    values: Arc<Mutex<Values>>,
) -> opentelemetry::metrics::ObservableGauge<f64> {
    let builder = meter.f64_observable_gauge(one.name).with_unit(one.unit).with_description(one.help);
    let look = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
        let values = values.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, value) in values.get(one.name).into_iter().flatten() {
            observer.observe(*value, labels);
        }
    };
    builder.with_callback(look).build()
}

fn put(values: &mut Values, name: Name, labels: Vec<KeyValue>, value: f64) {
    values.entry(name.instrument().name).or_default().push((labels, value));
}

fn of_the_process(worker: &WorkerState, metrics: &Metrics) -> Values {
    let mut values = Values::new();
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    for lane in Lane::ALL {
        put(&mut values, Name::InFlight, vec![label(lane)], count(WORKER_STATS.in_hand(lane)));
    }
    let [consume, publish] = label_values::CONNECTIONS;
    put(&mut values, Name::BrokerBlocked, vec![KeyValue::new("connection", consume)], flag(!worker.consumers_are_up));
    put(&mut values, Name::BrokerBlocked, vec![KeyValue::new("connection", publish)], flag(!worker.takes_messages));
    put(&mut values, Name::StoreDegraded, Vec::new(), flag(!worker.store_is_up));
    put(&mut values, Name::StoreReplayPending, Vec::new(), count(worker.pending_receipts));
    put(&mut values, Name::MemoryHeld, Vec::new(), count(worker.memory_held));
    put(&mut values, Name::MemoryBudget, Vec::new(), count(worker.memory_budget));
    for (name, circuit) in &worker.circuits {
        let is_now = state(circuit.as_ref(), worker.store_now_ms);
        for state in label_values::CIRCUIT_STATES {
            let labels = vec![transport(metrics, name), KeyValue::new("state", state)];
            put(&mut values, Name::CircuitState, labels, flag(state == is_now));
        }
    }
    for one in &worker.transports {
        for (state, number) in label_values::POOL_STATES.into_iter().zip([one.busy, one.idle]) {
            let labels = vec![transport(metrics, &one.name), KeyValue::new("state", state)];
            put(&mut values, Name::PoolConnections, labels, count(number));
        }
        put(&mut values, Name::PoolConnectionsLimit, vec![transport(metrics, &one.name)], count(one.most));
        if let Some(end) = one.certificate_end {
            let labels = vec![transport(metrics, &one.name)];
            put(&mut values, Name::CertificateExpiryTimestamp, labels, end.as_duration().as_secs_f64());
        }
    }
    values
}

fn of_the_queues(values: &mut Values, worker: &WorkerState, depths: &Depths, shares: &Shares) {
    let is_shut = is_shut(worker);
    for lane in Lane::ALL {
        for kind in [SourceKind::Jobs, SourceKind::Due] {
            let labels = vec![label(lane), KeyValue::new("source", label_values::source(kind))];
            put(values, Name::LaneDepth, labels, count(depths.of(kind, lane)));
        }
        let waiting = depths.waiting(lane);
        let deliverable = if is_shut { 0 } else { shares.deliverable(lane, depths) };
        put(values, Name::BacklogDeliverable, vec![label(lane)], count(deliverable));
        // A broker cannot tell; what was taken last is as old as the next one, or older.
        let known = depths.oldest[crate::queue::depths::place(lane)];
        let now = Timestamp::now();
        let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let queued = known.or(WORKER_STATS.oldest(lane).map(age)).filter(|_| waiting > 0).unwrap_or_default();
        for (name, untried) in [(Name::OldestAge, false), (Name::OldestUntriedAge, true)] {
            let unfinished = WORKER_STATS.oldest_unfinished(lane, untried, now).map(age).unwrap_or_default();
            put(values, name, vec![label(lane)], queued.max(unfinished).as_secs_f64());
        }
    }
    let rest = [depths.dead, depths.hold, depths.suspect, depths.unroutable, depths.events];
    for (queue, number) in label_values::REST_QUEUES.into_iter().zip(rest) {
        put(values, Name::RestDepth, vec![KeyValue::new("queue", queue)], count(number));
    }
    for (level, number) in label_values::LEVELS.into_iter().zip(depths.ladder.into_iter().flatten()) {
        put(values, Name::LadderDepth, vec![KeyValue::new("level", level)], count(number));
    }
}

/// No transport may be tried: whatever waits, no further worker would send it sooner.
fn is_shut(worker: &WorkerState) -> bool {
    let now = worker.store_now_ms;
    !worker.circuits.is_empty() && worker.circuits.iter().all(|(_, circuit)| state(circuit.as_ref(), now) == "open")
}

/// The word for the state of a circuit, by the store's clock.
fn state(circuit: Option<&Circuit>, now_ms: u64) -> &'static str {
    match circuit {
        None => label_values::CIRCUIT_STATES[0],
        Some(circuit) if circuit.until_ms <= now_ms => label_values::CIRCUIT_STATES[1],
        Some(_) => label_values::CIRCUIT_STATES[2],
    }
}

fn label(lane: Lane) -> KeyValue {
    KeyValue::new("lane", lane.as_str())
}

fn transport(metrics: &Metrics, name: &str) -> KeyValue {
    KeyValue::new("transport", metrics.transports.label(name))
}

#[expect(clippy::cast_precision_loss, reason = "a depth beyond 2^53 is no depth")]
fn count(number: u64) -> f64 {
    number as f64
}
