//! Listens to what Postrider tells on its exchange of events, through a queue of its own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, Consumer, ExchangeKind};
use postrider_schemas::topology::EVENTS_EXCHANGE;
use serde_json::Value;

use crate::log_check;

const LIMIT: Duration = Duration::from_secs(30);

/// Events from now on.
#[derive(Debug)]
pub struct Events {
    consumer: Consumer,
    _connection: Connection,
}

impl Events {
    /// Begins to listen. The topology has to stand.
    pub async fn listen(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(EVENTS_EXCHANGE.into(), ExchangeKind::Topic, passive, FieldTable::default()).await?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let name = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone();
        let bind = QueueBindOptions::default();
        channel.queue_bind(name.clone(), EVENTS_EXCHANGE.into(), "#".into(), bind, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(name, "story".into(), options, FieldTable::default()).await?;
        Ok(Self { consumer, _connection: connection })
    }

    /// The next event. Its routing key stands in `routing_key`. An event that names an address is an error.
    pub async fn next(&mut self) -> Result<Value> {
        let came = tokio::time::timeout(LIMIT, self.consumer.next()).await.context("no event comes")?;
        let delivery = came.context("the events end")??;
        let said = String::from_utf8_lossy(&delivery.data);
        ensure!(log_check::lines_with_addresses(&said).is_empty(), "an event names an address: {said}");
        let mut event: Value = serde_json::from_slice(&delivery.data)?;
        event["routing_key"] = delivery.routing_key.as_str().into();
        Ok(event)
    }

    /// The next events, up to one of this kind, which is the last.
    pub async fn until(&mut self, kind: &str) -> Result<Vec<Value>> {
        let mut list = Vec::new();
        loop {
            let event = self.next().await.with_context(|| format!("no {kind} after {list:#?}"))?;
            let is_last = event["type"] == kind;
            list.push(event);
            if is_last {
                return Ok(list);
            }
        }
    }
}
