//! `postrider explain`: why a job goes which way, and which limits apply. Sends nothing; connects to nothing, but to the store, and to DNS where
//! groups follow from it, when it is asked for the present wait.

mod limits;

use std::{path::PathBuf, process::ExitCode};

use postrider_schemas::Job;

use super::{
    ConfigArguments, documents,
    output::{self, Format},
};
use crate::{
    config::Config,
    policy::explain::{Explanation, TransportForecast, explain},
};

/// Arguments of `postrider explain`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File with one job document, a list of them, or one a line; - for standard input
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

/// Prints for each job the rule, the transports and what rules one out. Exit status 1 where no transport can carry one.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load_to_look()?;
    anyhow::ensure!(!config.routes.is_empty(), "the configuration has no route; see `[[route]]`");
    let mut documents = documents::open(&arguments.job, config.job)?;
    let (mut count, mut goes) = (0_u64, true);
    while let Some(document) = documents.next()? {
        let job = document
            .job
            .map_err(|reason| anyhow::anyhow!("{} line {}: {reason}", arguments.job.display(), document.line))?;
        if count > 0 && arguments.format == Format::Text {
            output::line("")?;
        }
        count += 1;
        goes &= one(arguments, &config, &job)?;
    }
    anyhow::ensure!(count > 0, "{} holds no job", arguments.job.display());
    Ok(if goes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Explains one job. True where every part of it has a transport that can carry it.
fn one(arguments: &Arguments, config: &Config, job: &Job) -> anyhow::Result<bool> {
    let explanation = of(config, job);
    let told = super::block_on(limits::look(config, job, &explanation, arguments.now))?;
    match arguments.format {
        Format::Text => {
            print(&explanation)?;
            limits::print(&told)?;
        }
        Format::Json => {
            let mut document = serde_json::to_value(&explanation)?;
            document["limits"] = serde_json::to_value(&told.limits)?;
            if arguments.now {
                document["transports"] = serde_json::to_value(&told.transports)?;
                document["waits"] = serde_json::to_value(&told.waits)?;
                document["dns_silent"] = serde_json::to_value(&told.silent)?;
            }
            output::json(&document)?;
        }
    }
    Ok(!explanation.parts.is_empty() && explanation.parts.iter().all(|part| part.first().is_some()))
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
