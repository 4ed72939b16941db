//! The Python environment that `tests/setup.sh` makes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A program of it.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let venv = std::env::var_os("POSTRIDER_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-venv"), PathBuf::from);
    let program = venv.join("bin").join(name);
    ensure!(program.exists(), "{} is missing: run tests/setup.sh", program.display());
    Ok(program)
}

/// The interpreter, where it has all of these modules.
pub fn with(modules: &[&str]) -> Result<PathBuf> {
    let python = program("python")?;
    let import = format!("import {}", modules.join(", "));
    let done = std::process::Command::new(&python).args(["-c", &import]).output()?;
    ensure!(done.status.success(), "{import} fails: run tests/setup.sh");
    Ok(python)
}
