//! `postrider simulate`: how many jobs of a file a new configuration would send another way. Sends nothing and connects to nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use postrider_schemas::Job;
use serde_json::json;

use super::{
    documents, explain,
    output::{self, Format},
};
use crate::config::{self, Config};

/// Arguments of `postrider simulate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The new configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The configuration of now; without it the new one is shown alone
    #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
    against: Option<PathBuf>,
    /// Job documents as `send` takes them; - for standard input
    #[arg(long, value_name = "FILE")]
    jobs: PathBuf,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// Prints a table from the way of now to the new one. Exit status 1 where a line is no job.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let load = |file: &Path| config::load(Some(file)).with_context(|| file.display().to_string());
    let new = load(&arguments.config)?;
    let old = arguments.against.as_deref().map(load).transpose()?;
    let mut moves = BTreeMap::<(String, String), u64>::new();
    let mut unreadable = 0_u64;
    let mut documents = documents::open(&arguments.jobs, new.job)?;
    while let Some(document) = documents.next().with_context(|| arguments.jobs.display().to_string())? {
        match document.job {
            Ok(job) => {
                let after = way(&new, &job);
                let before = old.as_ref().map_or_else(|| after.clone(), |old| way(old, &job));
                *moves.entry((before, after)).or_default() += 1;
            }
            Err(error) => {
                unreadable += 1;
                output::remark(&format!("line {}: {error}", document.line));
            }
        }
    }
    print(arguments.format, &moves, unreadable, old.is_some())?;
    Ok(if unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first transport of each part: `relay`, or `api + relay` where the recipients go separate ways.
fn way(config: &Config, job: &Job) -> String {
    let mut names: Vec<String> = explain::of(config, job)
        .parts
        .iter()
        .map(|part| part.first().map_or_else(|| "(none can carry it)".to_owned(), str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "(no route)".to_owned() } else { names.join(" + ") }
}

fn print(
    format: Format,
    moves: &BTreeMap<(String, String), u64>,
    unreadable: u64,
    is_comparison: bool,
) -> anyhow::Result<()> {
    let total: u64 = moves.values().sum();
    let changed: u64 = moves.iter().filter(|((before, after), _)| before != after).map(|(_, count)| count).sum();
    if format == Format::Json {
        let rows: Vec<_> = moves
            .iter()
            .map(|((before, after), count)| {
                if is_comparison {
                    json!({ "before": before, "after": after, "jobs": count })
                } else {
                    json!({ "after": after, "jobs": count })
                }
            })
            .collect();
        return output::json(&json!({ "jobs": total, "moved": changed, "unreadable": unreadable, "ways": rows }));
    }
    let width = moves.keys().map(|(before, _)| before.chars().count()).max().unwrap_or(0);
    for ((before, after), count) in moves {
        let arrow = if before == after { "stays" } else { "moves to" };
        let from = if is_comparison { format!("{before:<width$}  {arrow:<8}  ") } else { String::new() };
        output::line(&format!("{count:>10}  {from}{after}"))?;
    }
    output::line(&format!("{total:>10}  jobs, {changed} of them moved, {unreadable} lines unreadable"))?;
    Ok(())
}
