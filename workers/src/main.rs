//! The one binary: reads the arguments, runs the command, says what went wrong in one line.

use std::process::ExitCode;

use postrider_workers::cli::{self, output};

fn main() -> ExitCode {
    // Fails only where the process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::run(cli::parse()).unwrap_or_else(|error| {
        // Whoever reads our output has seen enough (`| head`).
        let is_closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
        if error.chain().any(|cause| cause.downcast_ref().is_some_and(is_closed)) {
            return ExitCode::SUCCESS;
        }
        output::remark(&format!("postrider: {error:#}"));
        ExitCode::FAILURE
    })
}
