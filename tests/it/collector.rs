//! Whatever a collector does, the mail flows, memory stays where it is, and a worker ends within its limit. `POSTRIDER_TEST_LONG` asks for more jobs,
//! and a throughput within a twentieth of that with a sound collector.

use std::time::{Duration, Instant};

use postrider_schemas::{Job, Lane};
use postrider_tests::{
    deadline,
    fake_provider::{FakeProvider, Reaction},
    fault_proxy::{FaultProxy, Faults},
    ports,
    postrider::Postrider,
    story::{self, ROUTE},
    test_env::{EnvSpec, TestEnv},
    usage,
};
use postrider_workers::telemetry::FLUSH_LIMIT;

/// More memory than that with a collector that takes everything is growth. What was not taken would be several times this.
const MEMORY_KIB: u64 = 4 * 1024;
/// What a slow machine may need to end beyond what it needs without telemetry, and beyond the limit of the flush.
const SLACK: Duration = Duration::from_secs(4);
/// Tries for the throughput.
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(240);

/// `ExportTraceServiceResponse { partial_success { rejected_spans: 5, error_message: "full" } }`
const PARTIAL: &str = "\n\u{8}\u{8}\u{5}\u{12}\u{4}full";

struct Run {
    per_second: f64,
    memory_kib: u64,
    end: Duration,
}

fn is_long() -> bool {
    std::env::var_os("POSTRIDER_TEST_LONG").is_some()
}

/// Empties a full queue with a collector at this address, if any.
async fn drain(env: &TestEnv, endpoint: Option<&str>) -> Run {
    let jobs = if is_long() { 20_000 } else { 1_200 };
    let list: Vec<Job> = (0..jobs).map(|n| story::job(Lane::Bulk, &format!("ada-{n}@customer.example"))).collect();
    story::publish(&env.amqp_url(), &list).await.unwrap();
    let before = env.sink().count().unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let mut launch = Postrider::command(["worker"])
        .config(config.replace("level = \"debug\"", "level = \"warn\""))
        .env("OTEL_METRIC_EXPORT_INTERVAL", "500")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200");
    if let Some(endpoint) = endpoint {
        launch = launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    }
    let mut worker = launch.start().unwrap();
    let arrived = |count: usize| move || (env.sink().count().unwrap() >= before + count).then(Instant::now);
    let begun = deadline::wait_for("the first mail", LIMIT, arrived(1)).unwrap();
    let done = deadline::wait_for("all mail", LIMIT, arrived(jobs)).unwrap();
    let memory_kib = usage::peak_memory(worker.pid()).unwrap();
    let stopping = Instant::now();
    worker.terminate().unwrap();
    let status = worker.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(env.sink().count().unwrap(), before + jobs, "each once");
    Run { per_second: jobs as f64 / (done - begun).as_secs_f64(), memory_kib, end: stopping.elapsed() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_absent_silent_unwell_or_full_costs_no_mail_and_no_memory() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let answering = |status, line, body: &'static str| {
        FakeProvider::start(move |_| Reaction::Answer(status, line, body.to_owned())).unwrap()
    };
    let well = answering(200, "", "");
    let (unwell, full) = (answering(503, "Retry-After: 1", ""), answering(429, "Retry-After: 1", ""));
    let partial = answering(200, "Content-Type: application/x-protobuf", PARTIAL);
    let hole = FaultProxy::start(well.url().rsplit(':').next().unwrap().parse().unwrap()).unwrap();
    hole.set(Faults::black_hole());
    let cases = [
        ("absent", format!("http://127.0.0.1:{}", ports::free().unwrap())),
        ("black-holed", format!("http://127.0.0.1:{}", hole.port())),
        ("503", unwell.url()),
        ("429", full.url()),
        ("partial success", partial.url()),
    ];
    // The first run of all makes queues and caches warm.
    let plain_end = drain(&env, None).await.end;
    let usual = drain(&env, Some(&well.url())).await.memory_kib;
    for (name, endpoint) in cases {
        let mut is_quick = false;
        // A machine with other work may be slow for one of the runs: then all again.
        for _ in 0..ROUNDS {
            let off = drain(&env, None).await.per_second;
            let sound = if is_long() { Some(drain(&env, Some(&well.url())).await.per_second) } else { None };
            let run = drain(&env, Some(&endpoint)).await;
            assert!(run.end < plain_end + FLUSH_LIMIT + SLACK, "{name}: the end took {:?}", run.end);
            let more = run.memory_kib.saturating_sub(usual);
            assert!(more < MEMORY_KIB, "{name}: {more} KiB more than the usual {usual} KiB");
            let (of_off, of_sound) = (run.per_second / off, sound.map(|sound| run.per_second / sound));
            let than_sound =
                of_sound.map_or_else(String::new, |ratio| format!(", {ratio:.3} of that with a sound one"));
            println!(
                "collector {name}: {:.0}/s, {of_off:.3} of that without telemetry{than_sound}; {} KiB, {usual} as usual; ended in {:?}",
                run.per_second, run.memory_kib, run.end
            );
            is_quick = of_off >= 0.5 && of_sound.is_none_or(|ratio| ratio >= 0.95);
            if is_quick {
                break;
            }
        }
        assert!(is_quick, "{name}: the throughput suffers");
    }
    assert!(hole.connections() > 0, "nobody tried");
    for api in [&unwell, &full, &partial] {
        assert!(api.calls().iter().any(|call| call.path == "/v1/traces"), "nobody tried");
    }
}
