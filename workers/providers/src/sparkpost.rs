//! `SparkPost` (Bird), transmissions: <https://developers.sparkpost.com/api/transmissions/>. The region is the base address.
//!
//! The message goes as MIME; `header_to` of each recipient keeps its `To` line the same for all. Whatever stands between double curly braces is taken
//! for a template, and is escaped. Calls are not shared: one that is refused in part does not say for whom.

use std::time::Duration;

use jiff::Timestamp;
use memchr::memmem;
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::{address::Mailbox, fields::Lane};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::{
    description::{Api, Call, Description, MIB, Notes, Setting, SettingForm, account},
    encoding::put,
    message::Message,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "sparkpost",
    name: "SparkPost",
    base_url: Some("https://api.sparkpost.com"),
    settings: &[
        Setting::API_KEY,
        Setting::optional("subaccount", SettingForm::Text, "The subaccount."),
        Setting::optional("idempotency", SettingForm::Flag, "The account honours `Idempotency-Key`."),
    ],
    // 20 MB of content. https://www.npmjs.com/package/campaign-sparkpost: ten tags of a recipient.
    capabilities: Capabilities { tags_max: 10, bytes_max: 14 * MIB, schedules: true, raw: true, ..Capabilities::ALL },
    batching: None,
    notes: Notes { repeats: "idempotency = true", ..Notes::USUAL },
};

account! {
    /// An account at `SparkPost`.
    pub struct Sparkpost {
        /// The API key.
        api_key: secret,
        /// The subaccount.
        subaccount: some_text,
        /// The account honours `Idempotency-Key`.
        idempotency: flag,
    }
}

impl Api for Sparkpost {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, self.subaccount.as_deref(), self.idempotency, message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn capabilities(&self, table: Capabilities) -> Capabilities {
        let idempotency = self.idempotency.then(|| Duration::from_hours(24));
        Capabilities { idempotency: idempotency.or(table.idempotency), ..table }
    }
}

/// The name under which webhooks give the job id back.
const JOB_ID: &str = "postrider_job_id";
/// Most bytes of metadata.
const METADATA_MAX: usize = 10_000;

/// One message. `idempotency` where the account is known to honour the key.
pub fn request(
    api_key: &SecretString,
    subaccount: Option<&str>,
    idempotency: bool,
    outgoing: &Message<'_>,
) -> Result<Request, Unsupported> {
    let mut headers = vec![("authorization", api_key.clone())];
    headers.extend(subaccount.map(|id| ("x-msys-subaccount", id.into())));
    // The same key must come with the same bytes, the date included.
    let dated = if idempotency { first_due(outgoing) } else { outgoing.dated };
    if idempotency {
        headers.push(("idempotency-key", outgoing.key().to_string().into()));
    }
    Ok(Request::json("/api/v1/transmissions", headers, &body(outgoing, dated)?))
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let body = reply.json().unwrap_or_default();
    let text = reason(reply, &body);
    let refused = |class| ReplyVerdict::refused(class, text.as_str()).after(reply.retry_after(now));
    let code = code(&body);
    match reply.status {
        200..=299 => taken(reply, &body).unwrap_or_else(|| reply.by_status(&text, now)),
        // The sending limit is used up; nothing of the call is sent.
        420 => refused(Class::Quota),
        // Another call with this key is under way, or was made with other content: that one may have been taken.
        409 if matches!(code, Some(1600 | 1601)) => ReplyVerdict::Unclear(text),
        _ => reply.by_status(&text, now),
    }
}

fn body(outgoing: &Message<'_>, dated: Timestamp) -> Result<Value, Unsupported> {
    let job = outgoing.job;
    for (name, value) in outgoing.headers.clone() {
        // The first is taken for orders; braces in a header cannot be escaped within its limits on length.
        if name.eq_ignore_ascii_case("x-msys-api") || value.contains("{{") {
            return Err(Unsupported::Header(name));
        }
    }
    let named = [job.reply_to(), job.to(), job.cc()].into_iter().flatten().chain([job.from()]);
    if named.filter_map(Mailbox::name).any(|name| name.contains("{{")) {
        return Err(Unsupported::Value("double curly braces in a name".to_owned()));
    }
    if job.raw().is_some_and(|raw| memmem::find(raw.as_given(), b"{{").is_some()) {
        return Err(Unsupported::Value("double curly braces in a whole message".to_owned()));
    }
    let composed = outgoing.mime.mime_with(dated, &escaped).map_err(Unsupported::Compose)?;
    if composed.needs_smtputf8 || outgoing.has_international_envelope() {
        return Err(Unsupported::Value("an address with other letters than ASCII before the @".to_owned()));
    }
    let message = String::from_utf8(composed.message)
        .map_err(|_| Unsupported::Value("a message of other bytes than text".to_owned()))?;
    let shown_to = header_to(outgoing);
    let recipients = outgoing.recipients().into_iter().map(|address| {
        // No name: it would stand beside `header_to`.
        let mut fields = Map::new();
        put(&mut fields, "email", address.to_string());
        if let Some(shown_to) = &shown_to {
            put(&mut fields, "header_to", shown_to.as_str());
        }
        let mut recipient = Map::new();
        put(&mut recipient, "address", fields);
        if !job.tags().is_empty() {
            put(&mut recipient, "tags", job.tags());
        }
        Value::Object(recipient)
    });
    let tracking = job.tracking();
    Ok(json!({
        // Tracking is said in both cases: an account's own setting must not track what did not ask for it.
        "options": {
            "open_tracking": tracking.opens,
            "initial_open": tracking.opens,
            "click_tracking": tracking.clicks,
            "transactional": job.lane() == Lane::Transactional,
        },
        "metadata": metadata(outgoing)?,
        "recipients": recipients.collect::<Value>(),
        "content": { "email_rfc822": message },
    }))
}

fn metadata(outgoing: &Message<'_>) -> Result<Map<String, Value>, Unsupported> {
    let mut metadata = Map::new();
    for (key, value) in outgoing.job.metadata() {
        if key == JOB_ID {
            return Err(Unsupported::Value(format!("metadata by the name of {JOB_ID}")));
        }
        put(&mut metadata, key, value.as_str());
    }
    put(&mut metadata, JOB_ID, outgoing.job.id().to_string());
    if Value::Object(metadata.clone()).to_string().len() > METADATA_MAX {
        return Err(Unsupported::Value("more than 10 kB of metadata".to_owned()));
    }
    Ok(metadata)
}

/// What the `To` line shows to each recipient; the recipient's own address where the job has blind ones only.
fn header_to(outgoing: &Message<'_>) -> Option<String> {
    if let Some(raw) = outgoing.job.raw() {
        let list = raw.header("to").next().and_then(|text| Mailbox::parse_list(&text).ok())?;
        return Some(list.iter().map(|one| one.address().to_string()).collect::<Vec<_>>().join(","));
    }
    let list = if outgoing.job.to().is_empty() { outgoing.job.cc() } else { outgoing.job.to() };
    let list: Vec<String> = list.iter().map(|one| one.address().to_string()).collect();
    (!list.is_empty()).then(|| list.join(","))
}

/// When the job could be sent first: the same in every attempt. Ids of our producers hold the time at which they were made.
fn first_due(outgoing: &Message<'_>) -> Timestamp {
    let made = outgoing.job.id().0.get_timestamp().and_then(|time| {
        let (seconds, nanoseconds) = time.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
    });
    made.max(outgoing.job.send_at()).unwrap_or(outgoing.dated)
}

/// Double curly braces as themselves.
fn escaped(text: &str) -> String {
    if !text.contains("{{") {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("}}")).min() {
        out.push_str(&rest[..at]);
        out.push_str(if rest[at..].starts_with('{') {
            "{{opening_double_curly()}}"
        } else {
            "{{closing_double_curly()}}"
        });
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
    out
}

/// What a 2xx says, where it says something.
fn taken(reply: &ProviderReply, body: &Value) -> Option<ReplyVerdict> {
    let results = &body["results"];
    let id = results["id"].as_str().filter(|id| !id.is_empty() && reply.is_whole)?;
    let accepted = results["total_accepted_recipients"].as_u64();
    let rejected = results["total_rejected_recipients"].as_u64().unwrap_or(0);
    Some(match (accepted, rejected) {
        (_, 0) => ReplyVerdict::Taken(id.to_owned()),
        (Some(0), rejected) => {
            ReplyVerdict::refused(Class::Recipient, format!("{rejected} of {rejected} recipients rejected"))
        }
        (_, _) => ReplyVerdict::TakenInPart { id: id.to_owned(), text: reply.excerpt() },
    })
}

fn code(body: &Value) -> Option<u64> {
    let code = &body["errors"][0]["code"];
    code.as_u64().or_else(|| code.as_str()?.parse().ok())
}

/// `errors[0]`.
fn reason(reply: &ProviderReply, body: &Value) -> String {
    let error = &body["errors"][0];
    let Some(message) = error["message"].as_str() else { return reply.excerpt() };
    let code = code(body).map(|code| format!("{code} ")).unwrap_or_default();
    match error["description"].as_str() {
        Some(description) => format!("{code}{message}: {description}"),
        None => format!("{code}{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::testing::{now, reply, shown};

    const OK: &str =
        r#"{"results":{"total_rejected_recipients":0,"total_accepted_recipients":2,"id":"11668787484950529"}}"#;

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {body}");
    }

    fn error(code: &str, message: &str) -> String {
        json!({ "errors": [{ "message": message, "code": code }] }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, &[], OK, "taken 11668787484950529");
        check(200, &[], &OK.replace("rejected_recipients\":0", "rejected_recipients\":1"), "in part 11668787484950529");
        let none = OK
            .replace("rejected_recipients\":0", "rejected_recipients\":2")
            .replace("accepted_recipients\":2", "accepted_recipients\":0");
        check(200, &[], &none, "recipient");
        check(200, &[], "<html>a login page</html>", "not the api");
        check(200, &[], "", "unclear");
        check(200, &[], &OK[..60], "unclear");
        check(400, &[], &error("1300", "invalid data format/type"), "unsupported");
        check(422, &[], &error("1902", "message generation rejected"), "unsupported");
        check(400, &[], &error("1602", "invalid idempotency key"), "unsupported");
        check(401, &[], &error("", "Unauthorized."), "config");
        check(403, &[], &error("", "Forbidden."), "config");
        check(409, &[], &error("1601", "in progress"), "unclear");
        check(409, &[], &error("1600", "another payload"), "unclear");
        check(409, &[], "", "unsupported");
        check(420, &[], &error("2101", "Exceed Sending Limit (hourly)"), "quota");
        check(420, &[("retry-after", "90")], "<html>", "quota after 90");
        check(429, &[("retry-after", "5")], "", "throttled after 5");
        check(500, &[], "", "transient");
        check(503, &[], "<html>", "transient");
        check(502, &[], "", "unclear");
        check(504, &[], "", "unclear");
    }

    #[test]
    fn a_cut_answer_proves_nothing() {
        let cut = ProviderReply { is_whole: false, ..reply(200, &[], OK) };
        assert_eq!(shown(&verdict(&cut, now())), "unclear");
    }

    #[test]
    fn braces_stay_what_they_are() {
        assert_eq!(escaped("a {{b}} c"), "a {{opening_double_curly()}}b{{closing_double_curly()}} c");
        assert_eq!(escaped("{{{"), "{{opening_double_curly()}}{");
        assert_eq!(escaped("@media{a{b:c}}"), "@media{a{b:c}}");
    }
}
