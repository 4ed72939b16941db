//! The command line: one file per subcommand.

pub mod cancel;
pub mod check;
pub mod configuration;
pub mod dead;
pub mod demo;
pub mod dev;
pub mod events;
pub mod explain;
pub mod gateway;
pub mod health;
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

use clap::{Parser, Subcommand};

use crate::render::serve::serve;

pub use self::configuration::ConfigArguments;

/// Takes e-mail off the hands of backend services.
#[derive(Parser)]
#[command(name = "postrider", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish generated jobs, deliver them to a built-in mail catcher, count what arrived
    Demo(demo::Arguments),
    /// Queue, store, worker and mail catcher in one process; prints what arrives
    Dev(dev::Arguments),
    /// Publish jobs from JSON lines
    Send(send::Arguments),
    /// Consume jobs and deliver them
    Worker(worker::Arguments),
    /// Take jobs over HTTP and put them on the queue
    Gateway(gateway::Arguments),
    /// API keys of the gateway: make, list, revoke
    Keys(keys::KeysArguments),
    /// Validate a configuration
    Check(check::Arguments),
    /// Show why a job goes which way, without sending it
    Explain(explain::Arguments),
    /// Count how many jobs of a file a new configuration would send another way
    Simulate(simulate::Arguments),
    /// Print the JSON Schema of a job or an event
    Schema(schema::Arguments),
    /// Look at, declare or export what stands on the broker
    Topology(topology::Arguments),
    /// Cancel a job that waits
    Cancel(cancel::Arguments),
    /// Jobs that were given up
    Dead(dead::DeadArguments),
    /// Jobs that wait for a person because they may have been sent
    Hold(hold::HoldArguments),
    /// Messages that no queue wanted
    Unroutable(unroutable::UnroutableArguments),
    /// How fast mail may go now; pause, resume, set
    Limits(limits::Arguments),
    /// Print events as they happen
    Events(events::Arguments),
    /// What waits, what is broken, who works
    Status(status::Arguments),
    /// What became of one job, as far as it is known
    Trace(trace::Arguments),
    /// Ask the worker that runs here whether it is well
    Health(health::Arguments),
    /// Renders templates for a worker, which starts this itself
    #[command(hide = true)]
    Render,
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
        Command::Check(arguments) => check::run(&arguments),
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
        Command::Render => Ok(serve()),
    }
}

/// Everything but the worker runs on one thread.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
