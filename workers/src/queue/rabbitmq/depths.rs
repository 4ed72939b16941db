//! Asks the broker how much waits where, by passive declarations: they tell what is ready, and need no management plugin.

use lapin::{Channel, options::QueueDeclareOptions, types::FieldTable};
use postrider_producer::rabbitmq::{connect_to_ask, short, within};
use postrider_schemas::{
    Lane, ladder,
    topology::{DEAD_QUEUE, EVENTS_WAITING_QUEUE, HOLD_QUEUE, SUSPECT_QUEUE, UNROUTABLE_QUEUE, due_queue, jobs_queue},
};

use super::RabbitQueue;
use crate::queue::{
    QueueError,
    depths::{Depths, place},
};

/// The digits of a delay that have a queue.
const DIGITS: std::ops::RangeInclusive<u8> = 1..=7;

impl RabbitQueue {
    /// See [`crate::queue::Queue::depths`].
    pub(in crate::queue) async fn depths(&self, with_ladder: bool) -> Result<Depths, QueueError> {
        let mut slot = self.looking.lock().await;
        let looked = match slot.take().filter(|connection| connection.status().connected()) {
            Some(connection) => connection,
            None => connect_to_ask(&self.url, "postrider-looking").await?,
        };
        let channel = within("channel.open", looked.create_channel()).await?;
        let depths = self.look(&channel, with_ladder).await;
        // A channel on which something was missing is closed already.
        let _ = within("channel.close", channel.close(200, short("looked"))).await;
        *slot = Some(looked);
        depths
    }

    async fn look(&self, channel: &Channel, with_ladder: bool) -> Result<Depths, QueueError> {
        let mut depths = Depths::default();
        for lane in Lane::ALL {
            for shard in 0..self.shards {
                depths.jobs[place(lane)] += depth(channel, &jobs_queue(lane, shard)).await?;
                depths.due[place(lane)] += depth(channel, &due_queue(lane, shard)).await?;
            }
        }
        depths.dead = depth(channel, DEAD_QUEUE).await?;
        depths.hold = depth(channel, HOLD_QUEUE).await?;
        depths.suspect = depth(channel, SUSPECT_QUEUE).await?;
        depths.unroutable = depth(channel, UNROUTABLE_QUEUE).await?;
        depths.events = depth(channel, EVENTS_WAITING_QUEUE).await?;
        if with_ladder {
            let mut levels = [0; 7];
            for (level, count) in (0..).zip(&mut levels) {
                for digit in DIGITS {
                    *count += depth(channel, &ladder::queue_name(level, digit)).await?;
                }
            }
            depths.ladder = Some(levels);
        }
        Ok(depths)
    }
}

/// What a passive declaration that fails says.
pub(super) fn absent_or_failed(queue: &str, error: lapin::Error) -> QueueError {
    use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
    let is_absent = matches!(error.kind(), lapin::ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)));
    if is_absent { QueueError::Absent(queue.to_owned()) } else { QueueError::At(queue.to_owned(), error) }
}

async fn depth(channel: &Channel, queue: &str) -> Result<u64, QueueError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = channel.queue_declare(short(queue), passive, FieldTable::default());
    let declared = within("queue.declare", declared).await.map_err(|error| absent_or_failed(queue, error))?;
    Ok(declared.message_count().into())
}
