//! The form of Mailgun: `POST /v3/{domain}/messages` and `messages.mime`, as a form of either type. The domain of the path is not looked at: keys say who may
//! send for whom.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use jiff::{Timestamp, fmt::rfc2822};
use postrider_schemas::{
    JobV1, Mailbox, MailboxV1,
    wire::{AttachmentV1, TrackingV1},
};
use serde_json::{Map, Value, json};

use super::{Answer, Call, Draft, Request, Results, Submission, fields, raw, routes::Operation};
use crate::{
    form::{File, Form},
    idempotency,
    problem::{Kind, Problem},
};

/// Recipients of one request with variables for each, at most.
const RECIPIENTS_MAX: usize = 1000;
/// The variable that clients without headers of their own may carry an idempotency key in.
const KEY_VARIABLE: &str = "v:idempotency_key";
const TEMPLATES: &str = "templates that Mailgun keeps are not here; send `html` or `text`";

/// What the options of a form come to.
struct Options {
    tags: Vec<String>,
    metadata: BTreeMap<String, String>,
    tracking: TrackingV1,
    send_at: Option<Timestamp>,
    is_test: bool,
}

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    let mut form = Form::of(request.headers, request.body)?;
    let variable = form.text(KEY_VARIABLE)?;
    let key = idempotency::from_headers(request.headers)?.or(variable);
    let options = options(&mut form)?;
    let is_test = options.is_test;
    let jobs =
        if request.operation == Operation::MailgunMime { vec![whole(form, options)?] } else { mails(form, options)? };
    let jobs: Vec<Result<Draft, Problem>> = jobs.into_iter().map(|job| Ok(job.into())).collect();
    if !is_test {
        return Ok(Call::Send(Submission { jobs, key, is_atomic: true }));
    }
    let wrong = jobs.into_iter().find_map(|job| {
        let parsed = job.and_then(|Draft { job, .. }| {
            job.parse(request.limits).map_err(|error| Problem::of_job(&error, b"", request.limits))
        });
        parsed.err()
    });
    wrong.map_or_else(|| Ok(Call::Answer(queued("test"))), Err)
}

fn options(form: &mut Form) -> Result<Options, Problem> {
    let is_test = switch(form, "o:testmode")?.unwrap_or_default();
    let all = switch(form, "o:tracking")?;
    let tracking = TrackingV1 {
        opens: switch(form, "o:tracking-opens")?.or(all).unwrap_or_default(),
        clicks: switch(form, "o:tracking-clicks")?.or(all).unwrap_or_default(),
    };
    for (name, harmless) in [("o:dkim", true), ("o:require-tls", false), ("o:skip-verification", false)] {
        if switch(form, name)?.is_some_and(|value| value != harmless) {
            let detail = "is not supported: transports decide that";
            return Err(Problem::field(Kind::Unsupported, format!("/{name}"), detail));
        }
    }
    let time = form.text("o:deliverytime")?.map(|text| {
        let time = rfc2822::parse(&text).map(|time| time.timestamp()).or_else(|_| text.parse());
        time.map_err(|_| form.wrong("o:deliverytime", "expected a time such as Fri, 25 Dec 2026 18:00:00 +0000"))
    });
    let mut metadata = BTreeMap::new();
    for (name, values) in form.beginning("v:") {
        metadata.insert(name, values.join(", "));
    }
    Ok(Options { tags: form.texts("o:tag"), metadata, tracking, send_at: time.transpose()?, is_test })
}

/// `yes` or `no`, in the words that clients use.
fn switch(form: &mut Form, name: &str) -> Result<Option<bool>, Problem> {
    let Some(text) = form.text(name)? else { return Ok(None) };
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "htmlonly" => Ok(Some(true)),
        "no" | "false" | "" => Ok(Some(false)),
        _ => Err(form.wrong(name, "is yes or no")),
    }
}

fn mailboxes(form: &mut Form, name: &str) -> Vec<MailboxV1> {
    form.texts(name).into_iter().filter(|text| !text.trim().is_empty()).map(MailboxV1::from).collect()
}

/// One mail to all, or one to each recipient where they have variables of their own.
fn mails(mut form: Form, options: Options) -> Result<Vec<JobV1>, Problem> {
    for name in ["template", "t:version", "t:text", "t:variables"] {
        form.refuse(name, TEMPLATES)?;
    }
    form.refuse("amp-html", "a mail has a text and an HTML body here")?;
    let from = form.text("from")?.ok_or_else(|| form.wrong("from", "is required"))?;
    let pairs = form
        .beginning("h:")
        .into_iter()
        .flat_map(|(name, values)| values.into_iter().map(move |value| (name.clone(), value)));
    let headers = fields::headers(pairs.collect::<Vec<_>>());
    let mut attachments: Vec<AttachmentV1> =
        form.files("attachment").into_iter().map(|file| attachment(file, false)).collect();
    attachments.extend(form.files("inline").into_iter().map(|file| attachment(file, true)));
    let variables = recipient_variables(&mut form)?;
    let job = JobV1 {
        from: from.into(),
        reply_to: headers.reply_to.map(MailboxV1::from).into_iter().collect(),
        cc: mailboxes(&mut form, "cc"),
        bcc: mailboxes(&mut form, "bcc"),
        subject: form.text("subject")?.unwrap_or_default(),
        text: form.text("text")?.filter(|text| !text.is_empty()),
        html: form.text("html")?.filter(|html| !html.is_empty()),
        headers: headers.extra,
        list_unsubscribe: headers.list_unsubscribe,
        attachments,
        tags: options.tags,
        metadata: options.metadata,
        tracking: options.tracking,
        send_at: options.send_at,
        ..JobV1::default()
    };
    let to = mailboxes(&mut form, "to");
    form.end()?;
    match variables {
        None => Ok(vec![JobV1 { to, ..job }]),
        Some(variables) => for_each(&to, &job, &variables),
    }
}

/// Variables by address; nothing where the form has none.
fn recipient_variables(form: &mut Form) -> Result<Option<Map<String, Value>>, Problem> {
    let Some(text) = form.text("recipient-variables")?.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let wrong = || form.wrong("recipient-variables", "expected a JSON object of addresses and their variables");
    let all: Map<String, Value> = serde_json::from_str(&text).map_err(|_| wrong())?;
    if all.is_empty() {
        return Ok(None);
    }
    if all.values().any(|one| !one.is_object()) {
        return Err(wrong());
    }
    // Addresses are compared without regard to case.
    Ok(Some(all.into_iter().map(|(address, values)| (address.to_lowercase(), values)).collect()))
}

fn for_each(to: &[MailboxV1], job: &JobV1, variables: &Map<String, Value>) -> Result<Vec<JobV1>, Problem> {
    for (name, list) in [("/cc", &job.cc), ("/bcc", &job.bcc)] {
        if !list.is_empty() {
            let detail = "is not supported together with recipient-variables: each recipient gets a mail alone";
            return Err(Problem::field(Kind::Unsupported, name, detail));
        }
    }
    let mut jobs = Vec::new();
    for one in to.iter().filter_map(|one| if let MailboxV1::Text(text) = one { Some(text) } else { None }) {
        for mailbox in Mailbox::parse_each(one) {
            let mailbox = mailbox.map_err(|error| Problem::field(Kind::Invalid, "/to", error.to_string()))?;
            let address = mailbox.address().to_string();
            let own = variables.get(&address.to_lowercase()).and_then(Value::as_object);
            jobs.push(personal(job, &mailbox, own));
            if jobs.len() > RECIPIENTS_MAX {
                let detail = format!("has at most {RECIPIENTS_MAX} recipients with variables");
                return Err(Problem::field(Kind::Invalid, "/to", detail));
            }
        }
    }
    if jobs.is_empty() {
        return Err(Problem::field(Kind::Invalid, "/to", "is required"));
    }
    Ok(jobs)
}

/// The mail of one recipient: `%recipient.NAME%` becomes the value, `%recipient%` the address.
fn personal(job: &JobV1, mailbox: &Mailbox, variables: Option<&Map<String, Value>>) -> JobV1 {
    let address = mailbox.address().to_string();
    let fill = |text: &str| {
        let mut text = text.replace("%recipient%", &address).replace("%recipient_email%", &address);
        for (name, value) in variables.into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text = text.replace(&format!("%recipient.{name}%"), &value);
        }
        text
    };
    let mut own = job.clone();
    own.to = vec![MailboxV1::from(mailbox)];
    own.subject = fill(&job.subject);
    own.text = job.text.as_deref().map(fill);
    own.html = job.html.as_deref().map(fill);
    for header in &mut own.headers {
        header.value = fill(&header.value);
    }
    if let Some(list) = &mut own.list_unsubscribe {
        list.url = list.url.as_deref().map(fill);
        list.mailto = list.mailto.as_deref().map(fill);
    }
    for value in own.metadata.values_mut() {
        *value = fill(value);
    }
    own
}

fn attachment(file: File, is_inline: bool) -> AttachmentV1 {
    let kind = file.kind.filter(|kind| kind != "application/octet-stream");
    AttachmentV1 {
        content_type: kind.unwrap_or_else(|| fields::media_type(&file.name).to_owned()),
        content: STANDARD.encode(&file.content),
        // A body names an inline file by its name.
        content_id: is_inline.then(|| file.name.clone()),
        filename: file.name,
    }
}

/// A whole message, with recipients of its own.
fn whole(mut form: Form, options: Options) -> Result<JobV1, Problem> {
    let octets = match (form.files("message").pop(), form.text("message")?) {
        (Some(file), None) => file.content.to_vec(),
        (None, Some(text)) => text.into_bytes(),
        _ => return Err(form.wrong("message", "is required, once")),
    };
    let to = mailboxes(&mut form, "to");
    if to.is_empty() {
        return Err(form.wrong("to", "is required"));
    }
    form.end()?;
    Ok(JobV1 {
        tags: options.tags,
        metadata: options.metadata,
        tracking: options.tracking,
        send_at: options.send_at,
        ..raw::job(STANDARD.encode(octets), None, to)?
    })
}

fn queued(id: &str) -> Answer {
    Answer::json(StatusCode::OK, &json!({ "id": format!("<{id}@postrider>"), "message": "Queued. Thank you." }))
}

/// Says what became of a submission.
pub fn sent(results: &Results) -> Answer {
    if let Some(problem) = results.iter().find_map(|result| result.as_ref().err()) {
        return refuse(problem);
    }
    match results.first() {
        Some(Ok(id)) => queued(&id.to_string()),
        _ => Answer::empty(StatusCode::OK),
    }
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let status = match problem.kind {
        Kind::Invalid | Kind::Unsupported | Kind::KeyReused | Kind::UnsupportedMedia => StatusCode::BAD_REQUEST,
        kind => kind.status(),
    };
    Answer::json(status, &json!({ "message": problem.sentence() }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use postrider_schemas::JobLimits;

    use super::*;

    fn ask(operation: Operation, pairs: &[(&str, &str)]) -> Result<Call, Problem> {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(pairs);
        read(&Request {
            operation,
            parameters: &["shop.example".to_owned()],
            query: "",
            headers: &HeaderMap::new(),
            body: &Bytes::from(body.finish()),
            now: "2026-12-01T10:00:00Z".parse().unwrap(),
            limits: &JobLimits::DEFAULT,
        })
    }

    fn jobs(more: &[(&str, &str)]) -> Result<Vec<JobV1>, Problem> {
        let usual = [("from", "Shop <a@shop.example>"), ("subject", "Hello %recipient.name%"), ("text", "t")];
        match ask(Operation::MailgunSend, &[&usual, more].concat())? {
            Call::Send(submission) => submission.jobs.into_iter().map(|job| job.map(|draft| draft.job)).collect(),
            _ => Ok(Vec::new()),
        }
    }

    #[test]
    fn every_field_of_a_mail_reaches_the_job() {
        let job = jobs(&[
            ("to", "C <c@d.example>, e@d.example"),
            ("to", "f@d.example"),
            ("cc", "g@d.example"),
            ("html", "<p>h</p>"),
            ("h:Reply-To", "help@shop.example"),
            ("h:X-Order", "1"),
            ("v:order", "1"),
            ("o:tag", "receipt"),
            ("o:tag", "eu"),
            ("o:tracking-opens", "yes"),
            ("o:deliverytime", "Fri, 25 Dec 2026 18:00:00 +0000"),
        ])
        .ok()
        .unwrap()
        .remove(0);
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!((job.to().len(), job.cc().len(), job.tags().len(), job.metadata().len()), (3, 1, 2, 1));
        assert_eq!(job.send_at().unwrap().to_string(), "2026-12-25T18:00:00Z");
        assert!(job.tracking().opens && !job.tracking().clicks);
        assert_eq!(job.reply_to().len(), 1);
    }

    #[test]
    fn recipients_with_variables_get_a_mail_each() {
        let variables = r#"{"c@d.example": {"name": "Ada", "n": 7}, "E@d.example": {"name": "Bob"}}"#;
        let found = jobs(&[("to", "C <c@d.example>, e@d.example"), ("recipient-variables", variables)]).ok().unwrap();
        assert_eq!(found.iter().map(|job| job.subject.as_str()).collect::<Vec<_>>(), ["Hello Ada", "Hello Bob"]);
        assert!(found.iter().all(|job| job.to.len() == 1));
        for (more, pointer) in [
            (vec![("recipient-variables", "[]")], "/recipient-variables"),
            (vec![("recipient-variables", variables), ("cc", "x@d.example")], "/cc"),
            (vec![("recipient-variables", variables), ("to", "nobody")], "/to"),
        ] {
            let problem = jobs(&[&[("to", "c@d.example")], more.as_slice()].concat()).err().unwrap();
            assert_eq!(problem.fields[0].pointer, pointer);
        }
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name_and_a_test_sends_nothing() {
        for (name, value) in [("template", "x"), ("amp-html", "x"), ("o:require-tls", "yes"), ("colour", "red")] {
            let problem = jobs(&[("to", "c@d.example"), (name, value)]).err().unwrap();
            assert_eq!(
                (problem.kind, problem.fields[0].pointer.as_str()),
                (Kind::Unsupported, format!("/{name}").as_str())
            );
        }
        assert_eq!(jobs(&[("to", "c@d.example"), ("o:testmode", "yes")]).ok().unwrap().len(), 0);
        assert!(jobs(&[("to", "nobody"), ("o:testmode", "yes")]).is_err());
    }

    #[test]
    fn a_whole_message_goes_to_the_recipients_of_the_form() {
        let message = "From: a@shop.example\r\nTo: c@d.example\r\nSubject: s\r\n\r\nt\r\n";
        let call = ask(Operation::MailgunMime, &[("to", "z@d.example"), ("message", message), ("o:tag", "x")]);
        let Ok(Call::Send(mut submission)) = call else { panic!("not read") };
        let job = submission.jobs.remove(0).ok().unwrap().job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!((job.recipients().len(), job.tags().len()), (1, 1));
        assert_eq!(ask(Operation::MailgunMime, &[("message", message)]).err().unwrap().fields[0].pointer, "/to");
    }
}
