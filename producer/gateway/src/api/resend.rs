//! The form of Resend: `/emails`, `/emails/batch`, `/emails/{id}`.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{StatusCode, header::HeaderName};
use jiff::{Span, Timestamp, ToSpan as _};
use postrider_schemas::{JobId, JobV1, MailboxV1, wire::AttachmentV1};
use serde_json::{Value, json};

use super::{
    Answer, Call, Draft, Request, Results, Submission,
    fields::{self, Fields},
    routes::Operation,
};
use crate::{
    idempotency,
    problem::{Kind, Problem},
    records::JobView,
};

/// Mails of one batch, at most.
const BATCH_MAX: usize = 100;
/// How a batch is to be checked.
const VALIDATION: HeaderName = HeaderName::from_static("x-batch-validation");

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    match request.operation {
        Operation::ResendGet => return Ok(Call::View(super::job_id(request)?)),
        Operation::ResendCancel => return Ok(Call::Cancel(super::job_id(request)?)),
        Operation::ResendPatch => {
            let mut fields = Fields::of_body(request.body)?;
            let time = scheduled_at(&mut fields, request.now)?;
            let time = time.ok_or_else(|| fields.wrong("scheduled_at", "is required"))?;
            fields.end()?;
            return Ok(Call::Postpone(super::job_id(request)?, time));
        }
        _ => {}
    }
    let key = idempotency::from_headers(request.headers)?;
    let one = |fields| mail(fields, request.now).map(Draft::from);
    if request.operation != Operation::ResendBatch {
        let jobs = vec![Ok(one(Fields::of_body(request.body)?)?)];
        return Ok(Call::Send(Submission { jobs, key, is_atomic: true }));
    }
    let list: Vec<Value> = serde_json::from_slice(request.body)
        .map_err(|_| Problem::new(Kind::Malformed, "The body is no JSON array of mails."))?;
    if list.is_empty() || list.len() > BATCH_MAX {
        return Err(Problem::new(Kind::Invalid, format!("A batch holds 1 to {BATCH_MAX} mails.")));
    }
    let jobs = list.into_iter().enumerate().map(|(n, value)| one(Fields::of(value, format!("/{n}"))?)).collect();
    Ok(Call::Send(Submission { jobs, key, is_atomic: !is_permissive(request) }))
}

fn is_permissive(request: &Request<'_>) -> bool {
    request.headers.get(VALIDATION).is_some_and(|value| value == "permissive")
}

fn mail(mut fields: Fields, now: Timestamp) -> Result<JobV1, Problem> {
    fields.refuse("template", "templates that Resend keeps are not here; send `html` or `text`")?;
    fields.refuse("topic_id", "topics that Resend keeps are not here")?;
    let from = fields.text("from")?.ok_or_else(|| fields.wrong("from", "is required"))?;
    let subject = fields.text("subject")?.ok_or_else(|| fields.wrong("subject", "is required"))?;
    let headers = fields::headers(fields.names("headers")?);
    let mut mailboxes = |name: &str| -> Result<Vec<MailboxV1>, Problem> {
        Ok(fields.texts(name)?.into_iter().map(MailboxV1::from).collect())
    };
    let (to, cc, bcc, mut reply_to) = (mailboxes("to")?, mailboxes("cc")?, mailboxes("bcc")?, mailboxes("reply_to")?);
    if reply_to.is_empty() {
        reply_to.extend(headers.reply_to.map(MailboxV1::from));
    }
    let send_at = scheduled_at(&mut fields, now)?;
    let job = JobV1 {
        from: from.into(),
        reply_to,
        to,
        cc,
        bcc,
        subject,
        text: fields.text("text")?,
        html: fields.text("html")?,
        headers: headers.extra,
        list_unsubscribe: headers.list_unsubscribe,
        attachments: fields.objects("attachments")?.into_iter().map(attachment).collect::<Result<_, _>>()?,
        metadata: tags(fields.objects("tags")?)?,
        send_at,
        ..JobV1::default()
    };
    fields.end()?;
    Ok(job)
}

fn scheduled_at(fields: &mut Fields, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = fields.text("scheduled_at")? else { return Ok(None) };
    let detail = "expected a time such as 2026-12-01T10:00:00Z, or `in 5 minutes`, hours or days";
    time(&text, now).map(Some).ok_or_else(|| fields.wrong("scheduled_at", detail))
}

fn attachment(mut fields: Fields) -> Result<AttachmentV1, Problem> {
    fields.refuse("path", "the gateway fetches nothing; send `content`")?;
    let filename = fields.text("filename")?.unwrap_or_else(|| "attachment".to_owned());
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(value) => buffer(&value).ok_or_else(|| fields.wrong("content", "expected a text in base64"))?,
        None => return Err(fields.wrong("content", "is required")),
    };
    let content_type = fields.text("content_type")?.filter(|kind| !kind.is_empty());
    let attachment = AttachmentV1 {
        content_type: content_type.unwrap_or_else(|| fields::media_type(&filename).to_owned()),
        filename,
        content,
        content_id: fields.text("content_id")?.map(|id| id.trim_matches(['<', '>']).to_owned()),
    };
    fields.end()?;
    Ok(attachment)
}

/// What JavaScript makes of a buffer: a list of octets, or an object with one.
fn buffer(value: &Value) -> Option<String> {
    let list = value.as_array().or_else(|| value.get("data")?.as_array())?;
    let octets: Option<Vec<u8>> = list.iter().map(|octet| u8::try_from(octet.as_u64()?).ok()).collect();
    octets.map(|octets| STANDARD.encode(octets))
}

/// `{name, value}`, or `{NAME: value}` as one client writes it.
fn tags(list: Vec<Fields>) -> Result<BTreeMap<String, String>, Problem> {
    let mut all = BTreeMap::new();
    for mut tag in list {
        let (name, value) = (tag.text("name")?, tag.text("value")?);
        match (name, value) {
            (Some(name), value) => drop(all.insert(name, value.unwrap_or_default())),
            (None, _) => all.extend(tag.rest()?),
        }
    }
    Ok(all)
}

/// A time of ISO 8601, or one that counts from now.
fn time(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let text = text.to_ascii_lowercase();
    let mut words = text.strip_prefix("in ")?.split_whitespace();
    let number: i64 = words.next()?.parse().ok().filter(|number| (0..=100_000).contains(number))?;
    let unit = words.next()?;
    let span: Span = match unit.strip_suffix('s').unwrap_or(unit) {
        "sec" | "second" => number.seconds(),
        "min" | "minute" => number.minutes(),
        "hour" | "hr" => number.hours(),
        "day" => (number * 24).hours(),
        _ => return None,
    };
    now.checked_add(span).ok().filter(|_| words.next().is_none())
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    if request.operation != Operation::ResendBatch {
        return match results.first() {
            Some(Ok(id)) => Answer::json(StatusCode::OK, &json!({ "id": id })),
            Some(Err(problem)) => refuse(problem),
            None => Answer::empty(StatusCode::OK),
        };
    }
    let is_permissive = is_permissive(request);
    let mut failed = results.iter().filter_map(|result| result.as_ref().err());
    // What the queue did not take may be repeated as a whole.
    if let Some(problem) = failed.find(|problem| !is_permissive || problem.kind == Kind::Unavailable) {
        return refuse(problem);
    }
    let data: Vec<Value> = results.iter().filter_map(|result| Some(json!({ "id": result.as_ref().ok()? }))).collect();
    let mut document = json!({ "data": data });
    if is_permissive {
        let error = |(index, result): (usize, &Result<_, Problem>)| {
            Some(json!({ "index": index, "message": result.as_ref().err()?.sentence() }))
        };
        document["errors"] = results.iter().enumerate().filter_map(error).collect();
    }
    Answer::json(StatusCode::OK, &document)
}

/// Says what became of a job. Addresses, subject and bodies are not kept.
pub fn viewed(view: &JobView) -> Answer {
    let last_event = match view.state.status {
        "scheduled" => "scheduled",
        "deferred" | "held" => "delivery_delayed",
        "sent" | "split" => "sent",
        "cancelled" => "canceled",
        "rejected" | "expired" | "dead" => "failed",
        _ => "queued",
    };
    let scheduled_at = view.state.due_at.filter(|_| last_event == "scheduled");
    let mut document = json!({
        "object": "email", "id": view.id, "to": [], "from": "", "cc": [], "bcc": [], "reply_to": [], "subject": "",
        "html": "", "text": "", "last_event": last_event,
    });
    for (name, time) in [("created_at", view.created_at), ("scheduled_at", scheduled_at)] {
        if let Some(time) = time {
            document[name] = json!(time);
        }
    }
    Answer::json(StatusCode::OK, &document)
}

/// Says that a job was called back, or has a later time.
pub fn changed(id: JobId) -> Answer {
    Answer::json(StatusCode::OK, &json!({ "object": "email", "id": id }))
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let is_missing = problem.fields.iter().any(|field| field.detail.ends_with("is required"));
    let (status, name) = match problem.kind {
        Kind::Malformed => (400, "validation_error"),
        Kind::BadIdempotencyKey => (400, "invalid_idempotency_key"),
        Kind::KeyMissing => (401, "missing_api_key"),
        Kind::Unauthorized => (403, "invalid_api_key"),
        Kind::Forbidden => (401, "restricted_api_key"),
        Kind::SenderForbidden => (403, "validation_error"),
        Kind::NotFound => (404, "not_found"),
        Kind::MethodNotAllowed => (405, "method_not_allowed"),
        Kind::TooLarge => (413, "validation_error"),
        Kind::UnsupportedMedia => (415, "validation_error"),
        Kind::Invalid if is_missing => (422, "missing_required_field"),
        Kind::Conflict | Kind::Invalid | Kind::Unsupported => (422, "validation_error"),
        Kind::KeyReused => (409, "invalid_idempotent_request"),
        Kind::RateLimited => (429, "rate_limit_exceeded"),
        Kind::Slow | Kind::Unavailable => (503, "application_error"),
    };
    let document = json!({ "statusCode": status, "name": name, "message": problem.sentence() });
    Answer::json(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-12-01T10:00:00Z".parse().unwrap()
    }

    fn read_mail(document: Value) -> Result<JobV1, Problem> {
        mail(Fields::of(document, "").ok().unwrap(), now())
    }

    #[test]
    fn every_field_of_a_mail_reaches_the_job() {
        let job = read_mail(json!({
            "from": "Shop <a@shop.example>", "to": "c@d.example", "cc": ["e@d.example"], "bcc": ["f@d.example"],
            "reply_to": "help@shop.example", "subject": "s", "html": "<p>h</p>", "text": "t",
            "headers": {"X-Order": 7, "Reply-To": "other@shop.example"}, "scheduled_at": "in 5 minutes",
            "attachments": [
                {"filename": "a.pdf", "content": "aGk="},
                {"filename": "b", "content": {"type": "Buffer", "data": [104, 105]}, "content_id": "<logo>"},
            ],
            "tags": [{"name": "order", "value": "1"}, {"X-Tag": "v"}],
        }))
        .ok()
        .unwrap();
        assert_eq!((job.to.len(), job.cc.len(), job.bcc.len(), job.reply_to.len()), (1, 1, 1, 1));
        assert_eq!(job.send_at.unwrap().to_string(), "2026-12-01T10:05:00Z");
        assert_eq!(job.headers[0].value, "7");
        assert_eq!(job.attachments[0].content_type, "application/pdf");
        assert_eq!(
            (job.attachments[1].content.as_str(), job.attachments[1].content_id.as_deref()),
            ("aGk=", Some("logo"))
        );
        assert_eq!(
            job.metadata.into_iter().collect::<Vec<_>>(),
            [("X-Tag".into(), "v".into()), ("order".into(), "1".into())]
        );
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let with = |name: &str, value: Value| {
            let mut document = json!({"from": "a@b.example", "to": "c@d.example", "subject": "s", "text": "t"});
            document[name] = value;
            read_mail(document).err().map(|problem| (problem.kind, problem.fields[0].pointer.clone()))
        };
        assert_eq!(with("topic_id", Value::Null), None);
        for (name, value) in [("template", json!({"id": "x"})), ("topic_id", json!("x")), ("colour", json!("red"))] {
            assert_eq!(with(name, value), Some((Kind::Unsupported, format!("/{name}"))));
        }
        assert_eq!(with("attachments", json!([{"path": "http://10.0.0.1/"}])).unwrap().1, "/attachments/0/path");
        assert_eq!(with("scheduled_at", json!("next week")).unwrap().1, "/scheduled_at");
        assert_eq!(with("to", json!([7])).unwrap().1, "/to");
        assert_eq!(with("from", Value::Null).unwrap(), (Kind::Invalid, "/from".to_owned()));
    }

    #[test]
    fn times_are_of_iso_8601_or_count_from_now() {
        for (text, expected) in [
            ("2026-12-24T18:00:00Z", Some("2026-12-24T18:00:00Z")),
            ("2026-12-24T18:00:00+01:00", Some("2026-12-24T17:00:00Z")),
            ("in 1 min", Some("2026-12-01T10:01:00Z")),
            ("in 2 hours", Some("2026-12-01T12:00:00Z")),
            ("In 1 day", Some("2026-12-02T10:00:00Z")),
            ("in 1 fortnight", None),
            ("in -1 min", None),
            ("in 1 min please", None),
            ("tomorrow", None),
        ] {
            assert_eq!(time(text, now()).map(|time| time.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn errors_have_the_three_members_that_clients_read() {
        let answer = refuse(&Problem::field(Kind::Invalid, "/from", "is required"));
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            document,
            json!({"statusCode": 422, "name": "missing_required_field", "message": "/from is required."})
        );
    }
}
