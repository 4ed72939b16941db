//! Connects what a worker needs.

use std::sync::Arc;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;

use crate::{
    attempt::World,
    circuits::Circuits,
    config::{Config, QueueConfig, StoreConfig},
    limiter::Limiter,
    queue::Queue,
    render::Renderer,
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
    let queue = Arc::new(queue(&config.queue).await?);
    let store = store(&config.store).await?;
    let replay = Arc::new(Replay::new(store.clone()));
    let circuits = Circuits::new(store.clone(), &config.transports, config.config_wait);
    let limiter = Limiter::new(&config, store.clone())?;
    let renderer = Arc::new(Renderer::own().context("the program that renders templates")?);
    Ok(World { config, queue, store, replay, transports, circuits, limiter, renderer })
}

/// Connects the queue.
pub async fn queue(config: &QueueConfig) -> anyhow::Result<Queue> {
    Queue::connect(config).await.context("setting `queue.url`")
}

/// Connects the store.
pub async fn store(config: &StoreConfig) -> anyhow::Result<Store> {
    let options = store::Options { lease: config.lease, retention: config.retention, ..store::Options::default() };
    Store::connect(config.url.expose_secret(), options).await.context("setting `store.url`")
}
