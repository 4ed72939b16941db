//! One request, from its head to the answer.

use std::{net::IpAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderName, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use jiff::Timestamp;
use postrider_schemas::{Job, JobId, JobLimits};
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
};

/// Jobs of one request that wait for their confirm at once.
const IN_FLIGHT: usize = 256;
/// Whoever shows a wrong key waits so long for the answer.
pub(crate) const WRONG_KEY_DELAY: Duration = Duration::from_millis(300);

/// What every request needs.
pub struct Gateway {
    /// The settings.
    pub config: GatewayConfig,
    /// The API keys, replaced when their file changes.
    pub keys: ArcSwap<Keys>,
    /// Where jobs go.
    pub queue: Queue,
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
        Self { config, keys: ArcSwap::from_pointee(keys), queue, metrics, memory, rates: Rates::default(), stop }
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
            "A request was answered"
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
        let (key, standing) = match self.admit(operation, head, peer).await {
            Ok(admitted) => admitted,
            Err((problem, standing)) => {
                body::discard(body).await;
                return with_rate(api::refuse(api, &problem).for_problem(&problem, &[]), standing);
            }
        };
        let limits = body::Limits { bytes: self.config.body_max, time: self.config.read_timeout };
        let answered = match body::read(&head.headers, body, limits, &self.memory).await {
            Ok((body, _held)) => {
                let request = Request {
                    operation,
                    parameters,
                    query: head.uri.query().unwrap_or_default(),
                    headers: &head.headers,
                    body: &body,
                    now: Timestamp::now(),
                    limits: &self.config.job,
                };
                self.run(&request, &key).await
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
        peer: IpAddr,
    ) -> Result<(Key, Option<Standing>), (Problem, Option<Standing>)> {
        let Some(text) = api::credentials(operation.api(), &head.headers) else {
            return Err((Problem::new(Kind::KeyMissing, "The request bears no API key."), None));
        };
        let found = self.keys.load().authenticate(&text, Timestamp::now()).cloned();
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
        match self.take_turn(&key) {
            Ok(standing) => Ok((key, standing)),
            Err((problem, standing)) => Err((problem, Some(standing))),
        }
    }

    /// Asks whether a key may send one more job now.
    fn take_turn(&self, key: &Key) -> Result<Option<Standing>, (Problem, Standing)> {
        let standing = key.rate.map(|rate| self.rates.take(&key.id, rate, Instant::now()));
        match standing {
            Some(standing) if !standing.is_allowed => {
                let detail = format!("The API key may send {} jobs a second.", standing.limit);
                Err((Problem::new(Kind::RateLimited, detail).retry_after(standing.reset), standing))
            }
            standing => Ok(standing),
        }
    }

    /// Takes one job that came by SMTP.
    pub async fn submit(&self, draft: Draft, key: &Key, job_key: Option<String>) -> Result<JobId, Problem> {
        self.take_turn(key).map_err(|(problem, _)| problem)?;
        let submission = Submission { jobs: vec![Ok(draft)], key: job_key, is_atomic: false };
        let result = self.send(submission, key, "smtp", None).await.pop();
        result.unwrap_or_else(|| Err(Problem::new(Kind::Unavailable, "The message was not handed over.")))
    }

    async fn run(&self, request: &Request<'_>, key: &Key) -> Result<Answer, Problem> {
        match api::read(request)? {
            Call::Answer(answer) => Ok(answer),
            Call::Send(submission) => {
                let traceparent = request.headers.get("traceparent").and_then(|value| value.to_str().ok());
                let api = request.operation.api().as_str();
                let results = self.send(submission, key, api, traceparent).await;
                let answer = api::sent(request, &results);
                // The problem of a single job is that of the request.
                Ok(match results.as_slice() {
                    [Err(problem)] => answer.for_problem(problem, &[]),
                    _ => answer,
                })
            }
        }
    }

    /// Checks all jobs, publishes the good ones, and waits for the queue's word on each.
    async fn send(&self, submission: Submission, key: &Key, api: &'static str, traceparent: Option<&str>) -> Results {
        if let Some(rate) = key.rate {
            // One was taken before the body was read.
            self.rates.charge(&key.id, rate, submission.jobs.len().saturating_sub(1), Instant::now());
        }
        let checked = check(submission, key, &self.config.job);
        let publishing = checked.into_iter().map(|job| async move {
            let job = job?;
            self.queue.publish(&job, traceparent).await?;
            Ok(job.id())
        });
        let results: Results = stream::iter(publishing).buffered(IN_FLIGHT).collect().await;
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
