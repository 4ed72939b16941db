//! The queue as the gateway sees it: a publisher that is there or comes back.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use postrider_producer::{PublishError, Publisher, PublisherError, rabbitmq::link::LinkLimits};
use postrider_schemas::Job;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::problem::{Kind, Problem};

/// The wait between two tries to connect at the start.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// What clients are told to wait while the queue takes nothing.
const RETRY_AFTER: u64 = 5;

/// Where jobs go, and as whom.
#[derive(Clone)]
pub struct QueueSettings {
    /// `amqp(s)://...` or `embedded:FILE`.
    pub url: String,
    /// Queues per lane.
    pub shards: u16,
    /// The user that the broker is to vouch for.
    pub user: Option<String>,
    /// How long a confirm is waited for.
    pub confirm: Duration,
}

/// The queue. Until the first connection stands nothing is taken; after that the publisher mends itself.
#[derive(Clone, Default)]
pub struct Queue(Arc<ArcSwapOption<Publisher>>);

impl Queue {
    /// Connects, again and again until it stands. What waiting does not mend is an error: an address that is none.
    pub async fn connect(&self, settings: QueueSettings) -> Result<(), PublisherError> {
        let limits = LinkLimits { publish: settings.confirm, busy: settings.confirm.min(Duration::from_secs(2)) };
        let mut is_told = false;
        loop {
            match Publisher::connect_with(&settings.url, limits).await {
                Ok(publisher) => {
                    let mut publisher = publisher.with_shards(settings.shards);
                    if let Some(user) = &settings.user {
                        publisher = publisher.with_user_id(user.clone());
                    }
                    self.0.store(Some(Arc::new(publisher)));
                    info!("Connected to the queue");
                    return Ok(());
                }
                Err(error @ PublisherError::Broker(_)) => {
                    if !is_told {
                        warn!(%error, "The queue cannot be reached; requests are answered with 503 until it can");
                        is_told = true;
                    }
                    sleep(CONNECT_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether jobs can be taken now.
    pub fn is_up(&self) -> bool {
        self.0.load().as_ref().is_some_and(|publisher| publisher.takes())
    }

    /// Publishes a job, and comes back when the queue has it on disk. After a problem the same job may be handed over again.
    pub async fn publish(&self, job: &Job, traceparent: Option<&str>) -> Result<(), Problem> {
        let Some(publisher) = self.0.load_full() else {
            return Err(unavailable("The queue cannot be reached."));
        };
        publisher.publish_within(job, traceparent).await.map_err(|error| {
            warn!(%error, job.id = %job.id(), "A job was not taken: the queue did not confirm it");
            problem_of(&error)
        })
    }

    /// Says goodbye.
    pub async fn close(&self) {
        if let Some(publisher) = self.0.swap(None) {
            publisher.close().await;
        }
    }
}

/// What a client is told. The texts of brokers and files stay in the log.
fn problem_of(error: &PublishError) -> Problem {
    unavailable(match error {
        PublishError::Busy => "The queue takes no jobs at this moment: it lacks memory or disk.",
        PublishError::Unroutable(_) => "The queue is not set up: no queue takes the job.",
        PublishError::Nacked => "The queue refused the job; it may be full.",
        PublishError::Timeout(..) => "The queue did not confirm the job in time.",
        PublishError::Closed => "This gateway stops.",
        PublishError::Embedded(_) => "The queue's file could not be written.",
    })
}

fn unavailable(reason: &str) -> Problem {
    let detail = format!("{reason} Nothing is promised: send the same request again, with the same Idempotency-Key.");
    Problem::new(Kind::Unavailable, detail).retry_after(RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;

    fn job() -> Job {
        let job = JobV1 {
            from: "a@b.example".into(),
            to: vec!["c@d.example".into()],
            text: Some("t".to_owned()),
            ..JobV1::default()
        };
        job.parse(&JobLimits::DEFAULT).unwrap()
    }

    fn settings(url: &str) -> QueueSettings {
        QueueSettings { url: url.to_owned(), shards: 1, user: None, confirm: Duration::from_secs(5) }
    }

    #[tokio::test]
    async fn before_it_is_connected_nothing_is_taken() {
        let queue = Queue::default();
        assert!(!queue.is_up());
        let problem = queue.publish(&job(), None).await.unwrap_err();
        assert_eq!((problem.kind, problem.retry_after), (Kind::Unavailable, Some(RETRY_AFTER)));
    }

    #[tokio::test]
    async fn a_file_takes_jobs_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::default();
        let file = folder.path().join("queue.db");
        queue.connect(settings(&format!("embedded:{}", file.display()))).await.unwrap();
        assert!(queue.is_up());
        queue.publish(&job(), None).await.unwrap();
        queue.close().await;
        assert!(!queue.is_up() && queue.publish(&job(), None).await.is_err());
    }

    #[tokio::test]
    async fn an_address_of_another_kind_ends_the_start() {
        assert!(Queue::default().connect(settings("http://x")).await.is_err());
    }
}
