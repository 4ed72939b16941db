//! The `postrider` program as a child: built when stale, configured, watched, killed, and held to its privacy promise.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::deadline;
use crate::folder::Folder;
use crate::log_check;
use crate::process::{Process, Spec, Stop};

/// A worker drains for as long as its configuration says; one that is dropped by a test gets this long.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What to run; see [`Postrider::command`].
#[derive(Clone, Debug)]
pub struct Launch {
    args: Vec<OsString>,
    config: Option<String>,
    input: Option<Vec<u8>>,
    env: Vec<(String, String)>,
    may_print_addresses: bool,
    program: Option<PathBuf>,
}

impl Launch {
    /// Another program than the one that is built here: an older version, say.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// The configuration, written to a file and given by `--config`.
    #[must_use]
    pub fn config(mut self, toml: impl Into<String>) -> Self {
        self.config = Some(toml.into());
        self
    }

    /// Bytes for its standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// For commands whose purpose is to show a job: their output is not searched for addresses.
    #[must_use]
    pub fn may_print_addresses(mut self) -> Self {
        self.may_print_addresses = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Postrider> {
        let folder = Folder::new("postrider")?;
        let program = self.program.map_or_else(binary, Ok)?;
        let mut spec = Spec::new("postrider", program, folder.path())?.args(&self.args).stop(Stop::Term(STOP_LIMIT));
        if let Some(config) = &self.config {
            spec = spec.arg("--config").arg(folder.write("postrider.toml", config)?);
        }
        if let Some(input) = &self.input {
            let file = folder.path().join("input");
            std::fs::write(&file, input)?;
            spec = spec.input(&file);
        }
        // The harness's own variables, and a developer's, would be settings.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("POSTRIDER_")) {
            spec = spec.without_env(key);
        }
        for (key, value) in &self.env {
            spec = spec.env(key, value);
        }
        let process = Process::start(spec)?;
        Ok(Postrider { process, folder, may_print_addresses: self.may_print_addresses })
    }

    /// Starts it and waits for its end.
    pub fn run(self, limit: Duration) -> Result<Finished> {
        self.start()?.finish(limit)
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// A running (or ended) `postrider`.
#[derive(Debug)]
pub struct Postrider {
    process: Process,
    folder: Folder,
    may_print_addresses: bool,
}

impl Postrider {
    /// `postrider ARGS`, to be completed and started.
    pub fn command<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Launch {
        Launch {
            args: args.into_iter().map(Into::into).collect(),
            config: None,
            input: None,
            env: Vec::new(),
            may_print_addresses: false,
            program: None,
        }
    }

    /// `postrider worker` with this configuration, started.
    pub fn worker(config: impl Into<String>) -> Result<Self> {
        Self::command(["worker"]).config(config).start()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its folder, which is its working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.process.spec().out_file())
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.process.spec().err_file())
    }

    /// Waits until its output or its errors contain `text`; the error shows their ends.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let (out, err) = (self.process.spec().out_file(), self.process.spec().err_file());
        let seen = move || read(&out).contains(text) || read(&err).contains(text);
        self.process.wait_ready(limit, seen).with_context(|| format!("waiting for {text:?}"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.poll()?.is_none())
    }

    /// SIGTERM: drain and end.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.terminate()
    }

    /// SIGINT: the same from a terminal.
    pub fn interrupt(&mut self) -> Result<()> {
        self.process.interrupt()
    }

    /// SIGKILL: no goodbye.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// SIGSTOP: a worker that hangs with everything it holds.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Ends a [`Postrider::freeze`].
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// Starts it again with the same configuration, after its end.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.start_again()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit)
    }

    /// Waits for its end and gives everything it said.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let status = self.wait(limit)?;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Waits until this address on loopback answers, for example the admin port.
    pub fn wait_for_port(&mut self, port: u16, limit: Duration) -> Result<()> {
        self.process.wait_ready(limit, || crate::ports::is_open(port))
    }

    fn check_logs(&self) -> Result<()> {
        if self.may_print_addresses {
            return Ok(());
        }
        for file in [self.process.spec().out_file(), self.process.spec().err_file()] {
            log_check::collect(&file)?;
            let text = read(&file);
            let found = log_check::lines_with_addresses(&text);
            ensure!(found.is_empty(), "postrider printed an address: {:?}", &found[..found.len().min(5)]);
        }
        Ok(())
    }
}

impl Drop for Postrider {
    fn drop(&mut self) {
        // Asked politely first: what it says while it drains is part of its log.
        let ended = self.process.terminate().and_then(|()| {
            // One that does not end in time is killed next.
            let _ = self.process.wait(STOP_LIMIT);
            self.process.kill9()
        });
        let checked = ended.and_then(|()| self.check_logs());
        if std::thread::panicking() {
            // The test has failed already: the end of this log says more than the test can.
            crate::say(&format!("postrider {}:\n{}", self.pid(), self.process.tail(25)));
        } else if let Err(error) = checked {
            panic!("{error:#}");
        }
    }
}

/// Path of the program in the profile of this test program, built first when a source file is newer.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!("{error}"))
}

fn build() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("POSTRIDER_TEST_BINARY") {
        return Ok(given.into());
    }
    let exe = std::env::current_exe()?;
    let inner = exe.ancestors().find(|path| path.ends_with("deps") || path.ends_with("examples"));
    let folder = inner.and_then(Path::parent).or(exe.parent()).context("the test program lies in no folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = folder.parent().context("no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bin", "postrider", "--profile", profile]);
    command.arg("--target-dir").arg(target).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // What cargo set for this package would look like a changed environment to build scripts.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let starts = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_PRIMARY_", "RUSTC_BOOTSTRAP"];
        if starts.iter().any(|start| name.starts_with(start)) {
            command.env_remove(&key);
        }
    }
    let output = command.output().context("running cargo build")?;
    ensure!(output.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let binary = folder.join("postrider");
    deadline::wait_for("the postrider binary", Duration::from_secs(1), || binary.is_file().then_some(()))?;
    Ok(binary)
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
}
