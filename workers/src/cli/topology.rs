//! `postrider topology`: what stands on the broker.

use std::process::ExitCode;

use anyhow::Context as _;
use postrider_producer::rabbitmq::{self, topology};
use postrider_schemas::{permissions, topology::Topology};
use secrecy::ExposeSecret as _;

use super::{ConfigArguments, output};

/// Arguments of `postrider topology`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Verify that every exchange and queue stands
    Verify(TopologyTarget),
    /// Declare missing exchanges and queues
    Apply(TopologyTarget),
    /// Print definitions for `rabbitmqctl import_definitions`
    Export(Export),
}

#[derive(clap::Args)]
struct TopologyTarget {
    #[command(flatten)]
    config: ConfigArguments,
    /// Broker, instead of the configuration's `queue.url`
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
}

#[derive(clap::Args)]
struct Export {
    #[command(flatten)]
    config: ConfigArguments,
    /// The form
    #[arg(long, value_enum, default_value = "definitions")]
    format: ExportFormat,
    /// The virtual host that the definitions name
    #[arg(long, default_value = "/")]
    vhost: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ExportFormat {
    /// Exchanges, queues and bindings
    Definitions,
    /// What producers, workers and tools may do, for users that are there already
    Permissions,
}

/// Looks, declares or prints.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.action {
        Action::Verify(target) => {
            let (connection, topology) = connect(&target).await?;
            topology::verify(&connection, &topology).await?;
            output::line("everything stands")?;
        }
        Action::Apply(target) => {
            let (connection, topology) = connect(&target).await?;
            topology::apply(&connection, &topology).await?;
            let (exchanges, queues) = (topology.exchanges.len(), topology.queues.len());
            output::line(&format!("{exchanges} exchanges and {queues} queues stand"))?;
        }
        Action::Export(Export { config, format: ExportFormat::Definitions, vhost }) => {
            let topology = Topology::v1(config.load_to_look()?.queue.shards);
            output::lines(serde_json::to_string_pretty(&topology.to_definitions(&vhost))?.lines())?;
        }
        Action::Export(Export { format: ExportFormat::Permissions, vhost, .. }) => {
            output::lines(serde_json::to_string_pretty(&permissions::to_definitions(&vhost))?.lines())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(target: &TopologyTarget) -> anyhow::Result<(lapin::Connection, Topology)> {
    let config = target.config.load_to_look()?;
    let url = target.queue.as_deref().unwrap_or(config.queue.url.expose_secret());
    anyhow::ensure!(
        !url.starts_with("embedded:"),
        "an embedded queue has no topology; name a broker by --queue or queue.url"
    );
    let connection = rabbitmq::connect(url, "postrider-topology").await.context("the broker")?;
    Ok((connection, Topology::v1(config.queue.shards)))
}
