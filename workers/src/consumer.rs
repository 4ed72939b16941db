//! The loop: receive, attempt, settle; and the drain at its end.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    attempt::{World, attempt},
    circuits,
    decide::settlement::Settlement,
    limiter::connections,
    queue::{Deliveries, SubscribeOptions},
    seats::Seats,
};

/// How soon a changed world is noticed by what runs for each.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything that was begun was finished.
    Whole,
    /// The limit passed first; what was under way is redelivered, and the ledger knows it.
    Cut,
}

/// Consumes and delivers until `stop`, then drains. Each attempt works in the world that stands when it begins.
pub async fn run(worlds: Arc<ArcSwap<World>>, stop: CancellationToken) -> Drained {
    let world = worlds.load_full();
    let worker = &world.config.worker;
    let seats = Seats::new(worker.transactional, worker.bulk);
    let options = SubscribeOptions {
        shards: world.config.queue.shards,
        transactional: worker.transactional,
        bulk: seats.bulk_most(),
        memory: world.memory.clone(),
    };
    world.limiter.look().await;
    let mut deliveries = world.queue.subscribe(options);
    let watching = tokio::spawn(circuits::watch(Arc::clone(&worlds), stop.clone()));
    let present =
        tokio::spawn(for_each_world(Arc::clone(&worlds), stop.clone(), |world, end| world.limiter.clone().watch(end)));
    connections::close_capped(&world, |_| true);
    let unleased = CancellationToken::new();
    let leasing = tokio::spawn(for_each_world(Arc::clone(&worlds), unleased.clone(), connections::watch));
    // Not held for as long as the worker runs: worlds go when their last attempt has ended.
    drop(world);
    let tasks = TaskTracker::new();
    // Nothing more is fetched: what only waits is handed back. Not before, or this worker would fetch it again.
    let leave = CancellationToken::new();
    let hard = CancellationToken::new();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            delivery = deliveries.recv() => delivery,
        };
        let Some(delivery) = delivery else { break };
        let (world, leave, hard, seats) = (worlds.load_full(), leave.clone(), hard.clone(), seats.clone());
        // The number of tasks is bounded by the broker, which delivers no more than it was asked for.
        tasks.spawn(async move {
            tokio::select! {
                () = attempt(world, delivery, seats, leave) => {}
                () = hard.cancelled() => {}
            }
        });
    }
    watching.abort();
    present.abort();
    let world = worlds.load_full();
    let end = Instant::now() + world.config.worker.drain;
    let handed_back = async {
        world.queue.stop_consuming().await;
        leave.cancel();
        give_back(&world, deliveries).await;
    };
    // What is not handed back in time comes back with the connection.
    let _ = timeout_at(end, handed_back).await;
    leave.cancel();
    let drained = drain(&world, &tasks, &hard, end).await;
    unleased.cancel();
    let returned = async {
        let _ = leasing.await;
        connections::give_back(&world).await;
    };
    // Leases that are not given back in time end by themselves.
    let _ = timeout(Duration::from_secs(1), returned).await;
    drained
}

/// Runs a task for the present world, and another one whenever it changes, until `stop`.
async fn for_each_world<F: Future<Output = ()> + Send + 'static>(
    worlds: Arc<ArcSwap<World>>,
    stop: CancellationToken,
    begin: impl Fn(Arc<World>, CancellationToken) -> F,
) {
    while !stop.is_cancelled() {
        let world = worlds.load_full();
        let end = stop.child_token();
        let task = tokio::spawn(begin(Arc::clone(&world), end.clone()));
        while Arc::ptr_eq(&worlds.load(), &world) && stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {}
        end.cancel();
        // It ends by its token; one that panicked has said so.
        let _ = task.await;
    }
}

/// Hands back what was delivered and never begun.
async fn give_back(world: &World, mut deliveries: Deliveries) {
    while let Some(delivery) = deliveries.try_recv() {
        // What cannot be handed back comes back by itself, and the next one would fare no better.
        if world.queue.settle(delivery, Settlement::Return).await.is_err() {
            return;
        }
    }
}

/// Takes nothing new, finishes what was begun, and says goodbye.
async fn drain(world: &World, tasks: &TaskTracker, hard: &CancellationToken, end: Instant) -> Drained {
    tasks.close();
    let mut drained = Drained::Whole;
    if timeout_at(end, tasks.wait()).await.is_err() {
        warn!(open = tasks.len(), "The drain limit passed with attempts under way; they are redelivered");
        hard.cancel();
        tasks.wait().await;
        drained = Drained::Cut;
    }
    for transport in &world.transports {
        transport.close().await;
    }
    world.replay.flush(Duration::from_secs(2)).await;
    world.queue.close().await;
    info!("Stopped");
    drained
}
