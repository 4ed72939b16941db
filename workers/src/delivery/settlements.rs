//! Settles a delivery at its queue. Every settlement passes here.

use tracing::warn;

use crate::{
    delivery::{attempt::Attempt, context::Context, losses, report},
    policy::settlement::Settlement,
    queue::{Delivery, SettleError},
    store::StoreError,
    telemetry::traces,
};

/// Settles; a settlement that does not arrive is logged, because the message comes back by itself.
pub(crate) async fn settle_or_warn(context: &Context, delivery: Delivery, settlement: Settlement) {
    if let Err(error) = settle_delivery(context, delivery, settlement).await {
        warn!(%error, "A settlement did not arrive; the message comes back and the ledger knows it");
    }
}

/// Settles, and says whether it arrived.
pub(crate) async fn settle_delivery(
    context: &Context,
    delivery: Delivery,
    settlement: Settlement,
) -> Result<(), SettleError> {
    let settling = traces::call("settle");
    report::note_settlement(&settling, context, delivery.source, &settlement);
    losses::end(context, &delivery).await;
    let settled = context.queue.settle(delivery, settlement).await;
    if settled.is_err() {
        settling.fail("settlement", "the settlement did not arrive");
    }
    settled
}

/// Logs that the ledger did not hear of a settlement.
pub(crate) fn note(attempt: &Attempt<'_>, result: Result<(), StoreError>) {
    if let Err(error) = result {
        warn!(job.id = %attempt.job.id(), %error, "The ledger is behind; the next generation of the job sets it right");
    }
}
