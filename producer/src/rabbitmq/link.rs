//! A publishing connection that mends itself. `publish` returns when the broker has confirmed the message, after however many connections.
//!
//! **Invariant:** a message is never given up while an earlier copy of it may still be confirmed as something else: each
//! repetition carries the same message id, and who receives it twice recognises it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{ConnectError, connect, reply_code, short, table, within};

/// Publishes that wait for their confirm at once.
const IN_FLIGHT_MAX: usize = 1024;
/// First and longest wait between two tries to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A message for the broker.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The message id: the same for each repetition.
    pub message_id: String,
    /// The AMQP `type`.
    pub kind: String,
    /// The media type of the body.
    pub content_type: &'static str,
    /// Headers; none of a message that this one replaces survives beside them.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
    /// Refuse a message that no queue wants.
    pub mandatory: bool,
    /// The user that publishes, for the broker to vouch for; it refuses any other name than that of the connection.
    pub user_id: Option<String>,
    /// When it was published, where that was before: the copy of a message that nobody began keeps its time.
    pub published_at: Option<Timestamp>,
    /// What else the message that it replaces had.
    pub foreign: ForeignProperties,
}

/// Properties of a message that copies of it keep, because whoever reads the copy needs them as much. None of them tells the broker to do anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignProperties {
    /// The media type, where it is another one than [`Outgoing::content_type`].
    pub content_type: Option<String>,
    /// How the body is packed.
    pub content_encoding: Option<String>,
    /// The producer's own mark.
    pub correlation_id: Option<String>,
    /// The producer's name.
    pub app_id: Option<String>,
}

impl ForeignProperties {
    /// Those of a message.
    pub fn of(properties: &BasicProperties) -> Self {
        let text = |value: Option<&ShortString>| value.map(ToString::to_string);
        Self {
            content_type: text(properties.content_type().as_ref()),
            content_encoding: text(properties.content_encoding().as_ref()),
            correlation_id: text(properties.correlation_id().as_ref()),
            app_id: text(properties.app_id().as_ref()),
        }
    }

    fn put(&self, mut properties: BasicProperties) -> BasicProperties {
        if let Some(value) = &self.content_type {
            properties = properties.with_content_type(short(value));
        }
        if let Some(value) = &self.content_encoding {
            properties = properties.with_content_encoding(short(value));
        }
        if let Some(value) = &self.correlation_id {
            properties = properties.with_correlation_id(short(value));
        }
        if let Some(value) = &self.app_id {
            properties = properties.with_app_id(short(value));
        }
        properties
    }
}

/// Why a message was not published. The same message may be published again: its id is the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker blocks publishing (a memory or disk alarm).
    #[error("the broker blocks publishing, probably for want of memory or disk; try again later")]
    Busy,
    /// No queue wants the message.
    #[error("no queue takes the message ({0}); `postrider topology apply` declares what is missing")]
    Unroutable(String),
    /// The broker said no.
    #[error("the broker refused the message; a queue may be full, see its log")]
    Nacked,
    /// No confirm came in time, over however many connections.
    #[error("no confirm within {0:?}: {1}")]
    Timeout(Duration, String),
    /// The publisher was closed.
    #[error("the publisher is closed")]
    Closed,
    /// The embedded queue failed.
    #[error("{0}")]
    Embedded(String),
}

/// Limits on publishing.
#[derive(Debug, Clone, Copy)]
pub struct LinkLimits {
    /// How long a publish may take in all.
    pub publish: Duration,
    /// How long a blocked broker is waited for.
    pub busy: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { publish: Duration::from_secs(30), busy: Duration::from_secs(5) }
    }
}

/// A supervised publishing connection. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    name: String,
    limits: LinkLimits,
    live: Mutex<Option<Arc<Live>>>,
    permits: Semaphore,
    connections: AtomicU64,
}

struct Live {
    number: u64,
    connection: Connection,
    channel: Channel,
}

impl Live {
    fn is_up(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

/// What one try came to.
enum Try {
    Confirmed,
    Refused(PublishError),
    Broken(String),
}

impl Link {
    /// Connects. `name` is what the broker shows for the connection.
    pub async fn connect(url: &str, name: &str, limits: LinkLimits) -> Result<Self, ConnectError> {
        let inner = Inner {
            url: url.to_owned(),
            name: name.to_owned(),
            limits,
            live: Mutex::new(None),
            permits: Semaphore::new(IN_FLIGHT_MAX),
            connections: AtomicU64::new(0),
        };
        let link = Self { inner: Arc::new(inner) };
        link.live().await?;
        Ok(link)
    }

    /// Publishes and waits for the confirm.
    pub async fn publish(&self, message: &Outgoing) -> Result<(), PublishError> {
        let _permit = self.inner.permits.acquire().await.map_err(|_| PublishError::Closed)?;
        let limit = self.inner.limits.publish;
        let end = Instant::now() + limit;
        let (mut wait, mut nacks, mut last) = (BACKOFF.0, 0, "never connected".to_owned());
        while Instant::now() < end {
            if self.inner.permits.is_closed() {
                return Err(PublishError::Closed);
            }
            let outcome = match self.live().await {
                Err(error) => Try::Broken(error.to_string()),
                Ok(live) => match self.publish_once(&live, message, end).await {
                    Try::Broken(error) => {
                        self.forget(&live).await;
                        Try::Broken(error)
                    }
                    outcome => outcome,
                },
            };
            match outcome {
                Try::Confirmed => return Ok(()),
                // A queue that dead-letters or a leader that moves says no for a moment.
                Try::Refused(PublishError::Nacked) if nacks < 3 => nacks += 1,
                Try::Refused(error) => return Err(error),
                Try::Broken(error) => {
                    debug!(%error, "A publish is repeated on a new connection");
                    last = error;
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
        Err(PublishError::Timeout(limit, last))
    }

    async fn publish_once(&self, live: &Live, message: &Outgoing, end: Instant) -> Try {
        if !self.wait_unblocked(live).await {
            return Try::Refused(PublishError::Busy);
        }
        let published_at = message.published_at.unwrap_or_else(Timestamp::now);
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(short(message.content_type))
            .with_type(short(&message.kind))
            .with_message_id(short(&message.message_id))
            .with_timestamp(u64::try_from(published_at.as_second()).unwrap_or_default())
            .with_headers(table(&message.headers));
        let properties = message.foreign.put(properties);
        let properties = match &message.user_id {
            Some(user) => properties.with_user_id(short(user)),
            None => properties,
        };
        let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
        let confirmed = async {
            let confirm = live
                .channel
                .basic_publish(
                    short(&message.exchange),
                    short(&message.routing_key),
                    options,
                    &message.body,
                    properties,
                )
                .await?;
            confirm.await
        };
        let mut confirmed = std::pin::pin!(confirmed);
        loop {
            match timeout(self.inner.limits.busy.min(end.saturating_duration_since(Instant::now())), &mut confirmed)
                .await
            {
                Ok(Ok(Confirmation::Ack(None))) => return Try::Confirmed,
                Ok(Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)))) => {
                    return Try::Refused(PublishError::Unroutable(back.reply_text.to_string()));
                }
                Ok(Ok(Confirmation::Nack(None))) => return Try::Refused(PublishError::Nacked),
                Ok(Ok(Confirmation::NotRequested)) => return Try::Broken("confirms are off".to_owned()),
                // The broker closes the channel over it; the next publish opens another.
                Ok(Err(error)) if reply_code(&error) == Some(404) => {
                    return Try::Refused(PublishError::Unroutable(format!("no exchange `{}`", message.exchange)));
                }
                Ok(Err(error)) => return Try::Broken(error.to_string()),
                Err(_) if live.connection.status().blocked() => return Try::Refused(PublishError::Busy),
                Err(_) if Instant::now() >= end => return Try::Broken("no confirm".to_owned()),
                Err(_) => {}
            }
        }
    }

    /// True once the broker takes messages; false if it blocks for longer than the limit.
    async fn wait_unblocked(&self, live: &Live) -> bool {
        let end = Instant::now() + self.inner.limits.busy;
        while live.connection.status().blocked() && live.is_up() {
            if Instant::now() >= end {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
        true
    }

    /// The connection, made anew where there is none.
    async fn live(&self) -> Result<Arc<Live>, ConnectError> {
        let mut slot = self.inner.live.lock().await;
        if let Some(live) = slot.as_ref().filter(|live| live.is_up()) {
            return Ok(Arc::clone(live));
        }
        let connection = connect(&self.inner.url, &self.inner.name).await?;
        let refused = |error| ConnectError::Refused("the broker".to_owned(), error);
        // Others wait for the lock meanwhile: neither call may go without an end.
        let channel = within("channel.open", connection.create_channel()).await.map_err(refused)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within("confirm.select", confirms).await.map_err(refused)?;
        let number = self.inner.connections.fetch_add(1, Ordering::Relaxed);
        if number > 0 {
            warn!(connections = number + 1, "Connected to the broker again for publishing");
        }
        let live = Arc::new(Live { number, connection, channel });
        *slot = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Lets a broken connection go, unless somebody made a new one already.
    async fn forget(&self, broken: &Live) {
        let mut slot = self.inner.live.lock().await;
        if slot.as_ref().is_some_and(|live| live.number == broken.number) {
            *slot = None;
        }
    }

    /// True while the broker blocks publishing.
    pub async fn is_blocked(&self) -> bool {
        self.inner.live.lock().await.as_ref().is_some_and(|live| live.connection.status().blocked())
    }

    /// False while the broker blocks publishing, or there is no connection.
    pub fn takes(&self) -> bool {
        // Who holds the lock connects.
        let Ok(slot) = self.inner.live.try_lock() else { return false };
        slot.as_ref().is_some_and(|live| live.is_up() && !live.connection.status().blocked())
    }

    /// Takes no further message and closes the connection.
    pub async fn close(&self) {
        self.inner.permits.close();
        if let Some(live) = self.inner.live.lock().await.take() {
            // A connection that cannot say goodbye is as closed as one that did.
            let _ = timeout(Duration::from_secs(2), live.connection.close(200, short("bye"))).await;
        }
    }
}
