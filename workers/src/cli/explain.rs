//! `postrider explain`: why a job goes which way, and which limits apply. Sends nothing; connects to nothing, but to the store, and to DNS where
//! groups follow from it, when it is asked for the present wait.

mod limits;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use postrider_schemas::{Job, wire};

use super::{
    ConfigArguments,
    output::{self, Format},
};
use crate::{
    config::Config,
    policy::explain::{Explanation, TransportForecast, explain},
};

/// Arguments of `postrider explain`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File with one job as JSON; - for standard input
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    config: ConfigArguments,
    /// Look into the store how long the job would have to wait now, and ask DNS for groups where `dns.groups` is on
    #[arg(long)]
    now: bool,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// Prints the rule, the transports and what rules one out. Exit status 1 where no transport can carry the job.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    anyhow::ensure!(!config.routes.is_empty(), "the configuration has no route; see `[[route]]`");
    let job = read(&arguments.job, &config)?;
    let explanation = of(&config, &job);
    let told = super::block_on(limits::look(&config, &job, &explanation, arguments.now))?;
    match arguments.format {
        Format::Text => {
            print(&explanation)?;
            limits::print(&told)?;
        }
        Format::Json => {
            let mut document = serde_json::to_value(&explanation)?;
            document["limits"] = serde_json::to_value(&told.limits)?;
            if arguments.now {
                document["waits"] = serde_json::to_value(&told.waits)?;
                document["dns_silent"] = serde_json::to_value(&told.silent)?;
            }
            output::json(&document)?;
        }
    }
    let goes = !explanation.parts.is_empty() && explanation.parts.iter().all(|part| part.first().is_some());
    Ok(if goes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Explains by a configuration.
pub fn of(config: &Config, job: &Job) -> Explanation {
    let ways: Vec<TransportForecast<'_>> = config
        .transports
        .iter()
        .map(|one| TransportForecast { name: &one.name, kind: one.kind(), capabilities: one.capabilities() })
        .collect();
    explain(&config.routes, &ways, job)
}

fn read(file: &Path, config: &Config) -> anyhow::Result<Job> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    }
    wire::decode(&bytes, None, &config.job).with_context(|| format!("{} is no job", file.display()))
}

fn print(explanation: &Explanation) -> std::io::Result<()> {
    output::line(&format!("job {}", explanation.job_id))?;
    if explanation.parts.is_empty() {
        output::line("no rule takes it")?;
    }
    if explanation.parts.len() > 1 {
        output::line(&format!("its recipients go separate ways, in {} parts", explanation.parts.len()))?;
    }
    for part in &explanation.parts {
        output::lines(["", &part.recipients.join(", ")])?;
        for one in &part.passed {
            output::line(&format!("  not by `{}`: {}", one.route, one.because))?;
        }
        let policy = format!("on_limit = {}, on_unknown = {}", part.on_limit, part.on_unknown);
        output::line(&format!("  by `{}` ({policy})", part.route))?;
        let mut number = 0;
        for one in &part.transports {
            if let Some(lack) = &one.ruled_out {
                output::line(&format!("     -  {} ({}) {lack}", one.transport, one.kind))?;
                continue;
            }
            number += 1;
            output::line(&format!("     {number}. {} ({})", one.transport, one.kind))?;
        }
        if part.first().is_none() {
            output::line("  no transport of this route can carry it: it would come to rest in dead, with this reason")?;
        }
    }
    Ok(())
}
