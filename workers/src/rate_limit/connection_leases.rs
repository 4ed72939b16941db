//! This worker's part of the connections to relays that have a cap over all workers: a lease, renewed for as long as the worker runs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Limiter, LogThrottle};
use crate::{
    config::{Config, TransportKind, TransportLimits},
    policy::rate_limit::connections::LeaseRequest,
    store::StoreError,
    transport::{
        Transport,
        smtp::{ConnectionUse, Relay},
    },
};

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long a lease lasts: after so long the part of a worker that died is there for the others.
const LIFE: Duration = Duration::from_secs(10);

/// The transports of a configuration, and the limiter that gives out their connections.
#[derive(Clone, Copy)]
pub struct Relays<'a> {
    /// Gives out the parts.
    pub limiter: &'a Limiter,
    /// In the configuration's order.
    pub transports: &'a [Arc<Transport>],
    /// Says which of them have a cap.
    pub config: &'a Config,
}

/// A relay with a cap.
struct CappedRelay<'a> {
    transport: &'a Transport,
    relay: &'a Relay,
    name: &'a str,
    /// This worker's own cap.
    most: usize,
    total: usize,
}

/// Those of these transports that are relays with a cap get no connection before the store has given out a part.
pub fn close_capped(relays: Relays<'_>, which: impl Fn(&Transport) -> bool) {
    for one in capped(relays).into_iter().filter(|one| which(one.transport)) {
        one.relay.resize(0);
    }
}

/// Remembers transports that others stand for from now on: attempts that began with them go on there, and what they have open counts.
pub fn replaced(limiter: &Limiter, old: &[Arc<Transport>]) {
    let mut known = limiter.0.parts.replaced.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|one| one.strong_count() > 0);
    for one in old {
        one.replace();
        known.push(Arc::downgrade(one));
    }
}

/// Renews the leases until `stop`. While the store is away, the last part stands. A relay that has no cap has its own connections, also where
/// it was capped before.
pub async fn watch(relays: Relays<'_>, stop: CancellationToken) {
    let all = relays.transports.iter().map(Arc::as_ref).zip(&relays.config.limits.transports);
    relays.limiter.0.parts.open_uncapped(all);
    let capped = capped(relays);
    if capped.is_empty() {
        return;
    }
    let said = LogThrottle::default();
    loop {
        for one in &capped {
            if let Err(error) = relays.limiter.renew(one).await
                && said.now()
            {
                warn!(transport = one.name, %error, "The store gave no part of the connections; the last one stands");
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Gives the parts back, once nothing is open any more.
pub async fn give_back(relays: Relays<'_>) {
    for one in capped(relays) {
        // A lease that is not given back ends by itself.
        let _ = relays.limiter.connections(&one, 0, 0).await;
    }
}

fn capped(relays: Relays<'_>) -> Vec<CappedRelay<'_>> {
    let config = relays.config;
    let all = relays.transports.iter().zip(&config.transports).zip(&config.limits.transports);
    all.filter_map(|((transport, config), limits)| {
        let TransportKind::Smtp(smtp) = &config.kind else { return None };
        let total = limits.connections_total?;
        Some(CappedRelay { transport, relay: transport.relay()?, name: &transport.name, most: smtp.connections, total })
    })
    .collect()
}

/// What stands over a change of the configuration. Clones share it.
#[derive(Clone, Default)]
pub(super) struct ConnectionShares {
    /// What the store gave out last, by transport.
    given: Arc<Mutex<HashMap<String, usize>>>,
    /// Transports that others stand for, in the order in which that happened, for as long as somebody uses them.
    replaced: Arc<Mutex<Vec<Weak<Transport>>>>,
}

impl ConnectionShares {
    fn open_uncapped<'a>(&self, all: impl Iterator<Item = (&'a Transport, &'a TransportLimits)>) {
        for (transport, _) in all.filter(|(_, limits)| limits.connections_total.is_none()) {
            self.known().remove(&transport.name);
            if let Some(relay) = transport.relay() {
                relay.resize(relay.connections_max());
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Nothing in here can panic half-way.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that were this transport before.
    fn before(&self, name: &str) -> Vec<Arc<Transport>> {
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.iter().filter_map(Weak::upgrade).filter(|one| one.name == name).collect()
    }
}

/// Gives a worker's part to a relay, but for what those have that it stands for: they keep as many connections as they still need, and get no others.
fn share_out(part: usize, replaced: &[&Relay], relay: &Relay) {
    let mut left = part;
    for old in replaced {
        let before = old.use_now();
        old.resize(before.limit.min(before.asking).min(left));
        let ConnectionUse { limit, open, .. } = old.use_now();
        left = left.saturating_sub(limit.max(open));
    }
    relay.resize(left);
}

impl Limiter {
    /// Renews one lease. Without the store it is what was given out last, or one connection where nothing ever was.
    async fn renew(&self, one: &CappedRelay<'_>) -> Result<(), StoreError> {
        let before = self.0.parts.before(one.name);
        let replaced: Vec<&Relay> =
            before.iter().filter_map(|one| one.relay()).filter(|old| !std::ptr::eq(*old, one.relay)).collect();
        let all = replaced.iter().copied().chain([one.relay]);
        let (wanted, using) = all.map(Relay::demand).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        match self.connections(one, wanted.min(one.most), using).await {
            Ok(part) => {
                debug!(transport = one.name, part, wanted, using, "Connections to the relay");
                self.0.parts.known().insert(one.name.to_owned(), part);
                share_out(part, &replaced, one.relay);
                Ok(())
            }
            Err(error) => {
                let last = self.0.parts.known().get(one.name).copied();
                share_out(last.unwrap_or(1).min(one.most).min(one.total), &replaced, one.relay);
                Err(error)
            }
        }
    }

    async fn connections(&self, one: &CappedRelay<'_>, wanted: usize, using: usize) -> Result<usize, StoreError> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let want = LeaseRequest {
            worker: self.0.holder.clone(),
            wanted: number(wanted),
            // One more than was needed, so that a worker which is idle begins at once.
            spare: u32::from(wanted < one.most),
            using: number(using),
            total: number(one.total),
            life_us: LIFE.as_secs_f64() * 1e6,
        };
        Ok(self.0.store.connections(one.name, &want).await? as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, load_text},
        store::{Store, StoreOptions},
    };

    fn config(observed_rate: &str) -> Config {
        let text = format!(
            "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
             connections = 8\n{observed_rate}[[route]]\nname = \"all\"\nsend = [\"relay\"]\n"
        );
        load_text(&text).unwrap()
    }

    /// How many places a relay has: as many are taken as there are.
    async fn places(transport: &Transport) -> usize {
        let relay = transport.relay().unwrap();
        let mut taken = Vec::new();
        while !relay.is_saturated() {
            taken.push(relay.acquire(postrider_schemas::Lane::Bulk).await.unwrap());
        }
        taken.len()
    }

    #[tokio::test]
    async fn what_was_replaced_keeps_what_it_needs_and_the_other_one_has_the_rest() {
        let transports = [(); 2].map(|()| Transport::new(&config("").transports[0]).unwrap());
        let [old, new] = transports.each_ref().map(|one| one.relay().unwrap());
        let limits = || [old, new].map(|one| one.use_now().limit);
        old.resize(6);
        new.resize(0);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(old.acquire(postrider_schemas::Lane::Bulk).await.unwrap());
        }
        share_out(6, &[old], new);
        assert_eq!(limits(), [2, 4]);
        held.pop();
        share_out(6, &[old], new);
        assert_eq!(limits(), [1, 5]);
        share_out(1, &[old], new);
        assert_eq!(limits(), [1, 0], "the part is smaller now");
        held.clear();
        share_out(6, &[old], new);
        assert_eq!(limits(), [0, 6]);
    }

    #[tokio::test]
    async fn a_reload_keeps_what_was_granted_also_without_the_store_and_frees_a_relay_that_has_no_cap_any_more() {
        // Nothing listens there.
        let store = Store::connect("redis://127.0.0.1:1/", StoreOptions::default()).await.unwrap();
        let (capped_config, free_config) = (config("connections_total = 6\n"), config(""));
        let transport = Transport::new(&capped_config.transports[0]).unwrap();
        assert!(capped_config.transports[0].is_same(&free_config.transports[0]), "a reload uses the relay again");
        let limiter = Limiter::new(&capped_config, store).unwrap();
        let renew = async |limiter: &Limiter, total: usize| {
            let relay = transport.relay().unwrap();
            let one = CappedRelay { transport: &transport, relay, name: "relay", most: 8, total };
            assert!(limiter.renew(&one).await.is_err());
        };
        renew(&limiter, 6).await;
        assert_eq!(places(&transport).await, 1, "nothing was ever granted");
        limiter.0.parts.known().insert("relay".to_owned(), 4);
        let limiter = limiter.renewed(&capped_config).unwrap();
        renew(&limiter, 6).await;
        assert_eq!(places(&transport).await, 4);
        renew(&limiter, 3).await;
        assert_eq!(places(&transport).await, 3, "the cap is lower now");
        let limiter = limiter.renewed(&free_config).unwrap();
        limiter.0.parts.open_uncapped(std::iter::once((&transport, &free_config.limits.transports[0])));
        assert_eq!(places(&transport).await, 8);
        renew(&limiter.renewed(&capped_config).unwrap(), 6).await;
        assert_eq!(places(&transport).await, 1, "what was granted under another cap is forgotten");
    }
}
