//! `postrider config`: every setting with its default, and a first configuration to begin with.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::output;
use crate::config::DEFAULTS;

/// What `config init` writes. It is a configuration that `check` takes.
const FIRST: &str = include_str!("../config.first.toml");

/// Arguments of `postrider config`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print every setting with its default and what it means
    Default,
    /// Write a first configuration
    Init {
        /// File to write, which must not exist; - for standard output
        #[arg(default_value = "postrider.toml")]
        file: PathBuf,
    },
}

/// Prints or writes.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.action {
        Action::Default => output::lines(DEFAULTS.lines())?,
        Action::Init { file } if file.as_os_str() == "-" => output::lines(FIRST.lines())?,
        Action::Init { file } => {
            let place = || format!("{}: nothing was written", file.display());
            // A file that is there is somebody's work.
            let mut made = std::fs::File::create_new(file).with_context(place)?;
            made.write_all(FIRST.as_bytes()).with_context(place)?;
            output::line(&format!(
                "wrote {0}; name your relay in it, then: postrider check --config {0}",
                file.display()
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;

    #[test]
    fn the_first_configuration_is_one_that_check_takes() {
        let config = load_text(FIRST).unwrap();
        assert_eq!((config.transports.len(), config.routes.list().len()), (1, 1));
        assert!(FIRST.lines().all(|line| line.chars().count() <= 80));
    }
}
