//! The form of Postmark: `POST /email`, `POST /email/batch`.

use http::StatusCode;
use jiff::Timestamp;
use postrider_schemas::{
    JobV1, Lane, MailboxV1,
    wire::{AttachmentV1, TrackingV1},
};
use serde_json::{Value, json};

use super::{
    Answer, Call, Draft, Request, Results, Submission,
    fields::{self, Fields},
    routes::Operation,
};
use crate::{
    idempotency,
    problem::{Kind, Problem},
};

/// Mails of one batch, at most.
const BATCH_MAX: usize = 500;

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    let key = idempotency::from_headers(request.headers)?;
    if request.operation != Operation::PostmarkBatch {
        let jobs = vec![Ok(mail(Fields::of_body(request.body)?)?.into())];
        return Ok(Call::Send(Submission { jobs, key, is_atomic: true }));
    }
    let list: Vec<Value> = serde_json::from_slice(request.body)
        .map_err(|_| Problem::new(Kind::Malformed, "The body is no JSON array of mails."))?;
    if list.is_empty() || list.len() > BATCH_MAX {
        return Err(Problem::new(Kind::Invalid, format!("A batch holds 1 to {BATCH_MAX} mails.")));
    }
    let one = |(n, value): (usize, Value)| -> Result<Draft, Problem> {
        Ok(mail(Fields::of(value, format!("/{n}"))?)?.into())
    };
    let jobs: Vec<Result<Draft, Problem>> = list.into_iter().enumerate().map(one).collect();
    Ok(Call::Send(Submission { jobs, key, is_atomic: false }))
}

fn mail(mut fields: Fields) -> Result<JobV1, Problem> {
    for name in ["TemplateId", "TemplateAlias", "TemplateModel"] {
        fields.refuse(name, "templates that Postmark keeps are not here; send `HtmlBody` or `TextBody`")?;
    }
    let from = fields.text("From")?.ok_or_else(|| fields.wrong("From", "is required"))?;
    let mut pairs = Vec::new();
    for mut header in fields.objects("Headers")? {
        let (name, value) = (header.text("Name")?, header.text("Value")?);
        pairs.push((name.ok_or_else(|| header.wrong("Name", "is required"))?, value.unwrap_or_default()));
        header.end()?;
    }
    let headers = fields::headers(pairs);
    // One text holds several addresses between commas, which a job reads as well.
    let mut mailboxes = |name: &str| -> Result<Vec<MailboxV1>, Problem> {
        Ok(fields.text(name)?.filter(|text| !text.trim().is_empty()).map(MailboxV1::from).into_iter().collect())
    };
    let (to, cc, bcc, mut reply_to) = (mailboxes("To")?, mailboxes("Cc")?, mailboxes("Bcc")?, mailboxes("ReplyTo")?);
    if reply_to.is_empty() {
        reply_to.extend(headers.reply_to.map(MailboxV1::from));
    }
    let mut metadata = fields.names("Metadata")?;
    let stream = fields.text("MessageStream")?.filter(|stream| stream != "outbound");
    let lane = if stream.as_deref() == Some("broadcast") { Lane::Bulk } else { Lane::Transactional };
    metadata.extend(stream.map(|stream| ("message-stream".to_owned(), stream)));
    let links = fields.text("TrackLinks")?;
    let job = JobV1 {
        lane,
        from: from.into(),
        reply_to,
        to,
        cc,
        bcc,
        subject: fields.text("Subject")?.unwrap_or_default(),
        text: fields.text("TextBody")?,
        html: fields.text("HtmlBody")?,
        headers: headers.extra,
        list_unsubscribe: headers.list_unsubscribe,
        attachments: fields.objects("Attachments")?.into_iter().map(attachment).collect::<Result<_, _>>()?,
        tags: fields.text("Tag")?.filter(|tag| !tag.is_empty()).into_iter().collect(),
        metadata,
        tracking: TrackingV1 {
            opens: fields.flag("TrackOpens")?.unwrap_or_default(),
            clicks: links.is_some_and(|links| links != "None"),
        },
        ..JobV1::default()
    };
    fields.end()?;
    Ok(job)
}

fn attachment(mut fields: Fields) -> Result<AttachmentV1, Problem> {
    let filename = fields.text("Name")?.ok_or_else(|| fields.wrong("Name", "is required"))?;
    let content = fields.text("Content")?.ok_or_else(|| fields.wrong("Content", "is required"))?;
    let kind = fields.text("ContentType")?.filter(|kind| !kind.is_empty());
    let id = fields.text("ContentID")?.filter(|id| !id.is_empty());
    let attachment = AttachmentV1 {
        content_type: kind.unwrap_or_else(|| fields::media_type(&filename).to_owned()),
        content_id: id.map(|id| id.trim_start_matches("cid:").trim_matches(['<', '>']).to_owned()),
        filename,
        content,
    };
    // Clients send what they measured; it says nothing that the content does not.
    fields.take("ContentLength");
    fields.end()?;
    Ok(attachment)
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    let to = recipients(request);
    let one = |(n, result): (usize, &Result<_, Problem>)| match result {
        Ok(id) => json!({
            "To": to.get(n).cloned().unwrap_or_default(),
            "SubmittedAt": submitted(request.now),
            "MessageID": id,
            "ErrorCode": 0,
            "Message": "OK",
        }),
        Err(problem) => document(problem),
    };
    if request.operation == Operation::PostmarkBatch {
        let is_away = |result: &Result<_, Problem>| matches!(result, Err(one) if one.kind == Kind::Unavailable);
        if let Some(Err(problem)) = results.first().filter(|_| results.iter().all(is_away)) {
            return refuse(problem);
        }
        return Answer::json(StatusCode::OK, &results.iter().enumerate().map(one).collect());
    }
    match results.first() {
        Some(Err(problem)) => refuse(problem),
        Some(result) => Answer::json(StatusCode::OK, &one((0, result))),
        None => Answer::empty(StatusCode::OK),
    }
}

/// The `To` of each mail, which the answer repeats to its sender.
fn recipients(request: &Request<'_>) -> Vec<String> {
    let to = |value: &Value| value["To"].as_str().unwrap_or_default().to_owned();
    match serde_json::from_slice(request.body) {
        Ok(Value::Array(list)) => list.iter().map(to).collect(),
        Ok(value) => vec![to(&value)],
        Err(_) => Vec::new(),
    }
}

fn submitted(now: Timestamp) -> String {
    format!("{now:.7}")
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let status = match problem.kind {
        Kind::Malformed | Kind::BadIdempotencyKey | Kind::Forbidden | Kind::SenderForbidden => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        kind => kind.status(),
    };
    Answer::json(status, &document(problem))
}

fn document(problem: &Problem) -> Value {
    let code = match problem.kind {
        Kind::KeyMissing | Kind::Unauthorized => 10,
        Kind::Forbidden => 12,
        Kind::SenderForbidden => 400,
        Kind::Malformed => 402,
        Kind::RateLimited => 429,
        Kind::Unavailable | Kind::Slow => 100,
        _ => 300,
    };
    json!({ "ErrorCode": code, "Message": problem.sentence() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use postrider_schemas::{JobId, JobLimits};

    use super::*;

    fn request<'a>(operation: Operation, headers: &'a HeaderMap, body: &'a Bytes) -> Request<'a> {
        let now = "2026-12-01T10:00:00Z".parse().unwrap();
        Request { operation, parameters: &[], query: "", headers, body, now, limits: &JobLimits::DEFAULT }
    }

    #[test]
    fn every_field_of_a_mail_reaches_the_job() {
        let job = mail(
            Fields::of(
                json!({
                    "From": "Shop <a@shop.example>", "To": "C <c@d.example>, e@d.example", "Cc": "", "Bcc": "f@d.example",
                    "ReplyTo": "help@shop.example", "Subject": "s", "HtmlBody": "<p>h</p>", "TextBody": "t",
                    "Tag": "receipt", "Headers": [{"Name": "X-Order", "Value": "1"}], "Metadata": {"order": "1"},
                    "MessageStream": "broadcast", "TrackOpens": true, "TrackLinks": "HtmlOnly",
                    "Attachments": [{"Name": "a.png", "Content": "aGk=", "ContentType": "", "ContentID": "cid:a.png"}],
                }),
                "",
            )
            .ok()
            .unwrap(),
        )
        .ok()
        .unwrap();
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!((job.to().len(), job.cc().len(), job.bcc().len(), job.lane()), (2, 0, 1, Lane::Bulk));
        assert!(job.tracking().opens && job.tracking().clicks && job.tags() == ["receipt"]);
        assert_eq!(job.attachments()[0].content_id.as_deref(), Some("a.png"));
        assert_eq!(job.metadata().len(), 2);
    }

    #[test]
    fn a_batch_has_an_answer_for_each_mail_and_stays_200() {
        let headers = HeaderMap::new();
        let body = Bytes::from(
            json!([{"From": "a@b.example", "To": "c@d.example", "TextBody": "t"}, {"To": "x"}]).to_string(),
        );
        let request = request(Operation::PostmarkBatch, &headers, &body);
        let Ok(Call::Send(submission)) = read(&request) else { panic!("not read") };
        assert_eq!(submission.jobs.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
        let problem = submission.jobs.into_iter().find_map(Result::err).unwrap();
        let id = JobId::generate();
        let answer = sent(&request, &vec![Ok(id), Err(problem)]);
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!((&document[0]["To"], &document[0]["MessageID"]), (&json!("c@d.example"), &json!(id)));
        assert_eq!((&document[0]["ErrorCode"], &document[1]["ErrorCode"]), (&json!(0), &json!(300)));
        assert_eq!(document[0]["SubmittedAt"], "2026-12-01T10:00:00.0000000Z");
    }

    #[test]
    fn templates_are_refused_and_wrong_keys_have_their_code() {
        let fields = |value| Fields::of(value, "").ok().unwrap();
        let refused = mail(fields(json!({"From": "a@b.example", "TemplateId": 1}))).err().unwrap();
        assert_eq!(refused.fields[0].pointer, "/TemplateId");
        let answer = refuse(&Problem::new(Kind::Unauthorized, "The API key is unknown."));
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), &document["ErrorCode"]), (401, &json!(10)));
    }
}
