//! Publishes the events of a job. A delivery is settled only after its events are confirmed.

use std::time::Duration;

use postrider_schemas::{
    Event,
    topology::{EVENTS_EXCHANGE, EVENTS_WAITING_QUEUE},
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{
    delivery::{context::Context, report},
    telemetry::{metrics, traces},
};

/// Longest wait for a queue that takes no events: well below the broker's own limit on unacknowledged messages, which is 30 minutes by default.
const EVENT_WAIT_MAX: Duration = Duration::from_secs(600);
/// Pause between two tries.
const EVENT_PAUSE: Duration = Duration::from_secs(1);

/// Tells events, each confirmed before the next. False where one of them is not: the delivery is then not to be settled, but given back, so that
/// what it came to is told when it comes again.
#[must_use]
pub(crate) async fn emit(context: &Context, events: &[Event]) -> bool {
    if events.is_empty() {
        return true;
    }
    let telling = traces::call("send postrider.events");
    report::note_messaging(&telling, context, "send", "send", EVENTS_EXCHANGE);
    for event in events {
        // Rare, and large: by value it would be part of every attempt's future.
        if !Box::pin(told(context, event)).await {
            return false;
        }
    }
    true
}

/// Publishes an event until it is confirmed. One for which there is no room anywhere is dropped, and counted: mail does not stand still for those who
/// do not listen.
async fn told(context: &Context, event: &Event) -> bool {
    let (end, kind) = (Instant::now() + EVENT_WAIT_MAX, event.kind.as_str());
    let mut is_said = false;
    loop {
        let Err(error) = context.queue.emit(event).await else { return true };
        if context.queue.has_no_room_for_events() {
            metrics::event_dropped();
            warn!(%error, kind, event = event.id, "An event is dropped: {EVENTS_WAITING_QUEUE} is full; see who does not empty its events queue");
            return true;
        }
        if !error.is_transient() || Instant::now() >= end {
            warn!(%error, kind, "An event is not confirmed; its job is given back and tells it when it comes again");
            return false;
        }
        if !is_said {
            warn!(%error, kind, "An event is not confirmed; it is published until it is, and its job waits");
            is_said = true;
        }
        sleep(EVENT_PAUSE).await;
    }
}

/// Tells an event that no job waits for, as well as can be.
pub(crate) async fn tell_once(context: &Context, event: &Event) {
    if let Err(error) = context.queue.emit(event).await {
        metrics::event_dropped();
        warn!(%error, kind = event.kind.as_str(), "An event could not be published and is dropped");
    }
}
