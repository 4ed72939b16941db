//! `postrider completions` and `postrider man`: what a shell and a reader of manuals know of the commands.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap_complete::Shell;

use super::output;

/// Arguments of `postrider completions`.
#[derive(clap::Args)]
pub struct CompletionArguments {
    /// Shell to print for
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `postrider man`.
#[derive(clap::Args)]
pub struct ManArguments {
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Prints the script that a shell sources.
pub fn completions(arguments: &CompletionArguments) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(), "postrider", &mut script);
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page of the program, or writes one for each command.
pub fn man(arguments: &ManArguments) -> anyhow::Result<ExitCode> {
    let Some(folder) = &arguments.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(super::command()).render(&mut page)?;
        output::raw(&page)?;
        return Ok(ExitCode::SUCCESS);
    };
    let place = || folder.display().to_string();
    std::fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(super::command(), folder).with_context(place)?;
    output::line(&format!("the pages stand in {}; read one with: man -l {0}/postrider.1", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
