//! The consuming connection and its supervisor: whatever ends a consumer (a lost connection, a closed channel, a deleted queue), everything
//! is made anew, topology included.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use lapin::{
    Connection, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use postrider_producer::rabbitmq::{connect_with_intake, short};
use postrider_schemas::{
    Lane,
    topology::{SUSPECT_QUEUE, Topology, due_queue, jobs_queue},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{acks::Acks, linger, message, see_to};
use crate::{
    config::TopologyMode,
    memory::Memory,
    queue::{Delivery, QueueError, Source, SourceKind, SubscribeOptions},
};

/// First and longest wait between two connections.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long consumers may take to hand on what they had fetched when the worker stopped.
pub const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What the supervisor keeps up.
pub struct Supervisor {
    pub url: String,
    pub mode: TopologyMode,
    pub topology: Topology,
    pub options: SubscribeOptions,
    pub deliveries: mpsc::UnboundedSender<Delivery>,
    pub up: Arc<AtomicBool>,
    pub stop: CancellationToken,
    /// Told once nothing more will be handed on.
    pub quiet: CancellationToken,
    pub end: CancellationToken,
}

/// A consumer and what belongs to it.
struct Running {
    consumer: Consumer,
    acks: Acks,
    source: Source,
}

impl Supervisor {
    /// Consumes over as many connections as it takes, until told to stop.
    pub async fn run(self) {
        let mut wait = BACKOFF.0;
        while !self.stop.is_cancelled() {
            match self.session().await {
                Ok(()) => wait = BACKOFF.0,
                Err(error) => warn!(%error, "Consuming is not possible now; trying again"),
            }
            self.up.store(false, Ordering::Relaxed);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
        self.quiet.cancel();
    }

    /// One connection, from its opening to its end.
    async fn session(&self) -> Result<(), QueueError> {
        let connection =
            connect_with_intake(&self.url, "postrider-worker consuming", self.options.memory.intake()).await?;
        see_to(&connection, self.mode, &self.topology).await?;
        let running = self.consumers(&connection).await?;
        self.up.store(true, Ordering::Relaxed);
        info!(consumers = running.len(), "Consuming");
        let acks: Vec<Acks> = running.iter().map(|one| one.acks.clone()).collect();
        let broken = CancellationToken::new();
        let forwards = TaskTracker::new();
        for one in running {
            forwards.spawn(forward(
                one,
                self.options.memory.clone(),
                self.deliveries.clone(),
                self.stop.clone(),
                broken.clone(),
            ));
        }
        tokio::select! {
            () = broken.cancelled() => warn!("A consumer ended; connecting again"),
            () = self.stop.cancelled() => {}
        }
        if self.stop.is_cancelled() {
            forwards.close();
            let _ = timeout(STOP_LIMIT, forwards.wait()).await;
            self.quiet.cancel();
            self.end.cancelled().await;
            for one in &acks {
                one.flush().await;
            }
            linger().await;
        }
        // A connection that cannot say goodbye is as closed as one that did.
        let _ = timeout(Duration::from_secs(2), connection.close(200, short("bye"))).await;
        Ok(())
    }

    /// A consumer with a channel of its own for each queue.
    async fn consumers(&self, connection: &Connection) -> Result<Vec<Running>, QueueError> {
        let mut running = Vec::new();
        for (queue, source, prefetch) in plan(&self.options) {
            let channel = connection.create_channel().await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let tag = short(&queue);
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(short(&queue), tag, options, FieldTable::default()).await?;
            running.push(Running { consumer, acks: Acks::start(channel), source });
        }
        Ok(running)
    }
}

/// Queue, source and prefetch of each consumer.
fn plan(options: &SubscribeOptions) -> Vec<(String, Source, u16)> {
    let mut plan = Vec::new();
    for lane in Lane::ALL {
        let prefetch = match lane {
            Lane::Transactional => options.transactional,
            Lane::Bulk => options.bulk,
        };
        for shard in 0..options.shards {
            let source = |kind| Source { kind, lane, shard };
            plan.push((due_queue(lane, shard), source(SourceKind::Due), options.due(prefetch)));
            plan.push((jobs_queue(lane, shard), source(SourceKind::Jobs), prefetch));
        }
    }
    let suspect = Source { kind: SourceKind::Suspect, lane: Lane::Bulk, shard: 0 };
    plan.push((SUSPECT_QUEUE.to_owned(), suspect, 1));
    plan
}

/// Hands deliveries on until the consumer ends or the worker stops.
async fn forward(
    mut running: Running,
    memory: Memory,
    deliveries: mpsc::UnboundedSender<Delivery>,
    stop: CancellationToken,
    broken: CancellationToken,
) {
    let tag = running.consumer.tag();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => {
                let channel = running.acks.channel();
                let _ = timeout(Duration::from_secs(1), channel.basic_cancel(tag, BasicCancelOptions::default())).await;
                // What was prefetched is handed on to be handed back; what is not, goes back with the connection.
                while let Ok(Some(Ok(delivery))) = timeout(Duration::from_millis(500), running.consumer.next()).await {
                    let delivery = message::delivery(delivery, running.source, running.acks.clone(), &memory);
                    if deliveries.send(delivery).is_err() {
                        return;
                    }
                }
                return;
            }
            next = running.consumer.next() => next,
        };
        match next {
            Some(Ok(delivery)) => {
                if deliveries.send(message::delivery(delivery, running.source, running.acks.clone(), &memory)).is_err()
                {
                    return;
                }
            }
            Some(Err(error)) => {
                warn!(%error, "A consumer failed");
                return broken.cancel();
            }
            None => return broken.cancel(),
        }
    }
}
