//! The form of Amazon SES, version 2: `POST /v2/email/outbound-emails`, `POST /v2/email/outbound-bulk-emails`.

use std::collections::BTreeMap;

use http::{HeaderName, StatusCode};
use postrider_schemas::{
    JobV1, MailboxV1, template,
    wire::{AttachmentV1, HeaderV1, ListUnsubscribeV1, TemplateV1, TrackingV1},
};
use serde_json::{Map, Value, json};

use super::{
    Answer, Call, Draft, Request, Results, Submission,
    fields::{self, Fields},
    raw,
    routes::Operation,
};
use crate::{
    idempotency,
    problem::{Kind, Problem},
};

/// Mails of one bulk request, at most.
const BULK_MAX: usize = 50;
/// What AWS's clients name an error by.
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// The same in every attempt of one call of AWS's clients: they have no other idempotency key.
const INVOCATION: HeaderName = HeaderName::from_static("amz-sdk-invocation-id");
const TEMPLATES: &str = "templates that Amazon keeps are not here; send `TemplateContent`";

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    let fields = Fields::of_body(request.body)?;
    let key = request_key(request)?;
    if request.operation == Operation::SesBulk {
        return Ok(Call::Send(Submission { jobs: bulk(fields)?, key, is_atomic: false }));
    }
    Ok(Call::Send(Submission { jobs: vec![Ok(mail(fields)?.into())], key, is_atomic: true }))
}

/// The idempotency key of a request: its own, or what AWS's clients send with every attempt of one call.
pub fn request_key(request: &Request<'_>) -> Result<Option<String>, Problem> {
    let invocation = || {
        let id = request.headers.get(INVOCATION)?.to_str().ok()?;
        (id.len() <= 200).then(|| format!("aws:{id}")).filter(|key| key.bytes().all(|octet| octet.is_ascii_graphic()))
    };
    Ok(idempotency::from_headers(request.headers)?.or_else(invocation))
}

/// What a mail is, but for its content.
struct Outside {
    from: Option<String>,
    reply_to: Vec<MailboxV1>,
    metadata: BTreeMap<String, String>,
    tracking: TrackingV1,
}

/// The addresses of a mail.
#[derive(Default)]
struct Destination {
    to: Vec<MailboxV1>,
    cc: Vec<MailboxV1>,
    bcc: Vec<MailboxV1>,
}

/// What a mail says.
#[derive(Clone, Default)]
struct Inside {
    subject: String,
    text: Option<String>,
    html: Option<String>,
    template: Option<TemplateV1>,
    variables: Map<String, Value>,
    headers: Vec<HeaderV1>,
    list_unsubscribe: Option<ListUnsubscribeV1>,
    reply_to: Option<String>,
    attachments: Vec<AttachmentV1>,
}

fn outside(fields: &mut Fields, tags: &str) -> Result<Outside, Problem> {
    fields.refuse("ListManagementOptions", "contact lists that Amazon keeps are not here")?;
    fields.refuse("FeedbackForwardingEmailAddress", "events tell what became of a mail")?;
    for name in ["FromEmailAddressIdentityArn", "FeedbackForwardingEmailAddressIdentityArn", "EndpointId", "TenantName"]
    {
        fields.refuse(name, "it names something of an Amazon account")?;
    }
    let mut metadata: BTreeMap<String, String> = named(fields.objects(tags)?)?.into_iter().collect();
    metadata.extend(fields.text("ConfigurationSetName")?.map(|name| ("configuration-set".to_owned(), name)));
    Ok(Outside {
        from: fields.text("FromEmailAddress")?,
        reply_to: fields.texts("ReplyToAddresses")?.into_iter().map(MailboxV1::from).collect(),
        metadata,
        tracking: tracking(fields)?,
    })
}

fn destination(fields: &mut Fields) -> Result<Option<Destination>, Problem> {
    let Some(mut inner) = fields.object("Destination")? else { return Ok(None) };
    let mut of = |name: &str| -> Result<Vec<MailboxV1>, Problem> {
        Ok(inner.texts(name)?.into_iter().map(MailboxV1::from).collect())
    };
    let found = Destination { to: of("ToAddresses")?, cc: of("CcAddresses")?, bcc: of("BccAddresses")? };
    inner.end()?;
    Ok(Some(found))
}

fn mail(mut fields: Fields) -> Result<JobV1, Problem> {
    let outside = outside(&mut fields, "EmailTags")?;
    let destination = destination(&mut fields)?;
    let mut content = fields.object("Content")?.ok_or_else(|| fields.wrong("Content", "is required"))?;
    fields.end()?;
    if let Some(mut whole) = content.object("Raw")? {
        let data = whole.text("Data")?.ok_or_else(|| whole.wrong("Data", "is required"))?;
        whole.end()?;
        content.end()?;
        let destination = destination.unwrap_or_default();
        let to = [destination.to, destination.cc, destination.bcc].concat();
        return Ok(JobV1 {
            metadata: outside.metadata,
            tracking: outside.tracking,
            ..raw::job(data, outside.from.as_deref(), to)?
        });
    }
    let inside = match (content.object("Simple")?, content.object("Template")?) {
        (Some(fields), None) => simple(fields)?,
        (None, Some(fields)) => template(fields)?,
        _ => return Err(content.wrong("Simple", "is required, or one of Raw and Template")),
    };
    content.end()?;
    let destination = destination.ok_or_else(|| Problem::field(Kind::Invalid, "/Destination", "is required"))?;
    job(&outside, destination, inside)
}

fn job(outside: &Outside, destination: Destination, inside: Inside) -> Result<JobV1, Problem> {
    let missing = || Problem::field(Kind::Invalid, "/FromEmailAddress", "is required");
    let Destination { to, cc, bcc } = destination;
    let mut reply_to = outside.reply_to.clone();
    if reply_to.is_empty() {
        reply_to.extend(inside.reply_to.map(MailboxV1::from));
    }
    Ok(JobV1 {
        from: outside.from.clone().ok_or_else(missing)?.into(),
        reply_to,
        to,
        cc,
        bcc,
        subject: inside.subject,
        text: inside.text,
        html: inside.html,
        template: inside.template,
        variables: inside.variables,
        headers: inside.headers,
        list_unsubscribe: inside.list_unsubscribe,
        attachments: inside.attachments,
        metadata: outside.metadata.clone(),
        tracking: outside.tracking,
        ..JobV1::default()
    })
}

fn simple(mut fields: Fields) -> Result<Inside, Problem> {
    let subject = data(&mut fields, "Subject")?.ok_or_else(|| fields.wrong("Subject", "is required"))?;
    let (mut text, mut html) = (None, None);
    if let Some(mut body) = fields.object("Body")? {
        (text, html) = (data(&mut body, "Text")?, data(&mut body, "Html")?);
        body.end()?;
    }
    let inside = Inside { subject, text, html, ..rest(&mut fields)? };
    fields.end()?;
    Ok(inside)
}

/// A template whose sources are in the request.
fn template(mut fields: Fields) -> Result<Inside, Problem> {
    fields.refuse("TemplateName", TEMPLATES)?;
    fields.refuse("TemplateArn", TEMPLATES)?;
    let mut content =
        fields.object("TemplateContent")?.ok_or_else(|| fields.wrong("TemplateContent", "is required"))?;
    let mut source = |name: &str| -> Result<Option<String>, Problem> {
        let Some(source) = content.text(name)? else { return Ok(None) };
        // The language of Amazon's templates shares its plain names with ours, and nothing else.
        if template::survey(&source).is_ok_and(|survey| survey.is_plain) {
            return Ok(Some(source));
        }
        let detail = "holds more than plain {{names}}, which is all that is read of Amazon's templates here";
        Err(Problem::field(Kind::Unsupported, content.at(name), detail))
    };
    let (subject, text, html) = (source("Subject")?, source("Text")?, source("Html")?);
    content.end()?;
    let variables = variables(&mut fields, "TemplateData")?;
    let inside = Inside {
        subject: subject.unwrap_or_default(),
        template: Some(TemplateV1 { text, html }),
        variables,
        ..rest(&mut fields)?
    };
    fields.end()?;
    Ok(inside)
}

/// A text that holds an object of JSON.
fn variables(fields: &mut Fields, name: &str) -> Result<Map<String, Value>, Problem> {
    let Some(text) = fields.text(name)?.filter(|text| !text.trim().is_empty()) else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|_| fields.wrong(name, "expected a JSON object in a text"))
}

/// Headers and attachments.
fn rest(fields: &mut Fields) -> Result<Inside, Problem> {
    let headers = fields::headers(named(fields.objects("Headers")?)?);
    Ok(Inside {
        headers: headers.extra,
        list_unsubscribe: headers.list_unsubscribe,
        reply_to: headers.reply_to,
        attachments: fields.objects("Attachments")?.into_iter().map(attachment).collect::<Result<_, _>>()?,
        ..Inside::default()
    })
}

/// `{"Data": "..", "Charset": ".."}`: JSON is Unicode, whatever charset the mail is to have.
fn data(fields: &mut Fields, name: &str) -> Result<Option<String>, Problem> {
    let Some(mut object) = fields.object(name)? else { return Ok(None) };
    object.take("Charset");
    let data = object.text("Data")?;
    object.end()?;
    Ok(data)
}

fn named(list: Vec<Fields>) -> Result<Vec<(String, String)>, Problem> {
    let one = |mut fields: Fields| -> Result<(String, String), Problem> {
        let name = fields.text("Name")?.ok_or_else(|| fields.wrong("Name", "is required"))?;
        let value = fields.text("Value")?.unwrap_or_default();
        fields.end()?;
        Ok((name, value))
    };
    list.into_iter().map(one).collect()
}

fn attachment(mut fields: Fields) -> Result<AttachmentV1, Problem> {
    let filename = fields.text("FileName")?.ok_or_else(|| fields.wrong("FileName", "is required"))?;
    let content = fields.text("RawContent")?.ok_or_else(|| fields.wrong("RawContent", "is required"))?;
    let kind = fields.text("ContentType")?.unwrap_or_else(|| fields::media_type(&filename).to_owned());
    let is_inline = fields.text("ContentDisposition")?.as_deref() == Some("INLINE");
    let id = fields.text("ContentId")?.map(|id| id.trim_matches(['<', '>']).to_owned());
    // How it is written down is for the transport to say.
    fields.take("ContentTransferEncoding");
    fields.refuse("ContentDescription", "an attachment has no description here")?;
    fields.end()?;
    Ok(AttachmentV1 { filename, content, content_type: kind, content_id: id.filter(|_| is_inline) })
}

fn tracking(fields: &mut Fields) -> Result<TrackingV1, Problem> {
    let Some(mut overrides) = fields.object("ConfigurationOverrides")? else { return Ok(TrackingV1::default()) };
    let mut tracking = TrackingV1::default();
    if let Some(mut wanted) = overrides.object("Tracking")? {
        tracking.opens = wanted.text("OpenTrackingEnabled")?.as_deref() == Some("ENABLED");
        tracking.clicks = wanted.text("ClickTrackingEnabled")?.as_deref() == Some("ENABLED");
        wanted.end()?;
    }
    overrides.end()?;
    Ok(tracking)
}

/// One template for many, each with values of its own.
fn bulk(mut fields: Fields) -> Result<Vec<Result<Draft, Problem>>, Problem> {
    let outside = outside(&mut fields, "DefaultEmailTags")?;
    let mut content = fields.object("DefaultContent")?.ok_or_else(|| fields.wrong("DefaultContent", "is required"))?;
    let shared = content.object("Template")?.ok_or_else(|| content.wrong("Template", "is required"))?;
    content.end()?;
    let shared = template(shared)?;
    let entries = fields.objects("BulkEmailEntries")?;
    fields.end()?;
    if entries.is_empty() || entries.len() > BULK_MAX {
        let detail = format!("holds 1 to {BULK_MAX} entries");
        return Err(Problem::field(Kind::Invalid, "/BulkEmailEntries", detail));
    }
    Ok(entries.into_iter().map(|entry| bulk_entry(entry, &outside, shared.clone()).map(Draft::from)).collect())
}

fn bulk_entry(mut fields: Fields, outside: &Outside, mut inside: Inside) -> Result<JobV1, Problem> {
    let destination = destination(&mut fields)?.ok_or_else(|| fields.wrong("Destination", "is required"))?;
    let tags = named(fields.objects("ReplacementTags")?)?;
    let headers = fields::headers(named(fields.objects("ReplacementHeaders")?)?);
    if let Some(mut content) = fields.object("ReplacementEmailContent")? {
        if let Some(mut values) = content.object("ReplacementTemplate")? {
            inside.variables.extend(variables(&mut values, "ReplacementTemplateData")?);
            values.end()?;
        }
        content.end()?;
    }
    fields.end()?;
    inside.headers.retain(|old| !headers.extra.iter().any(|new| new.name.eq_ignore_ascii_case(&old.name)));
    inside.headers.extend(headers.extra);
    inside.list_unsubscribe = headers.list_unsubscribe.or(inside.list_unsubscribe);
    inside.reply_to = headers.reply_to.or(inside.reply_to);
    let mut made = job(outside, destination, inside)?;
    made.metadata.extend(tags);
    Ok(made)
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    if request.operation == Operation::SesBulk {
        return bulk_sent(results);
    }
    match results.first() {
        Some(Ok(id)) => Answer::json(StatusCode::OK, &json!({ "MessageId": id })),
        Some(Err(problem)) => refuse(problem),
        None => Answer::empty(StatusCode::OK),
    }
}

fn bulk_sent(results: &Results) -> Answer {
    let is_away = |result: &Result<_, Problem>| matches!(result, Err(one) if one.kind == Kind::Unavailable);
    if let Some(Err(problem)) = results.first().filter(|_| results.iter().all(is_away)) {
        return refuse(problem);
    }
    let one = |result: &Result<_, Problem>| match result {
        Ok(id) => json!({ "Status": "SUCCESS", "MessageId": id }),
        Err(problem) => {
            let status = match problem.kind {
                Kind::SenderForbidden => "MAIL_FROM_DOMAIN_NOT_VERIFIED",
                Kind::Unavailable => "TRANSIENT_FAILURE",
                Kind::Invalid => "INVALID_PARAMETER",
                Kind::Unsupported => "MESSAGE_REJECTED",
                _ => "FAILED",
            };
            json!({ "Status": status, "Error": problem.sentence() })
        }
    };
    let list: Vec<Value> = results.iter().map(one).collect();
    Answer::json(StatusCode::OK, &json!({ "BulkEmailEntryResults": list }))
}

/// Says what is wrong.
pub fn refuse(problem: &Problem) -> Answer {
    let (status, name) = match problem.kind {
        Kind::KeyMissing => (403, "MissingAuthenticationTokenException"),
        Kind::Unauthorized => (403, "UnrecognizedClientException"),
        Kind::Forbidden => (403, "AccessDeniedException"),
        Kind::SenderForbidden => (400, "MailFromDomainNotVerifiedException"),
        Kind::NotFound => (404, "NotFoundException"),
        Kind::RateLimited => (429, "TooManyRequestsException"),
        Kind::Unavailable | Kind::Slow => (503, "ServiceUnavailableException"),
        Kind::TooLarge => (413, "BadRequestException"),
        Kind::MethodNotAllowed => (405, "BadRequestException"),
        Kind::Invalid | Kind::Unsupported => (400, "MessageRejected"),
        Kind::Malformed | Kind::BadIdempotencyKey | Kind::Conflict | Kind::UnsupportedMedia | Kind::KeyReused => {
            (400, "BadRequestException")
        }
    };
    let document = json!({ "__type": name, "message": problem.sentence() });
    Answer::json(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &document).with(ERROR_TYPE, name)
}

#[cfg(test)]
#[path = "ses_tests.rs"]
mod tests;
