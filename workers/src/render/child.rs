//! A render process, as the worker sees it: started, asked, ended.

use std::os::unix::process::ExitStatusExt as _;
use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    serve::{self, MEMORY_MAX, SECONDS_MAX},
    wire::{GREETING, HEAD, Head},
};
use crate::message::template::{Fault, Texts};

/// A process that has not answered after this is ended. Far more than its processor time: the machine may be busy.
const WALL_MAX: Duration = Duration::from_mins(1);
/// How long the end of a process is waited for once it is silent.
const END_MAX: Duration = Duration::from_secs(2);
/// A process that has rendered so much makes room for a fresh one.
const RENDERS_MAX: u32 = 1000;

/// Signals by which the system or a program ends a process, on every Unix that we know.
mod signal {
    pub(super) const ABORT: i32 = 6;
    pub(super) const SEGMENT: i32 = 11;
    pub(super) const PROCESSOR: i32 = 24;
}

/// A process at work, or idle. It ends when this is dropped.
pub(super) struct Child {
    process: tokio::process::Child,
    input: ChildStdin,
    output: ChildStdout,
    renders: u32,
}

/// Why a process gave no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// By what the template made it do.
    Template(String),
    /// For a reason that need not lie in the template.
    Elsewhere(String),
}

impl Child {
    /// Starts one and hears its greeting.
    pub(super) async fn start(program: &Path) -> Result<Self, String> {
        let mut process = Command::new(program)
            .arg0("postrider")
            .arg("render")
            // Nothing of ours: what the worker knows is not for a process that runs others' templates.
            .env_clear()
            .current_dir("/")
            // A signal to the terminal's group is for the worker, which ends its processes when it has drained.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("a render process cannot be started: {error}"))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a render process has no pipes".to_owned());
        };
        let mut child = Self { process, input, output, renders: 0 };
        let mut greeting = [0; GREETING.len()];
        match timeout(WALL_MAX, child.output.read_exact(&mut greeting)).await {
            Ok(Ok(_)) if greeting == GREETING => Ok(child),
            Ok(Ok(_)) => Err("another program was started instead of a render process".to_owned()),
            Ok(Err(_)) => Err("a render process ended at its start".to_owned()),
            Err(_) => Err("a render process did not start in time".to_owned()),
        }
    }

    /// Whether it may be asked again.
    pub(super) fn is_usable(&mut self) -> bool {
        self.renders < RENDERS_MAX && matches!(self.process.try_wait(), Ok(None))
    }

    /// Asks. Who gives up meanwhile has to drop it.
    pub(super) async fn render(&mut self, question: &[u8]) -> Result<Result<Texts, Fault>, Lost> {
        self.renders += 1;
        let Ok(answer) = timeout(WALL_MAX, self.exchange(question)).await else {
            let _ = self.process.start_kill();
            return Err(Lost::Elsewhere(format!("a render process did not answer within {} s", WALL_MAX.as_secs())));
        };
        if let Some(answer) = answer {
            return Ok(answer);
        }
        match timeout(END_MAX, self.process.wait()).await {
            Ok(Ok(status)) => Err(lost(status)),
            _ => Err(Lost::Elsewhere("a render process broke off its answer".to_owned())),
        }
    }

    async fn exchange(&mut self, question: &[u8]) -> Option<Result<Texts, Fault>> {
        self.input.write_all(question).await.ok()?;
        self.input.flush().await.ok()?;
        let mut head = [0; HEAD];
        self.output.read_exact(&mut head).await.ok()?;
        let head = Head::read(head)?;
        let mut texts = vec![0; head.octets()];
        self.output.read_exact(&mut texts).await.ok()?;
        serve::read(head.texts(texts))
    }
}

/// What the end of a process says.
fn lost(status: ExitStatus) -> Lost {
    match (status.signal(), status.code()) {
        (Some(signal::PROCESSOR), _) => Lost::Template(format!("it takes more than {SECONDS_MAX} s of processor time")),
        (Some(signal::ABORT | signal::SEGMENT), _) => {
            Lost::Template(format!("it needs more than {} MiB, or nests too deep", MEMORY_MAX / 1024 / 1024))
        }
        (None, Some(101)) => Lost::Template("the template engine fails on it".to_owned()),
        (Some(signal), _) => Lost::Elsewhere(format!("a render process was ended by signal {signal}")),
        (None, code) => Lost::Elsewhere(format!("a render process ended with status {}", code.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_tells_whose_fault_it_is() {
        let by_template = |raw| matches!(lost(ExitStatus::from_raw(raw)), Lost::Template(_));
        for (raw, expected) in [(24, true), (6, true), (11, true), (6 | 128, true), (101 << 8, true)] {
            assert_eq!(by_template(raw), expected, "{raw}");
        }
        for raw in [9, 15, 2, 1 << 8, 0] {
            assert!(!by_template(raw), "{raw}");
        }
    }
}
