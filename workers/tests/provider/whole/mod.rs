//! Those who get a message whole: Amazon SES, Mailgun and `SparkPost` its MIME, webhooks the job. Against scripted servers that look at every
//! field of what we send.

mod form;
mod mailgun;
mod secrets;
mod ses;
mod sparkpost;
mod web_identity;
mod webhook;

use std::time::Duration;

use jiff::Timestamp;
use mail_parser::{Message, MessageParser, MimeHeaders as _};
use postrider_schemas::{Job, JobLimits, address::Mailbox, examples, wire};
use postrider_workers::{
    config::{Account, HttpConfig, ProviderConfig},
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    transport::provider::Provider,
};
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, ResponseTemplate, matchers::any};

/// A token that stands for every secret: it must appear where it belongs, and nowhere else.
const SECRET: &str = "s3cr3t-of-the-account";

fn example(name: &str) -> Job {
    let (_, document) = examples::ALL.iter().find(|(other, _)| *other == name).unwrap();
    wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

fn every_example() -> impl Iterator<Item = Job> {
    examples::ALL.iter().map(|(name, _)| example(name))
}

/// A small job with some fields set to other values; `null` takes a field away.
fn job(fields: Value) -> Job {
    let mut document = json!({
        "id": "0190a5c0-7a10-7c3e-9d51-0000000000ff", "from": "The Shop <orders@shop.example>",
        "to": ["ada@customer.example"], "subject": "Hello", "text": "Hello\n",
    });
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    document.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    wire::decode(document.to_string().as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

fn letter<'a>(job: &'a Job, pending: Option<&[u8]>) -> OutgoingMessage<'a> {
    OutgoingMessage::new(job, pending, pending.map(|_| 1), dated()).unwrap()
}

fn dated() -> Timestamp {
    "2026-11-23T10:57:22Z".parse().unwrap()
}

fn http() -> HttpConfig {
    HttpConfig {
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(20),
        answer_max: 64 * 1024,
        connections: 8,
        proxy: None,
        ca_file: None,
    }
}

fn provider(account: Account, base_url: &str) -> Provider {
    // One of several tests is the first; the others find it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ProviderConfig {
        account,
        base_url: base_url.parse().unwrap(),
        http: http(),
        tracking: false,
        batch: true,
        batch_linger: Duration::from_millis(20),
        rate_headers: true,
        answers: postrider_workers::config::shipped_answers(),
    };
    Provider::new(&config).unwrap()
}

/// A server that answers everything alike.
async fn server(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

/// Delivers one letter to a server that answers so, and gives what the server saw.
async fn delivered(
    account: Account,
    letter: &OutgoingMessage<'_>,
    answer: ResponseTemplate,
) -> (Outcome, Vec<Request>) {
    let server = server(answer).await;
    let outcome = provider(account, &server.uri()).deliver(letter, async { true }).await;
    (outcome, server.received_requests().await.unwrap())
}

/// The one request that was made for a message that was taken under this id.
#[track_caller]
fn taken(result: (Outcome, Vec<Request>), id: &str) -> Request {
    let (outcome, mut requests) = result;
    let Outcome::Accepted { receipt, refused } = outcome else { panic!("{outcome:?}") };
    assert_eq!((receipt.answer.text.as_str(), refused.len()), (id, 0));
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].method.as_str(), "POST");
    requests.remove(0)
}

/// Nothing was sent, because the provider cannot carry it; this is why.
#[track_caller]
fn unfit(result: (Outcome, Vec<Request>)) -> String {
    let (outcome, requests) = result;
    assert_eq!(requests.len(), 0);
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.class, Class::Unsupported);
    refusal.answer.text
}

fn header<'a>(request: &'a Request, name: &str) -> &'a str {
    request.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

fn body(request: &Request) -> Value {
    assert_eq!(header(request, "content-type"), "application/json");
    serde_json::from_slice(&request.body).unwrap()
}

fn addresses(list: Option<&mail_parser::Address<'_>>) -> Vec<(Option<String>, String)> {
    let both =
        |one: &mail_parser::Addr<'_>| (one.name().map(str::to_owned), one.address().unwrap_or_default().to_owned());
    list.map(|list| list.iter().map(both).collect()).unwrap_or_default()
}

fn expected(list: &[Mailbox]) -> Vec<(Option<String>, String)> {
    list.iter().map(|one| (one.name().map(str::to_owned), one.address().to_string())).collect()
}

fn same_text(found: Option<String>, wanted: Option<&str>) {
    let plain = |text: &str| text.replace("\r\n", "\n").trim_end_matches('\n').to_owned();
    if let Some(wanted) = wanted {
        assert_eq!(found.as_deref().map(plain), Some(plain(wanted)));
    }
}

/// The MIME that goes out says what the job asks, with all its visible recipients and no blind one.
#[track_caller]
fn assert_says(mime: &[u8], letter: &OutgoingMessage<'_>) {
    let job = letter.job;
    let mail: Message<'_> = MessageParser::default().parse(mime).unwrap();
    assert_eq!(mail.subject().unwrap_or_default(), letter.subject());
    assert_eq!(addresses(mail.from()), expected(std::slice::from_ref(job.from())));
    if !job.to().is_empty() {
        assert_eq!(addresses(mail.to()), expected(job.to()));
    }
    assert_eq!(addresses(mail.cc()), expected(job.cc()));
    assert_eq!(addresses(mail.reply_to()), expected(job.reply_to()));
    assert!(mail.bcc().is_none(), "a Bcc header");
    assert_eq!(format!("<{}>", mail.message_id().unwrap()), job.message_id());
    same_text(mail.body_text(0).map(Into::into).filter(|_| letter.text().is_some()), letter.text());
    same_text(mail.body_html(0).map(Into::into).filter(|_| letter.html().is_some()), letter.html());
    for (name, value) in letter.view().headers {
        let found = mail.header_as(name.clone(), mail_parser::HeaderForm::Text);
        assert!(found.iter().any(|found| found.as_text() == Some(&value)), "{name}: {found:?}");
    }
    assert_eq!(mail.parts.iter().filter(|part| part.attachment_name().is_some()).count(), job.attachments().len());
    for one in job.attachments() {
        let part = mail.parts.iter().find(|part| part.attachment_name() == Some(&one.filename)).unwrap();
        assert_eq!(part.contents(), &one.content[..]);
        assert_eq!(part.content_id(), one.content_id.as_deref());
    }
}
