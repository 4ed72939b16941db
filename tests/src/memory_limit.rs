//! A limit on the memory of a program, by a control group of its own: what is above it is killed, as in a container. Needs root and a control group file
//! system that may be written to (version 2 or 1).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::folder::Folder;

/// A control group with a limit; gone on drop.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
}

/// Roots by version, and the files that bear the limits: of memory, then of memory and swap.
const KINDS: [(&str, [&str; 2], &str); 2] = [
    ("/sys/fs/cgroup", ["memory.max", "memory.swap.max"], "cgroup.controllers"),
    ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"], "memory.limit_in_bytes"),
];

impl MemoryLimit {
    /// A group for this many bytes; nothing where none may be made here.
    pub fn new(name: &str, bytes: u64) -> Option<Self> {
        KINDS.iter().find_map(|(root, files, mark)| {
            let root = Path::new(root);
            root.join(mark).is_file().then_some(())?;
            let made = Self { group: root.join(format!("postrider-test-{name}-{}", std::process::id())) };
            fs::create_dir(&made.group).ok()?;
            fs::write(made.group.join(files[0]), bytes.to_string()).ok()?;
            // Where swap is not counted there is none, as a rule.
            let _ = fs::write(
                made.group.join(files[1]),
                if *mark == "cgroup.controllers" { "0".to_owned() } else { bytes.to_string() },
            );
            Some(made)
        })
    }

    /// A script that runs `program` inside the group.
    pub fn script(&self, program: &Path, folder: &Folder) -> Result<PathBuf> {
        let script = format!(
            "#!/bin/sh\necho $$ > '{}/cgroup.procs' && exec '{}' \"$@\"\n",
            self.group.display(),
            program.display()
        );
        let file = folder.write("limited.sh", &script)?;
        let mut mode = fs::metadata(&file)?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(&file, mode).context("making a script executable")?;
        Ok(file)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A process that was killed leaves its group a moment later.
        let gone = || fs::remove_dir(&self.group).ok();
        let _ = crate::deadline::wait_for("the end of a control group", std::time::Duration::from_secs(5), gone);
    }
}
