//! What is wrong with a request, in no vendor's words; and its own form, RFC 9457.

use std::collections::BTreeSet;

use http::StatusCode;
use postrider_schemas::{DecodeError, JobLimits, wire};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Fields that one answer names, at most.
const FIELDS_MAX: usize = 20;

/// The kinds of problem. Each has one status and one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be read.
    Malformed,
    /// The idempotency key has no form that one has.
    BadIdempotencyKey,
    /// No API key.
    KeyMissing,
    /// An API key that is not known.
    Unauthorized,
    /// The key may not do this.
    Forbidden,
    /// The key may not send from this domain.
    SenderForbidden,
    /// Nothing is there.
    NotFound,
    /// Another method is meant.
    MethodNotAllowed,
    /// The state of the job does not allow it.
    Conflict,
    /// The request did not arrive in time.
    Slow,
    /// The body is too large.
    TooLarge,
    /// The body is of another media type or coding.
    UnsupportedMedia,
    /// A field breaks its rule.
    Invalid,
    /// What is asked for exists at the vendor and not here.
    Unsupported,
    /// The idempotency key was used for another request.
    KeyReused,
    /// Too fast.
    RateLimited,
    /// The queue cannot take it now.
    Unavailable,
}

impl Kind {
    /// The status of HTTP.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::BadIdempotencyKey => StatusCode::BAD_REQUEST,
            Self::KeyMissing | Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::SenderForbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid | Self::Unsupported | Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The last part of the problem's type.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadIdempotencyKey => "bad-idempotency-key",
            Self::KeyMissing | Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::SenderForbidden => "sender-not-allowed",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Conflict => "conflict",
            Self::Slow => "request-timeout",
            Self::TooLarge => "too-large",
            Self::UnsupportedMedia => "unsupported-media-type",
            Self::Invalid => "invalid-field",
            Self::Unsupported => "not-supported",
            Self::KeyReused => "idempotency-key-reused",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The request cannot be read",
            Self::BadIdempotencyKey => "The idempotency key cannot be used",
            Self::KeyMissing | Self::Unauthorized => "The API key is missing or wrong",
            Self::Forbidden => "The API key does not allow this",
            Self::SenderForbidden => "The API key does not allow this sender",
            Self::NotFound => "Nothing is here",
            Self::MethodNotAllowed => "Another method is expected",
            Self::Conflict => "The job is in a state that does not allow this",
            Self::Slow => "The request did not arrive in time",
            Self::TooLarge => "The request is too large",
            Self::UnsupportedMedia => "The body is of a type or coding that is not read here",
            Self::Invalid => "A field breaks its rule",
            Self::Unsupported => "A feature is not supported",
            Self::KeyReused => "The idempotency key was used for another request",
            Self::RateLimited => "Too many requests",
            Self::Unavailable => "The queue takes nothing at this moment",
        }
    }
}

/// A field that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldProblem {
    /// Where it stands: a JSON pointer (RFC 6901) into the body.
    pub pointer: String,
    /// The rule.
    pub detail: String,
}

/// What is wrong with a request. Never holds a value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which kind.
    pub kind: Kind,
    /// One sentence.
    pub detail: String,
    /// The fields, where it is about fields.
    pub fields: Vec<FieldProblem>,
    /// When to ask again, in seconds.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem that is about no field.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), fields: Vec::new(), retry_after: None }
    }

    /// A problem of one field, named by its JSON pointer.
    pub fn field(kind: Kind, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let field = FieldProblem { pointer: pointer.into(), detail: detail.into() };
        Self { kind, detail: field.detail.clone(), fields: vec![field], retry_after: None }
    }

    /// The same with a time to come back after.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The problem of a document that is no job. `document` is looked through for further wrong fields.
    pub fn of_job(error: &DecodeError, document: &[u8], limits: &JobLimits) -> Self {
        if let DecodeError::TooLarge { .. } = error {
            return Self::new(Kind::TooLarge, error.to_string());
        }
        let fields = field_problems(error, document, limits);
        let is_unreadable = fields.iter().all(|field| field.pointer.is_empty())
            && matches!(error, DecodeError::Json { reason, .. } if !reason.starts_with("unknown field"));
        let kind = if is_unreadable { Kind::Malformed } else { Kind::Invalid };
        let detail = match fields.as_slice() {
            [one] if one.pointer.is_empty() => format!("The document is no job: {}.", one.detail),
            [one] => format!("{}: {}.", one.pointer, one.detail),
            many => format!("{} fields break their rules.", many.len()),
        };
        Self { kind, detail, fields, retry_after: None }
    }

    /// The whole in one sentence, for clients that show one text.
    pub fn sentence(&self) -> String {
        if self.fields.is_empty() {
            return self.detail.clone();
        }
        let one = |field: &FieldProblem| {
            let place = if field.pointer.is_empty() { "the body" } else { &field.pointer };
            format!("{place} {}", field.detail)
        };
        self.fields.iter().map(one).collect::<Vec<_>>().join("; ") + "."
    }

    /// The document of RFC 9457.
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "type": format!("https://postrider.dev/problems/{}", self.kind.word()),
            "title": self.kind.title(),
            "status": self.kind.status().as_u16(),
            "detail": self.detail,
        });
        if !self.fields.is_empty() {
            document["errors"] = json!(self.fields);
        }
        document
    }
}

/// `to[2].address` as `/to/2/address`; the document itself is the empty pointer.
pub fn pointer(path: &str) -> String {
    if path == "." {
        return String::new();
    }
    // "metadata entry 3" names no key, because keys are values of the sender.
    let path = path.split(' ').next().unwrap_or_default();
    // Names that are none of ours are not shown.
    path.split(['.', '['])
        .take_while(|part| *part != "?")
        .fold(String::new(), |pointer, part| pointer + "/" + part.trim_end_matches(']'))
}

fn field_problem(error: &DecodeError) -> FieldProblem {
    let (path, detail) = match error {
        DecodeError::Json { path, reason } | DecodeError::Invalid { path, reason } => (path.as_str(), reason.clone()),
        DecodeError::Template { path, limit } => (*path, limit.to_string()),
        other => (".", other.to_string()),
    };
    // Where a text is no JSON, it has no fields.
    let mut pointer = if detail.starts_with("not valid JSON") { String::new() } else { pointer(path) };
    // serde names the object that holds an unknown or lacks a required field.
    let quoted = detail.split('`').nth(1).filter(|name| *name != "?");
    if let Some(name) = quoted.filter(|_| detail.starts_with("unknown field `") || detail.ends_with("` is required")) {
        let end = format!("/{name}");
        if !pointer.ends_with(&end) {
            pointer += &end;
        }
    }
    FieldProblem { pointer, detail }
}

/// Every top-level field that breaks a rule. A decoder stops at the first one; here each one found is put right and the document read again, which
/// costs something only where it is wrong.
fn field_problems(first: &DecodeError, document: &[u8], limits: &JobLimits) -> Vec<FieldProblem> {
    let mut found = vec![field_problem(first)];
    let Ok(Value::Object(mut map)) = serde_json::from_slice(document) else { return found };
    let mut mended = BTreeSet::new();
    while found.len() < FIELDS_MAX {
        let pointer = found.last().map_or("", |field| field.pointer.as_str());
        let Some(name) = pointer.split('/').nth(1).map(str::to_owned) else { break };
        if !mended.insert(name.clone()) {
            break;
        }
        mend(&mut map, &name);
        let Ok(text) = serde_json::to_vec(&map) else { break };
        match wire::decode_v1(&text).and_then(|job| job.parse(limits)) {
            Ok(_) => break,
            Err(error) => found.push(field_problem(&error)),
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|field| seen.insert(field.pointer.clone()));
    found
}

/// Puts something in the place of a field that breaks no rule.
fn mend(map: &mut Map<String, Value>, name: &str) {
    match name {
        "from" => drop(map.insert(name.to_owned(), json!("a@b.example"))),
        "to" => drop(map.insert(name.to_owned(), json!(["a@b.example"]))),
        "subject" => drop(map.insert(name.to_owned(), json!("s"))),
        "text" | "html" | "template" | "variables" => {
            for one in ["html", "template", "variables"] {
                map.remove(one);
            }
            map.insert("text".to_owned(), json!("t"));
        }
        _ => drop(map.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(document: &str) -> Problem {
        let limits = JobLimits::DEFAULT;
        let error = wire::decode_v1(document.as_bytes()).and_then(|job| job.parse(&limits)).unwrap_err();
        Problem::of_job(&error, document.as_bytes(), &limits)
    }

    fn pointers(document: &str) -> Vec<String> {
        problem(document).fields.into_iter().map(|field| field.pointer).collect()
    }

    #[test]
    fn every_wrong_field_is_named_by_a_json_pointer() {
        let document = r#"{"from": "nobody", "to": ["ada@c.example", "bob"], "subject": "a\nb", "colour": "red",
            "headers": [{"name": "X-A", "value": "1"}, {"name": "From", "value": "x"}], "tags": [""]}"#;
        let mut found = pointers(document);
        found.sort_unstable();
        assert_eq!(found, ["/colour", "/from", "/headers/1", "/subject", "/tags/0", "/text", "/to/1"]);
    }

    #[test]
    fn one_wrong_field_is_named_with_its_rule() {
        let found = problem(r#"{"from": "a@b.example", "to": [{"address": "bob"}], "subject": "s", "text": "t"}"#);
        assert_eq!((found.kind, found.fields.len()), (Kind::Invalid, 1));
        assert_eq!(found.fields[0].pointer, "/to/0");
        let document = found.to_json();
        assert_eq!(document["status"], 422);
        assert_eq!(document["type"], "https://postrider.dev/problems/invalid-field");
        assert_eq!(document["errors"][0]["pointer"], "/to/0");
        assert!(!document.to_string().contains("bob"), "values are not repeated: {document}");
    }

    #[test]
    fn what_is_missing_is_named_where_it_should_stand() {
        let mut found = pointers("{}");
        found.sort_unstable();
        assert_eq!(found, ["/from", "/subject", "/text", "/to"]);
    }

    #[test]
    fn what_is_no_json_is_malformed_and_names_no_field() {
        for document in ["", "{", "[]", "7", "{\"from\": \"a@b.example\","] {
            let found = problem(document);
            assert_eq!((found.kind, found.fields[0].pointer.as_str()), (Kind::Malformed, ""), "{document}");
        }
    }
}
