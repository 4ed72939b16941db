//! Lettermint, sending API: <https://docs.lettermint.co/api-reference/sending/send/send-an-email>.
//!
//! Calls are not shared: the documents of `/send/batch` do not say that its answers stand in the order of the call. Not documented either, and so
//! assumed on the safe side: the largest message, limits of metadata, and whether a message of which some recipients are suppressed has the status
//! `suppressed`. Nothing here was tried with an account.

use std::time::Duration;

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::job::Attachment;
use serde_json::{Map, Value, json};

use super::{
    description::{Api, Call, Description, MIB, Notes, Setting, SettingForm, account},
    encoding::{base64, name_addr, put},
    fields,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "lettermint",
    name: "Lettermint",
    base_url: Some("https://api.lettermint.co"),
    settings: &[
        Setting::secret("api_key", "The project's token for the sending API."),
        Setting::optional("message_stream", SettingForm::Text, "The project's route; its default where absent."),
    ],
    // One tag. The same key and body bring the same answer for 24 hours: https://docs.lettermint.co/platform/emails/idempotency
    capabilities: Capabilities {
        tags_max: 1,
        bytes_max: 7 * MIB,
        idempotency: Some(Duration::from_hours(24)),
        ..Capabilities::ALL
    },
    batching: None,
    notes: Notes::USUAL,
};

/// Shortest body, in characters.
const BODY_MIN: usize = 3;
/// Longest tag (<https://docs.lettermint.co/platform/emails/tags>).
const TAG_MAX: usize = 255;
/// Headers that have fields of their own, and the one that sets a tag.
const RESERVED: [&str; 8] = ["from", "to", "cc", "bcc", "subject", "reply-to", "idempotency-key", "x-lm-*"];

account! {
    /// A project of an account at Lettermint.
    pub struct Lettermint {
        /// The project's token for the sending API.
        api_key: secret,
        /// The project's route.
        message_stream: some_text,
    }
}

impl Api for Lettermint {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        let headers =
            vec![("x-lettermint-token", self.api_key.clone()), ("idempotency-key", message.key().to_string().into())];
        Ok(Request::json("/v1/send", headers, &body(self.message_stream.as_deref(), message)?))
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        let body = reply.json().unwrap_or_default();
        let text = reason(&body).unwrap_or_else(|| reply.excerpt());
        match reply.status {
            200..=299 if body["status"] == "suppressed" => {
                ReplyVerdict::refused(Class::Recipient, "on the project's suppression list")
            }
            200..=299 => match body["message_id"].as_str().filter(|id| !id.is_empty() && reply.is_whole) {
                Some(id) => ReplyVerdict::Taken(id.to_owned()),
                None => reply.by_status(&text, now),
            },
            // The same key is under way, or came with another body: that call may have been taken.
            409 => ReplyVerdict::Unclear(text),
            _ => reply.by_status(&text, now),
        }
    }
}

fn reason(body: &Value) -> Option<String> {
    let error = &body["error"];
    let text = error["message"].as_str().or_else(|| body["message"].as_str()).or_else(|| error.as_str())?;
    Some(error["code"].as_str().map_or_else(|| text.to_owned(), |code| format!("{code}: {text}")))
}

fn body(route: Option<&str>, message: &Message<'_>) -> Result<Value, Unsupported> {
    let job = message.job;
    let addressees = fields::addressees(message)?;
    let mut body = Map::new();
    put(&mut body, "from", name_addr(job.from()));
    for (field, list) in [("to", &addressees.to), ("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, list.iter().map(|one| name_addr(one)).collect::<Value>());
        }
    }
    if !job.reply_to().is_empty() {
        put(&mut body, "reply_to", job.reply_to().iter().map(name_addr).collect::<Value>());
    }
    put(&mut body, "subject", message.subject);
    for (field, text) in [("text", message.text), ("html", message.html)] {
        let Some(text) = text else { continue };
        if text.chars().count() < BODY_MIN {
            return Err(Unsupported::Value(format!("a body of fewer than {BODY_MIN} characters")));
        }
        put(&mut body, field, text);
    }
    if let Some(route) = route {
        put(&mut body, "route", route);
    }
    if let Some(tag) = job.tags().first() {
        if !is_tag(tag) {
            return Err(Unsupported::Value(format!("the tag {tag}")));
        }
        put(&mut body, "tag", tag.as_str());
    }
    let headers: Map<String, Value> =
        fields::headers(message, &RESERVED)?.into_iter().map(|(name, value)| (name, value.into())).collect();
    if !headers.is_empty() {
        put(&mut body, "headers", headers);
    }
    put(&mut body, "metadata", fields::metadata(message)?);
    // Said in both cases: a route's own setting must not track what did not ask for it.
    let tracking = job.tracking();
    put(&mut body, "settings", json!({ "track_opens": tracking.opens, "track_clicks": tracking.clicks }));
    let files: Vec<Value> = message
        .inline
        .iter()
        .map(|one| file(one, true))
        .chain(message.attached.iter().map(|one| file(one, false)))
        .collect();
    if !files.is_empty() {
        put(&mut body, "attachments", files);
    }
    Ok(Value::Object(body))
}

fn file(one: &Attachment, is_inline: bool) -> Value {
    let mut file = json!({
        "filename": one.filename,
        "content": base64(&one.content),
        "content_type": fields::bare_type(&one.content_type),
    });
    if let Some(id) = one.content_id.as_deref().filter(|_| is_inline) {
        file["content_id"] = id.into();
    }
    file
}

/// Words of letters, digits, underscores and hyphens with single blanks between them.
fn is_tag(tag: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    tag.len() <= TAG_MAX && tag.split(' ').all(is_word)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::{
        fields::testing::{job, letter},
        reply::testing::{now, reply, shown},
    };

    fn account() -> Lettermint {
        Lettermint { api_key: "token".into(), message_stream: Some("news".to_owned()) }
    }

    #[track_caller]
    fn check(status: u16, body: &str, expected: &str) {
        let reply = reply(status, &[], body);
        assert_eq!(shown(&account().verdict(&reply, now())), expected, "{status} {body}");
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(202, r#"{"message_id":"abc","status":"pending"}"#, "taken abc");
        check(202, r#"{"message_id":"abc","status":"suppressed"}"#, "recipient");
        check(202, r#"{"status":"pending"}"#, "unclear");
        check(202, "<html>", "not the api");
        check(401, r#"{"message":"who"}"#, "config");
        check(403, "", "config");
        check(409, r#"{"error":{"code":"idempotency_conflict","message":"another body"}}"#, "unclear");
        check(422, r#"{"message":"no","errors":{"to":["x"]}}"#, "unsupported");
        check(429, "", "throttled");
        check(500, "", "transient");
        check(502, "", "unclear");
    }

    #[test]
    fn a_message_holds_all_of_its_job_and_the_same_key_each_time() {
        let files = json!([
            { "filename": "a.pdf", "content_type": "application/pdf", "content": "YQ==" },
            { "filename": "b.png", "content_type": "image/png", "content": "Yg==", "content_id": "b" },
        ]);
        let job = job(json!({
            "cc": ["c@dest.example"], "reply_to": ["r@shop.example"], "tags": ["Order 7"], "metadata": { "order": "7" },
            "headers": [{ "name": "X-One", "value": "1" }], "html": "<img src=\"cid:b\">", "attachments": files,
            "tracking": { "opens": true, "clicks": false },
        }));
        let call = Call { host: "", keys: None, now: now() };
        let request = account().request(&letter(&job), call).unwrap();
        assert_eq!(request.path, "/v1/send");
        let header = |name: &str| {
            let found = request.headers.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| value.expose_secret().to_owned()).unwrap()
        };
        assert_eq!(header("x-lettermint-token"), "token");
        assert_eq!(header("idempotency-key"), letter(&job).key().to_string());
        assert_eq!(account().request(&letter(&job), call).unwrap().body, request.body);
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let expected = json!({
            "from": "Shop <shop@shop.example>", "to": ["Ann <ann@dest.example>"], "cc": ["c@dest.example"],
            "reply_to": ["r@shop.example"], "subject": "Hello", "text": "Hello Ann", "html": "<img src=\"cid:b\">",
            "route": "news", "tag": "Order 7", "headers": { "X-One": "1" },
            "metadata": { "order": "7", "postrider_job_id": "0190a5c0-7a10-7c3e-9d51-000000000001" },
            "settings": { "track_opens": true, "track_clicks": false },
            "attachments": [
                { "filename": "b.png", "content_type": "image/png", "content": "Yg==", "content_id": "b" },
                { "filename": "a.pdf", "content_type": "application/pdf", "content": "YQ==" },
            ],
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        let fit = |fields: Value| body(None, &letter(&job(fields))).err();
        assert_eq!(fit(json!({ "text": "Hey" })), None);
        let not = |text: &str| Some(Unsupported::Value(text.to_owned()));
        assert_eq!(fit(json!({ "text": "Hi" })), not("a body of fewer than 3 characters"));
        assert_eq!(fit(json!({ "tags": ["order#7"] })), not("the tag order#7"));
        let header = json!([{ "name": "X-LM-Tag", "value": "a" }]);
        assert_eq!(fit(json!({ "headers": header })), Some(Unsupported::Header("X-LM-Tag".to_owned())));
    }
}
