//! A changed configuration under a running worker: routes, transports, limits, retry schedule and log level apply to attempts that begin from then
//! on. One that cannot be used is refused as a whole, with its reason, and the old one stays.
//!
//! What a process takes up at its start (queue, store, threads, jobs in hand, addresses) does not change; that it would is said in the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    circuit_breakers::CircuitBreakers,
    config::{self, Config, TransportConfig, TransportKind},
    delivery::context::Context,
    rate_limit::connection_leases,
    telemetry::{
        self,
        logs::{self, Level},
        metrics,
    },
    transport::Transport,
};

/// How often files are looked at. One that changed is read once it has stayed the same for so long: whoever writes it may be half-way.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What tells a changed file from an unchanged one; nothing for one that is not there.
type Print = Option<(u64, i64, i64, u64)>;

/// Reloads on SIGHUP, when the file or one that it names changes, and when a ramp takes its next step, for as long as it is polled.
pub async fn watch(
    file: Option<PathBuf>,
    contexts: Arc<ArcSwap<Context>>,
    level: Level,
) -> std::io::Result<Infallible> {
    let mut hangups = signal(SignalKind::hangup())?;
    let mut applied = prints(file.as_deref(), &contexts.load().config);
    let mut seen = applied.clone();
    let mut stepped = None;
    loop {
        let is_told = tokio::select! {
            _ = hangups.recv() => true,
            () = sleep(LOOK_EVERY) => false,
        };
        let now = prints(file.as_deref(), &contexts.load().config);
        let is_stable = now == seen;
        seen = now;
        let step = next_step(&contexts.load().config);
        // Once, also where the configuration is refused then.
        let is_due = step.is_some_and(|at| at <= Timestamp::now()) && step != stepped;
        if !is_told && !(is_stable && (is_due || seen != applied)) {
            continue;
        }
        if is_due {
            stepped = step;
        }
        let changed: BTreeSet<PathBuf> = seen
            .iter()
            .filter(|(path, print)| applied.get(*path) != Some(print))
            .map(|(path, _)| path.clone())
            .collect();
        match reload(file.as_deref(), &contexts, &level, &changed).await {
            Ok(()) => metrics::reloaded(true),
            Err(error) => {
                metrics::reloaded(false);
                warn!(error = format!("{error:#}"), "The changed configuration is refused; the old one stays");
            }
        }
        // Also where it was refused: it is not read again before it changes again. What changed while it was read is seen as a change.
        let named = prints(file.as_deref(), &contexts.load().config);
        applied = named
            .into_iter()
            .map(|(path, now)| {
                let before = seen.get(&path).copied();
                (path, before.unwrap_or(now))
            })
            .collect();
        seen.clone_from(&applied);
    }
}

/// When the first ramp takes its next step.
fn next_step(config: &Config) -> Option<Timestamp> {
    config.ramps.iter().filter_map(|ramp| ramp.next).min()
}

async fn reload(
    file: Option<&Path>,
    contexts: &ArcSwap<Context>,
    level: &Level,
    changed: &BTreeSet<PathBuf>,
) -> anyhow::Result<()> {
    let old = contexts.load_full();
    let mut config = config::load(file)?;
    anyhow::ensure!(!config.routes.is_empty(), "the configuration has no transport");
    logs::check(&config.log.level)?;
    keep_what_stays(&mut config, &old.config);
    let (new, replaced) = renewed(&old, config, changed)?;
    level.set(&new.config.log.level)?;
    telemetry::learn(&new.config);
    doubt(&new.config, Some(&old.config));
    info!(
        routes = new.config.routes.list().len(),
        transports = new.transports.len(),
        transports_replaced = replaced.len(),
        level = new.config.log.level,
        "The changed configuration applies"
    );
    // As at the start of a worker: pauses that stand are known, and what has a cap over all workers waits for its part of it.
    new.limiter.look().await;
    connection_leases::close_capped(new.relays(), |one| {
        !old.transports.iter().any(|known| std::ptr::eq(Arc::as_ptr(known), one))
    });
    connection_leases::replaced(&new.limiter, &replaced);
    contexts.store(Arc::new(new));
    let context = Arc::downgrade(&old);
    drop(old);
    tokio::spawn(retire(context, replaced));
    Ok(())
}

/// Says what of the configuration may be meant otherwise, but for what was said of the configuration before.
pub fn doubt(config: &Config, before: Option<&Config>) {
    let said = before.map(Config::warnings).unwrap_or_default();
    for warning in config.warnings().iter().filter(|one| !said.contains(one)) {
        warn!("{warning}");
    }
}

/// Settings that a process takes up at its start.
fn keep_what_stays(config: &mut Config, old: &Config) {
    let mut ignored = Vec::new();
    let mut note = |is_same: bool, name: &'static str| {
        if !is_same {
            ignored.push(name);
        }
    };
    note(config.queue.url.expose_secret() == old.queue.url.expose_secret(), "queue.url");
    note(config.queue.topology == old.queue.topology, "queue.topology");
    note(config.queue.shards == old.queue.shards, "queue.shards");
    note(config.store.url.expose_secret() == old.store.url.expose_secret(), "store.url");
    note(config.store.lease == old.store.lease, "store.lease");
    note(config.store.retention == old.store.retention, "store.retention");
    note(config.worker.threads == old.worker.threads, "worker.threads");
    note(config.worker.transactional == old.worker.transactional, "worker.transactional");
    note(config.worker.bulk == old.worker.bulk, "worker.bulk");
    note(config.worker.memory == old.worker.memory, "worker.memory");
    note(config.admin == old.admin, "admin.listen");
    note(config.log.format == old.log.format, "log.format");
    if !ignored.is_empty() {
        warn!(settings = ignored.join(", "), "These settings apply after a restart");
    }
    let (drain, poison_after) = (config.worker.drain, config.worker.poison_after);
    let publishers = std::mem::take(&mut config.queue.publishers);
    config.queue = config::QueueConfig { publishers, ..old.queue.clone() };
    config.store = old.store.clone();
    config.worker = config::WorkerConfig { drain, poison_after, ..old.worker.clone() };
    config.admin = old.admin;
    config.log.format = old.log.format;
}

/// The world with another configuration, and the transports that are no part of it any more. One whose settings are the same keeps its connections.
fn renewed(
    old: &Context,
    config: Config,
    changed: &BTreeSet<PathBuf>,
) -> anyhow::Result<(Context, Vec<Arc<Transport>>)> {
    let reusable = |wanted: &TransportConfig| {
        let place = old.config.transports.iter().position(|one| one.is_same(wanted))?;
        let reads_changed = ca_file(wanted).is_some_and(|file| changed.contains(file));
        (!reads_changed).then(|| Arc::clone(&old.transports[place]))
    };
    let transports = config
        .transports
        .iter()
        .map(|wanted| match reusable(wanted) {
            Some(transport) => Ok(transport),
            None => Transport::new(wanted)
                .map(Arc::new)
                .map_err(|error| anyhow::anyhow!("transport `{}`: {error}", wanted.name)),
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let breakers = CircuitBreakers::new(old.store.clone(), &config.transports, config.config_wait);
    breakers.inherit(&old.breakers);
    let is_kept = |one: &Arc<Transport>| transports.iter().any(|new| Arc::ptr_eq(new, one));
    let replaced = old.transports.iter().filter(|one| !is_kept(one)).cloned().collect();
    let is_same_limiter = format!("{:?}{:?}", config.limits, config.dns)
        == format!("{:?}{:?}", old.config.limits, old.config.dns)
        && config.transports.iter().map(|one| &one.name).eq(old.config.transports.iter().map(|one| &one.name));
    let limiter = if is_same_limiter { old.limiter.clone() } else { old.limiter.renewed(&config)? };
    let (queue, store, pending_receipts) =
        (Arc::clone(&old.queue), old.store.clone(), Arc::clone(&old.pending_receipts));
    let (memory, renderer) = (old.memory.clone(), Arc::clone(&old.renderer));
    Ok((Context { config, queue, store, pending_receipts, transports, breakers, limiter, memory, renderer }, replaced))
}

fn ca_file(transport: &TransportConfig) -> Option<&PathBuf> {
    match &transport.kind {
        TransportKind::Smtp(smtp) => smtp.ca_file.as_ref(),
        TransportKind::Provider(provider) => provider.http.ca_file.as_ref(),
    }
}

/// Says goodbye on connections of transports that are gone, once the attempts that began with them are over.
async fn retire(context: Weak<Context>, transports: Vec<Arc<Transport>>) {
    while context.strong_count() > 0 {
        sleep(LOOK_EVERY).await;
    }
    for transport in transports {
        transport.close().await;
    }
}

/// The file and all that it names.
fn prints(file: Option<&Path>, config: &Config) -> BTreeMap<PathBuf, Print> {
    let print = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    };
    file.into_iter()
        .chain(config.files.iter().map(PathBuf::as_path))
        .map(|path| (path.to_owned(), print(path)))
        .collect()
}
