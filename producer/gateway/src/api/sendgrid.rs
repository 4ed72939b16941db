//! The form of SendGrid: `POST /v3/mail/send`. Each personalization is a job.

use std::collections::BTreeMap;

use http::{HeaderName, StatusCode};
use jiff::Timestamp;
use postrider_schemas::{
    JobV1, MailboxV1,
    wire::{AttachmentV1, TrackingV1},
};
use serde_json::{Value, json};

use super::{
    Answer, Call, Draft, Request, Results, Submission,
    fields::{self, Fields},
};
use crate::{
    idempotency,
    problem::{Kind, Problem},
};

/// Personalizations of one request, at most.
const PERSONALIZATIONS_MAX: usize = 1000;
/// The custom argument that clients without headers of their own may carry an idempotency key in.
const KEY_ARGUMENT: &str = "idempotency_key";
/// What clients read the id of a mail from.
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");

/// What all personalizations of a request have in common.
struct Common {
    from: Option<MailboxV1>,
    reply_to: Vec<MailboxV1>,
    subject: Option<String>,
    text: Option<String>,
    html: Option<String>,
    attachments: Vec<AttachmentV1>,
    headers: BTreeMap<String, String>,
    categories: Vec<String>,
    arguments: BTreeMap<String, String>,
    sections: BTreeMap<String, String>,
    send_at: Option<Timestamp>,
    tracking: TrackingV1,
}

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    let mut fields = Fields::of_body(request.body)?;
    let is_sandbox = mail_settings(&mut fields)?;
    let mut common = common(&mut fields)?;
    let argument = common.arguments.remove(KEY_ARGUMENT);
    let key = idempotency::from_headers(request.headers)?.or(argument);
    let list = fields.objects("personalizations")?;
    if list.is_empty() || list.len() > PERSONALIZATIONS_MAX {
        return Err(fields.wrong("personalizations", format!("expected 1 to {PERSONALIZATIONS_MAX} personalizations")));
    }
    fields.end()?;
    let jobs: Vec<_> = list.into_iter().map(|one| personalization(one, &common).map(Draft::from)).collect();
    if is_sandbox {
        let wrong = jobs.into_iter().find_map(|job| {
            let parsed = job.and_then(|Draft { job, .. }| {
                job.parse(request.limits).map_err(|error| Problem::of_job(&error, b"", request.limits))
            });
            parsed.err()
        });
        return wrong.map_or_else(|| Ok(Call::Answer(Answer::empty(StatusCode::OK))), Err);
    }
    Ok(Call::Send(Submission { jobs, key, is_atomic: true }))
}

fn common(fields: &mut Fields) -> Result<Common, Problem> {
    fields.refuse("template_id", "templates that SendGrid keeps are not here; send `content`")?;
    fields.refuse("batch_id", "give the jobs a `send_at`, and cancel them by their ids")?;
    fields.refuse("asm", "unsubscribe groups that SendGrid keeps are not here; use the header List-Unsubscribe")?;
    fields.refuse("ip_pool_name", "routes decide where mail leaves")?;
    let mut reply_to = fields.mailboxes("reply_to", "email", "name")?;
    reply_to.extend(fields.mailboxes("reply_to_list", "email", "name")?);
    let (mut text, mut html) = (None, None);
    for mut content in fields.objects("content")? {
        let kind = content.text("type")?.unwrap_or_default();
        let value = content.text("value")?;
        match kind.split(';').next().unwrap_or_default().trim() {
            "text/plain" => text = value,
            "text/html" => html = value,
            _ => {
                let at = content.at("type");
                return Err(Problem::field(
                    Kind::Unsupported,
                    at,
                    "is text/plain or text/html; send others as attachments",
                ));
            }
        }
        content.end()?;
    }
    Ok(Common {
        from: fields.mailboxes("from", "email", "name")?.pop(),
        reply_to,
        subject: fields.text("subject")?,
        text,
        html,
        attachments: fields.objects("attachments")?.into_iter().map(attachment).collect::<Result<_, _>>()?,
        headers: fields.names("headers")?,
        categories: fields.texts("categories")?,
        arguments: fields.names("custom_args")?,
        sections: fields.names("sections")?,
        send_at: send_at(fields)?,
        tracking: tracking(fields)?,
    })
}

fn send_at(fields: &mut Fields) -> Result<Option<Timestamp>, Problem> {
    let seconds = fields.number("send_at")?.filter(|seconds| *seconds > 0);
    let time =
        seconds.map(|seconds| Timestamp::from_second(seconds).map_err(|_| fields.wrong("send_at", "is no time")));
    time.transpose()
}

fn attachment(mut fields: Fields) -> Result<AttachmentV1, Problem> {
    let filename = fields.text("filename")?.ok_or_else(|| fields.wrong("filename", "is required"))?;
    let content = fields.text("content")?.ok_or_else(|| fields.wrong("content", "is required"))?;
    let kind = fields.text("type")?.filter(|kind| !kind.is_empty());
    let disposition = fields.text("disposition")?;
    let id = fields.text("content_id")?.map(|id| id.trim_matches(['<', '>']).to_owned());
    let attachment = AttachmentV1 {
        content_type: kind.unwrap_or_else(|| fields::media_type(&filename).to_owned()),
        // An id without `inline` means nothing to SendGrid.
        content_id: id.filter(|_| disposition.as_deref() == Some("inline")),
        filename,
        content,
    };
    fields.end()?;
    Ok(attachment)
}

/// Whether the request is only to be checked.
fn mail_settings(fields: &mut Fields) -> Result<bool, Problem> {
    let Some(mut settings) = fields.object("mail_settings")? else { return Ok(false) };
    let is_sandbox = is_enabled(&mut settings, "sandbox_mode")?;
    for name in [
        "bypass_list_management",
        "bypass_spam_management",
        "bypass_bounce_management",
        "bypass_unsubscribe_management",
        "footer",
    ] {
        refuse_enabled(&mut settings, name)?;
    }
    settings.end()?;
    Ok(is_sandbox)
}

fn tracking(fields: &mut Fields) -> Result<TrackingV1, Problem> {
    let Some(mut settings) = fields.object("tracking_settings")? else { return Ok(TrackingV1::default()) };
    let tracking = TrackingV1 {
        opens: is_enabled(&mut settings, "open_tracking")?,
        clicks: is_enabled(&mut settings, "click_tracking")?,
    };
    for name in ["subscription_tracking", "ganalytics"] {
        refuse_enabled(&mut settings, name)?;
    }
    settings.end()?;
    Ok(tracking)
}

fn is_enabled(settings: &mut Fields, name: &str) -> Result<bool, Problem> {
    Ok(settings.object(name)?.map(|mut one| one.flag("enable")).transpose()?.flatten().unwrap_or_default())
}

fn refuse_enabled(settings: &mut Fields, name: &str) -> Result<(), Problem> {
    let at = settings.at(name);
    if is_enabled(settings, name)? { Err(Problem::field(Kind::Unsupported, at, "is not supported")) } else { Ok(()) }
}

fn personalization(mut fields: Fields, common: &Common) -> Result<JobV1, Problem> {
    fields.refuse("dynamic_template_data", "templates that SendGrid keeps are not here")?;
    let substitutions = fields.names("substitutions")?;
    let replaced = |text: &str| substituted(text, &substitutions, &common.sections);
    let from = fields.mailboxes("from", "email", "name")?.pop().or_else(|| common.from.clone());
    let subject = fields.text("subject")?.or_else(|| common.subject.clone());
    let mut headers = common.headers.clone();
    headers.extend(fields.names("headers")?);
    let mut metadata = common.arguments.clone();
    metadata.extend(fields.names("custom_args")?);
    let headers = fields::headers(headers);
    let mut reply_to = common.reply_to.clone();
    if reply_to.is_empty() {
        reply_to.extend(headers.reply_to.map(MailboxV1::from));
    }
    let job = JobV1 {
        from: from.ok_or_else(|| Problem::field(Kind::Invalid, "/from", "is required"))?,
        reply_to,
        to: fields.mailboxes("to", "email", "name")?,
        cc: fields.mailboxes("cc", "email", "name")?,
        bcc: fields.mailboxes("bcc", "email", "name")?,
        subject: subject
            .map(|subject| replaced(&subject))
            .ok_or_else(|| Problem::field(Kind::Invalid, "/subject", "is required"))?,
        text: common.text.as_deref().map(replaced),
        html: common.html.as_deref().map(replaced),
        headers: headers.extra,
        list_unsubscribe: headers.list_unsubscribe,
        attachments: common.attachments.clone(),
        tags: common.categories.clone(),
        metadata,
        tracking: common.tracking,
        send_at: send_at(&mut fields)?.or(common.send_at),
        ..JobV1::default()
    };
    fields.end()?;
    Ok(job)
}

/// Puts values in the place of their tags; the value of a tag may be the tag of a section.
fn substituted(text: &str, substitutions: &BTreeMap<String, String>, sections: &BTreeMap<String, String>) -> String {
    let replace =
        |text: String, (tag, value): (&String, &String)| if tag.is_empty() { text } else { text.replace(tag, value) };
    let text = substitutions.iter().fold(text.to_owned(), replace);
    if sections.is_empty() {
        return text;
    }
    // A section holds tags as well.
    let text = sections.iter().fold(text, replace);
    substitutions.iter().fold(text, replace)
}

/// Says what became of a submission.
pub fn sent(_: &Request<'_>, results: &Results) -> Answer {
    if let Some(problem) = results.iter().find_map(|result| result.as_ref().err()) {
        return refuse(problem);
    }
    let answer = Answer::empty(StatusCode::ACCEPTED);
    match results.first() {
        Some(Ok(id)) => answer.with(MESSAGE_ID, &id.to_string()),
        _ => answer,
    }
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let status = match problem.kind {
        Kind::Invalid | Kind::Unsupported | Kind::KeyReused => StatusCode::BAD_REQUEST,
        kind => kind.status(),
    };
    let error = |field: Value, message: String| json!({ "message": message, "field": field, "help": null });
    let errors: Vec<Value> = if problem.fields.is_empty() {
        vec![error(Value::Null, problem.detail.clone())]
    } else {
        let dotted = |pointer: &str| Value::from(pointer.trim_start_matches('/').replace('/', "."));
        problem.fields.iter().map(|field| error(dotted(&field.pointer), field.detail.clone())).collect()
    };
    Answer::json(status, &json!({ "errors": errors }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use postrider_schemas::{JobId, JobLimits};

    use super::*;
    use crate::api::routes::Operation;

    fn ask(document: &Value) -> Result<Call, Problem> {
        read(&Request {
            operation: Operation::SendGridSend,
            parameters: &[],
            query: "",
            headers: &HeaderMap::new(),
            body: &Bytes::from(document.to_string()),
            now: "2026-12-01T10:00:00Z".parse().unwrap(),
            limits: &JobLimits::DEFAULT,
        })
    }

    fn mail() -> Value {
        json!({
            "from": {"email": "a@shop.example", "name": "Shop"}, "subject": "Hello -name-",
            "personalizations": [{"to": [{"email": "c@d.example"}]}],
            "content": [{"type": "text/plain", "value": "Dear -name-, -more-"}],
        })
    }

    fn jobs(document: &Value) -> (Vec<JobV1>, Option<String>) {
        let Ok(Call::Send(submission)) = ask(document) else { panic!("not read: {document}") };
        let job = |draft: Result<Draft, Problem>| draft.ok().unwrap().job;
        (submission.jobs.into_iter().map(job).collect(), submission.key)
    }

    #[test]
    fn each_personalization_is_a_job_that_overrides_what_all_share() {
        let mut document = mail();
        document["personalizations"] = json!([
            {"to": [{"email": "c@d.example", "name": "C"}], "cc": [{"email": "e@d.example"}],
             "substitutions": {"-name-": "Ada", "-more-": ":part"}, "custom_args": {"n": 1}, "send_at": 1_796_200_000},
            {"to": [{"email": "f@d.example"}], "subject": "Other", "headers": {"X-A": "2"},
             "from": {"email": "b@shop.example"}},
        ]);
        document["sections"] = json!({":part": "welcome, -name-"});
        document["headers"] = json!({"X-A": "1"});
        document["categories"] = json!("receipt");
        document["custom_args"] = json!({"idempotency_key": "order:1", "shop": "eu"});
        document["tracking_settings"] = json!({"open_tracking": {"enable": true, "substitution_tag": "x"}});
        let (jobs, key) = jobs(&document);
        assert_eq!((jobs.len(), key.as_deref()), (2, Some("order:1")));
        assert_eq!((jobs[0].subject.as_str(), jobs[0].text.as_deref()), ("Hello Ada", Some("Dear Ada, welcome, Ada")));
        assert_eq!((jobs[1].subject.as_str(), jobs[1].headers[0].value.as_str()), ("Other", "2"));
        assert_eq!((jobs[0].metadata.len(), jobs[1].metadata.len()), (2, 1));
        assert_eq!((jobs[0].send_at.is_some(), jobs[1].send_at), (true, None));
        assert!(jobs[0].tracking.opens && !jobs[0].tracking.clicks && jobs[0].tags == ["receipt"]);
    }

    #[test]
    fn the_sandbox_checks_and_sends_nothing() {
        let mut document = mail();
        document["mail_settings"] = json!({"sandbox_mode": {"enable": true}});
        assert!(matches!(ask(&document), Ok(Call::Answer(answer)) if answer.status == StatusCode::OK));
        document["personalizations"][0]["to"][0]["email"] = json!("nobody");
        assert!(ask(&document).is_err());
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        for (name, value) in [
            ("template_id", json!("d-1")),
            ("asm", json!({"group_id": 1})),
            ("ip_pool_name", json!("pool")),
            ("batch_id", json!("1")),
            ("colour", json!("red")),
        ] {
            let mut document = mail();
            document[name] = value;
            let problem = ask(&document).err().unwrap();
            assert_eq!((problem.kind, problem.fields[0].pointer.clone()), (Kind::Unsupported, format!("/{name}")));
        }
        let mut document = mail();
        document["mail_settings"] = json!({"footer": {"enable": false}});
        assert!(ask(&document).is_ok());
        document["mail_settings"] = json!({"footer": {"enable": true}});
        assert_eq!(ask(&document).err().unwrap().fields[0].pointer, "/mail_settings/footer");
    }

    #[test]
    fn answers_have_the_form_that_clients_read() {
        let id = JobId::generate();
        let request = Request {
            operation: Operation::SendGridSend,
            parameters: &[],
            query: "",
            headers: &HeaderMap::new(),
            body: &Bytes::new(),
            now: Timestamp::UNIX_EPOCH,
            limits: &JobLimits::DEFAULT,
        };
        let answer = sent(&request, &vec![Ok(id)]);
        assert_eq!((answer.status, answer.body.len()), (StatusCode::ACCEPTED, 0));
        assert_eq!(answer.headers[0].1, id.to_string().as_str());
        let refused = refuse(&Problem::field(Kind::Invalid, "/personalizations/0/to", "is required"));
        let document: Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!((refused.status.as_u16(), &document["errors"][0]["field"]), (400, &json!("personalizations.0.to")));
    }
}
