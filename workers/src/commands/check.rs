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
        let (address, connections) = match &one.kind {
            TransportKind::Smtp(smtp) => (format!("{}:{}", smtp.host, smtp.port), smtp.connections),
            TransportKind::Provider(provider) => (provider.base_url.to_string(), provider.http.connections),
        };
        output::line(&format!("transport {}: {} {address}, at most {connections} connections", one.name, one.kind()))?;
    }
    for route in config.routes.list() {
        let names: Vec<&str> = route.transports().map(|n| config.transports[n].name.as_str()).collect();
        output::line(&format!("route {}: by {}", route.name, names.join(", ")))?;
    }
    if config.routes.is_empty() {
        output::remark("no transport is configured: commands that only publish work, `postrider worker` does not");
    }
    output::line("ok")?;
    Ok(ExitCode::SUCCESS)
}
