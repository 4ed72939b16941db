//! What no worker can send comes to rest in `dead`, whole and with its reason, and delays nobody.

use std::time::Duration;

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_schemas::{
    JobId, Lane,
    topology::{DEAD_QUEUE, SUBMIT_EXCHANGE, submit_key},
};
use postrider_tests::{
    postrider::Postrider,
    story::{self, ROUTE, SOON},
    test_env::{EnvSpec, TestEnv},
};
use serde_json::{Value, json};

/// Mail that nothing is in the way of is there after this, slow machine included.
const NOT_DELAYED: Duration = Duration::from_secs(20);
const V1: &str = "postrider.job.v1";

/// A message that is not to be sent, and what its reason has to say.
struct Bad {
    kind: &'static str,
    body: Vec<u8>,
    reason: &'static str,
    detail: &'static str,
}

fn unreadable(body: impl Into<Vec<u8>>, detail: &'static str) -> Bad {
    Bad { kind: V1, body: body.into(), reason: "unreadable", detail }
}

/// A job that is sound.
fn sound() -> Value {
    json!({
        "id": JobId::generate().to_string(),
        "from": "The Shop <orders@shop.example>",
        "to": [{ "name": "Ada", "address": "ada@customer.example" }],
        "subject": "Hello",
        "text": "Hello.",
    })
}

/// A sound job with one field set to something else, named by its JSON pointer's first word.
fn with(field: &str, value: Value) -> Vec<u8> {
    let mut job = sound();
    job[field] = value;
    job.to_string().into_bytes()
}

/// A line that would become a header of its own.
const INJECTED: &str = "x\r\nBcc: eve@evil.example";

/// Every field that ends up in a header, with a line break in it.
fn injections() -> Vec<Bad> {
    let attachment = |field: &str| {
        let mut file =
            json!({ "filename": "a.txt", "content_type": "text/plain", "content": "YQ==", "content_id": "a" });
        file[field] = INJECTED.into();
        with("attachments", json!([file]))
    };
    let person = |field: &str| {
        let mut one = json!({ "name": "Eve", "address": "eve@evil.example" });
        one[field] = INJECTED.into();
        one
    };
    let mut list = vec![
        unreadable(with("subject", INJECTED.into()), "field `subject`"),
        unreadable(with("from", "a\r\nBcc: b <eve@evil.example>".into()), "field `from`"),
        unreadable(with("headers", json!([{ "name": INJECTED, "value": "x" }])), "field `headers[0]`"),
        unreadable(with("headers", json!([{ "name": "X-Order", "value": INJECTED }])), "field `headers[0]`"),
        unreadable(with("headers", json!([{ "name": "Bcc", "value": "x" }])), "field `headers[0]`"),
        unreadable(attachment("filename"), "field `attachments[0]"),
        unreadable(attachment("content_type"), "field `attachments[0]"),
        unreadable(attachment("content_id"), "field `attachments[0]"),
        unreadable(with("tags", json!([INJECTED])), "field `tags[0]`"),
        unreadable(with("metadata", json!({ "order": INJECTED })), "field `metadata entry 0`"),
        unreadable(with("metadata", json!({ INJECTED: "x" })), "field `metadata entry 0`"),
        unreadable(with("tenant", INJECTED.into()), "field `tenant`"),
        unreadable(with("idempotency_key", INJECTED.into()), "field `idempotency_key`"),
        unreadable(
            with("list_unsubscribe", json!({ "url": format!("https://a.example/{INJECTED}") })),
            "list_unsubscribe",
        ),
        unreadable(with("list_unsubscribe", json!({ "mailto": INJECTED })), "list_unsubscribe"),
    ];
    for field in ["from", "reply_to", "to", "cc", "bcc"] {
        for part in ["name", "address"] {
            let value = if field == "from" { person(part) } else { json!([person(part)]) };
            let mut job = sound();
            if matches!(field, "cc" | "bcc") {
                // The others would be served.
                job["to"] = json!([]);
            }
            job[field] = value;
            list.push(unreadable(job.to_string(), field));
        }
    }
    list
}

/// What is no job of ours at all, or breaks a rule.
fn others() -> Vec<Bad> {
    let recipients: Vec<String> = (0..51).map(|n| format!("customer-{n}@dest.example")).collect();
    let file = |content: &str| json!([{ "filename": "a.txt", "content_type": "text/plain", "content": content }]);
    let template = |source: &str| {
        let mut job = sound();
        job["template"] = json!({ "text": source });
        job.as_object_mut().unwrap().remove("text");
        job.to_string().into_bytes()
    };
    let mut subject: Value = serde_json::from_slice(&template("Hello.")).unwrap();
    subject["subject"] = "Hello {{ name }}".into();
    subject["variables"] = json!({ "name": INJECTED });
    let without = |field: &str| {
        let mut job = sound();
        job.as_object_mut().unwrap().remove(field);
        job.to_string().into_bytes()
    };
    let later =
        Bad { kind: "postrider.job.v9", ..unreadable(sound().to_string(), "`postrider.job.v9` is not known here") };
    let dead = |body| Bad { reason: "cannot-be-sent", ..unreadable(body, "") };
    vec![
        unreadable("", "EOF"),
        unreadable("{\"id\": ", "EOF"),
        unreadable([0xff, 0xfe, 0x00], "field `.`"),
        unreadable("[]", "field `.`"),
        unreadable(format!("{} {{}}", sound()), "trailing characters"),
        later,
        unreadable(without("id"), "field `id`: is required"),
        unreadable(without("text"), "a job needs a body"),
        unreadable(with("to", json!([])), "at least one recipient"),
        unreadable(with("to", json!(recipients)), "51 recipients"),
        unreadable(with("to", 7.into()), "field `to`"),
        unreadable(with("subject", json!(["Hello"])), "field `subject`"),
        unreadable(with("attachments", file("@@not base64@@")), "field `attachments[0].content`"),
        unreadable(with("to", json!(["ada@xn--zzzzzzzzzzzz.example"])), "field `to[0]`"),
        unreadable(with("expires_at", "tomorrow".into()), "field `expires_at`"),
        unreadable(with("text", "x".repeat(11 << 20).into()), "more than the 10485760 allowed"),
        unreadable(vec![b' '; 50_000_000], "the job has 50000000 bytes"),
        dead(template("Hello {{ name }}")),
        dead(template("Hello {% if %}")),
        dead(subject.to_string().into_bytes()),
        // Values where they do not belong are not quoted: the harness searches the worker's log for addresses.
        unreadable(with("lane", "ada@customer.example".into()), "field `lane`"),
        unreadable(with("send_at", "ada@customer.example".into()), "field `send_at`"),
        unreadable(with("id", "ada@customer.example".into()), "field `id`"),
        unreadable(with("ada@customer.example", 1.into()), "unknown field"),
        unreadable(with("metadata", json!({ "ada@customer.example": 1 })), "field `metadata"),
        Bad { kind: "ada@customer.example", ..unreadable(sound().to_string(), "is not known here") },
    ]
}

/// Publishes as a producer that does not use our library might; gives the ids under which the messages are known.
async fn publish_raw(env: &TestEnv, list: &[Bad]) -> Vec<String> {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let key = submit_key(Lane::Transactional, 0);
    let mut ids = Vec::new();
    for bad in list {
        let id = JobId::generate().to_string();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_type(bad.kind.into())
            .with_message_id(id.as_str().into());
        let confirm = channel
            .basic_publish(SUBMIT_EXCHANGE.into(), key.as_str().into(), options, &bad.body, properties)
            .await
            .unwrap();
        assert!(confirm.await.unwrap().is_ack());
        ids.push(id);
    }
    connection.close(200, "done".into()).await.unwrap();
    ids
}

/// The body of every message in `dead`, by message id. They stay there.
async fn dead_bodies(env: &TestEnv, count: usize) -> Vec<(String, Vec<u8>)> {
    let connection = Connection::connect(&env.amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..count {
        let got = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
        let id = got.delivery.properties.message_id().as_ref().unwrap().to_string();
        bodies.push((id, got.delivery.data));
    }
    connection.close(200, "looked".into()).await.unwrap();
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_sent_rest_in_dead_whole_and_with_their_reason_and_delay_nothing() {
    let env = TestEnv::start(&EnvSpec::usual()).unwrap();
    story::declare(&env).unwrap();
    let worker = story::worker(&env, "").unwrap();
    let list: Vec<Bad> = injections().into_iter().chain(others()).collect();
    let ids = publish_raw(&env, &list).await;
    let job = story::job(Lane::Transactional, "bob@customer.example");
    story::publish(&env.amqp_url(), &[job]).await.unwrap();
    let stored = env.sink().wait_for(1, NOT_DELAYED).unwrap();
    assert_eq!(stored[0].recipients(), ["bob@customer.example"]);

    story::wait_for_depth(&env, DEAD_QUEUE, list.len() as u64).unwrap();
    let config = story::config(&env.amqp_url(), &env.redis_url(), env.sink().port(), ROUTE);
    let rows = story::rest("dead", &config).unwrap();
    let bodies = dead_bodies(&env, list.len()).await;
    for (bad, id) in list.iter().zip(&ids) {
        let begin = String::from_utf8_lossy(&bad.body[..bad.body.len().min(400)]).into_owned();
        let row = rows.iter().find(|row| row["id"] == *id).unwrap_or_else(|| panic!("{begin} is not in dead"));
        let detail = row["detail"].as_str().unwrap();
        assert!(row["reason"] == bad.reason && detail.contains(bad.detail), "{begin}\n{row}");
        assert!(!detail.is_empty() && !detail.contains(".example"), "a reason quotes no value: {detail}");
        let kept = &bodies.iter().find(|(kept, _)| kept == id).unwrap().1;
        assert!(*kept == bad.body, "kept whole, not changed: {begin}");
    }
    drop(worker);
    assert_eq!(env.sink().count().unwrap(), 1);
}

/// The same words from `postrider send`, before anything is published.
#[test]
fn send_refuses_the_same_lines_with_the_same_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let queue = format!("embedded:{}", folder.path().join("queue.db").display());
    // One line each; what a template lacks is not known before it is rendered, and `send` makes an id where there is none.
    let lines: Vec<Bad> = injections()
        .into_iter()
        .chain(others())
        .filter(|bad| bad.reason == "unreadable" && bad.kind == V1 && bad.body.len() < 1 << 20)
        .filter(|bad| !bad.body.is_empty() && bad.detail != "field `id`: is required")
        .collect();
    let input: Vec<u8> = lines.iter().flat_map(|bad| [bad.body.as_slice(), b"\n"].concat()).collect();
    let done = Postrider::command(["send", "--queue", &queue]).input(input).run(SOON).unwrap();
    assert_eq!(done.status.code(), Some(1));
    for (n, bad) in lines.iter().enumerate() {
        let start = format!("line {}: ", n + 1);
        let said = done.stderr.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
        assert!(said.contains(bad.detail), "{said:?} does not say {:?}", bad.detail);
    }
    assert!(done.stderr.contains(&format!("published 0, not a job {}", lines.len())), "{}", done.stderr);
}
