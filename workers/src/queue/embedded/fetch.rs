//! Takes rows as there is room for them, and keeps their leases alive.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use postrider_producer::{
    embedded::{Db, DbError, tables::meta_of},
    rabbitmq::link::ForeignProperties,
};
use postrider_schemas::Lane;
use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{EmbeddedReceipt, LEASE, rows};
use crate::{
    memory::Memory,
    policy::poison::losses,
    queue::{DeliveredMessage, Delivery, DeliveryReceipt as AnyReceipt, Source, SourceKind, SubscribeOptions},
};

/// Most rows taken at once.
const BATCH_MAX: usize = 64;
/// How long a fetcher that has little room, or was told of something new, waits for more of it: looking costs more than a row.
const GATHER: Duration = Duration::from_millis(5);
/// A look at the file without any sign that something changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A look at rows that were too large at the last one.
const FULL: Duration = Duration::from_millis(50);

/// What one fetcher takes, and how much of it may be in hand.
pub struct Plan {
    queue: &'static str,
    lane: Option<Lane>,
    kind: SourceKind,
    prefetch: usize,
}

/// Fresh and returning work of a lane side by side, so that neither waits behind the other; quarantine one at a time.
pub fn plans(options: &SubscribeOptions) -> Vec<Plan> {
    let mut plans = vec![Plan { queue: "suspect", lane: None, kind: SourceKind::Suspect, prefetch: 1 }];
    for lane in Lane::ALL {
        let prefetch = match lane {
            Lane::Transactional => options.transactional,
            Lane::Bulk => options.bulk,
        };
        plans.push(Plan { queue: "jobs", lane: Some(lane), kind: SourceKind::Jobs, prefetch: prefetch.into() });
        plans.push(Plan {
            queue: "due",
            lane: Some(lane),
            kind: SourceKind::Due,
            prefetch: options.due(prefetch).into(),
        });
    }
    plans
}

/// Takes rows of one queue.
pub struct Fetcher {
    pub db: Db,
    pub owner: Arc<str>,
    pub plan: Plan,
    pub memory: Memory,
    pub deliveries: mpsc::UnboundedSender<Delivery>,
    pub stop: CancellationToken,
}

impl Fetcher {
    /// Until told to stop.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(self.plan.prefetch));
        let mut arrivals = self.db.arrivals();
        // The last look took all there was: others who write are not disturbed by the next one.
        let mut is_idle = false;
        // The last look passed over what was too large for now.
        let mut is_full = false;
        while !self.stop.is_cancelled() {
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                permit = Arc::clone(&room).acquire_owned() => permit,
            };
            let Ok(first) = permit else { return };
            if room.available_permits() < self.plan.prefetch / 4 {
                sleep(GATHER).await;
            }
            arrivals.mark_unchanged();
            // What was too large is looked at again after a moment.
            let was_full = std::mem::take(&mut is_full);
            if is_idle && let Some(pause) = if was_full { Some(FULL) } else { self.pause().await } {
                drop(first);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = sleep(pause) => {}
                    _ = arrivals.changed() => sleep(GATHER).await,
                }
                continue;
            }
            let mut permits = vec![first];
            while permits.len() < BATCH_MAX
                && let Ok(more) = Arc::clone(&room).try_acquire_owned()
            {
                permits.push(more);
            }
            if self.stop.is_cancelled() {
                return;
            }
            let taken = self.take(permits.len()).await;
            let Ok((taken, passed_over)) = taken else {
                // Not at once: a full disk stays full for a while, and its log may lie on it too.
                drop(permits);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = sleep(LOOK_AGAIN) => {}
                }
                continue;
            };
            is_idle = taken.len() < permits.len();
            is_full = passed_over;
            for (one, permit) in taken.into_iter().zip(permits) {
                if self.deliveries.send(self.delivery(one, permit)).is_err() {
                    return;
                }
            }
        }
    }

    /// True where there may be rows for which there is no room.
    async fn take(&self, limit: usize) -> Result<(Vec<rows::TakenRow>, bool), DbError> {
        let (queue, lane, owner) = (self.plan.queue, self.plan.lane.map(Lane::as_str), Arc::clone(&self.owner));
        let lease = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        let (clock, room) = (self.db.clock().clone(), self.memory.room());
        let take =
            move |db: &Connection| rows::take_by_size(db, (queue, lane), (&owner, lease), limit, room, clock.now_ms());
        let taken = self.db.call(take).await;
        taken.inspect_err(|error| warn!(%error, queue, "Nothing can be taken from the queue's file now"))
    }

    /// How long to wait where nothing is free: until the next row's turn, or a look all the same. Nothing where one is free.
    async fn pause(&self) -> Option<Duration> {
        let (queue, lane, owner) = (self.plan.queue, self.plan.lane.map(Lane::as_str), Arc::clone(&self.owner));
        let next = self.db.look(move |db| rows::next_turn(db, queue, lane, &owner)).await;
        let Ok(Some(next)) = next else { return Some(LOOK_AGAIN) };
        // A lease that ends now has ended in a moment.
        let wait = Duration::from_millis(u64::try_from(next - self.db.clock().now_ms() + 1).unwrap_or(0));
        (!wait.is_zero()).then(|| wait.min(LOOK_AGAIN))
    }

    fn delivery(&self, one: rows::TakenRow, permit: OwnedSemaphorePermit) -> Delivery {
        let lane = one.lane.as_deref().and_then(|lane| lane.parse().ok()).or(self.plan.lane).unwrap_or_default();
        let meta = meta_of(self.plan.queue, &one.meta);
        Delivery::new(DeliveredMessage {
            held: self.memory.hold(one.body.len()),
            lost: losses(&meta, one.deliveries),
            begun: 0,
            body: one.body.into(),
            message_id: one.message_id,
            message_type: one.message_type,
            meta,
            cut: None,
            source: Source { kind: self.plan.kind, lane, shard: 0 },
            foreign: ForeignProperties::default(),
            redelivered: one.deliveries > 0,
            deliveries: one.deliveries,
            published_at: rows::published_at(one.published_at, self.db.clock().now_ms(), Timestamp::now()),
            receipt: AnyReceipt::Embedded(EmbeddedReceipt { take: one.take, _room: permit }),
        })
    }
}

/// Keeps an owner's leases alive until told to end.
pub async fn renew(db: Db, owner: Arc<str>, lease: Duration, end: CancellationToken) {
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep(lease / 3) => {}
        }
        let (owner, clock) = (Arc::clone(&owner), db.clock().clone());
        if let Err(error) = db.call(move |db| rows::renew(db, &owner, lease_ms, clock.now_ms())).await {
            warn!(%error, "The leases of the queue's file were not renewed");
        }
    }
}
