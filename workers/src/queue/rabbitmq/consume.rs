//! The consuming connection and its supervisor: whatever ends a consumer (a lost connection, a closed channel, a deleted queue), everything
//! is made anew, topology included.
//!
//! **Invariant:** everything that the supervisor waits for has a limit. A call whose connection dies at the wrong moment is never
//! answered by the library, with no error either; without a limit the worker would consume nothing from then on, and say nothing.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{join_all, try_join_all},
};
use lapin::{
    Channel, Connection, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider_producer::rabbitmq::{connect_with_intake, link::Link, short, within};
use postrider_schemas::{
    Lane,
    topology::{SUSPECT_QUEUE, Topology, due_queue, jobs_queue},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{acks::Acks, events, linger, message, see_to, vitals::Vitals};
use crate::{
    config::TopologyMode,
    memory::Memory,
    queue::{Delivery, QueueError, Source, SourceKind, SubscribeOptions},
};

/// First and longest wait between two connections.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long a connection may take from its opening until its consumers run.
const SETUP_LIMIT: Duration = Duration::from_secs(60);
/// How often the broker is asked whether it still answers.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// So many questions in a row without an answer end a connection.
const UNANSWERED_MAX: u32 = 2;
/// A connection that ends sooner than this after its consumers began ends because of what they got.
const SHORT_LIVED: Duration = Duration::from_secs(10);
/// So many of them in a row make each queue have a connection of its own.
const SHORT_LIVED_MAX: u32 = 3;

/// How long consumers may take to hand on what they had fetched when the worker stopped.
pub const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What the supervisor keeps up.
pub struct ConsumerSupervisor {
    pub url: String,
    pub mode: TopologyMode,
    pub topology: Topology,
    pub options: SubscribeOptions,
    pub deliveries: mpsc::UnboundedSender<Delivery>,
    pub publishing: Link,
    pub vitals: Arc<Vitals>,
    pub stop: CancellationToken,
    /// Told once nothing more will be handed on.
    pub quiet: CancellationToken,
    pub end: CancellationToken,
    /// What hands deliveries on, over all connections.
    pub forwards: TaskTracker,
}

/// What is consumed, and how much of it at once.
#[derive(Debug, Clone)]
struct Plan {
    queue: String,
    source: Source,
    prefetch: u16,
}

/// A consumer and what belongs to it.
struct Running {
    consumer: Consumer,
    acks: Acks,
    plan: Plan,
    /// It fetches one message at a time, and more once that went well for a while.
    is_careful: bool,
    memory: Memory,
}

/// How a connection ended.
enum Ended {
    /// The worker stops.
    Stopped,
    /// By itself, so long after its consumers began.
    After(Duration),
}

impl ConsumerSupervisor {
    /// Consumes over as many connections as it takes, until told to stop.
    pub async fn run(self) {
        let plans = plan(&self.options);
        self.vitals.expect(plans.len());
        let quiet = async {
            self.stop.cancelled().await;
            self.forwards.close();
            let _ = timeout(STOP_LIMIT, self.forwards.wait()).await;
            self.quiet.cancel();
        };
        tokio::join!(self.keep_up(&plans), quiet);
    }

    /// All queues over one connection; each over its own where one of them may have a message that no connection survives.
    async fn keep_up(&self, plans: &[Plan]) {
        let (mut wait, mut short_lived) = (BACKOFF.0, 0);
        while !self.stop.is_cancelled() && short_lived < SHORT_LIVED_MAX {
            match self.session(plans, false).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::After(lived)) => {
                    short_lived = if lived < SHORT_LIVED { short_lived + 1 } else { 0 };
                    wait = BACKOFF.0;
                }
                Err(error) => {
                    short_lived = 0;
                    warn!(%error, "Consuming is not possible now; trying again");
                }
            }
            self.pause(&mut wait).await;
        }
        if !self.stop.is_cancelled() {
            let queues = plans.len();
            warn!(
                queues,
                "The connection ended {short_lived} times right after its consumers began: a message may end it. Each queue has a \
                 connection of its own from now on and fetches one message at a time until it goes well; restart the worker to end that"
            );
            join_all(plans.iter().enumerate().map(|(n, plan)| self.keep_up_alone(plan, n == 0))).await;
        }
    }

    /// One queue over connections of its own: the one with the message that ends them does not take the others with it.
    async fn keep_up_alone(&self, plan: &Plan, is_first: bool) {
        let (mut wait, mut short_lived) = (BACKOFF.0, 0_u32);
        if !is_first {
            // The first one sees to the topology.
            sleep(BACKOFF.0).await;
        }
        while !self.stop.is_cancelled() {
            let queue = &plan.queue;
            match self.session(std::slice::from_ref(plan), true).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::After(lived)) if lived < SHORT_LIVED => {
                    short_lived += 1;
                    warn!(
                        queue,
                        short_lived,
                        "The connection ended right after a message of {queue} was fetched, {short_lived} times so far. The broker counts \
                         each time and dead-letters the message at the delivery limit of {queue}; `rabbitmqctl purge_queue {queue}` \
                         would delete it with all others"
                    );
                }
                Ok(Ended::After(_)) => (wait, short_lived) = (BACKOFF.0, 0),
                Err(error) => warn!(queue, %error, "Consuming {queue} is not possible now; trying again"),
            }
            self.pause(&mut wait).await;
        }
    }

    async fn pause(&self, wait: &mut Duration) {
        self.vitals.beat();
        let _ = self.stop.run_until_cancelled(sleep(*wait)).await;
        *wait = (*wait * 2).min(BACKOFF.1);
        self.vitals.beat();
    }

    /// One connection, from its opening to its end.
    async fn session(&self, plans: &[Plan], is_careful: bool) -> Result<Ended, QueueError> {
        let setup = async {
            let intake = self.options.memory.intake();
            let connection = connect_with_intake(&self.url, "postrider-worker consuming", intake).await?;
            see_to(&connection, self.mode, &self.topology).await?;
            let asking = within("channel.open", connection.create_channel()).await?;
            let running = consumers(&connection, plans, is_careful, &self.options.memory).await?;
            Ok::<_, QueueError>((connection, running, asking))
        };
        let (connection, running, asking) = match timeout(SETUP_LIMIT, setup).await {
            Ok(stands) => stands?,
            Err(_) => return Err(QueueError::Slow(SETUP_LIMIT)),
        };
        let begun = Instant::now();
        let shown = self.vitals.run(running.len());
        info!(consumers = running.len(), "Consuming");
        let acks: Vec<Acks> = running.iter().map(|one| one.acks.clone()).collect();
        let broken = CancellationToken::new();
        for one in running {
            self.forwards.spawn(forward(one, self.deliveries.clone(), self.stop.clone(), broken.clone()));
        }
        tokio::select! {
            () = broken.cancelled() => warn!("A consumer ended; connecting again"),
            error = self.no_answer(&connection, &asking) => warn!(%error, "The broker answers no more; connecting again"),
            () = self.stop.cancelled() => {}
            never = events::publish_again(&connection, &self.publishing) => match never {},
        }
        drop(shown);
        let lived = begun.elapsed();
        if self.stop.is_cancelled() {
            self.quiet.cancelled().await;
            self.end.cancelled().await;
            for one in &acks {
                one.flush().await;
            }
            linger().await;
        }
        // Whoever hands deliveries on of a connection that gave no sign of its end must not wait for one.
        broken.cancel();
        // A connection that cannot say goodbye is as closed as one that did.
        let _ = timeout(Duration::from_secs(2), connection.close(200, short("bye"))).await;
        Ok(if self.stop.is_cancelled() { Ended::Stopped } else { Ended::After(lived) })
    }

    /// Asks the broker for an answer now and then, and returns when there is none. A connection may die, or the thread that reads it
    /// stand still, without a word to those who wait for deliveries.
    async fn no_answer(&self, connection: &Connection, asking: &Channel) -> lapin::Error {
        let mut unanswered = 0;
        loop {
            sleep(ASK_EVERY).await;
            // A blocked connection writes nothing, and says so. One that is full is not read, so that no answer comes through.
            if !connection.status().blocked() && self.options.memory.intake().has_room() {
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
                let asked = asking.queue_declare(short(SUSPECT_QUEUE), passive, FieldTable::default());
                match within("queue.declare", asked).await {
                    Ok(_) => unanswered = 0,
                    // It may have become full meanwhile.
                    Err(_) if !self.options.memory.intake().has_room() => {}
                    Err(error) => {
                        unanswered += 1;
                        if unanswered >= UNANSWERED_MAX || !connection.status().connected() {
                            return error;
                        }
                    }
                }
            }
            self.vitals.beat();
        }
    }
}

/// A consumer with a channel of its own for each queue. All begin at the same time: what the first ones get may fill the connection, and
/// answers to later ones would wait behind it.
async fn consumers(
    connection: &Connection,
    plans: &[Plan],
    is_careful: bool,
    memory: &Memory,
) -> Result<Vec<Running>, QueueError> {
    let mut channels = Vec::new();
    for _ in plans {
        channels.push(within("channel.open", connection.create_channel()).await?);
    }
    let begun = plans.iter().zip(&channels).map(|(plan, channel)| {
        let prefetch = if is_careful { 1 } else { plan.prefetch };
        consume(channel, &plan.queue, &plan.queue, prefetch)
    });
    let consumers = try_join_all(begun).await?;
    let running = plans.iter().zip(channels).zip(consumers).map(|((plan, channel), consumer)| Running {
        consumer,
        acks: Acks::start(channel),
        plan: plan.clone(),
        is_careful,
        memory: memory.clone(),
    });
    Ok(running.collect())
}

async fn consume(channel: &Channel, queue: &str, tag: &str, prefetch: u16) -> lapin::Result<Consumer> {
    within("basic.qos", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let consumed =
        channel.basic_consume(short(queue), short(tag), BasicConsumeOptions::default(), FieldTable::default());
    within("basic.consume", consumed).await
}

/// Queue, source and prefetch of each consumer.
fn plan(options: &SubscribeOptions) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut add = |queue, source, prefetch| plans.push(Plan { queue, source, prefetch });
    for lane in Lane::ALL {
        let prefetch = match lane {
            Lane::Transactional => options.transactional,
            Lane::Bulk => options.bulk,
        };
        for shard in 0..options.shards {
            let source = |kind| Source { kind, lane, shard };
            add(due_queue(lane, shard), source(SourceKind::Due), options.due(prefetch));
            add(jobs_queue(lane, shard), source(SourceKind::Jobs), prefetch);
        }
    }
    add(SUSPECT_QUEUE.to_owned(), Source { kind: SourceKind::Suspect, lane: Lane::Bulk, shard: 0 }, 1);
    plans
}

/// Hands deliveries on until the consumer ends, its connection does, or the worker stops.
async fn forward(
    mut running: Running,
    deliveries: mpsc::UnboundedSender<Delivery>,
    stop: CancellationToken,
    broken: CancellationToken,
) {
    let begun = Instant::now();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => {
                running.leave(&deliveries).await;
                return;
            }
            () = broken.cancelled() => return,
            next = running.consumer.next() => next,
            () = sleep(SHORT_LIVED.saturating_sub(begun.elapsed())), if running.is_careful => {
                if let Err(error) = running.widen(&deliveries).await {
                    warn!(queue = running.plan.queue, %error, "A consumer could not be made anew");
                    return broken.cancel();
                }
                continue;
            }
        };
        match next {
            Some(Ok(delivery)) => {
                if deliveries.send(running.read(delivery)).is_err() {
                    return;
                }
            }
            Some(Err(error)) => {
                warn!(queue = running.plan.queue, %error, "A consumer failed");
                return broken.cancel();
            }
            None => return broken.cancel(),
        }
    }
}

impl Running {
    fn read(&self, delivery: lapin::message::Delivery) -> Delivery {
        let delivery = message::delivery(delivery, self.plan.source, self.acks.clone(), &self.memory);
        if let Some(cut) = &delivery.cut {
            let (queue, id) = (&self.plan.queue, delivery.message_id.as_deref().unwrap_or_default());
            warn!(
                queue,
                job.id = id,
                reason = cut.reason,
                "A message of {queue} has headers that cannot be read whole"
            );
        }
        delivery
    }

    /// Ends the consumer. What was prefetched is handed on; what is not, goes back with the connection.
    async fn leave(&mut self, deliveries: &mpsc::UnboundedSender<Delivery>) {
        let (channel, tag) = (self.acks.channel(), self.consumer.tag());
        let _ = timeout(Duration::from_secs(1), channel.basic_cancel(tag, BasicCancelOptions::default())).await;
        while let Ok(Some(Ok(delivery))) = timeout(Duration::from_millis(500), self.consumer.next()).await {
            if deliveries.send(self.read(delivery)).is_err() {
                return;
            }
        }
    }

    /// Goes on with as many messages at once as usual. What is in hand stays so: the channel is the same.
    async fn widen(&mut self, deliveries: &mpsc::UnboundedSender<Delivery>) -> lapin::Result<()> {
        self.is_careful = false;
        self.leave(deliveries).await;
        let (queue, prefetch) = (&self.plan.queue, self.plan.prefetch);
        self.consumer = consume(self.acks.channel(), queue, &format!("{queue}.2"), prefetch).await?;
        Ok(())
    }
}
