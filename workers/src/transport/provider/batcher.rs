//! Makes calls that several jobs share. A job waits a moment for others, and with them for a place among the calls under way; right before the call
//! each is asked for its permission, in its own task, which looks at its token and its time first and may leave the call; then the call is made in a
//! task of its own, so that a job which goes away disturbs nobody.
//!
//! Which jobs go together, and what an answer means, is decided in [`postrider_providers::batch`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use postrider_providers::{
    batch::{self, Added, BatchGroups, BatchStep, Batched, CallLimits, Item},
    description::Batching,
    message::CallRecipient,
    reply::{ProviderReply, ReplyVerdict},
    request::Request,
};
use postrider_schemas::Lane;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{Provider, client::Lost, outcome, without_answer};
use crate::{
    message::outgoing::OutgoingMessage,
    policy::{
        capabilities::Capabilities,
        outcome::{Answer, Class, Outcome, Refusal, Stage},
    },
    telemetry::traces,
};

/// A call that may have been taken is repeated after these waits, where the provider recognises it.
const REPEAT_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_secs(1)];
/// Longest wait for the permission of one job, which may have to ask for a token first.
const PERMISSION_MAX: Duration = Duration::from_secs(10);

/// Brings jobs for one provider together.
#[derive(Clone)]
pub struct Batcher(Arc<BatcherInner>);

struct BatcherInner {
    provider: Arc<Provider>,
    linger: Duration,
    shares_content: bool,
    may_repeat: bool,
    groups: Mutex<BatchGroups<WaitingJob>>,
}

/// A job's right to be in a call that is about to be made. The call waits for what it says, for a while; dropped, the job leaves the call.
pub struct BatchTicket {
    permit: oneshot::Sender<()>,
    told: oneshot::Receiver<CallProgress>,
    /// The call itself is made in a task of its own, for several jobs at once: its trace and those of the jobs point at each other.
    step: traces::TraceStep,
}

/// A job that waits for its call. Its task listens at the other end of both channels.
struct WaitingJob {
    /// Asks for permission; the answer is the unit, or nothing.
    ask: oneshot::Sender<oneshot::Sender<()>>,
    member: BatchMember,
}

/// A job that may be in a call.
struct BatchMember {
    item: Item,
    recipients: Vec<CallRecipient>,
    tell: oneshot::Sender<CallProgress>,
    /// How the wait for the call is known in the job's trace, and the calls that it was part of.
    context: Option<traces::SpanHandle>,
    calls: Vec<traces::SpanHandle>,
}

/// What a job hears of its calls.
struct CallProgress {
    outcome: Outcome,
    calls: Vec<traces::SpanHandle>,
}

impl Batcher {
    /// For a provider whose calls can be shared.
    pub fn new(provider: Arc<Provider>, batching: Batching, capabilities: &Capabilities, linger: Duration) -> Self {
        let limits = CallLimits { jobs_max: capabilities.batch_max, bytes_max: batching.bytes_max };
        Self(Arc::new(BatcherInner {
            linger,
            shares_content: batching.shares_content,
            may_repeat: capabilities.idempotency.is_some(),
            groups: Mutex::new(BatchGroups::new(limits)),
            provider,
        }))
    }

    /// The letter's part of a shared call; nothing where it has to go alone. The transactional lane never waits for company.
    pub fn item(&self, outgoing: &OutgoingMessage<'_>) -> Option<Item> {
        let is_bulk = outgoing.job.lane() == Lane::Bulk;
        let does_fit = !self.0.shares_content || outgoing.indices.len() == 1;
        if is_bulk && does_fit && !outgoing.is_repeated() { self.0.provider.item(outgoing) } else { None }
    }

    /// So long a job waits for others on purpose.
    pub fn linger(&self) -> Duration {
        self.0.linger
    }

    /// Brings the item of this message together with others, and waits with them until their call is about to be made.
    pub async fn join(&self, outgoing: &OutgoingMessage<'_>, item: Item) -> Result<BatchTicket, Outcome> {
        let step = traces::step("shared call");
        let (ask, asked) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let address = match outgoing.recipients().as_slice() {
            [one] if self.0.shares_content => Some(one.to_string().to_lowercase()),
            _ => None,
        };
        self.0.clone().add(
            address,
            WaitingJob {
                ask,
                member: BatchMember {
                    item,
                    recipients: outgoing.view().call_recipients(),
                    tell,
                    context: step.context(),
                    calls: Vec::new(),
                },
            },
        );
        match asked.await {
            Ok(permit) => Ok(BatchTicket { permit, told, step }),
            Err(_) => Err(told
                .await
                .map_or_else(|_| left_out("the call was given up before it was made"), |told| heard(told, &step))),
        }
    }
}

impl BatchTicket {
    /// Delivers the item together with the others, at most once. `may_submit` is asked right before the call.
    pub async fn deliver<F>(self, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let Self { permit, told, step } = self;
        if !may_submit.await {
            return Outcome::LostClaim;
        }
        if permit.send(()).is_err() {
            return left_out(TOO_LATE);
        }
        told.await.map_or_else(
            |_| Outcome::Unknown(Answer::local(Stage::Call, "the call was given up")),
            |told| heard(told, &step),
        )
    }
}

/// What became of a job, with its calls in its trace.
fn heard(told: CallProgress, step: &traces::TraceStep) -> Outcome {
    told.calls.into_iter().for_each(|call| step.link(call));
    told.outcome
}

const TOO_LATE: &str = "the shared call could not wait for the permission of this job";

/// A job that certainly was in no call.
fn left_out(text: &str) -> Outcome {
    let answer = Answer::local(Stage::Connect, text);
    Outcome::Refused { refusal: Refusal { class: Class::Transient, answer, retry_after: None }, recipients: Vec::new() }
}

impl BatcherInner {
    /// Adds a job to the next call for its content.
    fn add(self: Arc<Self>, address: Option<String>, waiting: WaitingJob) {
        let (shared, bytes) = (waiting.member.item.shared.clone(), waiting.member.item.bytes());
        let Added { ready, opened } = self.lock().add(&shared, bytes, address, waiting);
        for members in ready {
            tokio::spawn(self.clone().serve(members));
        }
        if let Some(number) = opened {
            tokio::spawn(async move {
                sleep(self.linger).await;
                let members = self.lock().close(&shared, number);
                if let Some(members) = members {
                    self.serve(members).await;
                }
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BatchGroups<WaitingJob>> {
        // Nothing in between can leave the groups half changed.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the members of a call to an outcome for each.
    async fn serve(self: Arc<Self>, waiting: Vec<WaitingJob>) {
        // Only bulk mail shares calls.
        let place = match self.provider.client.acquire(Lane::Bulk).await {
            Ok(place) => place,
            Err(lost) => {
                let outcome = without_answer(lost).of_all();
                // Told before the question is dropped: see `join`.
                return waiting.into_iter().for_each(|one| tell(one.member, outcome.clone()));
            }
        };
        // Those who are called away meanwhile are left out below.
        self.provider.gate().await;
        // The next part is at the end.
        let mut parts = vec![permitted(waiting).await];
        while let Some(part) = parts.pop() {
            let (first, second) = self.call(part).await;
            parts.extend([second, first].into_iter().filter(|half| !half.is_empty()));
        }
        drop(place);
    }

    async fn send(&self, request: Request) -> Result<ProviderReply, Lost> {
        let sent = self.provider.client.send(request).await;
        if matches!(sent, Err(Lost::After(_))) {
            // The attempts of all its jobs are told, and point at this.
            traces::worth_telling();
        }
        sent
    }

    /// One call for these members, repeated where that is safe and needed. What comes back is to be tried in halves.
    async fn call(&self, mut members: Vec<BatchMember>) -> (Vec<BatchMember>, Vec<BatchMember>) {
        // Nothing of theirs is under way, and nobody would hear how it ended.
        members.retain(|one| !one.tell.is_closed());
        let mut repeat_after = if self.may_repeat { REPEAT_AFTER.as_slice() } else { &[] };
        let mut in_doubt = false;
        loop {
            if members.is_empty() {
                return Default::default();
            }
            let items: Vec<&Item> = members.iter().map(|one| &one.item).collect();
            let Some(request) = self.provider.batch_request(&items) else {
                tell_all(members, left_out("the provider takes no shared calls"));
                return Default::default();
            };
            let jobs: Vec<traces::SpanHandle> = members.iter().filter_map(|one| one.context.clone()).collect();
            let (sent, call) = traces::shared(jobs, self.send(request)).await;
            if let Some(call) = call {
                members.iter_mut().for_each(|one| one.calls.push(call.clone()));
            }
            let (status, answer) = match sent {
                Ok(reply) => {
                    self.provider.note_window(&reply);
                    (Some(reply.status), self.provider.batch_verdict(&reply, Timestamp::now()))
                }
                Err(Lost::After(text)) => (None, Batched::Whole(ReplyVerdict::Unclear(text))),
                Err(Lost::Before { text, .. }) if in_doubt => (None, Batched::Whole(ReplyVerdict::Unclear(text))),
                Err(lost) => {
                    tell_all(members, without_answer(lost));
                    return Default::default();
                }
            };
            match batch::step(answer, members.len(), in_doubt, !repeat_after.is_empty()) {
                BatchStep::Each(list) => {
                    for (member, verdict) in members.into_iter().zip(list) {
                        let outcome = outcome(status, verdict, &member.recipients);
                        tell(member, outcome);
                    }
                    return Default::default();
                }
                BatchStep::All(verdict) => {
                    // One that was refused alone may be refused for one of its recipients.
                    let recipients = match members.as_slice() {
                        [one] => one.recipients.clone(),
                        _ => Vec::new(),
                    };
                    tell_all(members, outcome(status, verdict, &recipients));
                    return Default::default();
                }
                BatchStep::Halve => {
                    let second = members.split_off(members.len() / 2);
                    return (members, second);
                }
                BatchStep::Repeat => {
                    in_doubt = true;
                    if let Some((wait, rest)) = repeat_after.split_first() {
                        sleep(*wait).await;
                        repeat_after = rest;
                    }
                }
            }
        }
    }
}

/// Those whose tasks give their permission, asked all at once.
async fn permitted(waiting: Vec<WaitingJob>) -> Vec<BatchMember> {
    let asked = waiting.into_iter().map(|WaitingJob { ask, member }| async move {
        let (permit, permitted) = oneshot::channel();
        if ask.send(permit).is_ok() && matches!(timeout(PERMISSION_MAX, permitted).await, Ok(Ok(()))) {
            return Some(member);
        }
        // Heard only by a task that gave its permission too late.
        tell(member, left_out(TOO_LATE));
        None
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// An answer about the call is one, however many hear it.
fn tell_all(members: Vec<BatchMember>, outcome: Outcome) {
    let outcome = outcome.of_all();
    for member in members {
        tell(member, outcome.clone());
    }
}

/// A task that went away has left its job in the ledger as it was.
fn tell(member: BatchMember, outcome: Outcome) {
    let _ = member.tell.send(CallProgress { outcome, calls: member.calls });
}
