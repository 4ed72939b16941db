//! A server or worker as a child: a group of its own, output to files, ready within a limit, ended on drop.
//!
//! It knows signals and logs, nothing of what the program does. Children end with the test program (see
//! [`crate::watchdog`]) and carry [`MARK`] in their environment, by which [`leftovers`] finds their descendants.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::deadline;
use crate::watchdog;

/// Environment variable of every child: the folder it works in. Not named `POSTRIDER_...`: Postrider would read it as a setting.
pub const MARK: &str = "HARNESS_FOLDER";

/// How a process is ended on drop.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// SIGKILL at once: for servers whose data nobody keeps.
    Kill,
    /// SIGTERM, then SIGKILL after this time.
    Term(Duration),
}

/// What to start. Kept by the process, so that it can be started again.
#[derive(Clone, Debug)]
pub struct Spec {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    folder: PathBuf,
    input: Option<PathBuf>,
    stop: Stop,
}

impl Spec {
    /// `program` (a path, or a name to [`find`]) run in `folder`; its output goes to `<name>.out` and `<name>.err` there.
    pub fn new(name: &str, program: impl AsRef<Path>, folder: &Path) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            program: find(program.as_ref())?,
            args: Vec::new(),
            env: vec![(MARK.into(), Some(folder.into()))],
            folder: folder.to_owned(),
            input: None,
            stop: Stop::Kill,
        })
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes an inherited environment variable away.
    #[must_use]
    pub fn without_env(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// A file for its standard input, which is empty otherwise.
    #[must_use]
    pub fn input(mut self, file: &Path) -> Self {
        self.input = Some(file.to_owned());
        self
    }

    /// How it is ended on drop; [`Stop::Kill`] unless said.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// File of its standard output.
    pub fn out_file(&self) -> PathBuf {
        self.folder.join(format!("{}.out", self.name))
    }

    /// File of its standard error.
    pub fn err_file(&self) -> PathBuf {
        self.folder.join(format!("{}.err", self.name))
    }

    fn spawn(&self) -> Result<Child> {
        let open = |path: PathBuf| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))
        };
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.folder).process_group(0);
        command.stdin(match &self.input {
            Some(file) => File::open(file).with_context(|| format!("opening {}", file.display()))?.into(),
            None => Stdio::null(),
        });
        command.stdout(open(self.out_file())?).stderr(open(self.err_file())?);
        for (key, value) in &self.env {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.spawn().with_context(|| format!("starting {} ({})", self.name, self.program.display()))
    }
}

/// A running (or ended) child and its whole process group.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; does not wait for anything.
    pub fn start(spec: Spec) -> Result<Self> {
        let child = spec.spawn()?;
        watchdog::add_group(child.id())?;
        Ok(Self { spec, child, ended: None })
    }

    /// Starts it and waits until `probe` says yes; an error with the tail of its output when it ends or `limit` passes first.
    pub fn start_ready(spec: Spec, limit: Duration, probe: impl FnMut() -> bool) -> Result<Self> {
        let mut process = Self::start(spec)?;
        process.wait_ready(limit, probe)?;
        Ok(process)
    }

    /// Waits until `probe` says yes, as long as the process lives, at most `limit`.
    pub fn wait_ready(&mut self, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        while !probe() {
            if let Some(status) = self.poll()? {
                bail!("{} ended with {status} before it was ready:\n{}", self.spec.name, self.tail(30));
            }
            if Instant::now() >= end {
                bail!("{} was not ready within {limit:?}:\n{}", self.spec.name, self.tail(30));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id, which is its group's id as well.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it was started with.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How it ended, `None` while it runs.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("asking for {}", self.spec.name))?;
            if self.ended.is_some() {
                // What the leader left behind in its group goes too, before the number can belong to others.
                self.signal_group("KILL");
                watchdog::end_group(self.pid())?;
            }
        }
        Ok(self.ended)
    }

    /// Waits for its end; an error with the tail of its output after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("{} did not end within {limit:?}:\n{}", self.spec.name, self.tail(30));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM to the process itself, not to its group, as a supervisor does.
    pub fn terminate(&mut self) -> Result<()> {
        if self.poll()?.is_none() {
            send("TERM", &self.pid().to_string());
        }
        Ok(())
    }

    /// SIGINT to the process itself, as a terminal does.
    pub fn interrupt(&mut self) -> Result<()> {
        if self.poll()?.is_none() {
            send("INT", &self.pid().to_string());
        }
        Ok(())
    }

    /// SIGKILL to the whole group, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        if self.poll()?.is_none() {
            self.signal_group("KILL");
            self.wait(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// SIGSTOP to the group: alive, and silent.
    pub fn freeze(&self) {
        self.signal_group("STOP");
    }

    /// Ends a [`Process::freeze`].
    pub fn thaw(&self) {
        self.signal_group("CONT");
    }

    /// Starts it again with the same words, after its end.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill9()?;
        self.child = self.spec.spawn()?;
        self.ended = None;
        watchdog::add_group(self.child.id())
    }

    /// The last `lines` of its standard output and error.
    pub fn tail(&self, lines: usize) -> String {
        [self.spec.out_file(), self.spec.err_file()].iter().map(|file| tail(file, lines)).collect()
    }

    fn signal_group(&self, signal: &str) {
        send(signal, &format!("-{}", self.pid()));
    }

    fn stop(&mut self) -> Result<()> {
        if let Stop::Term(limit) = self.spec.stop
            && self.poll()?.is_none()
        {
            self.terminate()?;
            // Not ending in time is dealt with by the kill below.
            let _ = self.wait(limit);
        }
        self.kill9()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop()
            && !std::thread::panicking()
        {
            panic!("{error:#}");
        }
    }
}

/// Runs a program to its end and gives its standard output; an error with all its output when it fails or `limit` passes.
pub fn run<A: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = A>,
    env: &[(String, String)],
    limit: Duration,
) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", &limit.as_secs_f32().to_string()]).arg(find(Path::new(program))?).args(args);
    command.envs(env.iter().map(|(key, value)| (key, value))).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("running {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program}: {} (limit {limit:?})\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Looks a program up in `PATH` and in the folders where Debian and others keep servers.
pub fn find(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let servers = ["/usr/lib/rabbitmq/bin", "/usr/lib/postfix/sbin", "/usr/sbin", "/sbin", "/usr/local/sbin"];
    // RabbitMQ's own scripts first: the ones that Debian puts into PATH change the user.
    let mut folders = servers[..1].iter().map(PathBuf::from).collect::<Vec<_>>();
    folders.extend(std::env::split_paths(&path));
    folders.extend(servers[1..].iter().map(PathBuf::from));
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| anyhow!("{} is not installed: run tests/setup.sh", program.display()))
}

/// Whether a server is named by an environment variable and cannot be started here, so that no test may break it.
pub fn only_foreign(variable: &str, program: &str) -> bool {
    std::env::var_os(variable).is_some() && find(Path::new(program)).is_err()
}

/// The last `lines` of a file; nothing when it cannot be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().fold(String::new(), |text, line| text + line + "\n")
}

/// Processes that still work for `folder`: those that carry it in their environment or on their
/// command line, or have it as working directory. Waits up to
/// five seconds for them to go. Empty where there is no `/proc`.
pub fn leftovers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let gone = deadline::wait_for("the end of every process", Duration::from_secs(5), || {
        found = working_in(folder);
        found.is_empty().then_some(())
    });
    if gone.is_ok() { Vec::new() } else { found }
}

fn working_in(folder: &Path) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned();
    let mine = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != mine)
        .filter_map(|pid| {
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            // A process that has ended and waits for its parent has neither.
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let environment = String::from_utf8_lossy(&read("environ")).into_owned();
            // The slash and the end keep `redis1` apart from `redis12`.
            let named = |text: &str| {
                text.match_indices(&needle).any(|(at, _)| {
                    text[at + needle.len()..].chars().next().is_none_or(|next| !next.is_ascii_alphanumeric())
                })
            };
            // Redis and Dovecot write over both to show a title; what they cannot hide is where they work.
            let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let found = named(&command) || named(&environment) || named(&works_in.to_string_lossy());
            found.then(|| format!("{pid} {command}"))
        })
        .collect()
}

/// `kill` of the shell: a program of that name is not on every machine, and the safe standard library has no signals.
fn send(signal: &str, target: &str) {
    // `-s`: dash does not take `--` after `-KILL`.
    let script = format!("kill -s {signal} -- {target}");
    // A target that is gone already is what the caller wanted.
    let _ = Command::new("sh").arg("-c").arg(script).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
