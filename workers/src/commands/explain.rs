//! `postrider explain`: why a job goes which way, and which limits apply. Sends nothing; connects to nothing, but to the store where it is
//! asked for the present wait.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use postrider_schemas::{Job, wire};
use serde::Serialize;

use super::{
    ConfigArguments,
    output::{self, Format},
    world,
};
use crate::{
    config::Config,
    decide::{
        explain::{Explanation, Way, explain},
        limits::{picture::picture, rate::Rate, scope::Limit},
    },
    limiter::scopes,
    store::limiter::Overview,
};

/// Arguments of `postrider explain`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File with one job as JSON; - for standard input
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    config: ConfigArguments,
    /// Look into the store how long the job would have to wait now
    #[arg(long)]
    now: bool,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// Prints the rule, the transports and what rules one out. Exit status 1 where no transport can carry the job.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    anyhow::ensure!(!config.routes.is_empty(), "the configuration has no route; see `[[route]]`");
    let job = read(&arguments.job, &config)?;
    let explanation = of(&config, &job);
    let limits = limits(&config, &job, &explanation, arguments.now)?;
    match arguments.format {
        Format::Text => {
            print(&explanation)?;
            print_limits(&limits)?;
        }
        Format::Json => {
            let mut document = serde_json::to_value(&explanation)?;
            document["limits"] = serde_json::to_value(&limits)?;
            output::json(&document)?;
        }
    }
    let goes = !explanation.parts.is_empty() && explanation.parts.iter().all(|part| part.first().is_some());
    Ok(if goes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Explains by a configuration.
pub fn of(config: &Config, job: &Job) -> Explanation {
    let ways: Vec<Way<'_>> = config
        .transports
        .iter()
        .map(|one| Way { name: &one.name, kind: one.kind(), capabilities: one.capabilities() })
        .collect();
    explain(&config.routes, &ways, job)
}

/// A limit that applies to the job.
#[derive(Debug, Serialize)]
struct Applies {
    scope: String,
    configured: Vec<String>,
    /// The store was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Now>,
}

/// What the store says of it.
#[derive(Debug, Serialize)]
struct Now {
    per_second: Option<f64>,
    wait_s: f64,
    waiting: f64,
    why: Option<String>,
}

/// The limits at every transport that may be tried, each once. Groups are those of the lists: DNS is not asked.
fn limits(config: &Config, job: &Job, explanation: &Explanation, now: bool) -> anyhow::Result<Vec<Applies>> {
    let groups = scopes::groups_by_list(&config.limits, job);
    let tried = |name: &str| {
        let choices = explanation.parts.iter().flat_map(|part| &part.transports);
        choices.into_iter().any(|one| one.transport == name && one.ruled_out.is_none())
    };
    let mut all: Vec<(String, Vec<Rate>)> = Vec::new();
    for (position, transport) in config.transports.iter().enumerate().filter(|(_, one)| tried(&one.name)) {
        for scope in scopes::of(&config.limits, position, &transport.name, job, &groups) {
            if !all.contains(&scope) {
                all.push(scope);
            }
        }
    }
    let names: Vec<String> = all.iter().map(|(scope, _)| scope.clone()).collect();
    let overview = if now { Some(super::block_on(overview(config, names))?) } else { None };
    let applies = all.into_iter().map(|(scope, rates)| {
        let limits: Vec<Limit> = rates.iter().map(Limit::from).collect();
        let now = overview.as_ref().map(|overview| {
            let known = overview.scopes.iter().find(|(name, _)| *name == scope);
            let state = known.map(|(_, state)| state.clone()).unwrap_or_default();
            let drawn = picture(&state, &limits, overview.now);
            let line = state.lines.get(job.lane().as_str());
            let end = line.and_then(|line| line.ends.get(job.tenant().as_str())).map_or(0.0, |place| place.end);
            let wait_s = drawn.next_room_s.max((end - overview.now) / 1e6);
            Now { per_second: drawn.per_second, wait_s, waiting: drawn.waiting, why: drawn.why }
        });
        Applies { scope, configured: rates.iter().map(ToString::to_string).collect(), now }
    });
    Ok(applies.collect())
}

async fn overview(config: &Config, scopes: Vec<String>) -> anyhow::Result<Overview> {
    let store = world::store(&config.store).await?;
    Ok(store.overview(Some(&scopes)).await?)
}

fn print_limits(limits: &[Applies]) -> std::io::Result<()> {
    output::line("\nlimits")?;
    for one in limits {
        let configured = if one.configured.is_empty() { "unlimited".to_owned() } else { one.configured.join(" and ") };
        let mut line = format!("  {}  {configured}", one.scope);
        if let Some(now) = &one.now {
            line = match &now.why {
                Some(why) => format!("{line}; now a wait of {:.1} s, because of {why}", now.wait_s),
                None => format!("{line}; now a wait of {:.1} s", now.wait_s),
            };
        }
        output::line(&line)?;
    }
    Ok(())
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
        output::line(&format!("\n{}", part.recipients.join(", ")))?;
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
