//! Brevo, field by field.

use serde_json::{Value, json};

use crate::{
    KEY, letter,
    oracle::{assert_content, assert_known, assert_list, filled, headers, metadata, object, recipients, requests},
    server::answer,
};

const FIELDS: [&str; 11] =
    ["sender", "to", "cc", "bcc", "replyTo", "subject", "htmlContent", "textContent", "headers", "tags", "attachment"];

#[tokio::test]
async fn every_field_of_every_job_arrives() {
    // A header with an umlaut, inline images twice, two addresses to reply to.
    let misfits = ["newsletter", "inline-image", "shown file", "copies"];
    let requests = requests("brevo", answer(201, json!({ "messageId": "<1@x>" })), &misfits).await;
    for (name, job, seen) in requests {
        println!("{name}");
        assert_eq!(seen.target, "POST /v3/smtp/email");
        assert_eq!(seen.headers["api-key"], KEY);
        let body = &seen.body;
        assert_known(body, &FIELDS);
        let mailbox = |one: &_| {
            let mut object = object(one, "email", "name");
            if object["name"] == "Bücher & Söhne" {
                object["name"] = "=?utf-8?b?QsO8Y2hlciAmIFPDtmhuZQ==?=".into();
            }
            object
        };
        let [to, cc, bcc] = recipients(&job);
        assert_list(body, "to", &to, mailbox);
        assert_list(body, "cc", &cc, mailbox);
        assert_list(body, "bcc", &bcc, mailbox);
        assert_eq!(body["sender"], mailbox(job.from()));
        assert_eq!(body["replyTo"], job.reply_to().first().map_or(Value::Null, mailbox));
        let letter = letter(&job);
        assert_eq!(body["subject"], letter.subject());
        assert_eq!(body["htmlContent"], filled(letter.html()));
        assert_eq!(body["textContent"], filled(letter.text()));
        assert_eq!(body["tags"], if job.tags().is_empty() { Value::Null } else { json!(job.tags()) });
        let mut found = body["headers"].as_object().unwrap().clone();
        assert_eq!(found.remove("idempotencyKey"), Some(letter.view().key().to_string().into()));
        let custom = found.remove("X-Mailin-custom").unwrap();
        assert_eq!(serde_json::from_str::<Value>(custom.as_str().unwrap()).unwrap(), metadata(&job));
        assert_eq!(Value::Object(found), json!(headers(&job)));
        let files = body["attachment"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(files.len(), job.attachments().len());
        for (file, one) in files.iter().zip(job.attachments()) {
            assert_eq!(file["name"], one.filename);
            assert_content(&file["content"], one);
        }
    }
}
