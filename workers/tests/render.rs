//! Templates in processes of their own: what they make, what breaks a limit, and that this costs nobody else anything.

#![allow(clippy::unwrap_used, reason = "helpers stand outside of #[test] functions, and may fail like them")]

#[path = "../../tests/src/bombs.rs"]
mod bombs;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use postrider_schemas::{Job, JobLimits, JobV1, wire::TemplateV1};
use postrider_workers::{
    message::{ComposeError, outgoing::OutgoingMessage, template::Rendered},
    render::{NotRendered, Renderer},
};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A template that is neither plain nor bad.
const PROGRAM: &str = "{% for one in x %}{{ one }};{% endfor %}";

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_postrider").into()
}

fn job_of(tenant: &str, source: &str, variables: Value) -> Job {
    let Value::Object(variables) = variables else { panic!("not an object") };
    JobV1 {
        tenant: Some(tenant.to_owned()),
        from: "a@shop.example".into(),
        to: vec!["b@dest.example".into()],
        subject: "Hello".to_owned(),
        template: Some(TemplateV1 { text: Some(source.to_owned()), html: None }),
        variables,
        ..JobV1::default()
    }
    .parse(&JobLimits::DEFAULT)
    .unwrap_or_else(|error| panic!("{error}"))
}

fn job(source: &str) -> Job {
    job_of("shop", source, json!({ "x": ["a", "b"] }))
}

fn text_of(job: &Job, rendered: Rendered<'_>) -> String {
    OutgoingMessage::rendered(job, None, None, jiff::Timestamp::UNIX_EPOCH, rendered).text().unwrap().to_owned()
}

async fn text(renderer: &Renderer, job: &Job) -> String {
    match renderer.render(job).await {
        Ok(texts) => text_of(job, texts),
        Err(error) => panic!("{error:?}"),
    }
}

#[track_caller]
fn limit(result: Result<Rendered<'_>, NotRendered>, name: &str) -> String {
    match result {
        Err(NotRendered::Never(error)) if error.is_limit() => error.to_string(),
        Err(error) => panic!("{name}: {error:?}"),
        Ok(_) => panic!("{name} was rendered"),
    }
}

/// A program that notes each of its starts and then is the real one, or something else.
fn counting(folder: &Path, then: &str) -> PathBuf {
    let path = folder.join("counting");
    let starts = folder.join("starts");
    fs::write(&path, format!("#!/bin/sh\necho >> {}\n{then}\n", starts.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn starts(folder: &Path) -> usize {
    fs::read_to_string(folder.join("starts")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn what_is_plain_takes_no_process_and_all_else_the_same_one() {
    let folder = tempfile::tempdir().unwrap();
    let real = format!("exec {} \"$@\"", program().display());
    let renderer = Renderer::new(counting(folder.path(), &real));
    assert_eq!(text(&renderer, &job_of("shop", "Hi {{ x|upper }}", json!({ "x": "é" }))).await, "Hi É");
    assert_eq!(starts(folder.path()), 0);
    for _ in 0..20 {
        assert_eq!(text(&renderer, &job(PROGRAM)).await, "a;b;");
    }
    assert_eq!(starts(folder.path()), 1);
    let error = renderer.render(&job("{% if nobody %}{% endif %}")).await.err();
    assert!(matches!(error, Some(NotRendered::Never(ComposeError::Template { part: "text", line: Some(1), .. }))));
    assert_eq!(starts(folder.path()), 1, "a template that is wrong costs no process");
    let large = json!({ "x": vec!["y".repeat(500_000); 2] });
    assert_eq!(text(&renderer, &job_of("shop", PROGRAM, large)).await.len(), 1_000_002);
}

#[tokio::test]
async fn each_bomb_takes_its_own_process_at_most_and_is_refused_as_a_limit() {
    for bomb in bombs::seen_in_the_source() {
        let mut document = postrider_schemas::JobV1::from(&job("x"));
        document.template = Some(TemplateV1 { text: Some(bomb.source), html: None });
        let error = document.parse(&JobLimits::DEFAULT).unwrap_err().to_string();
        assert!(error.starts_with("field `template.text`: "), "{}: {error}", bomb.name);
    }
    let renderer = Renderer::new(program());
    for bomb in bombs::found_out_by_running() {
        let reason = limit(renderer.render(&job(&bomb.source)).await, bomb.name);
        println!("{}: {reason}", bomb.name);
        assert_eq!(text(&renderer, &job(PROGRAM)).await, "a;b;", "after {}", bomb.name);
    }
}

#[tokio::test]
async fn a_copy_of_a_bomb_is_refused_without_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let real = format!("exec {} \"$@\"", program().display());
    let renderer = Renderer::new(counting(folder.path(), &real));
    let bomb = job(&bombs::found_out_by_running()[0].source);
    let copies = futures_util::future::join_all((0..20).map(|_| async {
        loop {
            match renderer.render(&bomb).await {
                // No turn for it within a second: it comes back.
                Err(NotRendered::NotNow) => {}
                result => return limit(result, "a copy"),
            }
        }
    }));
    let reasons = copies.await;
    assert!(reasons.iter().all(|reason| *reason == reasons[0]), "{reasons:?}");
    assert_eq!(starts(folder.path()), 1);
}

#[tokio::test]
async fn a_tenant_with_bombs_leaves_a_process_to_others() {
    let renderer = Arc::new(Renderer::new(program()));
    let bombs: Vec<_> = (0..8)
        .map(|n| {
            let (renderer, source) = (Arc::clone(&renderer), bombs::found_out_by_running()[0].source.clone());
            tokio::spawn(async move {
                let job = job_of("hostile", &format!("{n}{source}"), json!({ "x": [] }));
                renderer.render(&job).await.is_ok()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    for n in 0..50 {
        let job = job_of("shop", PROGRAM, json!({ "x": [n] }));
        assert_eq!(text(&renderer, &job).await, format!("{n};"));
    }
    assert!(!bombs.iter().all(tokio::task::JoinHandle::is_finished), "they were at it meanwhile");
    for bomb in bombs {
        assert!(!bomb.await.unwrap());
    }
}

#[tokio::test]
async fn processes_that_are_ended_from_outside_are_no_fault_of_the_template_until_it_happens_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    // Greets, takes something, and is killed.
    let renderer = Renderer::new(counting(folder.path(), "printf 'render 1'; read -r line; kill -9 $$"));
    // The line that is read ends with the source.
    let innocent = job("{% if x %}\n{% endif %}");
    assert_eq!(renderer.render(&innocent).await.err(), Some(NotRendered::NotNow));
    let reason = limit(renderer.render(&innocent).await, "the third process");
    assert!(reason.contains("signal 9"), "{reason}");
    assert_eq!(starts(folder.path()), 3);
}

#[tokio::test]
async fn a_program_that_is_no_render_process_is_not_asked() {
    let folder = tempfile::tempdir().unwrap();
    for then in ["echo hello, this is something else", "exit 1", "exec /no/such/file"] {
        let renderer = Renderer::new(counting(folder.path(), then));
        assert_eq!(renderer.render(&job(PROGRAM)).await.err(), Some(NotRendered::NotNow), "{then}");
    }
    let renderer = Renderer::new("/no/such/file".into());
    assert_eq!(renderer.render(&job(PROGRAM)).await.err(), Some(NotRendered::NotNow));
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_no_answer_to_the_next_one() {
    let renderer = Renderer::new(program());
    let slow = job("{% for a in range(60000) %}{% endfor %}slow");
    for n in 0..20 {
        let _ = timeout(Duration::from_millis(1), renderer.render(&slow)).await;
        let job = job_of("shop", PROGRAM, json!({ "x": [n] }));
        assert_eq!(text(&renderer, &job).await, format!("{n};"));
    }
}

#[test]
fn a_render_process_bounds_itself_and_ends_with_its_standard_input() {
    let mut child = std::process::Command::new(program())
        .arg("render")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut greeting = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut greeting).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    for (name, limit) in [("Max data size", "167772160"), ("Max core file size", "0")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line.trim_start_matches(name).split_whitespace().next(), Some(limit), "{limits}");
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
