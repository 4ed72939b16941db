//! rotel, an OpenTelemetry collector in one binary: what it received is read from what it prints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::deadline;
use crate::folder::Folder;
use crate::ports;
use crate::process::{Process, Spec, Stop};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A span as it was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its trace.
    pub trace: String,
    /// Its parent; empty where it has none.
    pub parent: String,
    /// Its own id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `Internal`, `Client`, `Consumer` and so on.
    pub kind: String,
    /// `Unset`, `Ok` or `Error`.
    pub status: String,
    /// Names and values of its attributes.
    pub attributes: Vec<(String, String)>,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
}

impl Span {
    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Rotel {
    process: Process,
    port: u16,
    _folder: Folder,
}

impl Rotel {
    /// Where the program is, if it is installed.
    pub fn program() -> Option<PathBuf> {
        let venv = std::env::var_os("POSTRIDER_TEST_VENV")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-venv"), PathBuf::from);
        let versions = std::fs::read_dir(venv.join("lib")).ok()?;
        let programs =
            versions.filter_map(|version| Some(version.ok()?.path().join("site-packages/rotel/rotel-agent")));
        programs.into_iter().find(|program| program.exists())
    }

    /// Starts one that prints what it gets and keeps nothing.
    pub fn start() -> Result<Self> {
        let program = Self::program().context("rotel is missing: run tests/setup.sh")?;
        let folder = Folder::new("rotel")?;
        let (grpc, http) = (ports::free()?, ports::free()?);
        let process = Process::start(
            Spec::new("rotel", program, folder.path())?
                .args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"])
                .args(["--debug-log", "traces", "--debug-log", "metrics", "--debug-log", "logs"])
                .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
                .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
                .env("ROTEL_DISABLE_TELEMETRY", "true")
                .stop(Stop::Term(Duration::from_secs(5))),
        )?;
        let rotel = Self { process, port: http, _folder: folder };
        let up = || std::net::TcpStream::connect(("127.0.0.1", http)).ok().map(drop);
        deadline::wait_for("rotel to listen", START_LIMIT, up)?;
        Ok(rotel)
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything it printed so far.
    pub fn said(&self) -> String {
        [self.process.spec().out_file(), self.process.spec().err_file()]
            .iter()
            .map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned())
            .collect()
    }

    /// All spans so far.
    pub fn spans(&self) -> Result<Vec<Span>> {
        spans(&self.said())
    }

    /// Waits for spans that satisfy `enough`.
    pub fn wait_for_spans(&self, what: &str, limit: Duration, enough: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let looked = deadline::wait_for(what, limit, || self.spans().ok().filter(|spans| enough(spans)));
        looked.map_err(|error| anyhow!("{error}; so far {:?}", self.spans().map(|spans| spans.len())))
    }
}

/// Reads what rotel prints about spans.
fn spans(text: &str) -> Result<Vec<Span>> {
    let mut spans: Vec<Span> = Vec::new();
    // Between `Span #` and the next heading of something else.
    let (mut is_span, mut is_link) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("Span #") {
            spans.push(Span::default());
            (is_span, is_link) = (true, false);
            continue;
        }
        if line.starts_with("Resource") || line.starts_with("Scope") {
            is_span = false;
        }
        let Some(span) = spans.last_mut().filter(|_| is_span) else { continue };
        if line.starts_with("SpanLink #") {
            span.links.push(Default::default());
            is_link = true;
            continue;
        }
        let bare = line.strip_prefix("-> ").unwrap_or(line);
        let Some((name, value)) = bare.split_once(':').map(|(name, value)| (name.trim(), value.trim())) else {
            continue;
        };
        if is_link && let Some(link) = span.links.last_mut() {
            match name {
                "Trace ID" => value.clone_into(&mut link.0),
                "ID" => value.clone_into(&mut link.1),
                _ => {}
            }
            continue;
        }
        match name {
            "Trace ID" => value.clone_into(&mut span.trace),
            "Parent ID" => value.clone_into(&mut span.parent),
            "ID" => value.clone_into(&mut span.id),
            "Name" => value.clone_into(&mut span.name),
            "Kind" => span.kind = value.replace("SPAN_KIND_", "").to_lowercase(),
            "Status code" => span.status = value.replace("STATUS_CODE_", "").to_lowercase(),
            name if line.starts_with("-> ") => {
                let value = value.split_once('(').map_or(value, |(_, inner)| inner.strip_suffix(')').unwrap_or(inner));
                span.attributes.push((name.to_owned(), value.to_owned()));
            }
            _ => {}
        }
    }
    // A block may be cut off in the middle while it is printed.
    ensure!(spans.iter().all(|span| !span.id.is_empty()), "a span without an id");
    Ok(spans)
}

/// Every attribute and label that was received, of any signal.
pub fn attribute_names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_data = false;
    for line in text.lines().map(str::trim) {
        match line {
            "Attributes:" | "Data point attributes:" => is_data = true,
            _ if line.starts_with("-> ") && is_data => {
                let name = line.trim_start_matches("-> ").split(':').next().unwrap_or_default();
                names.insert(name.to_owned());
            }
            _ => is_data = false,
        }
    }
    names
}
