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
    message::CallRecipient,
    named, rate_limit_headers,
    reply::{Basis, ProviderReply, ReplyVerdict},
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
    policy::{
        answers::Answers,
        outcome::{Answer, Class, Mark, Outcome, Receipt, RecipientRefusal, Refusal, Stage},
    },
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
    answers: Arc<Answers>,
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
            answers: Arc::clone(&config.answers),
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
            Err(unfit) => return cannot_carry(&unfit),
        };
        self.gate().await;
        if !may_submit.await {
            return Outcome::LostClaim;
        }
        let outcome = match self.client.send(request).await {
            Ok(reply) => {
                self.note_window(&reply);
                self.learn(&reply, keys.as_ref()).await;
                let verdict = self.account.verdict(&reply, Timestamp::now()).since(outgoing.is_repeated());
                let verdict = verdict.read_by(&self.answers, reply.status);
                outcome(Some(reply.status), verdict, &outgoing.view().call_recipients())
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
        let read = |verdict: ReplyVerdict| verdict.since(false).read_by(&self.answers, reply.status);
        match self.account.batch_verdict(reply, now) {
            Batched::Whole(verdict) => Batched::Whole(read(verdict)),
            Batched::Each(list) => Batched::Each(list.into_iter().map(read).collect()),
        }
    }
}

/// A job that the provider cannot carry. Nothing was sent.
fn cannot_carry(unfit: &Unsupported) -> Outcome {
    let class = if matches!(unfit, Unsupported::Compose(_)) { Class::Message } else { Class::Unsupported };
    let refusal = Refusal { class, answer: Answer::local(Stage::Compose, &unfit.to_string()), retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

/// What a verdict means for the attempt at these recipients.
fn outcome(status: Option<u16>, verdict: ReplyVerdict, all: &[CallRecipient]) -> Outcome {
    let answer = |text: &str| Answer::new(Stage::Call, status, None, text);
    let rejected = |index, text: &str| RecipientRefusal {
        index,
        refusal: Refusal { class: Class::Recipient, answer: answer(text), retry_after: None },
    };
    match verdict {
        ReplyVerdict::Taken(id) => Outcome::Accepted { receipt: Receipt { answer: answer(&id) }, refused: Vec::new() },
        ReplyVerdict::TakenInPart { id, text } => {
            let named = named::named(&text, all);
            if named.is_empty() || named.len() == all.len() {
                return Outcome::Unknown(answer(&format!(
                    "taken for some recipients, without a word for whom: {text}"
                )));
            }
            let refused = named.into_iter().map(|index| rejected(index, &text)).collect();
            Outcome::Accepted { receipt: Receipt { answer: answer(&id) }, refused }
        }
        ReplyVerdict::Refused { class: Class::Recipient, text, retry_after, basis } => {
            let named = named::named(&text, all);
            if named.is_empty() || named.len() == all.len() {
                // Somebody is at fault, and nobody knows who: another transport may tell.
                let is_somebody = named.is_empty() && all.len() > 1 && basis == Basis::SomeRecipients;
                let class = if is_somebody { Class::Unsupported } else { Class::Recipient };
                let refusal = Refusal { class, answer: answer(&text), retry_after };
                return Outcome::Refused { refusal, recipients: Vec::new() };
            }
            let others = all.iter().map(|one| one.index).filter(|index| !named.contains(index)).map(not_asked);
            let mut recipients: Vec<_> = others.chain(named.iter().map(|index| rejected(*index, &text))).collect();
            recipients.sort_by_key(|one| one.index);
            let refusal = Refusal { class: Class::Transient, answer: answer(&text), retry_after: None };
            Outcome::Refused { refusal, recipients }
        }
        ReplyVerdict::Refused { class, text, retry_after, basis } => {
            let mark = if basis == Basis::Status { Mark::Unexplained } else { Mark::Plain };
            let refusal = Refusal { class, answer: answer(&text).marked(mark), retry_after };
            Outcome::Refused { refusal, recipients: Vec::new() }
        }
        ReplyVerdict::Duplicate(text) | ReplyVerdict::Unclear(text) => Outcome::Unknown(answer(&text)),
        ReplyVerdict::NotTheApi(text) => Outcome::Unknown(answer(&text).marked(Mark::NotTheApi)),
    }
}

/// A recipient that is served by the next call, without the one that was refused.
fn not_asked(index: usize) -> RecipientRefusal {
    let answer = Answer::local(Stage::Call, "left for the next call").marked(Mark::NotAsked);
    RecipientRefusal { index, refusal: Refusal { class: Class::Transient, answer, retry_after: None } }
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

#[cfg(test)]
mod tests {
    use postrider_schemas::job::RecipientField;

    use super::*;

    fn all() -> Vec<CallRecipient> {
        let one = |index: usize, address: &str| CallRecipient {
            index,
            field: RecipientField::To,
            position: index,
            address: address.to_owned(),
        };
        vec![one(0, "ada@dest.example"), one(1, "bob@dest.example"), one(2, "cid@dest.example")]
    }

    fn shown(recipients: &[RecipientRefusal]) -> Vec<(usize, Class, Mark)> {
        recipients.iter().map(|one| (one.index, one.refusal.class, one.refusal.answer.mark)).collect()
    }

    #[test]
    fn a_recipient_that_is_named_is_rejected_alone_and_the_others_are_called_for_at_once() {
        let verdict = ReplyVerdict::some_recipients("Illegal email address 'bob@dest.example'");
        let Outcome::Refused { recipients, .. } = outcome(Some(422), verdict, &all()) else { panic!("not refused") };
        let later = |index| (index, Class::Transient, Mark::NotAsked);
        assert_eq!(shown(&recipients), [later(0), (1, Class::Recipient, Mark::Plain), later(2)]);
    }

    #[test]
    fn a_recipient_that_nobody_names_rejects_nobody() {
        let class = |count: usize| {
            let verdict = ReplyVerdict::some_recipients("one of the addresses is wrong");
            match outcome(Some(422), verdict, &all()[..count]) {
                Outcome::Refused { refusal, recipients } if recipients.is_empty() => refusal.class,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((class(1), class(3)), (Class::Recipient, Class::Unsupported));
    }

    #[test]
    fn a_message_that_is_taken_in_part_is_not_taken_for_those_who_are_named() {
        let verdict = |text: &str| ReplyVerdict::TakenInPart { id: "b7".to_owned(), text: text.to_owned() };
        let text = "Message OK, but will not deliver to these inactive addresses: bob@dest.example.";
        let Outcome::Accepted { refused, .. } = outcome(Some(200), verdict(text), &all()) else { panic!("not taken") };
        assert_eq!(shown(&refused), [(1, Class::Recipient, Mark::Plain)]);
        let unnamed = outcome(Some(200), verdict("but for 1 recipient"), &all());
        assert!(matches!(unnamed, Outcome::Unknown(_)), "{unnamed:?}");
    }

    #[test]
    fn words_that_nobody_knows_are_marked_and_a_page_too() {
        let mark = |verdict| match outcome(Some(400), verdict, &all()) {
            Outcome::Refused { refusal, .. } => (refusal.class.as_str(), refusal.answer.mark),
            Outcome::Unknown(answer) => ("unknown", answer.mark),
            other => panic!("{other:?}"),
        };
        assert_eq!(mark(ReplyVerdict::undocumented("pink")), ("unsupported", Mark::Unexplained));
        assert_eq!(mark(ReplyVerdict::refused(Class::Quota, "used up")), ("quota", Mark::Plain));
        assert_eq!(mark(ReplyVerdict::NotTheApi("a page".to_owned())), ("unknown", Mark::NotTheApi));
    }
}
