//! `postrider check`: is a configuration sound.

use std::process::ExitCode;

use super::{ConfigArguments, output};
use crate::{config::TransportKind, transport::Transport};

/// Arguments of `postrider check`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// Loads the configuration, reads the certificates it names, and says what it came to. Connects to nothing.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    for one in &config.transports {
        if let Err(error) = Transport::new(one) {
            anyhow::bail!("setting `transport.{}`: {error}", one.name);
        }
        let TransportKind::Smtp(smtp) = &one.kind;
        output::line(&format!(
            "transport {}: smtp {}:{}, at most {} connections",
            one.name, smtp.host, smtp.port, smtp.connections
        ))?;
    }
    for route in &config.routes {
        output::line(&format!("route {}: by {}", route.name, config.transports[route.transport].name))?;
    }
    if config.routes.is_empty() {
        output::remark("no transport is configured: commands that only publish work, `postrider worker` does not");
    }
    output::line("ok")?;
    Ok(ExitCode::SUCCESS)
}
