//! What the gauges show of a running worker.

use arc_swap::ArcSwap;

use crate::{
    delivery::context::Context,
    policy::rate_limit::usage::LimitUse,
    queue::depths::Depths,
    telemetry::gauges::{Observed, TransportState, WorkerState},
};

/// The context that stands when somebody looks.
impl Observed for ArcSwap<Context> {
    fn state(&self) -> WorkerState {
        let context = self.load_full();
        let transports = context.transports.iter().map(|one| {
            let (busy, idle, most) = one.connections();
            let (name, certificate_end) = (one.name.clone(), one.certificate_end());
            TransportState { name, busy: busy as u64, idle: idle as u64, most: most as u64, certificate_end }
        });
        WorkerState {
            consumers_are_up: context.queue.consumers_up(),
            takes_messages: context.queue.takes(),
            store_is_up: context.store.is_up(),
            store_now_ms: context.store.now_ms(),
            pending_receipts: context.pending_receipts.pending() as u64,
            memory_held: context.memory.in_hand(),
            memory_budget: context.memory.budget().all(),
            circuits: context.breakers.known(),
            transports: transports.collect(),
        }
    }

    async fn depths(&self, with_ladder: bool) -> Option<Depths> {
        self.load_full().queue.depths(with_ladder).await.ok()
    }

    async fn limit_use(&self) -> Option<Vec<LimitUse>> {
        self.load_full().limiter.uses().await.ok()
    }
}
