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
    /// List jobs that may have been sent
    #[command(after_long_help = "Example: postrider hold ls --transport relay --wide")]
    Ls(Selection),
    /// Show one whole, headers and body included
    #[command(after_long_help = "Example: postrider hold show 0190a5c0-7a10-7c3e-9d51-000000000001")]
    Show(Selection),
    /// Send again: they certainly did not arrive
    #[command(after_long_help = "Example: postrider hold resend 0190a5c0-7a10-7c3e-9d51-000000000001")]
    Resend(RetryArguments),
    /// Delete: they did arrive, or nobody wants them any more
    #[command(after_long_help = "Example: postrider hold drop --transport relay --newer 1h --dry-run")]
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
