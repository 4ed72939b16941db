//! `postrider hold`: jobs that wait for a person because they may have been sent.

use std::process::ExitCode;

use super::rest::{RetryArguments, Selection, delete, list, retry_selected};
use crate::queue::Rest;

/// Arguments of `postrider hold`.
#[derive(clap::Args)]
pub struct HoldArguments {
    #[command(subcommand)]
    action: HoldAction,
}

#[derive(clap::Subcommand)]
enum HoldAction {
    /// List held jobs
    Ls(Selection),
    /// Show jobs whole, with headers and body
    Show(Selection),
    /// Send jobs again that certainly did not arrive
    Resend(RetryArguments),
    /// Delete jobs that did arrive, or that nobody wants any more
    Drop(Selection),
}

/// Runs `postrider hold`.
pub async fn hold(arguments: HoldArguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        HoldAction::Ls(selection) => list(Rest::Hold, selection, false).await,
        HoldAction::Show(selection) => list(Rest::Hold, selection, true).await,
        HoldAction::Resend(retry) => retry_selected(Rest::Hold, retry).await,
        HoldAction::Drop(selection) => delete(Rest::Hold, selection).await,
    }
}
