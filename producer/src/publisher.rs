//! What a backend service calls: connect, publish, close.

use futures_util::{Stream, StreamExt as _};
use postrider_schemas::{
    Job, JobId, Meta,
    topology::{SUBMIT_EXCHANGE, submit_key},
    wire::{self, JOB_CONTENT_TYPE, JOB_TYPE},
};
use tracing::Instrument as _;

use crate::{
    embedded::EmbeddedPublisher,
    rabbitmq::{
        ConnectError,
        link::{ForeignProperties, Link, LinkLimits, Outgoing, PublishError},
    },
    trace,
};

/// Publishes that [`Publisher::publish_all`] keeps waiting for their confirm at once.
const IN_FLIGHT: usize = 256;

/// Puts jobs on the queue.
pub struct Publisher {
    queue: Queue,
    /// The user that the broker is to vouch for.
    user: Option<String>,
    shards: u16,
}

enum Queue {
    Rabbit(Link),
    Embedded(EmbeddedPublisher),
}

/// Why a publisher cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// The broker cannot be reached.
    #[error(transparent)]
    Broker(#[from] ConnectError),
    /// The file cannot be opened.
    #[error("{0}")]
    Embedded(String),
    /// The address is neither.
    #[error("a queue's address begins with amqp://, amqps:// or embedded:")]
    Scheme,
}

impl Publisher {
    /// Connects to `amqp://`, `amqps://` or `embedded:FILE`.
    pub async fn connect(url: &str) -> Result<Self, PublisherError> {
        Self::connect_with(url, LinkLimits::default()).await
    }

    /// The same with limits of the caller's: a service that answers somebody waits for less long.
    pub async fn connect_with(url: &str, limits: LinkLimits) -> Result<Self, PublisherError> {
        let queue = if let Some(path) = url.strip_prefix("embedded:") {
            let opened = EmbeddedPublisher::open(path).await;
            Queue::Embedded(opened.map_err(|error| PublisherError::Embedded(error.to_string()))?)
        } else if url.starts_with("amqp://") || url.starts_with("amqps://") {
            Queue::Rabbit(Link::connect(url, "postrider-producer", limits).await?)
        } else {
            return Err(PublisherError::Scheme);
        };
        Ok(Self { queue, user: None, shards: 1 })
    }

    /// Spreads jobs over this many queues per lane; the workers' `queue.shards` must be the same.
    #[must_use]
    pub fn with_shards(mut self, shards: u16) -> Self {
        self.shards = shards.max(1);
        self
    }

    /// Names the broker's user of this connection in each message, for the broker to vouch for: it refuses any other name. Workers with the setting
    /// `queue.tenants` take no job without it.
    #[must_use]
    pub fn with_user_id(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Publishes a job. `Ok` means that the queue has it on disk. After an error the same job may be published again: it is recognised
    /// by its identity and sent once.
    pub async fn publish(&self, job: &Job) -> Result<(), PublishError> {
        self.publish_within(job, None).await
    }

    /// The same within the trace of whoever asked for it: `traceparent` is theirs, as the W3C has it. It counts where this process traces nothing
    /// itself.
    pub async fn publish_within(&self, job: &Job, traceparent: Option<&str>) -> Result<(), PublishError> {
        let system = match &self.queue {
            Queue::Rabbit(_) => "rabbitmq",
            Queue::Embedded(_) => "postrider",
        };
        let span = trace::sending(job, system);
        let mut meta =
            Meta { expires: job.expires_at(), payload_hash: Some(job.payload_hash().to_hex()), ..Meta::default() };
        span.in_scope(|| trace::inject(&mut meta));
        if let (None, Some(parent)) = (&meta.traceparent, traceparent) {
            meta.traceparent = Some(parent.to_owned());
            meta.trace0.clone_from(&meta.traceparent);
        }
        self.hand_over(job, meta).instrument(span).await
    }

    async fn hand_over(&self, job: &Job, meta: Meta) -> Result<(), PublishError> {
        match &self.queue {
            Queue::Embedded(queue) => {
                queue.publish(job, &meta).await.map_err(|error| PublishError::Embedded(error.to_string()))
            }
            Queue::Rabbit(link) => {
                let message = Outgoing {
                    exchange: SUBMIT_EXCHANGE.to_owned(),
                    routing_key: submit_key(job.lane(), self.shard(job)),
                    message_id: job.id().to_string(),
                    kind: JOB_TYPE.to_owned(),
                    content_type: JOB_CONTENT_TYPE,
                    headers: meta.to_pairs(),
                    body: wire::encode(job),
                    mandatory: true,
                    user_id: self.user.clone(),
                    published_at: None,
                    foreign: ForeignProperties::default(),
                };
                link.publish(&message).await
            }
        }
    }

    /// Publishes many jobs with many confirms in flight. Results come in the order in which they are known.
    pub fn publish_all<S>(&self, jobs: S) -> impl Stream<Item = (JobId, Result<(), PublishError>)>
    where
        S: Stream<Item = Job>,
    {
        jobs.map(move |job| async move { (job.id(), self.publish(&job).await) }).buffer_unordered(IN_FLIGHT)
    }

    /// False while the broker blocks publishing, or there is no connection to it. A publish may help itself nevertheless.
    pub fn takes(&self) -> bool {
        match &self.queue {
            Queue::Rabbit(link) => link.takes(),
            Queue::Embedded(_) => true,
        }
    }

    /// Says goodbye. Publishes under way get an answer first or an error that says so.
    pub async fn close(&self) {
        if let Queue::Rabbit(link) = &self.queue {
            link.close().await;
        }
    }

    fn shard(&self, job: &Job) -> u16 {
        shard(job.tenant().as_str(), job.id(), self.shards)
    }
}

/// The shard of a job: stable, spread evenly (FNV-1a over tenant and id).
fn shard(tenant: &str, id: JobId, shards: u16) -> u16 {
    let bytes = tenant.bytes().chain(id.0.into_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u16::try_from(hash % u64::from(shards)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_spread_over_the_shards_and_stay_there() {
        let mut counts = [0; 4];
        for _ in 0..4000 {
            let id = JobId::generate();
            let place = shard("shop", id, 4);
            assert_eq!(place, shard("shop", id, 4));
            counts[usize::from(place)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[tokio::test]
    async fn an_address_of_another_kind_is_refused() {
        assert!(matches!(Publisher::connect("http://x").await, Err(PublisherError::Scheme)));
    }
}
