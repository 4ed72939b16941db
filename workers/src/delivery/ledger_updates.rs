//! What the ledger hears while a job is being sent: that its claim lives, that bytes may reach a transport from now on, that nothing was taken
//! there. Decides nothing.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use postrider_schemas::{Lane, meta::Pin};
use tokio::time::sleep;
use tracing::warn;

use crate::{
    delivery::{
        attempt::{Attempt, Authorization},
        context::Context,
        report,
    },
    telemetry::traces,
    transport::Transport,
};

/// Tells the ledger that bytes may reach this transport from now on. False where the job belongs to somebody else.
pub(crate) async fn record_submitting(
    context: &Context,
    attempt: &Attempt<'_>,
    authorization: &Authorization,
    transport: &Transport,
    pin: Option<&Pin>,
    submitted: &AtomicBool,
) -> bool {
    submitted.store(true, Ordering::Relaxed);
    let Authorization::Leased(lease) = authorization else { return true };
    let call = pin.map_or_else(|| transport.name.clone(), ToString::to_string);
    let step = traces::call("submitting");
    report::note_store(&step, context, "submitting");
    match context.store.submitting(lease, &call).await {
        Ok(mine) => mine,
        Err(error) => {
            // The store went away after the claim. Somebody waits for transactional mail; bulk mail waits for the store.
            warn!(job.id = %attempt.job.id(), %error, "The store is away between claim and submission");
            attempt.job.lane() == Lane::Transactional
        }
    }
}

/// Tells the ledger that nothing was taken, so that a crash from here on is no unknown. False where the job belongs to somebody else.
pub(crate) async fn record_withdrawn(context: &Context, attempt: &Attempt<'_>, authorization: &Authorization) -> bool {
    let Authorization::Leased(lease) = authorization else { return true };
    match context.store.withdraw(lease).await {
        Ok(mine) => mine,
        Err(error) => {
            // Careful: a crash counts as unknown then.
            warn!(job.id = %attempt.job.id(), %error, "The store did not hear that a transport refused");
            true
        }
    }
}

/// Keeps a claim alive for as long as it is polled. That a claim was lost is found out when it is next needed.
pub(crate) async fn renew_lease(context: &Context, authorization: &Authorization) -> Infallible {
    loop {
        sleep((context.config.store.lease / 3).max(Duration::from_millis(100))).await;
        if let Authorization::Leased(lease) = authorization {
            let _ = context.store.renew(lease).await;
        }
    }
}
