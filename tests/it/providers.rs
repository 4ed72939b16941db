//! The vendors' own documents judge what we send them.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{Job, JobLimits, examples, wire};
use postrider_tests::{http::Endpoint, prism::Prism, say_skipped};
use postrider_workers::{
    config::{Account, HttpConfig, ProviderConfig, TransportConfig, TransportKind},
    message::outgoing::OutgoingMessage,
    providers::{resend, sendgrid},
    transport::Transport,
};
use serde_json::{Value, json};

fn transport(account: Account, port: u16, batch: bool) -> Transport {
    // A second one is refused, and needless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let provider = ProviderConfig {
        account,
        base_url: format!("http://127.0.0.1:{port}").parse().unwrap(),
        http: HttpConfig {
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            answer_max: 1024 * 1024,
            connections: 1,
            proxy: None,
            ca_file: None,
        },
        tracking: false,
        batch,
        batch_linger: Duration::from_millis(50),
        rate_headers: true,
        answers: postrider_workers::config::shipped_answers(),
    };
    Transport::new(&TransportConfig { name: "judged".to_owned(), kind: TransportKind::Provider(Box::new(provider)) })
        .unwrap()
}

/// A job with these fields beside or instead of the usual ones.
fn job(number: usize, fields: Value) -> Job {
    let mut document = json!({
        "id": format!("0190a5c0-7a10-7c3e-9d51-0000000001{number:02}"),
        "from": "Shop <shop@shop.example>",
        "to": [format!("r{number}@dest.example")],
        "subject": "Hello",
        "text": "Hello Ann",
    });
    let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) else { panic!("no object") };
    document.extend(fields);
    wire::decode(&serde_json::to_vec(document).unwrap(), None, &JobLimits::DEFAULT).unwrap()
}

/// Every example, then one job for each thing that a job can ask for.
fn jobs() -> Vec<Job> {
    let examples =
        examples::ALL.into_iter().map(|(_, text)| wire::decode(text.as_bytes(), None, &JobLimits::DEFAULT).unwrap());
    let file = |more: Value| {
        let mut file = json!({ "filename": "a.png", "content_type": "image/png", "content": "aGVsbG8=" });
        file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([file])
    };
    let flags = [
        json!({ "tracking": { "opens": true, "clicks": false } }),
        json!({ "tracking": { "opens": false, "clicks": true } }),
        json!({ "text": null, "html": "<p>Hello</p>" }),
        json!({ "text": "" }),
        json!({ "cc": ["C <c@dest.example>"], "bcc": ["b@dest.example"] }),
        json!({ "to": [], "bcc": ["b@dest.example"] }),
        json!({ "reply_to": ["Help <help@shop.example>"] }),
        json!({ "tags": ["a-tag", "b-tag"], "metadata": { "order": "4711" } }),
        json!({ "headers": [{ "name": "X-A", "value": "1" }] }),
        json!({ "list_unsubscribe": { "url": "https://shop.example/u", "one_click": true } }),
        json!({ "attachments": file(json!({})) }),
        json!({ "html": "<img src=\"cid:pic\">", "attachments": file(json!({ "content_id": "pic" })) }),
    ];
    examples.chain(flags.into_iter().enumerate().map(|(n, fields)| job(n, fields))).collect()
}

/// Bulk jobs with the same content.
fn bulk() -> Vec<Job> {
    (20..60).map(|n| job(n, json!({ "lane": "bulk", "tags": ["news"], "metadata": { "n": n.to_string() } }))).collect()
}

async fn deliver(transport: &Transport, job: &Job) {
    let letter = OutgoingMessage::new(job, None, None, Timestamp::UNIX_EPOCH).unwrap();
    // The judge's answers are made up; the judgement is what counts.
    let _ = transport.deliver(&letter, async { true }).await;
}

/// Sends every job alone, then forty together, and looks at what was said of each request.
async fn judge(name: &str, document: &str, paths: [&str; 2], account: Account) {
    let prism = match Prism::start(document) {
        Ok(prism) => prism,
        Err(why) => return say_skipped(name, &why),
    };
    let assert_good = |what: &str| {
        let judgements = prism.judgements();
        for one in &judgements {
            assert!((200..300).contains(&one.status) && one.violations.is_none(), "{name}, {what}: {one:#?}");
        }
        judgements.into_iter().map(|one| one.target).collect::<Vec<_>>()
    };
    let alone = transport(account.clone(), prism.port(), false);
    for (n, job) in jobs().iter().enumerate() {
        deliver(&alone, job).await;
        assert_eq!(assert_good(&format!("job {n}")), [format!("POST {}", paths[0])], "{name}, job {n}");
    }
    let together = transport(account, prism.port(), true);
    let jobs = bulk();
    futures_util::future::join_all(jobs.iter().map(|job| deliver(&together, job))).await;
    let targets = assert_good("forty jobs");
    assert!(!targets.is_empty() && targets.len() < jobs.len(), "{name}: {} calls", targets.len());
    assert!(targets.iter().all(|target| *target == format!("POST {}", paths[1])), "{name}: {targets:?}");

    // A judge that finds nothing wrong with anything would prove nothing.
    let (status, _) = Endpoint { address: format!("127.0.0.1:{}", prism.port()), credentials: String::new() }
        .request("POST", paths[0], "{\"from\":5}")
        .unwrap();
    assert!(!(200..300).contains(&status), "{name}: the judge let nonsense pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn sendgrids_document_finds_nothing_wrong_with_our_requests() {
    let account = Account::Sendgrid(sendgrid::Sendgrid { api_key: "SG.key".into() });
    judge("sendgrid", "sendgrid_mail_v3.yaml", ["/v3/mail/send", "/v3/mail/send"], account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resends_document_finds_nothing_wrong_with_our_requests() {
    let account = Account::Resend(resend::Resend { api_key: "re_key".into() });
    judge("resend", "resend.yaml", ["/emails", "/emails/batch"], account).await;
}
