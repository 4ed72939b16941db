//! Reads what the broker delivers. A header of an unexpected kind counts as absent: no message is lost over one.

use bytes::Bytes;
use jiff::Timestamp;
use lapin::{
    BasicProperties,
    message::Delivery as Delivered,
    types::{AMQPValue, FieldTable, ShortString},
};
use postrider_schemas::{Lane, Meta};

use super::{Receipt, acks::Acks};
use crate::decide::poison::losses;
use crate::memory::Memory;
use crate::queue::{Delivery, Message, Receipt as AnyReceipt, Source, SourceKind};

/// A delivery as the rest of the worker knows it.
pub fn delivery(delivered: Delivered, source: Source, acks: Acks, memory: &Memory) -> Delivery {
    let held = memory.hold(delivered.data.len());
    let properties = &delivered.properties;
    let headers = properties.headers().as_ref();
    let meta = meta(headers);
    let deliveries = headers.and_then(|table| number(table, "x-delivery-count")).unwrap_or(0);
    Delivery::new(Message {
        message_id: text(properties.message_id().as_ref()),
        message_type: text(properties.kind().as_ref()),
        published_at: published_at(properties),
        source: located(source, delivered.routing_key.as_str()),
        redelivered: delivered.redelivered,
        deliveries,
        lost: losses(&meta, deliveries),
        begun: 0,
        held,
        meta,
        body: Bytes::from(delivered.data),
        receipt: AnyReceipt::Rabbit(Receipt { acks, tag: delivered.delivery_tag }),
    })
}

/// What the headers remember.
pub fn meta(headers: Option<&FieldTable>) -> Meta {
    let pairs: Vec<(String, String)> = headers
        .into_iter()
        .flat_map(FieldTable::inner)
        .filter_map(|(name, value)| Some((name.to_string(), value_text(value)?)))
        .collect();
    Meta::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// A short string as text.
pub fn text(value: Option<&ShortString>) -> Option<String> {
    value.map(ToString::to_string).filter(|text| !text.is_empty())
}

fn published_at(properties: &BasicProperties) -> Option<Timestamp> {
    let seconds = (*properties.timestamp())?;
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

/// Quarantine holds both lanes: which one a message belongs to stands in its routing key, `suspect.<lane>.<shard>`.
fn located(source: Source, routing_key: &str) -> Source {
    if source.kind != SourceKind::Suspect {
        return source;
    }
    let (lane, shard) = target(routing_key);
    Source { kind: SourceKind::Suspect, lane: lane.unwrap_or(source.lane), shard }
}

/// Lane and shard at the end of a routing key.
pub fn target(routing_key: &str) -> (Option<Lane>, u16) {
    let mut words = routing_key.rsplit('.');
    let shard = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    (words.next().and_then(|word| word.parse().ok()), shard)
}

fn number(table: &FieldTable, name: &str) -> Option<u32> {
    value_text(table.inner().get(name)?)?.parse().ok()
}

fn value_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::ShortShortInt(n) => Some(n.to_string()),
        AMQPValue::ShortShortUInt(n) => Some(n.to_string()),
        AMQPValue::ShortInt(n) => Some(n.to_string()),
        AMQPValue::ShortUInt(n) => Some(n.to_string()),
        AMQPValue::LongInt(n) => Some(n.to_string()),
        AMQPValue::LongUInt(n) => Some(n.to_string()),
        AMQPValue::LongLongInt(n) => Some(n.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::LongString;

    use super::*;

    #[test]
    fn headers_of_any_number_type_are_read_and_strange_ones_ignored() {
        let mut table = FieldTable::default();
        table.insert("postrider-generation".into(), AMQPValue::LongLongInt(3));
        table.insert("postrider-attempt".into(), AMQPValue::LongString(LongString::from("2")));
        table.insert("postrider-parks".into(), AMQPValue::Boolean(true));
        table.insert("postrider-last".into(), AMQPValue::LongString(LongString::from(vec![0xff, 0xfe])));
        let meta = meta(Some(&table));
        assert_eq!((meta.generation, meta.attempt, meta.parks, meta.last), (3, 2, 0, None));
    }

    #[test]
    fn quarantine_remembers_the_lane() {
        assert_eq!(target("suspect.transactional.03"), (Some(Lane::Transactional), 3));
        assert_eq!(target("dead"), (None, 0));
    }
}
