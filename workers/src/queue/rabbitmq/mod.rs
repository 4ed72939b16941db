//! The queue on RabbitMQ. Consuming and publishing have a connection each: a broker that blocks publishing reads nothing at all from a
//! blocked connection, acknowledgements included.

mod acks;
mod consume;
mod depths;
mod events;
mod message;
mod rest;
mod vitals;

use std::{
    sync::{Arc, Mutex as SyncMutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::{
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider_producer::rabbitmq::{
    ConnectError, address, connect,
    link::{ForeignProperties, Link, LinkLimits, Outgoing, PublishError},
    short, topology, within,
};
use postrider_schemas::{
    Meta, ladder,
    topology::{DEAD_EXCHANGE, DUE_EXCHANGE, EVENTS_EXCHANGE, Topology},
    wire::{JOB_CONTENT_TYPE, JOB_TYPE},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::{acks::Acks, vitals::Vitals};
use super::{Delivery, DeliveryReceipt as AnyReceipt, QueueError, SettleError, Source, SubscribeOptions};
use crate::{
    config::TopologyMode,
    policy::{poison, settlement::Settlement},
};

/// Longest wait for a broker that confirms no copies: well below its own limit on unacknowledged messages, 30 minutes by default.
const COPY_WAIT_MAX: Duration = Duration::from_mins(10);
const COPY_PAUSE: Duration = Duration::from_secs(1);
/// Events are published at the end of every span of this length.
const TOGETHER: Duration = Duration::from_millis(2);

/// The right to settle a delivery of a broker.
pub struct RabbitReceipt {
    acks: Acks,
    tag: u64,
}

impl RabbitReceipt {
    pub(super) fn is_usable(&self) -> bool {
        self.acks.is_usable()
    }
}

/// The queue on RabbitMQ.
pub struct RabbitQueue {
    url: String,
    /// Host and port of the broker.
    pub(super) address: (Arc<str>, u16),
    mode: TopologyMode,
    topology: Topology,
    shards: u16,
    publishing: Link,
    /// For those who ask how much waits; made when it is needed.
    looking: Mutex<Option<lapin::Connection>>,
    refusals: SyncMutex<events::Refusals>,
    begun: Instant,
    vitals: Arc<Vitals>,
    /// No new deliveries.
    stop: CancellationToken,
    /// Nothing more is handed on.
    quiet: CancellationToken,
    /// No connection either.
    end: CancellationToken,
    tasks: TaskTracker,
}

impl RabbitQueue {
    /// Connects and sees to the topology.
    pub async fn connect(url: &str, mode: TopologyMode, shards: u16) -> Result<Self, QueueError> {
        let topology = Topology::v1(shards);
        if mode != TopologyMode::LeaveAlone {
            let connection = connect(url, "postrider-topology").await?;
            let stands = see_to(&connection, mode, &topology).await;
            // Only said goodbye to: what it was asked is answered.
            let _ = within("connection.close", connection.close(200, short("looked"))).await;
            stands?;
        }
        let publishing = Link::connect(url, "postrider-worker publishing", LinkLimits::default()).await?;
        let uri = address::parse(url).map_err(ConnectError::Url)?;
        Ok(Self {
            url: url.to_owned(),
            address: (uri.authority.host.as_str().into(), uri.authority.port),
            mode,
            topology,
            shards,
            publishing,
            looking: Mutex::default(),
            refusals: SyncMutex::default(),
            begun: Instant::now(),
            vitals: Arc::new(Vitals::new()),
            stop: CancellationToken::new(),
            quiet: CancellationToken::new(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    pub(super) fn subscribe(&self, options: SubscribeOptions, deliveries: mpsc::UnboundedSender<Delivery>) {
        let supervisor = consume::ConsumerSupervisor {
            url: self.url.clone(),
            mode: self.mode,
            topology: self.topology.clone(),
            options,
            deliveries,
            publishing: self.publishing.clone(),
            vitals: Arc::clone(&self.vitals),
            stop: self.stop.clone(),
            quiet: self.quiet.clone(),
            end: self.end.clone(),
            forwards: TaskTracker::new(),
        };
        self.tasks.spawn(supervisor.run());
    }

    pub(super) fn consumers_up(&self) -> bool {
        self.vitals.all_run() && !self.stop.is_cancelled()
    }

    /// False once the supervisor of the consumers did nothing for too long. One that was told to stop has nothing to do.
    pub(super) fn is_alive(&self) -> bool {
        self.vitals.is_alive() || self.stop.is_cancelled()
    }

    pub(super) fn takes(&self) -> bool {
        self.publishing.takes()
    }

    pub(super) async fn settle(&self, delivery: Delivery, settlement: Settlement) -> Result<(), SettleError> {
        let AnyReceipt::Rabbit(receipt) = &delivery.receipt else { return Err(SettleError::AckLost) };
        if settlement == Settlement::GiveBack {
            return if receipt.acks.give_back(receipt.tag) { Ok(()) } else { Err(SettleError::AckLost) };
        }
        let is_begun = settlement != Settlement::Return;
        let is_large = delivery.held.is_large();
        for copy in copies(&delivery, settlement) {
            // Rare, and large: by value it would be part of every attempt's future.
            let publishing = Box::pin(self.publish_copy(&copy, receipt, is_begun));
            if is_large { delivery.held.memory().few_at_once(publishing).await? } else { publishing.await? }
        }
        if receipt.acks.acknowledge(receipt.tag) { Ok(()) } else { Err(SettleError::AckLost) }
    }

    /// Publishes what replaces a message. A broker that takes nothing for a while (an alarm, a leader that moves) is waited for as long as the
    /// message can still be acknowledged: one that is neither settled nor given back would block a place until its channel closes. One that
    /// nobody began is given back at once.
    async fn publish_copy(&self, copy: &Outgoing, receipt: &RabbitReceipt, is_begun: bool) -> Result<(), PublishError> {
        let end = Instant::now() + COPY_WAIT_MAX;
        let mut is_told = false;
        loop {
            let Err(error) = self.publishing.publish(copy).await else { return Ok(()) };
            if !is_begun || error == PublishError::Closed || !receipt.is_usable() || Instant::now() >= end {
                // Nothing is lost where this cannot be told: the message then comes back with its channel.
                receipt.acks.give_back(receipt.tag);
                return Err(error);
            }
            if !is_told {
                warn!(%error, "The copy of a message is not confirmed; it is published until it is");
                is_told = true;
            }
            sleep(COPY_PAUSE).await;
        }
    }

    /// Resolves for all who wait at the same moment, a few hundred times a second. What is published then goes out in one write and is
    /// confirmed in one frame, instead of a wakeup of the connection's thread and a packet each way for every job. Each publish still
    /// waits for its confirm: an event that was not confirmed is not told, and the job would be settled without it.
    async fn together(&self) {
        let since = Instant::now().duration_since(self.begun).as_nanos() / TOGETHER.as_nanos();
        let next = u32::try_from(since + 1).unwrap_or(u32::MAX);
        sleep_until(self.begun + TOGETHER * next).await;
    }

    pub(super) async fn stop_consuming(&self) {
        self.stop.cancel();
        // Where it takes longer, what was fetched comes back with the connection.
        let _ = tokio::time::timeout(consume::STOP_LIMIT, self.quiet.cancelled()).await;
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.end.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        self.publishing.close().await;
        if let Some(looking) = self.looking.lock().await.take() {
            let _ = tokio::time::timeout(Duration::from_secs(1), looking.close(200, short("bye"))).await;
        }
    }

    /// Events from now on, by a queue of our own that goes with the connection.
    pub(super) async fn events(&self) -> Result<mpsc::Receiver<Bytes>, QueueError> {
        let connection = connect(&self.url, "postrider-events").await?;
        let channel = within("channel.open", connection.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(short(""), options, FieldTable::default());
        let queue = within("queue.declare", declared).await?.name().clone();
        let bind = QueueBindOptions::default();
        let bound = channel.queue_bind(queue.clone(), short(EVENTS_EXCHANGE), short("#"), bind, FieldTable::default());
        within("queue.bind", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let begun = channel.basic_consume(queue, short(""), options, FieldTable::default());
        let mut consumer = within("basic.consume", begun).await?;
        let (sender, receiver) = mpsc::channel(256);
        tokio::spawn(async move {
            // The connection lives as long as somebody listens.
            loop {
                let delivery = tokio::select! {
                    delivery = consumer.next() => delivery,
                    () = sender.closed() => break,
                };
                let Some(Ok(delivery)) = delivery else { return };
                if sender.send(Bytes::from(delivery.data)).await.is_err() {
                    break;
                }
            }
            let _ = within("connection.close", connection.close(200, short("bye"))).await;
        });
        Ok(receiver)
    }
}

async fn see_to(connection: &lapin::Connection, mode: TopologyMode, stands: &Topology) -> Result<(), QueueError> {
    match mode {
        TopologyMode::Apply => topology::apply(connection, stands).await?,
        TopologyMode::Verify => topology::verify(connection, stands).await?,
        TopologyMode::LeaveAlone => {}
    }
    Ok(())
}

/// The messages that replace a delivery: its body, its id, its foreign properties, and headers made from scratch.
fn copies(delivery: &Delivery, settlement: Settlement) -> Vec<Outgoing> {
    let Source { lane, shard, .. } = delivery.source;
    let at_rest = |key: &str| (DEAD_EXCHANGE.to_owned(), format!("{key}.{}", ladder::target(lane, shard)));
    let at_once = || due_after(Duration::ZERO, lane, shard);
    let one = |(exchange, routing_key), meta: &Meta| {
        outgoing(
            exchange,
            routing_key,
            delivery.message_id.clone(),
            delivery.body.clone(),
            meta,
            delivery.message_type.clone(),
            delivery.foreign.clone(),
        )
    };
    match settlement {
        Settlement::Done | Settlement::GiveBack => Vec::new(),
        // A message that nobody began goes back as a copy of itself: the broker would mark and count it as delivered.
        Settlement::Return => {
            let meta = poison::handed_back(&delivery.meta, delivery.redelivered, delivery.lost);
            let published_at = delivery.published_at.filter(|_| meta.losses > 0);
            vec![Outgoing { published_at, ..one(at_once(), &meta) }]
        }
        Settlement::Later(wait) => {
            let meta = poison::handed_back(&delivery.meta, delivery.redelivered, delivery.lost);
            vec![Outgoing { published_at: delivery.published_at, ..one(due_after(wait, lane, shard), &meta) }]
        }
        Settlement::Again { wait, meta } => vec![one(due_after(wait, lane, shard), &meta)],
        Settlement::Split(metas) => metas.iter().map(|meta| one(at_once(), meta)).collect(),
        Settlement::Hold(meta) => vec![one(at_rest("hold"), &meta)],
        Settlement::DeadLetter(meta) => vec![one(at_rest("dead"), &meta)],
        Settlement::Quarantine(meta) => vec![one(at_rest("suspect"), &meta)],
    }
}

/// A wait of less than the ladder's first rung is spent in the worker that gets the copy.
fn due_after(wait: Duration, lane: postrider_schemas::Lane, shard: u16) -> (String, String) {
    let wait = if wait < ladder::WAIT_MIN { Duration::ZERO } else { wait };
    let rung = ladder::rung(wait, lane, shard);
    debug_assert!(rung.exchange == DUE_EXCHANGE || !wait.is_zero());
    (rung.exchange, rung.routing_key)
}

fn outgoing(
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    body: Bytes,
    meta: &Meta,
    kind: Option<String>,
    foreign: ForeignProperties,
) -> Outgoing {
    Outgoing {
        exchange,
        routing_key,
        message_id: message_id.unwrap_or_default(),
        kind: kind.unwrap_or_else(|| JOB_TYPE.to_owned()),
        content_type: JOB_CONTENT_TYPE,
        headers: meta.to_pairs(),
        body,
        mandatory: true,
        user_id: None,
        published_at: None,
        foreign,
    }
}

/// RabbitMQ loses acknowledgements that reach it just before the channel closes; after this long they have arrived.
pub(super) async fn linger() {
    sleep(Duration::from_millis(300)).await;
}
