//! From the outcome of an attempt to what follows: the settlement of the delivery, the ledger's verdict, the events.

use std::time::Duration;

use jiff::Timestamp;
use postrider_schemas::{
    Job, Meta,
    event::{Event, EventRecipient, EventType, PassedOver},
    meta::{Pin, Rest},
};
use serde::{Deserialize, Serialize};

use super::{
    fingerprint::is_same,
    retry::RetrySchedule,
    route::{OnLimit, OnUnknown, Route, RoutePart},
};
use crate::outcome::{Answer, Class, Mark, Outcome, RecipientRefusal, Refusal};

/// How often a transport may ask for patience before its refusals count as tries: a job must come to an end.
const PATIENCE_MAX: u32 = 50;
/// So often a job that may have been sent is sent again where its route says so; then a person decides.
const RESENDS_MAX: u32 = 1;

/// What follows an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// How the job goes on, or ends.
    pub next: Disposition,
    /// What the sender is told, in this order.
    pub events: Vec<Event>,
}

/// How a job goes on. It is written into the ledger before the copy it asks for is published, so that whoever finds the message
/// again after a crash carries on instead of trying again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "next")]
pub enum Disposition {
    /// Sent to everybody who could be served.
    Sent,
    /// Refused for good; nothing to keep.
    Rejected,
    /// Past its time.
    Expired,
    /// Another try after this wait. No time: whoever carries this out has another clock.
    Again {
        /// How long.
        wait: Duration,
        /// Recipients still to be served, by envelope index; all where absent.
        pending: Option<Vec<u8>>,
        /// Whether this try counts.
        counted: bool,
        /// Whether the transport asked for patience.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        patience: bool,
        /// Whether it may have been sent.
        unknown: bool,
        /// The last answer.
        last: String,
        /// The call that is to be repeated, and no other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pin: Option<Pin>,
    },
    /// Its recipients go separate ways from here.
    Split {
        /// The envelope indices of each part.
        parts: Vec<Vec<u8>>,
    },
    /// A person decides.
    Hold {
        /// Recipients it is about; all where absent.
        pending: Option<Vec<u8>>,
        /// The last answer.
        last: String,
        /// The transport that was asked.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        transport: String,
    },
    /// Given up.
    DeadLetter {
        /// One word.
        reason: String,
        /// One line.
        detail: String,
        /// Recipients still to be served, by envelope index; all where absent.
        pending: Option<Vec<u8>>,
        /// The transport that was asked last.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        transport: String,
    },
}

/// What the decision is made from, beside the outcome.
#[derive(Debug, Clone, Copy)]
pub struct DecisionInput<'a> {
    /// The job.
    pub job: &'a Job,
    /// Its message, as it came.
    pub meta: &'a Meta,
    /// The rule that took it.
    pub route: &'a Route,
    /// The name of the transport that was used.
    pub transport: &'a str,
    /// The transports that come before it for this job, and why they did not take it.
    pub passed_over: &'a [PassedOver],
    /// The call that was made, where the transport recognises it when it is repeated.
    pub pin: Option<&'a Pin>,
    /// The answer to this job's own message opened a circuit that was closed: it may be about this job alone.
    pub tripped: bool,
    /// The retry schedule.
    pub schedule: &'a RetrySchedule,
    /// The wait after a failure that counts no try (the transport needs a person).
    pub config_wait: Duration,
    /// The present time.
    pub now: Timestamp,
}

/// Decides. Nothing for [`Outcome::LostClaim`]: the job belongs to somebody else.
pub fn decide(outcome: &Outcome, at: DecisionInput<'_>) -> Option<Decision> {
    match outcome {
        // A call that may have been taken was repeated: only a yes says what became of it. A refusal may be about the repetition alone.
        Outcome::Refused { refusal, .. } if at.meta.pin.is_some() => Some(unknown(&refusal.answer, at)),
        Outcome::Accepted { receipt, refused } => Some(accepted(&receipt.answer, refused, at)),
        Outcome::Refused { refusal, recipients } if recipients.is_empty() => Some(refused(refusal, at)),
        Outcome::Refused { refusal, recipients } => Some(refused_one_by_one(refusal, recipients, at)),
        Outcome::Unknown(answer) => Some(unknown(answer, at)),
        Outcome::LostClaim => None,
    }
}

/// A job past its `expires_at`.
pub fn expired(at: DecisionInput<'_>) -> Decision {
    let mut event = event(EventType::Expired, at);
    event.data.reason = Some("expired".to_owned());
    event.data.answer.clone_from(&at.meta.last);
    Decision { next: Disposition::Expired, events: vec![event] }
}

fn accepted(answer: &Answer, refused: &[RecipientRefusal], at: DecisionInput<'_>) -> Decision {
    let mut event = tried(EventType::Accepted, at);
    event.data.answer = Some(answer.to_string());
    if refused.is_empty() && at.meta.pending.is_none() {
        return Decision { next: Disposition::Sent, events: vec![event] };
    }
    let taken: Vec<usize> =
        served(at).into_iter().filter(|index| !refused.iter().any(|one| one.index == *index)).collect();
    event.data.recipients = recipients(at.job, taken.into_iter().map(|index| (index, None)));
    let mut verdict = after_refusals(refused, at);
    verdict.events.insert(0, event);
    if verdict.next == Disposition::Rejected {
        verdict.next = Disposition::Sent;
    }
    verdict
}

fn refused_one_by_one(refusal: &Refusal, list: &[RecipientRefusal], at: DecisionInput<'_>) -> Decision {
    if refusal.class == Class::Config {
        return refused(refusal, at);
    }
    after_refusals(list, at)
}

/// Recipients refused for good are reported; the others are tried again.
fn after_refusals(list: &[RecipientRefusal], at: DecisionInput<'_>) -> Decision {
    let (gone, later): (Vec<_>, Vec<_>) = list.iter().partition(|one| is_final(&one.refusal, at));
    let mut events = Vec::new();
    if let Some(first) = gone.first() {
        let mut event = failed(EventType::Rejected, &first.refusal, at);
        event.data.recipients =
            recipients(at.job, gone.iter().map(|one| (one.index, Some(one.refusal.answer.to_string()))));
        events.push(event);
    }
    // Others were served or judged, and these are not even asked yet: at once, and no try.
    if let Some(one) = later.iter().find(|one| one.refusal.answer.mark == Mark::NotAsked) {
        let pending = later.iter().filter_map(|one| u8::try_from(one.index).ok()).collect();
        let mut verdict = again(&one.refusal, Duration::ZERO, Some(pending), false, at);
        events.append(&mut verdict.events);
        return Decision { next: verdict.next, events };
    }
    // One that was really tried makes the whole a try.
    let tried = later.iter().find(|one| !is_waiting(one.refusal.class));
    let Some(first) = tried.or(later.first()) else {
        return Decision { next: Disposition::Rejected, events };
    };
    let pending = later.iter().filter_map(|one| u8::try_from(one.index).ok()).collect();
    let wait = later.iter().filter_map(|one| one.refusal.retry_after).max();
    let mut verdict = try_again(&first.refusal, wait, Some(pending), at);
    events.append(&mut verdict.events);
    Decision { next: verdict.next, events }
}

fn refused(refusal: &Refusal, at: DecisionInput<'_>) -> Decision {
    match refusal.class {
        // A message that could not even be made is kept: the sender can mend it.
        Class::Message if refusal.answer.code.is_none() => {
            give_up("cannot-be-sent", refusal, at.meta.pending.clone(), at)
        }
        Class::TemplateLimit => give_up("template-limit", refusal, at.meta.pending.clone(), at),
        Class::Unsupported => give_up("cannot-be-sent", refusal, at.meta.pending.clone(), at),
        Class::Recipient | Class::Message if !is_final(refusal, at) => {
            try_again(refusal, refusal.retry_after, at.meta.pending.clone(), at)
        }
        Class::Recipient | Class::Message => {
            Decision { next: Disposition::Rejected, events: vec![failed(EventType::Rejected, refusal, at)] }
        }
        // A job that opens circuits comes to an end.
        Class::Config if at.tripped => try_again(refusal, Some(at.config_wait), at.meta.pending.clone(), at),
        // Nothing was tried: the waits grow, and no try is used up.
        Class::Unavailable => {
            let place = (at.meta.parks + 1).min(u32::try_from(at.schedule.waits.len()).unwrap_or(u32::MAX));
            let wait = refusal.retry_after.or_else(|| at.schedule.wait_after(place, dice(at.job)));
            again(refusal, wait.unwrap_or(at.config_wait), at.meta.pending.clone(), false, at)
        }
        Class::Config => {
            // Not before `config_wait` even where a probe is due sooner: everybody who waits would come back for it at once.
            let wait = refusal.retry_after.unwrap_or_default().max(at.config_wait);
            let wait = at.schedule.jittered(wait, at.meta.parks, dice(at.job));
            again(refusal, wait, at.meta.pending.clone(), false, at)
        }
        Class::Throttled | Class::Quota if at.route.on_limit == OnLimit::Expire => {
            let mut verdict = expired(at);
            for event in &mut verdict.events {
                event.data.class = Some(refusal.class.as_str().to_owned());
                event.data.answer = Some(refusal.answer.to_string());
            }
            verdict
        }
        Class::Sender => try_again(refusal, Some(at.config_wait), at.meta.pending.clone(), at),
        Class::Throttled | Class::Quota | Class::Transient | Class::Local => {
            try_again(refusal, refusal.retry_after, at.meta.pending.clone(), at)
        }
    }
}

/// The job's recipients go separate ways: each part is a message of its own from here on.
pub fn split(parts: &[RoutePart]) -> Decision {
    let parts = parts.iter().map(|part| part.recipients.clone()).collect();
    Decision { next: Disposition::Split { parts }, events: Vec::new() }
}

fn unknown(answer: &Answer, at: DecisionInput<'_>) -> Decision {
    let as_refusal = Refusal { class: Class::Transient, answer: answer.clone(), retry_after: None };
    if let Some(verdict) = repeated(&as_refusal, at) {
        return verdict;
    }
    let policy = match at.route.on_unknown(at.job) {
        OnUnknown::Resend if at.meta.unknowns >= RESENDS_MAX && at.meta.pin.is_none() => OnUnknown::Hold,
        policy => policy,
    };
    match policy {
        OnUnknown::Hold => {
            let mut event = tried(EventType::Held, at);
            event.data.reason = Some("unknown".to_owned());
            event.data.answer = Some(answer.to_string());
            Decision {
                next: Disposition::Hold {
                    pending: at.meta.pending.clone(),
                    last: answer.to_string(),
                    transport: at.transport.to_owned(),
                },
                events: vec![event],
            }
        }
        OnUnknown::Resend => {
            let mut verdict = try_again(&as_refusal, None, at.meta.pending.clone(), at);
            if let Disposition::Again { unknown, .. } = &mut verdict.next {
                *unknown = true;
            }
            for event in &mut verdict.events {
                event.data.reason = Some("unknown".to_owned());
                event.data.class = None;
            }
            verdict
        }
    }
}

/// The same call once more, where the provider will recognise it: that tells whether the message was taken, and sends nothing twice.
fn repeated(refusal: &Refusal, at: DecisionInput<'_>) -> Option<Decision> {
    let pin = at.pin.or(at.meta.pin.as_ref())?;
    let wait = at.schedule.wait_after(at.meta.attempt.saturating_add(1), dice(at.job))?;
    if at.now.checked_add(wait).ok()? >= pin.until {
        return None;
    }
    let mut verdict = again(refusal, wait, at.meta.pending.clone(), true, at);
    if let Disposition::Again { unknown, pin: kept, .. } = &mut verdict.next {
        (*unknown, *kept) = (true, Some(pin.clone()));
    }
    for event in &mut verdict.events {
        event.data.reason = Some("unknown".to_owned());
        event.data.class = None;
    }
    Some(verdict)
}

/// Whether a refusal is the end for whom it is about. Where no known word says so the same is asked once more: what every recipient of a
/// transport is told is about us, and that shows meanwhile.
fn is_final(refusal: &Refusal, at: DecisionInput<'_>) -> bool {
    let was_asked = || at.meta.last.as_deref().is_some_and(|last| is_same(last, &refusal.answer.to_string()));
    refusal.class.is_permanent()
        && (refusal.answer.mark != Mark::Unexplained
            || was_asked()
            || at.schedule.wait_after(at.meta.attempt + 1, dice(at.job)).is_none())
}

/// True for a refusal that asks for patience, or is of our own making: it uses up no try.
fn is_waiting(class: Class) -> bool {
    matches!(class, Class::Throttled | Class::Quota | Class::Sender | Class::Local)
}

/// The next try by the schedule, not earlier than the transport asks for; `dead` when the schedule is used up. Where the transport asks for
/// patience the waits grow by the schedule too, but nothing is used up until it has asked very often.
fn try_again(
    refusal: &Refusal,
    wait_min: Option<Duration>,
    pending: Option<Vec<u8>>,
    at: DecisionInput<'_>,
) -> Decision {
    if is_waiting(refusal.class) && at.meta.waits < PATIENCE_MAX {
        let place = at.meta.waits.saturating_add(1).min(u32::try_from(at.schedule.waits.len()).unwrap_or(u32::MAX));
        let wait = at.schedule.wait_after(place, dice(at.job)).unwrap_or(at.config_wait);
        return again(refusal, wait.max(wait_min.unwrap_or_default()), pending, false, at);
    }
    let tries = at.meta.attempt.saturating_add(1);
    match at.schedule.wait_after(tries, dice(at.job)) {
        Some(wait) => again(refusal, wait.max(wait_min.unwrap_or_default()), pending, true, at),
        None => give_up("retries-exhausted", refusal, pending, at),
    }
}

fn again(
    refusal: &Refusal,
    wait: Duration,
    pending: Option<Vec<u8>>,
    counted: bool,
    at: DecisionInput<'_>,
) -> Decision {
    // Woken up to expire rather than long after.
    let wait = super::schedule::cut(at.job, wait, at.now);
    let mut event = failed(EventType::Deferred, refusal, at);
    if !counted {
        event.data.attempt = at.meta.attempt;
    }
    event.data.next_attempt_at = Some(super::schedule::after(at.now, wait));
    let last = refusal.answer.to_string();
    let patience = !counted && is_waiting(refusal.class);
    let next = Disposition::Again { wait, pending, counted, patience, unknown: false, last, pin: None };
    Decision { next, events: vec![event] }
}

fn give_up(reason: &str, refusal: &Refusal, pending: Option<Vec<u8>>, at: DecisionInput<'_>) -> Decision {
    let mut event = failed(EventType::Dead, refusal, at);
    event.data.reason = Some(reason.to_owned());
    let detail = refusal.answer.to_string();
    let transport = at.transport.to_owned();
    let next = Disposition::DeadLetter { reason: reason.to_owned(), detail, pending, transport };
    Decision { next, events: vec![event] }
}

/// An evenly spread number, the same for a job each time.
pub fn dice(job: &Job) -> u64 {
    let (_, low) = job.id().0.as_u64_pair();
    low
}

/// Envelope indices that this attempt was about.
fn served(at: DecisionInput<'_>) -> Vec<usize> {
    match &at.meta.pending {
        Some(pending) => pending.iter().map(|index| usize::from(*index)).collect(),
        None => (0..at.job.recipients().len()).collect(),
    }
}

fn recipients(job: &Job, list: impl Iterator<Item = (usize, Option<String>)>) -> Vec<EventRecipient> {
    let all = job.recipients();
    list.filter_map(|(index, answer)| {
        let (field, position) = match all.get(index) {
            Some(one) => (one.field, one.position),
            None => job.rejected().get(index.checked_sub(all.len())?).map(|one| (one.field, one.position))?,
        };
        Some(EventRecipient { field, position, answer })
    })
    .collect()
}

fn event(kind: EventType, at: DecisionInput<'_>) -> Event {
    let mut event = Event::about(kind, at.job, at.meta, at.now);
    event.data.route = Some(at.route.name.clone());
    event
}

fn tried(kind: EventType, at: DecisionInput<'_>) -> Event {
    let mut event = event(kind, at);
    event.data.transport = Some(at.transport.to_owned());
    event.data.passed_over = at.passed_over.to_vec();
    event.data.attempt = at.meta.attempt.saturating_add(1);
    event
}

fn failed(kind: EventType, refusal: &Refusal, at: DecisionInput<'_>) -> Event {
    let mut event = tried(kind, at);
    event.data.class = Some(refusal.class.as_str().to_owned());
    event.data.answer = Some(refusal.answer.to_string());
    event
}

impl Disposition {
    /// The headers of the copy that this asks for, made from those of the message it replaces.
    pub fn meta(&self, before: &Meta, now: Timestamp) -> Meta {
        let mut meta = before.clone();
        add(&mut meta.generation, true);
        // The worker lived to decide.
        meta.losses = 0;
        match self {
            Self::Again { wait, pending, counted, patience, unknown, last, pin } => {
                meta.pin.clone_from(pin);
                meta.not_before = Some(super::schedule::after(now, *wait));
                meta.pending.clone_from(pending);
                meta.last = Some(last.clone());
                add(&mut meta.attempt, *counted);
                add(&mut meta.parks, !*counted);
                add(&mut meta.waits, *patience);
                add(&mut meta.unknowns, *unknown);
            }
            Self::Hold { pending, last, transport } => {
                meta.pin = None;
                add(&mut meta.attempt, true);
                add(&mut meta.unknowns, true);
                meta.pending.clone_from(pending);
                meta.last = Some(last.clone());
                meta.rest = Some(asked(rest_reason("unknown", last, before, now), transport));
            }
            Self::DeadLetter { reason, detail, pending, transport } => {
                meta.pin = None;
                add(&mut meta.attempt, true);
                meta.pending.clone_from(pending);
                meta.last = Some(detail.clone());
                meta.rest = Some(asked(rest_reason(reason, detail, before, now), transport));
            }
            Self::Sent | Self::Rejected | Self::Expired | Self::Split { .. } => {}
        }
        meta
    }
}

/// Counts on, to the end of the number and no further.
fn add(count: &mut u32, counts: bool) {
    *count = count.saturating_add(counts.into());
}

/// The headers of the part with this number: a fresh message for some of the recipients.
pub fn part_meta(before: &Meta, number: u8, recipients: &[u8]) -> Meta {
    Meta { generation: 0, part: Some(number), pending: Some(recipients.to_vec()), ..before.clone() }
}

/// Why a job came to rest, counting how often in a row it did for the same reason.
pub fn rest_reason(reason: &str, detail: &str, before: &Meta, now: Timestamp) -> Rest {
    let times = match &before.rest {
        Some(earlier) if earlier.reason == reason => earlier.times.saturating_add(1),
        _ => 1,
    };
    Rest { reason: reason.to_owned(), detail: detail.to_owned(), at: now, times, lane: None, transport: None }
}

/// With the transport that was asked last, where one was.
fn asked(rest: Rest, transport: &str) -> Rest {
    Rest { transport: Some(transport.to_owned()).filter(|name| !name.is_empty()), ..rest }
}

impl Disposition {
    /// The name used in logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Again { .. } => "again",
            Self::Split { .. } => "split",
            Self::Hold { .. } => "hold",
            Self::DeadLetter { .. } => "dead_letter",
        }
    }
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
