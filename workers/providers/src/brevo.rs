//! Brevo, transactional e-mail: <https://developers.brevo.com/reference/sendtransacemail>.

use std::time::Duration;

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::address::Mailbox;
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::{
    description::{Api, Call, Description, MIB, Notes, Setting, account},
    encoding::{base64, put},
    fields,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "brevo",
    name: "Brevo",
    base_url: Some("https://api.brevo.com"),
    settings: &[Setting::API_KEY],
    // Tracking belongs to the account. The documents disagree on 15 or 30 minutes for the idempotency key.
    capabilities: Capabilities {
        inline: false,
        opens: false,
        clicks: false,
        bytes_max: 14 * MIB,
        schedules: true,
        idempotency: Some(Duration::from_mins(15)),
        ..Capabilities::ALL
    },
    batching: None,
    notes: Notes::USUAL,
};

account! {
    /// An account at Brevo.
    pub struct Brevo {
        /// The API key.
        api_key: secret,
    }
}

impl Api for Brevo {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }
}

/// Headers that are settings of the message. A `Message-ID` is not among those that may be set.
const RESERVED: [&str; 3] = ["idempotencykey", "x-mailin-*", "sender.ip"];
/// Marks that are filled in wherever they stand.
const TEMPLATE_MARKS: [&str; 2] = ["{{", "{%"];

/// One message. Safe to repeat for a while: the key is that of the job.
pub fn request(api_key: &SecretString, outgoing: &Message<'_>) -> Result<Request, Unsupported> {
    let headers = vec![("accept", "application/json".into()), ("api-key", api_key.clone())];
    Ok(Request::json("/v3/smtp/email", headers, &message(outgoing)?))
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let body = reply.json();
    let text = body.as_ref().map_or_else(|| reply.excerpt(), reason);
    let word = |field: &str| body.as_ref().and_then(|body| body[field].as_str());
    match (reply.status, word("code")) {
        (200..=299, _) => match word("messageId") {
            Some(id) => ReplyVerdict::Taken(id.to_owned()),
            None => reply.by_status(&text, now),
        },
        // A call with this key went through before, and this one was not processed
        // (<https://developers.brevo.com/docs/heterogenous-versions-batch-emails>).
        (400..=499, Some("duplicate_parameter")) => ReplyVerdict::Duplicate(text),
        // The documents do not say with which status it comes.
        (402, _) | (400..=499, Some("not_enough_credits")) => {
            ReplyVerdict::refused(Class::Quota, text).after(reply.retry_after(now))
        }
        (429, _) => {
            let wait = reply.retry_after(now).or_else(|| reply.seconds("x-sib-ratelimit-reset"));
            ReplyVerdict::refused(Class::Throttled, text).after(wait)
        }
        _ => reply.by_status(&text, now),
    }
}

fn reason(body: &Value) -> String {
    let message = body["message"].as_str().unwrap_or("no reason given");
    match body["code"].as_str() {
        Some(code) => format!("{code}: {message}"),
        None => message.to_owned(),
    }
}

fn message(outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    let job = outgoing.job;
    let addressees = fields::addressees(outgoing)?;
    let mut body = Map::new();
    put(&mut body, "sender", mailbox(job.from()));
    for (field, list) in [("to", &addressees.to), ("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, list.iter().copied().map(mailbox).collect::<Value>());
        }
    }
    if let Some(one) = fields::reply_to(outgoing)? {
        put(&mut body, "replyTo", mailbox(one));
    }
    let bodies = [("subject", Some(outgoing.subject)), ("textContent", outgoing.text), ("htmlContent", outgoing.html)];
    for (field, text) in bodies {
        let Some(text) = text else { continue };
        if TEMPLATE_MARKS.iter().any(|mark| text.contains(mark)) {
            return Err(Unsupported::Value("content with {{ or {% in it".to_owned()));
        }
        put(&mut body, field, fields::not_empty(text));
    }
    put(&mut body, "headers", headers(outgoing)?);
    if !job.tags().is_empty() {
        put(&mut body, "tags", job.tags());
    }
    let files = files(outgoing)?;
    if !files.is_empty() {
        put(&mut body, "attachment", files);
    }
    Ok(Value::Object(body))
}

/// Extra headers, then the key and what webhooks give back. Characters other than ASCII would go out as they are, which no header may
/// (found by django-anymail).
fn headers(outgoing: &Message<'_>) -> Result<Map<String, Value>, Unsupported> {
    let mut object = Map::new();
    for (name, value) in fields::headers(outgoing, &RESERVED)? {
        if !value.is_ascii() {
            return Err(Unsupported::Value(format!("the header {name} with other characters than ASCII")));
        }
        put(&mut object, &name, value);
    }
    let metadata = fields::metadata(outgoing)?;
    if let Some((key, _)) = metadata.iter().find(|(_, value)| value.as_str().is_none_or(|text| !text.is_ascii())) {
        return Err(Unsupported::Value(format!("the metadata {key} with other characters than ASCII")));
    }
    put(&mut object, "X-Mailin-custom", Value::Object(metadata).to_string());
    put(&mut object, "idempotencyKey", outgoing.key().to_string());
    Ok(object)
}

/// There is no field for the type of a file: it is that of its name.
fn files(outgoing: &Message<'_>) -> Result<Vec<Value>, Unsupported> {
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    if !inline.is_empty() {
        return Err(Unsupported::Value("inline images".to_owned()));
    }
    let file = |one: &postrider_schemas::job::Attachment| {
        let kind = fields::bare_type(&one.content_type);
        match fields::type_of_name(&one.filename) {
            Some(usual) if usual == kind => Ok(json!({ "name": one.filename, "content": base64(&one.content) })),
            _ => Err(Unsupported::Value(format!("a file of type {kind} with such a name"))),
        }
    };
    attached.into_iter().map(file).collect()
}

/// A name with both letters other than ASCII and special characters is dropped without a word, unless it comes in encoded words
/// (found by django-anymail).
fn mailbox(one: &Mailbox) -> Value {
    let mut object = fields::mailbox(one, "email", "name");
    let is_dropped = |name: &str| !name.is_ascii() && name.contains(|c: char| c.is_ascii_punctuation());
    if let Some(name) = one.name().filter(|name| is_dropped(name)) {
        object["name"] = fields::encoded_name(name).into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fields::testing::{job, letter},
        reply::testing::{now, reply, shown},
    };

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {body}");
    }

    fn error(code: &str) -> String {
        json!({ "code": code, "message": "why" }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(201, &[], r#"{"messageId":"<2017.1@smtp-relay.mailin.fr>"}"#, "taken <2017.1@smtp-relay.mailin.fr>");
        check(202, &[], r#"{"messageId":"<2017.1@x>","batchId":"b"}"#, "taken <2017.1@x>");
        check(400, &[], &error("invalid_parameter"), "unsupported");
        check(400, &[], &error("missing_parameter"), "unsupported");
        check(400, &[], &error("duplicate_parameter"), "duplicate");
        check(400, &[], &error("not_enough_credits"), "quota");
        check(402, &[], &error("not_enough_credits"), "quota");
        check(402, &[], "", "quota");
        check(401, &[], &error("unauthorized"), "config");
        check(403, &[], &error("permission_denied"), "config");
        check(404, &[], &error("document_not_found"), "config");
        check(429, &[("x-sib-ratelimit-reset", "17")], &error("too_many_requests"), "throttled after 17");
        check(429, &[], "", "throttled");
        check(500, &[], "", "transient");
        check(503, &[], "<html>", "transient");
        check(502, &[], "<html>", "unclear");
        check(200, &[], "<html>a login page</html>", "not the api");
        check(201, &[], "", "unclear");
        check(201, &[], r#"{"messageId":"<20"#, "unclear");
        check(201, &[], "{}", "unclear");
    }

    #[track_caller]
    fn check_fit(fields: Value, expected: Option<&str>) {
        assert_eq!(message(&letter(&job(fields))).err(), expected.map(|text| Unsupported::Value(text.to_owned())));
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        check_fit(json!({ "text": "a {b} %}" }), None);
        check_fit(json!({ "text": "a {{ b }}" }), Some("content with {{ or {% in it"));
        check_fit(json!({ "subject": "{% a" }), Some("content with {{ or {% in it"));
        check_fit(json!({ "metadata": { "a": "é" } }), Some("the metadata a with other characters than ASCII"));
        let header = json!([{ "name": "X-A", "value": "é" }]);
        check_fit(json!({ "headers": header }), Some("the header X-A with other characters than ASCII"));
        check_fit(json!({ "reply_to": ["a@shop.example", "b@shop.example"] }), Some("several addresses to reply to"));
        let file =
            |name, kind| json!({ "attachments": [{ "filename": name, "content_type": kind, "content": "YQ==" }] });
        check_fit(file("a.pdf", "application/pdf; name=a"), None);
        check_fit(file("a.pdf", "text/plain"), Some("a file of type text/plain with such a name"));
        check_fit(file("a", "text/plain"), Some("a file of type text/plain with such a name"));
        let shown = json!([{ "filename": "a.png", "content_type": "image/png", "content": "YQ==", "content_id": "a" }]);
        check_fit(json!({ "html": "<img src=\"cid:a\">", "attachments": shown }), Some("inline images"));
    }

    #[test]
    fn a_name_that_would_be_dropped_is_encoded() {
        let name =
            |name: &str| mailbox(&Mailbox::parse(&format!("\"{name}\" <a@shop.example>")).unwrap())["name"].clone();
        assert_eq!(name("Zoë Ann"), "Zoë Ann");
        assert_eq!(name("Shop, Inc."), "Shop, Inc.");
        assert_eq!(name("Zoë, Ann"), "=?utf-8?b?Wm/DqywgQW5u?=");
    }
}
