//! Where a command finds its configuration, and what it says about that.

use std::path::{Path, PathBuf};

use clap::Args;

use super::output;
use crate::config::{self, Config};

/// Looked for in this order where nobody names a file.
const PLACES: [&str; 2] = ["postrider.toml", "/etc/postrider/postrider.toml"];

/// Where the configuration comes from.
#[derive(Args, Clone)]
pub struct ConfigArguments {
    /// Configuration file; else ./postrider.toml, then /etc/postrider/postrider.toml
    #[arg(long, value_name = "FILE", env = "POSTRIDER_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    /// The file, where there is one.
    pub fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| found(Path::new("")))
    }

    /// Loads and checks the configuration. Says which file it is where nobody named it.
    pub fn load(&self) -> anyhow::Result<Config> {
        let file = self.named();
        Ok(config::load(file.as_deref())?)
    }

    /// The same for commands that hand nothing to a transport: credentials of transports that are not here are no reason to refuse.
    pub fn load_to_look(&self) -> anyhow::Result<Config> {
        let file = self.named();
        Ok(config::load_without_credentials(file.as_deref())?)
    }

    fn named(&self) -> Option<PathBuf> {
        let file = self.file();
        if self.config.is_none() {
            output::remark(&remark(file.as_deref()));
        }
        file
    }
}

fn found(folder: &Path) -> Option<PathBuf> {
    PLACES.iter().map(|place| folder.join(place)).find(|path| path.is_file())
}

fn remark(file: Option<&Path>) -> String {
    match file {
        Some(file) => format!("configuration: {}", file.display()),
        None => "configuration: built-in defaults and POSTRIDER_ variables; no file is named by --config or \
                 POSTRIDER_CONFIG, and neither ./postrider.toml nor /etc/postrider/postrider.toml is there"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_beside_us_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let system = found(folder.path()).filter(|path| path.starts_with(folder.path()));
        assert_eq!(system, None);
        let file = folder.path().join("postrider.toml");
        std::fs::write(&file, "").unwrap();
        assert_eq!(found(folder.path()), Some(file.clone()));
        assert_eq!(remark(Some(&file)), format!("configuration: {}", file.display()));
        assert!(remark(None).contains("neither ./postrider.toml nor /etc/postrider/postrider.toml"));
    }
}
