//! A broker on which stories live side by side, a virtual host each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::http::{Endpoint, segment};

/// Ends of the names of queues in which messages rest: nothing moves them by itself.
const AT_REST: [&str; 4] = [".dead", ".hold", ".suspect", ".unroutable"];

/// A broker on which tests live side by side, a virtual host each.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) authority: String,
    pub(crate) default_vhost: String,
    pub(crate) api: Option<Endpoint>,
    /// It ends with this program.
    pub(crate) is_ours: bool,
}

impl Broker {
    /// Declares a quorum queue in a virtual host of its own and deletes both.
    pub(crate) fn makes_quorum_queues(&self) -> bool {
        let Ok(vhost) = self.vhost() else { return false };
        let Ok(api) = vhost.api() else { return true };
        let queue = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
        api.expect("PUT", &format!("/api/queues/{}/probe", vhost.name), queue).is_ok()
    }

    /// AMQP address of the default virtual host.
    pub fn url(&self) -> String {
        format!("{}/{}", self.authority, self.default_vhost)
    }

    /// A fresh virtual host (20 ms), deleted on drop. A broker without a management address gives its default one.
    pub fn vhost(&self) -> Result<Vhost> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(api) = self.api.clone() else {
            return Ok(Vhost {
                broker: self.clone(),
                name: self.default_vhost.clone(),
                owned: false,
                declared: OnceLock::new(),
            });
        };
        let name = format!("postrider-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Whoever makes a virtual host may use it: no second request for permissions.
        api.expect("PUT", &format!("/api/vhosts/{name}"), "")?;
        Ok(Vhost { broker: self.clone(), name, owned: true, declared: OnceLock::new() })
    }
}

/// One test's part of a broker.
#[derive(Debug)]
pub struct Vhost {
    broker: Broker,
    name: String,
    owned: bool,
    /// What was declared in it, where that was the whole topology.
    declared: OnceLock<Declared>,
}

/// A virtual host that waits for the next story.
struct Resting {
    vhost: Vhost,
    since: Instant,
}

/// Declaring the topology and deleting it again costs the broker two seconds of a processor; most stories leave it as they found it.
static RESTING: Mutex<Vec<Resting>> = Mutex::new(Vec::new());
/// The counts of a virtual host that rests for so long are those after its story.
const SETTLED: Duration = Duration::from_secs(1);

/// Exchanges, queues, bindings and policies of a virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Declared(BTreeSet<String>);

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting for a consumer.
    pub ready: u64,
    /// With a consumer, or with the dead-letter worker.
    pub unacked: u64,
}

impl Depth {
    /// All messages.
    pub fn total(self) -> u64 {
        self.ready + self.unacked
    }
}

impl Vhost {
    /// One in which the topology is declared and nothing waits: an earlier story left it so. Nothing where there is none.
    pub(crate) fn declared() -> Option<Self> {
        loop {
            let mut resting = RESTING.lock().unwrap_or_else(PoisonError::into_inner);
            let place = resting.iter().position(|one| one.since.elapsed() >= SETTLED)?;
            let Resting { mut vhost, .. } = resting.swap_remove(place);
            drop(resting);
            if vhost.is_as_new().unwrap_or(false) {
                return Some(vhost);
            }
            // Then it is deleted.
            vhost.declared.take();
        }
    }

    /// Whether the virtual host of this name waits for the next story, or is gone.
    pub fn is_left(name: &str) -> bool {
        let resting = RESTING.lock().unwrap_or_else(PoisonError::into_inner);
        resting.iter().find(|one| one.vhost.name == name).is_none_or(|one| one.since.elapsed() >= SETTLED)
    }

    /// The whole topology is declared in it: the next story may use it when this one has left it so.
    pub(crate) fn keep_for_others(&self) -> Result<()> {
        if self.broker.is_ours && self.broker.api.is_some() {
            let _ = self.declared.set(self.look()?);
        }
        Ok(())
    }

    fn look(&self) -> Result<Declared> {
        let mut all = BTreeSet::new();
        for (kind, fields) in [
            ("exchanges", ["name", "type", "arguments", ""]),
            ("queues", ["name", "type", "arguments", "policy"]),
            ("bindings", ["source", "destination", "routing_key", "arguments"]),
            ("policies", ["name", "pattern", "definition", ""]),
        ] {
            for one in self.list(kind)? {
                all.insert(format!("{kind} {}", fields.map(|field| one[field].to_string()).join(" ")));
            }
        }
        Ok(Declared(all))
    }

    /// Nobody is connected, all is as it was declared, and nothing is left but what was put away for people, which is purged.
    fn is_as_new(&self) -> Result<bool> {
        if self.declared.get() != Some(&self.look()?) || !self.list("connections")?.is_empty() {
            return Ok(false);
        }
        for (queue, depth) in self.queue_depths()? {
            if depth.total() == 0 {
                continue;
            }
            // What is under way may be on its way to another queue.
            if depth.unacked > 0 || !AT_REST.iter().any(|rest| queue.ends_with(rest)) {
                return Ok(false);
            }
            let path = format!("/api/queues/{}/{}/contents", self.name, segment(&queue));
            self.api()?.expect("DELETE", &path, "")?;
        }
        Ok(true)
    }

    /// AMQP address of this virtual host.
    pub fn url(&self) -> String {
        format!("{}/{}", self.broker.authority, self.name)
    }

    /// Its name, percent-encoded as in addresses.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every queue and what it holds, at most about half a second old: poll it.
    pub fn queue_depths(&self) -> Result<BTreeMap<String, Depth>> {
        let path = format!("/api/queues/{}?disable_stats=true&enable_queue_totals=true", self.name);
        let queues: Vec<serde_json::Value> = serde_json::from_str(&self.api()?.expect("GET", &path, "")?)?;
        let count = |queue: &serde_json::Value, key: &str| queue[key].as_u64().unwrap_or(0);
        Ok(queues
            .iter()
            .filter_map(|queue| {
                let depth =
                    Depth { ready: count(queue, "messages_ready"), unacked: count(queue, "messages_unacknowledged") };
                Some((queue["name"].as_str()?.to_owned(), depth))
            })
            .collect())
    }

    /// Deletes a queue, consumers or not.
    pub fn delete_queue(&self, queue: &str) -> Result<()> {
        self.api()?.expect("DELETE", &format!("/api/queues/{}/{}", self.name, segment(queue)), "").map(drop)
    }

    /// Deletes an exchange, bound or not.
    pub fn delete_exchange(&self, exchange: &str) -> Result<()> {
        self.api()?.expect("DELETE", &format!("/api/exchanges/{}/{}", self.name, segment(exchange)), "").map(drop)
    }

    /// Asks the management interface about this virtual host: `kind` is `queues`, `bindings`, `connections` ...
    pub fn list(&self, kind: &str) -> Result<Vec<serde_json::Value>> {
        let path = match kind {
            "connections" => format!("/api/vhosts/{}/connections", self.name),
            kind => format!("/api/{kind}/{}", self.name),
        };
        Ok(serde_json::from_str(&self.api()?.expect("GET", &path, "")?)?)
    }

    /// Host and port of the broker.
    pub(crate) fn host(&self) -> String {
        let authority = &self.broker.authority;
        authority.rsplit(['@', '/']).next().unwrap_or(authority).to_owned()
    }

    /// The management interface.
    pub(crate) fn endpoint(&self) -> Result<&Endpoint> {
        self.api()
    }

    fn api(&self) -> Result<&Endpoint> {
        self.broker.api.as_ref().context("this broker has no management address (POSTRIDER_TEST_RABBITMQ_API)")
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if self.declared.get().is_none() || std::thread::panicking() {
            if let (true, Some(api)) = (self.owned, &self.broker.api) {
                // The node may have been killed by the test, and ends with it anyway.
                let _ = api.request("DELETE", &format!("/api/vhosts/{}", self.name), "");
            }
            return;
        }
        let vhost = Self {
            broker: self.broker.clone(),
            name: self.name.clone(),
            owned: self.owned,
            declared: std::mem::take(&mut self.declared),
        };
        let resting = Resting { vhost, since: Instant::now() };
        RESTING.lock().unwrap_or_else(PoisonError::into_inner).push(resting);
    }
}
