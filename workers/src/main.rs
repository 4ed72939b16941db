//! The one binary: reads the arguments, runs the command, says what went wrong in one line.

use std::process::ExitCode;

use clap::Parser as _;
use postrider_workers::cli::{Cli, output, run};

fn main() -> ExitCode {
    // Fails only where the process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(Cli::parse()).unwrap_or_else(|error| {
        output::remark(&format!("postrider: {error:#}"));
        ExitCode::FAILURE
    })
}
