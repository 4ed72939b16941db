//! `postrider dev`: gateway, queue, store, worker and mail catcher in one process, for trying a service against.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use postrider_gateway::{
    Gateway,
    keys::{self, KeyRecord, Keys},
    metrics::Metrics,
    queue::Queue,
    server,
    smtp::{Port, PortSettings},
};
use postrider_schemas::Tenant;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{super::delivery::context, gateway, output, worker::stop_on_signal};
use crate::{
    config::{self, Config},
    mail_catcher::{CaughtMail, MailCatcher},
    telemetry,
    worker::consumer,
};

/// Where the gateway listens for HTTP; on another port where this one is taken.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);
/// The same for SMTP.
const SMTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2525);

/// Arguments of `postrider dev`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The SQLite file for queue and store; publish to `embedded:FILE`
    #[arg(long, default_value = "postrider.db")]
    file: PathBuf,
    /// Queue to use instead of the file (amqp://...)
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
    /// Store to use instead of the file (redis://...)
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where jobs are taken over HTTP; 127.0.0.1:8000, or a free port where that is taken
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where mail is taken by SMTP; 127.0.0.1:2525, or a free port where that is taken
    #[arg(long, value_name = "ADDRESS")]
    smtp: Option<SocketAddr>,
}

/// Runs until a signal comes; prints a line for each mail that arrives at the mail catcher.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (sender, mut caught) = mpsc::channel(1024);
    let catcher = MailCatcher::start(([127, 0, 0, 1], 0).into(), sender).await?;
    let file = format!("embedded:{}", arguments.file.display());
    let queue = arguments.queue.unwrap_or_else(|| file.clone());
    let store = arguments.store.unwrap_or(file);
    let config = config::to_catcher(&queue, &store, catcher.address())?;
    telemetry::init(&config.log)?;
    let stop = CancellationToken::new();
    let signals = stop_on_signal(stop.clone())?;
    let key = key(&arguments.file.with_extension("key"))?;
    let (http, smtp) = (listen(arguments.http, HTTP).await?, listen(arguments.smtp, SMTP).await?);
    let context = context::connect(config.clone()).await.context("starting")?;
    let context = Arc::new(ArcSwap::from_pointee(context));
    explain(http.local_addr()?, smtp.local_addr()?, &key);
    let stopped = stop.clone();
    let worker = async move {
        consumer::run(context, stopped).await;
        anyhow::Ok(())
    };
    let serving =
        tokio::spawn(async move { tokio::try_join!(worker, serve(&config, &key, http, smtp, stop)).map(drop) });
    let printing = async {
        while let Some(mail) = caught.recv().await {
            if output::line(&summary(&mail)).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = printing => {}
        served = serving => served??,
    }
    signals.abort();
    Ok(ExitCode::SUCCESS)
}

/// The gateway, until it is to stop.
async fn serve(
    config: &Config,
    key: &str,
    http: TcpListener,
    smtp: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (id, sha256) = keys::parts(key).context("the file of the API key does not hold one: delete it")?;
    let keys = Keys::new(vec![KeyRecord::new(id, sha256, Tenant::DEFAULT)]).map_err(anyhow::Error::msg)?;
    let queue = Queue::default();
    queue.connect(gateway::queue_settings(config)).await?;
    let made = Gateway::new(config.gateway.clone(), keys, queue, Metrics::default(), stop.clone());
    let made = match gateway::records(config).await? {
        Some(records) => made.with_records(records, gateway::events(config)),
        None => made,
    };
    let settings = PortSettings {
        tls: None,
        is_implicit: false,
        // It listens on loopback unless somebody says otherwise.
        plaintext_auth: true,
        size: config.gateway.message_max(),
        recipients: config.gateway.job.recipients_max,
        derive_key: false,
    };
    server::serve(Arc::new(made), http, vec![Port { listener: smtp, settings }], stop).await;
    Ok(())
}

/// A port that is asked for must be free; the usual one gives way to whoever has it.
async fn listen(asked: Option<SocketAddr>, usual: SocketAddr) -> anyhow::Result<TcpListener> {
    let address = asked.unwrap_or(usual);
    match TcpListener::bind(address).await {
        Err(error) if asked.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
            Ok(TcpListener::bind((usual.ip(), 0)).await?)
        }
        bound => bound.with_context(|| format!("listening at {address}")),
    }
}

/// The API key of this file: the same at each start, so that a service keeps its settings.
fn key(file: &Path) -> anyhow::Result<String> {
    let at = || format!("the file {}", file.display());
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (text, ..) = keys::make(&super::keys::random()?);
            let mut options = fs::OpenOptions::new();
            let mut created = options.write(true).create_new(true).mode(0o600).open(file).with_context(at)?;
            created.write_all(text.as_bytes()).with_context(at)?;
            Ok(text)
        }
        Err(error) => Err(error).with_context(at),
    }
}

/// What a developer points a service at.
fn explain(http: SocketAddr, smtp: SocketAddr, key: &str) {
    output::remark(&format!("API key {key}"));
    output::remark(&format!("HTTP at http://{http}, also with the APIs of other services (docs/drop-in.md):"));
    output::remark(&format!(
        "  curl http://{http}/v1/jobs -H 'Authorization: Bearer {key}' \\\n    \
         --json '{{\"from\": \"orders@shop.example\", \"to\": \"ada@customer.example\", \"subject\": \"Hello\", \"text\": \"Hi\"}}'"
    ));
    output::remark(&format!("SMTP at {smtp} without TLS: any user name, the API key as the password"));
    output::remark("up; publish with: postrider send --queue embedded:FILE jobs.jsonl   (ctrl-c ends)");
}

/// What a developer looks for: who gets it and what it is called. Here, and only here, addresses are shown: the mail goes nowhere.
fn summary(mail: &CaughtMail) -> String {
    let text = String::from_utf8_lossy(&mail.message);
    let subject = text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or("(no subject)");
    format!("{} -> {}: {subject} ({} bytes)", mail.from, mail.recipients.join(", "), mail.message.len())
}
