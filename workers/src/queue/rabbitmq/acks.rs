//! Acknowledgements of one channel, told to the broker in as few frames as may be: gathered for a moment, `multiple` up to the watermark
//! below which everything is settled, single ones for what settles out of order and does not wait long.
//!
//! A settlement counts as made once it is handed to this room while the channel stands. If the channel dies before the frame leaves, the
//! message is delivered again and the ledger knows it; nothing is lost by that, and nothing sent twice.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use postrider_producer::rabbitmq::within;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

/// How long a settlement out of order waits for the watermark to reach it.
const STRAGGLER_WAIT: Duration = Duration::from_millis(5);
/// How long the first settlement waits for others to be told with it. A frame costs a wakeup of the connection's thread here and, on a
/// quorum queue, an entry of its log there, whether it speaks of one message or of forty. Short beside the time that a job takes,
/// because what is settled and not yet told still counts against the prefetch.
const GATHER: Duration = Duration::from_millis(2);
/// How long those that say goodbye wait for what is left to be said.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The acknowledgements of a channel. Cheap to clone.
#[derive(Clone)]
pub struct Acks {
    channel: Channel,
    settled: mpsc::UnboundedSender<Settled>,
}

enum Settled {
    Acknowledged(u64),
    GivenBack(u64),
    Flush(oneshot::Sender<()>),
}

impl Acks {
    /// Begins to tell this channel's broker.
    pub fn start(channel: Channel) -> Self {
        let (settled, receiver) = mpsc::unbounded_channel();
        tokio::spawn(tell(channel.clone(), receiver));
        Self { channel, settled }
    }

    /// The channel itself.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// False once the channel is gone.
    pub fn is_usable(&self) -> bool {
        self.channel.status().connected()
    }

    /// Marks a delivery as done. False if the channel is gone.
    pub fn acknowledge(&self, tag: u64) -> bool {
        self.is_usable() && self.settled.send(Settled::Acknowledged(tag)).is_ok()
    }

    /// Hands a delivery back at once. False if the channel is gone.
    pub fn give_back(&self, tag: u64) -> bool {
        self.is_usable() && self.settled.send(Settled::GivenBack(tag)).is_ok()
    }

    /// Waits until everything marked so far was written.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.settled.send(Settled::Flush(done)).is_ok() {
            // An error means that the channel is gone, and with it what could be flushed.
            let _ = timeout(FLUSH_LIMIT, flushed).await;
        }
    }
}

/// Which tags are settled and which of them the broker was told of. Pure.
#[derive(Debug, Default)]
struct Watermark {
    /// Everything up to this tag is settled.
    low: u64,
    /// Settled, and the broker not told.
    waiting: BTreeSet<u64>,
    /// Above the watermark, and the broker told.
    told: BTreeSet<u64>,
}

/// A frame for the broker.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    tag: u64,
    multiple: bool,
}

impl Watermark {
    fn acknowledged(&mut self, tag: u64) {
        self.waiting.insert(tag);
    }

    fn given_back(&mut self, tag: u64) {
        self.told.insert(tag);
    }

    /// The frame that tells everything up to the watermark, if anything is to be told. A tag that the broker was told of alone must
    /// not be named again: it would close the channel.
    fn advance(&mut self) -> Option<Frame> {
        let mut last = None;
        let mut count = 0;
        loop {
            let next = self.low + 1;
            if self.waiting.remove(&next) {
                last = Some(next);
                count += 1;
            } else if !self.told.remove(&next) {
                break;
            }
            self.low = next;
        }
        last.map(|tag| Frame { tag, multiple: count > 1 })
    }

    /// Frames for what still waits above the watermark.
    fn stragglers(&mut self) -> Vec<Frame> {
        let waiting = std::mem::take(&mut self.waiting);
        self.told.extend(&waiting);
        waiting.into_iter().map(|tag| Frame { tag, multiple: false }).collect()
    }
}

async fn tell(channel: Channel, mut settled: mpsc::UnboundedReceiver<Settled>) {
    let mut watermark = Watermark::default();
    loop {
        let next = if watermark.waiting.is_empty() {
            settled.recv().await
        } else {
            let Ok(next) = timeout(STRAGGLER_WAIT, settled.recv()).await else {
                for frame in watermark.stragglers() {
                    write(&channel, &frame).await;
                }
                continue;
            };
            next
        };
        let Some(next) = next else { return };
        let mut flushes = Vec::new();
        let is_urgent = !matches!(next, Settled::Acknowledged(_));
        take(&channel, &mut watermark, &mut flushes, next).await;
        if !is_urgent {
            sleep(GATHER).await;
        }
        while let Ok(more) = settled.try_recv() {
            take(&channel, &mut watermark, &mut flushes, more).await;
        }
        if let Some(frame) = watermark.advance() {
            write(&channel, &frame).await;
        }
        if !flushes.is_empty() {
            for frame in watermark.stragglers() {
                write(&channel, &frame).await;
            }
        }
        for done in flushes {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }
}

async fn take(channel: &Channel, watermark: &mut Watermark, flushes: &mut Vec<oneshot::Sender<()>>, settled: Settled) {
    match settled {
        Settled::Acknowledged(tag) => watermark.acknowledged(tag),
        Settled::GivenBack(tag) => {
            let options = BasicNackOptions { requeue: true, multiple: false };
            // On a channel that is gone the message comes back by itself.
            let _ = within("basic.nack", channel.basic_nack(tag, options)).await;
            watermark.given_back(tag);
        }
        Settled::Flush(done) => flushes.push(done),
    }
}

async fn write(channel: &Channel, frame: &Frame) {
    // On a channel that is gone the messages come back by themselves, and the ledger knows them.
    let options = BasicAckOptions { multiple: frame.multiple };
    let _ = within("basic.ack", channel.basic_ack(frame.tag, options)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "what is compared with it is an Option")]
    fn frame(tag: u64, multiple: bool) -> Option<Frame> {
        Some(Frame { tag, multiple })
    }

    #[test]
    fn settlements_in_order_take_one_frame() {
        let mut watermark = Watermark::default();
        (1..=5).for_each(|tag| watermark.acknowledged(tag));
        assert_eq!(watermark.advance(), frame(5, true));
        assert_eq!(watermark.advance(), None);
        watermark.acknowledged(6);
        assert_eq!(watermark.advance(), frame(6, false));
    }

    #[test]
    fn a_gap_stops_the_watermark_and_stragglers_go_alone() {
        let mut watermark = Watermark::default();
        for tag in [1, 2, 4, 5] {
            watermark.acknowledged(tag);
        }
        assert_eq!(watermark.advance(), frame(2, true));
        let stragglers = watermark.stragglers();
        assert_eq!(stragglers, [Frame { tag: 4, multiple: false }, Frame { tag: 5, multiple: false }]);
        watermark.acknowledged(3);
        watermark.acknowledged(6);
        assert_eq!(watermark.advance(), frame(6, true), "the tag that is named was never told before");
    }

    #[test]
    fn a_tag_that_the_broker_knows_is_not_named_again() {
        let mut watermark = Watermark::default();
        watermark.acknowledged(2);
        assert_eq!(watermark.stragglers().len(), 1);
        watermark.acknowledged(1);
        assert_eq!(watermark.advance(), frame(1, false));
        assert_eq!(watermark.low, 2);
        watermark.given_back(3);
        watermark.acknowledged(4);
        assert_eq!(watermark.advance(), frame(4, false));
    }
}
