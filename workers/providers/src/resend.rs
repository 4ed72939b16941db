//! Resend: <https://resend.com/docs/api-reference/emails/send-email>.

use std::time::Duration;

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::address::Mailbox;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    batch::{Batched, Item},
    description::{Api, Batching, Call, Description, MIB, Notes, Setting, account},
    encoding::{base64, put},
    fields,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "resend",
    name: "Resend",
    base_url: Some("https://api.resend.com"),
    settings: &[Setting::API_KEY],
    // Tracking belongs to the domain; 40 MB with attachments as base64. No limit for a call is named.
    capabilities: Capabilities {
        opens: false,
        clicks: false,
        bytes_max: 28 * MIB,
        schedules: true,
        idempotency: Some(Duration::from_hours(24)),
        batch_max: 100,
        ..Capabilities::ALL
    },
    batching: Some(Batching { bytes_max: 13 * MIB, shares_content: false }),
    notes: Notes::USUAL,
};

account! {
    /// An account at Resend.
    pub struct Resend {
        /// The API key.
        api_key: secret,
    }
}

impl Api for Resend {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn item(&self, message: &Message<'_>) -> Result<Item, Unsupported> {
        item(message)
    }

    fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        Some(batch_request(&self.api_key, items))
    }

    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        batch_verdict(reply, now)
    }
}

/// Longest name and value of a tag.
const TAG_MAX: usize = 256;
/// Headers that have fields of their own.
const RESERVED: [&str; 6] = ["from", "to", "cc", "bcc", "subject", "reply-to"];

/// One message. Safe to repeat: the key is that of the job.
pub fn request(api_key: &SecretString, outgoing: &Message<'_>) -> Result<Request, Unsupported> {
    Ok(call(api_key, "/emails", outgoing.key().to_string(), &message(outgoing)?))
}

/// One message as a part of a call with others: without attachments, which such a call does not take.
pub fn item(outgoing: &Message<'_>) -> Result<Item, Unsupported> {
    if !outgoing.job.attachments().is_empty() {
        return Err(Unsupported::Value("attachments in a call for several messages".to_owned()));
    }
    Ok(Item { shared: String::new(), own: message(outgoing)? })
}

/// One call for all. Its key is made of its content, which holds the ids of the jobs: the same jobs in the same order, the same key.
pub fn batch_request(api_key: &SecretString, items: &[&Item]) -> Request {
    let body: Value = items.iter().map(|item| item.own.clone()).collect();
    let mut request = call(api_key, "/emails/batch", String::new(), &body);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::digest(&request.body)[..16]);
    // Version 8: a value of our own making.
    let key = uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string();
    request.headers.retain(|(name, _)| *name != "idempotency-key");
    request.headers.push(("idempotency-key", key.into()));
    request
}

/// All messages or none, unless the account validates each for itself: then the errors stand beside the ids.
pub fn batch_verdict(reply: &ProviderReply, now: Timestamp) -> Batched {
    let body = reply.json().unwrap_or_default();
    let Some(taken) = body["data"].as_array().filter(|_| (200..300).contains(&reply.status)) else {
        return Batched::Whole(verdict(reply, now));
    };
    let errors = body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut taken = taken.iter().map(|one| match one["id"].as_str() {
        Some(id) => ReplyVerdict::Taken(id.to_owned()),
        None => ReplyVerdict::Unclear("an answer without an id".to_owned()),
    });
    let list = (0..taken.len() + errors.len()).filter_map(|n| {
        let error = errors.iter().find(|error| error["index"].as_u64() == u64::try_from(n).ok());
        error.map(|error| ReplyVerdict::undocumented(reason(error))).or_else(|| taken.next())
    });
    Batched::Each(list.collect())
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let body = reply.json();
    let text = body.as_ref().map_or_else(|| reply.excerpt(), reason);
    let name = body.as_ref().and_then(|body| body["name"].as_str()).unwrap_or_default();
    let id = body.as_ref().and_then(|body| body["id"].as_str());
    let wait = reply.retry_after(now).or_else(|| reply.seconds("ratelimit-reset"));
    match (reply.status, name) {
        (200..=299, _) if id.is_some() => ReplyVerdict::Taken(id.unwrap_or_default().to_owned()),
        (429, "daily_quota_exceeded" | "monthly_quota_exceeded") => {
            // `ratelimit-reset` is about the pace, not about the quota.
            ReplyVerdict::refused(Class::Quota, text).after(reply.retry_after(now))
        }
        (429, _) => ReplyVerdict::refused(Class::Throttled, text).after(wait),
        // The key was used for something else, a mistake of ours that no repetition mends.
        (409, "invalid_idempotent_request") => ReplyVerdict::refused(Class::Message, text),
        // "The email payload contain invalid characters".
        (451, _) => ReplyVerdict::undocumented(text),
        // An earlier call with this key is under way, and may take the message: only the same call again tells.
        (409, _) => ReplyVerdict::Unclear(text),
        (403, _) if text.contains("domain is not verified") => ReplyVerdict::refused(Class::Sender, text),
        _ => reply.by_status(&text, now).after(reply.retry_after(now)),
    }
}

fn call(api_key: &SecretString, path: &str, key: String, body: &Value) -> Request {
    let authorization = format!("Bearer {}", api_key.expose_secret()).into();
    Request::json(path, vec![("authorization", authorization), ("idempotency-key", key.into())], body)
}

fn reason(body: &Value) -> String {
    let message = body["message"].as_str().unwrap_or("no reason given");
    match body["name"].as_str() {
        Some(name) => format!("{name}: {message}"),
        None => message.to_owned(),
    }
}

fn message(outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    let job = outgoing.job;
    let addressees = fields::addressees(outgoing)?;
    let mut body = Map::new();
    put(&mut body, "from", sender(job.from())?);
    put(&mut body, "to", mailboxes(&addressees.to));
    for (field, list) in [("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, mailboxes(list));
        }
    }
    if !job.reply_to().is_empty() {
        put(&mut body, "reply_to", mailboxes(&job.reply_to().iter().collect::<Vec<_>>()));
    }
    put(&mut body, "subject", fields::not_empty(outgoing.subject));
    if let Some(html) = outgoing.html {
        put(&mut body, "html", fields::not_empty(html));
    }
    match (outgoing.text, outgoing.html) {
        (Some(text), _) => put(&mut body, "text", fields::not_empty(text)),
        // Otherwise one is made out of the HTML.
        (None, Some(_)) => put(&mut body, "text", ""),
        (None, None) => {}
    }
    let mut headers: Map<String, Value> =
        fields::headers(outgoing, &RESERVED)?.into_iter().map(|(name, value)| (name, value.into())).collect();
    put(&mut headers, "Message-ID", job.message_id());
    put(&mut body, "headers", headers);
    put(&mut body, "tags", tags(outgoing)?);
    let files = files(outgoing)?;
    if !files.is_empty() {
        put(&mut body, "attachments", files);
    }
    Ok(Value::Object(body))
}

/// The sender's name is refused in quotes and in encoded words, and taken as it is where it has none of these characters
/// (found by django-anymail).
fn sender(from: &Mailbox) -> Result<String, Unsupported> {
    match from.name() {
        None => Ok(from.address().to_string()),
        Some(name) if name.contains(['<', '>', '"', ',', ';', '\\', '@']) => {
            Err(Unsupported::Value("a sender's name with one of < > \" , ; \\ @ in it".to_owned()))
        }
        Some(name) => Ok(format!("{name} <{}>", from.address())),
    }
}

/// Other names are refused in quotes too, and taken in encoded words.
fn mailboxes(list: &[&Mailbox]) -> Value {
    let one = |one: &&Mailbox| match one.name() {
        None => one.address().to_string(),
        Some(name) if name.chars().all(|c| c.is_alphanumeric() || c == ' ') => format!("{name} <{}>", one.address()),
        Some(name) => format!("{} <{}>", fields::encoded_name(name), one.address()),
    };
    list.iter().map(one).collect()
}

/// Tags and metadata are the same thing here: `tag_1`, `tag_2` and so on, then metadata by name.
fn tags(outgoing: &Message<'_>) -> Result<Vec<Value>, Unsupported> {
    let is_plain = |text: &str| {
        (1..=TAG_MAX).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'))
    };
    let mut tags: Vec<Value> = Vec::new();
    for (n, tag) in outgoing.job.tags().iter().enumerate() {
        if !is_plain(tag) {
            return Err(Unsupported::Value("a tag with other characters than A-Z, a-z, 0-9, _ and -".to_owned()));
        }
        tags.push(json!({ "name": format!("tag_{}", n + 1), "value": tag }));
    }
    for (name, value) in fields::metadata(outgoing)? {
        let is_taken = tags.iter().any(|tag| tag["name"] == name.as_str());
        if is_taken || !is_plain(&name) || !value.as_str().is_some_and(is_plain) {
            return Err(Unsupported::Value(format!("the metadata {name}")));
        }
        tags.push(json!({ "name": name, "value": value }));
    }
    Ok(tags)
}

/// A file whose name and type disagree is dropped without a word (found by django-anymail).
fn files(outgoing: &Message<'_>) -> Result<Vec<Value>, Unsupported> {
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    let shown = inline.into_iter().map(|one| (one, one.content_id.as_deref()));
    let list = shown.chain(attached.into_iter().map(|one| (one, None)));
    list.map(|(one, id)| {
        if fields::type_of_name(&one.filename).is_some_and(|usual| usual != fields::bare_type(&one.content_type)) {
            return Err(Unsupported::Value(format!(
                "a file of type {} with such a name",
                fields::bare_type(&one.content_type)
            )));
        }
        let mut file = Map::new();
        put(&mut file, "filename", one.filename.as_str());
        put(&mut file, "content_type", one.content_type.as_str());
        put(&mut file, "content", base64(&one.content));
        if let Some(id) = id {
            put(&mut file, "content_id", id);
        }
        Ok(Value::Object(file))
    })
    .collect()
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

    fn error(name: &str) -> String {
        json!({ "statusCode": 1, "name": name, "message": "why" }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, &[], r#"{"id":"49a3"}"#, "taken 49a3");
        check(201, &[], r#"{"id":"49a3"}"#, "taken 49a3");
        check(400, &[], &error("validation_error"), "unsupported");
        check(400, &[], &error("invalid_idempotency_key"), "unsupported");
        check(422, &[], &error("missing_required_field"), "unsupported");
        check(451, &[], &error("security_error"), "unsupported");
        check(401, &[], &error("missing_api_key"), "config");
        check(403, &[], &error("invalid_api_key"), "config");
        let unverified = r#"{"name":"validation_error","message":"The shop.example domain is not verified"}"#;
        check(403, &[], unverified, "sender");
        check(404, &[], &error("not_found"), "config");
        check(405, &[], &error("method_not_allowed"), "config");
        check(409, &[], &error("invalid_idempotent_request"), "message");
        check(409, &[], &error("concurrent_idempotent_requests"), "unclear");
        check(409, &[], &error("resource_locked"), "unclear");
        check(409, &[], "<html>", "unclear");
        check(429, &[("retry-after", "2")], &error("rate_limit_exceeded"), "throttled after 2");
        check(429, &[("ratelimit-reset", "1")], &error("rate_limit_exceeded"), "throttled after 1");
        check(429, &[], "", "throttled");
        check(429, &[("ratelimit-reset", "1")], &error("daily_quota_exceeded"), "quota");
        check(429, &[("retry-after", "60")], &error("monthly_quota_exceeded"), "quota after 60");
        check(500, &[], &error("application_error"), "transient");
        check(503, &[], "<html>", "transient");
        check(504, &[], "<html>", "unclear");
        check(200, &[], "<html>a login page</html>", "not the api");
        check(200, &[], "", "unclear");
        check(200, &[], r#"{"id":"49"#, "unclear");
        check(200, &[], "{}", "unclear");
    }

    #[track_caller]
    fn check_batch(status: u16, body: &str, expected: &str) {
        let shown = match batch_verdict(&reply(status, &[], body), now()) {
            Batched::Each(list) => list.iter().map(shown).collect::<Vec<_>>().join(", "),
            Batched::Whole(verdict) => format!("all {}", shown(&verdict)),
        };
        assert_eq!(shown, expected, "{status} {body}");
    }

    #[test]
    fn a_call_for_several_has_an_answer_for_each_or_for_all() {
        check_batch(200, r#"{"data":[{"id":"a"},{"id":"b"}]}"#, "taken a, taken b");
        check_batch(200, r#"{"data":[{"id":"a"},{}]}"#, "taken a, unclear");
        check_batch(200, r#"{"data":[{"id":"a"},{"id":"c"}],"errors":[{"index":1}]}"#, "taken a, unsupported, taken c");
        check_batch(422, &error("missing_required_field"), "all unsupported");
        check_batch(409, &error("concurrent_idempotent_requests"), "all unclear");
        check_batch(429, &error("daily_quota_exceeded"), "all quota");
        check_batch(200, "<html>", "all not the api");
        check_batch(200, r#"{"data":[{"id":"a"}"#, "all unclear");
        check_batch(500, r#"{"data":[{"id":"a"}]}"#, "all transient");
    }

    #[track_caller]
    fn check_fit(fields: Value, expected: Option<&str>) {
        assert_eq!(message(&letter(&job(fields))).err(), expected.map(|text| Unsupported::Value(text.to_owned())));
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        check_fit(json!({ "tags": ["a-b_1"], "metadata": { "order": "2026-0815" } }), None);
        check_fit(json!({ "tags": ["a b"] }), Some("a tag with other characters than A-Z, a-z, 0-9, _ and -"));
        check_fit(json!({ "metadata": { "a.b": "1" } }), Some("the metadata a.b"));
        check_fit(json!({ "metadata": { "a": "x y" } }), Some("the metadata a"));
        check_fit(json!({ "metadata": { "a": "" } }), Some("the metadata a"));
        check_fit(json!({ "tags": ["x"], "metadata": { "tag_1": "1" } }), Some("the metadata tag_1"));
        let from = json!({ "address": "a@shop.example", "name": "Shop, Inc." });
        check_fit(json!({ "from": from }), Some("a sender's name with one of < > \" , ; \\ @ in it"));
        let file = json!([{ "filename": "a.png", "content_type": "image/jpeg", "content": "YQ==" }]);
        check_fit(json!({ "attachments": file }), Some("a file of type image/jpeg with such a name"));
        let file = json!([{ "filename": "a.zst", "content_type": "application/zstd", "content": "YQ==" }]);
        check_fit(json!({ "attachments": file }), None);
        assert!(item(&letter(&job(json!({ "attachments": file })))).is_err());
    }

    #[test]
    fn the_same_jobs_have_the_same_key_and_others_another() {
        let secret = SecretString::from("re_1");
        let key = |items: &[&Item]| {
            let request = batch_request(&secret, items);
            request.headers.iter().find(|(name, _)| *name == "idempotency-key").unwrap().1.expose_secret().to_owned()
        };
        let (one, two) = (job(json!({})), job(json!({ "id": "0190a5c0-7a10-7c3e-9d51-000000000002" })));
        let (one, two) = (item(&letter(&one)).unwrap(), item(&letter(&two)).unwrap());
        assert_eq!(key(&[&one, &two]), key(&[&one, &two]));
        assert_ne!(key(&[&one, &two]), key(&[&one]));
        assert_ne!(key(&[&one]), key(&[&two]));
    }
}
