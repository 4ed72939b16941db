//! `postrider worker`: settings, logs, connect, run, drain.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{super::delivery::context, ConfigArguments};
use crate::{
    admin::{self, Readiness},
    config::Config,
    descriptors,
    telemetry::{self, Telemetry},
    worker::{
        consumer::{self, Drained},
        heartbeat, reload,
    },
};

/// Arguments of `postrider worker`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// Consumes and delivers until a signal comes. Exit status 0 after a whole drain, 1 where the drain was cut.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    anyhow::ensure!(
        !config.routes.is_empty(),
        "the configuration has no transport; see `[transport.NAME]` and `[[route]]`"
    );
    let telemetry = telemetry::start(&config)?;
    check_descriptors(&config)?;
    let runtime = match config.worker.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    let ended = runtime.block_on(work(config, arguments.config.file(), &telemetry));
    drop(runtime);
    telemetry.flush();
    ended
}

/// Too few file descriptors stop connections that a message waits for: better said at the start.
fn check_descriptors(config: &Config) -> anyhow::Result<()> {
    let Some(limit) = descriptors::raised() else { return Ok(()) };
    match descriptors::fit(config, limit) {
        descriptors::Fit::Enough => {}
        descriptors::Fit::Tight { needed } => warn!(
            limit,
            needed,
            "The limit on file descriptors ({limit}) is lower than what connections and jobs in hand may need together ({needed}): \
             raise it (ulimit -n, LimitNOFILE), or lower `connections`; a connection that finds none left is tried again later"
        ),
        descriptors::Fit::TooFew { needed } => anyhow::bail!(
            "the limit on file descriptors is {limit}, and a worker with these transports needs {needed} at least: raise it (ulimit -n, LimitNOFILE)"
        ),
    }
    Ok(())
}

async fn work(config: Config, file: Option<PathBuf>, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let signals = stop_on_signal(stop.clone())?;
    let admin = config.admin;
    reload::doubt(&config, None);
    for stray in crate::config::strays(&crate::config::process_environment()) {
        warn!("{stray}");
    }
    let contexts = Arc::new(ArcSwap::from_pointee(context::connect(config).await?));
    if let Some(address) = admin {
        // Neither changes with the configuration.
        let (queue, store) = (Arc::clone(&contexts.load().queue), contexts.load().store.clone());
        let watched = Arc::clone(&queue);
        let readiness = move || match (queue.consumers_up(), store.is_up()) {
            (false, _) => Readiness::NotReady,
            (true, false) => Readiness::WithoutStore,
            (true, true) => Readiness::Ready,
        };
        let listening =
            admin::serve(address, move || watched.is_alive(), readiness, telemetry.page(), stop.clone()).await;
        info!(address = %listening.context("setting `admin.listen`")?, "The admin address listens");
    }
    let id = uuid::Uuid::now_v7().to_string();
    let drained = tokio::select! {
        drained = consumer::run(Arc::clone(&contexts), stop) => drained,
        never = telemetry.watch(&*contexts) => match never {},
        never = heartbeat::beat(&id, Arc::clone(&contexts)) => match never {},
        never = reload::watch(file, Arc::clone(&contexts), telemetry.level()) => match never? {},
    };
    // Who cannot say goodbye is forgotten a little later.
    let _ = contexts.load_full().store.unbeat(&id).await;
    signals.abort();
    Ok(if drained == Drained::Whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// SIGTERM or SIGINT stops; a second one is left to end the process at once.
pub fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("Stopping: nothing new is taken, what was begun is finished");
        stop.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(130);
    }))
}
