//! `MailerSend`, email API v1: <https://developers.mailersend.com/api/v1/email.html>. Fields as django-anymail uses them.
//!
//! There is no place for metadata, so that webhooks name a message by `MailerSend`'s id alone, and a job with metadata goes another way. Headers of
//! one's own are for some plans only: `custom_headers = true` says that this account has one. `/bulk-email` answers with the id of the call, not of
//! its messages, so that calls are not shared. Not verified here: the number of copies (ten) and of tags (five), the 25 MB of attachments and the 2 MB
//! of a body. Nothing here was tried with an account.

use jiff::Timestamp;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::job::Attachment;
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value, json};

use super::{
    description::{Api, Call, Description, MIB, Notes, Setting, SettingForm, account},
    encoding::{base64, put},
    fields,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "mailersend",
    name: "MailerSend",
    base_url: Some("https://api.mailersend.com"),
    settings: &[
        Setting::secret("api_key", "The API token of the sending domain."),
        Setting::optional("custom_headers", SettingForm::Flag, "The account's plan has headers of one's own."),
    ],
    capabilities: Capabilities {
        tags_max: 5,
        bytes_max: 17 * MIB,
        metadata: false,
        headers: false,
        schedules: true,
        ..Capabilities::ALL
    },
    batching: None,
    notes: Notes::USUAL,
};

/// Most carbon copies, and most blind copies.
const COPIES_MAX: usize = 10;
/// Longest body, in bytes.
const BODY_MAX: usize = 2_000_000;
/// Marks that are filled in wherever they stand.
const TEMPLATE_MARKS: [&str; 3] = ["{{", "{%", "{$"];
/// Headers that have fields of their own.
const RESERVED: [&str; 8] = ["from", "to", "cc", "bcc", "subject", "reply-to", "in-reply-to", "precedence"];

account! {
    /// An account at `MailerSend`.
    pub struct MailerSend {
        /// The API token of the sending domain.
        api_key: secret,
        /// The account's plan has headers of one's own.
        custom_headers: flag,
    }
}

impl Api for MailerSend {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        let bearer = format!("Bearer {}", self.api_key.expose_secret()).into();
        Ok(Request::json(
            "/v1/email",
            vec![("authorization", bearer), ("accept", "application/json".into())],
            &body(message)?,
        ))
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        let body = reply.json().unwrap_or_default();
        let text = body["message"].as_str().map_or_else(|| reply.excerpt(), str::to_owned);
        let refused = |class| ReplyVerdict::refused(class, text.as_str()).after(reply.retry_after(now));
        match reply.status {
            200..=299 => match reply.header("x-message-id").filter(|id| !id.is_empty()) {
                // Its warnings name them.
                Some(id) if has_warning(&body, "SOME_SUPPRESSED") => {
                    ReplyVerdict::TakenInPart { id: id.to_owned(), text: body["warnings"].to_string() }
                }
                Some(id) => ReplyVerdict::Taken(id.to_owned()),
                None if has_warning(&body, "ALL_SUPPRESSED") => refused(Class::Recipient),
                None => reply.by_status(&text, now),
            },
            // The documents' number for a sender's domain that is not verified.
            422 if text.contains("MS42207") => refused(Class::Sender),
            429 if text.contains("MS42901") => refused(Class::Quota),
            // Maintenance.
            421 => refused(Class::Transient),
            _ => reply.by_status(&text, now),
        }
    }

    fn capabilities(&self, table: Capabilities) -> Capabilities {
        Capabilities { headers: table.headers || self.custom_headers, ..table }
    }
}

/// `ALL_SUPPRESSED`: every recipient is on the account's suppression list, and nothing is sent; `SOME_SUPPRESSED`: some are.
fn has_warning(body: &Value, kind: &str) -> bool {
    body["warnings"].as_array().into_iter().flatten().any(|warning| warning["type"] == kind)
}

fn body(message: &Message<'_>) -> Result<Value, Unsupported> {
    let job = message.job;
    let addressees = fields::addressees(message)?;
    if addressees.cc.len() > COPIES_MAX || addressees.bcc.len() > COPIES_MAX {
        return Err(Unsupported::Value(format!("more than {COPIES_MAX} copies")));
    }
    let mailbox = |one| fields::mailbox(one, "email", "name");
    let mut body = Map::new();
    put(&mut body, "from", mailbox(job.from()));
    for (field, list) in [("to", &addressees.to), ("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        if !list.is_empty() {
            put(&mut body, field, list.iter().copied().map(mailbox).collect::<Value>());
        }
    }
    if let Some(one) = fields::reply_to(message)? {
        put(&mut body, "reply_to", mailbox(one));
    }
    for (field, text) in [("subject", Some(message.subject)), ("text", message.text), ("html", message.html)] {
        let Some(text) = text else { continue };
        if TEMPLATE_MARKS.iter().any(|mark| text.contains(mark)) {
            return Err(Unsupported::Value("content with {{, {% or {$ in it".to_owned()));
        }
        if text.len() > BODY_MAX {
            return Err(Unsupported::Value(format!("a body of {} bytes", text.len())));
        }
        put(&mut body, field, fields::not_empty(text));
    }
    let headers = fields::headers(message, &RESERVED)?;
    if !headers.is_empty() {
        let headers = headers.into_iter().map(|(name, value)| json!({ "name": name, "value": value }));
        put(&mut body, "headers", headers.collect::<Value>());
    }
    if !job.tags().is_empty() {
        put(&mut body, "tags", job.tags());
    }
    // Said in both cases: the domain's own setting must not track what did not ask for it.
    let tracking = job.tracking();
    put(&mut body, "settings", json!({ "track_opens": tracking.opens, "track_clicks": tracking.clicks }));
    let inline = message.inline.iter().map(|one| file(one, true));
    let files = inline.chain(message.attached.iter().map(|one| file(one, false))).collect::<Result<Vec<_>, _>>()?;
    if !files.is_empty() {
        put(&mut body, "attachments", files);
    }
    Ok(Value::Object(body))
}

/// There is no field for the type of a file: it is that of its name.
fn file(one: &Attachment, is_inline: bool) -> Result<Value, Unsupported> {
    let kind = fields::bare_type(&one.content_type);
    if fields::type_of_name(&one.filename) != Some(kind.as_str()) {
        return Err(Unsupported::Value(format!("a file of type {kind} with such a name")));
    }
    let mut file = json!({ "filename": one.filename, "content": base64(&one.content), "disposition": "attachment" });
    if let Some(id) = one.content_id.as_deref().filter(|_| is_inline) {
        file["disposition"] = "inline".into();
        file["id"] = id.into();
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fields::testing::{job, letter},
        reply::testing::{now, reply, shown},
    };

    fn account() -> MailerSend {
        MailerSend { api_key: "token".into(), custom_headers: true }
    }

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        let reply = reply(status, headers, body);
        assert_eq!(shown(&account().verdict(&reply, now())), expected, "{status} {body}");
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let id = [("x-message-id", "5e42")];
        check(202, &id, "", "taken 5e42");
        check(202, &id, r#"{"message":"w","warnings":[{"type":"SOME_SUPPRESSED"}]}"#, "in part 5e42");
        check(202, &[], r#"{"message":"w","warnings":[{"type":"ALL_SUPPRESSED"}]}"#, "recipient");
        check(202, &[], "", "unclear");
        check(401, &[], r#"{"message":"Unauthenticated."}"#, "config");
        check(403, &[], "", "config");
        check(422, &[], r#"{"message":"The from.email domain must be verified. #MS42207"}"#, "sender");
        check(422, &[], r#"{"message":"The to.0.email is wrong. #MS42209"}"#, "unsupported");
        check(429, &[], r#"{"message":"daily quota limit. #MS42901"}"#, "quota");
        check(429, &[("retry-after", "59")], r#"{"message":"rate limit #MS42903"}"#, "throttled after 59");
        check(421, &[], "", "transient");
        check(500, &[], "", "transient");
        check(504, &[], "", "unclear");
    }

    #[test]
    fn a_message_holds_all_of_its_job() {
        let files = json!([
            { "filename": "a.pdf", "content_type": "application/pdf", "content": "YQ==" },
            { "filename": "b.png", "content_type": "image/png", "content": "Yg==", "content_id": "b" },
        ]);
        let job = job(json!({
            "bcc": ["c@dest.example"], "reply_to": ["r@shop.example"], "tags": ["a", "b"],
            "headers": [{ "name": "X-One", "value": "1" }], "html": "<img src=\"cid:b\">", "attachments": files,
            "tracking": { "opens": false, "clicks": true },
        }));
        let request = account().request(&letter(&job), Call { host: "", keys: None, now: now() }).unwrap();
        assert_eq!((request.path.as_str(), request.headers[0].1.expose_secret()), ("/v1/email", "Bearer token"));
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let expected = json!({
            "from": { "email": "shop@shop.example", "name": "Shop" }, "to": [{ "email": "ann@dest.example", "name": "Ann" }],
            "bcc": [{ "email": "c@dest.example" }], "reply_to": { "email": "r@shop.example" },
            "subject": "Hello", "text": "Hello Ann", "html": "<img src=\"cid:b\">", "tags": ["a", "b"],
            "headers": [{ "name": "X-One", "value": "1" }],
            "settings": { "track_opens": false, "track_clicks": true },
            "attachments": [
                { "filename": "b.png", "content": "Yg==", "disposition": "inline", "id": "b" },
                { "filename": "a.pdf", "content": "YQ==", "disposition": "attachment" },
            ],
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn what_does_not_fit_is_told_before() {
        let fit = |fields: Value| body(&letter(&job(fields))).err();
        let not = |text: &str| Some(Unsupported::Value(text.to_owned()));
        assert_eq!(fit(json!({ "text": "a {b} %}" })), None);
        assert_eq!(fit(json!({ "text": "a {$b}" })), not("content with {{, {% or {$ in it"));
        let many: Vec<String> = (0..11).map(|n| format!("c{n}@dest.example")).collect();
        assert_eq!(fit(json!({ "cc": many })), not("more than 10 copies"));
        let file = json!([{ "filename": "a", "content_type": "text/plain", "content": "YQ==" }]);
        assert_eq!(fit(json!({ "attachments": file })), not("a file of type text/plain with such a name"));
        let large = fit(json!({ "text": "x".repeat(BODY_MAX + 1) }));
        assert_eq!(large, not("a body of 2000001 bytes"));
    }

    #[test]
    fn headers_need_a_plan_that_has_them() {
        let carries = |custom_headers| {
            let account = MailerSend { api_key: "token".into(), custom_headers };
            account.capabilities(DESCRIPTION.capabilities).headers
        };
        assert_eq!([carries(false), carries(true)], [false, true]);
    }
}
