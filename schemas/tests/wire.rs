//! The wire form: what is accepted, what is refused and how the refusal reads.

use postrider_schemas::{
    JobLimits, event, examples,
    job::{self, Job},
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
    for (name, document) in examples::ALL.into_iter().chain([examples::WHOLE_MESSAGE]) {
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
    for (name, document) in examples::ALL.into_iter().chain([examples::WHOLE_MESSAGE]) {
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
    check_refused("to", json!([{"address": "a@x.example, c@x.example"}]), "to[0]", "more than one address");
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
    document["cc"] = json!(["R1@dest.example", "r2@DEST.example", "r1x@dest.example"]);
    assert_eq!(decode(&document).unwrap().recipients().len(), 31, "and whatever its case");
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
    for field in ["to", "reply_to"] {
        check_refused(field, json!([{ "address": "a@shop.example", "name": bad }]), &format!("{field}[0]"), "control");
    }
    for field in ["cc", "bcc"] {
        let mut document = minimal();
        document[field] = json!([{ "address": "a@shop.example", "name": bad }]);
        let job = decode(&document).unwrap();
        assert_eq!((job.recipients().len(), job.rejected().len()), (1, 1));
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

#[test]
fn whatever_may_be_absent_may_be_null_in_the_schema_as_well() {
    let schema: Value = serde_json::from_str(&json_schema::job_v1()).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let check = |document: &Value| {
        let errors: Vec<String> = validator.iter_errors(document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        assert!(decode(document).is_ok(), "{document}");
    };
    for field in schema["properties"].as_object().unwrap().keys() {
        let mut document = minimal();
        if document.get(field).is_none() {
            document[field] = Value::Null;
            check(&document);
        }
    }
    let mut document = minimal();
    document["metadata"] = json!({ "a": null });
    document["tracking"] = json!({ "opens": null, "clicks": null });
    document["from"] = json!({ "address": "a@shop.example", "name": null });
    document["list_unsubscribe"] = json!({ "url": null, "mailto": "u@shop.example", "one_click": null });
    document["attachments"] =
        json!([{ "filename": "f", "content_type": "a/b", "content": "YQ\r\n", "content_id": null }]);
    check(&document);
}

#[test]
fn subject_and_author_are_required_of_a_job_made_of_parts() {
    for field in ["subject", "from"] {
        for absent in [true, false] {
            let mut document = minimal();
            document[field] = Value::Null;
            if absent {
                document.as_object_mut().unwrap().remove(field);
            }
            let text = decode(&document).unwrap_err().to_string();
            assert!(text.contains(field) && text.contains("is required"), "{text}");
        }
    }
    let mut document = minimal();
    document["subject"] = json!("");
    assert_eq!(decode(&document).unwrap().subject(), "");
}

#[test]
fn a_subject_is_one_line_whatever_stands_around_it() {
    let subject = |text: &str| {
        let mut document = minimal();
        document["subject"] = json!(text);
        decode(&document).map(|job| job.subject().to_owned()).ok()
    };
    assert_eq!(subject("\n  Hello\tAda \r\n").as_deref(), Some("Hello Ada"));
    assert_eq!(subject("  Hello ").as_deref(), Some("  Hello "));
    assert_eq!(subject(&"🎉".repeat(300)).unwrap().chars().count(), 300);
    assert_eq!(subject("Hello\nAda"), None);
    assert_eq!(subject(&"x".repeat(16 * 1024 + 1)), None);
}

#[test]
fn long_headers_are_read() {
    let mut document = minimal();
    let ids: Vec<String> = (0..100).map(|n| format!("<{n}.{}@mail.example>", "0".repeat(60))).collect();
    document["headers"] = json!({ "References": ids.join(" ") });
    document["list_unsubscribe"] = json!({ "url": format!("https://shop.example/{}", "u".repeat(2000)) });
    assert!(decode(&document).is_ok());
    document["list_unsubscribe"] = json!({ "url": format!("https://shop.example/{}", "u".repeat(5000)) });
    assert!(decode(&document).unwrap_err().to_string().contains("4096"));
}

#[test]
fn an_address_to_leave_a_list_may_bring_a_subject() {
    let mailto = |text: &str| {
        let mut document = minimal();
        document["list_unsubscribe"] = json!({ "mailto": text });
        let job = decode(&document).ok()?;
        let again = wire::decode(&wire::encode(&job), None, &JobLimits::DEFAULT).unwrap();
        assert!(again == job, "{text}");
        job.list_unsubscribe().and_then(|one| one.mailto.as_ref()).map(ToString::to_string)
    };
    let ok = |text: &str| Some(text.to_owned());
    assert_eq!(mailto("leave@shop.example"), ok("leave@shop.example"));
    assert_eq!(
        mailto("MAILTO:leave@shop.example?subject=leave%20u-1&body=a b"),
        ok("leave@shop.example?subject=leave%20u-1&body=a%20b")
    );
    assert_eq!(mailto("leave@shop.example?subject=ü"), ok("leave@shop.example?subject=%C3%BC"));
    assert_eq!(mailto("<mailto:le%2Bave@shop.example>"), ok("le+ave@shop.example"));
    assert_eq!(mailto("a?b@shop.example"), ok("a%3Fb@shop.example"));
    for bad in ["mailto:?subject=x", "mailto:a@b.example,c@d.example", "a@b.example?subject=x\r\nBcc: y"] {
        assert_eq!(mailto(bad), None, "{bad}");
    }
}

#[test]
fn times_of_never_and_not_set_are_times_all_the_same() {
    let time = |text: &str| {
        let mut document = minimal();
        document["expires_at"] = json!(text);
        decode(&document).map(|job| job.expires_at()).ok()
    };
    for never in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.9999999+00:00", "9999-12-31 23:59:59z"] {
        assert_eq!(time(never), Some(Some(jiff::Timestamp::MAX)), "{never}");
    }
    for unset in ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00+01:00"] {
        assert_eq!(time(unset), Some(None), "{unset}");
    }
    for bad in [
        "9999-12-3",
        "9999-12-31",
        "9999-12-3xT",
        "9999-12-31T25:00:00Z",
        "9999-12-31T23:59:59 or so",
        "0001-01-01T00:00:00x",
        "2026-12-01T10:00:00",
    ] {
        assert_eq!(time(bad), None, "{bad}");
    }
}

#[test]
fn one_text_with_too_many_addresses_is_not_read_to_its_end() {
    check_refused("cc", json!("a@b.example,".repeat(200_000)), "to", "more than 50 recipients");
    check_refused("reply_to", json!("a@b.example,".repeat(200_000)), "reply_to", "more than 50 entries");
}

#[expect(clippy::unwrap_used, reason = "writing into memory")]
fn packed(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

#[test]
fn a_document_in_gzip_is_read_within_bounds() {
    let limits = JobLimits { bytes_max: 64 * 1024, ..JobLimits::DEFAULT };
    let read = |bytes: &[u8]| wire::decode(bytes, None, &limits);
    let whole = packed(&minimal().to_string());
    assert!(read(&whole).unwrap() == decode(&minimal()).unwrap());
    assert_eq!(wire::packed_octets(&whole), Some(minimal().to_string().len()));
    let bomb = packed(&" ".repeat(1024 * 1024));
    assert!(matches!(read(&bomb), Err(DecodeError::TooLarge { bytes: 1_048_576, .. })));
    // One that says to be small.
    let mut lying = bomb.clone();
    let end = lying.len() - 4;
    lying[end..].copy_from_slice(&100_u32.to_le_bytes());
    assert!(read(&lying).unwrap_err().to_string().contains("gzip"));
    for broken in [&whole[..whole.len() - 9], &[whole.as_slice(), &whole].concat(), &whole[..12]] {
        assert!(read(broken).is_err());
    }
}

#[test]
fn integers_of_any_length_keep_their_digits() {
    let text = r#"{"id":"0190a5c0-7a10-7c3e-9d51-000000000001","from":"a@shop.example","to":"b@dest.example","subject":"n 123456789012345678901",
        "template":{"text":"{{ n }}"},"variables":{"n":12345678901234567890123,"m":[-9223372036854775809, 18446744073709551615,9007199254740993],
        "t":"\"12345678901234567890123,\\","f":1.5e300,"x\\":1}}"#;
    let job = wire::decode(text.as_bytes(), None, &JobLimits::DEFAULT).unwrap();
    let postrider_schemas::Content::Template { variables, .. } = job.content() else { panic!("no template") };
    assert_eq!(variables["n"], json!("12345678901234567890123"));
    assert_eq!(
        variables["m"],
        json!(["-9223372036854775809", 18_446_744_073_709_551_615_u64, 9_007_199_254_740_993_u64])
    );
    assert_eq!(variables["t"], json!("\"12345678901234567890123,\\"));
    assert_eq!(variables["f"], json!(1.5e300));
    assert_eq!(job.subject(), "n 123456789012345678901");
}

/// A job with a whole message.
fn whole(mime: &str, envelope: Value) -> Value {
    use base64::Engine as _;
    json!({ "id": "0190a5c0-7a10-7c3e-9d51-000000000001", "envelope": envelope,
            "mime": base64::engine::general_purpose::STANDARD.encode(mime) })
}

#[test]
fn a_whole_message_comes_with_its_envelope() {
    const MIME: &str = "From: Ada <a@shop.example>\r\nMessage-ID: <1@x>\r\n\r\nhi\r\n";
    let read = |envelope: Value| decode(&whole(MIME, envelope)).unwrap();
    let job = read(json!({ "from": "bounce@shop.example", "to": "B <b@dest.example>, c@dest.example" }));
    assert_eq!(job.raw().unwrap().as_given(), MIME);
    assert_eq!((job.from().address().to_string().as_str(), job.message_id().as_str()), ("a@shop.example", "<1@x>"));
    let recipients: Vec<String> = job.recipients().iter().map(|one| one.address.to_string()).collect();
    assert_eq!(recipients, ["b@dest.example", "c@dest.example"]);
    let sender = |envelope| read(envelope).sender().map(ToString::to_string);
    assert_eq!(
        sender(json!({ "from": "bounce@shop.example", "to": ["b@dest.example"] })).as_deref(),
        Some("bounce@shop.example")
    );
    assert_eq!(sender(json!({ "to": ["b@dest.example"] })).as_deref(), Some("a@shop.example"));
    for nobody in ["", "<>"] {
        assert_eq!(sender(json!({ "from": nobody, "to": ["b@dest.example"] })), None);
    }
    assert_ne!(
        read(json!({ "from": "", "to": "b@dest.example" })).payload_hash(),
        read(json!({ "to": "b@dest.example" })).payload_hash()
    );
}

#[test]
fn a_whole_message_that_cannot_be_sent_is_refused_by_its_field() {
    #[track_caller]
    fn check(document: &Value, field: &str, reason: &str) {
        let text = decode(document).expect_err(reason).to_string();
        assert!(text.contains(&format!("field `{field}`")) && text.contains(reason), "{text}");
    }
    const MIME: &str = "From: a@shop.example\r\n\r\nhi\r\n";
    let to = json!({ "to": "b@dest.example" });
    check(&whole("Subject: x\r\n\r\n", to.clone()), "mime", "From");
    check(&whole("", to.clone()), "mime", "empty");
    check(&whole(MIME, json!({ "to": [] })), "envelope.to", "at least one");
    check(&whole(MIME, json!({ "to": ["nobody"] })), "envelope.to[0]", "@");
    check(&whole(MIME, json!({ "from": "nobody", "to": "b@dest.example" })), "envelope.from", "@");
    check(&whole(MIME, Value::Null), "envelope", "is required");
    for (field, value) in [
        ("from", json!("a@shop.example")),
        ("to", json!("b@dest.example")),
        ("subject", json!("s")),
        ("html", json!("h")),
        ("headers", json!({ "X-A": "1" })),
        ("tracking", json!({ "opens": true })),
    ] {
        let mut document = whole(MIME, to.clone());
        document[field] = value;
        check(&document, field, "beside `mime`");
    }
    let mut document = minimal();
    document["envelope"] = to;
    check(&document, "envelope", "no `mime`");
    document["mime"] = json!("*");
    check(&document, "from", "beside");
}

#[test]
fn a_bad_recipient_is_set_apart_by_its_position_and_the_others_are_served() {
    let mut document = minimal();
    document["to"] = json!(["nobody", "b@dest.example, c@dest.example, \u{200b}d@dest.example", null]);
    document["cc"] = json!({ "address": "e@dest.example", "name": "a\nb" });
    document["bcc"] = json!(["", "f@dest.example"]);
    let job = decode(&document).unwrap();
    let place = |field: job::RecipientField, position: usize| format!("{}{position}", field.as_str());
    let served: Vec<String> = job.recipients().iter().map(|one| place(one.field, one.position)).collect();
    assert_eq!(served, ["to1", "to2", "bcc1"]);
    let apart: Vec<String> = job.rejected().iter().map(|one| place(one.field, one.position)).collect();
    assert_eq!(apart, ["to0", "to3", "to4", "cc0", "bcc0"]);
    // Who makes a job is told at once.
    let text = document.to_string();
    let error = wire::decode_v1(text.as_bytes()).unwrap().parse(&JobLimits::DEFAULT).unwrap_err();
    assert!(error.to_string().contains("`to[0]`"), "{error}");
    document["to"] = json!(["nobody"]);
    document["cc"] = json!([]);
    document["bcc"] = json!([]);
    assert!(decode(&document).unwrap_err().to_string().contains("`to[0]`"));
    document["reply_to"] = json!(["nobody"]);
    document["to"] = json!(["b@dest.example"]);
    assert!(decode(&document).unwrap_err().to_string().contains("`reply_to[0]`"));
}
