//! Connects what a worker needs.

use std::sync::Arc;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;

use crate::{
    attempt::World,
    circuits::Circuits,
    config::{Config, QueueConfig},
    limiter::Limiter,
    queue::Queue,
    replay::Replay,
    store::{self, Store},
    transport::Transport,
};

/// Connects queue and store and sets the transports up.
pub async fn connect(config: Config) -> anyhow::Result<World> {
    let transports = config
        .transports
        .iter()
        .map(|one| Ok(Arc::new(Transport::new(one).with_context(|| format!("transport `{}`", one.name))?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    config.store_is_shared()?;
    let queue = Arc::new(queue(&config.queue).await?);
    let store = store(&config).await?;
    let replay = Arc::new(Replay::new(store.clone()));
    let circuits = Circuits::new(store.clone(), &config.transports, config.config_wait);
    let limiter = Limiter::new(&config, store.clone())?;
    Ok(World { config, queue, store, replay, transports, circuits, limiter })
}

/// Connects the queue.
pub async fn queue(config: &QueueConfig) -> anyhow::Result<Queue> {
    Queue::connect(config).await.context("setting `queue.url`")
}

/// Connects the store.
pub async fn store(config: &Config) -> anyhow::Result<Store> {
    config.store_is_shared()?;
    let config = &config.store;
    let options = store::Options { lease: config.lease, retention: config.retention, ..store::Options::default() };
    Store::connect(config.url.expose_secret(), options).await.context("setting `store.url`")
}
