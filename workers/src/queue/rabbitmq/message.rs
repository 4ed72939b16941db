//! Reads what the broker delivers. A header of an unexpected kind counts as absent: no message is lost over one. What came from a producer may say
//! little, see [`Meta::from_producer`].

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::{
    BasicProperties,
    message::Delivery as Delivered,
    types::{AMQPValue, FieldTable, ShortString},
};
use postrider_producer::rabbitmq::{
    frames::{CUT_ALL, CUT_HEADER},
    link::ForeignProperties,
};
use postrider_schemas::{
    JobId, Lane, Meta,
    meta::Rest,
    topology::{SUBMIT_EXCHANGE, is_jobs_queue},
    wire::packed_octets,
};

use super::{RabbitReceipt, acks::Acks};
use crate::{
    memory::Memory,
    policy::poison::losses,
    queue::{Cut, DeliveredMessage, Delivery, DeliveryReceipt as AnyReceipt, Source, SourceKind},
};

/// So many octets of a body in gzip are accounted for at most; the setting `job.bytes_max` refuses more without a look inside.
const UNPACKED_MAX: usize = 64 * 1024 * 1024;
/// How far a producer's clock may be ahead before its time counts as none.
const AHEAD_MAX: Duration = Duration::from_mins(5);

/// A delivery as the rest of the worker knows it.
pub fn delivery(delivered: Delivered, source: Source, acks: Acks, memory: &Memory) -> Delivery {
    let inside = packed_octets(&delivered.data).unwrap_or(0).min(UNPACKED_MAX);
    let held = memory.hold(delivered.data.len().saturating_add(inside));
    let properties = &delivered.properties;
    let headers = properties.headers().as_ref();
    // The broker writes it with the first return; before that it could only be a producer's.
    let deliveries =
        headers.filter(|_| delivered.redelivered).and_then(|table| number(table, "x-delivery-count")).unwrap_or(0);
    let meta = if source.kind == SourceKind::Jobs { fresh(properties) } else { copied(headers) };
    Delivery::new(DeliveredMessage {
        message_id: text(properties.message_id().as_ref()),
        message_type: text(properties.kind().as_ref()),
        published_at: published_at(properties, Timestamp::now()),
        foreign: ForeignProperties::of(properties),
        source: located(source, delivered.routing_key.as_str()),
        redelivered: delivered.redelivered,
        deliveries,
        lost: losses(&meta, deliveries),
        begun: 0,
        held,
        cut: cut(headers),
        meta,
        body: Bytes::from(delivered.data),
        receipt: AnyReceipt::Rabbit(RabbitReceipt { acks, tag: delivered.delivery_tag }),
    })
}

/// The headers of a message that a producer published, and the user that the broker vouches for.
fn fresh(properties: &BasicProperties) -> Meta {
    let pairs = pairs(properties.headers().as_ref());
    let publisher = text(properties.user_id().as_ref()).unwrap_or_default();
    Meta { publisher: Some(publisher), ..Meta::from_producer(borrowed(&pairs)) }
}

/// The headers of a copy that a worker made.
fn copied(headers: Option<&FieldTable>) -> Meta {
    Meta::from_pairs(borrowed(&pairs(headers)))
}

/// The headers of a message at rest. What the broker itself put there has the headers that it had in its queue before, which may be a producer's,
/// and says so in `x-death`: the broker writes the newest entry, whatever the message said before, and copies of ours carry none.
pub fn at_rest(properties: &BasicProperties) -> Meta {
    let headers = properties.headers().as_ref();
    let Some(death) = headers.and_then(death) else { return copied(headers) };
    let mut meta = if is_jobs_queue(&death.queue) { fresh(properties) } else { copied(headers) };
    let reason = match death.reason.as_str() {
        "delivery_limit" => "delivery-limit",
        "expired" => "message-ttl",
        _ => "dead-lettered",
    };
    let detail = format!("the broker moved it here from {}", death.queue);
    let lane = target(&death.queue).0;
    meta.rest = Some(Rest {
        reason: reason.to_owned(),
        detail,
        at: death.at.unwrap_or_default(),
        times: 1,
        lane,
        transport: None,
    });
    meta
}

/// The headers of a message that no queue wanted: a worker's copy where it was published to an exchange that producers may not write to.
pub fn unrouted(exchange: &str, properties: &BasicProperties) -> Meta {
    if exchange == SUBMIT_EXCHANGE { fresh(properties) } else { copied(properties.headers().as_ref()) }
}

/// The newest entry of `x-death`.
struct Death {
    queue: String,
    reason: String,
    at: Option<Timestamp>,
}

fn death(headers: &FieldTable) -> Option<Death> {
    let AMQPValue::FieldArray(list) = headers.inner().get("x-death")? else { return None };
    let Some(AMQPValue::FieldTable(newest)) = list.as_slice().first() else { return None };
    let text = |name| newest.inner().get(name).and_then(value_text);
    let at = match newest.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => seconds_since_1970(*seconds),
        _ => None,
    };
    Some(Death { queue: text("queue")?, reason: text("reason").unwrap_or_default(), at })
}

fn pairs(headers: Option<&FieldTable>) -> Vec<(String, String)> {
    let all = headers.into_iter().flat_map(FieldTable::inner);
    all.filter_map(|(name, value)| Some((name.to_string(), value_text(value)?))).collect()
}

fn borrowed(pairs: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

/// What the connection had to leave out of the headers.
pub fn cut(headers: Option<&FieldTable>) -> Option<Cut> {
    let reason = value_text(headers?.inner().get(CUT_HEADER)?)?;
    Some(match reason.strip_prefix(CUT_ALL) {
        Some(reason) => Cut { reason: reason.trim_start().to_owned(), is_whole: true },
        None => Cut { reason, is_whole: false },
    })
}

/// A short string as text.
pub fn text(value: Option<&ShortString>) -> Option<String> {
    value.map(ToString::to_string).filter(|text| !text.is_empty())
}

/// When a message was published: by its timestamp, else by an id that holds a time. A time that lies ahead of us is none: the ledger takes what was
/// published after it began to remember for something that it would remember.
fn published_at(properties: &BasicProperties, now: Timestamp) -> Option<Timestamp> {
    let latest = now.checked_add(AHEAD_MAX).unwrap_or(Timestamp::MAX);
    let said = (*properties.timestamp()).and_then(time_of_producer).filter(|time| *time <= latest);
    let id = || text(properties.message_id().as_ref())?.parse::<JobId>().ok()?.time();
    said.or_else(|| id().filter(|time| *time <= latest))
}

/// Seconds since 1970, as AMQP has it, or a smaller unit, as many programs have it. Zero is how some say that there is none.
fn time_of_producer(number: u64) -> Option<Timestamp> {
    let number = i64::try_from(number).ok().filter(|number| *number > 0)?;
    // Up to the year 5138.
    let fits = |unit: i64| number / unit < 100_000_000_000;
    let time = match () {
        () if fits(1) => Timestamp::from_second(number),
        () if fits(1000) => Timestamp::from_millisecond(number),
        () if fits(1_000_000) => Timestamp::from_microsecond(number),
        () => Timestamp::from_nanosecond(number.into()),
    };
    time.ok()
}

fn seconds_since_1970(seconds: u64) -> Option<Timestamp> {
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
    use lapin::types::{FieldArray, LongString};

    use super::*;

    #[test]
    fn headers_of_any_number_type_are_read_and_strange_ones_ignored() {
        let mut table = FieldTable::default();
        table.insert("postrider-generation".into(), AMQPValue::LongLongInt(3));
        table.insert("postrider-attempt".into(), AMQPValue::LongString(LongString::from("2")));
        table.insert("postrider-parks".into(), AMQPValue::Boolean(true));
        table.insert("postrider-last".into(), AMQPValue::LongString(LongString::from(vec![0xff, 0xfe])));
        let meta = copied(Some(&table));
        assert_eq!((meta.generation, meta.attempt, meta.parks, meta.last), (3, 2, 0, None));
    }

    fn properties(pairs: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in pairs {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn deaths(queue: &str, reason: &str) -> AMQPValue {
        let entry = |queue: &str, reason: &str| {
            let mut entry = FieldTable::default();
            for (name, value) in [("queue", queue), ("reason", reason)] {
                entry.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
            }
            entry.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
            AMQPValue::FieldTable(entry)
        };
        AMQPValue::FieldArray(FieldArray::from(vec![
            entry(queue, reason),
            entry("postrider.v1.due.bulk.00", "rejected"),
        ]))
    }

    #[test]
    fn what_the_broker_put_to_rest_out_of_a_producers_queue_is_a_producers() {
        let generation = ("postrider-generation", AMQPValue::LongLongInt(7));
        let user = |pairs: &[_]| properties(pairs).with_user_id("shop".into());
        let read =
            |queue: &str, reason: &str| at_rest(&user(&[generation.clone(), ("x-death", deaths(queue, reason))]));
        let fresh = read("postrider.v1.jobs.bulk.00", "expired");
        let rest = fresh.rest.unwrap();
        assert_eq!((fresh.generation, fresh.publisher.as_deref()), (0, Some("shop")));
        assert_eq!(
            (rest.reason.as_str(), rest.lane, rest.at.as_second()),
            ("message-ttl", Some(Lane::Bulk), 1_700_000_000)
        );
        let copy = read("postrider.v1.due.bulk.00", "delivery_limit");
        assert_eq!((copy.generation, copy.publisher, copy.rest.unwrap().reason.as_str()), (7, None, "delivery-limit"));
        let ours = at_rest(&properties(&[generation]));
        assert_eq!((ours.generation, ours.rest), (7, None));
    }

    #[test]
    fn the_user_that_the_broker_vouches_for_comes_with_a_fresh_message() {
        let forged = properties(&[("postrider-publisher", AMQPValue::LongString(LongString::from("bank")))]);
        assert_eq!(fresh(&forged).publisher.as_deref(), Some(""));
        assert_eq!(fresh(&forged.with_user_id("shop".into())).publisher.as_deref(), Some("shop"));
    }

    #[test]
    fn a_time_ahead_of_ours_is_none() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let at = |seconds: i64| {
            let seconds = u64::try_from(now.as_second() + seconds).unwrap();
            published_at(&BasicProperties::default().with_timestamp(seconds), now).is_some()
        };
        assert_eq!([at(-1_000_000), at(0), at(299), at(301), at(1_000_000)], [true, true, true, false, false]);
        assert_eq!(published_at(&BasicProperties::default().with_timestamp(u64::MAX), now), None);
    }

    #[test]
    fn a_publish_time_is_read_in_any_unit_and_from_the_id() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let at = |properties: BasicProperties| published_at(&properties, now).map(|time| time.to_string());
        let stamped = |number: u64| at(BasicProperties::default().with_timestamp(number));
        let time = Some("2026-11-23T09:00:00Z".to_owned());
        for unit in [1, 1000, 1_000_000, 1_000_000_000] {
            assert_eq!(stamped(1_795_424_400 * unit), time, "{unit}");
        }
        assert_eq!(stamped(0), None);
        let by_id = |id: &str| BasicProperties::default().with_message_id(id.into()).with_timestamp(0);
        assert_eq!(at(by_id("0190a5c0-7a10-7c3e-9d51-000000000001")).as_deref(), Some("2024-07-12T07:02:53.2Z"));
        assert_eq!(at(by_id("0190a5c0-7a10-4c3e-9d51-000000000001")), None, "a random one");
        assert_eq!(at(by_id("01ffffff-7a10-7c3e-9d51-000000000001")), None, "ahead");
        assert_eq!(at(by_id("order 4711")), None);
    }

    #[test]
    fn what_was_left_out_of_the_headers_is_told() {
        let with = |text: &str| {
            let mut table = FieldTable::default();
            table.insert(CUT_HEADER.into(), AMQPValue::LongString(LongString::from(text)));
            cut(Some(&table))
        };
        assert_eq!(with("too large"), Some(Cut { reason: "too large".to_owned(), is_whole: false }));
        assert_eq!(with(&format!("{CUT_ALL} no UTF-8")), Some(Cut { reason: "no UTF-8".to_owned(), is_whole: true }));
        assert_eq!(cut(Some(&FieldTable::default())), None);
    }

    #[test]
    fn quarantine_remembers_the_lane() {
        assert_eq!(target("suspect.transactional.03"), (Some(Lane::Transactional), 3));
        assert_eq!(target("dead"), (None, 0));
    }
}
