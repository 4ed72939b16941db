//! The loop: receive, attempt, settle; and the drain at its end.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    concurrency::job_slots::JobSlots,
    delivery::{context::Context, deliver},
    policy::settlement::Settlement,
    queue::{Deliveries, SubscribeOptions},
    rate_limit::connection_leases,
};

/// How soon a changed world is noticed by what runs for each.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the store is asked about circuit breakers.
const BREAKERS_EVERY: Duration = Duration::from_secs(1);

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything that was begun was finished.
    Whole,
    /// The limit passed first; what was under way is redelivered, and the ledger knows it.
    Cut,
}

/// Consumes and delivers until `stop`, then drains. Each attempt works in the context that stands when it begins.
pub async fn run(contexts: Arc<ArcSwap<Context>>, stop: CancellationToken) -> Drained {
    let context = contexts.load_full();
    let worker = &context.config.worker;
    let job_slots = JobSlots::new(worker.transactional, worker.bulk);
    let options = SubscribeOptions {
        shards: context.config.queue.shards,
        transactional: worker.transactional,
        bulk: job_slots.bulk_most(),
        memory: context.memory.clone(),
    };
    context.limiter.look().await;
    let mut deliveries = context.queue.subscribe(options);
    let watching = tokio::spawn(watch_breakers(Arc::clone(&contexts), stop.clone()));
    let present = tokio::spawn(for_each_context(Arc::clone(&contexts), stop.clone(), |context, end| {
        context.limiter.clone().watch(end)
    }));
    connection_leases::close_capped(context.relays(), |_| true);
    let unleased = CancellationToken::new();
    let leasing = tokio::spawn(for_each_context(Arc::clone(&contexts), unleased.clone(), |context, end| async move {
        connection_leases::watch(context.relays(), end).await;
    }));
    // Not held for as long as the worker runs: worlds go when their last attempt has ended.
    drop(context);
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
        let (context, leave, hard, job_slots) = (contexts.load_full(), leave.clone(), hard.clone(), job_slots.clone());
        // The number of tasks is bounded by the broker, which delivers no more than it was asked for.
        tasks.spawn(async move {
            tokio::select! {
                () = deliver(context, delivery, job_slots, leave) => {}
                () = hard.cancelled() => {}
            }
        });
    }
    watching.abort();
    present.abort();
    let context = contexts.load_full();
    let end = Instant::now() + context.config.worker.drain;
    let handed_back = async {
        context.queue.stop_consuming().await;
        leave.cancel();
        give_back(&context, deliveries).await;
    };
    // What is not handed back in time comes back with the connection.
    let _ = timeout_at(end, handed_back).await;
    leave.cancel();
    let drained = drain(&context, &tasks, &hard, end).await;
    unleased.cancel();
    let returned = async {
        let _ = leasing.await;
        connection_leases::give_back(context.relays()).await;
    };
    // Leases that are not given back in time end by themselves.
    let _ = timeout(Duration::from_secs(1), returned).await;
    drained
}

/// Keeps what the present context knows of circuits true until `stop`.
async fn watch_breakers(contexts: Arc<ArcSwap<Context>>, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(BREAKERS_EVERY)).await.is_some() {
        contexts.load_full().breakers.look().await;
    }
}

/// Runs a task for the present world, and another one whenever it changes, until `stop`.
async fn for_each_context<F: Future<Output = ()> + Send + 'static>(
    contexts: Arc<ArcSwap<Context>>,
    stop: CancellationToken,
    begin: impl Fn(Arc<Context>, CancellationToken) -> F,
) {
    while !stop.is_cancelled() {
        let context = contexts.load_full();
        let end = stop.child_token();
        let task = tokio::spawn(begin(Arc::clone(&context), end.clone()));
        while Arc::ptr_eq(&contexts.load(), &context) && stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {}
        end.cancel();
        // It ends by its token; one that panicked has said so.
        let _ = task.await;
    }
}

/// Hands back what was delivered and never begun.
async fn give_back(context: &Context, mut deliveries: Deliveries) {
    while let Some(delivery) = deliveries.try_recv() {
        // What cannot be handed back comes back by itself, and the next one would fare no better.
        if context.queue.settle(delivery, Settlement::Return).await.is_err() {
            return;
        }
    }
}

/// Takes nothing new, finishes what was begun, and says goodbye.
async fn drain(context: &Context, tasks: &TaskTracker, hard: &CancellationToken, end: Instant) -> Drained {
    tasks.close();
    let mut drained = Drained::Whole;
    if timeout_at(end, tasks.wait()).await.is_err() {
        warn!(open = tasks.len(), "The drain limit passed with attempts under way; they are redelivered");
        hard.cancel();
        tasks.wait().await;
        drained = Drained::Cut;
    }
    for transport in &context.transports {
        transport.close().await;
    }
    context.pending_receipts.flush(Duration::from_secs(2)).await;
    context.queue.close().await;
    info!("Stopped");
    drained
}
