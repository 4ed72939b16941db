//! `postrider schema`: the wire forms for other languages.

use std::process::ExitCode;

use postrider_schemas::json_schema;

use super::output;

/// Arguments of `postrider schema`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which document
    #[arg(value_enum, default_value = "job")]
    document: Document,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Document {
    Job,
    Event,
}

/// Prints a JSON Schema (draft 2020-12).
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let text = match arguments.document {
        Document::Job => json_schema::job_v1(),
        Document::Event => json_schema::event_v1(),
    };
    output::lines(text.trim_end().lines())?;
    Ok(ExitCode::SUCCESS)
}
