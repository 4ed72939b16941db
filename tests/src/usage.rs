//! What a process has used, from `/proc` (Linux).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process;
use anyhow::{Context as _, Result, ensure};

/// Processor time of a process so far, user and system, all threads.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a process of the benchmark has ended")?;
    let ticks = ticks(&stat).context("/proc/PID/stat has an unknown form")?;
    Ok(Duration::from_secs_f64(f64::from(ticks) / f64::from(ticks_per_second())))
}

/// Largest resident memory of a process so far, in KiB.
pub fn peak_memory(pid: u32) -> Result<u64> {
    status(pid, "VmHWM:")
}

/// Resident memory of a process now, in KiB.
pub fn memory(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

fn status(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    number.with_context(|| format!("/proc/PID/status has no {field}"))
}

/// What a program used that has ended.
pub struct Used {
    /// User and system time, all threads.
    pub cpu: Duration,
    /// Largest resident memory that was seen, in KiB.
    pub memory: u64,
}

/// Runs a program to its end. Until somebody waits for it a process that has ended keeps its times, but not its memory, so that is
/// looked at meanwhile.
pub fn watched<'a>(program: &str, args: impl Iterator<Item = &'a str>, limit: Duration) -> Result<Used> {
    let mut child = Command::new(process::find(Path::new(program))?)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (pid, end) = (child.id(), Instant::now() + limit);
    let mut memory = 0;
    while !is_zombie(pid)? {
        memory = peak_memory(pid).map_or(memory, |now| now.max(memory));
        if Instant::now() > end {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let cpu = cpu(pid)?;
    let status = child.wait()?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(Used { cpu, memory })
}

fn is_zombie(pid: u32) -> Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// The process with this name (as in `ps -o comm`) that works in `folder`.
pub fn find(name: &str, folder: &Path) -> Result<u32> {
    let pids = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let works_there = |pid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let at = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        // The broker changes its directory; its environment names the folder, with a slash behind it.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let inside = format!("{}/", folder.display());
        comm.trim_end() == name
            && (at.starts_with(folder) || String::from_utf8_lossy(&environment).contains(inside.as_str()))
    };
    pids.into_iter().find(works_there).with_context(|| format!("no {name} works in {}", folder.display()))
}

/// The 14th and 15th field; the name in the second one may hold anything, so counting begins behind its bracket.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    Some(next()? + next()?)
}

/// 100 on every Linux of our days; asked all the same.
fn ticks_per_second() -> u32 {
    let asked = Command::new("getconf").arg("CLK_TCK").output().ok();
    asked.and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok()).unwrap_or(100)
}
