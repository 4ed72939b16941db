//! A wall clock for one process, which steps while the process runs: libfaketime, told by a file. The time since the machine's start stays true, as
//! it does where a real clock is set.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{folder::Folder, postrider::Launch};

/// How soon a process sees a step.
pub const STEP_LIMIT: Duration = Duration::from_secs(2);

/// A clock that is right until it is told otherwise.
#[derive(Debug)]
pub struct FakeClock {
    library: PathBuf,
    folder: Folder,
}

impl FakeClock {
    /// A right clock; needs the Debian package `faketime` (see `tests/setup.sh`).
    pub fn new() -> Result<Self> {
        let library = library().context("libfaketime is missing: run tests/setup.sh")?;
        let clock = Self { library, folder: Folder::new("clock")? };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it so many seconds ahead of (or behind) the true time.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Renamed into place: a reader never sees half of it.
        let next = self.folder.path().join("next");
        fs::write(&next, format!("{seconds:+}\n"))?;
        fs::rename(next, self.file())?;
        Ok(())
    }

    /// Has a program run by this clock.
    pub fn under(&self, launch: Launch) -> Launch {
        launch
            .env("LD_PRELOAD", self.library.display().to_string())
            .env("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string())
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}

/// Debian keeps it in a folder of the machine's architecture.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders
        .chain([Path::new("/usr/lib").to_owned()])
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|file| file.exists())
}
