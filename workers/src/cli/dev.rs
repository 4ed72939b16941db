//! `postrider dev`: queue, store, worker and mail catcher in one process, for trying a service against.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{super::delivery::context, output, worker::stop_on_signal};
use crate::{
    config,
    mail_catcher::{CaughtMail, MailCatcher},
    telemetry,
    worker::consumer,
};

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
    let context = context::connect(config).await.context("starting")?;
    let context = Arc::new(ArcSwap::from_pointee(context));
    output::remark("up; publish with: postrider send --queue embedded:FILE jobs.jsonl   (ctrl-c ends)");
    let worker = tokio::spawn(consumer::run(context, stop));
    let printing = async {
        while let Some(mail) = caught.recv().await {
            if output::line(&summary(&mail)).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = printing => {}
        _ = worker => {}
    }
    signals.abort();
    Ok(ExitCode::SUCCESS)
}

/// What a developer looks for: who gets it and what it is called. Here, and only here, addresses are shown: the mail goes nowhere.
fn summary(mail: &CaughtMail) -> String {
    let text = String::from_utf8_lossy(&mail.message);
    let subject = text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or("(no subject)");
    format!("{} -> {}: {subject} ({} bytes)", mail.from, mail.recipients.join(", "), mail.message.len())
}
