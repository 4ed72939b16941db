//! Mailjet, send API v3.1: <https://dev.mailjet.com/email/guides/send-api-v31/>.

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

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
    kind: "mailjet",
    name: "Mailjet",
    base_url: Some("https://api.mailjet.com"),
    settings: &[Setting::API_KEY, Setting::secret("secret_key", "The secret key.")],
    // 15 MB with attachments, and for a call.
    capabilities: Capabilities { tags_max: 1, bytes_max: 10 * MIB, batch_max: 50, ..Capabilities::ALL },
    batching: Some(Batching { bytes_max: 13 * MIB, shares_content: false }),
    notes: Notes::USUAL,
};

account! {
    /// An account at Mailjet.
    pub struct Mailjet {
        /// The API key.
        api_key: secret,
        /// The secret key.
        secret_key: secret,
    }
}

impl Api for Mailjet {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, &self.secret_key, message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn item(&self, message: &Message<'_>) -> Result<Item, Unsupported> {
        item(message)
    }

    fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        Some(batch_request(&self.api_key, &self.secret_key, items))
    }

    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        batch_verdict(reply, now)
    }
}

/// Longest subject, in characters.
const SUBJECT_MAX: usize = 255;
/// Headers that the API makes itself and refuses (its guide, "add email headers"). `Message-ID` is one of them.
const RESERVED: [&str; 17] = [
    "date",
    "message-id",
    "received",
    "received-spf",
    "delivered-to",
    "authentication-results",
    "domainkey-status",
    "return-path",
    "sender",
    "user-agent",
    "x-mailer",
    "x-feedback-id",
    "x-csa-complaints",
    "list-id",
    "reply-to",
    "x-mj-*",
    "x-mailjet-*",
];

/// One message.
pub fn request(
    api_key: &SecretString,
    secret_key: &SecretString,
    outgoing: &Message<'_>,
) -> Result<Request, Unsupported> {
    Ok(call(api_key, secret_key, vec![message(outgoing)?]))
}

/// One message as a part of a call with others. Each message of a call stands for itself.
pub fn item(outgoing: &Message<'_>) -> Result<Item, Unsupported> {
    Ok(Item { shared: String::new(), own: message(outgoing)? })
}

/// One call for all.
pub fn batch_request(api_key: &SecretString, secret_key: &SecretString, items: &[&Item]) -> Request {
    call(api_key, secret_key, items.iter().map(|item| item.own.clone()).collect())
}

/// Every message has an answer, whatever the status says of all of them.
pub fn batch_verdict(reply: &ProviderReply, now: Timestamp) -> Batched {
    let body = reply.json();
    match body.as_ref().and_then(|body| body["Messages"].as_array()) {
        Some(list) => Batched::Each(list.iter().map(|one| about_one(reply, one, now)).collect()),
        None => Batched::Whole(about_call(reply, body.as_ref(), now)),
    }
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    match batch_verdict(reply, now) {
        Batched::Whole(verdict) => verdict,
        Batched::Each(list) => match <[ReplyVerdict; 1]>::try_from(list) {
            Ok([verdict]) => verdict,
            Err(list) => ReplyVerdict::Unclear(format!("an answer for {} messages", list.len())),
        },
    }
}

/// `Messages[n]`.
fn about_one(reply: &ProviderReply, one: &Value, now: Timestamp) -> ReplyVerdict {
    let is_good = (200..300).contains(&reply.status) || reply.status == 400;
    match one["Status"].as_str() {
        Some("success") if is_good => {
            let id = [&one["To"], &one["Cc"], &one["Bcc"]].into_iter().find_map(|list| list[0]["MessageUUID"].as_str());
            ReplyVerdict::Taken(id.unwrap_or_default().to_owned())
        }
        Some("error") => error(reply, &one["Errors"][0], now),
        _ => reply.by_status("an answer without a status", now),
    }
}

/// The call was refused before its messages were looked at.
fn about_call(reply: &ProviderReply, body: Option<&Value>, now: Timestamp) -> ReplyVerdict {
    match body {
        Some(body) if body["ErrorMessage"].is_string() => error(reply, body, now),
        _ => reply.by_status(&reply.excerpt(), now),
    }
}

/// An error carries a status of its own.
fn error(reply: &ProviderReply, error: &Value, now: Timestamp) -> ReplyVerdict {
    let message = error["ErrorMessage"].as_str().unwrap_or("no reason given");
    // Support asks for the identifier.
    let text = match (error["ErrorCode"].as_str(), error["ErrorIdentifier"].as_str()) {
        (Some(code), Some(id)) => format!("{code}: {message} ({id})"),
        (Some(code), None) => format!("{code}: {message}"),
        (None, _) => message.to_owned(),
    };
    let status = error["StatusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(reply.status);
    let related = error["ErrorRelatedTo"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_about_recipients = related.iter().filter_map(Value::as_str).any(|field| {
        let field = field.split(['[', '.']).next().unwrap_or_default();
        matches!(field, "To" | "Cc" | "Bcc")
    });
    match status {
        // The sender of this message is not one of the account's.
        _ if error["ErrorCode"] == "send-0008" => ReplyVerdict::refused(Class::Sender, text),
        200..=299 => ReplyVerdict::undocumented(text),
        400 if is_about_recipients => {
            let fields: Vec<&str> = related.iter().filter_map(Value::as_str).collect();
            ReplyVerdict::some_recipients(format!("{text} in {}", fields.join(", ")))
        }
        _ => ProviderReply { status, ..reply.clone() }.by_status(&text, now),
    }
}

fn call(api_key: &SecretString, secret_key: &SecretString, messages: Vec<Value>) -> Request {
    let login = format!("{}:{}", api_key.expose_secret(), secret_key.expose_secret());
    let authorization = format!("Basic {}", base64(login.as_bytes())).into();
    Request::json("/v3.1/send", vec![("authorization", authorization)], &json!({ "Messages": messages }))
}

fn message(outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    let job = outgoing.job;
    let mailbox = |one| fields::mailbox(one, "Email", "Name");
    let addressees = fields::addressees(outgoing)?;
    let mut body = Map::new();
    put(&mut body, "From", mailbox(job.from()));
    for (field, list) in [("To", &addressees.to), ("Cc", &addressees.cc), ("Bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, list.iter().copied().map(mailbox).collect::<Value>());
        }
    }
    if let Some(one) = fields::reply_to(outgoing)? {
        put(&mut body, "ReplyTo", mailbox(one));
    }
    if outgoing.subject.chars().count() > SUBJECT_MAX {
        return Err(Unsupported::Value(format!("a subject of more than {SUBJECT_MAX} characters")));
    }
    put(&mut body, "Subject", outgoing.subject);
    for (field, text) in [("TextPart", outgoing.text), ("HTMLPart", outgoing.html)] {
        let Some(text) = text else { continue };
        // Its marks for personal content are filled in, with nothing where there is none.
        if text.contains("[[var:") || text.contains("[[data:") {
            return Err(Unsupported::Value("a body with [[var: or [[data: in it".to_owned()));
        }
        put(&mut body, field, fields::not_empty(text));
    }
    put(&mut body, "TemplateLanguage", false);
    let headers = fields::headers(outgoing, &RESERVED)?;
    if !headers.is_empty() {
        let object: Map<String, Value> = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
        put(&mut body, "Headers", object);
    }
    // Both come back with every event.
    put(&mut body, "CustomID", job.id().to_string());
    put(&mut body, "EventPayload", Value::Object(fields::metadata(outgoing)?).to_string());
    if let Some(tag) = job.tags().first() {
        put(&mut body, "CustomCampaign", tag.as_str());
        put(&mut body, "DeduplicateCampaign", false);
    }
    let tracking = job.tracking();
    // Said in both cases: an account's own setting must not track what did not ask for it.
    let word = |is_on| if is_on { "enabled" } else { "disabled" };
    put(&mut body, "TrackOpens", word(tracking.opens));
    put(&mut body, "TrackClicks", word(tracking.clicks));
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    for (field, list) in [("InlinedAttachments", inline), ("Attachments", attached)] {
        if !list.is_empty() {
            put(
                &mut body,
                field,
                list.into_iter().map(|one| file(one, field == "InlinedAttachments")).collect::<Value>(),
            );
        }
    }
    Ok(Value::Object(body))
}

fn file(one: &postrider_schemas::job::Attachment, is_inline: bool) -> Value {
    let mut file =
        json!({ "ContentType": one.content_type, "Filename": one.filename, "Base64Content": base64(&one.content) });
    if is_inline && let Some(id) = &one.content_id {
        file["ContentID"] = id.as_str().into();
    }
    file
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

    const GOOD: &str =
        r#"{"Status":"success","CustomID":"c","To":[{"Email":"a","MessageUUID":"12-34","MessageID":5}]}"#;

    fn bad(status: u16, code: &str, related: &str) -> String {
        let error = json!({
            "ErrorIdentifier": "88b5", "ErrorCode": code, "StatusCode": status, "ErrorMessage": "why",
            "ErrorRelatedTo": [related],
        });
        json!({ "Status": "error", "Errors": [error] }).to_string()
    }

    fn messages(list: &[&str]) -> String {
        format!("{{\"Messages\":[{}]}}", list.join(","))
    }

    fn refused_call(status: u16, code: &str) -> String {
        json!({ "ErrorIdentifier": "88b5", "ErrorCode": code, "StatusCode": status, "ErrorMessage": "why" }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, &messages(&[GOOD]), "taken 12-34");
        check(200, &messages(&[r#"{"Status":"success"}"#]), "taken ");
        check(200, &messages(&[&bad(400, "send-0003", "HTMLPart")]), "unsupported");
        check(400, &messages(&[&bad(400, "mj-0013", "To[0].Email")]), "recipient");
        check(400, &messages(&[&bad(400, "mj-0013", "From")]), "unsupported");
        check(400, &messages(&[&bad(400, "mj-0003", "Subject")]), "unsupported");
        check(400, &messages(&[&bad(400, "send-0015", "Attachments")]), "unsupported");
        check(400, &messages(&[&bad(403, "send-0008", "From")]), "sender");
        check(403, &messages(&[&bad(403, "send-0006", "From")]), "config");
        check(400, &messages(&[&bad(500, "mj-0011", "")]), "transient");
        check(400, &refused_call(400, "mj-0031"), "unsupported");
        check(401, &refused_call(401, "mj-0015"), "config");
        check(401, r#"{"ErrorMessage":"API key authentication/authorization failure."}"#, "config");
        check(403, &refused_call(403, "send-0007"), "config");
        check(413, "", "unsupported");
        check(429, "", "throttled");
        check(429, &refused_call(429, "mj-0099"), "throttled");
        check(500, &refused_call(500, "mj-0001"), "transient");
        check(503, "<html>", "transient");
        check(504, "", "unclear");
        check(500, &messages(&[GOOD]), "transient");
        check(200, "<html>a login page</html>", "not the api");
        check(200, "", "unclear");
        check(200, r#"{"Messages":[{"Status":"succ"#, "unclear");
        check(200, r#"{"Messages":[]}"#, "unclear");
        check(200, &messages(&["{}"]), "unclear");
        check(200, &messages(&[GOOD, GOOD]), "unclear");
    }

    #[test]
    fn the_identifier_that_support_asks_for_stays_in_the_text() {
        let ReplyVerdict::Refused { text, .. } = verdict(&reply(500, &[], &refused_call(500, "mj-0001")), now()) else {
            panic!("no refusal")
        };
        assert_eq!(text, "mj-0001: why (88b5)");
    }

    #[test]
    fn each_message_of_a_call_has_an_answer() {
        let body = messages(&[GOOD, &bad(400, "mj-0013", "To[0].Email"), "{}", &bad(403, "send-0008", "From")]);
        let Batched::Each(list) = batch_verdict(&reply(200, &[], &body), now()) else { panic!("one answer for all") };
        assert_eq!(list.iter().map(shown).collect::<Vec<_>>(), ["taken 12-34", "recipient", "unclear", "sender"]);
        let whole = |status, body: &str| batch_verdict(&reply(status, &[("retry-after", "3")], body), now());
        let Batched::Whole(verdict) = whole(429, "") else { panic!("answers") };
        assert_eq!(shown(&verdict), "throttled after 3");
        assert!(matches!(whole(200, "<html>"), Batched::Whole(ReplyVerdict::NotTheApi(_))));
    }

    #[track_caller]
    fn check_fit(fields: Value, expected: Option<Unsupported>) {
        assert_eq!(message(&letter(&job(fields))).err(), expected);
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        let not = |text: &str| Some(Unsupported::Value(text.to_owned()));
        check_fit(json!({ "subject": "é".repeat(255) }), None);
        check_fit(json!({ "subject": "é".repeat(256) }), not("a subject of more than 255 characters"));
        check_fit(json!({ "reply_to": ["a@shop.example", "b@shop.example"] }), not("several addresses to reply to"));
        check_fit(json!({ "text": "Dear [[var:name]]" }), not("a body with [[var: or [[data: in it"));
        let header = json!([{ "name": "List-ID", "value": "a" }]);
        check_fit(json!({ "headers": header }), Some(Unsupported::Header("List-ID".to_owned())));
        check_fit(json!({ "to": [], "bcc": ["a@dest.example", "b@dest.example"] }), Some(Unsupported::BlindOnly));
    }
}
