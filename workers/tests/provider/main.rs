//! The provider transports against scripted HTTP servers: what goes over the wire, and what each way for a call to end means.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail it")]

mod batches;
mod brevo;
mod calls;
mod heard;
mod mailjet;
mod oracle;
mod postmark;
mod resend;
mod secrets;
mod sendgrid;
mod server;
mod tls;
mod whole;

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, examples, wire};
use postrider_workers::{
    config::{Account, HttpConfig, ProviderConfig, TransportConfig, TransportKind},
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    providers,
    transport::Transport,
};
use serde_json::{Value, json};

/// A key that must not be seen anywhere.
const KEY: &str = "key-Zr8kPq41";
/// The second half of Mailjet's login.
const SECOND_KEY: &str = "key-second-7Hh2";

fn account(kind: &str) -> Account {
    let api_key = KEY.into();
    match kind {
        "sendgrid" => Account::Sendgrid(providers::sendgrid::Sendgrid { api_key }),
        "postmark" => {
            Account::Postmark(providers::postmark::Postmark { api_key, message_stream: Some("news".to_owned()) })
        }
        "resend" => Account::Resend(providers::resend::Resend { api_key }),
        "brevo" => Account::Brevo(providers::brevo::Brevo { api_key }),
        "mailjet" => Account::Mailjet(providers::mailjet::Mailjet { api_key, secret_key: SECOND_KEY.into() }),
        other => panic!("{other}"),
    }
}

fn config(kind: &str, base_url: &str) -> ProviderConfig {
    ProviderConfig {
        account: account(kind),
        base_url: base_url.parse().unwrap(),
        http: HttpConfig {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(20),
            answer_max: 64 * 1024,
            connections: 4,
            proxy: None,
            ca_file: None,
        },
        tracking: false,
        batch: true,
        batch_linger: Duration::from_millis(30),
        rate_headers: true,
        answers: postrider_workers::config::shipped_answers(),
    }
}

fn transport_of(config: ProviderConfig) -> Transport {
    // A second one is refused, and needless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Transport::new(&TransportConfig { name: "provider".to_owned(), kind: TransportKind::Provider(Box::new(config)) })
        .unwrap()
}

fn transport(kind: &str, port: u16) -> Transport {
    transport_of(config(kind, &format!("http://127.0.0.1:{port}")))
}

/// Every example job, with its name.
fn example_jobs() -> Vec<(&'static str, Job)> {
    examples::ALL
        .into_iter()
        .map(|(name, text)| (name, wire::decode(text.as_bytes(), None, &JobLimits::DEFAULT).unwrap()))
        .collect()
}

/// A job with these fields beside or instead of the usual ones.
fn job(fields: Value) -> Job {
    let mut document = json!({
        "id": "0190a5c0-7a10-7c3e-9d51-000000000001",
        "from": "Shop <shop@shop.example>",
        "to": ["ann@dest.example"],
        "subject": "Hello",
        "text": "Hello Ann",
    });
    let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) else { panic!("no object") };
    document.extend(fields);
    let text = serde_json::to_vec(document).unwrap();
    wire::decode(&text, None, &JobLimits::DEFAULT).unwrap()
}

/// One job for each thing that a job can ask for.
fn flag_jobs() -> Vec<(&'static str, Job)> {
    vec![
        ("opens", job(json!({ "tracking": { "opens": true, "clicks": false } }))),
        ("clicks", job(json!({ "tracking": { "opens": false, "clicks": true } }))),
        ("both", job(json!({ "tracking": { "opens": true, "clicks": true } }))),
        ("html only", job(json!({ "text": null, "html": "<p>Hello</p>" }))),
        ("empty body", job(json!({ "text": "" }))),
        ("with copies", job(json!({ "cc": ["C <c@dest.example>"], "bcc": ["b@dest.example"] }))),
        ("only a blind copy", job(json!({ "to": [], "bcc": ["b@dest.example"] }))),
        ("reply", job(json!({ "reply_to": ["Help <help@shop.example>"] }))),
        ("tag and metadata", job(json!({ "tags": ["a-tag"], "metadata": { "order": "4711", "step": "2" } }))),
        ("headers", job(json!({ "headers": [{ "name": "X-A", "value": "1" }, { "name": "X-B", "value": "2" }] }))),
        (
            "unsubscribe",
            job(
                json!({ "list_unsubscribe": { "url": "https://shop.example/u", "mailto": "u@shop.example", "one_click": true } }),
            ),
        ),
        (
            "file",
            job(
                json!({ "attachments": [{ "filename": "a b.txt", "content_type": "text/plain", "content": "aGVsbG8=" }] }),
            ),
        ),
        (
            "shown file",
            job(json!({
                "html": "<img src=\"cid:pic\">",
                "attachments": [{ "filename": "a.png", "content_type": "image/png", "content": "aGVsbG8=", "content_id": "pic" }],
            })),
        ),
    ]
}

fn letter(job: &Job) -> OutgoingMessage<'_> {
    OutgoingMessage::new(job, None, None, Timestamp::UNIX_EPOCH).unwrap()
}

async fn deliver(transport: &Transport, job: &Job) -> Outcome {
    transport.deliver(&letter(job), async { true }).await
}

/// The class of a refusal.
#[track_caller]
fn refused(outcome: &Outcome) -> Class {
    match outcome {
        Outcome::Refused { refusal, recipients } if recipients.is_empty() => refusal.class,
        other => panic!("{other:?}"),
    }
}

/// What the provider called the message.
#[track_caller]
fn accepted(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Accepted { receipt, refused } if refused.is_empty() => &receipt.answer.text,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_unknown(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
}
