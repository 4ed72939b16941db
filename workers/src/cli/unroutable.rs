//! `postrider unroutable`: messages that the broker confirmed and no queue wanted.

use std::process::ExitCode;

use super::rest::{RetryArguments, Selection, delete, list, retry_selected};
use crate::queue::Rest;

/// Arguments of `postrider unroutable`.
#[derive(clap::Args)]
pub struct UnroutableArguments {
    #[command(subcommand)]
    action: UnroutableAction,
}

#[derive(clap::Subcommand)]
enum UnroutableAction {
    /// List messages whose routing key no queue takes
    Ls(Selection),
    /// Move messages to the queue of their lane
    Move(RetryArguments),
    /// Delete messages
    Drop(Selection),
}

/// Runs `postrider unroutable`.
pub async fn unroutable(arguments: UnroutableArguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        UnroutableAction::Ls(selection) => list(Rest::Unroutable, selection, false).await,
        UnroutableAction::Move(retry) => retry_selected(Rest::Unroutable, retry).await,
        UnroutableAction::Drop(selection) => delete(Rest::Unroutable, selection).await,
    }
}
