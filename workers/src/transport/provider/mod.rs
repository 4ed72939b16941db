//! Delivery by a provider's Web API. What a request says and what an answer means is in [`postrider_providers`], pure; the client here does the sending.
//!
//! What follows from an outcome is not decided here.

pub mod batcher;
pub mod client;
pub mod credentials;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use postrider_providers::{
    Account,
    batch::{Batched, Item},
    description::{Batching, Call},
    rate_limit_headers,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
    ses,
    sigv4::Keys,
    unsupported::Unsupported,
};
use postrider_schemas::Lane;
use tokio::time::{Instant, sleep_until};

use self::{
    client::{Client, ClientError, Lost},
    credentials::Credentials,
};
use crate::{
    concurrency::priority_semaphore::PriorityPermit,
    config::ProviderConfig,
    message::outgoing::OutgoingMessage,
    policy::outcome::{Answer, Class, Outcome, Receipt, Refusal, Stage},
    telemetry::traces,
};

/// The right to make one call, with the keys to sign it where the account signs.
pub struct CallPermit<'a> {
    permit: PriorityPermit<'a>,
    keys: Option<Keys>,
}

/// One account at a provider.
pub struct Provider {
    account: Arc<Account>,
    client: Client,
    /// `Host` as the client sends it, for requests that are signed with it.
    host: Arc<str>,
    /// Of accounts whose keys may change while we run.
    credentials: Option<Credentials>,
    heeds_headers: bool,
    used_up: Mutex<ExhaustedQuota>,
}

/// What answers said of a window that is used up.
#[derive(Default)]
struct ExhaustedQuota {
    /// When the next one begins, until somebody asked.
    until: Option<Instant>,
    /// No call goes out before this: whoever can make others wait has heard of it by then.
    gate: Option<Instant>,
}

/// The longest time that calls are kept back here after a window was used up.
const GATE_MAX: Duration = Duration::from_secs(2);

impl Provider {
    /// Sets the client up; connects to nothing.
    pub fn new(config: &ProviderConfig) -> Result<Self, ClientError> {
        let credentials = match &config.account {
            Account::Ses(account) => Some(Credentials::new(&account.credentials, &config.http)?),
            _ => None,
        };
        Ok(Self {
            account: Arc::new(config.account.clone()),
            client: Client::new(&config.http, &config.base_url)?,
            host: client::host(&config.base_url).into(),
            credentials,
            heeds_headers: config.rate_headers,
            used_up: Mutex::default(),
        })
    }

    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        self.client.address()
    }

    /// Calls under way, and how many there may be.
    pub fn calls(&self) -> (usize, usize) {
        (self.client.calls(), self.client.calls_max())
    }

    /// When the certificate ends that the API showed last.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.client.certificate_end()
    }

    /// Whether whoever comes now waits for a call to end.
    pub fn is_saturated(&self) -> bool {
        self.client.is_saturated()
    }

    /// Waits for the keys that a call needs, and in the line of this lane for a place among the calls under way.
    pub async fn acquire(&self, lane: Lane) -> Result<CallPermit<'_>, Outcome> {
        let refused = |refusal| Outcome::Refused { refusal, recipients: Vec::new() };
        let keys = self.keys().await.map_err(refused)?;
        let permit = self.client.acquire(lane).await.map_err(without_answer)?;
        Ok(CallPermit { permit, keys })
    }

    /// Waits for a place and delivers: see [`Provider::deliver_with`].
    pub async fn deliver<F>(&self, outgoing: &OutgoingMessage<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        match self.acquire(outgoing.job.lane()).await {
            Ok(place) => self.deliver_with(place, outgoing, may_submit).await,
            Err(outcome) => outcome,
        }
    }

    /// Delivers one message, at most once. `may_submit` is asked right before the request goes out; `false` ends in [`Outcome::LostClaim`].
    pub async fn deliver_with<F>(&self, place: CallPermit<'_>, outgoing: &OutgoingMessage<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let CallPermit { permit, keys } = place;
        let composing = traces::step("compose");
        let (account, host, signing) = (Arc::clone(&self.account), Arc::clone(&self.host), keys.clone());
        let now = Timestamp::now();
        let make = move |outgoing: &OutgoingMessage<'_>| {
            account.api().request(&outgoing.view(), Call { host: &host, keys: signing.as_ref(), now })
        };
        let request = outgoing.aside(make).await;
        drop(composing);
        let request = match request {
            Ok(request) => request,
            Err(unfit) => return misfit(&unfit),
        };
        self.gate().await;
        if !may_submit.await {
            return Outcome::LostClaim;
        }
        let outcome = match self.client.send(request).await {
            Ok(reply) => {
                self.note_window(&reply);
                self.learn(&reply, keys.as_ref()).await;
                outcome(Some(reply.status), self.account.verdict(&reply, Timestamp::now()))
            }
            Err(lost) => without_answer(lost),
        };
        drop(permit);
        outcome
    }

    /// When the provider's next window begins, where an answer said that nothing is left of this one. Said once.
    pub fn used_up_until(&self) -> Option<Instant> {
        self.window().until.take().filter(|until| *until > Instant::now())
    }

    /// Keeps in mind what an answer says of its window. To be called before the call gives its place to the next one.
    fn note_window(&self, reply: &ProviderReply) {
        if self.heeds_headers
            && let Some(wait) = rate_limit_headers::used_up(reply, Timestamp::now())
        {
            let now = Instant::now();
            let mut used_up = self.window();
            used_up.until = used_up.until.max(Some(now + wait));
            used_up.gate = Some(now + wait.min(GATE_MAX));
        }
    }

    /// Waits while a window was used up a moment ago. Who waits for longer is called away meanwhile.
    async fn gate(&self) {
        let gate = self.window().gate;
        if let Some(gate) = gate {
            sleep_until(gate).await;
        }
    }

    fn window(&self) -> std::sync::MutexGuard<'_, ExhaustedQuota> {
        // Two times: they cannot be half changed.
        self.used_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys to sign with, for accounts that sign.
    async fn keys(&self) -> Result<Option<Keys>, Refusal> {
        match &self.credentials {
            Some(credentials) => credentials.keys().await.map(Some),
            None => Ok(None),
        }
    }

    /// Forgets keys that the answer says have ended.
    async fn learn(&self, reply: &ProviderReply, keys: Option<&Keys>) {
        if let (Some(credentials), Some(keys)) = (&self.credentials, keys)
            && ses::keys_ended(reply)
        {
            credentials.forget(keys).await;
        }
    }

    /// The message's part of a call with others; nothing where it has to go alone, or where it does not fit at all.
    fn item(&self, outgoing: &OutgoingMessage<'_>) -> Option<Item> {
        self.account.api().item(&outgoing.view()).ok()
    }

    /// The request for several messages; nothing where calls cannot be shared.
    pub fn batch_request(&self, items: &[&Item]) -> Option<Request> {
        self.account.api().batch_request(items)
    }

    /// How calls are shared; nothing where they cannot be.
    pub fn batching(&self) -> Option<Batching> {
        self.account.description().batching
    }

    fn batch_verdict(&self, reply: &ProviderReply, now: Timestamp) -> Batched {
        self.account.batch_verdict(reply, now)
    }
}

/// A job that the provider cannot carry. Nothing was sent.
fn misfit(unfit: &Unsupported) -> Outcome {
    let class = if matches!(unfit, Unsupported::Compose(_)) { Class::Message } else { Class::Unsupported };
    let refusal = Refusal { class, answer: Answer::local(Stage::Compose, &unfit.to_string()), retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

/// What a verdict means for the attempt.
fn outcome(status: Option<u16>, verdict: ReplyVerdict) -> Outcome {
    let answer = |text: &str| Answer::new(Stage::Call, status, None, text);
    match verdict {
        ReplyVerdict::Taken(id) => Outcome::Accepted { receipt: Receipt { answer: answer(&id) }, refused: Vec::new() },
        ReplyVerdict::Refused { class, text, retry_after } => {
            Outcome::Refused { refusal: Refusal { class, answer: answer(&text), retry_after }, recipients: Vec::new() }
        }
        ReplyVerdict::Unclear(text) => Outcome::Unknown(answer(&text)),
    }
}

/// What a call without an answer means for the attempt.
fn without_answer(lost: Lost) -> Outcome {
    match lost {
        Lost::Before { class, stage, text } => {
            let refusal = Refusal { class, answer: Answer::local(stage, &text), retry_after: None };
            Outcome::Refused { refusal, recipients: Vec::new() }
        }
        Lost::After(text) => Outcome::Unknown(Answer::local(Stage::Call, &text)),
    }
}
