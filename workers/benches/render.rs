//! What a template costs, in processor time: rendered in the worker, and in a process of its own. Prints figures and asserts nothing.
//!
//! `cargo bench -p postrider-workers --bench render`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may fail, and prints")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::{fs, time::Instant};

use postrider_schemas::{Job, JobLimits, JobV1, wire::TemplateV1};
use postrider_workers::render::Renderer;
use serde_json::json;

const ROUNDS: u32 = 2000;

fn job(source: &str) -> Job {
    let variables = json!({ "name": "Ada Byron", "order": { "number": 4711, "items": ["Lamp", "Bulb & socket"] } });
    JobV1 {
        from: "a@shop.example".into(),
        to: vec!["b@dest.example".into()],
        subject: "Order {{ order.number }}".to_owned(),
        template: Some(TemplateV1 { text: Some(source.to_owned()), html: Some(format!("<p>{source}</p>")) }),
        variables: variables.as_object().unwrap().clone(),
        ..JobV1::default()
    }
    .parse(&JobLimits::DEFAULT)
    .unwrap()
}

/// Processor time of a process and its threads, in microseconds.
fn spent(process: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).unwrap();
    tasks.map(|task| of(task.unwrap()).split(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>() / 1000
}

/// The one process that this one started.
fn child() -> Option<String> {
    let list = fs::read_to_string("/proc/thread-self/children").ok()?;
    list.split_whitespace().next().map(str::to_owned)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let renderer = Renderer::new(env!("CARGO_BIN_EXE_postrider").into());
    let text = "Hello {{ name }},\nyour order {{ order.number }} is on its way.\n";
    let cases = [
        ("plain, in the worker", job(text)),
        ("plain, in a process", job(&format!("{{# #}}{text}"))),
        ("a loop, in a process", job(&format!("{text}{{% for one in order.items %}}- {{{{ one }}}}\n{{% endfor %}}"))),
    ];
    for (name, job) in &cases {
        for _ in 0..100 {
            renderer.render(job).await.ok().unwrap();
        }
        let children = || child().map_or(0, |child| spent(&child));
        let (here, there, begun) = (spent("self"), children(), Instant::now());
        for _ in 0..ROUNDS {
            renderer.render(job).await.ok().unwrap();
        }
        let each = |micros: u64| micros as f64 / f64::from(ROUNDS);
        println!(
            "{name}: {:.1} us of processor time in the worker, {:.1} in the process, {:.1} us from call to answer",
            each(spent("self") - here),
            each(children().saturating_sub(there)),
            begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS),
        );
    }
}
