//! How fast one worker empties a full queue, and what that costs. Prints figures and asserts nothing.
//!
//! `cargo bench -p postrider-tests --bench drain -- [--jobs N] [--only rabbitmq|embedded|slow|limits] [--worker PROGRAM]... [--telemetry
//! each]`. The queue is
//! filled before the worker starts; the time runs from the first message at the sink that was seen to the last one. Several programs take
//! turns, so that a change can be told from the machine's noise. `smtp-source` against the same sink shows what sink and
//! machine can do without a queue. With `--telemetry each` a worker runs with telemetry off, with metrics alone, and with traces at 1 % and at
//! 100 % besides; the collector is one that answers at once. The worker logs warnings only; the store writes every command to disk before it answers.
#![allow(clippy::print_stdout, reason = "printing is what a benchmark is for")]
#![allow(clippy::cast_precision_loss, reason = "figures for people have few digits")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, stream};
use postrider_producer::Publisher;
use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{FakeProvider, Reaction},
    fault_proxy::{FaultProxy, Faults},
    folder::Folder,
    ports,
    postrider::{self, Postrider},
    rabbitmq::Depth,
    sink::{Options, SmtpSink},
    story::{self, SOON},
    test_env::{EnvSpec, Server, TestEnv},
    usage,
};
use rusqlite::{Connection, OpenFlags};

const JOBS: usize = 50_000;
/// Limits that are never in the way, and how many they are to a message: of the transport; of each domain and tenant besides; of each
/// sender's domain and two longer ones besides.
const LIMITS: [(usize, &str); 3] = [
    (1, "rate = \"1_000_000/s\"\n[limits]\n"),
    (
        3,
        "rate = \"1_000_000/s\"\n[[throttle]]\nname = \"all\"\nrate = \"1_000_000/s\"\n[limits]\ntenant_rate = \"1_000_000/s\"\n",
    ),
    (
        6,
        "rate = [\"1_000_000/s\", \"60_000_000/min\"]\nsender_rate = \"1_000_000/s\"\n[[throttle]]\nname = \"all\"\nrate = \"1_000_000/s\"\n\
         [limits]\ntenant_rate = [\"1_000_000/s\", \"60_000_000/min\"]\n",
    ),
];
/// With a question to the store for each message, where workers would else take tokens in batches.
const ONE_BY_ONE: &str = "lease_above = \"4_000_000_000/s\"\n";
/// Of the drain into the slow relay.
const SLOW_JOBS: usize = 2_000;
const SLOW_REPLIES: Duration = Duration::from_millis(20);
const BODY: usize = 2_048;
const CONNECTIONS: usize = 10;
/// How often the sink is asked for its count.
const STEP: Duration = Duration::from_millis(5);
/// A drain is given up when nothing new has arrived for this long.
const STALLED: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let Wanted { jobs, only, workers, telemetry } = Wanted::read(std::env::args().skip(1))?;
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!("{cores} cores, {jobs} jobs of {BODY} bytes of text");

    let parts = EnvSpec {
        rabbit: Server::Own,
        redis: Server::Own,
        sink: Some(Options { store: false, ..Options::default() }),
        ..EnvSpec::default()
    };
    let mut env = TestEnv::start(&parts)?;
    let servers = [
        ("broker", usage::find("beam.smp", env.rabbit().folder())?),
        ("redis", usage::find("redis-server", env.redis().folder())?),
    ];
    let (queue, store) = (env.amqp_url(), env.redis_url());
    let port = env.sink().port();
    story::declare(&env)?;
    let sink = env.sink();
    let depth = || broker_depth(&env);
    let rabbit = Drain {
        name: "RabbitMQ + Redis",
        queue: &queue,
        store: &store,
        port,
        jobs,
        servers: &servers,
        env: Some(&env),
        limits: "",
        telemetry: Telemetry::Off,
    };

    if only.is_none_or(|only| only != Scene::Slow) {
        source("smtp-source, a connection a message", port, jobs, &[])?;
        source("smtp-source -d, connections kept", port, jobs, &["-d"])?;
    }
    if only.is_none_or(|only| only == Scene::Rabbit) {
        for (worker, told) in workers.iter().flat_map(|worker| telemetry.iter().map(move |told| (worker, *told))) {
            Drain { telemetry: told, ..rabbit }.run(worker, sink, depth)?;
        }
    }
    if only.is_none_or(|only| only == Scene::Embedded) {
        for worker in &workers {
            let folder = Folder::new("bench")?;
            let file = folder.path().join("queue.db");
            let address = format!("embedded:{}", file.display());
            Drain { name: "embedded", queue: &address, store: &address, servers: &[], env: None, ..rabbit }.run(
                worker,
                sink,
                || embedded_depth(&file),
            )?;
        }
    }
    if only.is_none_or(|only| only == Scene::Limits) {
        for worker in &workers {
            Drain { name: "no limits", ..rabbit }.run(worker, sink, depth)?;
            for (count, limits) in LIMITS {
                for (how, more) in [("in batches", ""), ("one by one", ONE_BY_ONE)] {
                    let (name, limits) = (format!("{count} limits a message, {how}"), format!("{limits}{more}"));
                    Drain { name: &name, limits: &limits, ..rabbit }.run(worker, sink, depth)?;
                }
            }
        }
    }
    if only.is_none_or(|only| only == Scene::Slow) {
        let proxy = FaultProxy::start(port)?;
        proxy.set(Faults::delay_replies(SLOW_REPLIES));
        let slow = jobs.min(SLOW_JOBS);
        println!("\nreplies {} ms late, {CONNECTIONS} connections, {slow} jobs", SLOW_REPLIES.as_millis());
        source("smtp-source -d, connections kept", proxy.port(), slow, &["-d"])?;
        for worker in &workers {
            Drain { name: "RabbitMQ + Redis, slow relay", port: proxy.port(), jobs: slow, ..rabbit }
                .run(worker, sink, depth)?;
        }
    }
    Ok(())
}

/// One queue to fill and to empty.
#[derive(Clone, Copy)]
struct Drain<'a> {
    name: &'a str,
    queue: &'a str,
    store: &'a str,
    port: u16,
    jobs: usize,
    /// Limits of the transport, then more of the configuration.
    limits: &'a str,
    /// Name and process id of what works for the worker.
    servers: &'a [(&'a str, u32)],
    /// Where the store can be asked what it was asked.
    env: Option<&'a TestEnv>,
    /// What the worker tells of itself.
    telemetry: Telemetry,
}

/// What a worker tells of itself.
#[derive(Clone, Copy, PartialEq)]
enum Telemetry {
    Off,
    Metrics,
    /// The share of traces, metrics with them.
    Traces(f64),
}

impl Telemetry {
    const EACH: [Self; 4] = [Self::Off, Self::Metrics, Self::Traces(0.01), Self::Traces(1.0)];

    fn name(self) -> String {
        match self {
            Self::Off => "telemetry off".to_owned(),
            Self::Metrics => "metrics".to_owned(),
            Self::Traces(share) => format!("metrics, traces at {} %", share * 100.0),
        }
    }
}

impl Drain<'_> {
    /// `depth` is the number of jobs in the queue, `None` when it cannot be told now.
    fn run(&self, program: &Path, sink: &SmtpSink, depth: impl Fn() -> Option<u64>) -> Result<()> {
        self.warm_up(program, sink, &depth)?;

        let filling = Instant::now();
        fill(self.queue, self.jobs)?;
        println!("\n{} (worker {}, {})", self.name, named(program), self.telemetry.name());
        println!("  published       {:>9.0} messages/s", rate(self.jobs, filling.elapsed()));

        let before = sink.count()?;
        let cpu_before = self.servers_cpu()?;
        let calls_before = self.store_calls()?;
        let collector = FakeProvider::start(|_| Reaction::Answer(200, "", String::new()))?;
        let worker = self.worker(program, &collector)?;
        let spent = watch(sink, before, self.jobs)?;
        // The last jobs are acknowledged and written to the ledger after the relay has them.
        wait_until_empty(&depth)?;
        let cpu = usage::cpu(worker.pid())?;
        let memory = usage::peak_memory(worker.pid())?;
        let cpu_after = self.servers_cpu()?;
        let calls_after = self.store_calls()?;

        println!("  delivered       {spent:>9.0} messages/s");
        println!("  worker CPU      {:>9.0} us/message", micros(cpu, self.jobs));
        for (((name, _), after), before) in self.servers.iter().zip(cpu_after).zip(cpu_before) {
            println!("  {name:<15} {:>9.0} us/message", micros(after.saturating_sub(before), self.jobs));
        }
        if let (Some(before), Some(after)) = (calls_before, calls_after) {
            println!("  store calls     {:>9.2} a message", (after - before) as f64 / self.jobs as f64);
        }
        println!("  worker memory   {:>9.1} MiB at its peak", memory as f64 / 1024.0);
        if matches!(self.telemetry, Telemetry::Traces(_)) {
            drop(worker);
            let spans: usize = collector.calls().iter().map(|call| spans(&call.body)).sum();
            println!("  spans told      {:>9.2} a message", spans as f64 / self.jobs as f64);
        }
        let arrived = sink.count()? - before;
        if arrived != self.jobs {
            println!("  NOTE: {arrived} messages arrived for {} jobs", self.jobs);
        }
        Ok(())
    }

    /// One job through a worker of its own: queues and ledger are older than the jobs, as in any installation but a new one.
    fn warm_up(&self, program: &Path, sink: &SmtpSink, depth: &impl Fn() -> Option<u64>) -> Result<()> {
        let before = sink.count()?;
        let collector = FakeProvider::start(|_| Reaction::Answer(200, "", String::new()))?;
        let _worker = self.worker(program, &collector)?;
        deadline::wait_for("the queue", SOON, depth)?;
        fill(self.queue, 1)?;
        deadline::wait_for("the first message", SOON, || (sink.count().ok()? > before).then_some(()))?;
        wait_until_empty(depth)
    }

    fn worker(&self, program: &Path, collector: &FakeProvider) -> Result<Postrider> {
        let mut config = self.config("warn");
        let mut launch = Postrider::command(["worker"]).program(program);
        if self.telemetry != Telemetry::Off {
            config = format!("{config}[admin]\nlisten = \"127.0.0.1:{}\"\n", ports::free()?);
        }
        if let Telemetry::Traces(share) = self.telemetry {
            launch = launch
                .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url()))
                .env("OTEL_TRACES_SAMPLER", "traceidratio")
                .env("OTEL_TRACES_SAMPLER_ARG", share.to_string());
        }
        launch.config(config).start()
    }

    fn servers_cpu(&self) -> Result<Vec<Duration>> {
        self.servers.iter().map(|(_, pid)| usage::cpu(*pid)).collect()
    }

    /// Scripts that Redis ran, each of which is a round trip.
    fn store_calls(&self) -> Result<Option<u64>> {
        let Some(env) = self.env else { return Ok(None) };
        let text = env.redis_cli(&["INFO", "commandstats"])?;
        let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        Ok(Some(line.and_then(|line| line.split(',').next()).map_or(Ok(0), str::parse)?))
    }

    /// Everything else has its default.
    fn config(&self, level: &str) -> String {
        format!(
            "[queue]\nurl = \"{}\"\n[store]\nurl = \"{}\"\n[log]\nlevel = \"{level}\"\nformat = \"json\"\n\
             [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n\
             connections = {CONNECTIONS}\n{}\n{}",
            self.queue,
            self.store,
            self.port,
            self.limits,
            story::ROUTE
        )
    }
}

/// How many spans an OTLP request holds: below its first field, and there below the second ones.
fn spans(request: &[u8]) -> usize {
    let scopes = fields(request, 1).into_iter().flat_map(|resource| fields(resource, 2));
    scopes.map(|scope| fields(scope, 2).len()).sum()
}

/// The fields of a protobuf message that have this number, all of which are messages. Others are passed over.
fn fields(mut message: &[u8], wanted: u64) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((tag, rest)) = varint(message) {
        let (content, rest) = match tag & 7 {
            0 => (None, varint(rest).map(|(_, rest)| rest)),
            1 => (None, rest.get(8..)),
            2 => match varint(rest).and_then(|(size, rest)| rest.split_at_checked(usize::try_from(size).ok()?)) {
                Some((content, rest)) => (Some(content), Some(rest)),
                None => return found,
            },
            _ => (None, rest.get(4..)),
        };
        found.extend(content.filter(|_| tag >> 3 == wanted));
        let Some(rest) = rest else { return found };
        message = rest;
    }
    found
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().position(|byte| *byte < 128)? + 1;
    let value = bytes[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 127));
    Some((value, &bytes[length..]))
}

/// Messages per second from the first ones seen to the last.
fn watch(sink: &SmtpSink, before: usize, jobs: usize) -> Result<f64> {
    let mut begin: Option<(Instant, usize)> = None;
    let mut seen = 0;
    let mut moved = Instant::now();
    loop {
        let count = sink.count()?.saturating_sub(before);
        let now = Instant::now();
        if count > seen {
            (seen, moved) = (count, now);
            begin.get_or_insert((now, count));
        }
        if let Some((start, first)) = begin.filter(|_| count >= jobs) {
            return Ok(rate(jobs.saturating_sub(first), now - start));
        }
        if now - moved > STALLED {
            bail!("{seen} of {jobs} messages arrived, and no more for {STALLED:?}");
        }
        std::thread::sleep(STEP);
    }
}

fn wait_until_empty(depth: impl Fn() -> Option<u64>) -> Result<()> {
    let empty = || depth().filter(|depth| *depth == 0);
    deadline::wait_for("an empty queue", SOON, empty).with_context(|| format!("it holds {:?}", depth()))?;
    Ok(())
}

fn fill(queue: &str, jobs: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let publisher = Publisher::connect(queue).await?;
        let mut results = std::pin::pin!(publisher.publish_all(stream::iter((0..jobs).map(job))));
        while let Some((_, result)) = results.next().await {
            result?;
        }
        publisher.close().await;
        Ok(())
    })
}

fn job(number: usize) -> Job {
    let line = "All work and no play makes a mail queue as dull as it should be\n";
    story::job_with(|job| {
        job.lane = Lane::Transactional;
        job.to = vec![format!("customer-{number}@dest.example").into()];
        job.text = Some(line.repeat(BODY / line.len()));
    })
}

/// `smtp-source` with its own messages of the same size: the most that this relay takes.
fn source(name: &str, port: u16, messages: usize, more: &[&str]) -> Result<()> {
    let (count, length, sessions) = (messages.to_string(), BODY.to_string(), CONNECTIONS.to_string());
    let target = format!("127.0.0.1:{port}");
    let fixed = ["-s", &sessions, "-m", &count, "-l", &length, "-f", "a@shop.example", "-t", "b@dest.example"];
    let start = Instant::now();
    let args = more.iter().copied().chain(fixed).chain([target.as_str()]);
    let used = usage::watched("smtp-source", args, Duration::from_mins(10))?;
    println!("\n{name}\n  delivered       {:>9.0} messages/s", rate(messages, start.elapsed()));
    println!("  its CPU         {:>9.0} us/message", micros(used.cpu, messages));
    println!("  its memory      {:>9.1} MiB at its peak", used.memory as f64 / 1024.0);
    Ok(())
}

/// Every queue but those of events and refused jobs: what is not yet delivered.
fn broker_depth(env: &TestEnv) -> Option<u64> {
    let depths = env.vhost().queue_depths().ok()?;
    let mut jobs = depths.iter().filter(|(name, _)| name.contains(".jobs.")).peekable();
    jobs.peek()?;
    Some(jobs.map(|(_, depth): (_, &Depth)| depth.total()).sum())
}

fn embedded_depth(file: &Path) -> Option<u64> {
    // Not to be made here: the worker does.
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let asked = "SELECT count(*) FROM message WHERE queue = 'jobs'";
    connection.query_row(asked, (), |row| row.get::<_, i64>(0)).ok().and_then(|count| count.try_into().ok())
}

fn rate(messages: usize, spent: Duration) -> f64 {
    messages as f64 / spent.as_secs_f64()
}

fn micros(spent: Duration, messages: usize) -> f64 {
    spent.as_secs_f64() * 1e6 / messages as f64
}

/// The folder below `target` names how it was built; elsewhere the file itself tells one program from the other.
fn named(program: &Path) -> String {
    let (folder, file) = (program.parent().and_then(Path::file_name), program.file_name());
    [folder, file].into_iter().flatten().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    Rabbit,
    Embedded,
    Slow,
    Limits,
}

/// What was asked for.
struct Wanted {
    jobs: usize,
    /// All of them where absent.
    only: Option<Scene>,
    /// Programs that take turns: two of them are comparable only in one run, on a machine as noisy as it is now.
    workers: Vec<PathBuf>,
    telemetry: Vec<Telemetry>,
}

impl Wanted {
    /// Cargo adds `--bench` of its own.
    fn read(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = args.filter(|arg| arg != "--bench");
        let mut wanted = Self { jobs: JOBS, only: None, workers: Vec::new(), telemetry: vec![Telemetry::Off] };
        while let Some(arg) = args.next() {
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            match (arg.as_str(), value.as_str()) {
                ("--jobs", number) => wanted.jobs = number.parse().context("--jobs needs a number")?,
                ("--only", "rabbitmq") => wanted.only = Some(Scene::Rabbit),
                ("--only", "embedded") => wanted.only = Some(Scene::Embedded),
                ("--only", "slow") => wanted.only = Some(Scene::Slow),
                ("--only", "limits") => wanted.only = Some(Scene::Limits),
                ("--worker", program) => wanted.workers.push(program.into()),
                ("--telemetry", "each") => wanted.telemetry = Telemetry::EACH.to_vec(),
                _ => bail!(
                    "usage: drain [--jobs N] [--only rabbitmq|embedded|slow|limits] [--worker PROGRAM]... [--telemetry each], not {arg} {value}"
                ),
            }
        }
        ensure!(wanted.jobs > 0, "no jobs, no figures");
        if wanted.workers.is_empty() {
            wanted.workers.push(postrider::binary()?);
        }
        Ok(wanted)
    }
}
