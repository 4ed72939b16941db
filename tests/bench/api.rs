//! How fast one worker empties a full queue into a Web API, one job a call and with shared calls, and what that costs. Prints figures and
//! asserts nothing.
//!
//! `cargo bench -p postrider-tests --bench api -- [--jobs N]`. The API is a small HTTP server inside this program, which answers at once; its cost is not
//! the worker's, but it shares the machine's cores.
#![allow(clippy::print_stdout, reason = "printing is what a benchmark is for")]
#![allow(clippy::cast_precision_loss, reason = "figures for people have few digits")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{Call, FakeProvider, Reaction},
    postrider::{self, Postrider},
    story::{self, SOON},
    test_env::{EnvSpec, Server, TestEnv},
    usage,
};

const JOBS: usize = 10_000;
const BODY: usize = 2_048;
/// A drain is given up when it takes longer.
const LIMIT: Duration = Duration::from_mins(10);

fn main() -> Result<()> {
    let jobs = jobs(std::env::args().skip(1))?;
    println!("{jobs} bulk jobs of {BODY} bytes of text, the same for all, by SendGrid's API");
    let parts = EnvSpec { rabbit: Server::Own, redis: Server::Own, ..EnvSpec::default() };
    let env = TestEnv::start(&parts)?;
    story::declare(&env)?;
    drain(&env, jobs, "one job a call", "batch = false")?;
    drain(&env, jobs, "shared calls, 20 ms of linger", "batch = true")
}

fn jobs(args: impl Iterator<Item = String>) -> Result<usize> {
    let args: Vec<String> = args.filter(|arg| arg != "--bench").collect();
    let jobs = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => JOBS,
        ["--jobs", number] => number.parse().context("--jobs needs a number")?,
        other => bail!("usage: api [--jobs N], not {other:?}"),
    };
    ensure!(jobs > 0, "no jobs, no figures");
    Ok(jobs)
}

fn drain(env: &TestEnv, jobs: usize, name: &str, more: &str) -> Result<()> {
    let api = FakeProvider::start(|_| Reaction::yes())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let list: Vec<Job> = (0..jobs).map(job).collect();
    runtime.block_on(story::publish(&env.amqp_url(), &list))?;
    let config = format!(
        "[queue]\nurl = \"{}\"\n[store]\nurl = \"{}\"\n[log]\nlevel = \"warn\"\nformat = \"json\"\n\
         [transport.api]\nkind = \"sendgrid\"\napi_key = \"a key\"\nbase_url = \"{}\"\n{more}\n\
         [[route]]\nname = \"all\"\nsend = [\"api\"]\n",
        env.amqp_url(),
        env.redis_url(),
        api.url()
    );
    let worker = Postrider::command(["worker"]).program(&postrider::binary()?).config(config).start()?;
    let delivered = |calls: &[Call]| calls.iter().map(|call| call.job_ids().len()).sum::<usize>();
    deadline::wait_for("the first call", SOON, || (!api.calls().is_empty()).then_some(()))?;
    let start = Instant::now();
    let before = delivered(&api.calls());
    // Counting reads every body: seldom, and by the number of calls where that says enough.
    deadline::wait_for("every job", LIMIT, || {
        let calls = api.calls();
        (more == "batch = true" || calls.len() >= jobs).then_some(())?;
        (delivered(&calls) >= jobs).then_some(())
    })?;
    let spent = start.elapsed();
    story::wait_for_depth(env, "postrider.v1.jobs.bulk.00", 0)?;
    let cpu = usage::cpu(worker.pid())?;
    println!("\n{name}");
    println!("  delivered       {:>9.0} messages/s", (jobs - before) as f64 / spent.as_secs_f64());
    println!("  worker CPU      {:>9.0} us/message", cpu.as_secs_f64() * 1e6 / jobs as f64);
    println!("  calls           {:>9} for {jobs} jobs", api.calls().len());
    Ok(())
}

fn job(number: usize) -> Job {
    let line = "All work and no play makes a mail queue as dull as it should be\n";
    story::job_with(|job| {
        job.lane = Lane::Bulk;
        job.to = vec![format!("customer-{number}@dest.example").into()];
        job.text = Some(line.repeat(BODY / line.len()));
    })
}
