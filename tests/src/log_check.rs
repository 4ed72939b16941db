//! No log line may carry an address. Every `postrider` process that a test starts is held to it when it ends, and its
//! output is kept until the test program ends, for tests that look at all of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::folder;

/// Copies the output of an ended process to where [`files`] finds it.
pub fn collect(output: &Path) -> Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let folder = collection()?;
    std::fs::create_dir_all(&folder)?;
    let copy = folder.join(format!("{:05}-{name}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::copy(output, copy).with_context(|| format!("keeping {}", output.display())).map(drop)
}

/// Output of every `postrider` process of this test program that has ended, but for those started with leave to print addresses.
pub fn files() -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(collection()?) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    Ok(files)
}

/// The lines of a text that contain something like `local@domain` or a user and password in a URL: number from 1, and the line.
pub fn lines_with_addresses(text: &str) -> Vec<(usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| has_address(line)).map(|(at, line)| (at + 1, line)).collect()
}

fn has_address(line: &str) -> bool {
    let local = |char: char| char.is_alphanumeric() || "!#$%&'*+/=?^_`{|}~.-\"".contains(char);
    let domain = |char: char| char.is_alphanumeric() || ".-_[:".contains(char);
    line.match_indices('@').any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(local);
        let name: String = line[at + 1..].chars().take_while(|char| domain(*char)).collect();
        // A domain has a dot inside, is a literal in brackets, or is this machine; `crate@1.2` and `key@` are no addresses.
        let dotted = name.trim_end_matches('.').contains('.') && name.chars().any(char::is_alphabetic);
        before && (dotted || name.starts_with('[') || name.starts_with("localhost") || name.starts_with("127."))
    })
}

fn collection() -> Result<PathBuf> {
    Ok(folder::base()?.join("postrider-logs"))
}
