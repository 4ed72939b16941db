//! Webhooks: the document and its signature.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use postrider_workers::{
    config::Account,
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    providers::webhook,
};
use serde_json::{Value, json};
use sha2::Sha256;
use wiremock::{Request, ResponseTemplate};

use super::{SECRET, body, delivered, every_example, example, header, job, letter, provider, server, taken};

fn account() -> Account {
    Account::Webhook(webhook::Webhook { secret: format!("whsec_{}", STANDARD.encode(SECRET)).as_str().into() })
}

async fn sent(letter: &OutgoingMessage<'_>) -> Request {
    taken(delivered(account(), letter, ResponseTemplate::new(204)).await, "")
}

/// Verifies as the standard says, with the secret of the account.
#[track_caller]
fn assert_signed(request: &Request) {
    let (id, at) = (header(request, "webhook-id"), header(request, "webhook-timestamp"));
    let signature = header(request, "webhook-signature").strip_prefix("v1,").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{id}.{at}.").as_bytes());
    mac.update(&request.body);
    mac.verify_slice(&STANDARD.decode(signature).unwrap()).unwrap();
    let age = Timestamp::now().as_second() - at.parse::<i64>().unwrap();
    assert!((0..600).contains(&age), "{age}");
}

#[tokio::test]
async fn every_example_goes_out_whole_and_signed() {
    for job in every_example() {
        let letter = letter(&job, None);
        let request = sent(&letter).await;
        assert_signed(&request);
        assert_eq!(header(&request, "webhook-id"), letter.view().key().to_string());
        let document = body(&request);
        assert_eq!(document["type"], "postrider.message.v1");
        let data = &document["data"];
        assert_eq!(data["job_id"], job.id().to_string());
        assert_eq!(data["part"], Value::Null);
        assert_eq!((&data["tenant"], &data["lane"]), (&json!(job.tenant().as_str()), &json!(job.lane().as_str())));
        assert_eq!(data["message_id"], job.message_id());
        assert_eq!(data["subject"], letter.subject());
        assert_eq!((data["text"].as_str(), data["html"].as_str()), (letter.text(), letter.html()));
        assert_eq!((&data["tags"], &data["metadata"]), (&json!(job.tags()), &json!(job.metadata())));
        let headers: Vec<Value> =
            letter.view().headers.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        assert_eq!(data["headers"], json!(headers));
        assert_eq!(data["recipients"].as_array().unwrap().len(), job.recipients().len());
        let files = data["attachments"].as_array().unwrap();
        assert_eq!(files.len(), job.attachments().len());
        for (found, one) in files.iter().zip(job.attachments()) {
            assert_eq!(
                (found["filename"].as_str(), found["content_type"].as_str()),
                (Some(&*one.filename), Some(&*one.content_type))
            );
            assert_eq!(STANDARD.decode(found["content"].as_str().unwrap()).unwrap(), one.content);
            assert_eq!(found["content_id"].as_str(), one.content_id.as_deref());
            assert_eq!(found["inline"], one.content_id.is_some());
        }
    }
}

#[tokio::test]
async fn a_part_names_its_recipients_and_no_other_blind_one() {
    let job = example("copies");
    let request = sent(&letter(&job, Some(&[0, 3]))).await;
    let data = &body(&request)["data"];
    let recipients = json!([
        { "address": "donald@customer.example", "name": "Donald", "field": "to" },
        { "address": "archive@shop.example", "name": null, "field": "bcc" },
    ]);
    assert_eq!((&data["recipients"], &data["part"]), (&recipients, &json!(1)));
    assert_eq!(data["to"].as_array().unwrap().len(), 2);
    assert_eq!(data["cc"], json!([{ "address": "ken@partner.example", "name": "Ken T." }]));
    assert_eq!(data["reply_to"].as_array().unwrap().len(), 2);
    assert!(!String::from_utf8_lossy(&request.body).contains("audit@"));
    assert_ne!(header(&request, "webhook-id"), job.id().to_string());
}

#[tokio::test]
async fn tracking_is_passed_on() {
    let job = job(json!({ "tracking": { "opens": true } }));
    assert_eq!(body(&sent(&letter(&job, None)).await)["data"]["tracking"], json!({ "opens": true, "clicks": false }));
}

#[tokio::test]
async fn the_address_is_used_as_it_is_written() {
    let server = server(ResponseTemplate::new(200)).await;
    let job = example("receipt");
    for path in ["/hook", "/hook/", "/hook?tenant=a/"] {
        let provider = provider(account(), &format!("{}{path}", server.uri()));
        let outcome = provider.deliver(&letter(&job, None), async { true }).await;
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    }
    let seen = server.received_requests().await.unwrap();
    let seen: Vec<String> = seen.iter().map(|request| request.url[url::Position::BeforePath..].to_owned()).collect();
    assert_eq!(seen, ["/hook", "/hook/", "/hook?tenant=a/"]);
}

#[tokio::test]
async fn an_end_that_is_gone_needs_a_person_and_a_wish_for_patience_is_heard() {
    let refusal = async |answer| {
        let (outcome, _) = delivered(account(), &letter(&example("receipt"), None), answer).await;
        let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
        (refusal.class, refusal.retry_after.map(|wait| wait.as_secs()))
    };
    assert_eq!(refusal(ResponseTemplate::new(410)).await, (Class::Config, None));
    assert_eq!(
        refusal(ResponseTemplate::new(429).insert_header("retry-after", "30")).await,
        (Class::Throttled, Some(30))
    );
    assert_eq!(
        refusal(ResponseTemplate::new(503).insert_header("retry-after", "5")).await,
        (Class::Transient, Some(5))
    );
}
