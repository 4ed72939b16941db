//! What every attempt needs, and how it is connected.

use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use crate::{
    circuit_breakers::CircuitBreakers,
    config::{Config, QueueConfig},
    memory::Memory,
    pending_receipts::PendingReceipts,
    queue::Queue,
    rate_limit::{Limiter, connection_leases::Relays},
    render::Renderer,
    store::{self, Store},
    transport::Transport,
};

/// What every attempt needs. A changed configuration makes a new one; an attempt keeps the one that it began with.
pub struct Context {
    /// The checked configuration.
    pub config: Config,
    /// The queue.
    pub queue: Arc<Queue>,
    /// The ledger.
    pub store: Store,
    /// Successes that the ledger has not heard of yet.
    pub pending_receipts: Arc<PendingReceipts>,
    /// The ways out, in the configuration's order.
    pub transports: Vec<Arc<Transport>>,
    /// Which of them need a person.
    pub breakers: Arc<CircuitBreakers>,
    /// How fast mail may go.
    pub limiter: Limiter,
    /// How many bytes may be in hand.
    pub memory: Memory,
    /// Renders templates where they can be stopped.
    pub renderer: Arc<Renderer>,
}

impl Context {
    /// The clock of the edge; decisions take the time as an argument. Workers that share a store share its clock, as far as it has one of its own.
    pub fn now(&self) -> Timestamp {
        self.store.now()
    }
}

impl Context {
    /// The transports, with the limiter that gives out their connections.
    pub fn relays(&self) -> Relays<'_> {
        Relays { limiter: &self.limiter, transports: &self.transports, config: &self.config }
    }
}

/// Connects queue and store and sets the transports up.
pub async fn connect(config: Config) -> anyhow::Result<Context> {
    let transports = config
        .transports
        .iter()
        .map(|one| Ok(Arc::new(Transport::new(one).with_context(|| format!("transport `{}`", one.name))?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    config.store_is_shared()?;
    let queue = Arc::new(queue(&config.queue).await?);
    let store = store(&config).await?;
    let pending_receipts = Arc::new(PendingReceipts::new(store.clone()));
    let breakers = CircuitBreakers::new(store.clone(), &config.transports, config.config_wait);
    let limiter = Limiter::new(&config, store.clone())?;
    let memory = Memory::new(config.worker.budget());
    let renderer = Arc::new(Renderer::own().context("the program that renders templates")?);
    Ok(Context { config, queue, store, pending_receipts, transports, breakers, limiter, memory, renderer })
}

/// Connects the queue.
pub async fn queue(config: &QueueConfig) -> anyhow::Result<Queue> {
    Queue::connect(config).await.context("setting `queue.url`")
}

/// Connects a queue that is there; makes nothing. For commands.
pub async fn existing_queue(config: &QueueConfig) -> anyhow::Result<Queue> {
    Queue::connect_existing(config).await.context("setting `queue.url`")
}

/// Connects the store, and makes what is missing.
pub async fn store(config: &Config) -> anyhow::Result<Store> {
    open_store(config, true).await
}

/// Connects a store that is there; makes nothing. For commands.
pub async fn existing_store(config: &Config) -> anyhow::Result<Store> {
    open_store(config, false).await
}

async fn open_store(config: &Config, create: bool) -> anyhow::Result<Store> {
    config.store_is_shared()?;
    let config = &config.store;
    let (lease, retention) = (config.lease, config.retention);
    let ca_file = config.ca_file.clone();
    let options = store::StoreOptions { lease, retention, create, ca_file, ..store::StoreOptions::default() };
    Store::connect(config.url.expose_secret(), options).await.context("setting `store.url`")
}
