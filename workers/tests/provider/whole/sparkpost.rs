//! `SparkPost`: what a transmission holds.

use postrider_workers::{
    config::Account,
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    providers::sparkpost,
};
use serde_json::{Value, json};
use wiremock::{Request, ResponseTemplate};

use super::{SECRET, assert_says, body, dated, delivered, every_example, example, header, job, letter, taken, unfit};

fn account(idempotency: bool) -> Account {
    Account::Sparkpost(sparkpost::Sparkpost { api_key: SECRET.into(), subaccount: None, idempotency })
}

fn ok() -> ResponseTemplate {
    let results = json!({ "total_rejected_recipients": 0, "total_accepted_recipients": 1, "id": "1166" });
    ResponseTemplate::new(200).set_body_json(json!({ "results": results }))
}

async fn sent(account: Account, letter: &OutgoingMessage<'_>) -> Request {
    taken(delivered(account, letter, ok()).await, "1166")
}

fn mime(body: &Value) -> &[u8] {
    body["content"]["email_rfc822"].as_str().unwrap().as_bytes()
}

#[tokio::test]
async fn every_example_goes_out_whole() {
    for job in every_example() {
        let letter = letter(&job, None);
        let request = sent(account(false), &letter).await;
        assert_eq!(request.url.path(), "/api/v1/transmissions");
        // Without "Bearer".
        assert_eq!(header(&request, "authorization"), SECRET);
        assert!(request.headers.get("idempotency-key").is_none());
        assert!(request.headers.get("x-msys-subaccount").is_none());
        let body = body(&request);
        assert_says(mime(&body), &letter);
        let mut metadata = json!(job.metadata());
        metadata["postrider_job_id"] = job.id().to_string().into();
        assert_eq!(body["metadata"], metadata);
        for recipient in body["recipients"].as_array().unwrap() {
            let tags = if job.tags().is_empty() { Value::Null } else { json!(job.tags()) };
            assert_eq!(recipient["tags"], tags);
        }
    }
}

#[tokio::test]
async fn each_recipient_sees_the_whole_to_line() {
    let job = example("copies");
    let to = "donald@customer.example,dennis@customer.example";
    let address = |email: &str| json!({ "address": { "email": email, "header_to": to } });
    let whole = body(&sent(account(false), &letter(&job, None)).await);
    let all = [
        "donald@customer.example",
        "dennis@customer.example",
        "ken@partner.example",
        "archive@shop.example",
        "audit@shop.example",
    ];
    assert_eq!(whole["recipients"], json!(all.map(address)));
    let letter = letter(&job, Some(&[1, 3]));
    let part = body(&sent(account(false), &letter).await);
    assert_eq!(part["recipients"], json!([address("dennis@customer.example"), address("archive@shop.example")]));
    assert_says(mime(&part), &letter);
}

#[tokio::test]
async fn blind_recipients_do_not_see_each_other() {
    let job = job(json!({ "to": null, "bcc": ["a@customer.example", "b@customer.example"] }));
    let body = body(&sent(account(false), &letter(&job, None)).await);
    let address = |email: &str| json!({ "address": { "email": email } });
    assert_eq!(body["recipients"], json!([address("a@customer.example"), address("b@customer.example")]));
    assert!(!String::from_utf8_lossy(mime(&body)).contains("customer.example"));
}

#[tokio::test]
async fn options_follow_tracking_and_lane() {
    for (opens, clicks, lane) in
        [(false, false, "transactional"), (true, false, "bulk"), (false, true, "transactional"), (true, true, "bulk")]
    {
        let job = job(json!({ "tracking": { "opens": opens, "clicks": clicks }, "lane": lane }));
        let body = body(&sent(account(false), &letter(&job, None)).await);
        let expected = json!({
            "open_tracking": opens, "initial_open": opens, "click_tracking": clicks, "transactional": lane == "transactional",
        });
        assert_eq!(body["options"], expected);
    }
}

#[tokio::test]
async fn with_idempotency_a_repetition_is_the_same_to_the_byte() {
    let job = example("receipt");
    let first = sent(account(true), &letter(&job, None)).await;
    let later = OutgoingMessage::new(&job, None, None, dated() + jiff::SignedDuration::from_mins(10)).unwrap();
    let second = sent(account(true), &later).await;
    assert_eq!(header(&first, "idempotency-key"), letter(&job, None).view().key().to_string());
    assert_eq!(header(&first, "idempotency-key"), header(&second, "idempotency-key"));
    assert!(first.body == second.body);
    let part = sent(account(true), &letter(&example("copies"), Some(&[0]))).await;
    assert_ne!(header(&part, "idempotency-key"), letter(&example("copies"), None).view().key().to_string());
}

#[tokio::test]
async fn a_subaccount_is_named() {
    let account = Account::Sparkpost(sparkpost::Sparkpost {
        api_key: SECRET.into(),
        subaccount: Some("123".to_owned()),
        idempotency: false,
    });
    let request = sent(account, &letter(&example("receipt"), None)).await;
    assert_eq!(header(&request, "x-msys-subaccount"), "123");
}

#[tokio::test]
async fn braces_of_the_content_are_escaped_and_elsewhere_refused() {
    let written = job(json!({ "subject": "{{a}}", "text": "b {{c}}", "html": "<style>@media{a{b:c}}</style>" }));
    let body = body(&sent(account(false), &letter(&written, None)).await);
    let mail = mail_parser::MessageParser::default().parse(mime(&body)).unwrap();
    assert_eq!(mail.subject(), Some("{{opening_double_curly()}}a{{closing_double_curly()}}"));
    let text = mail.body_text(0).unwrap();
    assert_eq!(text.trim_end(), "b {{opening_double_curly()}}c{{closing_double_curly()}}");
    assert!(mail.body_html(0).unwrap().contains("@media{a{b:c}}"));
    for fields in [
        json!({ "headers": [{ "name": "X-A", "value": "{{a}}" }] }),
        json!({ "headers": [{ "name": "X-MSYS-API", "value": "{}" }] }),
        json!({ "from": { "address": "a@shop.example", "name": "{{a}}" } }),
        json!({ "to": ["zoë@customer.example"] }),
        json!({ "metadata": { "postrider_job_id": "1" } }),
        json!({ "metadata": { "a": "x".repeat(1000), "b": "x".repeat(1000), "c": "x".repeat(1000), "d": "x".repeat(1000),
            "e": "x".repeat(1000), "f": "x".repeat(1000), "g": "x".repeat(1000), "h": "x".repeat(1000), "i": "x".repeat(1000),
            "j": "x".repeat(1000) } }),
    ] {
        let job = job(fields);
        unfit(delivered(account(false), &letter(&job, None), ok()).await);
    }
}

#[tokio::test]
async fn the_sending_limit_is_a_quota() {
    let answer = ResponseTemplate::new(420)
        .set_body_json(json!({ "errors": [{ "message": "Exceed Sending Limit", "code": "2101" }] }));
    let (outcome, _) = delivered(account(false), &letter(&example("receipt"), None), answer).await;
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((refusal.class, refusal.answer.text.as_str()), (Class::Quota, "2101 Exceed Sending Limit"));
}
