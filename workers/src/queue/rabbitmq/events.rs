//! Events on RabbitMQ. One that the queues bound to the exchange do not take is written down in a queue of ours, and published again
//! from there until they do: a job is not held up by who listens, and what it came to is not forgotten.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::{
    Channel, Connection,
    options::{BasicAckOptions, BasicGetOptions, BasicNackOptions},
};
use postrider_producer::rabbitmq::{
    link::{ForeignProperties, Link, Outgoing, PublishError},
    short, within,
};
use postrider_schemas::{
    Event,
    event::EVENT_CONTENT_TYPE,
    topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE, EVENTS_WAITING_KEY, EVENTS_WAITING_QUEUE},
};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{RabbitQueue, message};

/// For so long after a refusal events are written down at once.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// After so long without room for events that wait they are given up.
const FULL_AFTER: Duration = Duration::from_secs(60);
/// First and longest wait between two looks at what is written down.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Events that are published again at once.
const BATCH: usize = 64;
const EVENT_TYPE: &str = "postrider.event.v1";

impl RabbitQueue {
    /// Publishes an event, or writes it down where it is refused. An event that nobody's queue is bound for is dropped by the broker, on purpose.
    pub(in crate::queue) async fn emit(&self, event: &Event) -> Result<(), PublishError> {
        let mut message = outgoing(event.routing_key(), event.id.clone(), Bytes::from(event.encode()));
        self.together().await;
        if !self.was_refused_just_now() {
            let Err(error) = Box::pin(self.publishing.publish(&message)).await else { return Ok(()) };
            if error == PublishError::Closed {
                return Err(error);
            }
            if self.note_refusal() {
                warn!(
                    %error,
                    queue = EVENTS_WAITING_QUEUE,
                    "An event is not taken by the queues bound to {EVENTS_EXCHANGE}; it waits in {EVENTS_WAITING_QUEUE} until they take it"
                );
            }
        }
        message.routing_key = format!("{EVENTS_WAITING_KEY}.{}", message.routing_key);
        message.exchange = DEAD_EXCHANGE.to_owned();
        message.mandatory = true;
        let written = Box::pin(self.publishing.publish(&message)).await;
        self.note_written(&written);
        written
    }

    /// True where events have had no room anywhere for a while. A leader that moves refuses for a moment, too.
    pub(in crate::queue) fn has_no_room_for_events(&self) -> bool {
        self.refusals().full_since.is_some_and(|since| since.elapsed() > FULL_AFTER)
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn was_refused_just_now(&self) -> bool {
        self.refusals().refused_at.is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }

    /// True for the first refusal in a while.
    fn note_refusal(&self) -> bool {
        let before = self.refusals().refused_at.replace(Instant::now());
        before.is_none_or(|at| at.elapsed() > LOOK_EVERY.1)
    }

    fn note_written(&self, written: &Result<(), PublishError>) {
        let mut refusals = self.refusals();
        match written {
            Err(PublishError::Nacked) => {
                refusals.full_since.get_or_insert_with(Instant::now);
            }
            _ => refusals.full_since = None,
        }
    }
}

/// What is known of the queues of those who listen, and of the one for events that wait.
#[derive(Debug, Default)]
pub struct Refusals {
    /// When an event was refused last.
    refused_at: Option<Instant>,
    /// Since when there was no room for one that waits.
    full_since: Option<Instant>,
}

fn outgoing(routing_key: String, id: String, body: Bytes) -> Outgoing {
    Outgoing {
        exchange: EVENTS_EXCHANGE.to_owned(),
        routing_key,
        message_id: id,
        kind: EVENT_TYPE.to_owned(),
        content_type: EVENT_CONTENT_TYPE,
        headers: Vec::new(),
        body,
        user_id: None,
        mandatory: false,
        published_at: None,
        foreign: ForeignProperties::default(),
    }
}

/// Publishes again what is written down, for as long as it is polled. One event is tried first, and more only once it is taken.
pub async fn publish_again(connection: &Connection, publishing: &Link) -> Infallible {
    let (mut pause, mut channel) = (LOOK_EVERY.0, None);
    loop {
        sleep(pause).await;
        pause = match round(connection, publishing, &mut channel).await {
            Ok(true) => LOOK_EVERY.0,
            Ok(false) => (pause * 2).min(LOOK_EVERY.1),
            Err(error) => {
                debug!(%error, queue = EVENTS_WAITING_QUEUE, "Events that wait cannot be looked at now");
                channel = None;
                (pause * 2).min(LOOK_EVERY.1)
            }
        };
    }
}

/// True once nothing is written down any more.
async fn round(connection: &Connection, publishing: &Link, slot: &mut Option<Channel>) -> lapin::Result<bool> {
    let channel = match slot.take().filter(|channel| channel.status().connected()) {
        Some(channel) => channel,
        None => within("channel.open", connection.create_channel()).await?,
    };
    let (mut size, mut count) = (1, 0_u64);
    let is_empty = loop {
        let (taken, published) = batch(&channel, publishing, size).await?;
        count += published as u64;
        if taken < size || published < taken {
            break published == taken;
        }
        size = BATCH;
    };
    if count > 0 {
        info!(count, queue = EVENTS_WAITING_QUEUE, "{count} events that waited were taken");
    }
    *slot = Some(channel);
    Ok(is_empty)
}

/// How many events were taken from the queue, and how many of them are published.
async fn batch(channel: &Channel, publishing: &Link, size: usize) -> lapin::Result<(usize, usize)> {
    let mut events = Vec::new();
    while events.len() < size {
        let got = channel.basic_get(short(EVENTS_WAITING_QUEUE), BasicGetOptions::default());
        let Some(got) = within("basic.get", got).await? else { break };
        events.push(got.delivery);
    }
    let again = events.iter_mut().map(|event| {
        let key = event.routing_key.as_str();
        let key = key.strip_prefix(EVENTS_WAITING_KEY).and_then(|key| key.strip_prefix('.')).unwrap_or(key);
        let id = message::text(event.properties.message_id().as_ref()).unwrap_or_default();
        let message = outgoing(key.to_owned(), id, Bytes::from(std::mem::take(&mut event.data)));
        async move { publishing.publish(&message).await.is_ok() }
    });
    let published = join_all(again).await;
    for (event, is_published) in events.iter().zip(&published) {
        if *is_published {
            within("basic.ack", channel.basic_ack(event.delivery_tag, BasicAckOptions::default())).await?;
        } else {
            let options = BasicNackOptions { requeue: true, multiple: false };
            within("basic.nack", channel.basic_nack(event.delivery_tag, options)).await?;
        }
    }
    Ok((events.len(), published.iter().filter(|one| **one).count()))
}
