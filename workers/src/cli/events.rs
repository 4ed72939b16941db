//! `postrider events`: what becomes of jobs, as it happens.

use std::process::ExitCode;

use super::{super::worker::context, ConfigArguments, output};

/// Arguments of `postrider events`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// End after this many events
    #[arg(long)]
    count: Option<u64>,
}

/// Prints each event as one line of JSON (CloudEvents), from now on.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    let queue = context::existing_queue(&config.queue).await?;
    let mut events = queue.events().await?;
    output::remark("listening");
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0
        && let Some(event) = events.recv().await
    {
        output::json_text(&String::from_utf8_lossy(&event))?;
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}
