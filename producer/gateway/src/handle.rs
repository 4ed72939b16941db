//! One request, from its head to the answer.

use std::{net::IpAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use http::{HeaderName, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::body::Body;
use jiff::Timestamp;
use postrider_schemas::{Event, Job, JobId, JobLimits};
use secrecy::ExposeSecret as _;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        self, Answer, Call, Draft, Request, Results, Submission,
        routes::{self, Api, Found, Operation},
    },
    body::{self, Memory},
    config::GatewayConfig,
    idempotency,
    keys::{Key, Keys},
    metrics::Metrics,
    problem::{Kind, Problem},
    queue::Queue,
    rate::{Rates, Standing},
    records::Records,
    sigv4::{self, Signed, SignedRequest},
};

/// Jobs of one request that wait for their confirm at once.
const IN_FLIGHT: usize = 256;
/// Whoever shows a wrong key waits so long for the answer.
pub(crate) const WRONG_KEY_DELAY: Duration = Duration::from_millis(300);

/// Publishes an event. The gateway's own connection publishes jobs alone.
pub type Events = Box<dyn Fn(Event) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What every request needs.
pub struct Gateway {
    /// The settings.
    pub config: GatewayConfig,
    /// The API keys, replaced when their file changes.
    pub keys: ArcSwap<Keys>,
    /// Where jobs go.
    pub queue: Queue,
    /// What gateways remember together; nothing where there is no store that they share.
    pub records: Option<Records>,
    /// Tells tenants of cancellations.
    pub events: Option<Events>,
    /// What is counted.
    pub metrics: Metrics,
    /// Bytes that requests hold.
    pub memory: Memory,
    /// How fast each key sends.
    pub rates: Rates,
    /// No new request is to come.
    pub stop: CancellationToken,
}

impl Gateway {
    /// A gateway on a queue that may still have to connect.
    pub fn new(config: GatewayConfig, keys: Keys, queue: Queue, metrics: Metrics, stop: CancellationToken) -> Self {
        let memory = Memory::new(config.memory, body::WAIT_FOR_MEMORY);
        let (keys, rates) = (ArcSwap::from_pointee(keys), Rates::default());
        Self { config, keys, queue, records: None, events: None, metrics, memory, rates, stop }
    }

    /// The same with a store, which workers share.
    #[must_use]
    pub fn with_records(mut self, records: Records, events: Events) -> Self {
        self.records = Some(records);
        self.events = Some(events);
        self
    }

    /// Whether it takes jobs now.
    pub fn is_ready(&self) -> bool {
        !self.stop.is_cancelled() && self.queue.is_up()
    }

    /// Answers a request.
    pub async fn handle<B>(&self, request: http::Request<B>, peer: IpAddr) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let begun = Instant::now();
        let (head, body) = request.into_parts();
        let found = routes::find(head.method.as_str(), head.uri.path());
        let operation = match &found {
            Found::Operation(operation, _) => Some(*operation),
            _ => None,
        };
        let answer = match found {
            Found::Operation(operation, parameters) => self.answer(operation, &parameters, &head, body, peer).await,
            Found::OtherMethods(api, allowed) => {
                body::discard(body).await;
                let problem = Problem::new(Kind::MethodNotAllowed, format!("This path knows {}.", allowed.join(", ")));
                api::refuse(api, &problem).for_problem(&problem, &allowed)
            }
            Found::Nothing => {
                body::discard(body).await;
                api::refuse(Api::Native, &Problem::new(Kind::NotFound, "No such path; /openapi.json lists them."))
            }
        };
        self.metrics.answered(operation, answer.status.as_u16(), begun.elapsed());
        tracing::debug!(
            operation = operation.map(|operation| operation.route().name),
            status = answer.status.as_u16(),
            ms = begun.elapsed().as_millis(),
            "Answered a request"
        );
        respond(answer)
    }

    async fn answer<B>(
        &self,
        operation: Operation,
        parameters: &[String],
        head: &http::request::Parts,
        body: B,
        peer: IpAddr,
    ) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if let Some(answer) = self.about_itself(operation) {
            return answer;
        }
        let api = operation.api();
        let signed = signature(api, head);
        let (key, mut standing) = match self.admit(operation, head, signed.as_ref(), peer).await {
            Ok(admitted) => admitted,
            Err((problem, standing)) => {
                body::discard(body).await;
                return with_rate(api::refuse(api, &problem).for_problem(&problem, &[]), standing);
            }
        };
        let limits = body::Limits { bytes: self.config.body_max, time: self.config.read_timeout };
        let answered = match body::read(&head.headers, body, limits, &self.memory).await {
            Ok((body, _held)) => {
                let mut request = Request {
                    operation,
                    parameters,
                    query: head.uri.query().unwrap_or_default(),
                    headers: &head.headers,
                    body: &body,
                    now: Timestamp::now(),
                    limits: &self.config.job,
                };
                let verified = match &signed {
                    None => Ok(()),
                    Some(signed) => self.verify(signed, head, &body).await.and_then(|()| {
                        let (taken, result) = self.take(&key);
                        standing = taken;
                        result
                    }),
                };
                match verified {
                    Ok(()) => self.run(&mut request, &key, head).await,
                    Err(problem) => Err(problem),
                }
            }
            Err(problem) => Err(problem),
        };
        let answer = answered.unwrap_or_else(|problem| api::refuse(api, &problem).for_problem(&problem, &[]));
        with_rate(answer, standing)
    }

    /// What everybody may ask.
    fn about_itself(&self, operation: Operation) -> Option<Answer> {
        let text = |status, text: &'static str| Some(Answer::typed(status, "text/plain; charset=utf-8", text));
        match operation {
            Operation::Healthz => text(StatusCode::OK, "alive\n"),
            Operation::Readyz if self.is_ready() => text(StatusCode::OK, "ready\n"),
            Operation::Readyz => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            Operation::OpenApi => Some(Answer::typed(StatusCode::OK, "application/json", api::openapi::document())),
            _ => None,
        }
    }

    /// Finds the key, and asks whether it may do this, and now.
    async fn admit(
        &self,
        operation: Operation,
        head: &http::request::Parts,
        signed: Option<&Signed>,
        peer: IpAddr,
    ) -> Result<(Key, Option<Standing>), (Problem, Option<Standing>)> {
        let found = match (signed, api::credentials(operation.api(), &head.headers)) {
            // Whether the signature is right is seen when the body is there.
            (Some(signed), _) => self.keys.load().named(&signed.key_id, Timestamp::now()).cloned(),
            (None, Some(text)) => self.keys.load().authenticate(&text, Timestamp::now()).cloned(),
            (None, None) => return Err((Problem::new(Kind::KeyMissing, "The request bears no API key."), None)),
        };
        let key = match found {
            Ok(key) => key,
            Err(problem) => {
                sleep(WRONG_KEY_DELAY).await;
                return Err((problem, None));
            }
        };
        if let Some(scope) = operation.route().scope {
            key.check(scope, peer).map_err(|problem| (problem, None))?;
        }
        if signed.is_some() {
            // Until its signature was looked at, a request takes nothing of the key's rate.
            return Ok((key, None));
        }
        let (standing, taken) = self.take(&key);
        taken.map(|()| (key, standing)).map_err(|problem| (problem, standing))
    }

    /// Takes one of the key's rate.
    fn take(&self, key: &Key) -> (Option<Standing>, Result<(), Problem>) {
        let standing = key.rate.map(|rate| self.rates.take(&key.id, rate, Instant::now()));
        let taken = match standing {
            Some(standing) if !standing.is_allowed => {
                let detail = format!("The API key may send {} jobs a second.", standing.limit);
                Err(Problem::new(Kind::RateLimited, detail).retry_after(standing.reset))
            }
            _ => Ok(()),
        };
        (standing, taken)
    }

    /// Takes one job that came by SMTP.
    pub async fn submit(&self, draft: Draft, key: &Key, job_key: Option<String>) -> Result<JobId, Problem> {
        self.take(key).1?;
        let submission = Submission { jobs: vec![Ok(draft)], key: job_key, is_atomic: false };
        let jobs = check(submission, key, &self.config.job);
        let result = self.send(jobs, key, "smtp", None).await.pop();
        result.unwrap_or_else(|| Err(Problem::new(Kind::Unavailable, "The message was not handed over.")))
    }

    /// Whether a request that is signed was signed with the secret that belongs to its key.
    async fn verify(&self, signed: &Signed, head: &http::request::Parts, body: &[u8]) -> Result<(), Problem> {
        let request = SignedRequest {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &head.headers,
            body,
        };
        let is_valid = self.config.signing_secret.as_ref().is_some_and(|secret| {
            let secret = sigv4::secret_of(secret.expose_secret(), &signed.key_id);
            signed.is_valid(&request, &secret, Timestamp::now())
        });
        if is_valid {
            return Ok(());
        }
        sleep(WRONG_KEY_DELAY).await;
        let detail = "The signature is not that of the key's secret over this request, or is older than 5 minutes.";
        Err(Problem::new(Kind::Unauthorized, detail))
    }

    async fn run(&self, request: &mut Request<'_>, key: &Key, head: &http::request::Parts) -> Result<Answer, Problem> {
        let now = Timestamp::now();
        match api::read(request)? {
            Call::Answer(answer) => Ok(answer),
            Call::View(id) => Ok(api::viewed(request, &self.records()?.view(&key.tenant, id, now).await?)),
            Call::Cancel(id) => {
                if let Some(event) = self.records()?.cancel(&key.tenant, id, now).await? {
                    self.tell(event).await;
                }
                Ok(api::cancelled(request, id))
            }
            Call::Postpone(id, until) => {
                self.records()?.postpone(&key.tenant, id, until, now).await?;
                Ok(api::postponed(request, id, until))
            }
            Call::Send(submission) => {
                if let Some(rate) = key.rate {
                    // One was taken before the body was read.
                    self.rates.charge(&key.id, rate, submission.jobs.len().saturating_sub(1), Instant::now());
                }
                let jobs = self.checked(submission, key, request, head).await?;
                let traceparent = request.headers.get("traceparent").and_then(|value| value.to_str().ok());
                let api = request.operation.api().as_str();
                let results = self.send(jobs, key, api, traceparent).await;
                let answer = api::sent(request, &results);
                // The problem of a single job is that of the request.
                Ok(match results.as_slice() {
                    [Err(problem)] => answer.for_problem(problem, &[]),
                    _ => answer,
                })
            }
        }
    }

    fn records(&self) -> Result<&Records, Problem> {
        let missing = "This gateway has no store that it shares with the workers, and knows nothing of jobs.";
        self.records.as_ref().ok_or_else(|| Problem::new(Kind::Unsupported, missing))
    }

    /// A cancellation holds whether its tenant hears of it or not.
    async fn tell(&self, event: Event) {
        let Some(events) = &self.events else { return };
        if let Err(error) = events(event).await {
            tracing::warn!(error, "A job was cancelled, and the event that says so could not be published");
        }
    }

    /// Checks all jobs, and that the idempotency key is used for this request alone. A request that has nothing to send uses up no key: it may be mended.
    async fn checked(
        &self,
        submission: Submission,
        key: &Key,
        request: &mut Request<'_>,
        head: &http::request::Parts,
    ) -> Result<Vec<Result<Job, Problem>>, Problem> {
        let text = request_key(&submission);
        let checked = check(submission, key, request.limits);
        let (Some(records), Some(text)) = (&self.records, text) else { return Ok(checked) };
        if checked.iter().all(Result::is_err) {
            return Ok(checked);
        }
        let fingerprint =
            idempotency::fingerprint(head.method.as_str(), head.uri.path(), request.headers, request.body);
        let first = records.remember_key(&key.tenant, &text, &fingerprint, request.now).await?;
        if first == request.now {
            return Ok(checked);
        }
        // In a repeat, times such as "in 1 hour" count from the first request.
        request.now = first;
        match api::read(request)? {
            Call::Send(again) => Ok(check(again, key, request.limits)),
            _ => Ok(checked),
        }
    }

    /// Publishes the good jobs, and waits for the queue's word on each.
    async fn send(
        &self,
        checked: Vec<Result<Job, Problem>>,
        key: &Key,
        api: &'static str,
        traceparent: Option<&str>,
    ) -> Results {
        let publishing = checked.into_iter().map(|job| async move {
            let job = job?;
            self.queue.publish(&job, traceparent).await?;
            Ok(job)
        });
        let published: Vec<Result<Job, Problem>> = stream::iter(publishing).buffered(IN_FLIGHT).collect().await;
        if let Some(records) = &self.records {
            records.remember_jobs(&key.tenant, published.iter().flatten(), Timestamp::now()).await;
        }
        let results: Results = published.into_iter().map(|job| job.map(|job| job.id())).collect();
        let count =
            |wanted: fn(&Result<_, Problem>) -> bool| results.iter().filter(|result| wanted(result)).count() as u64;
        let is_away = |result: &Result<_, Problem>| matches!(result, Err(problem) if problem.kind == Kind::Unavailable);
        let (queued, unavailable) = (count(Result::is_ok), count(is_away));
        self.metrics.jobs(api, "queued", queued);
        self.metrics.jobs(api, "unavailable", unavailable);
        self.metrics.jobs(api, "refused", results.len() as u64 - queued - unavailable);
        results
    }
}

/// The idempotency key of a request: its own, or that of its only job.
fn request_key(submission: &Submission) -> Option<String> {
    let of_job = || match submission.jobs.as_slice() {
        [Ok(draft)] => draft.job.idempotency_key.clone(),
        _ => None,
    };
    submission.key.clone().or_else(of_job)
}

/// Checks every job of a submission for a key. Where one bad job refuses all, it stands for all.
fn check(submission: Submission, key: &Key, limits: &JobLimits) -> Vec<Result<Job, Problem>> {
    let Submission { jobs, key: request_key, is_atomic } = submission;
    let is_single = jobs.len() == 1;
    let checked: Vec<Result<Job, Problem>> = jobs
        .into_iter()
        .enumerate()
        .map(|(position, draft)| {
            let job_key = request_key
                .as_ref()
                .map(|key| if is_single { key.clone() } else { idempotency::of_part(key, position) });
            check_job(draft?, key, job_key, limits)
        })
        .collect();
    match checked.iter().find_map(|job| job.as_ref().err()) {
        Some(problem) if is_atomic => checked.iter().map(|_| Err(problem.clone())).collect(),
        _ => checked,
    }
}

/// Makes a job of a draft: of the key's tenant, with an id that follows from its idempotency key, and within what the key may send.
fn check_job(draft: Draft, key: &Key, request_key: Option<String>, limits: &JobLimits) -> Result<Job, Problem> {
    let Draft { mut job, document } = draft;
    if job.tenant.as_deref().is_some_and(|tenant| tenant != key.tenant.as_str()) {
        return Err(Problem::field(Kind::Forbidden, "/tenant", "The API key belongs to another tenant."));
    }
    job.tenant = Some(key.tenant.as_str().to_owned());
    // A job's own key is the narrower one: that of a batch is for those without.
    job.idempotency_key = job.idempotency_key.or(request_key);
    if job.id.is_none() {
        job.id = job.idempotency_key.as_deref().map(|text| idempotency::job_id(&key.tenant, text));
    }
    key.check_lane(job.lane)?;
    let job =
        job.parse(limits).map_err(|error| Problem::of_job(&error, document.as_deref().unwrap_or_default(), limits))?;
    // A whole message has an envelope of its own; bounces go to its sender, who must be the key's as well.
    for address in [Some(job.from().address()), job.sender()].into_iter().flatten() {
        key.check_sender(address.domain().as_str())?;
    }
    Ok(job)
}

/// The signature of a request in the form of AWS.
fn signature(api: Api, head: &http::request::Parts) -> Option<Signed> {
    let authorization = || head.headers.get(AUTHORIZATION)?.to_str().ok();
    matches!(api, Api::Ses | Api::SesQuery).then(|| sigv4::read(authorization()?)).flatten()
}

/// `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers), and the older names that clients of vendors read.
fn with_rate(answer: Answer, standing: Option<Standing>) -> Answer {
    let Some(standing) = standing else { return answer };
    let Standing { limit, remaining, reset, .. } = standing;
    let name = HeaderName::from_static;
    // SendGrid's clients wait until a time, those of others for a time.
    let at = Timestamp::now().as_second().saturating_add_unsigned(reset);
    answer
        .with(name("ratelimit-policy"), &format!("\"key\";q={limit};w=1"))
        .with(name("ratelimit"), &format!("\"key\";r={remaining};t={reset}"))
        .with(name("ratelimit-limit"), &limit.to_string())
        .with(name("ratelimit-remaining"), &remaining.to_string())
        .with(name("ratelimit-reset"), &reset.to_string())
        .with(name("x-ratelimit-limit"), &limit.to_string())
        .with(name("x-ratelimit-remaining"), &remaining.to_string())
        .with(name("x-ratelimit-reset"), &at.to_string())
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    response.headers_mut().extend(answer.headers);
    response
}

/// Shared by all connections.
pub type Shared = Arc<Gateway>;

#[cfg(test)]
#[path = "handle_tests.rs"]
pub(crate) mod tests;
