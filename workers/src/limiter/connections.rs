//! This worker's part of the connections to relays that have a cap over all workers: a lease, renewed for as long as the worker runs.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Limiter, Seldom};
use crate::{
    attempt::World,
    config::TransportKind,
    decide::limits::connections::Want,
    transport::{Transport, smtp::Relay},
};

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long a lease lasts: after so long the part of a worker that died is there for the others.
const LIFE: Duration = Duration::from_secs(10);

/// A relay with a cap.
struct Capped<'a> {
    transport: &'a Transport,
    relay: &'a Relay,
    name: &'a str,
    /// This worker's own cap.
    most: usize,
    total: usize,
}

/// Those of these transports that are relays with a cap get no connection before the store has given out a part.
pub fn close_capped(world: &World, which: impl Fn(&Transport) -> bool) {
    for one in capped(world).into_iter().filter(|one| which(one.transport)) {
        one.relay.resize(0);
    }
}

/// Renews the leases until `stop`. While the store is away, the last part stands.
pub async fn watch(world: Arc<World>, stop: CancellationToken) {
    let capped = capped(&world);
    if capped.is_empty() {
        return;
    }
    let said = Seldom::default();
    let mut was_granted = false;
    loop {
        for one in &capped {
            let (wanted, using) = one.relay.demand();
            // One more than was needed, so that a worker which is idle begins at once.
            match world.limiter.connections(one, (wanted + 1).min(one.most), using).await {
                Ok(part) => {
                    debug!(transport = one.name, part, wanted, using, "Connections to the relay");
                    was_granted = true;
                    one.relay.resize(part);
                }
                Err(error) => {
                    if said.now() {
                        warn!(transport = one.name, %error, "The store gave no part of the connections; the last one stands");
                    }
                    if !was_granted {
                        one.relay.resize(1);
                    }
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Gives the parts back, once nothing is open any more.
pub async fn give_back(world: &World) {
    for one in capped(world) {
        // A lease that is not given back ends by itself.
        let _ = world.limiter.connections(&one, 0, 0).await;
    }
}

fn capped(world: &World) -> Vec<Capped<'_>> {
    let all = world.transports.iter().zip(&world.config.transports).zip(&world.config.limits.transports);
    all.filter_map(|((transport, config), limits)| {
        let TransportKind::Smtp(smtp) = &config.kind else { return None };
        let total = limits.connections_total?;
        Some(Capped { transport, relay: transport.relay()?, name: &transport.name, most: smtp.connections, total })
    })
    .collect()
}

impl Limiter {
    async fn connections(
        &self,
        one: &Capped<'_>,
        wanted: usize,
        using: usize,
    ) -> Result<usize, crate::store::StoreError> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let want = Want {
            worker: self.0.holder.clone(),
            wanted: number(wanted),
            using: number(using),
            total: number(one.total),
            life_us: LIFE.as_secs_f64() * 1e6,
        };
        Ok(self.0.store.connections(one.name, &want).await? as usize)
    }
}
