//! Resend, field by field.

use serde_json::{Value, json};

use crate::{
    KEY, letter,
    oracle::{assert_content, assert_known, filled, headers, recipients, requests},
    server::ok,
};

const FIELDS: [&str; 11] =
    ["from", "to", "cc", "bcc", "reply_to", "subject", "html", "text", "headers", "attachments", "tags"];

#[tokio::test]
async fn every_field_of_every_job_arrives() {
    // Tracking belongs to the domain: the router keeps such jobs away where the account does not track.
    let requests = requests("resend", ok(json!({ "id": "49a3" })), &[]).await;
    for (name, job, seen) in requests {
        println!("{name}");
        assert_eq!(seen.target, "POST /emails");
        assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}"));
        assert_eq!(seen.headers["idempotency-key"], letter(&job).view().key().to_string());
        let body = &seen.body;
        assert_known(body, &FIELDS);
        for (field, list) in ["to", "cc", "bcc"].into_iter().zip(recipients(&job)) {
            let found = body[field].as_array().map(Vec::as_slice).unwrap_or_default();
            assert_eq!(found.len(), list.len(), "{field}");
            for (found, one) in found.iter().zip(&list) {
                let found = found.as_str().unwrap();
                assert!(found.contains(&one.address().to_string()), "{field}");
                // Quotes are refused.
                assert!(!found.contains('"'), "{field}");
                let is_plain = |name: &str| name.chars().all(|c| c.is_alphanumeric() || c == ' ');
                match one.name() {
                    Some(name) if is_plain(name) => assert!(found.starts_with(&format!("{name} <"))),
                    Some(_) => assert!(found.starts_with("=?utf-8?b?")),
                    None => assert_eq!(found, one.address().to_string()),
                }
            }
        }
        let from = job.from();
        assert_eq!(body["from"], format!("{} <{}>", from.name().unwrap(), from.address()));
        assert_eq!(body["reply_to"].as_array().map_or(0, Vec::len), job.reply_to().len());
        let letter = letter(&job);
        assert_eq!(body["subject"], letter.subject());
        assert_eq!(body["html"], filled(letter.html()));
        // Without a text one would be made out of the HTML.
        let text = if letter.text().is_none() { "".into() } else { filled(letter.text()) };
        assert_eq!(body["text"], text);
        let mut expected = headers(&job);
        expected.insert("Message-ID".to_owned(), job.message_id());
        assert_eq!(body["headers"], json!(expected));
        let tags = body["tags"].as_array().unwrap();
        let value = |name: &str| tags.iter().find(|tag| tag["name"] == name).map(|tag| tag["value"].clone());
        assert_eq!(tags.len(), 1 + job.tags().len() + job.metadata().len());
        assert_eq!(value("postrider_job_id"), Some(job.id().to_string().into()));
        for (n, tag) in job.tags().iter().enumerate() {
            assert_eq!(value(&format!("tag_{}", n + 1)), Some(tag.as_str().into()));
        }
        for (key, text) in job.metadata() {
            assert_eq!(value(key), Some(text.as_str().into()));
        }
        let files = body["attachments"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(files.len(), job.attachments().len());
        for (file, one) in files.iter().zip(job.attachments()) {
            assert_eq!(file["filename"], one.filename);
            assert_eq!(file["content_type"], one.content_type);
            assert_content(&file["content"], one);
            assert_eq!(file["content_id"], one.content_id.as_deref().map_or(Value::Null, Into::into));
        }
    }
}
