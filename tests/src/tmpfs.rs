//! A disk of a few megabytes that a test may fill: a file system in memory, mounted for the test. Needs the rights of root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::folder::Folder;
use crate::say_skipped;

/// A mounted disk. Its end unmounts it, and so does the watchdog.
#[derive(Debug)]
pub struct Tmpfs {
    place: PathBuf,
    _folder: Folder,
}

impl Tmpfs {
    /// Mounts one of so many KiB, or says loudly that `test` is skipped where mounting is not allowed.
    pub fn mount_or_skip(test: &str, kib: u32) -> Result<Option<Self>> {
        let folder = Folder::new("disk")?;
        let place = folder.inside("mounted", 0o755)?;
        let options = format!("size={kib}k,mode=755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&place)
            .output()
            .context("running mount")?;
        if !mounted.status.success() {
            say_skipped(test, &format!("no disk can be mounted: {}", String::from_utf8_lossy(&mounted.stderr).trim()));
            return Ok(None);
        }
        Ok(Some(Self { place, _folder: folder }))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// Fills it to the last byte.
    pub fn fill(&self) -> Result<()> {
        // Pages first, then what is left of the last one.
        for (name, step) in [("pages", 4096), ("bytes", 1)] {
            let mut content = fs::File::create(self.place.join(name))?;
            while std::io::Write::write_all(&mut content, &vec![0; step]).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    pub fn make_room(&self) -> Result<()> {
        for name in ["pages", "bytes"] {
            fs::remove_file(self.place.join(name))?;
        }
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that is being ended may still have a file open.
        let done = Command::new("umount").arg("-l").arg(&self.place).status();
        let is_gone = done.is_ok_and(|status| status.success());
        assert!(is_gone || std::thread::panicking(), "{} cannot be unmounted", self.place.display());
    }
}
