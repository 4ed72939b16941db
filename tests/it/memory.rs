//! Large jobs that are within all limits, and a worker with the memory that the chart gives it: nothing is killed, everything arrives, and small mail
//! does not wait for the large.

use std::time::{Duration, Instant};

use postrider_schemas::{Job, Lane, wire::AttachmentV1};
use postrider_tests::{
    deadline,
    folder::Folder,
    memory_limit::MemoryLimit,
    postrider::{self, Postrider},
    say_skipped,
    sink::{Options, SinkFault, SmtpSink},
    story,
    test_env::{EnvSpec, TestEnv},
    usage,
};

/// What the chart gives a worker.
const LIMIT: u64 = 512 << 20;
const LARGE: usize = 60;
const SMALL: usize = 200;

/// A job of 9.2 MB on the wire.
fn large(n: usize) -> Job {
    story::job_with(|job| {
        job.tenant = Some("large".to_owned());
        job.lane = Lane::ALL[n % 2];
        job.to = vec![format!("large-{n}@dest.example").as_str().into()];
        job.attachments = vec![AttachmentV1 {
            filename: "plan.pdf".to_owned(),
            content_type: "application/pdf".to_owned(),
            content: "QUJD".repeat(2_300_000),
            content_id: None,
        }];
    })
}

fn small(n: usize) -> Job {
    story::job(Lane::ALL[n % 2], &format!("small-{n}@dest.example"))
}

fn config(queue: &str, store: &str, small: &SmtpSink, large: &SmtpSink, more: &str) -> String {
    let relay = format!(
        "[transport.heavy]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\nport = {}\n\
         [[route]]\nname = \"large\"\nsend = [\"heavy\"]\nwhen = {{ tenants = [\"large\"] }}\n{}",
        large.port(),
        story::ROUTE
    );
    let config = story::config(queue, store, small.port(), &relay);
    // As it is shipped.
    config
        .replace("lease = \"2s\"", "lease = \"60s\"")
        .replace("transactional = 32\nbulk = 32\n", &format!("transactional = 128\nbulk = 128\n{more}"))
}

/// Half of the small ones, all large ones, and the other half behind them.
async fn story(name: &str, queue: &str, store: &str) {
    let (relay, heavy) = (SmtpSink::start(Options::default()).unwrap(), {
        let counting = Options { store: false, faults: vec![SinkFault::LateData(1)], ..Options::default() };
        SmtpSink::start(counting).unwrap()
    });
    let group = MemoryLimit::new(name, LIMIT);
    let folder = Folder::new("limited").unwrap();
    let (program, more) = match &group {
        Some(group) => (group.script(&postrider::binary().unwrap(), &folder).unwrap(), String::new()),
        // Without a limit of the system there is the same one by a setting, and the peak is looked at all the same.
        None => (postrider::binary().unwrap(), format!("memory = \"{LIMIT}\"\n")),
    };
    let config = config(queue, store, &relay, &heavy, &more);
    // All of it waits when the worker begins: it is slower to publish than to deliver.
    let begun = Instant::now();
    let mut jobs: Vec<Job> = (0..SMALL / 2).map(small).collect();
    jobs.extend((0..LARGE).map(large));
    jobs.extend((SMALL / 2..SMALL).map(small));
    story::publish(queue, &jobs).await.unwrap();
    drop(jobs);
    let published = begun.elapsed();
    let begun = Instant::now();
    let mut worker = Postrider::command(["worker"]).config(config.clone()).program(&program).start().unwrap();
    deadline::wait_for("the small ones", Duration::from_secs(180), || (relay.count().ok()? >= SMALL).then_some(()))
        .unwrap();
    let (small_in, then) = (begun.elapsed(), heavy.count().unwrap());
    deadline::wait_for("the large ones", Duration::from_secs(240), || (heavy.count().ok()? >= LARGE).then_some(()))
        .unwrap();
    let (all_in, peak) = (begun.elapsed(), usage::peak_memory(worker.pid()).unwrap());
    println!(
        "{name}: {LARGE} jobs of 9.2 MB and {SMALL} small ones, published in {published:.1?}: the small ones there after \
         {small_in:.1?} with {then} of the large, all after {all_in:.1?}; peak {} MiB of {}, limit by {}",
        peak >> 10,
        LIMIT >> 20,
        if group.is_some() { "control group" } else { "setting" }
    );
    assert!(worker.is_running().unwrap(), "{}", worker.stderr());
    assert!(peak < LIMIT >> 10, "{peak} KiB");
    // Those behind the large ones are read only after them. In the order of the queue all but the few that are worked on would be through by then.
    assert!(then < LARGE * 4 / 5, "small mail waited for {then} large ones");
    let (small, large) = (relay.count().unwrap(), heavy.count().unwrap());
    assert_eq!((small, large), (SMALL, LARGE), "each once");
    drop(worker);
    for rest in ["dead", "hold"] {
        assert_eq!(story::rest(rest, &config).unwrap().len(), 0);
    }
}

/// Six hundred megabytes of jobs keep a machine busy for minutes.
fn is_long(test: &str) -> bool {
    let is_long = std::env::var_os("POSTRIDER_TEST_LONG").is_some();
    if !is_long {
        say_skipped(test, "it takes minutes: POSTRIDER_TEST_LONG=1 runs it");
    }
    is_long
}

#[tokio::test(flavor = "multi_thread")]
async fn large_jobs_take_turns_on_a_broker_and_small_ones_pass() {
    if !is_long("large jobs on a broker") {
        return;
    }
    let env = TestEnv::start(&EnvSpec { sink: None, ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    story("rabbitmq", &env.amqp_url(), &env.redis_url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_jobs_take_turns_on_a_file_and_small_ones_pass() {
    if !is_long("large jobs on a file") {
        return;
    }
    let folder = Folder::new("memory").unwrap();
    let file = format!("embedded:{}", folder.path().join("postrider.db").display());
    story("embedded", &file, &file).await;
}
