//! `postrider hold`: jobs that wait for a person because they may have been sent.

use crate::{
    cli::dead::{RetryArguments, Selection, delete, list, retry_selected},
    queue::Rest,
};
use std::process::ExitCode;

/// Arguments of `postrider hold`.
#[derive(clap::Args)]
pub struct HoldArguments {
    #[command(subcommand)]
    action: HoldAction,
}

#[derive(clap::Subcommand)]
enum HoldAction {
    /// List jobs that may have been sent
    Ls(Selection),
    /// Send again: they certainly did not arrive
    Resend(RetryArguments),
    /// Delete: they did arrive, or nobody wants them any more
    Drop(Selection),
}

/// Runs `postrider hold`.
pub async fn hold(arguments: HoldArguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        HoldAction::Ls(selection) => list(Rest::Hold, selection, false).await,
        HoldAction::Resend(retry) => retry_selected(Rest::Hold, retry).await,
        HoldAction::Drop(selection) => delete(Rest::Hold, selection).await,
    }
}
