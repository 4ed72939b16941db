//! Folders of one test program: one base under the system's temporary folder, in it one folder for each part started.
//!
//! A part's folder is removed with it, the base when the program ends. `POSTRIDER_TEST_KEEP=1` keeps all of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow};

/// A folder that is removed on drop, readable by every user (some servers change theirs).
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A new, empty folder whose name begins with `part`.
    pub fn new(part: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = base()?.join(format!("{part}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        make_open(&path, 0o755)?;
        Ok(Self { path })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder inside, with these Unix permissions.
    pub fn inside(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path.join(name);
        make_open(&path, mode)?;
        Ok(path)
    }

    /// Writes a file inside and gives its path.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !keep() {
            // A process that is being ended may still add a file: the second try finds it.
            let _ = std::fs::remove_dir_all(&self.path).or_else(|_| std::fs::remove_dir_all(&self.path));
        }
    }
}

/// The folder of this test program.
pub fn base() -> Result<&'static Path> {
    static BASE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = BASE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("postrider-test-{}", std::process::id()));
        make_open(&path, 0o755).map_err(|error| format!("{error:#}"))?;
        if !keep() {
            crate::watchdog::own_folder(&path).map_err(|error| format!("{error:#}"))?;
        }
        Ok(path)
    });
    made.as_deref().map_err(|error| anyhow!("{error}"))
}

fn keep() -> bool {
    std::env::var_os("POSTRIDER_TEST_KEEP").is_some()
}

fn make_open(path: &Path, mode: u32) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("opening {} to other users", path.display()))
}
