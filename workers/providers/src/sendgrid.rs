//! Twilio `SendGrid`, mail send API v3: <https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send>.

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::address::Mailbox;
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
    kind: "sendgrid",
    name: "Twilio SendGrid",
    base_url: Some("https://api.sendgrid.com"),
    settings: &[Setting::API_KEY],
    // https://www.twilio.com/docs/sendgrid/api-reference/mail-send/limitations: 30 MB with attachments, of which most is shared in a call.
    capabilities: Capabilities {
        tags_max: 10,
        bytes_max: 20 * MIB,
        schedules: true,
        batch_max: 1000,
        ..Capabilities::ALL
    },
    batching: Some(Batching { bytes_max: 25 * MIB, shares_content: true }),
    notes: Notes::USUAL,
};

account! {
    /// An account at `SendGrid`.
    pub struct Sendgrid {
        /// The API key.
        api_key: secret,
    }
}

impl Api for Sendgrid {
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

/// Headers that the API makes itself and refuses (its reference, "headers").
const RESERVED: [&str; 11] = [
    "x-sg-id",
    "x-sg-eid",
    "received",
    "dkim-signature",
    "content-type",
    "content-transfer-encoding",
    "to",
    "from",
    "subject",
    "reply-to",
    "cc",
];

/// The name under which webhooks give the job id back.
const JOB_ID: &str = "postrider_job_id";

/// One message.
pub fn request(api_key: &SecretString, outgoing: &Message<'_>) -> Result<Request, Unsupported> {
    let mut body = shared(outgoing)?;
    body.insert("personalizations".to_owned(), json!([personalization(outgoing)?]));
    Ok(call(api_key, &Value::Object(body)))
}

/// One message as a part of a call with others that have the same content.
pub fn item(outgoing: &Message<'_>) -> Result<Item, Unsupported> {
    Ok(Item { shared: Value::Object(shared(outgoing)?).to_string(), own: personalization(outgoing)? })
}

/// One call for all; their shared part is the same.
pub fn batch_request(api_key: &SecretString, items: &[&Item]) -> Request {
    let shared = items.first().map(|item| item.shared.as_str()).unwrap_or_default();
    let mut body: Map<String, Value> = serde_json::from_str(shared).unwrap_or_default();
    body.insert("personalizations".to_owned(), items.iter().map(|item| item.own.clone()).collect());
    call(api_key, &Value::Object(body))
}

/// One answer for all.
pub fn batch_verdict(reply: &ProviderReply, now: Timestamp) -> Batched {
    Batched::Whole(verdict(reply, now))
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let text = reply.json().as_ref().map_or_else(|| reply.excerpt(), reason);
    match reply.status {
        202 => ReplyVerdict::Taken(reply.header("x-message-id").unwrap_or_default().to_owned()),
        429 => {
            let wait = reply.retry_after(now).or_else(|| reply.unix_time("x-ratelimit-reset", now));
            ReplyVerdict::refused(Class::Throttled, text).after(wait)
        }
        // Two things: an account that is blocked for a while after too many bad requests, or a sender that is not verified.
        403 if mentions(&text, "temporarily") => {
            ReplyVerdict::refused(Class::Quota, text).after(reply.retry_after(now))
        }
        403 if mentions(&text, "sender identity") => ReplyVerdict::refused(Class::Sender, text),
        _ => reply.by_status(&text, now),
    }
}

fn call(api_key: &SecretString, body: &Value) -> Request {
    let authorization = format!("Bearer {}", api_key.expose_secret()).into();
    Request::json("/v3/mail/send", vec![("authorization", authorization)], body)
}

/// What jobs with the same content have in common.
fn shared(outgoing: &Message<'_>) -> Result<Map<String, Value>, Unsupported> {
    let job = outgoing.job;
    let mut body = Map::new();
    body.insert("from".to_owned(), mailbox(job.from()));
    match job.reply_to() {
        [] => {}
        [one] => put(&mut body, "reply_to", mailbox(one)),
        list => put(&mut body, "reply_to_list", list.iter().map(mailbox).collect::<Value>()),
    }
    body.insert("subject".to_owned(), outgoing.subject.into());
    let bodies = [("text/plain", outgoing.text), ("text/html", outgoing.html)];
    // An empty body is refused; a blank is not.
    let content = bodies.iter().filter_map(|(kind, body)| {
        let body = (*body)?;
        Some(json!({ "type": kind, "value": if body.is_empty() { " " } else { body } }))
    });
    body.insert("content".to_owned(), content.collect());
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    let files: Result<Vec<Value>, Unsupported> = inline
        .into_iter()
        .map(|one| (one, "inline"))
        .chain(attached.into_iter().map(|one| (one, "attachment")))
        .map(|(one, disposition)| {
            if one.content.is_empty() {
                return Err(Unsupported::Value("an empty file".to_owned()));
            }
            let mut file = Map::new();
            put(&mut file, "content", base64(&one.content));
            put(&mut file, "type", fields::type_without_parameters(&one.content_type)?);
            put(&mut file, "filename", one.filename.as_str());
            put(&mut file, "disposition", disposition);
            if let Some(id) = &one.content_id {
                put(&mut file, "content_id", id.as_str());
            }
            Ok(Value::Object(file))
        })
        .collect();
    let files = files?;
    if !files.is_empty() {
        put(&mut body, "attachments", files);
    }
    if !job.tags().is_empty() {
        put(&mut body, "categories", job.tags());
    }
    let tracking = job.tracking();
    // Said in both cases: an account's own setting must not track what did not ask for it.
    put(
        &mut body,
        "tracking_settings",
        json!({
            "click_tracking": { "enable": tracking.clicks, "enable_text": false },
            "open_tracking": { "enable": tracking.opens },
        }),
    );
    Ok(body)
}

/// What is a job's own.
fn personalization(outgoing: &Message<'_>) -> Result<Value, Unsupported> {
    let addressees = outgoing.addressees().ok_or(Unsupported::BlindOnly)?;
    let mut own = Map::new();
    for (field, list) in [("to", &addressees.to), ("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut own, field, list.iter().copied().map(mailbox).collect::<Value>());
        }
    }
    let mut headers = Map::new();
    for (name, value) in outgoing.headers.clone() {
        if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return Err(Unsupported::Header(name));
        }
        if headers.insert(name.clone(), value.into()).is_some() {
            return Err(Unsupported::HeaderTwice(name));
        }
    }
    put(&mut headers, "Message-ID", outgoing.job.message_id());
    put(&mut own, "headers", headers);
    let mut custom: Map<String, Value> =
        outgoing.job.metadata().iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    put(&mut custom, JOB_ID, outgoing.job.id().to_string());
    put(&mut own, "custom_args", custom);
    Ok(Value::Object(own))
}

fn mailbox(one: &Mailbox) -> Value {
    match one.name() {
        Some(name) => json!({ "email": one.address().to_string(), "name": name }),
        None => json!({ "email": one.address().to_string() }),
    }
}

/// `errors[0]`, with the field it is about.
fn reason(body: &Value) -> String {
    let error = &body["errors"][0];
    let message = error["message"].as_str().unwrap_or("no reason given");
    match error["field"].as_str() {
        Some(field) => format!("{field}: {message}"),
        None => message.to_owned(),
    }
}

fn mentions(text: &str, lower_case: &str) -> bool {
    text.to_ascii_lowercase().contains(lower_case)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::testing::{now, reply, shown};

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {body}");
    }

    fn error(message: &str) -> String {
        json!({ "errors": [{ "message": message, "field": null }] }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(202, &[("x-message-id", "14c5d75ce93.dfd.64b469")], "", "taken 14c5d75ce93.dfd.64b469");
        check(202, &[], "", "taken ");
        check(400, &[], &error("Does not contain a valid address."), "unsupported");
        check(413, &[], &error("too large"), "unsupported");
        check(401, &[], &error("The provided authorization grant is invalid, expired, or revoked"), "config");
        check(403, &[], &error("The from address does not match a verified Sender Identity."), "sender");
        check(403, &[], &error("access forbidden"), "config");
        check(403, &[], &error("You have been temporarily blocked after repeated bad requests"), "quota");
        check(406, &[], &error("missing Accept header"), "unsupported");
        check(429, &[("x-ratelimit-reset", "1795428060")], &error("too many requests"), "throttled after 60");
        check(429, &[("retry-after", "7")], "", "throttled after 7");
        check(451, &[], "", "config");
        check(500, &[], "", "transient");
        check(503, &[], "<html>busy</html>", "transient");
        check(504, &[], "", "unclear");
        check(200, &[], "<html>a login page</html>", "not the api");
    }

    #[test]
    fn a_file_goes_with_its_bare_type_and_an_empty_one_not_at_all() {
        let file = |kind: &str, content: &str| {
            let file = json!([{ "filename": "a.csv", "content_type": kind, "content": content }]);
            let job = fields::testing::job(json!({ "attachments": file }));
            shared(&fields::testing::letter(&job)).map(|body| body["attachments"][0]["type"].clone())
        };
        assert_eq!(file("text/csv; charset=utf-8", "YQ=="), Ok("text/csv".into()));
        assert!(file("text/csv; charset=iso-8859-1", "YQ==").is_err());
        assert_eq!(file("text/csv", ""), Err(Unsupported::Value("an empty file".to_owned())));
    }
}
