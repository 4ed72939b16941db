//! Looks through messages at rest, for `postrider dead` and `postrider hold`. Everything is fetched once, in order, and what is not decided
//! otherwise goes back to its place when the channel closes.

use bytes::Bytes;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use postrider_producer::rabbitmq::{connect, link::ForeignProperties, short, within};
use postrider_schemas::{
    ladder,
    topology::{DEAD_QUEUE, HOLD_QUEUE, UNROUTABLE_QUEUE},
};
use std::time::Duration;

use super::{RabbitQueue, depths::absent_or_failed, linger, message, outgoing};
use crate::queue::{QueueError, Rest, RestError, RestMessage, RestVerdict};

impl RabbitQueue {
    /// See [`crate::queue::Queue::rest_each`].
    pub(in crate::queue) async fn rest_each(
        &self,
        rest: Rest,
        mut decide: impl AsyncFnMut(&RestMessage) -> RestVerdict,
    ) -> Result<u64, RestError> {
        let queue = match rest {
            Rest::Dead => DEAD_QUEUE,
            Rest::Hold => HOLD_QUEUE,
            Rest::Unroutable => UNROUTABLE_QUEUE,
        };
        let connection = connect(&self.url, "postrider-tool").await.map_err(QueueError::from)?;
        let failed = |error| QueueError::At(queue.to_owned(), error);
        let channel = within("channel.open", connection.create_channel()).await.map_err(failed)?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let looked = channel.queue_declare(short(queue), passive, FieldTable::default());
        let looked = within("queue.declare", looked).await.map_err(|error| absent_or_failed(queue, error))?;
        let depth = u64::from(looked.message_count());
        let mut seen = 0;
        // Bounded by the depth at the start: what comes to rest meanwhile is for the next look.
        while seen < depth {
            let got = channel.basic_get(short(queue), BasicGetOptions::default());
            let got = within("basic.get", got).await.map_err(failed)?;
            let Some(got) = got else { break };
            seen += 1;
            let delivered = got.delivery;
            let properties = &delivered.properties;
            let message = RestMessage {
                message_id: message::text(properties.message_id().as_ref()),
                meta: match rest {
                    Rest::Dead | Rest::Hold => message::at_rest(properties),
                    Rest::Unroutable => message::unrouted(delivered.exchange.as_str(), properties),
                },
                routing_key: delivered.routing_key.to_string(),
                cut: message::cut(properties.headers().as_ref()),
                body: Bytes::from(delivered.data),
            };
            match decide(&message).await {
                RestVerdict::Keep => continue,
                RestVerdict::Drop => {}
                RestVerdict::Again(meta, lane) => {
                    // The shard of a key that no queue takes may be the very mistake.
                    let shard = match rest {
                        Rest::Dead | Rest::Hold => message::target(delivered.routing_key.as_str()).1,
                        Rest::Unroutable => 0,
                    };
                    let rung = ladder::rung(Duration::ZERO, lane, shard);
                    let kind = message::text(properties.kind().as_ref());
                    let foreign = ForeignProperties::of(properties);
                    let copy = outgoing(
                        rung.exchange,
                        rung.routing_key,
                        message.message_id,
                        message.body,
                        &meta,
                        kind,
                        foreign,
                    );
                    self.publishing.publish(&copy).await?;
                }
            }
            let acknowledged = channel.basic_ack(delivered.delivery_tag, BasicAckOptions::default());
            within("basic.ack", acknowledged).await.map_err(failed)?;
        }
        linger().await;
        within("connection.close", connection.close(200, short("looked"))).await.map_err(failed)?;
        Ok(seen)
    }
}
