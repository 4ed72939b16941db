//! Whatever a body holds, a request is read or refused with a 4xx in the form of its API.

use http::header::CONTENT_TYPE;
use postrider_schemas::JobLimits;
use proptest::prelude::*;

use super::{routes::ROUTES, *};
use crate::keys::Scope;

/// Names that the APIs read, so that junk gets past the first look.
const NAMES: [&str; 40] = [
    "from",
    "to",
    "cc",
    "bcc",
    "subject",
    "text",
    "html",
    "headers",
    "attachments",
    "tags",
    "scheduled_at",
    "send_at",
    "personalizations",
    "content",
    "email",
    "name",
    "type",
    "value",
    "From",
    "To",
    "Subject",
    "TextBody",
    "Headers",
    "Attachments",
    "Name",
    "Content",
    "FromEmailAddress",
    "Destination",
    "ToAddresses",
    "Simple",
    "Raw",
    "Data",
    "Body",
    "Template",
    "TemplateContent",
    "BulkEmailEntries",
    "mime",
    "envelope",
    "recipient-variables",
    "message",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => prop::sample::select(&NAMES[..]).prop_map(|name: &str| name.to_owned()), 1 => any::<String>()]
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<String>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::from("a@b.example")),
        Just(serde_json::Value::from("RnJvbTogYUBiLmV4YW1wbGUNCg0KdA0K")),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(name(), inner, 0..8)
                .prop_map(|map| map.into_iter().collect::<serde_json::Value>()),
        ]
    })
}

/// A media type and a body: octets, a document, a form, or a form in parts.
fn body() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
    let pairs = prop::collection::vec((name(), any::<String>()), 0..8);
    let query = pairs.prop_map(|pairs| {
        let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        ("application/x-www-form-urlencoded", text.into_bytes())
    });
    let part =
        (name(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(name, is_file, content)| {
            let file = if is_file { "; filename=\"f\"" } else { "" };
            let head = format!("--m\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
            [head.as_bytes(), &content, b"\r\n"].concat()
        });
    let parts = (prop::collection::vec(part, 0..6), any::<bool>()).prop_map(|(parts, has_end)| {
        let end: &[u8] = if has_end { b"--m--\r\n" } else { b"" };
        ("multipart/form-data; boundary=m", [&parts.concat(), end].concat())
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..256).prop_map(|octets| ("application/json", octets)),
        value().prop_map(|value| ("application/json", value.to_string().into_bytes())),
        query,
        parts,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn junk_is_read_or_refused_in_the_form_of_its_api((kind, octets) in body()) {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        let body = Bytes::from(octets);
        for route in ROUTES.iter().filter(|route| matches!(route.scope, Some(Scope::Send | Scope::Cancel))) {
            let request = Request {
                operation: route.operation,
                parameters: &["019a0000-0000-7000-8000-000000000000".to_owned()],
                query: "",
                headers: &headers,
                body: &body,
                now: "2026-12-01T10:00:00Z".parse().unwrap(),
                limits: &JobLimits::DEFAULT,
            };
            let results: Results = match read(&request) {
                Ok(Call::Send(submission)) => submission
                    .jobs
                    .into_iter()
                    .map(|job| {
                        let parsed = job?.job.parse(request.limits);
                        parsed.map(|job| job.id()).map_err(|error| Problem::of_job(&error, b"", request.limits))
                    })
                    .collect(),
                Ok(_) => continue,
                Err(problem) => vec![Err(problem)],
            };
            let answer = sent(&request, &results);
            let is_fine = answer.status.is_success() || answer.status.is_client_error();
            prop_assert!(is_fine, "{}: {}", route.name, answer.status);
            let Some(Err(problem)) = results.first() else { continue };
            let refused = refuse(route.api, problem);
            prop_assert!(refused.status.is_client_error(), "{}: {}", route.name, refused.status);
            if route.api == Api::SesQuery {
                prop_assert!(refused.body.starts_with(b"<ErrorResponse"));
            } else {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&refused.body).is_ok());
            }
        }
    }
}
