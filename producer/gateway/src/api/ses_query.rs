//! The form of Amazon SES, version 1: `POST /` with a form, answers in XML.

use std::collections::BTreeMap;

use http::StatusCode;
use postrider_schemas::{JobId, JobV1, MailboxV1};

use super::{Answer, Call, Request, Results, Submission, raw, ses};
use crate::{
    form::Form,
    problem::{Kind, Problem},
};

const NAMESPACE: &str = "http://ses.amazonaws.com/doc/2010-12-01/";

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    let mut form = Form::of_query(request.body)?;
    let action = form.text("Action")?.unwrap_or_default();
    form.text("Version")?;
    let job = match action.as_str() {
        "SendEmail" => mail(form)?,
        "SendRawEmail" => whole(form)?,
        _ => {
            let detail = "is SendEmail or SendRawEmail here; templates and settings that Amazon keeps are not";
            return Err(Problem::field(Kind::Unsupported, "/Action", detail));
        }
    };
    Ok(Call::Send(Submission { jobs: vec![Ok(job.into())], key: ses::request_key(request)?, is_atomic: true }))
}

/// Refuses what names something of an Amazon account; gives what becomes metadata.
fn shared(form: &mut Form) -> Result<BTreeMap<String, String>, Problem> {
    for name in ["SourceArn", "FromArn", "ReturnPathArn"] {
        form.refuse(name, "it names something of an Amazon account")?;
    }
    let mut metadata = BTreeMap::new();
    for (name, value) in form.numbered("Tags.member", ["Name", "Value"])? {
        metadata.insert(name, value);
    }
    metadata.extend(form.text("ConfigurationSetName")?.map(|name| ("configuration-set".to_owned(), name)));
    Ok(metadata)
}

fn mail(mut form: Form) -> Result<JobV1, Problem> {
    form.refuse("ReturnPath", "bounces go where the transport sends them")?;
    let metadata = shared(&mut form)?;
    let required = |form: &mut Form, name: &str| form.text(name)?.ok_or_else(|| form.wrong(name, "is required"));
    let from = required(&mut form, "Source")?;
    let subject = required(&mut form, "Message.Subject.Data")?;
    // A form is Unicode, whatever charset the mail is to have.
    for part in ["Subject", "Body.Text", "Body.Html"] {
        form.text(&format!("Message.{part}.Charset"))?;
    }
    let mut mailboxes = |name: &str| -> Result<Vec<MailboxV1>, Problem> {
        Ok(form.members(&format!("{name}.member"))?.into_iter().map(MailboxV1::from).collect())
    };
    let job = JobV1 {
        from: from.into(),
        to: mailboxes("Destination.ToAddresses")?,
        cc: mailboxes("Destination.CcAddresses")?,
        bcc: mailboxes("Destination.BccAddresses")?,
        reply_to: mailboxes("ReplyToAddresses")?,
        subject,
        text: form.text("Message.Body.Text.Data")?,
        html: form.text("Message.Body.Html.Data")?,
        metadata,
        ..JobV1::default()
    };
    form.end()?;
    Ok(job)
}

fn whole(mut form: Form) -> Result<JobV1, Problem> {
    let metadata = shared(&mut form)?;
    let source = form.text("Source")?.filter(|source| !source.is_empty());
    let to = form.members("Destinations.member")?.into_iter().map(MailboxV1::from).collect();
    let data = form.text("RawMessage.Data")?.ok_or_else(|| form.wrong("RawMessage.Data", "is required"))?;
    form.end()?;
    Ok(JobV1 { metadata, ..raw::job(data, source.as_deref(), to)? })
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    match results.first() {
        Some(Ok(id)) => {
            let form = Form::of_query(request.body).and_then(|mut form| form.text("Action"));
            // Anything else was refused.
            let is_raw = form.ok().flatten().as_deref() == Some("SendRawEmail");
            accepted(if is_raw { "SendRawEmail" } else { "SendEmail" }, *id)
        }
        Some(Err(problem)) => refuse(problem),
        None => Answer::empty(StatusCode::OK),
    }
}

fn accepted(action: &str, id: JobId) -> Answer {
    let document = format!(
        "<{action}Response xmlns=\"{NAMESPACE}\"><{action}Result><MessageId>{id}</MessageId></{action}Result>\
         <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{action}Response>"
    );
    Answer::typed(StatusCode::OK, "text/xml", document)
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let is_about_action = problem.fields.iter().any(|field| field.pointer == "/Action");
    let (status, code) = match problem.kind {
        _ if is_about_action => (400, "InvalidAction"),
        Kind::KeyMissing => (403, "MissingAuthenticationToken"),
        Kind::Unauthorized => (403, "InvalidClientTokenId"),
        Kind::Forbidden => (403, "AccessDenied"),
        Kind::SenderForbidden => (400, "MailFromDomainNotVerifiedException"),
        Kind::RateLimited => (400, "Throttling"),
        Kind::Unavailable | Kind::Slow => (503, "ServiceUnavailable"),
        Kind::TooLarge => (413, "RequestEntityTooLarge"),
        Kind::NotFound => (404, "NotFound"),
        Kind::MethodNotAllowed => (405, "MethodNotAllowed"),
        Kind::Invalid | Kind::Unsupported => (400, "MessageRejected"),
        Kind::Malformed | Kind::BadIdempotencyKey | Kind::Conflict | Kind::UnsupportedMedia | Kind::KeyReused => {
            (400, "InvalidParameterValue")
        }
    };
    let kind = if status < 500 { "Sender" } else { "Receiver" };
    let message = escaped(&problem.sentence());
    let document = format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{kind}</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>none</RequestId></ErrorResponse>"
    );
    Answer::typed(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), "text/xml", document)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use postrider_schemas::JobLimits;

    use super::*;
    use crate::api::routes::Operation;

    fn ask(pairs: &[(&str, &str)]) -> Result<JobV1, Problem> {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(pairs).append_pair("Version", "2010-12-01");
        let request = Request {
            operation: Operation::SesQuery,
            parameters: &[],
            query: "",
            headers: &HeaderMap::new(),
            body: &Bytes::from(body.finish()),
            now: "2026-12-01T10:00:00Z".parse().unwrap(),
            limits: &JobLimits::DEFAULT,
        };
        match read(&request)? {
            Call::Send(mut submission) => submission.jobs.remove(0).map(|draft| draft.job),
            _ => panic!("nothing is to be sent"),
        }
    }

    #[test]
    fn every_field_of_a_mail_reaches_the_job() {
        let job = ask(&[
            ("Action", "SendEmail"),
            ("Source", "Shop <a@shop.example>"),
            ("Destination.ToAddresses.member.1", "c@d.example"),
            ("Destination.ToAddresses.member.2", "e@d.example"),
            ("Destination.BccAddresses.member.1", "f@d.example"),
            ("ReplyToAddresses.member.1", "help@shop.example"),
            ("Message.Subject.Data", "Zoë"),
            ("Message.Subject.Charset", "UTF-8"),
            ("Message.Body.Text.Data", "t"),
            ("Tags.member.1.Name", "order"),
            ("Tags.member.1.Value", "1"),
            ("ConfigurationSetName", "main"),
        ])
        .ok()
        .unwrap();
        assert_eq!((job.to.len(), job.bcc.len(), job.reply_to.len(), job.metadata.len()), (2, 1, 1, 2));
        assert_eq!((job.subject.as_str(), job.text.as_deref()), ("Zoë", Some("t")));
    }

    #[test]
    fn a_whole_message_goes_to_its_destinations_or_to_those_that_it_names() {
        // From a@shop.example, To c@d.example, Bcc e@d.example.
        let data =
            "RnJvbTogYUBzaG9wLmV4YW1wbGUNClRvOiBjQGQuZXhhbXBsZQ0KQmNjOiBlQGQuZXhhbXBsZQ0KU3ViamVjdDogcw0KDQp0DQo=";
        let job = ask(&[("Action", "SendRawEmail"), ("RawMessage.Data", data)]).ok().unwrap();
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(job.recipients().len(), 2);
        let one = [("Action", "SendRawEmail"), ("RawMessage.Data", data), ("Destinations.member.1", "z@d.example")];
        let job = ask(&one).ok().unwrap().parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(job.recipients().len(), 1);
    }

    #[test]
    fn what_is_not_here_is_refused_by_name_and_answers_are_xml() {
        for (pairs, pointer, code) in [
            (vec![("Action", "SendTemplatedEmail")], "/Action", "InvalidAction"),
            (vec![], "/Action", "InvalidAction"),
            (vec![("Action", "SendEmail")], "/Source", "MessageRejected"),
            (vec![("Action", "SendEmail"), ("SourceArn", "x")], "/SourceArn", "MessageRejected"),
            (
                vec![
                    ("Action", "SendRawEmail"),
                    ("RawMessage.Data", "eA=="),
                    ("Colour", "red"),
                    ("Destinations.member.1", "a@b.example"),
                ],
                "/Colour",
                "MessageRejected",
            ),
        ] {
            let problem = ask(&pairs).err().unwrap();
            assert_eq!(problem.fields[0].pointer, pointer);
            let answer = refuse(&problem);
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            assert!(text.contains(&format!("<Code>{code}</Code>")), "{text}");
        }
        let answer = refuse(&Problem::new(Kind::Unavailable, "a < b"));
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status.as_u16(), 503);
        assert!(text.contains("<Type>Receiver</Type>") && text.contains("a &lt; b"), "{text}");
    }
}
