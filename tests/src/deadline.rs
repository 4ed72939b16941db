//! Waiting with a limit, by asking again. No test sleeps a fixed time and hopes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const STEP: Duration = Duration::from_millis(20);
/// The longest time between two questions.
const STEP_MAX: Duration = Duration::from_millis(500);

/// Asks `probe` every 20 ms until it gives a value; an error that names `what` when `limit` has passed. One that takes its time is asked less
/// often, so that waiting does not load the machine that is waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let begun = Instant::now();
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep((begun.elapsed() * 10).clamp(STEP, STEP_MAX));
    }
}

/// The same on a runtime, for probes that are futures.
pub async fn wait_for_async<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let asking = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(STEP).await;
        }
    };
    match tokio::time::timeout(limit, asking).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("{what}: not within {limit:?}"),
    }
}
