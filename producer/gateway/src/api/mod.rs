//! The forms of request that the gateway reads. One file each, of pure functions: a request becomes a [`Call`] or a [`Problem`], results and problems
//! become an [`Answer`]. [`routes`] lists every path.

pub mod fields;
pub mod mailgun;
pub mod native;
pub mod openapi;
pub mod postmark;
pub mod raw;
pub mod resend;
pub mod routes;
pub mod sendgrid;
pub mod ses;
pub mod ses_query;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use jiff::Timestamp;
use postrider_schemas::{JobId, JobLimits, JobV1};
use serde_json::Value;

use self::routes::{Api, Operation};
use crate::{
    problem::{Kind, Problem},
    records::JobView,
};

/// A request, read.
pub struct Request<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The variable parts of the path.
    pub parameters: &'a [String],
    /// What stands behind the question mark.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a Bytes,
    /// The time that relative times count from.
    pub now: Timestamp,
    /// Limits on a job.
    pub limits: &'a JobLimits,
}

/// What a request asks for.
pub enum Call {
    /// To send.
    Send(Submission),
    /// To be told what became of a job.
    View(JobId),
    /// To call a job back.
    Cancel(JobId),
    /// To move a job to a later time.
    Postpone(JobId, Timestamp),
    /// To be told something that needs nobody else.
    Answer(Answer),
}

/// Jobs to be published.
pub struct Submission {
    /// Each job, or what is wrong with it, in the order of the request.
    pub jobs: Vec<Result<Draft, Problem>>,
    /// The idempotency key of the request as a whole.
    pub key: Option<String>,
    /// One bad job refuses all.
    pub is_atomic: bool,
}

/// A job before it is checked.
#[derive(Clone)]
pub struct Draft {
    /// The job.
    pub job: JobV1,
    /// The document that it was read from, where that has the form of a job.
    pub document: Option<Bytes>,
}

impl From<JobV1> for Draft {
    fn from(job: JobV1) -> Self {
        Self { job, document: None }
    }
}

/// What became of each job of a [`Submission`].
pub type Results = Vec<Result<JobId, Problem>>;

/// An answer of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// Without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// With a document of this media type.
    pub fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![(CONTENT_TYPE, HeaderValue::from_static(kind))], body: body.into() }
    }

    /// With a JSON document.
    pub fn json(status: StatusCode, document: &Value) -> Self {
        Self::typed(status, "application/json", document.to_string())
    }

    /// The same with a header. One that cannot be written is left out: none of them decides anything.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// The same with what belongs to every answer of this problem, whoever's form it has.
    #[must_use]
    pub fn for_problem(self, problem: &Problem, allowed: &[&str]) -> Self {
        let answer = match problem.retry_after {
            Some(seconds) => self.with(RETRY_AFTER, &seconds.to_string()),
            None => self,
        };
        match problem.kind {
            Kind::KeyMissing | Kind::Unauthorized => answer.with(WWW_AUTHENTICATE, "Bearer"),
            Kind::MethodNotAllowed => answer.with(ALLOW, &allowed.join(", ")),
            _ => answer,
        }
    }
}

/// Reads a request.
pub fn read(request: &Request<'_>) -> Result<Call, Problem> {
    match request.operation.api() {
        Api::Native => native::read(request),
        Api::Resend => resend::read(request),
        Api::SendGrid => sendgrid::read(request),
        Api::Postmark => postmark::read(request),
        Api::Ses => ses::read(request),
        Api::SesQuery => ses_query::read(request),
        Api::Mailgun => mailgun::read(request),
    }
}

/// Says what became of a submission.
pub fn sent(request: &Request<'_>, results: &Results) -> Answer {
    match request.operation.api() {
        Api::Native => native::sent(request, results),
        Api::Resend => resend::sent(request, results),
        Api::SendGrid => sendgrid::sent(request, results),
        Api::Postmark => postmark::sent(request, results),
        Api::Ses => ses::sent(request, results),
        Api::SesQuery => ses_query::sent(request, results),
        Api::Mailgun => mailgun::sent(results),
    }
}

/// Says what became of a job.
pub fn viewed(request: &Request<'_>, view: &JobView) -> Answer {
    match request.operation.api() {
        Api::Resend => resend::viewed(view),
        _ => native::viewed(view),
    }
}

/// Says that a job was called back.
pub fn cancelled(request: &Request<'_>, id: JobId) -> Answer {
    match request.operation.api() {
        Api::Resend => resend::changed(id),
        _ => native::cancelled(id),
    }
}

/// Says that a job has a later time.
pub fn postponed(request: &Request<'_>, id: JobId, until: Timestamp) -> Answer {
    match request.operation.api() {
        Api::Resend => resend::changed(id),
        _ => native::postponed(id, until),
    }
}

/// The job that a path names.
fn job_id(request: &Request<'_>) -> Result<JobId, Problem> {
    let id = request.parameters.first().and_then(|text| text.parse().ok());
    id.ok_or_else(|| Problem::new(Kind::NotFound, "No job of this id is known."))
}

/// Says what is wrong, in the form of the API.
pub fn refuse(api: Api, problem: &Problem) -> Answer {
    match api {
        Api::Native => native::refuse(problem),
        Api::Resend => resend::refuse(problem),
        Api::SendGrid => sendgrid::refuse(problem),
        Api::Postmark => postmark::refuse(problem),
        Api::Ses => ses::refuse(problem),
        Api::SesQuery => ses_query::refuse(problem),
        Api::Mailgun => mailgun::refuse(problem),
    }
}

/// The API key that a request bears, wherever its client puts it.
pub fn credentials(api: Api, headers: &HeaderMap) -> Option<String> {
    match api {
        Api::Postmark => headers.get("x-postmark-server-token")?.to_str().ok().map(|text| text.trim().to_owned()),
        // Those of AWS sign: see `sigv4`.
        Api::Ses | Api::SesQuery => None,
        Api::Mailgun => basic(headers),
        Api::Native | Api::Resend | Api::SendGrid => bearer(headers),
    }
}

/// The password of `Basic`: the name in front of it is `api` with Mailgun, and counts for nothing.
fn basic(headers: &HeaderMap) -> Option<String> {
    let (scheme, login) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let login = String::from_utf8(STANDARD.decode(login.trim()).ok()?).ok()?;
    let (_, password) = login.split_once(':')?;
    scheme.eq_ignore_ascii_case("basic").then(|| password.to_owned())
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

#[cfg(test)]
mod junk_tests;
