//! Mailjet, field by field.

use serde_json::{Value, json};

use crate::{
    letter,
    oracle::{assert_content, assert_known, assert_list, filled, headers, metadata, object, recipients, requests},
    server::ok,
};

const FIELDS: [&str; 18] = [
    "From",
    "To",
    "Cc",
    "Bcc",
    "ReplyTo",
    "Subject",
    "TextPart",
    "HTMLPart",
    "TemplateLanguage",
    "Headers",
    "CustomID",
    "EventPayload",
    "CustomCampaign",
    "DeduplicateCampaign",
    "TrackOpens",
    "TrackClicks",
    "Attachments",
    "InlinedAttachments",
];

#[tokio::test]
async fn every_field_of_every_job_arrives() {
    let success = ok(json!({ "Messages": [{ "Status": "success", "To": [{ "MessageUUID": "12-34" }] }] }));
    // Two addresses to reply to.
    let requests = requests("mailjet", success, &["copies"]).await;
    for (name, job, seen) in requests {
        println!("{name}");
        assert_eq!(seen.target, "POST /v3.1/send");
        // key-Zr8kPq41:key-second-7Hh2
        assert_eq!(seen.headers["authorization"], "Basic a2V5LVpyOGtQcTQxOmtleS1zZWNvbmQtN0hoMg==");
        assert_known(&seen.body, &["Messages"]);
        assert_eq!(seen.body["Messages"].as_array().unwrap().len(), 1);
        let body = &seen.body["Messages"][0];
        assert_known(body, &FIELDS);
        let mailbox = |one: &_| object(one, "Email", "Name");
        let [to, cc, bcc] = recipients(&job);
        assert_list(body, "To", &to, mailbox);
        assert_list(body, "Cc", &cc, mailbox);
        assert_list(body, "Bcc", &bcc, mailbox);
        assert_eq!(body["From"], mailbox(job.from()));
        assert_eq!(body["ReplyTo"], job.reply_to().first().map_or(Value::Null, mailbox));
        let letter = letter(&job);
        assert_eq!(body["Subject"], letter.subject());
        assert_eq!(body["TextPart"], filled(letter.text()));
        assert_eq!(body["HTMLPart"], filled(letter.html()));
        assert_eq!(body["TemplateLanguage"], false);
        assert_eq!(body["CustomID"], job.id().to_string());
        let payload: Value = serde_json::from_str(body["EventPayload"].as_str().unwrap()).unwrap();
        assert_eq!(payload, metadata(&job));
        assert_eq!(body["CustomCampaign"], job.tags().first().map_or(Value::Null, |tag| tag.as_str().into()));
        assert_ne!(body["DeduplicateCampaign"], true);
        let word = |is_on| if is_on { "enabled" } else { "disabled" };
        assert_eq!(body["TrackOpens"], word(job.tracking().opens));
        assert_eq!(body["TrackClicks"], word(job.tracking().clicks));
        let expected = headers(&job);
        assert_eq!(body["Headers"], if expected.is_empty() { Value::Null } else { json!(expected) });
        for (field, is_inline) in [("InlinedAttachments", true), ("Attachments", false)] {
            let files = body[field].as_array().map(Vec::as_slice).unwrap_or_default();
            let list: Vec<_> = job.attachments().iter().filter(|one| one.content_id.is_some() == is_inline).collect();
            assert_eq!(files.len(), list.len(), "{field}");
            for (file, one) in files.iter().zip(list) {
                assert_eq!(file["Filename"], one.filename);
                assert_eq!(file["ContentType"], one.content_type);
                assert_content(&file["Base64Content"], one);
                assert_eq!(file["ContentID"], one.content_id.as_deref().map_or(Value::Null, Into::into));
            }
        }
    }
}
