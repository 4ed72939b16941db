//! `postrider events`: what becomes of jobs, as it happens.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::{
    signal::ctrl_c,
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{super::delivery::context, ConfigArguments, output};
use crate::queue::Queue;

/// Arguments of `postrider events`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// End after this many events
    #[arg(long)]
    count: Option<u64>,
}

/// How long a lost connection is tried again, and how often.
const AGAIN: (Duration, Duration) = (Duration::from_mins(2), Duration::from_secs(1));

/// Prints each event as one line of JSON (CloudEvents), from now on, until it is interrupted. Exit status 1 where the connection is lost for good.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let queue = context::existing_queue(&config.queue).await?;
    let mut events = queue.events().await?;
    output::remark("listening");
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = ctrl_c() => break,
        };
        if let Some(event) = event {
            output::json_text(&String::from_utf8_lossy(&event))?;
            left -= 1;
            continue;
        }
        output::remark(
            "the connection is lost; listening again as soon as it is back. Events until then are not shown",
        );
        events = tokio::select! {
            again = listen_again(&queue) => again?,
            _ = ctrl_c() => break,
        };
        output::remark("listening again");
    }
    drop(events);
    queue.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn listen_again(queue: &Queue) -> anyhow::Result<mpsc::Receiver<Bytes>> {
    let (limit, pause) = AGAIN;
    let end = Instant::now() + limit;
    loop {
        sleep(pause).await;
        match queue.events().await {
            Ok(events) => return Ok(events),
            Err(error) if Instant::now() >= end => {
                return Err(error)
                    .with_context(|| format!("the connection was lost and did not come back within {limit:?}"));
            }
            Err(_) => {}
        }
    }
}
