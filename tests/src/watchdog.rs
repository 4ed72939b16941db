//! Ends everything when the test program is killed and no `Drop` runs.
//!
//! One `sh` per test program reads from a pipe which process groups and which folder are in use. The pipe closes when the
//! program ends, in any way; then the shell kills the groups that are left and removes the folder. A parent-death signal
//! was rejected: it follows the thread that started the child, not the program, and a change of user clears it.
//!
//! It does not find a process that leaves its group; [`crate::process::leftovers`] does, by environment.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result};

const SCRIPT: &str = r#"
groups=" "; folder=""
while read -r verb what; do
  case $verb in
    add) groups="$groups$what " ;;
    end) groups="${groups%% $what *} ${groups#* $what }" ;;
    folder) folder=$what ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ -n "$folder" ] && while read -r _ place _; do
  case $place in "$folder"/*) umount -l "$place" ;; esac
done </proc/mounts 2>/dev/null
[ -n "$folder" ] && for again in 1 2 3; do rm -rf -- "$folder" 2>/dev/null && break; sleep 0.2; done
exit 0
"#;

static PIPE: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// From now on the group is killed when this program ends.
pub fn add_group(group: u32) -> Result<()> {
    tell(&format!("add {group}"))
}

/// The group is gone; its number may be given to others.
pub fn end_group(group: u32) -> Result<()> {
    tell(&format!("end {group}"))
}

/// The folder is removed when this program ends.
pub fn own_folder(folder: &Path) -> Result<()> {
    tell(&format!("folder {}", folder.display()))
}

fn tell(line: &str) -> Result<()> {
    let mut slot = PIPE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let pipe = match slot.as_mut() {
        Some(pipe) => pipe,
        None => slot.insert(start()?),
    };
    writeln!(pipe, "{line}").context("telling the watchdog")
}

fn start() -> Result<ChildStdin> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: an interrupt from the keyboard must not end the watchdog before its work.
    command.process_group(0);
    let mut child = command.spawn().context("starting the watchdog shell")?;
    child.stdin.take().context("the watchdog shell has no pipe")
}
