//! Postmark: <https://postmarkapp.com/developer/api/email-api>.

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::{
    batch::{Batched, Item},
    description::{Api, Batching, Call, Description, MIB, Notes, Setting, SettingForm, account},
    encoding::{base64, name_addr, put},
    fields,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "postmark",
    name: "Postmark",
    base_url: Some("https://api.postmarkapp.com"),
    settings: &[
        Setting::secret("api_key", "The server's token."),
        Setting::optional(
            "message_stream",
            SettingForm::Text,
            "The message stream; the server's default where absent.",
        ),
    ],
    // One tag; 10 MB with attachments as base64, bodies of 5 MB; 50 MB for a call.
    capabilities: Capabilities { tags_max: 1, bytes_max: 7 * MIB, batch_max: 500, ..Capabilities::ALL },
    batching: Some(Batching { bytes_max: 45 * MIB, shares_content: false }),
    notes: Notes::USUAL,
};

account! {
    /// A server of an account at Postmark.
    pub struct Postmark {
        /// The server's token.
        api_key: secret,
        /// The message stream; the server's default where absent.
        message_stream: some_text,
    }
}

impl Api for Postmark {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, self.message_stream.as_deref(), message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn item(&self, message: &Message<'_>) -> Result<Item, Unsupported> {
        item(self.message_stream.as_deref(), message)
    }

    fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        Some(batch_request(&self.api_key, items))
    }

    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        batch_verdict(reply, now)
    }
}

/// Largest body field, in bytes.
const BODY_MAX: usize = 5 * 1024 * 1024;
/// Most metadata, and the longest name and value
/// (<https://postmarkapp.com/support/article/1125-custom-metadata-faq>).
const METADATA_MAX: (usize, usize, usize) = (10, 20, 80);
/// Headers with these names are settings of the message, and ours.
const RESERVED: [&str; 1] = ["x-pm-*"];

/// One message.
pub fn request(api_key: &SecretString, stream: Option<&str>, outgoing: &Message<'_>) -> Result<Request, Unsupported> {
    Ok(call(api_key, "/email", &message(stream, outgoing)?))
}

/// One message as a part of a call with others. Each message of a call stands for itself.
pub fn item(stream: Option<&str>, outgoing: &Message<'_>) -> Result<Item, Unsupported> {
    Ok(Item { shared: String::new(), own: message(stream, outgoing)? })
}

/// One call for all.
pub fn batch_request(api_key: &SecretString, items: &[&Item]) -> Request {
    call(api_key, "/email/batch", &items.iter().map(|item| item.own.clone()).collect())
}

/// The call is answered with 200 even where single messages are refused.
pub fn batch_verdict(reply: &ProviderReply, now: Timestamp) -> Batched {
    match reply.json() {
        Some(Value::Array(list)) if reply.status == 200 => {
            Batched::Each(list.iter().map(|one| about_one(reply, one, now)).collect())
        }
        _ => Batched::Whole(verdict(reply, now)),
    }
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    match reply.json() {
        Some(body) if body.is_object() => about_one(reply, &body, now),
        _ => reply.by_status(&reply.excerpt(), now),
    }
}

/// The numbers of the body collide with those of HTTP and say more.
fn about_one(reply: &ProviderReply, body: &Value, now: Timestamp) -> ReplyVerdict {
    let text = body["Message"].as_str().unwrap_or("no reason given");
    let id = body["MessageID"].as_str();
    let refused = |class| ReplyVerdict::refused(class, text).after(reply.retry_after(now));
    match (body["ErrorCode"].as_u64(), id) {
        // The code may be missing where delivery is delayed.
        (Some(0) | None, Some(id))
            if reply.status == 200 && text.to_ascii_lowercase().contains("will not deliver to") =>
        {
            ReplyVerdict::TakenInPart { id: id.to_owned(), text: text.to_owned() }
        }
        (Some(0) | None, Some(id)) if reply.status == 200 => ReplyVerdict::Taken(id.to_owned()),
        (Some(0) | None, _) => reply.by_status(text, now),
        (Some(100 | 500 | 503), _) => refused(Class::Transient),
        (Some(429), _) => refused(Class::Throttled),
        (Some(405), _) => refused(Class::Quota),
        (Some(406), _) => refused(Class::Recipient),
        (Some(300), _) if is_about_recipients(text) => ReplyVerdict::some_recipients(text),
        // A kind of file that this provider forbids: others may take it.
        (Some(411), _) => refused(Class::Unsupported),
        // The sender's signature is missing, or not confirmed.
        (Some(400 | 401), _) => refused(Class::Sender),
        // Token, approval of the account, message stream.
        (Some(10 | 412 | 413 | 1221..=1239), _) => refused(Class::Config),
        // An unknown number: the status where it says that it is not about the message.
        (Some(_), _) => match reply.by_status(text, now) {
            ReplyVerdict::Unclear(_) if reply.status == 200 => ReplyVerdict::undocumented(text),
            verdict => verdict,
        },
    }
}

/// `Error parsing 'To': ...`, `Invalid 'Cc' address: ...`.
fn is_about_recipients(text: &str) -> bool {
    let start = text.get(..40).unwrap_or(text);
    ["'To'", "'Cc'", "'Bcc'"].iter().any(|field| start.contains(field))
}

fn call(api_key: &SecretString, path: &str, body: &Value) -> Request {
    let headers = vec![("accept", "application/json".into()), ("x-postmark-server-token", api_key.clone())];
    Request::json(path, headers, body)
}

fn message(stream: Option<&str>, outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    let job = outgoing.job;
    let addressees = fields::addressees(outgoing)?;
    let mut body = Map::new();
    put(&mut body, "From", name_addr(job.from()));
    for (field, list) in [("To", &addressees.to), ("Cc", &addressees.cc), ("Bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, list.iter().map(|one| name_addr(one)).collect::<Vec<_>>().join(", "));
        }
    }
    if !job.reply_to().is_empty() {
        put(&mut body, "ReplyTo", job.reply_to().iter().map(name_addr).collect::<Vec<_>>().join(", "));
    }
    put(&mut body, "Subject", outgoing.subject);
    for (field, text) in [("TextBody", outgoing.text), ("HtmlBody", outgoing.html)] {
        match text {
            Some(text) if text.len() > BODY_MAX => {
                return Err(Unsupported::Value(format!("a body of {} bytes", text.len())));
            }
            Some(text) => put(&mut body, field, fields::not_empty(text)),
            None => {}
        }
    }
    if let Some(tag) = job.tags().first() {
        put(&mut body, "Tag", tag.as_str());
    }
    put(&mut body, "Metadata", metadata(outgoing)?);
    put(&mut body, "Headers", headers(outgoing)?);
    let tracking = job.tracking();
    // Said in both cases: a server's own setting must not track what did not ask for it.
    put(&mut body, "TrackOpens", tracking.opens);
    put(&mut body, "TrackLinks", if tracking.clicks { "HtmlAndText" } else { "None" });
    let files = files(outgoing);
    if !files.is_empty() {
        put(&mut body, "Attachments", files);
    }
    if let Some(stream) = stream {
        put(&mut body, "MessageStream", stream);
    }
    Ok(Value::Object(body))
}

fn headers(outgoing: &Message<'_>) -> Result<Vec<Value>, Unsupported> {
    // Without the second one the first is replaced.
    let own = [("Message-ID".to_owned(), outgoing.job.message_id()), ("X-PM-KeepID".to_owned(), "true".to_owned())];
    let list = fields::headers(outgoing, &RESERVED)?;
    Ok(list.into_iter().chain(own).map(|(name, value)| json!({ "Name": name, "Value": value })).collect())
}

fn metadata(outgoing: &Message<'_>) -> Result<Map<String, Value>, Unsupported> {
    let (entries, name, value) = METADATA_MAX;
    let object = fields::metadata(outgoing)?;
    if object.len() > entries {
        return Err(Unsupported::Value(format!("more than {} entries of metadata", entries - 1)));
    }
    for (n, (key, text)) in object.iter().enumerate() {
        let is_long = key.chars().count() > name || text.as_str().is_some_and(|text| text.chars().count() > value);
        // Names differ in more than their case.
        if is_long || object.keys().take(n).any(|earlier| earlier.eq_ignore_ascii_case(key)) {
            return Err(Unsupported::Value(format!("the metadata {key}")));
        }
    }
    Ok(object)
}

fn files(outgoing: &Message<'_>) -> Vec<Value> {
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    let file = |one: &postrider_schemas::job::Attachment| json!({ "Name": one.filename, "ContentType": one.content_type, "Content": base64(&one.content) });
    let shown = inline.into_iter().map(|one| {
        let mut file = file(one);
        file["ContentID"] = format!("cid:{}", one.content_id.as_deref().unwrap_or_default()).into();
        file
    });
    shown.chain(attached.into_iter().map(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fields::testing::{job, letter},
        reply::testing::{now, reply, shown},
    };

    #[track_caller]
    fn check(status: u16, body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, &[], body), now())), expected, "{status} {body}");
    }

    fn error(code: u16, message: &str) -> String {
        json!({ "ErrorCode": code, "Message": message }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, r#"{"To":"a","SubmittedAt":"t","MessageID":"b7bc","ErrorCode":0,"Message":"OK"}"#, "taken b7bc");
        check(200, r#"{"MessageID":"b7bc","Message":"Message accepted, but delivery may be delayed."}"#, "taken b7bc");
        let in_part = r#"{"MessageID":"b7","ErrorCode":0,"Message":"Message OK, but will not deliver to these inactive addresses: a@b.example."}"#;
        check(200, in_part, "in part b7");
        // Codes of HTTP and of the body differ.
        check(200, &error(406, "You tried to send to a recipient that has been marked as inactive."), "recipient");
        check(200, &error(300, "Invalid 'From' address"), "unsupported");
        check(422, &error(300, "Error parsing 'To': Illegal email address"), "recipient");
        check(422, &error(300, "Invalid metadata content. It mentions 'To'"), "unsupported");
        check(422, &error(406, "inactive"), "recipient");
        check(422, &error(402, "Invalid JSON"), "unsupported");
        check(422, &error(403, "Incompatible JSON"), "unsupported");
        check(422, &error(405, "Not allowed to send: no credits"), "quota");
        check(422, &error(411, "Forbidden file type"), "unsupported");
        check(422, &error(400, "Sender signature not found"), "sender");
        check(422, &error(401, "Sender signature not confirmed"), "sender");
        check(422, &error(412, "Account is pending approval"), "config");
        check(422, &error(413, "Account may not send"), "config");
        check(422, &error(1235, "The message stream does not exist"), "config");
        check(422, &error(100, "Maintenance"), "transient");
        check(422, &error(9999, "something new"), "unsupported");
        check(401, &error(10, "Bad or missing Server API token"), "config");
        check(429, &error(429, "Rate limit exceeded"), "throttled");
        check(500, &error(500, "Internal Server Error"), "transient");
        check(503, &error(503, "Service unavailable"), "transient");
        check(401, "", "config");
        check(413, "", "unsupported");
        check(415, "", "unsupported");
        check(429, "", "throttled");
        check(500, "", "transient");
        check(503, "<html>", "transient");
        check(504, "<html>", "unclear");
        check(200, "<html>a login page</html>", "not the api");
        check(200, "", "unclear");
        check(200, r#"{"To":"a","MessageID":"b7"#, "unclear");
        check(200, r#"{"ErrorCode":0,"Message":"OK"}"#, "unclear");
        check(200, "{}", "unclear");
        check(200, "[]", "unclear");
    }

    #[test]
    fn a_wish_for_patience_is_heard() {
        let answer = reply(429, &[("retry-after", "7")], &error(429, "Rate limit exceeded"));
        assert_eq!(shown(&verdict(&answer, now())), "throttled after 7");
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
    fn each_message_of_a_call_has_an_answer() {
        let (good, bad) = (r#"{"MessageID":"b7","ErrorCode":0,"Message":"OK"}"#, error(406, "inactive"));
        check_batch(200, &format!("[{good},{bad},{{}}]"), "taken b7, recipient, unclear");
        check_batch(422, &error(402, "Invalid JSON"), "all unsupported");
        check_batch(401, &error(10, "token"), "all config");
        check_batch(429, "", "all throttled");
        check_batch(200, "<html>", "all not the api");
        check_batch(200, &format!("[{good},"), "all unclear");
        check_batch(500, &format!("[{good}]"), "all transient");
    }

    #[track_caller]
    fn check_fit(fields: Value, expected: Option<Unsupported>) {
        assert_eq!(message(None, &letter(&job(fields))).err(), expected);
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        let many: Map<String, Value> = (0..10).map(|n| (format!("k{n}"), "v".into())).collect();
        let not = |text: &str| Some(Unsupported::Value(text.to_owned()));
        check_fit(json!({ "metadata": many }), not("more than 9 entries of metadata"));
        check_fit(json!({ "metadata": { "a_name_of_some_length": "v" } }), not("the metadata a_name_of_some_length"));
        check_fit(json!({ "metadata": { "key": "v".repeat(81) } }), not("the metadata key"));
        check_fit(json!({ "metadata": { "KEY": "v", "key": "v" } }), not("the metadata key"));
        check_fit(json!({ "metadata": { "key": "v".repeat(80) } }), None);
        let header = json!([{ "name": "X-PM-Tag", "value": "a" }]);
        check_fit(json!({ "headers": header }), Some(Unsupported::Header("X-PM-Tag".to_owned())));
        check_fit(json!({ "to": [], "bcc": ["a@dest.example", "b@dest.example"] }), Some(Unsupported::BlindOnly));
        check_fit(json!({ "text": "x".repeat(BODY_MAX + 1) }), not("a body of 5242881 bytes"));
    }
}
