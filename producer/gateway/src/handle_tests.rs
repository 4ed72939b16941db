use std::path::Path;

use http_body_util::BodyExt as _;
use postrider_schemas::JobId;
use postrider_store::{Store, StoreOptions};
use serde_json::{Value, json};

use super::*;
use crate::{
    keys::{self, KeyRecord},
    queue::QueueSettings,
};

const JOB: &str = r#"{"from": "a@shop.example", "to": ["c@d.example"], "subject": "s", "text": "t"}"#;

type Headers = &'static [(&'static str, &'static str)];

struct Setup {
    gateway: Gateway,
    key: String,
    _folder: tempfile::TempDir,
}

async fn setup(change: impl FnOnce(&mut KeyRecord)) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, key) = started(folder.path(), change).await;
    Setup { gateway, key, _folder: folder }
}

pub(crate) async fn started(folder: &Path, change: impl FnOnce(&mut KeyRecord)) -> (Gateway, String) {
    let (text, id, sha256) = keys::make(&[7; 44]);
    let mut record: KeyRecord =
        serde_json::from_value(json!({ "id": id, "sha256": sha256, "tenant": "shop" })).unwrap();
    change(&mut record);
    let queue = Queue::default();
    let url = format!("embedded:{}", folder.join("queue.db").display());
    let settings = QueueSettings { url, shards: 1, user: None, confirm: Duration::from_secs(5) };
    queue.connect(settings).await.unwrap();
    let config = GatewayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        signing_secret: Some("a secret of the tests".into()),
        keys: None,
        body_max: 64 * 1024,
        memory: 1 << 20,
        connections: 8,
        read_timeout: Duration::from_secs(5),
        confirm_timeout: Duration::from_secs(5),
        drain: Duration::from_secs(5),
        smtp: crate::config::SmtpConfig::default(),
        job: JobLimits::DEFAULT,
    };
    let keys = Keys::new(vec![record]).unwrap();
    let store = format!("embedded:{}", folder.join("store.db").display());
    let records = Records::new(Store::connect(&store, StoreOptions::default()).await.unwrap());
    let gateway = Gateway::new(config, keys, queue, Metrics::default(), CancellationToken::new());
    (gateway.with_records(records, Box::new(|_| Box::pin(async { Ok(()) }))), text)
}

impl Setup {
    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, http::HeaderMap, Value) {
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {}", self.key));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let (head, body) = self.gateway.handle(request, [127, 0, 0, 1].into()).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn send(&self, headers: &[(&str, &str)], body: &str) -> (u16, http::HeaderMap, Value) {
        self.ask("POST", "/v1/jobs", headers, body).await
    }
}

#[tokio::test]
async fn a_job_is_taken_and_gets_an_id() {
    let setup = setup(|_| ()).await;
    let (status, headers, body) = setup.send(&[], JOB).await;
    assert_eq!((status, &body["status"]), (202, &json!("queued")));
    assert!(body["id"].as_str().unwrap().parse::<JobId>().is_ok());
    assert_eq!(headers["content-type"], "application/json");
}

#[tokio::test]
async fn the_same_key_gives_the_same_answer_on_every_gateway() {
    let (one, other) = (setup(|_| ()).await, setup(|_| ()).await);
    let key = [("idempotency-key", "order:1")];
    let first = one.send(&key, JOB).await;
    assert_eq!(first.2, one.send(&key, JOB).await.2);
    assert_eq!(first.2, other.send(&[("idempotency-key", "\"order:1\"")], JOB).await.2);
    let in_document = JOB.replacen('{', "{\"idempotency_key\": \"order:1\", ", 1);
    let third = setup(|_| ()).await;
    assert_eq!(first.2, third.send(&[], &in_document).await.2);
    assert_ne!(first.2, other.send(&[], JOB).await.2);
    let news = setup(|record| record.tenant = "news".to_owned()).await;
    assert_ne!(first.2, news.send(&key, JOB).await.2, "keys belong to their tenants");
}

#[tokio::test]
async fn wrong_requests_are_answered_with_problems() {
    let setup = setup(|record| {
        record.sender_domains = Some(vec!["shop.example".to_owned()]);
        record.lanes = Some(vec![postrider_schemas::Lane::Transactional]);
    })
    .await;
    let with = |text: &str| JOB.replacen('{', &format!("{{{text}, "), 1);
    let whole = |sender: &str| {
        // From a@shop.example.
        let mime = "RnJvbTogYUBzaG9wLmV4YW1wbGUNClRvOiBjQGQuZXhhbXBsZQ0KU3ViamVjdDogcw0KDQp0DQo=";
        json!({ "mime": mime, "envelope": { "from": sender, "to": ["c@d.example"] } }).to_string()
    };
    let (status, _, document) = setup.send(&[], &whole("bounces@shop.example")).await;
    assert_eq!(status, 202, "{document}");
    let cases: [(Headers, String, u16, &str); 11] = [
        (&[], whole("bounces@bank.example"), 403, "sender-not-allowed"),
        (&[("authorization", "")], JOB.to_owned(), 401, "unauthorized"),
        (&[("authorization", "Bearer prk_a_b")], JOB.to_owned(), 401, "unauthorized"),
        (&[], "{".to_owned(), 400, "malformed"),
        (&[("idempotency-key", "a b")], JOB.to_owned(), 400, "bad-idempotency-key"),
        (&[("content-type", "text/plain")], JOB.to_owned(), 415, "unsupported-media-type"),
        (&[], JOB.replace("c@d.example", "nobody"), 422, "invalid-field"),
        (&[], JOB.replace("shop.example", "bank.example"), 403, "sender-not-allowed"),
        (&[], with("\"tenant\": \"news\""), 403, "forbidden"),
        (&[], with("\"lane\": \"bulk\""), 403, "forbidden"),
        (&[], "x".repeat(64 * 1024 + 1), 413, "too-large"),
    ];
    for (headers, body, status, word) in cases {
        let (found, headers, document) = setup.send(headers, &body).await;
        let kind = document["type"].as_str().unwrap_or_default();
        assert_eq!((found, kind.rsplit('/').next().unwrap()), (status, word), "{document}");
        assert_eq!(headers["content-type"], "application/problem+json");
    }
    let (status, headers, _) = setup.ask("GET", "/v1/jobs", &[], "").await;
    assert_eq!((status, headers["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(setup.ask("GET", "/v1/nothing", &[], "").await.0, 404);
    setup.gateway.queue.close().await;
    let (status, headers, _) = setup.send(&[], JOB).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "5"));
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_job_and_keys_of_their_own() {
    let setup = setup(|_| ()).await;
    let body = format!("{JOB}\n{{}}\n{JOB}\n");
    let key = [("idempotency-key", "batch:1")];
    let (status, _, document) = setup.ask("POST", "/v1/jobs:batch", &key, &body).await;
    let results = document["results"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!((status, statuses), (200, vec![202, 422, 202]));
    assert_ne!(results[0]["id"], results[2]["id"]);
    assert_eq!(setup.ask("POST", "/v1/jobs:batch", &key, &body).await.2, document, "a repeat");
}

#[tokio::test]
async fn a_key_is_held_to_its_rate_and_told_so() {
    let setup = setup(|record| record.rate = Some(2)).await;
    let (status, headers, _) = setup.send(&[], JOB).await;
    assert_eq!((status, headers["ratelimit"].to_str().unwrap()), (202, "\"key\";r=1;t=1"));
    assert_eq!(headers["ratelimit-policy"], "\"key\";q=2;w=1");
    assert_eq!(setup.send(&[], JOB).await.0, 202);
    let (status, headers, _) = setup.send(&[], JOB).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (429, "1"));
}

#[tokio::test]
async fn probes_need_no_key_and_a_gateway_that_stops_is_not_ready() {
    let setup = setup(|_| ()).await;
    let probe = async |path| setup.ask("GET", path, &[("authorization", "")], "").await.0;
    assert_eq!((probe("/healthz").await, probe("/readyz").await), (200, 200));
    setup.gateway.stop.cancel();
    assert_eq!((probe("/healthz").await, probe("/readyz").await), (200, 503));
}

#[tokio::test]
async fn a_key_that_was_used_for_another_payload_is_refused_and_a_mended_request_is_not() {
    let setup = setup(|_| ()).await;
    let key = [("idempotency-key", "order:1")];
    assert_eq!(setup.send(&key, &JOB.replace("c@d.example", "nobody")).await.0, 422);
    let (status, _, first) = setup.send(&key, JOB).await;
    assert_eq!((status, setup.send(&key, JOB).await.2), (202, first));
    let other = JOB.replace("\"s\"", "\"other\"");
    let (status, _, document) = setup.send(&key, &other).await;
    let kind = document["type"].as_str().unwrap();
    assert_eq!((status, kind.rsplit('/').next().unwrap()), (422, "idempotency-key-reused"));
    let in_document = other.replacen('{', "{\"idempotency_key\": \"order:1\", ", 1);
    assert_eq!(setup.send(&[], &in_document).await.0, 422);
    let mail = r#"{"from": "a@shop.example", "to": "c@d.example", "subject": "s", "text": "t"}"#;
    let (status, _, document) = setup.ask("POST", "/emails", &key, mail).await;
    assert_eq!((status, &document["name"]), (409, &json!("invalid_idempotent_request")));
}

#[tokio::test]
async fn a_repeat_counts_its_times_from_the_first_request() {
    let setup = setup(|_| ()).await;
    let mail =
        r#"{"from": "a@shop.example", "to": "c@d.example", "subject": "s", "text": "t", "scheduled_at": "in 1 hour"}"#;
    let key = [("idempotency-key", "order:1")];
    let (_, _, first) = setup.ask("POST", "/emails", &key, mail).await;
    let path = format!("/emails/{}", first["id"].as_str().unwrap());
    let (_, _, view) = setup.ask("GET", &path, &[], "").await;
    assert_eq!((view["last_event"].as_str(), view["scheduled_at"].is_string()), (Some("scheduled"), true), "{view}");
    assert_eq!(setup.ask("POST", "/emails", &key, mail).await.2, first);
    assert_eq!(setup.ask("GET", &path, &[], "").await.2, view);
}

#[tokio::test]
async fn a_job_is_seen_moved_and_called_back_and_whatever_is_wrong_with_that_is_said() {
    let setup = setup(|_| ()).await;
    let at = |hours| (Timestamp::now() + Duration::from_hours(hours)).to_string();
    let job = JOB.replacen('{', &format!("{{\"send_at\": \"{}\", ", at(1)), 1);
    let (_, _, taken) = setup.send(&[], &job).await;
    let path = format!("/v1/jobs/{}", taken["id"].as_str().unwrap());
    let (status, _, view) = setup.ask("GET", &path, &[], "").await;
    assert_eq!((status, &view["status"], view["due_at"].is_string()), (200, &json!("scheduled"), true), "{view}");
    let to = |time: &str| format!("{{\"send_at\": \"{time}\"}}");
    let later = at(2);
    for (path, body, expected) in [
        (path.as_str(), "{", 400),
        (&path, "{}", 422),
        (&path, r#"{"send_at": "tomorrow"}"#, 422),
        (&path, r#"{"send_at": "2026-12-01T10:00:00Z", "subject": "x"}"#, 422),
        ("/v1/jobs/none", &to(&later), 404),
        ("/v1/jobs/019a0000-0000-7000-8000-000000000000", &to(&later), 404),
        (&path, &to(&at(0)), 409),
        (&path, &to(&later), 200),
        (&path, &to(&at(1)), 409),
    ] {
        let (status, _, document) = setup.ask("PATCH", path, &[], body).await;
        assert_eq!(status, expected, "{path} {body} {document}");
    }
    let (_, _, view) = setup.ask("GET", &path, &[], "").await;
    assert_eq!(view["due_at"].as_str().unwrap().parse::<Timestamp>().unwrap(), later.parse().unwrap());
    assert_eq!(setup.ask("POST", &format!("{path}/cancel"), &[], "").await.2["status"], "cancelled");
    assert_eq!(setup.ask("DELETE", &path, &[], "").await.0, 200);
    assert_eq!(setup.ask("PATCH", &path, &[], &to(&at(3))).await.0, 409);
    let reads_only = self::setup(|record| record.scopes = Some(vec![crate::keys::Scope::Read])).await;
    assert_eq!(reads_only.ask("DELETE", &path, &[], "").await.0, 403);
    assert_eq!(reads_only.ask("GET", &path, &[], "").await.0, 404);
}
