//! `SendGrid`, field by field.

use serde_json::{Value, json};

use crate::{
    KEY, letter,
    oracle::{assert_content, assert_known, assert_list, filled, headers, metadata, object, recipients, requests},
    server::answer,
};

const FIELDS: [&str; 9] = [
    "personalizations",
    "from",
    "reply_to",
    "reply_to_list",
    "subject",
    "content",
    "attachments",
    "categories",
    "tracking_settings",
];

#[tokio::test]
async fn every_field_of_every_job_arrives() {
    let requests = requests("sendgrid", answer(202, ""), &[]).await;
    for (name, job, seen) in requests {
        println!("{name}");
        assert_eq!(seen.target, "POST /v3/mail/send");
        assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}"));
        let body = &seen.body;
        assert_known(body, &FIELDS);
        let mailbox = |one: &_| object(one, "email", "name");
        assert_eq!(body["from"], mailbox(job.from()));
        let replies = [&body["reply_to"], &body["reply_to_list"]].map(|field| match field {
            Value::Null => 0,
            Value::Array(list) => list.len(),
            _ => 1,
        });
        assert_eq!(replies.iter().sum::<usize>(), job.reply_to().len());
        let letter = letter(&job);
        assert_eq!(body["subject"], letter.subject());
        let content = |kind: &str| {
            let list = body["content"].as_array().unwrap();
            list.iter().find(|part| part["type"] == kind).map_or(Value::Null, |part| part["value"].clone())
        };
        assert_eq!(content("text/plain"), filled(letter.text()));
        assert_eq!(content("text/html"), filled(letter.html()));
        assert_eq!(body["categories"], if job.tags().is_empty() { Value::Null } else { json!(job.tags()) });
        assert_eq!(body["tracking_settings"]["open_tracking"]["enable"], job.tracking().opens);
        assert_eq!(body["tracking_settings"]["click_tracking"]["enable"], job.tracking().clicks);
        assert_eq!(body["personalizations"].as_array().unwrap().len(), 1);
        let own = &body["personalizations"][0];
        assert_known(own, &["to", "cc", "bcc", "headers", "custom_args"]);
        let [to, cc, bcc] = recipients(&job);
        assert_list(own, "to", &to, mailbox);
        assert_list(own, "cc", &cc, mailbox);
        assert_list(own, "bcc", &bcc, mailbox);
        assert_eq!(own["custom_args"], metadata(&job));
        let mut expected = headers(&job);
        expected.insert("Message-ID".to_owned(), job.message_id());
        assert_eq!(own["headers"], json!(expected));
        let files = body["attachments"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(files.len(), job.attachments().len());
        for (file, one) in files.iter().zip(job.attachments()) {
            assert_eq!(file["filename"], one.filename);
            assert_eq!(file["type"], one.content_type);
            assert_content(&file["content"], one);
            assert_eq!(file["disposition"], if one.content_id.is_some() { "inline" } else { "attachment" });
            assert_eq!(file["content_id"], one.content_id.as_deref().map_or(Value::Null, Into::into));
        }
    }
}
