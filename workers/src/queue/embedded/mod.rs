//! The queue in a SQLite file: the same settlements as on a broker, for several processes of one machine.
//!
//! A delivery is a row with an owner, a lease and a number (`fence`) that grows each time the row is taken. The owner renews its leases while it
//! lives; what a lost process had in hand is free again when they end. Settling is fenced by that number: who lost a row changes nothing, even
//! where it has the same row in hand again. Leases and waits are told by the file's clock, which no step of a wall clock moves. A copy and the end
//! of its original are one transaction, so there is no moment between them.

mod fetch;
mod rows;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use postrider_producer::embedded::{Db, DbError, tables};
use postrider_schemas::{Event, JobId, Tenant};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    Delivery, DeliveryReceipt as AnyReceipt, QueueError, Rest, RestError, RestMessage, RestVerdict, SettleError,
    SubscribeOptions, depths::Depths,
};
use crate::policy::settlement::Settlement;

/// How long a row stays with an owner that gives no sign of life.
const LEASE: Duration = Duration::from_secs(15);
/// Between two tries to write a settlement.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);
/// Newest events that are kept.
const EVENTS_KEPT: i64 = 100_000;
/// Rows looked at in one go by tools.
const PAGE: i64 = 100;
/// The same for messages, which may be large.
const REST_PAGE: i64 = 4;

/// The right to settle one delivery of a row.
pub struct EmbeddedReceipt {
    take: rows::Take,
    /// The place in the prefetch, free again with the settlement.
    _room: OwnedSemaphorePermit,
}

/// The queue in a file.
pub struct EmbeddedQueue {
    db: Db,
    /// Names this queue in the rows that it has in hand.
    owner: Arc<str>,
    up: Arc<AtomicBool>,
    stop: CancellationToken,
    end: CancellationToken,
    fetchers: TaskTracker,
    tasks: TaskTracker,
}

impl EmbeddedQueue {
    /// Opens the file, makes it where it is missing.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, QueueError> {
        let db = Db::open(path)?;
        tables::ensure(&db).await?;
        Ok(Self::with(db))
    }

    /// Opens the file of a queue that is there; makes nothing.
    pub async fn open_existing(path: impl AsRef<Path>) -> Result<Self, QueueError> {
        Ok(Self::with(Db::open_existing(path, "message").await?))
    }

    fn with(db: Db) -> Self {
        Self {
            db,
            owner: uuid::Uuid::now_v7().to_string().into(),
            up: Arc::default(),
            stop: CancellationToken::new(),
            end: CancellationToken::new(),
            fetchers: TaskTracker::new(),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn subscribe(&self, options: SubscribeOptions, deliveries: mpsc::UnboundedSender<Delivery>) {
        self.up.store(true, Ordering::Relaxed);
        let plans = fetch::plans(&options);
        info!(consumers = plans.len(), "Consuming");
        for plan in plans {
            let fetcher = fetch::Fetcher {
                db: self.db.clone(),
                owner: Arc::clone(&self.owner),
                plan,
                memory: options.memory.clone(),
                deliveries: deliveries.clone(),
                stop: self.stop.clone(),
            };
            self.fetchers.spawn(fetcher.run());
        }
        self.tasks.spawn(fetch::renew(self.db.clone(), Arc::clone(&self.owner), LEASE, self.end.clone()));
    }

    pub(super) async fn settle(&self, delivery: Delivery, settlement: Settlement) -> Result<(), SettleError> {
        let AnyReceipt::Embedded(EmbeddedReceipt { take, _room }) = delivery.into_receipt() else {
            return Err(SettleError::AckLost);
        };
        let clock = self.db.clock();
        let change = Arc::new(rows::RowChange::of(settlement, clock.now_ms()));
        let brings_work = !matches!(*change, rows::RowChange::Delete);
        let mut is_told = false;
        loop {
            let (owner, change, clock) = (Arc::clone(&self.owner), Arc::clone(&change), clock.clone());
            match self.db.call(move |db| rows::settle(db, take, &owner, &change, clock.now_ms())).await {
                Ok(true) => {
                    if brings_work {
                        self.db.arrived();
                    }
                    return Ok(());
                }
                Ok(false) => return Err(SettleError::AckLost),
                // A full disk, say. Given up, the row would stay ours, untouched, for as long as this process lives. The drain's limit ends the wait.
                Err(error) if error.is_transient() && !self.end.is_cancelled() => {
                    if !is_told {
                        warn!(%error, "A settlement is not written; it is tried until it is");
                        is_told = true;
                    }
                    sleep(SETTLE_PAUSE).await;
                }
                Err(error) => return Err(SettleError::Embedded(error)),
            }
        }
    }

    pub(super) async fn emit(&self, event: &Event) -> Result<(), DbError> {
        let (id, key, json, at) = (event.id.clone(), event.routing_key(), event.encode(), event.time.as_millisecond());
        self.db
            .call(move |db| {
                db.prepare_cached("INSERT INTO event (id, routing_key, json, at) VALUES (?1, ?2, ?3, ?4)")?
                    .execute((&id, &key, &json, at))?;
                let number = db.last_insert_rowid();
                if number % 1000 == 0 {
                    db.execute("DELETE FROM event WHERE number <= ?1", [number - EVENTS_KEPT])?;
                }
                Ok(())
            })
            .await
    }

    pub(super) fn consumers_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Returns once nothing more is taken. What is being taken when this is called is handed on like what was taken before.
    pub(super) async fn stop_consuming(&self) {
        self.up.store(false, Ordering::Relaxed);
        self.stop.cancel();
        self.fetchers.close();
        self.fetchers.wait().await;
    }

    pub(super) async fn close(&self) {
        self.end.cancel();
        self.tasks.close();
        // The tasks look at their tokens; what they wait for is bounded by the file's own limit.
        let ended = async { tokio::join!(self.stop_consuming(), self.tasks.wait()) };
        let _ = timeout(Duration::from_secs(5), ended).await;
        let owner = Arc::clone(&self.owner);
        // A file that cannot be written to now gives its rows back when their leases end.
        let _ = self.db.call(move |db| rows::free_all(db, &owner)).await;
    }

    /// See [`crate::queue::Queue::id_of_key`].
    pub(super) async fn id_of_key(&self, tenant: &Tenant, key: &str) -> Result<Option<JobId>, QueueError> {
        let (tenant, key) = (tenant.as_str().to_owned(), key.to_owned());
        Ok(self.db.call(move |db| rows::id_of_key(db, &tenant, &key)).await?)
    }

    /// See [`crate::queue::Queue::events_about`].
    pub(super) async fn events_about(&self, id: &str) -> Result<Vec<Vec<u8>>, QueueError> {
        let id = id.to_owned();
        Ok(self.db.call(move |db| rows::events_about(db, &id)).await?)
    }

    /// See [`crate::queue::Queue::waiting`].
    pub(super) async fn waiting(&self, id: &str) -> Result<Vec<(String, RestMessage)>, QueueError> {
        let id = id.to_owned();
        Ok(self.db.call(move |db| rows::waiting(db, &id)).await?)
    }

    /// See [`crate::queue::Queue::depths`].
    pub(super) async fn depths(&self) -> Result<Depths, QueueError> {
        let clock = self.db.clock().clone();
        Ok(self.db.look(move |db| rows::depths(db, clock.now_ms())).await?)
    }

    /// Events from now on.
    pub(super) async fn events(&self) -> Result<mpsc::Receiver<Bytes>, QueueError> {
        let mut seen: i64 = self
            .db
            .call(|db| Ok(db.query_row("SELECT coalesce(max(number), 0) FROM event", [], |row| row.get(0))?))
            .await?;
        let (sender, receiver) = mpsc::channel(256);
        let db = self.db.clone();
        tokio::spawn(async move {
            let mut commits = db.commits();
            loop {
                let after = seen;
                let Ok(page) = db.look(move |db| rows::events(db, after, PAGE)).await else { return };
                for (number, json) in page {
                    seen = number;
                    if sender.send(Bytes::from(json)).await.is_err() {
                        return;
                    }
                }
                if seen == after && commits.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// See [`crate::queue::Queue::rest_each`].
    pub(super) async fn rest_each(
        &self,
        rest: Rest,
        mut decide: impl AsyncFnMut(&RestMessage) -> RestVerdict,
    ) -> Result<u64, RestError> {
        let queue = match rest {
            Rest::Dead => "dead",
            Rest::Hold => "hold",
            Rest::Unroutable => return Ok(0),
        };
        let (mut seen, mut after) = (0, 0);
        loop {
            let page =
                self.db.call(move |db| rows::at_rest(db, queue, after, REST_PAGE)).await.map_err(QueueError::from)?;
            let Some((last, _)) = page.last() else { return Ok(seen) };
            after = last.row;
            for (take, message) in page {
                seen += 1;
                let verdict = decide(&message).await;
                let clock = self.db.clock().clone();
                let decided = move |db: &_| rows::decided(db, queue, take, &verdict, clock.now_ms());
                if !self.db.call(decided).await.map_err(QueueError::from)? {
                    let id = message.message_id.as_deref().unwrap_or("without an id");
                    warn!(
                        job.id = id,
                        queue, "A message left its rest while it was looked at; it stays as somebody else decided"
                    );
                }
                self.db.arrived();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_producer::embedded::tables;
    use rusqlite::Connection;

    use super::*;
    use crate::memory::{Budget, Memory};

    #[tokio::test]
    async fn what_is_being_taken_at_a_stop_is_handed_on_and_can_be_handed_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let queue = EmbeddedQueue::open(&path).await.unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch(tables::DDL).unwrap();
        other
            .execute_batch(
                "BEGIN IMMEDIATE; INSERT INTO message (queue, lane, published_at, body) \
                 VALUES ('jobs', 'bulk', 0, x'00'), ('jobs', 'bulk', 0, x'00'), ('due', 'bulk', 0, x'00')",
            )
            .unwrap();
        let (sender, mut deliveries) = mpsc::unbounded_channel();
        queue.subscribe(
            SubscribeOptions { shards: 1, transactional: 8, bulk: 8, memory: Memory::new(Budget::of(1 << 30)) },
            sender,
        );
        // The file's thread waits for the other connection and answers nobody: the fetchers take.
        while timeout(Duration::from_millis(200), queue.db.look(|_| Ok(()))).await.is_ok() {}
        let stopping = queue.stop_consuming();
        let writing = async { other.execute_batch("COMMIT").unwrap() };
        tokio::join!(stopping, writing);
        let mut count = 0;
        while let Ok(delivery) = deliveries.try_recv() {
            queue.settle(delivery, Settlement::Return).await.unwrap();
            count += 1;
        }
        let free = "SELECT count(*) FROM message WHERE owner IS NULL AND deliveries = 0";
        assert_eq!((count, other.query_row(free, [], |row| row.get(0))), (3, Ok(3)));
        queue.close().await;
    }
}
