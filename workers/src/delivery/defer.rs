//! Jobs that are not sent now: put away until a limit, a time or the store lets them go, or handed back.

use std::time::Duration;

use postrider_schemas::{Event, EventType, Meta};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::{
    delivery::{
        attempt::{Attempt, Authorization},
        conclude::expire,
        context::Context,
        events::emit,
        settlements::{note, settle_delivery, settle_or_warn},
    },
    policy::{
        decision,
        retry::spread,
        schedule::{self, Schedule},
        settlement::Settlement,
    },
    queue::Delivery,
    rate_limit::deferral::{DeferralWords, Slot, to_tell},
    store::LedgerNote,
    telemetry::{metrics, registry::attribute, traces},
};

/// Longest wait for a store that is down before a message is handed back: well below the broker's own limit on unacknowledged
/// messages, which is 30 minutes by default.
pub(crate) const STORE_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long on average a job is deferred that is not to go without the store.
const STORE_OUTAGE_DELAY: Duration = Duration::from_secs(15);

/// Waits where it will be the job's turn in a moment. A job whose time is further ahead, or over, is settled, and nothing is given back.
pub(crate) async fn until_due(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
) -> Option<(Delivery, Authorization)> {
    match schedule::schedule(attempt.job, attempt.meta, context.now()) {
        Schedule::Now => return Some((delivery, authorization)),
        Schedule::Wait(wait) => {
            let _waiting = traces::waiting("due");
            if attempt.stop.run_until_cancelled(attempt.job_slot.wait(wait)).await.is_some() {
                return Some((delivery, authorization));
            }
            return_to_queue(context, delivery, attempt, authorization).await;
        }
        Schedule::Park(at) => {
            let wait = Duration::try_from(at.duration_since(context.now())).unwrap_or_default();
            defer_until(context, delivery, attempt, authorization, (wait, wait), "send_at").await;
        }
        Schedule::Expired => expire(context, delivery, attempt, authorization, None).await,
    }
    None
}

/// The store is away, and the job is not to go without it: it waits for the store in hand where it may, and is deferred otherwise.
pub(crate) async fn until_store_is_back(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
) {
    // What stands behind those that wait in hand may go without the store. What came back is not counted among them, and is deferred in any case.
    if matches!(authorization, Authorization::WithoutStore(_))
        && (attempt.meta.generation > 0 || !attempt.job_slot.may_hold())
    {
        let wait = store_outage_delay(attempt);
        return defer_until(context, delivery, attempt, authorization, (wait, wait), "store").await;
    }
    // As a claim does that finds no store.
    let _waiting = traces::waiting("store");
    let back = attempt.job_slot.hold_until(timeout(STORE_WAIT_MAX, context.store.back()));
    // Handed back in any case.
    let _ = attempt.stop.run_until_cancelled(back).await;
    return_to_queue(context, delivery, attempt, authorization).await;
}

/// Puts a job away until its slot, and says why.
pub(crate) async fn defer(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    slot: Slot,
    words: DeferralWords,
) {
    let (id, why) = (attempt.job.id(), &words.answer);
    let at = schedule::after(context.now(), schedule::cut(attempt.job, left(slot.at), context.now()));
    debug!(job.id = %id, why, until = %at, parks = attempt.meta.parks, "Job {id} is deferred until {at}: {why}");
    let people = waits_for(context, &words);
    traces::set(attribute::PARK_REASON, people.clone());
    let told = to_tell(attempt.meta.told.as_deref(), words.event, context.now());
    if told.is_some() {
        let mut event = Event::about(EventType::Deferred, attempt.job, attempt.meta, context.now());
        event.data.route = Some(attempt.route.name.clone());
        event.data.reason = Some(words.event.to_owned());
        event.data.answer = Some(words.answer);
        event.data.next_attempt_at = Some(at);
        if !emit(context, &[event]).await {
            return settle_or_warn(context, delivery, Settlement::GiveBack).await;
        }
    }
    let waits = (left(slot.at), left(slot.back));
    let said = ParkWords { metric: words.metric, people, told };
    defer_because(context, delivery, attempt, authorization, waits, said).await;
}

/// What a job waits for, with the rate where it is a limit.
fn waits_for(context: &Context, words: &DeferralWords) -> String {
    let Some(scope) = &words.scope else { return words.answer.clone() };
    let rates: Vec<String> = context.limiter.configured(scope).iter().map(ToString::to_string).collect();
    if rates.is_empty() { scope.clone() } else { format!("{scope} ({})", rates.join(" and ")) }
}

/// Puts a job away that is not to be tried before the first wait is over, and comes back to a worker after the second. Uses up no try.
async fn defer_until(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    waits: (Duration, Duration),
    why: &'static str,
) {
    let said = ParkWords { metric: why, people: why.to_owned(), told: None };
    defer_because(context, delivery, attempt, authorization, waits, said).await;
}

/// What is said of a job that is put away.
struct ParkWords {
    /// The word that metrics know.
    metric: &'static str,
    /// For the ledger.
    people: String,
    /// What an event said just now.
    told: Option<String>,
}

/// The same with more to say than the word that metrics know.
async fn defer_because(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
    (wait, back): (Duration, Duration),
    ParkWords { metric: why, people: because, told }: ParkWords,
) {
    let now = context.now();
    let (wait, back) = (schedule::cut(attempt.job, wait, now), schedule::cut(attempt.job, back, now));
    let meta = Meta {
        generation: attempt.meta.generation.saturating_add(1),
        parks: attempt.meta.parks.saturating_add(1),
        losses: 0,
        not_before: Some(schedule::after(now, wait)),
        told: told.or_else(|| attempt.meta.told.clone()),
        ..attempt.meta.clone()
    };
    metrics::put_off(attempt.job, &meta, back, why, now);
    let noted = LedgerNote {
        until: meta.not_before,
        why: because,
        last: meta.last.clone().unwrap_or_default(),
        tries: meta.attempt,
    };
    match settle_delivery(context, delivery, Settlement::Again { wait: back, meta }).await {
        Ok(()) => {
            metrics::parked(attempt.job.lane(), why);
            if why == "limit" {
                metrics::limited(attempt.job.lane(), attempt.meta);
            }
            if let Authorization::Leased(lease) = authorization {
                note(attempt, context.store.parked(lease, &noted.encode()).await);
            }
        }
        Err(error) => warn!(job.id = %attempt.job.id(), %error, "A job could not be parked; it comes back"),
    }
}

/// How long a job is deferred that is not to go without the store, where it cannot wait for it in hand: each for another time, so that they do not come
/// back all at once.
fn store_outage_delay(attempt: &Attempt<'_>) -> Duration {
    STORE_OUTAGE_DELAY.mul_f64(0.75 + spread(decision::dice(attempt.job), attempt.meta.parks) / 2.0)
}

/// Hands back a job for which nothing was begun. Its claim ends first: whoever gets it next need not wait for that.
pub(crate) async fn return_to_queue(
    context: &Context,
    delivery: Delivery,
    attempt: &Attempt<'_>,
    authorization: Authorization,
) {
    if let Authorization::Leased(lease) = authorization {
        note(attempt, context.store.release(lease).await);
    }
    settle_or_warn(context, delivery, Settlement::Return).await;
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
