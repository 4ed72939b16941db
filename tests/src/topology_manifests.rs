//! The topology as objects of RabbitMQ's messaging topology operator, as `deploy/kustomize` holds them. Knows nothing of Helm, whose
//! chart makes its own from the definitions.

use postrider_schemas::topology::{Argument, Binding, Destination, Exchange, ExchangeKind, Queue, Topology};

/// All objects as one YAML stream, for the cluster `rabbitmq` and the virtual host `/`.
pub fn objects(topology: &Topology) -> String {
    let title = "# Made from schemas/src/topology.rs by the test that holds the two equal. Do not edit.\n".to_owned();
    let exchanges = topology.exchanges.iter().map(exchange);
    let queues = topology.queues.iter().map(queue);
    std::iter::once(title).chain(exchanges).chain(queues).chain(topology.bindings.iter().map(binding)).collect()
}

fn exchange(one: &Exchange) -> String {
    let kind = match one.kind {
        ExchangeKind::Topic => "topic",
        ExchangeKind::Fanout => "fanout",
    };
    let arguments =
        one.alternate.map(|alternate| format!("  arguments:\n    alternate-exchange: {}\n", quoted(alternate)));
    head("Exchange", &one.name)
        + &format!("  name: {}\n  type: {kind}\n  durable: true\n  autoDelete: false\n", one.name)
        + &arguments.unwrap_or_default()
}

fn queue(one: &Queue) -> String {
    let argument = |(name, value): &(&str, Argument)| match value {
        Argument::Text(text) => format!("    {name}: {}\n", quoted(text)),
        Argument::Number(number) => format!("    {name}: {number}\n"),
    };
    // The type is a field of its own.
    let arguments = one.arguments.iter().filter(|(name, _)| *name != "x-queue-type").map(argument);
    head("Queue", &one.name)
        + &format!("  name: {}\n  type: quorum\n  durable: true\n  autoDelete: false\n", one.name)
        + "  deletionPolicy: retain\n  arguments:\n"
        + &arguments.collect::<String>()
}

fn binding(one: &Binding) -> String {
    let (destination, kind) = match &one.destination {
        Destination::Queue(name) => (name, "queue"),
        Destination::Exchange(name) => (name, "exchange"),
    };
    // The second binding of the first shard: by its lane alone.
    let is_bare = destination.ends_with(".00") && !one.routing_key.ends_with(".00");
    let by = if is_bare { ".by-lane" } else { "" };
    head("Binding", &format!("{}.to.{}{by}", one.source, short(destination)))
        + &format!("  source: {}\n  destination: {destination}\n  destinationType: {kind}\n", one.source)
        + &format!("  routingKey: {}\n", quoted(&one.routing_key))
}

fn head(kind: &str, name: &str) -> String {
    format!("---\napiVersion: rabbitmq.com/v1beta1\nkind: {kind}\nmetadata:\n  name: postrider-{}\n", short(name))
        + "spec:\n  rabbitmqClusterReference:\n    name: rabbitmq\n  vhost: /\n"
}

/// A name without what all of them begin with.
fn short(name: &str) -> &str {
    name.strip_prefix("postrider.").unwrap_or(name)
}

/// A string that YAML cannot take for anything else.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
