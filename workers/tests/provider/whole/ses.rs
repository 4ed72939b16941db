//! Amazon SES: what the request holds. Whether its signature is right is for moto to say, in the stories.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_workers::{
    config::{Account, SesAccount, SesCredentials},
    policy::outcome::{Class, Outcome},
};
use serde_json::{Value, json};
use wiremock::{Request, ResponseTemplate};

use super::{SECRET, assert_says, body, delivered, every_example, example, header, job, letter, taken, unfit};

fn account() -> SesAccount {
    SesAccount {
        region: "eu-central-1".to_owned(),
        credentials: SesCredentials::Static {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: SECRET.into(),
            session_token: None,
        },
        configuration_set: None,
        tracking_configuration_set: None,
    }
}

fn ok() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({ "MessageId": "0107-1" }))
}

async fn sent(account: SesAccount, letter: &postrider_workers::message::outgoing::OutgoingMessage<'_>) -> Request {
    taken(delivered(Account::Ses(account), letter, ok()).await, "0107-1")
}

fn mime(body: &Value) -> Vec<u8> {
    STANDARD.decode(body["Content"]["Raw"]["Data"].as_str().unwrap()).unwrap()
}

fn tag(name: &str, value: &str) -> Value {
    json!({ "Name": name, "Value": value })
}

#[tokio::test]
async fn every_example_goes_out_whole() {
    for job in every_example() {
        let letter = letter(&job, None);
        let request = sent(account(), &letter).await;
        assert_eq!(request.url.path(), "/v2/email/outbound-emails");
        let body = body(&request);
        assert_says(&mime(&body), &letter);
        let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["Content", "Destination", "EmailTags"]);
        assert_eq!(body["EmailTags"][0], tag("postrider_job_id", &job.id().to_string()));
    }
}

#[tokio::test]
async fn the_request_is_signed_over_host_date_and_type() {
    let job = example("receipt");
    let request = sent(account(), &letter(&job, None)).await;
    let authorization = header(&request, "authorization");
    let date = header(&request, "x-amz-date");
    let scope = format!("Credential=AKIDEXAMPLE/{}/eu-central-1/ses/aws4_request", &date[..8]);
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 ") && authorization.contains(&scope), "{authorization}");
    assert!(authorization.contains("SignedHeaders=content-type;host;x-amz-date, Signature="), "{authorization}");
    assert!(!authorization.contains(SECRET) && request.headers.get("x-amz-security-token").is_none());
}

#[tokio::test]
async fn a_session_token_is_sent_and_signed() {
    let credentials = SesCredentials::Static {
        access_key_id: "ASIAEXAMPLE".to_owned(),
        secret_access_key: SECRET.into(),
        session_token: Some("the-session-token".into()),
    };
    let job = example("receipt");
    let request = sent(SesAccount { credentials, ..account() }, &letter(&job, None)).await;
    assert_eq!(header(&request, "x-amz-security-token"), "the-session-token");
    assert!(header(&request, "authorization").contains("content-type;host;x-amz-date;x-amz-security-token"));
}

#[tokio::test]
async fn a_part_goes_to_its_recipients_and_shows_them_all() {
    let job = example("copies");
    let whole = body(&sent(account(), &letter(&job, None)).await);
    let destination = json!({
        "ToAddresses": ["donald@customer.example", "dennis@customer.example"],
        "CcAddresses": ["ken@partner.example"],
        "BccAddresses": ["archive@shop.example", "audit@shop.example"],
    });
    assert_eq!(whole["Destination"], destination);
    let letter = letter(&job, Some(&[1, 3]));
    let part = body(&sent(account(), &letter).await);
    let destination = json!({ "ToAddresses": ["dennis@customer.example"], "BccAddresses": ["archive@shop.example"] });
    assert_eq!(part["Destination"], destination);
    assert_says(&mime(&part), &letter);
}

#[tokio::test]
async fn tags_and_metadata_become_message_tags_where_they_may() {
    let newsletter = body(&sent(account(), &letter(&example("newsletter"), None)).await);
    let expected = json!([
        tag("postrider_job_id", "0190a5c0-7a10-7c3e-9d51-000000000003"),
        tag("tag_1", "newsletter"),
        tag("tag_2", "2026-w48"),
        tag("campaign", "lamps"),
    ]);
    assert_eq!(newsletter["EmailTags"], expected);
    for fields in [
        json!({ "tags": ["two words"] }),
        json!({ "metadata": { "a.b": "1" } }),
        json!({ "metadata": { "a": "Größe" } }),
        json!({ "metadata": { "a": "" } }),
        json!({ "metadata": { "a": "x".repeat(257) } }),
        json!({ "metadata": { "postrider_job_id": "1" } }),
        json!({ "tags": ["a"], "metadata": { "tag_1": "1" } }),
    ] {
        let job = job(fields);
        let why = unfit(delivered(Account::Ses(account()), &letter(&job, None), ok()).await);
        assert!(why.starts_with("does not take "), "{why}");
    }
}

#[tokio::test]
async fn the_configuration_set_is_that_of_the_account_or_of_tracking() {
    let (plain, tracked) = (job(json!({})), job(json!({ "tracking": { "opens": true } })));
    let clicks = job(json!({ "tracking": { "clicks": true } }));
    let both = SesAccount {
        configuration_set: Some("all".to_owned()),
        tracking_configuration_set: Some("tracked".to_owned()),
        ..account()
    };
    let set =
        async |account: SesAccount, job| body(&sent(account, &letter(job, None)).await)["ConfigurationSetName"].clone();
    assert_eq!(set(both.clone(), &plain).await, "all");
    assert_eq!(set(both.clone(), &tracked).await, "tracked");
    assert_eq!(set(both, &clicks).await, "tracked");
    assert_eq!(set(SesAccount { configuration_set: Some("all".to_owned()), ..account() }, &tracked).await, "all");
    assert_eq!(set(account(), &plain).await, Value::Null);
}

#[tokio::test]
async fn what_it_cannot_carry_is_found_before_anything_is_sent() {
    for fields in [
        json!({ "headers": [{ "name": "X-SES-Configuration-Set", "value": "other" }] }),
        json!({ "to": ["zoë@customer.example"] }),
    ] {
        let job = job(fields);
        unfit(delivered(Account::Ses(account()), &letter(&job, None), ok()).await);
    }
}

#[tokio::test]
async fn a_throttle_with_400_is_no_refusal_of_the_message() {
    let answer = ResponseTemplate::new(400)
        .insert_header("x-amzn-errortype", "ThrottlingException:")
        .set_body_json(json!({ "message": "Maximum sending rate exceeded." }));
    let (outcome, _) = delivered(Account::Ses(account()), &letter(&example("receipt"), None), answer).await;
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((refusal.class, refusal.answer.code), (Class::Throttled, Some(400)));
}
