//! Node, with the packages that `tests/setup.sh` installs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::process;

/// The interpreter, and the variable by which it finds the vendors' clients.
pub fn with_clients() -> Result<(PathBuf, Vec<(String, String)>)> {
    let folder = std::env::var_os("POSTRIDER_TEST_CLIENTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients"), PathBuf::from)
        .join("node_modules");
    ensure!(folder.join("mailgun.js").exists(), "{} lacks packages: run tests/setup.sh", folder.display());
    let program = process::find(Path::new("node"))?;
    Ok((program, vec![("NODE_PATH".to_owned(), folder.display().to_string())]))
}
