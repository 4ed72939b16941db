//! Delivery by a provider's Web API. A provider is one file: it builds the request and reads the answer, both pure. The client they share does the sending.
//!
//! What follows from an outcome is not decided here.

pub mod batch;
pub mod client;
pub mod encoding;
pub mod reply;
pub mod unfit;

pub mod sendgrid;

use jiff::Timestamp;

use self::{
    client::{Client, ClientError, Lost, Request},
    reply::{Reply, Verdict},
    unfit::Unfit,
};
use crate::{
    compose::letter::Letter,
    config::{Account, ProviderConfig},
    outcome::{Answer, Class, Outcome, Receipt, Refusal, Stage},
};

/// One account at a provider.
pub struct Provider {
    account: Account,
    client: Client,
}

impl Provider {
    /// Sets the client up; connects to nothing.
    pub fn new(config: &ProviderConfig) -> Result<Self, ClientError> {
        Ok(Self { account: config.account.clone(), client: Client::new(&config.http, &config.base_url)? })
    }

    /// Delivers one message, at most once. `may_submit` is asked right before the request goes out; `false` ends in [`Outcome::LostClaim`].
    pub async fn deliver<F>(&self, letter: &Letter<'_>, may_submit: F) -> Outcome
    where
        F: Future<Output = bool>,
    {
        let request = match self.request(letter) {
            Ok(request) => request,
            Err(unfit) => return misfit(&unfit),
        };
        let place = match self.client.place().await {
            Ok(place) => place,
            Err(lost) => return without_answer(lost),
        };
        if !may_submit.await {
            return Outcome::LostClaim;
        }
        let outcome = match self.client.send(request).await {
            Ok(reply) => outcome(reply.status, self.verdict(&reply, Timestamp::now())),
            Err(lost) => without_answer(lost),
        };
        drop(place);
        outcome
    }

    /// The request for one message.
    pub fn request(&self, letter: &Letter<'_>) -> Result<Request, Unfit> {
        match &self.account {
            Account::Sendgrid { api_key } => sendgrid::request(api_key, letter),
            _ => Err(Unfit::Value("anything yet".to_owned())),
        }
    }

    fn verdict(&self, reply: &Reply, now: Timestamp) -> Verdict {
        match &self.account {
            Account::Sendgrid { .. } => sendgrid::verdict(reply, now),
            _ => Verdict::Unclear(String::new()),
        }
    }
}

/// A job that the provider cannot carry. Nothing was sent.
fn misfit(unfit: &Unfit) -> Outcome {
    let class = if matches!(unfit, Unfit::Compose(_)) { Class::Message } else { Class::Misfit };
    let refusal = Refusal { class, answer: Answer::local(Stage::Compose, &unfit.to_string()), retry_after: None };
    Outcome::Refused { refusal, recipients: Vec::new() }
}

/// What a verdict means for the attempt.
fn outcome(status: u16, verdict: Verdict) -> Outcome {
    let answer = |text: &str| Answer::new(Stage::Call, Some(status), None, text);
    match verdict {
        Verdict::Taken(id) => Outcome::Accepted { receipt: Receipt { answer: answer(&id) }, refused: Vec::new() },
        Verdict::Refused { class, text, retry_after } => {
            Outcome::Refused { refusal: Refusal { class, answer: answer(&text), retry_after }, recipients: Vec::new() }
        }
        Verdict::Unclear(text) => Outcome::Unknown(answer(&text)),
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
