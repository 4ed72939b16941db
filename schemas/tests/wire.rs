//! The wire form: what is accepted, what is refused and how the refusal reads.

use postrider_schemas::{
    JobLimits, event, examples,
    job::Job,
    json_schema,
    wire::{self, DecodeError, JOB_TYPE, JobV1},
};
use serde_json::{Value, json};

fn decode(document: &Value) -> Result<Job, DecodeError> {
    wire::decode(document.to_string().as_bytes(), Some(JOB_TYPE), &JobLimits::DEFAULT)
}

fn minimal() -> Value {
    json!({ "id": "0190a5c0-7a10-7c3e-9d51-000000000001", "from": "a@shop.example", "to": ["b@dest.example"],
            "subject": "s", "text": "t" })
}

/// Puts `value` at `field` of a minimal job and expects a refusal that names `path` and says `reason`.
#[track_caller]
fn check_refused(field: &str, value: Value, path: &str, reason: &str) {
    let mut document = minimal();
    document[field] = value;
    let text = decode(&document).expect_err("must be refused").to_string();
    assert!(text.contains(path) && text.contains(reason), "expected {path:?} and {reason:?} in: {text}");
}

#[test]
fn every_example_is_a_job_and_survives_a_round_trip() {
    for (name, document) in examples::ALL {
        let job =
            wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = wire::decode(&wire::encode(&job), Some(JOB_TYPE), &JobLimits::DEFAULT).unwrap();
        assert_eq!(job, again, "{name}");
    }
}

#[test]
fn every_example_fits_the_json_schema() {
    let schema: Value = serde_json::from_str(&json_schema::job_v1()).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    for (name, document) in examples::ALL {
        let document: Value = serde_json::from_str(document).unwrap();
        let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
    assert!(!validator.is_valid(&json!({ "subject": "s" })));
    let mut document = minimal();
    document["id"] = json!("not a uuid");
    assert!(!validator.is_valid(&document));
}

#[test]
fn the_schemas_in_the_repository_are_those_of_the_types() {
    for (file, text) in [("job.v1", json_schema::job_v1()), ("event.v1", json_schema::event_v1())] {
        let path = format!("{}/json/{file}.schema.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("POSTRIDER_WRITE_SCHEMAS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == text, "{path} differs from the types; run this test with POSTRIDER_WRITE_SCHEMAS=1");
    }
}

#[test]
fn an_event_fits_its_json_schema() {
    let schema: Value = serde_json::from_str(&json_schema::event_v1()).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let job = decode(&minimal()).unwrap();
    let time = "2026-11-23T10:00:00Z".parse().unwrap();
    let mut event = event::Event::about(event::EventType::Deferred, &job, &postrider_schemas::Meta::default(), time);
    event.data.next_attempt_at = Some(time);
    let document: Value = serde_json::from_slice(&event.encode()).unwrap();
    assert!(validator.is_valid(&document), "{document}");
    assert_eq!(event.routing_key(), "deferred.default");
    assert_eq!(document["type"], "postrider.job.deferred.v1");
}

#[test]
fn malformed_documents_say_where() {
    let refused = |bytes: &[u8]| wire::decode(bytes, None, &JobLimits::DEFAULT).unwrap_err().to_string();
    assert!(refused(b"{\"id\":").contains("EOF"));
    assert!(refused(b"not json").contains("line 1 column"));
    assert!(refused(b"[]").contains("field `.`"));
    assert!(refused(b"\xff\xfe").contains("EOF"));
    assert!(refused(b"[{}]").contains("expected one job, found a list"));
    let trailing = format!("{} {{}}", minimal());
    assert!(refused(trailing.as_bytes()).contains("trailing"));
}

#[test]
fn wrong_types_name_the_field_but_never_quote_the_value() {
    check_refused("subject", json!(7), "subject", "expected a text, found a number");
    check_refused("lane", json!("express"), "lane", "expected `transactional` or `bulk`");
    check_refused("tags", json!("secret@x.example"), "tags", "expected a list, found a text");
    check_refused("to", json!([7]), "to[0]", "expected an address such as");
    check_refused("subjet", json!("x"), "subjet", "unknown field");
    let mut document = minimal();
    document["tags"] = json!("secret@x.example");
    assert!(!decode(&document).unwrap_err().to_string().contains("secret"));
    check_refused("send_at", json!("secret"), "send_at", "expected a time such as 2026-12-01T10:00:00Z");
    check_refused("ada@x.example", json!("x"), "?", "unknown field `?`;");
    check_refused("metadata", json!({ "ada@x.example": 7 }), "metadata", "expected a text, found a number");
    check_refused("metadata", json!({ "order": 7 }), "metadata.order", "expected a text");
    let error = wire::decode(b"{}", Some("ada@x.example"), &JobLimits::DEFAULT).unwrap_err();
    assert_eq!(error, DecodeError::Version("[address]".to_owned()));
}

#[test]
fn no_error_says_a_value_of_the_document() {
    for field in [
        "id",
        "to",
        "cc",
        "subject",
        "text",
        "lane",
        "headers",
        "tags",
        "metadata",
        "tracking",
        "template",
        "send_at",
        "attachments",
    ] {
        for value in [
            json!(4_111_111_111_111_111_u64),
            json!(-4_111_111_111_111_111_i64),
            json!(4111.5),
            json!([4_111_111_111_111_111_u64]),
        ] {
            let mut document = minimal();
            document[field] = value;
            let text = decode(&document).expect_err(field).to_string();
            assert!(!text.contains("4111") && text.contains(field), "{text}");
        }
    }
    let mut document = minimal();
    document["4111111111111111"] = json!(1);
    assert!(!decode(&document).unwrap_err().to_string().contains("4111"));
}

#[test]
fn documents_of_other_languages_are_read() {
    let plain = decode(&minimal()).unwrap();
    let mut nulls = minimal();
    for field in [
        "idempotency_key",
        "tenant",
        "lane",
        "reply_to",
        "cc",
        "bcc",
        "html",
        "template",
        "variables",
        "headers",
        "attachments",
        "tags",
        "metadata",
        "tracking",
        "list_unsubscribe",
        "send_at",
        "expires_at",
    ] {
        nulls[field] = Value::Null;
    }
    assert!(decode(&nulls).unwrap() == plain);
    let with = |fields: Value| {
        let mut document = minimal();
        document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        decode(&document).unwrap()
    };
    assert!(with(json!({"to": "b@dest.example"})) == plain);
    assert!(with(json!({"to": {"address": "b@dest.example"}})) == plain);
    assert!(with(json!({"metadata": {"a": null}, "tracking": {"opens": null}})) == plain);
    assert_eq!(with(json!({"to": ["a@dest.example, b@dest.example", "c@dest.example"]})).to().len(), 3);
    assert_eq!(with(json!({"to": "A <a@dest.example>; b@dest.example"})).to().len(), 2);
    let pair = |name: &str, value: &str| json!({"name": name, "value": value});
    let list = json!([pair("X-A", "1"), pair("X-B", "2"), pair("X-B", "3")]);
    assert!(with(json!({"headers": {"X-A": "1", "X-B": ["2", "3"]}})) == with(json!({"headers": list})));
    assert!(
        with(json!({"send_at": "0001-01-01T00:00:00Z", "expires_at": "0001-01-01T00:00:00"})).expires_at().is_none()
    );
    assert_eq!(with(json!({"send_at": "9999-12-31T23:59:59Z"})).send_at(), Some(jiff::Timestamp::MAX));
    check_refused("attachments", json!([["f", "a/b", ""]]), "attachments", "expected an object, found a list");
    check_refused("template", json!(["t"]), "template", "expected an object, found a list");
    check_refused("from", json!("a@shop.example, c@shop.example"), "from", "more than one address");
    check_refused("cc", json!([{"address": "a@x.example, c@x.example"}]), "cc[0]", "more than one address");
}

#[test]
fn byte_order_marks_and_utf_16_are_read() {
    let text = minimal().to_string();
    let plain = decode(&minimal()).unwrap();
    let read = |bytes: &[u8]| wire::decode(bytes, None, &JobLimits::DEFAULT);
    let units = |text: &str, big: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    assert!(read(format!("\u{feff}{text}").as_bytes()).unwrap() == plain);
    for (mark, big) in [("\u{feff}", true), ("\u{feff}", false), ("", true), ("", false)] {
        assert!(read(&units(&format!("{mark}{text}"), big)).unwrap() == plain, "{mark:?} {big}");
    }
    assert!(read(&units(&text, false)[1..]).is_err());
    let odd = [units("\u{feff}{}", false), vec![0]].concat();
    assert!(read(&odd).unwrap_err().to_string().contains("UTF-16"));
    let cut = text.replace("\"s\"", "\"see you \\ud83d\"");
    assert!(read(cut.as_bytes()).unwrap_err().to_string().contains("half of a character"));
}

#[test]
fn the_schema_says_nothing_of_rust() {
    for text in [json_schema::job_v1(), json_schema::event_v1()] {
        assert!(!text.contains("Self::") && !text.contains("[`") && !text.contains("crate"), "{text}");
    }
}

#[test]
fn an_unknown_version_is_refused() {
    let error =
        wire::decode(minimal().to_string().as_bytes(), Some("postrider.job.v9"), &JobLimits::DEFAULT).unwrap_err();
    assert_eq!(error, DecodeError::Version("postrider.job.v9".to_owned()));
}

#[test]
fn an_id_is_needed_on_the_wire() {
    let mut document = minimal();
    document.as_object_mut().unwrap().remove("id");
    assert!(decode(&document).unwrap_err().to_string().contains("field `id`"));
}

#[test]
fn fifty_recipients_are_accepted_and_fifty_one_refused() {
    let mut document = minimal();
    let list = |n: usize| (0..n).map(|n| json!(format!("r{n}@dest.example"))).collect::<Vec<_>>();
    document["to"] = json!(list(30));
    document["cc"] = json!(list(20));
    let job = decode(&document).unwrap();
    assert_eq!(job.recipients().len(), 30, "a recipient that stands twice is served once");
    document["cc"] = json!(list(21));
    assert!(decode(&document).unwrap_err().to_string().contains("51 recipients"));
    check_refused("to", json!([]), "to", "at least one recipient");
}

#[test]
fn no_text_field_can_inject_a_header() {
    let bad = "x\r\nBcc: victim@dest.example";
    check_refused("subject", json!(bad), "subject", "control character");
    check_refused("from", json!({ "address": "a@shop.example", "name": bad }), "from", "control character");
    check_refused("from", json!(format!("a@shop.example\r\n{bad}")), "from", "");
    for field in ["to", "cc", "bcc", "reply_to"] {
        check_refused(field, json!([{ "address": "a@shop.example", "name": bad }]), &format!("{field}[0]"), "control");
    }
    check_refused("headers", json!([{ "name": "X-A", "value": bad }]), "headers[0]", "control character");
    check_refused("headers", json!([{ "name": bad, "value": "v" }]), "headers[0]", "header name");
    let attachment = |filename: &str, kind: &str, id: &str| json!([{ "filename": filename, "content_type": kind, "content": "", "content_id": id }]);
    check_refused("attachments", attachment(bad, "a/b", "c"), "attachments[0].filename", "");
    check_refused("attachments", attachment("f", "a/b\r\nX: y", "c"), "attachments[0].content_type", "");
    check_refused("attachments", attachment("f", "a/b", "c\r\nX: y"), "attachments[0].content_id", "");
    check_refused("tags", json!([bad]), "tags[0]", "");
    check_refused("metadata", json!({ "k": bad }), "metadata", "");
    check_refused("idempotency_key", json!(bad), "idempotency_key", "visible");
    check_refused("tenant", json!(bad), "tenant", "a-z");
    check_refused(
        "list_unsubscribe",
        json!({ "mailto": format!("u@shop.example{bad}") }),
        "list_unsubscribe.mailto",
        "",
    );
    check_refused(
        "list_unsubscribe",
        json!({ "url": "https://shop.example/\r\nBcc: x" }),
        "list_unsubscribe.url",
        "control character",
    );
}

#[test]
fn a_body_is_needed_and_a_template_stands_alone() {
    let mut document = minimal();
    document.as_object_mut().unwrap().remove("text");
    assert!(decode(&document).unwrap_err().to_string().contains("needs a body"));
    check_refused("template", json!({ "text": "x" }), "template", "not beside");
    check_refused("variables", json!({ "a": 1 }), "variables", "no `template`");
}

#[test]
fn other_bad_values_are_refused_by_name() {
    let file = |content: &str| json!([{ "filename": "f", "content_type": "a/b", "content": content }]);
    check_refused("attachments", file("@@@"), "attachments[0].content", "not base64");
    check_refused("from", json!("a@xn--zzzzzzz99999.example"), "from", "internationalised");
    check_refused("list_unsubscribe", json!({ "one_click": true, "mailto": "u@shop.example" }), "one_click", "url");
    check_refused("list_unsubscribe", json!({ "url": "http://shop.example" }), "list_unsubscribe.url", "https");
    check_refused("list_unsubscribe", json!({}), "list_unsubscribe", "needs");
    check_refused("send_at", json!("tomorrow"), "send_at", "");
    let mut document = minimal();
    document["send_at"] = json!("2026-01-02T00:00:00Z");
    document["expires_at"] = json!("2026-01-01T00:00:00Z");
    assert!(decode(&document).unwrap_err().to_string().contains("could never be sent"));
}

#[test]
fn a_job_of_eleven_mebibytes_is_refused_by_its_size() {
    let mut document = minimal();
    document["text"] = json!("x".repeat(11 * 1024 * 1024));
    let text = decode(&document).unwrap_err().to_string();
    assert!(text.contains("10485760"), "{text}");
}

#[test]
fn the_payload_hash_ignores_the_id_and_the_form_but_nothing_else() {
    let base = decode(&minimal()).unwrap().payload_hash();
    let with = |field: &str, value: Value| {
        let mut document = minimal();
        document[field] = value;
        decode(&document).unwrap().payload_hash()
    };
    assert_eq!(base, with("id", json!("0190a5c0-7a10-7c3e-9d51-0000000000ff")));
    assert_eq!(base, with("to", json!([{ "address": "b@DEST.example" }])));
    assert_eq!(base, with("tenant", json!("default")));
    assert_ne!(base, with("text", json!("T")));
    assert_ne!(base, with("html", json!("t")));
    assert_ne!(base, with("to", json!(["B <b@dest.example>"])));
    assert_ne!(base, with("bcc", json!(["c@dest.example"])));
    assert_ne!(base, with("send_at", json!("2026-01-02T00:00:00Z")));
}

#[test]
fn a_job_can_be_made_in_rust() {
    let job = JobV1 {
        from: "The Shop <orders@shop.example>".into(),
        to: vec!["ada@customer.example".into()],
        subject: "Hello".to_owned(),
        text: Some("Hello".to_owned()),
        ..JobV1::default()
    }
    .parse(&JobLimits::DEFAULT)
    .unwrap();
    assert_eq!(job.id().0.get_version_num(), 7);
    assert!(!format!("{job:?}").contains("ada"), "Debug output names no recipient");
}

#[test]
fn lists_that_a_producer_fills_have_their_limits() {
    let files = |n: usize| json!(vec![json!({ "filename": "f", "content_type": "a/b", "content": "" }); n]);
    let mut document = minimal();
    document["attachments"] = files(100);
    assert_eq!(decode(&document).unwrap().attachments().len(), 100);
    check_refused("attachments", files(101), "field `attachments`", "101 entries; at most 100");
    check_refused("reply_to", json!(vec!["a@shop.example"; 51]), "field `reply_to`", "51 entries; at most 50");
}

#[test]
fn a_template_that_is_too_involved_is_refused_by_its_field() {
    let with = |subject: &str, template: Value, variables: Value| {
        let mut document = minimal();
        document.as_object_mut().unwrap().remove("text");
        document["subject"] = json!(subject);
        document["template"] = template;
        document["variables"] = variables;
        decode(&document)
    };
    let chain = format!("{{{{ {}1 }}}}", "1+".repeat(2500));
    let plain = json!({ "text": "{{ a }}" });
    assert!(with("{{ a }}", plain.clone(), json!({ "a": 1 })).is_ok());
    let cases = [
        (with(&chain[..900], plain.clone(), json!({})), "field `subject`"),
        (with("s", json!({ "text": chain }), json!({})), "field `template.text`"),
        (with("s", json!({ "text": "t", "html": chain }), json!({})), "field `template.html`"),
        (with("s", plain, json!({ "a": "x".repeat(1024 * 1024) })), "field `variables`"),
    ];
    for (refused, field) in cases {
        let error = refused.unwrap_err();
        assert!(matches!(error, DecodeError::Template { .. }) && error.to_string().starts_with(field), "{error}");
    }
}
