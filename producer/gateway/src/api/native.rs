//! Our own form: job documents in, problems of RFC 9457 out.

use bytes::Bytes;
use http::{StatusCode, header};
use jiff::Timestamp;
use postrider_schemas::{JobId, wire};
use serde_json::{Value, json};

use super::{Answer, Call, Draft, Request, Results, Submission, fields::Fields, routes::Operation};
use crate::{
    idempotency,
    problem::{Kind, Problem},
    records::JobView,
};

/// Jobs of one batch, at most.
pub const BATCH_MAX: usize = 1000;

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    match request.operation {
        Operation::GetJob => return Ok(Call::View(super::job_id(request)?)),
        Operation::CancelJob | Operation::DeleteJob => return Ok(Call::Cancel(super::job_id(request)?)),
        Operation::PatchJob => return patch(request),
        _ => {}
    }
    let key = idempotency::from_headers(request.headers)?;
    if request.operation == Operation::SendBatch {
        return Ok(Call::Send(Submission { jobs: batch(request)?, key, is_atomic: false }));
    }
    media_type(request, &["application/json"])?;
    Ok(Call::Send(Submission { jobs: vec![Ok(draft(request, request.body)?)], key, is_atomic: true }))
}

/// A request without a media type is believed; `curl -d` sends that of a form, which is none of a job.
fn media_type(request: &Request<'_>, allowed: &[&str]) -> Result<(), Problem> {
    let Some(value) = request.headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_lowercase();
    if allowed.contains(&essence.as_str()) || essence.ends_with("+json") {
        return Ok(());
    }
    let detail = format!("The Content-Type of this request is {}.", allowed.join(" or "));
    Err(Problem::new(Kind::UnsupportedMedia, detail))
}

fn draft(request: &Request<'_>, document: &Bytes) -> Result<Draft, Problem> {
    let job = wire::decode_v1(document).map_err(|error| Problem::of_job(&error, document, request.limits))?;
    Ok(Draft { job, document: Some(document.clone()) })
}

/// A JSON array, or a document on each line.
fn batch(request: &Request<'_>) -> Result<Vec<Result<Draft, Problem>>, Problem> {
    media_type(request, &["application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"])?;
    let body = request.body;
    let documents: Vec<&[u8]> = if body.trim_ascii_start().starts_with(b"[") {
        elements(body).ok_or_else(|| Problem::new(Kind::Malformed, "The body is no JSON array: its end is missing."))?
    } else {
        body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect()
    };
    if documents.is_empty() || documents.len() > BATCH_MAX {
        let detail = format!("A batch holds 1 to {BATCH_MAX} jobs; this one holds {}.", documents.len());
        return Err(Problem::new(Kind::Invalid, detail));
    }
    Ok(documents.into_iter().map(|document| draft(request, &body.slice_ref(document))).collect())
}

/// The elements of a JSON array, each unread: one that is broken spares the others. Nothing where the array has no end, or something behind it.
fn elements(body: &[u8]) -> Option<Vec<&[u8]>> {
    let inner = body.trim_ascii().strip_prefix(b"[")?;
    let (mut depth, mut is_text, mut is_escaped, mut start) = (0_usize, false, false, 0);
    let mut found = Vec::new();
    for (at, byte) in inner.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' | b'[' => depth += 1,
            b']' if depth == 0 => {
                let last = inner[start..at].trim_ascii();
                if !last.is_empty() || !found.is_empty() {
                    found.push(last);
                }
                return (at + 1 == inner.len()).then_some(found);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                found.push(inner[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    if request.operation == Operation::SendBatch {
        return batch_sent(results);
    }
    match results.first() {
        Some(Ok(id)) => Answer::json(StatusCode::ACCEPTED, &json!({ "id": id, "status": "queued" })),
        Some(Err(problem)) => refuse(problem),
        None => Answer::empty(StatusCode::ACCEPTED),
    }
}

/// One result for each job. Where the queue took none of them the whole request may be repeated, and says so.
fn batch_sent(results: &Results) -> Answer {
    let is_away = |result: &Result<_, Problem>| matches!(result, Err(problem) if problem.kind == Kind::Unavailable);
    if let Some(Err(problem)) = results.first().filter(|_| results.iter().all(is_away)) {
        return refuse(problem);
    }
    let one = |(index, result): (usize, &Result<_, Problem>)| match result {
        Ok(id) => json!({ "index": index, "status": 202, "id": id }),
        Err(problem) => {
            json!({ "index": index, "status": problem.kind.status().as_u16(), "problem": problem.to_json() })
        }
    };
    let list: Vec<Value> = results.iter().enumerate().map(one).collect();
    Answer::json(StatusCode::OK, &json!({ "results": list }))
}

/// `{"send_at": "..."}`: nothing else of a job can be changed.
fn patch(request: &Request<'_>) -> Result<Call, Problem> {
    media_type(request, &["application/json"])?;
    let mut fields = Fields::of_body(request.body)?;
    let text = fields.text("send_at")?.ok_or_else(|| fields.wrong("send_at", "is required"))?;
    let time = text.parse().map_err(|_| fields.wrong("send_at", "expected a time such as 2026-12-01T10:00:00Z"))?;
    fields.end()?;
    Ok(Call::Postpone(super::job_id(request)?, time))
}

/// Says what became of a job.
pub fn viewed(view: &JobView) -> Answer {
    // A struct of texts and numbers: serde_json has nothing to refuse in it.
    Answer::json(StatusCode::OK, &serde_json::to_value(view).unwrap_or_default())
}

/// Says that a job was called back.
pub fn cancelled(id: JobId) -> Answer {
    Answer::json(StatusCode::OK, &json!({ "id": id, "status": "cancelled" }))
}

/// Says that a job has a later time.
pub fn postponed(id: JobId, until: Timestamp) -> Answer {
    Answer::json(StatusCode::OK, &json!({ "id": id, "status": "scheduled", "due_at": until }))
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    Answer::typed(problem.kind.status(), "application/problem+json", problem.to_json().to_string())
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use postrider_schemas::JobLimits;

    use super::*;

    const JOB: &str = r#"{"from": "a@b.example", "to": ["c@d.example"], "subject": "s", "text": "t"}"#;

    fn ask(operation: Operation, kind: Option<&str>, body: &str) -> Result<Submission, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        }
        headers.insert("idempotency-key", "\"k\"".parse().unwrap());
        let body = Bytes::copy_from_slice(body.as_bytes());
        let request = Request {
            operation,
            parameters: &[],
            query: "",
            headers: &headers,
            body: &body,
            now: "2026-12-01T10:00:00Z".parse().unwrap(),
            limits: &JobLimits::DEFAULT,
        };
        match read(&request)? {
            Call::Send(submission) => Ok(submission),
            _ => panic!("nothing is to be sent"),
        }
    }

    #[test]
    fn a_job_is_read_whatever_json_it_is_called() {
        for kind in
            [None, Some("application/json"), Some("application/json; charset=utf-8"), Some("application/x+json")]
        {
            let submission = ask(Operation::SendJob, kind, JOB).unwrap();
            assert_eq!((submission.jobs.len(), submission.key.as_deref()), (1, Some("k")));
        }
        let refused = ask(Operation::SendJob, Some("application/x-www-form-urlencoded"), JOB).err().unwrap();
        assert_eq!(refused.kind, Kind::UnsupportedMedia);
    }

    #[test]
    fn a_batch_is_an_array_or_lines_and_a_bad_job_spares_the_others() {
        let array = format!("[{JOB}, {{\"from\": 7}}, {JOB}]");
        let lines = format!("{JOB}\n{{\"from\": 7}}\r\n\n{JOB}\n");
        for body in [array, lines] {
            let jobs = ask(Operation::SendBatch, None, &body).unwrap().jobs;
            assert_eq!(jobs.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true], "{body}");
        }
        for (body, kind) in [
            ("[", Kind::Malformed),
            ("[]", Kind::Invalid),
            ("\n", Kind::Invalid),
            (&"{}\n".repeat(1001), Kind::Invalid),
        ] {
            assert_eq!(ask(Operation::SendBatch, None, body).err().unwrap().kind, kind);
        }
    }

    #[test]
    fn an_array_is_taken_apart_without_reading_its_elements() {
        let parts = |text: &'static str| {
            let texts =
                |list: Vec<&[u8]>| list.into_iter().map(|one| String::from_utf8_lossy(one).into_owned()).collect();
            elements(text.as_bytes()).map_or_else(|| vec!["broken".to_owned()], texts)
        };
        assert_eq!(parts(r#" [ {"a": "],\"}"} , [1,[2]], x ] "#), [r#"{"a": "],\"}"}"#, "[1,[2]]", "x"]);
        assert_eq!(parts("[]"), [""; 0]);
        assert_eq!(parts("[{}, ]"), ["{}", ""]);
        for broken in ["[", "[{}", "[{}] x", "[\"]", "{}", "[[]", "[{]"] {
            assert_eq!(parts(broken), ["broken"], "{broken}");
        }
    }

    #[test]
    fn a_batch_answers_for_each_job_unless_the_queue_took_none() {
        let away = || Err(Problem::new(Kind::Unavailable, "away").retry_after(5));
        let bad = || Err(Problem::new(Kind::Invalid, "bad"));
        let id = JobId::generate();
        let answer = batch_sent(&vec![Ok(id), bad(), away()]);
        let document: Value = serde_json::from_slice(&answer.body).unwrap();
        let statuses: Vec<_> = (0..3).map(|n| document["results"][n]["status"].as_u64().unwrap()).collect();
        assert_eq!((answer.status.as_u16(), statuses), (200, vec![202, 422, 503]));
        assert_eq!(document["results"][0]["id"], id.to_string());
        assert_eq!(batch_sent(&vec![away(), away()]).status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
