//! Mailgun: what the forms hold.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_workers::{
    config::Account,
    message::outgoing::OutgoingMessage,
    policy::outcome::{Class, Outcome},
    providers::mailgun,
};
use serde_json::{Value, json};
use wiremock::{Request, ResponseTemplate};

use super::{
    SECRET, assert_says, delivered, every_example, example,
    form::{Part, parts, values},
    header, job, letter, taken, unfit,
};

const ID: &str = "<20261123.1@mg.shop.example>";

fn account() -> Account {
    Account::Mailgun(mailgun::Mailgun { api_key: SECRET.into(), domain: "mg.shop.example".to_owned() })
}

fn ok() -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(json!({ "id": "1", "message": "Queued. Thank you." }))
}

async fn sent(letter: &OutgoingMessage<'_>) -> Request {
    taken(delivered(account(), letter, ok()).await, "1")
}

#[track_caller]
fn file<'a>(parts: &'a [Part], name: &str) -> &'a Part {
    let mut found = parts.iter().filter(|part| part.name == name && part.filename.is_some());
    let one = found.next().unwrap();
    assert!(found.next().is_none());
    one
}

#[tokio::test]
async fn every_example_goes_out_whole_as_mime() {
    for job in every_example() {
        let letter = letter(&job, None);
        let request = sent(&letter).await;
        assert_eq!(request.url.path(), "/v3/mg.shop.example/messages.mime");
        let credentials = STANDARD.encode(format!("api:{SECRET}"));
        assert_eq!(header(&request, "authorization"), format!("Basic {credentials}"));
        let parts = parts(&request);
        let all: Vec<String> = letter.recipients().into_iter().map(ToString::to_string).collect();
        assert_eq!(values(&parts, "to"), all);
        assert_eq!(values(&parts, "o:tag"), job.tags());
        assert_eq!(values(&parts, "v:postrider_job_id"), [job.id().to_string()]);
        for (key, value) in job.metadata() {
            assert_eq!(values(&parts, &format!("v:{key}")), [value]);
        }
        let message = file(&parts, "message");
        assert_eq!(message.content_type.as_deref(), Some("message/rfc822"));
        assert_says(&message.content, &letter);
    }
}

#[tokio::test]
async fn a_part_goes_to_its_recipients_and_shows_them_all() {
    let job = example("copies");
    let letter = letter(&job, Some(&[2, 4]));
    let parts = parts(&sent(&letter).await);
    assert_eq!(values(&parts, "to"), ["ken@partner.example", "audit@shop.example"]);
    assert_says(&file(&parts, "message").content, &letter);
}

#[tokio::test]
async fn tracking_is_said_in_every_case() {
    for (opens, clicks, expected) in [
        (false, false, ["no", "no"]),
        (true, false, ["yes", "no"]),
        (false, true, ["no", "htmlonly"]),
        (true, true, ["yes", "htmlonly"]),
    ] {
        let job = job(json!({ "tracking": { "opens": opens, "clicks": clicks } }));
        let parts = parts(&sent(&letter(&job, None)).await);
        let found = [values(&parts, "o:tracking-opens"), values(&parts, "o:tracking-clicks")].concat();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn an_address_that_mime_cannot_carry_goes_as_a_form() {
    let job = job(json!({
        "to": ["Zoë <zoë@customer.example>"], "cc": ["ken@partner.example"], "reply_to": ["a@shop.example", "b@shop.example"],
        "html": "<p>Hello</p>", "headers": [{ "name": "X-Order", "value": "Größe" }],
        "list_unsubscribe": { "url": "https://shop.example/u", "one_click": true },
        "attachments": [{ "filename": "größe.txt", "content_type": "text/plain", "content": "aGk=" }],
        "metadata": { "order": "4711" }, "tags": ["receipt"],
    }));
    let request = sent(&letter(&job, None)).await;
    assert_eq!(request.url.path(), "/v3/mg.shop.example/messages");
    let parts = parts(&request);
    let value = |name: &str| values(&parts, name).join("|");
    assert_eq!(value("from"), "The Shop <orders@shop.example>");
    assert_eq!(value("to"), "Zoë <zoë@customer.example>");
    assert_eq!(value("cc"), "ken@partner.example");
    assert_eq!(value("subject"), "Hello");
    assert_eq!((value("text").as_str(), value("html").as_str()), ("Hello\n", "<p>Hello</p>"));
    assert_eq!(value("h:Reply-To"), "a@shop.example, b@shop.example");
    assert_eq!(value("h:X-Order"), "Größe");
    assert_eq!(value("h:List-Unsubscribe"), "<https://shop.example/u>");
    assert_eq!(value("h:List-Unsubscribe-Post"), "List-Unsubscribe=One-Click");
    assert_eq!(value("h:Message-Id"), job.message_id());
    assert_eq!((value("v:order").as_str(), value("o:tag").as_str()), ("4711", "receipt"));
    let attached = file(&parts, "attachment");
    assert_eq!((attached.filename.as_deref(), attached.text()), (Some("größe.txt"), "hi"));
}

#[tokio::test]
async fn what_it_cannot_carry_is_found_before_anything_is_sent() {
    let long = "x".repeat(1000);
    let metadata: Value =
        (0..17).map(|n| (format!("k{n}"), long.as_str().into())).collect::<serde_json::Map<_, _>>().into();
    for (fields, why) in [
        (
            json!({ "headers": [{ "name": "X-Mailgun-Tag", "value": "other" }] }),
            "does not take the header X-Mailgun-Tag",
        ),
        (json!({ "from": "zoë@shop.example" }), "does not take a sender with other letters"),
        (json!({ "reply_to": ["zoë@shop.example"] }), "does not take a sender with other letters"),
        (json!({ "tags": ["größe"] }), "does not take a tag of other characters"),
        (json!({ "metadata": { "postrider_job_id": "1" } }), "does not take metadata by the name"),
        (json!({ "metadata": metadata }), "does not take more than 16 KiB"),
        (json!({ "to": null, "bcc": ["zoë@customer.example", "ken@partner.example"] }), "cannot send to several blind"),
        (
            json!({ "to": ["zoë@customer.example"], "headers": [{ "name": "X-A", "value": "1" }, { "name": "x-a", "value": "2" }] }),
            "takes the header x-a once only",
        ),
    ] {
        let job = job(fields);
        let found = unfit(delivered(account(), &letter(&job, None), ok()).await);
        assert!(found.starts_with(why), "{found}");
    }
}

fn bulk(n: usize, fields: Value) -> postrider_schemas::Job {
    let mut document = json!({
        "id": format!("0190a5c0-7a10-7c3e-9d51-0000000001{n:02}"), "to": [format!("Ann <ann{n}@customer.example>")], "lane": "bulk",
        "list_unsubscribe": { "url": format!("https://shop.example/u?{n}") }, "metadata": { "customer": format!("c{n}") },
        "html": "<p>Hello</p>", "attachments": [{ "filename": "a.txt", "content_type": "text/plain", "content": "aGk=" }],
    });
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    job(document)
}

#[tokio::test]
async fn jobs_with_the_same_content_share_a_call_and_keep_what_is_their_own() {
    let jobs = [bulk(1, json!({})), bulk(2, json!({}))];
    let items: Vec<_> = jobs.iter().map(|job| mailgun::item(&letter(job, None).view()).unwrap()).collect();
    assert_eq!(items[0].shared, items[1].shared);
    let request = mailgun::batch_request(&SECRET.into(), "mg.shop.example", &[&items[0], &items[1]]);
    assert_eq!(request.path, "/v3/mg.shop.example/messages");
    // Read as a server would.
    let mut seen = Request {
        url: "http://localhost/".parse().unwrap(),
        method: "POST".parse().unwrap(),
        headers: http::HeaderMap::default(),
        body: request.body.to_vec(),
    };
    seen.headers.insert("content-type", request.content_type.parse().unwrap());
    let parts = parts(&seen);
    assert_eq!(values(&parts, "to"), ["Ann <ann1@customer.example>", "Ann <ann2@customer.example>"]);
    let variables: Value = serde_json::from_str(values(&parts, "recipient-variables")[0]).unwrap();
    let resolved = |address: &str, field: &str| {
        let value = values(&parts, field).join("|");
        let name = value.strip_prefix("%recipient.").unwrap().strip_suffix('%').unwrap().to_owned();
        variables[address][name].as_str().unwrap().to_owned()
    };
    for (n, job) in jobs.iter().enumerate() {
        let address = format!("ann{}@customer.example", n + 1);
        assert_eq!(resolved(&address, "h:List-Unsubscribe"), format!("<https://shop.example/u?{}>", n + 1));
        assert_eq!(resolved(&address, "v:customer"), format!("c{}", n + 1));
        assert_eq!(resolved(&address, "v:postrider_job_id"), job.id().to_string());
    }
    assert_eq!(values(&parts, "subject"), ["Hello"]);
    assert_eq!(values(&parts, "html"), ["<p>Hello</p>"]);
    assert_eq!(file(&parts, "attachment").text(), "hi");
}

#[test]
fn other_content_makes_another_call() {
    let base = mailgun::item(&letter(&bulk(1, json!({})), None).view()).unwrap();
    for fields in [
        json!({ "subject": "Other" }),
        json!({ "text": "Other" }),
        json!({ "from": "other@shop.example" }),
        json!({ "tags": ["other"] }),
        json!({ "tracking": { "opens": true } }),
        json!({ "headers": [{ "name": "X-Other", "value": "1" }] }),
        json!({ "attachments": null }),
    ] {
        let job = bulk(2, fields.clone());
        assert_ne!(mailgun::item(&letter(&job, None).view()).unwrap().shared, base.shared, "{fields}");
    }
}

#[test]
fn what_would_be_lost_in_a_shared_call_goes_alone() {
    for fields in [
        json!({ "to": ["a@customer.example", "b@customer.example"] }),
        json!({ "cc": ["b@customer.example"] }),
        json!({ "to": null, "bcc": ["b@customer.example"] }),
        json!({ "text": "Hello %recipient.name%" }),
        json!({ "metadata": { "a": "%recipient%" } }),
        json!({ "to": ["zoë@customer.example"] }),
    ] {
        let job = bulk(1, fields.clone());
        assert!(mailgun::item(&letter(&job, None).view()).is_err(), "{fields}");
    }
    assert!(mailgun::item(&letter(&example("inline-image"), None).view()).is_err());
}

#[tokio::test]
async fn the_greeting_of_a_wrong_path_is_no_proof() {
    let answer = ResponseTemplate::new(200).set_body_string("Mailgun Magnificent API");
    let (outcome, _) = delivered(account(), &letter(&example("receipt"), None), answer).await;
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    let answer = ResponseTemplate::new(404).set_body_json(json!({ "message": "Domain not found: mg.shop.example" }));
    let (outcome, _) = delivered(account(), &letter(&example("receipt"), None), answer).await;
    let Outcome::Refused { refusal, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.class, Class::Config);
}

#[tokio::test]
async fn a_message_id_of_the_provider_is_kept_out_of_the_text_like_an_address() {
    let answer = ResponseTemplate::new(200).set_body_json(json!({ "id": ID, "message": "Queued. Thank you." }));
    taken(delivered(account(), &letter(&example("receipt"), None), answer).await, "[address]");
}
