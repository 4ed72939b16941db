//! Where jobs come from and go back to: RabbitMQ, or a SQLite file. The same settlements on both.

pub mod depths;
pub mod embedded;
pub mod rabbitmq;

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use postrider_producer::{
    embedded::{DbError, publisher::SCHEME},
    rabbitmq::{
        ConnectError,
        link::{ForeignProperties, PublishError},
        topology::TopologyError,
    },
};
use postrider_schemas::{Event, JobId, Lane, Meta, Tenant};
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;

use self::depths::Depths;
use crate::{
    config::{QueueConfig, TopologyMode},
    memory::{Held, Memory},
    policy::settlement::Settlement,
};

/// The queue.
pub enum Queue {
    /// A broker.
    Rabbit(Box<rabbitmq::RabbitQueue>),
    /// A file.
    Embedded(embedded::EmbeddedQueue),
}

/// A message that was delivered to this worker and is its to settle. `Debug` output shows no body.
///
/// One pointer wide: it is handed down the whole path of an attempt, and what a step of that path holds by value is in its future twice.
pub struct Delivery(Box<DeliveredMessage>);

/// What a [`Delivery`] holds.
pub struct DeliveredMessage {
    /// The encoded job.
    pub body: Bytes,
    /// The message id, where the producer set one.
    pub message_id: Option<String>,
    /// The message type, where the producer set one.
    pub message_type: Option<String>,
    /// What the headers remember.
    pub meta: Meta,
    /// What of the headers could not be read.
    pub cut: Option<Cut>,
    /// Where it came from.
    pub source: Source,
    /// It was delivered before, to somebody who did not settle it.
    pub redelivered: bool,
    /// How often that happened.
    pub deliveries: u32,
    /// Properties that mean nothing here and that its copies keep.
    pub foreign: ForeignProperties,
    /// When it was published, where its producer or its id says so.
    pub published_at: Option<Timestamp>,
    /// Workers that were lost with it, as far as is known: see [`crate::policy::poison`].
    pub lost: u32,
    /// Attempts with it that the store knows to have begun and not to have ended, this one included once it has begun.
    pub begun: u32,
    /// The memory that it takes.
    pub held: Held,
    /// The right to settle it.
    pub(crate) receipt: DeliveryReceipt,
}

/// Headers of a message that no connection could carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Why.
    pub reason: String,
    /// Nothing of them is left, ours neither.
    pub is_whole: bool,
}

/// The right to settle a delivery.
pub(crate) enum DeliveryReceipt {
    /// On a broker's channel.
    Rabbit(rabbitmq::RabbitReceipt),
    /// On a row of the file.
    Embedded(embedded::EmbeddedReceipt),
}

impl Delivery {
    pub(crate) fn new(message: DeliveredMessage) -> Self {
        Self(Box::new(message))
    }

    /// The queue that it came from, as telemetry names it.
    pub fn system(&self) -> &'static str {
        match self.0.receipt {
            DeliveryReceipt::Rabbit(_) => "rabbitmq",
            DeliveryReceipt::Embedded(_) => "postrider",
        }
    }

    /// Spends the right to settle it.
    pub(crate) fn into_receipt(self) -> DeliveryReceipt {
        self.0.receipt
    }
}

impl Deref for Delivery {
    type Target = DeliveredMessage;

    fn deref(&self) -> &DeliveredMessage {
        &self.0
    }
}

impl DerefMut for Delivery {
    fn deref_mut(&mut self) -> &mut DeliveredMessage {
        &mut self.0
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("source", &self.source)
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

/// Where a delivery came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Which kind of queue.
    pub kind: SourceKind,
    /// The lane.
    pub lane: Lane,
    /// The shard.
    pub shard: u16,
}

/// The kinds of queue that workers consume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Fresh work.
    Jobs,
    /// Work that comes back.
    Due,
    /// Quarantine.
    Suspect,
}

/// What to consume, and how much of it at once.
#[derive(Clone)]
pub struct SubscribeOptions {
    /// Queues per lane.
    pub shards: u16,
    /// Transactional messages in hand at once; of returning ones more, see [`Self::due`].
    pub transactional: u16,
    /// Bulk messages in hand at once; of returning ones more, see [`Self::due`].
    pub bulk: u16,
    /// What bounds the bytes of all of them.
    pub memory: Memory,
}

impl SubscribeOptions {
    /// Most of what comes back is early, and waits for its slot without anything being done for it.
    pub fn due(&self, prefetch: u16) -> u16 {
        prefetch.saturating_mul(4).min(2000).max(prefetch)
    }
}

/// Deliveries as they come.
pub struct Deliveries {
    pub(crate) receiver: mpsc::UnboundedReceiver<Delivery>,
}

impl Deliveries {
    /// A delivery that is here already.
    pub fn try_recv(&mut self) -> Option<Delivery> {
        self.receiver.try_recv().ok()
    }

    /// The next delivery; nothing once the queue was told to stop.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.receiver.recv().await
    }
}

/// Where messages come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Given up.
    Dead,
    /// Waits for a person.
    Hold,
    /// Published with a routing key that no queue takes. A file has no such place.
    Unroutable,
}

/// A message at rest.
#[derive(Clone)]
pub struct RestMessage {
    /// The encoded job, or what could not be read as one.
    pub body: Bytes,
    /// The message id, where there is one.
    pub message_id: Option<String>,
    /// What its headers say.
    pub meta: Meta,
    /// What of them could not be read.
    pub cut: Option<Cut>,
    /// The routing key that it came with; empty in a file.
    pub routing_key: String,
}

/// What is to happen to a message at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestVerdict {
    /// It stays.
    Keep,
    /// It is deleted.
    Drop,
    /// It is tried again: a copy with these headers becomes due at once in this lane.
    Again(Box<Meta>, Lane),
}

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The topology does not stand.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The broker failed.
    #[error("the broker: {0}")]
    Broker(#[from] lapin::Error),
    /// A call about a queue failed.
    #[error(
        "queue `{0}`: {1}; what was not decided stays. If it fails again, look at the queue's head and at the broker's log"
    )]
    At(String, lapin::Error),
    /// A queue is not there.
    #[error(
        "the queue `{0}` does not exist on this virtual host; if `queue.url` is right, declare everything by `postrider topology apply`"
    )]
    Absent(String),
    /// A connection does not come up.
    #[error("the broker did not set up the consumers within {0:?}")]
    Slow(Duration),
    /// The file failed.
    #[error("the queue's file: {0}")]
    Embedded(#[from] DbError),
    /// The address is of no known kind.
    #[error("a queue's address begins with amqp://, amqps:// or embedded:")]
    Scheme,
}

/// Why a settlement did not arrive. The message comes back.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The copy that was to replace the message is not confirmed; the message was not acknowledged.
    #[error("the copy was not confirmed: {0}")]
    Copy(#[from] PublishError),
    /// The acknowledgement could not be made: its channel, or its lease, is gone.
    #[error("the acknowledgement was lost with its channel or lease")]
    AckLost,
    /// The file could not be written.
    #[error("the queue's file: {0}")]
    Embedded(DbError),
}

impl Queue {
    /// Connects, and declares or verifies the topology.
    pub async fn connect(config: &QueueConfig) -> Result<Self, QueueError> {
        let url = config.url.expose_secret();
        if url.starts_with("amqp://") || url.starts_with("amqps://") {
            let queue = rabbitmq::RabbitQueue::connect(url, config.topology, config.shards).await?;
            return Ok(Self::Rabbit(Box::new(queue)));
        }
        match url.strip_prefix(SCHEME) {
            Some(path) => Ok(Self::Embedded(embedded::EmbeddedQueue::open(path).await?)),
            None => Err(QueueError::Scheme),
        }
    }

    /// Connects to a queue that is there, for commands that look at it or change what rests in it: declares, verifies and makes nothing.
    pub async fn connect_existing(config: &QueueConfig) -> Result<Self, QueueError> {
        let url = config.url.expose_secret();
        match url.strip_prefix(SCHEME) {
            Some(path) => Ok(Self::Embedded(embedded::EmbeddedQueue::open_existing(path).await?)),
            None => Self::connect(&QueueConfig { topology: TopologyMode::LeaveAlone, ..config.clone() }).await,
        }
    }

    /// Begins to consume. Once per queue.
    pub fn subscribe(&self, options: SubscribeOptions) -> Deliveries {
        let (sender, receiver) = mpsc::unbounded_channel();
        match self {
            Self::Rabbit(queue) => queue.subscribe(options, sender),
            Self::Embedded(queue) => queue.subscribe(options, sender),
        }
        Deliveries { receiver }
    }

    /// False for a delivery whose settlement could not arrive any more.
    pub fn usable(&self, delivery: &Delivery) -> bool {
        match &delivery.receipt {
            DeliveryReceipt::Rabbit(receipt) => receipt.is_usable(),
            // A lease is renewed while the process lives; settling is fenced all the same.
            DeliveryReceipt::Embedded(_) => true,
        }
    }

    /// Ends a delivery: the copy first, confirmed, then the acknowledgement.
    pub async fn settle(&self, delivery: Delivery, settlement: Settlement) -> Result<(), SettleError> {
        match self {
            Self::Rabbit(queue) => queue.settle(delivery, settlement).await,
            Self::Embedded(queue) => queue.settle(delivery, settlement).await,
        }
    }

    /// Publishes an event; dropped by the queue where nobody listens, written down where somebody does and takes nothing now.
    pub async fn emit(&self, event: &Event) -> Result<(), EmitError> {
        match self {
            Self::Rabbit(queue) => Ok(queue.emit(event).await?),
            Self::Embedded(queue) => Ok(queue.emit(event).await?),
        }
    }

    /// True where as many events are written down as may be: another try is no use before somebody listens.
    pub fn has_no_room_for_events(&self) -> bool {
        match self {
            Self::Rabbit(queue) => queue.has_no_room_for_events(),
            Self::Embedded(_) => false,
        }
    }

    /// True while every consumer runs.
    pub fn consumers_up(&self) -> bool {
        match self {
            Self::Rabbit(queue) => queue.consumers_up(),
            Self::Embedded(queue) => queue.consumers_up(),
        }
    }

    /// False once what keeps the consumers up did nothing for too long: only a restart helps.
    pub fn is_alive(&self) -> bool {
        match self {
            Self::Rabbit(queue) => queue.is_alive(),
            Self::Embedded(_) => true,
        }
    }

    /// What it is, as telemetry names it.
    pub fn system(&self) -> &'static str {
        match self {
            Self::Rabbit(_) => "rabbitmq",
            Self::Embedded(_) => "postrider",
        }
    }

    /// Host and port of the broker, where there is one.
    pub fn address(&self) -> Option<&(Arc<str>, u16)> {
        match self {
            Self::Rabbit(queue) => Some(&queue.address),
            Self::Embedded(_) => None,
        }
    }

    /// True while the queue takes what is published. A file always does, as far as is known before it is tried.
    pub fn takes(&self) -> bool {
        match self {
            Self::Rabbit(queue) => queue.takes(),
            Self::Embedded(_) => true,
        }
    }

    /// What waits where. The ladder has many queues: it is looked at where that is asked for.
    pub async fn depths(&self, with_ladder: bool) -> Result<Depths, QueueError> {
        match self {
            Self::Rabbit(queue) => queue.depths(with_ladder).await,
            Self::Embedded(queue) => queue.depths().await,
        }
    }

    /// Takes nothing new, and returns when nothing more will be delivered. What was delivered can still be settled.
    pub async fn stop_consuming(&self) {
        match self {
            Self::Rabbit(queue) => queue.stop_consuming().await,
            Self::Embedded(queue) => queue.stop_consuming().await,
        }
    }

    /// Sends what is left to be said and closes. What was not settled is delivered again.
    pub async fn close(&self) {
        match self {
            Self::Rabbit(queue) => queue.close().await,
            Self::Embedded(queue) => queue.close().await,
        }
    }

    /// Shows every message at rest to `decide`, in order, and does what it says. Returns how many were looked at.
    pub async fn rest_each(
        &self,
        rest: Rest,
        decide: impl AsyncFnMut(&RestMessage) -> RestVerdict,
    ) -> Result<u64, RestError> {
        match self {
            Self::Rabbit(queue) => queue.rest_each(rest, decide).await,
            Self::Embedded(queue) => queue.rest_each(rest, decide).await,
        }
    }

    /// Events about a job that are kept, in order, as encoded JSON; nothing where the queue keeps none.
    pub async fn events_about(&self, id: &str) -> Result<Option<Vec<Vec<u8>>>, QueueError> {
        match self {
            Self::Rabbit(_) => Ok(None),
            Self::Embedded(queue) => queue.events_about(id).await.map(Some),
        }
    }

    /// The id of a tenant's job with this idempotency key, where the queue keeps events or messages that tell it.
    pub async fn id_of_key(&self, tenant: &Tenant, key: &str) -> Result<Option<JobId>, QueueError> {
        match self {
            Self::Rabbit(_) => Ok(None),
            Self::Embedded(queue) => queue.id_of_key(tenant, key).await,
        }
    }

    /// The messages of a job, with the queue that each is in; nothing where that cannot be seen without taking them.
    pub async fn waiting(&self, id: &str) -> Result<Option<Vec<(String, RestMessage)>>, QueueError> {
        match self {
            Self::Rabbit(_) => Ok(None),
            Self::Embedded(queue) => queue.waiting(id).await.map(Some),
        }
    }

    /// Events from now on, as encoded JSON.
    pub async fn events(&self) -> Result<mpsc::Receiver<Bytes>, QueueError> {
        match self {
            Self::Rabbit(queue) => queue.events().await,
            Self::Embedded(queue) => queue.events().await,
        }
    }
}

/// Why an event was not published.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The broker did not take it.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The file did not.
    #[error(transparent)]
    Embedded(#[from] DbError),
}

impl EmitError {
    /// True where the same event may be taken a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Publish(error) => *error != PublishError::Closed,
            Self::Embedded(error) => error.is_transient(),
        }
    }
}

/// Why a look through messages at rest ended early. What was not decided stays.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A copy was not confirmed.
    #[error("a copy was not confirmed: {0}")]
    Copy(#[from] PublishError),
}
