//! `postrider gateway`: settings, logs, connect, serve, drain.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use postrider_gateway::{
    Gateway, GatewayConfig,
    handle::Events,
    keys::Keys,
    metrics::Metrics,
    queue::{Queue, QueueSettings},
    records::Records,
    server,
    smtp::{Port, PortSettings, Tls},
};
use postrider_producer::rabbitmq;
use secrecy::ExposeSecret as _;
use tokio::{net::TcpListener, sync::OnceCell};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{super::delivery::context, ConfigArguments, worker::stop_on_signal};
use crate::{
    admin::{self, Readiness},
    config::Config,
    telemetry::{self, Telemetry},
};

/// Arguments of `postrider gateway`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// Takes jobs until a signal comes. Exit status 0 if every request under way got its answer, 1 if not.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let telemetry = telemetry::start(&config)?;
    let runtime = match config.worker.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    let ended = runtime.block_on(serve(config, &telemetry));
    drop(runtime);
    telemetry.flush();
    ended
}

/// The queue of a gateway, as the configuration names it.
pub fn queue_settings(config: &Config) -> QueueSettings {
    let url = config.queue.url.expose_secret();
    QueueSettings {
        url: url.to_owned(),
        shards: config.queue.shards,
        user: rabbitmq::user(url).filter(|_| config.queue.publishers.is_some()),
        confirm: config.gateway.confirm_timeout,
    }
}

/// The store, where it is one that workers share.
pub async fn records(config: &Config) -> anyhow::Result<Option<Records>> {
    if let Err(error) = config.store_is_shared() {
        warn!(%error, "The gateway has no store that workers share: it takes jobs, and can tell nobody what became of them");
        return Ok(None);
    }
    Ok(Some(Records::new(context::store(config).await?)))
}

/// Publishes events on a connection of its own, which is made when there is a first one.
pub fn events(config: &Config) -> Events {
    let (config, queue) = (config.queue.clone(), Arc::new(OnceCell::new()));
    Box::new(move |event| {
        let (config, queue) = (config.clone(), Arc::clone(&queue));
        Box::pin(async move {
            let connected = queue.get_or_try_init(|| context::existing_queue(&config)).await;
            let queue = connected.map_err(|error| format!("{error:#}"))?;
            queue.emit(&event).await.map_err(|error| error.to_string())
        })
    })
}

async fn serve(config: Config, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let keys = match &config.gateway.keys {
        Some(path) => Keys::read(path).map_err(anyhow::Error::msg).context("setting `gateway.keys`")?,
        None => anyhow::bail!(
            "setting `gateway.keys` is missing: name a file, and make a first key by `postrider keys new`"
        ),
    };
    if keys.is_empty() {
        warn!("There is no API key yet: every request is refused. `postrider keys new` makes one");
    }
    let stop = CancellationToken::new();
    let signals = stop_on_signal(stop.clone())?;
    let (queue, settings) = (Queue::default(), queue_settings(&config));
    let metrics = telemetry.meter().map(|meter| Metrics::new(&meter)).unwrap_or_default();
    let gateway = Gateway::new(config.gateway.clone(), keys, queue.clone(), metrics, stop.clone());
    let gateway = Arc::new(match records(&config).await? {
        Some(records) => gateway.with_records(records, events(&config)),
        None => gateway,
    });
    if let Some(address) = config.admin {
        let watched = Arc::clone(&gateway);
        let readiness = move || if watched.is_ready() { Readiness::Ready } else { Readiness::NotReady };
        let listening = admin::serve(address, || true, readiness, telemetry.page(), stop.clone()).await;
        info!(address = %listening.context("setting `admin.listen`")?, "The admin address listens");
    }
    let listener = TcpListener::bind(config.gateway.listen).await.context("setting `gateway.listen`")?;
    info!(address = %listener.local_addr()?, "The gateway listens");
    let submission = ports(&config.gateway).await?;
    let connecting = async {
        queue.connect(settings).await.context("setting `queue.url`")?;
        std::future::pending::<anyhow::Result<bool>>().await
    };
    let is_whole = tokio::select! {
        is_whole = server::serve(gateway, listener, submission, stop.clone()) => is_whole,
        never = connecting => never?,
    };
    signals.abort();
    info!("Stopped");
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ports of SMTP submission that are asked for.
pub(super) async fn ports(config: &GatewayConfig) -> anyhow::Result<Vec<Port>> {
    let smtp = &config.smtp;
    let tls = match (&smtp.certificate, &smtp.private_key) {
        (Some(certificate), Some(key)) => {
            let read = Tls::read(certificate, key).context("settings `gateway.smtp.certificate` and `private_key`")?;
            Some(Arc::new(read))
        }
        _ => None,
    };
    let mut ports = Vec::new();
    for (setting, address) in [("listen", smtp.listen), ("listen_tls", smtp.listen_tls)] {
        let Some(address) = address else { continue };
        let listener = TcpListener::bind(address).await.with_context(|| format!("setting `gateway.smtp.{setting}`"))?;
        info!(address = %listener.local_addr()?, setting, "SMTP submission listens");
        let settings = PortSettings {
            tls: tls.clone(),
            is_implicit: setting == "listen_tls",
            plaintext_auth: smtp.plaintext_auth,
            size: config.message_max(),
            recipients: config.job.recipients_max,
            derive_key: smtp.derive_key,
        };
        ports.push(Port { listener, settings });
    }
    Ok(ports)
}
