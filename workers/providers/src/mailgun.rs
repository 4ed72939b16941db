//! Mailgun, messages API v3: <https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages>. The region is the base address.
//!
//! A message of its own goes as MIME, so that nothing of it is lost; as a form only where an address has other letters than ASCII before the `@`. Jobs that
//! share a call go as a form with a variable for whatever is a job's own, and Mailgun gives each copy a `Message-ID`.
//! Metadata is seen by recipients who look at the source: Mailgun writes it into a header.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use postrider_policy::{capabilities::Capabilities, outcome::Class};
use postrider_schemas::{
    address::{EmailAddress, Mailbox},
    job::RecipientField,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::{
    batch::{Batched, Item},
    description::{Api, Batching, Call, Description, MIB, Notes, Setting, account},
    encoding::{base64, name_addr, put},
    message::Message,
    multipart::Form,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    unsupported::Unsupported,
};

/// What it is and what it can carry.
pub const DESCRIPTION: Description = Description {
    kind: "mailgun",
    name: "Mailgun",
    base_url: Some("https://api.mailgun.net"),
    settings: &[Setting::API_KEY, Setting::text("domain", "The sending domain.")],
    // 25 MB as MIME. https://www.rubydoc.info/gems/mailgun-ruby/Mailgun/Chains: ten tags.
    capabilities: Capabilities {
        tags_max: 10,
        bytes_max: 17 * MIB,
        schedules: true,
        batch_max: 1000,
        raw: true,
        ..Capabilities::ALL
    },
    batching: Some(Batching { bytes_max: 20 * MIB, shares_content: true }),
    notes: Notes::USUAL,
};

account! {
    /// An account at Mailgun.
    pub struct Mailgun {
        /// The API key.
        api_key: secret,
        /// The sending domain, part of the address of the API.
        domain: text,
    }
}

impl Api for Mailgun {
    fn request(&self, message: &Message<'_>, _: Call<'_>) -> Result<Request, Unsupported> {
        request(&self.api_key, &self.domain, message)
    }

    fn verdict(&self, reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
        verdict(reply, now)
    }

    fn item(&self, message: &Message<'_>) -> Result<Item, Unsupported> {
        item(message)
    }

    fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        Some(batch_request(&self.api_key, &self.domain, items))
    }

    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        batch_verdict(reply, now)
    }
}

/// The name under which webhooks give the job id back.
const JOB_ID: &str = "postrider_job_id";
/// Longest tag.
const TAG_MAX: usize = 128;
/// Most bytes of all fields whose names begin with `o:`, `h:`, `v:` and `t:`.
const OPTIONS_MAX: usize = 16 * 1024;

/// What is escaped in a segment of the path.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

type Fields = Vec<(String, String)>;

/// One message.
pub fn request(api_key: &SecretString, domain: &str, outgoing: &Message<'_>) -> Result<Request, Unsupported> {
    check(outgoing)?;
    let mut options = options(outgoing)?;
    options.extend(outgoing.job.metadata().iter().map(|(key, value)| (format!("v:{key}"), value.clone())));
    options.push((format!("v:{JOB_ID}"), outgoing.job.id().to_string()));
    let composed = outgoing.mime.mime().map_err(Unsupported::Compose)?;
    if composed.needs_smtputf8 || outgoing.has_international_envelope() {
        if outgoing.job.raw().is_some() {
            return Err(Unsupported::Value("a whole message that needs SMTPUTF8".to_owned()));
        }
        return form(api_key, domain, outgoing, options);
    }
    within_limit(&options)?;
    let mut form = Form::default();
    for address in outgoing.recipients() {
        form.field("to", &address.to_string());
    }
    for (name, value) in &options {
        form.field(name, value);
    }
    form.file("message", "message.mime", "message/rfc822", composed.message.as_slice());
    Ok(call(api_key, domain, "messages.mime", form))
}

/// One message as a part of a call with others that have the same content.
pub fn item(outgoing: &Message<'_>) -> Result<Item, Unsupported> {
    check(outgoing)?;
    let alone = |why: &str| Unsupported::Value(format!("{why} in a shared call"));
    let [recipient] = outgoing.job.recipients()[..] else { return Err(alone("several recipients")) };
    if outgoing.job.raw().is_some() {
        return Err(alone("a whole message"));
    }
    if recipient.field != RecipientField::To {
        return Err(alone("a copy"));
    }
    if recipient.address.needs_smtputf8() {
        return Err(alone("other letters than ASCII before an @"));
    }
    let headers = headers(outgoing)?;
    let texts = [Some(outgoing.subject), outgoing.text, outgoing.html];
    let values =
        headers.iter().map(|(_, value)| value.as_str()).chain(outgoing.job.metadata().values().map(String::as_str));
    if texts.into_iter().flatten().chain(values).any(|text| text.contains("%recipient")) {
        return Err(alone("%recipient"));
    }
    if !outgoing.inline.is_empty() {
        return Err(alone("inline images"));
    }
    let mut variables = Map::new();
    let mut fields = content(outgoing);
    fields.extend(options(outgoing)?);
    let own = headers.into_iter().map(|(name, value)| (format!("h:{name}"), value));
    let own = own.chain(outgoing.job.metadata().iter().map(|(key, value)| (format!("v:{key}"), value.clone())));
    let own = own.chain([(format!("v:{JOB_ID}"), outgoing.job.id().to_string())]);
    let mut size = Fields::new();
    for (n, (name, value)) in own.enumerate() {
        fields.push((name.clone(), format!("%recipient.p{n}%")));
        put(&mut variables, &format!("p{n}"), value.as_str());
        size.push((name, value));
    }
    size.extend(fields.iter().cloned());
    within_limit(&size)?;
    let files: Vec<Value> =
        outgoing.attached.iter().map(|one| json!([one.filename, one.content_type, base64(&one.content)])).collect();
    let mailbox = recipient.mailbox;
    Ok(Item {
        shared: json!({ "fields": fields, "files": files }).to_string(),
        own: json!({ "to": name_addr(mailbox), "address": mailbox.address().to_string(), "variables": variables }),
    })
}

/// One call for all; their shared part is the same, and no address stands in two of them.
pub fn batch_request(api_key: &SecretString, domain: &str, items: &[&Item]) -> Request {
    let shared = items.first().map(|item| item.shared.as_str()).unwrap_or_default();
    let shared: Value = serde_json::from_str(shared).unwrap_or_default();
    let list = |field: &Value| field.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut form = Form::default();
    let mut variables = Map::new();
    for item in items {
        form.field("to", &text(&item.own["to"]));
        variables.insert(text(&item.own["address"]), item.own["variables"].clone());
    }
    form.field("recipient-variables", &Value::Object(variables).to_string());
    for field in list(&shared["fields"]) {
        form.field(&text(&field[0]), &text(&field[1]));
    }
    for file in list(&shared["files"]) {
        // Our own writing: it decodes.
        let content = STANDARD.decode(text(&file[2])).unwrap_or_default();
        form.file("attachment", &text(&file[0]), &text(&file[1]), content);
    }
    call(api_key, domain, "messages", form)
}

/// One answer for all: a wrong address makes the whole call fail.
pub fn batch_verdict(reply: &ProviderReply, now: Timestamp) -> Batched {
    Batched::Whole(verdict(reply, now))
}

/// What an answer means.
pub fn verdict(reply: &ProviderReply, now: Timestamp) -> ReplyVerdict {
    let body = reply.json();
    let text = body.as_ref().and_then(|body| body["message"].as_str()).map_or_else(|| reply.excerpt(), str::to_owned);
    match reply.status {
        // A wrong path is answered with 200 and a greeting, so that the id is needed.
        200 => match body.as_ref().and_then(|body| body["id"].as_str()).filter(|id| !id.is_empty() && reply.is_whole) {
            Some(id) => ReplyVerdict::Taken(id.to_owned()),
            None => reply.by_status(&text, now),
        },
        // An hourly limit, as users report. `x-ratelimit-reset` is about the pace, as far as Mailgun's own client tells, not about a quota.
        420 => ReplyVerdict::refused(Class::Quota, text).after(reply.retry_after(now)),
        429 => {
            let wait = reply.retry_after(now).or_else(|| reply.unix_time("x-ratelimit-reset", now));
            ReplyVerdict::refused(Class::Throttled, text).after(wait)
        }
        403 if mentions(&text, "limit exceeded") => {
            ReplyVerdict::refused(Class::Quota, text).after(reply.retry_after(now))
        }
        // A new domain takes a moment to be known everywhere; one that is not there at all, or in another region, does not appear by waiting.
        404 if body.is_some() && !mentions(&text, "domain not found") => {
            ReplyVerdict::refused(Class::Transient, text).after(reply.retry_after(now))
        }
        _ => reply.by_status(&text, now),
    }
}

fn call(api_key: &SecretString, domain: &str, endpoint: &str, form: Form<'_>) -> Request {
    let (content_type, body) = form.finish();
    // A slash in the domain would lead to another address, which answers 200.
    let domain = utf8_percent_encode(domain, IN_PATH);
    let credentials = base64(format!("api:{}", api_key.expose_secret()).as_bytes());
    Request {
        path: format!("/v3/{domain}/{endpoint}"),
        headers: vec![("authorization", format!("Basic {credentials}").into())],
        content_type,
        body,
    }
}

/// The message in fields, where MIME would need SMTPUTF8.
fn form(
    api_key: &SecretString,
    domain: &str,
    outgoing: &Message<'_>,
    mut options: Fields,
) -> Result<Request, Unsupported> {
    let addressees = outgoing.addressees().ok_or(Unsupported::BlindOnly)?;
    options.extend(headers(outgoing)?.into_iter().map(|(name, value)| (format!("h:{name}"), value)));
    options.push(("h:Message-Id".to_owned(), outgoing.job.message_id()));
    within_limit(&options)?;
    let mut form = Form::default();
    for (field, list) in [("to", &addressees.to), ("cc", &addressees.cc), ("bcc", &addressees.bcc)] {
        for mailbox in list {
            form.field(field, &name_addr(mailbox));
        }
    }
    for (name, value) in content(outgoing).iter().chain(&options) {
        form.field(name, value);
    }
    let (inline, attached) = (outgoing.inline.clone(), outgoing.attached.clone());
    for one in inline {
        // The name of the file is what `cid:` links mean here.
        if one.content_id.as_ref() != Some(&one.filename) {
            return Err(Unsupported::Value("an inline image whose name is not its content id".to_owned()));
        }
        form.file("inline", &one.filename, &one.content_type, &one.content[..]);
    }
    for one in attached {
        form.file("attachment", &one.filename, &one.content_type, &one.content[..]);
    }
    Ok(call(api_key, domain, "messages", form))
}

/// What Mailgun takes in no form.
fn check(outgoing: &Message<'_>) -> Result<(), Unsupported> {
    let senders = std::iter::once(outgoing.job.from()).chain(outgoing.job.reply_to());
    // Mailgun makes headers of them that nobody can read (github.com/anymail/django-anymail, its backend for Mailgun).
    if senders.map(Mailbox::address).any(EmailAddress::needs_smtputf8) {
        return Err(Unsupported::Value("a sender with other letters than ASCII before the @".to_owned()));
    }
    for (name, _) in outgoing.headers.clone() {
        // Taken for orders.
        if name.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("x-mailgun-")) {
            return Err(Unsupported::Header(name));
        }
    }
    if outgoing.job.metadata().contains_key(JOB_ID) {
        return Err(Unsupported::Value(format!("metadata by the name of {JOB_ID}")));
    }
    Ok(())
}

/// Tags and tracking.
fn options(outgoing: &Message<'_>) -> Result<Fields, Unsupported> {
    let mut options = Fields::new();
    for tag in outgoing.job.tags() {
        if !tag.is_ascii() || tag.len() > TAG_MAX {
            return Err(Unsupported::Value("a tag of other characters than ASCII".to_owned()));
        }
        options.push(("o:tag".to_owned(), tag.clone()));
    }
    let tracking = outgoing.job.tracking();
    // Said in both cases: the domain's own setting must not track what did not ask for it.
    options.push(("o:tracking-opens".to_owned(), if tracking.opens { "yes" } else { "no" }.to_owned()));
    options.push(("o:tracking-clicks".to_owned(), if tracking.clicks { "htmlonly" } else { "no" }.to_owned()));
    Ok(options)
}

/// Sender, subject and bodies.
fn content(outgoing: &Message<'_>) -> Fields {
    let mut fields =
        vec![("from".to_owned(), name_addr(outgoing.job.from())), ("subject".to_owned(), outgoing.subject.to_owned())];
    for (name, body) in [("text", outgoing.text), ("html", outgoing.html)] {
        // An empty body counts as none, and one is needed.
        fields.extend(body.map(|body| (name.to_owned(), if body.is_empty() { " " } else { body }.to_owned())));
    }
    fields
}

fn headers(outgoing: &Message<'_>) -> Result<Fields, Unsupported> {
    let mut headers = outgoing.headers.clone();
    if !outgoing.job.reply_to().is_empty() {
        let list: Vec<String> = outgoing.job.reply_to().iter().map(name_addr).collect();
        headers.push(("Reply-To".to_owned(), list.join(", ")));
    }
    for (n, (name, _)) in headers.iter().enumerate() {
        if headers[..n].iter().any(|(earlier, _)| earlier.eq_ignore_ascii_case(name)) {
            return Err(Unsupported::HeaderTwice(name.clone()));
        }
    }
    Ok(headers)
}

fn within_limit(options: &Fields) -> Result<(), Unsupported> {
    let is_option = |name: &str| ["o:", "h:", "v:"].iter().any(|start| name.starts_with(start));
    let size: usize =
        options.iter().filter(|(name, _)| is_option(name)).map(|(name, value)| name.len() + value.len()).sum();
    if size > OPTIONS_MAX {
        return Err(Unsupported::Value("more than 16 KiB of headers, tags and metadata".to_owned()));
    }
    Ok(())
}

fn mentions(text: &str, lower_case: &str) -> bool {
    text.to_ascii_lowercase().contains(lower_case)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::testing::{now, reply, shown};

    const OK: &str = r#"{"id":"<2026.1@mg.shop.example>","message":"Queued. Thank you."}"#;

    #[track_caller]
    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: &str) {
        assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {body}");
    }

    fn message(text: &str) -> String {
        json!({ "message": text }).to_string()
    }

    #[test]
    fn every_answer_has_its_meaning() {
        check(200, &[], OK, "taken <2026.1@mg.shop.example>");
        check(200, &[], "Mailgun Magnificent API", "unclear");
        check(200, &[], "<html>a login page</html>", "not the api");
        check(200, &[], "", "unclear");
        check(200, &[], &OK[..20], "unclear");
        check(400, &[], &message("to parameter is not a valid address. please check documentation"), "unsupported");
        check(401, &[], "Forbidden", "config");
        check(402, &[], &message("Request failed"), "config");
        check(
            403,
            &[],
            &message("Domain shop.example is not allowed to send: Free accounts are for test purposes only"),
            "config",
        );
        check(403, &[], &message("Domain shop.example is not allowed to send: recipient limit exceeded"), "quota");
        check(404, &[], &message("Domain not found: shop.example"), "config");
        check(404, &[], &message("Not yet here"), "transient");
        check(404, &[], "<html>not found</html>", "config");
        check(413, &[], "", "unsupported");
        check(420, &[], &message("Enhance your calm"), "quota");
        check(420, &[("retry-after", "60")], "", "quota after 60");
        check(420, &[("x-ratelimit-reset", "1795428060")], "", "quota");
        check(403, &[("x-ratelimit-reset", "1795428060")], &message("limit exceeded"), "quota");
        check(429, &[("x-ratelimit-reset", "1795428060.5")], &message("too many requests"), "throttled after 60");
        check(429, &[("retry-after", "7")], "", "throttled after 7");
        check(429, &[], "", "throttled");
        check(500, &[], "", "transient");
        check(503, &[("retry-after", "3")], "<html>", "transient after 3");
        check(502, &[], "", "unclear");
        check(504, &[], "", "unclear");
    }

    #[test]
    fn a_cut_answer_proves_nothing() {
        let cut = ProviderReply { is_whole: false, ..reply(200, &[], OK) };
        assert_eq!(shown(&verdict(&cut, now())), "unclear");
    }
}
