//! The command line: one file per subcommand.

pub mod cancel;
pub mod check;
pub mod completions;
pub mod config;
pub mod configuration;
pub mod dead;
pub mod demo;
pub mod dev;
mod documents;
pub mod events;
pub mod explain;
pub mod gateway;
pub mod health;
mod help;
pub mod hold;
pub mod keys;
pub mod limits;
pub mod output;
pub mod rest;
pub mod schema;
pub mod send;
pub mod simulate;
pub mod status;
pub mod topology;
pub mod trace;
pub mod unroutable;
pub mod worker;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::render::serve::serve;

pub use self::configuration::ConfigArguments;

/// Takes e-mail off the hands of backend services.
#[derive(Parser)]
#[command(name = "postrider", version, about, propagate_version = true, max_term_width = 80)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish and deliver generated jobs on this machine; count them
    Demo(demo::Arguments),
    /// Run gateway, queue, store, worker and mail catcher in one process
    Dev(dev::Arguments),
    /// Publish jobs: one document, a list, or lines
    Send(send::Arguments),
    /// Consume jobs and deliver them
    Worker(worker::Arguments),
    /// Take jobs over HTTP and put them on the queue
    Gateway(gateway::Arguments),
    /// Make, list or revoke API keys of the gateway
    Keys(keys::KeysArguments),
    /// Validate a configuration
    Check(check::Arguments),
    /// Show why a job goes which way, without sending it
    Explain(explain::Arguments),
    /// Count which jobs another configuration would send another way
    Simulate(simulate::Arguments),
    /// Print the JSON Schema of a job or an event
    Schema(schema::Arguments),
    /// Verify, declare or export exchanges and queues
    Topology(topology::Arguments),
    /// Cancel a job that waits
    Cancel(cancel::Arguments),
    /// List, show, retry or delete dead-lettered jobs
    Dead(dead::DeadArguments),
    /// List, show, resend or delete jobs that may have been sent
    Hold(hold::HoldArguments),
    /// List, move or delete messages that no queue took
    Unroutable(unroutable::UnroutableArguments),
    /// Show, pause, resume or change rate limits
    Limits(limits::Arguments),
    /// Print events as they happen
    Events(events::Arguments),
    /// Show what waits, what is broken and which workers run
    Status(status::Arguments),
    /// Show what became of one job
    Trace(trace::Arguments),
    /// Ask the worker on this machine whether it is well
    Health(health::Arguments),
    /// Print shell completions
    Completions(completions::CompletionArguments),
    /// Print the manual page, or write all of them
    Man(completions::ManArguments),
    /// Print every setting, or write a first configuration
    Config(config::Arguments),
    /// Render templates for a worker, which starts this itself
    #[command(hide = true)]
    Render,
}

/// The command line with its help: commands in groups, an example and the exit codes for each.
pub fn command() -> clap::Command {
    help::explained(Cli::command())
}

/// Reads the arguments of this process. Ends it where they are wrong, or where they ask for help.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Runs the command that the arguments name.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Worker(arguments) => worker::run(&arguments),
        Command::Gateway(arguments) => gateway::run(&arguments),
        Command::Keys(arguments) => keys::run(arguments),
        Command::Demo(arguments) => block_on(demo::run(arguments)),
        Command::Dev(arguments) => block_on(dev::run(arguments)),
        Command::Send(arguments) => block_on(send::run(arguments)),
        Command::Check(arguments) => block_on(check::run(arguments)),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Topology(arguments) => block_on(topology::run(arguments)),
        Command::Cancel(arguments) => block_on(cancel::run(arguments)),
        Command::Dead(arguments) => block_on(dead::dead(arguments)),
        Command::Hold(arguments) => block_on(hold::hold(arguments)),
        Command::Unroutable(arguments) => block_on(unroutable::unroutable(arguments)),
        Command::Limits(arguments) => block_on(limits::run(arguments)),
        Command::Events(arguments) => block_on(events::run(arguments)),
        Command::Status(arguments) => block_on(status::run(arguments)),
        Command::Trace(arguments) => block_on(trace::run(arguments)),
        Command::Health(arguments) => block_on(health::run(arguments)),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::Man(arguments) => completions::man(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Render => Ok(serve()),
    }
}

/// Everything but the worker runs on one thread.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
