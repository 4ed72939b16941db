//! `postrider dead`: jobs that were given up.

use std::process::ExitCode;

use super::rest::{RetryArguments, Selection, delete, list, retry_selected};
use crate::queue::Rest;

/// Arguments of `postrider dead`.
#[derive(clap::Args)]
pub struct DeadArguments {
    #[command(subcommand)]
    action: DeadAction,
}

#[derive(clap::Subcommand)]
enum DeadAction {
    /// List dead-lettered jobs
    #[command(
        after_long_help = "Example: postrider dead ls --reason retries-exhausted --domain example.com --newer 2h"
    )]
    Ls(Selection),
    /// Show one whole, headers and body included
    #[command(after_long_help = "Example: postrider dead show 0190a5c0-7a10-7c3e-9d51-000000000001")]
    Show(Selection),
    /// Try again
    #[command(after_long_help = "Example: postrider dead retry --reason retries-exhausted --rate 50 --dry-run")]
    Retry(RetryArguments),
    /// Delete
    #[command(after_long_help = "Example: postrider dead drop --reason conflict --older 12h --dry-run")]
    Drop(Selection),
}

/// Runs `postrider dead`.
pub async fn dead(arguments: DeadArguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        DeadAction::Ls(selection) => list(Rest::Dead, selection, false).await,
        DeadAction::Show(selection) => list(Rest::Dead, selection, true).await,
        DeadAction::Retry(retry) => retry_selected(Rest::Dead, retry).await,
        DeadAction::Drop(selection) => delete(Rest::Dead, selection).await,
    }
}
