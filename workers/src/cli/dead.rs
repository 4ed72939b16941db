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
    Ls(Selection),
    /// Show jobs whole, with headers and body
    Show(Selection),
    /// Try jobs again
    Retry(RetryArguments),
    /// Delete jobs
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
