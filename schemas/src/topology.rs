//! What stands on the broker, as data: exchanges, queues with their arguments, bindings.
//!
//! Arguments hold what safety needs; tunables belong into policies, because arguments cannot be changed. That is also why queue
//! names carry `v1`. Every argument here is accepted by RabbitMQ 3.10 up to 4.x.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    fields::Lane,
    ladder::{self, LEVELS},
};

pub use crate::ladder::DUE_EXCHANGE;

/// Where producers publish, with routing key `<lane>.<shard>`, or `<lane>` alone for the first shard.
pub const SUBMIT_EXCHANGE: &str = "postrider.submit";
/// Where messages go that no queue wants.
pub const UNROUTABLE_EXCHANGE: &str = "postrider.unroutable";
/// Where work comes to rest: routing key `dead`, `hold` or `suspect`; and events that wait: `event.<type>.<tenant>`.
pub const DEAD_EXCHANGE: &str = "postrider.dead";
/// Where the sender is told what became of a job: routing key `<type>.<tenant>`. Unbound means dropped, on purpose.
pub const EVENTS_EXCHANGE: &str = "postrider.events";
/// Given up, kept for `postrider dead`.
pub const DEAD_QUEUE: &str = "postrider.v1.dead";
/// Waits for a person, see `postrider hold`.
pub const HOLD_QUEUE: &str = "postrider.v1.hold";
/// Messages under whose hands workers died; tried one at a time.
pub const SUSPECT_QUEUE: &str = "postrider.v1.suspect";
/// Messages that no queue wanted.
pub const UNROUTABLE_QUEUE: &str = "postrider.v1.unroutable";

/// Events that the queues bound to [`EVENTS_EXCHANGE`] did not take, kept until they do.
pub const EVENTS_WAITING_QUEUE: &str = "postrider.v1.events.waiting";
/// The first word of the routing key by which such an event reaches [`DEAD_EXCHANGE`]; its own key follows.
pub const EVENTS_WAITING_KEY: &str = "event";
/// So many events are kept.
pub const EVENTS_WAITING_MAX: i64 = 1_000_000;

/// Deliveries without an acknowledgement after which the broker dead-letters a message by itself. Never -1: RabbitMQ 3.10 takes it for "none"
/// and destroys the message at its first return. Never absent: 4.x would use 20.
pub const DELIVERY_LIMIT: i64 = 200;
/// The same for queues that tools look through: each look counts as a delivery.
pub const DELIVERY_LIMIT_AT_REST: i64 = 1_000_000_000;

/// The queue of fresh work.
pub fn jobs_queue(lane: Lane, shard: u16) -> String {
    format!("postrider.v1.jobs.{lane}.{shard:02}")
}

/// True for a queue that producers write to, whatever their users are.
pub fn is_jobs_queue(name: &str) -> bool {
    name.starts_with("postrider.v1.jobs.")
}

/// The queue of work that comes back.
pub fn due_queue(lane: Lane, shard: u16) -> String {
    format!("postrider.v1.due.{lane}.{shard:02}")
}

/// The routing key of fresh work.
pub fn submit_key(lane: Lane, shard: u16) -> String {
    ladder::target(lane, shard)
}

/// An exchange. All are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ExchangeKind,
    /// Where it sends what no binding matches.
    pub alternate: Option<&'static str>,
}

/// The two types of exchange in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeKind {
    /// Routing keys match patterns.
    Topic,
    /// Everything goes everywhere.
    Fanout,
}

/// A durable quorum queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// A queue argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A long string.
    Text(String),
    /// A 64-bit integer.
    Number(i64),
}

/// A binding from an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange that messages come from.
    pub source: String,
    /// What they go to.
    pub destination: Destination,
    /// The pattern.
    pub routing_key: String,
}

/// The end of a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A queue.
    Queue(String),
    /// Another exchange.
    Exchange(String),
}

/// Everything that stands on the broker. Declaring it in this order never names what is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Exchanges, alternates first.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings.
    pub bindings: Vec<Binding>,
}

impl Topology {
    /// Version 1 of the topology, with this many shards per lane (at least one).
    pub fn v1(shards: u16) -> Self {
        let mut topology = Self { exchanges: exchanges(), queues: Vec::new(), bindings: Vec::new() };
        topology.rest();
        for lane in Lane::ALL {
            for shard in 0..shards.max(1) {
                topology.work(lane, shard);
            }
        }
        (0..LEVELS).for_each(|level| topology.level(level));
        topology
    }

    /// Where work comes to rest.
    fn rest(&mut self) {
        for (queue, key) in [(DEAD_QUEUE, "dead"), (HOLD_QUEUE, "hold")] {
            self.queue(queue, vec![("x-delivery-limit", Argument::Number(DELIVERY_LIMIT_AT_REST))]);
            self.bind_queue(DEAD_EXCHANGE, queue, &format!("{key}.#"));
        }
        self.queue(SUSPECT_QUEUE, work_arguments());
        self.bind_queue(DEAD_EXCHANGE, SUSPECT_QUEUE, "suspect.#");
        self.queue(UNROUTABLE_QUEUE, vec![("x-delivery-limit", Argument::Number(DELIVERY_LIMIT_AT_REST))]);
        self.bind_queue(UNROUTABLE_EXCHANGE, UNROUTABLE_QUEUE, "#");
        self.queue(
            EVENTS_WAITING_QUEUE,
            vec![
                ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT_AT_REST)),
                ("x-max-length", Argument::Number(EVENTS_WAITING_MAX)),
                ("x-overflow", Argument::Text("reject-publish".to_owned())),
            ],
        );
        self.bind_queue(DEAD_EXCHANGE, EVENTS_WAITING_QUEUE, &format!("{EVENTS_WAITING_KEY}.#"));
    }

    /// The two queues of a lane and shard.
    fn work(&mut self, lane: Lane, shard: u16) {
        let (jobs, due) = (jobs_queue(lane, shard), due_queue(lane, shard));
        self.queue(&jobs, work_arguments());
        self.bind_queue(SUBMIT_EXCHANGE, &jobs, &submit_key(lane, shard));
        // Whoever writes by hand forgets the shard: the first one takes it.
        if shard == 0 {
            self.bind_queue(SUBMIT_EXCHANGE, &jobs, lane.as_str());
        }
        self.queue(&due, work_arguments());
        self.bind_queue(
            DUE_EXCHANGE,
            &due,
            &format!("{}{}", "*.".repeat(usize::from(LEVELS)), submit_key(lane, shard)),
        );
    }

    /// One level of the ladder: seven queues, and the way past them for the digit 0.
    fn level(&mut self, level: u8) {
        let exchange = ladder::exchange_name(level);
        let next = if level == 0 { DUE_EXCHANGE.to_owned() } else { ladder::exchange_name(level - 1) };
        for digit in 1..=7 {
            let queue = ladder::queue_name(level, digit);
            let wait = i64::try_from(ladder::queue_wait(level, digit).as_millis()).unwrap_or(i64::MAX);
            let mut arguments = vec![("x-message-ttl", Argument::Number(wait))];
            arguments.extend(dead_letter_arguments(&next));
            self.queue(&queue, arguments);
            self.bind_queue(&exchange, &queue, &ladder::binding_key(level, digit));
        }
        self.bindings.push(Binding {
            source: exchange,
            destination: Destination::Exchange(next),
            routing_key: ladder::binding_key(level, 0),
        });
    }

    fn queue(&mut self, name: &str, mut arguments: Vec<(&'static str, Argument)>) {
        // Without it every leader stands on the node that the topology was declared on.
        arguments.insert(0, ("x-queue-leader-locator", Argument::Text("balanced".to_owned())));
        arguments.insert(0, ("x-queue-type", Argument::Text("quorum".to_owned())));
        self.queues.push(Queue { name: name.to_owned(), arguments });
    }

    fn bind_queue(&mut self, source: &str, queue: &str, routing_key: &str) {
        self.bindings.push(Binding {
            source: source.to_owned(),
            destination: Destination::Queue(queue.to_owned()),
            routing_key: routing_key.to_owned(),
        });
    }

    /// The same in the form that `rabbitmqctl import_definitions` and the management API read, for one virtual host.
    pub fn to_definitions(&self, vhost: &str) -> Value {
        let exchanges: Vec<Value> = self
            .exchanges
            .iter()
            .map(|one| {
                let arguments = one.alternate.map_or(json!({}), |alternate| json!({ "alternate-exchange": alternate }));
                json!({ "name": one.name, "vhost": vhost, "type": one.kind, "durable": true, "auto_delete": false,
                        "internal": false, "arguments": arguments })
            })
            .collect();
        let queues: Vec<Value> = self
            .queues
            .iter()
            .map(|one| {
                let arguments: serde_json::Map<String, Value> =
                    one.arguments.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
                json!({ "name": one.name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments })
            })
            .collect();
        let bindings: Vec<Value> = self
            .bindings
            .iter()
            .map(|one| {
                let (destination, kind) = match &one.destination {
                    Destination::Queue(name) => (name, "queue"),
                    Destination::Exchange(name) => (name, "exchange"),
                };
                json!({ "source": one.source, "vhost": vhost, "destination": destination, "destination_type": kind,
                        "routing_key": one.routing_key, "arguments": {} })
            })
            .collect();
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }
}

fn exchanges() -> Vec<Exchange> {
    let topic = |name: &str| Exchange { name: name.to_owned(), kind: ExchangeKind::Topic, alternate: None };
    let mut list = vec![
        Exchange { name: UNROUTABLE_EXCHANGE.to_owned(), kind: ExchangeKind::Fanout, alternate: None },
        Exchange { alternate: Some(UNROUTABLE_EXCHANGE), ..topic(SUBMIT_EXCHANGE) },
        Exchange { alternate: Some(UNROUTABLE_EXCHANGE), ..topic(DUE_EXCHANGE) },
        topic(DEAD_EXCHANGE),
        topic(EVENTS_EXCHANGE),
    ];
    list.extend((0..LEVELS).map(|level| topic(&ladder::exchange_name(level))));
    list
}

fn work_arguments() -> Vec<(&'static str, Argument)> {
    let mut arguments = vec![("x-delivery-limit", Argument::Number(DELIVERY_LIMIT))];
    arguments.extend(dead_letter_arguments(DEAD_EXCHANGE));
    arguments.push(("x-dead-letter-routing-key", Argument::Text("dead".to_owned())));
    arguments
}

/// At-least-once dead-lettering, which asks for `reject-publish`.
fn dead_letter_arguments(exchange: &str) -> [(&'static str, Argument); 3] {
    [
        ("x-dead-letter-exchange", Argument::Text(exchange.to_owned())),
        ("x-dead-letter-strategy", Argument::Text("at-least-once".to_owned())),
        ("x-overflow", Argument::Text("reject-publish".to_owned())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_has_49_queues_and_each_lane_two() {
        let topology = Topology::v1(1);
        let ladder = topology.queues.iter().filter(|queue| queue.name.contains(".delay.")).count();
        assert_eq!((ladder, topology.queues.len()), (49, 49 + 5 + 4));
        assert_eq!(Topology::v1(3).queues.len(), 49 + 5 + 12);
    }

    #[test]
    fn every_queue_is_a_quorum_queue_and_none_has_an_unlimited_delivery_limit() {
        for queue in Topology::v1(2).queues {
            let balanced = ("x-queue-leader-locator", Argument::Text("balanced".to_owned()));
            assert!(queue.arguments.contains(&balanced), "{}", queue.name);
            assert!(queue.arguments.contains(&("x-queue-type", Argument::Text("quorum".to_owned()))), "{}", queue.name);
            for (name, value) in &queue.arguments {
                if *name == "x-delivery-limit" {
                    assert!(matches!(value, Argument::Number(limit) if *limit > 0), "{}", queue.name);
                }
            }
        }
    }

    #[test]
    fn producers_reach_the_queues_of_fresh_work_alone() {
        for binding in Topology::v1(2).bindings {
            if let Destination::Queue(queue) = &binding.destination
                && binding.source != UNROUTABLE_EXCHANGE
            {
                assert_eq!(binding.source == SUBMIT_EXCHANGE, is_jobs_queue(queue), "{queue}");
            }
        }
    }

    #[test]
    fn due_queues_have_no_length_limit() {
        for queue in Topology::v1(1).queues.iter().filter(|queue| queue.name.contains(".due.")) {
            assert!(!queue.arguments.iter().any(|(name, _)| name.starts_with("x-max-length")), "{}", queue.name);
        }
    }

    #[test]
    fn whatever_a_queue_dead_letters_to_is_declared() {
        let topology = Topology::v1(1);
        for queue in &topology.queues {
            for (name, value) in &queue.arguments {
                if *name == "x-dead-letter-exchange" {
                    assert!(
                        topology.exchanges.iter().any(|one| Argument::Text(one.name.clone()) == *value),
                        "{}",
                        queue.name
                    );
                }
            }
        }
    }
}
