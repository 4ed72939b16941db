//! Postmark, field by field.

use serde_json::{Value, json};

use crate::{
    KEY, letter,
    oracle::{assert_content, assert_known, filled, headers, metadata, recipients, requests},
    server::ok,
};

const FIELDS: [&str; 16] = [
    "From",
    "To",
    "Cc",
    "Bcc",
    "ReplyTo",
    "Subject",
    "TextBody",
    "HtmlBody",
    "Tag",
    "Metadata",
    "Headers",
    "TrackOpens",
    "TrackLinks",
    "Attachments",
    "MessageStream",
    "TemplateModel",
];

#[tokio::test]
async fn every_field_of_every_job_arrives() {
    let success = ok(json!({ "MessageID": "b7bc", "ErrorCode": 0, "Message": "OK" }));
    let requests = requests("postmark", success, &[]).await;
    assert_eq!(requests.len(), 23);
    for (name, job, seen) in requests {
        println!("{name}");
        assert_eq!(seen.target, "POST /email");
        assert_eq!(seen.headers["x-postmark-server-token"], KEY);
        assert_eq!(seen.headers["accept"], "application/json");
        assert_eq!(seen.headers["content-type"], "application/json");
        let body = &seen.body;
        assert_known(body, &FIELDS);
        let list = |field: &str| body[field].as_str().map(str::to_owned);
        for (field, list_of) in ["To", "Cc", "Bcc"].into_iter().zip(recipients(&job)) {
            let text = list(field).unwrap_or_default();
            assert_eq!(text.matches('@').count(), list_of.len(), "{field}");
            for one in list_of {
                assert!(text.contains(&one.address().to_string()), "{field}");
                assert!(one.name().is_none_or(|name| text.contains(name)), "{field}");
            }
        }
        assert!(list("From").unwrap().ends_with(&format!("<{}>", job.from().address())));
        assert_eq!(list("ReplyTo").map_or(0, |text| text.matches('@').count()), job.reply_to().len());
        let letter = letter(&job);
        assert_eq!(body["Subject"], letter.subject());
        assert_eq!(body["TextBody"], filled(letter.text()));
        assert_eq!(body["HtmlBody"], filled(letter.html()));
        assert_eq!(body["Tag"], job.tags().first().map_or(Value::Null, |tag| tag.as_str().into()));
        assert_eq!(body["Metadata"], metadata(&job));
        assert_eq!(body["TrackOpens"], job.tracking().opens);
        assert_eq!(body["TrackLinks"], if job.tracking().clicks { "HtmlAndText" } else { "None" });
        assert_eq!(body["MessageStream"], "news");
        let mut expected = headers(&job);
        expected.insert("Message-ID".to_owned(), job.message_id());
        expected.insert("X-PM-KeepID".to_owned(), "true".to_owned());
        let list = body["Headers"].as_array().unwrap();
        assert_eq!(list.len(), expected.len());
        for header in list {
            assert_eq!(header["Value"], expected[header["Name"].as_str().unwrap()]);
        }
        let files = body["Attachments"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(files.len(), job.attachments().len());
        for (file, one) in files.iter().zip(job.attachments()) {
            assert_eq!(file["Name"], one.filename);
            assert_eq!(file["ContentType"], one.content_type);
            assert_content(&file["Content"], one);
            let id = one.content_id.as_ref().map_or(Value::Null, |id| format!("cid:{id}").into());
            assert_eq!(file["ContentID"], id);
        }
    }
}
