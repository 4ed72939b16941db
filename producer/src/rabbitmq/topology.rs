//! Declares what stands on the broker, or looks whether it does.

use lapin::{
    Connection, ExchangeKind as LapinKind,
    options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_schemas::topology::{Argument, Destination, ExchangeKind, Queue, Topology};

use super::{reply_code, short, within};

/// Why the topology does not stand.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Something is missing.
    #[error("missing on the broker: {}; `postrider topology apply` declares it", .0.join(", "))]
    Missing(Vec<String>),
    /// Something stands with other arguments. They cannot be changed.
    #[error("`{name}` stands with other arguments ({reason}); drain and delete it, then `postrider topology apply`")]
    Different {
        /// Its name.
        name: String,
        /// What the broker says.
        reason: String,
    },
    /// The broker failed.
    #[error("the broker: {0}")]
    Broker(#[from] lapin::Error),
}

/// Declares everything. Declaring what stands already changes nothing.
pub async fn apply(connection: &Connection, topology: &Topology) -> Result<(), TopologyError> {
    let channel = within("channel.open", connection.create_channel()).await?;
    for exchange in &topology.exchanges {
        let mut arguments = FieldTable::default();
        if let Some(alternate) = exchange.alternate {
            arguments.insert(short("alternate-exchange"), AMQPValue::LongString(LongString::from(alternate)));
        }
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(short(&exchange.name), kind(exchange.kind), options, arguments);
        within("exchange.declare", declared).await.map_err(|error| different(&exchange.name, error))?;
    }
    for queue in &topology.queues {
        let declared = channel.queue_declare(short(&queue.name), QueueDeclareOptions::durable(), arguments(queue));
        within("queue.declare", declared).await.map_err(|error| different(&queue.name, error))?;
    }
    for binding in &topology.bindings {
        let (source, key) = (short(&binding.source), short(&binding.routing_key));
        match &binding.destination {
            Destination::Queue(name) => {
                let options = QueueBindOptions::default();
                let bound = channel.queue_bind(short(name), source, key, options, FieldTable::default());
                within("queue.bind", bound).await?;
            }
            Destination::Exchange(name) => {
                let options = ExchangeBindOptions::default();
                let bound = channel.exchange_bind(short(name), source, key, options, FieldTable::default());
                within("exchange.bind", bound).await?;
            }
        }
    }
    within("channel.close", channel.close(200, short("declared"))).await?;
    Ok(())
}

/// Looks for every exchange and queue without declaring anything. Bindings cannot be asked for over AMQP.
pub async fn verify(connection: &Connection, topology: &Topology) -> Result<(), TopologyError> {
    let mut missing = Vec::new();
    for exchange in &topology.exchanges {
        let channel = within("channel.open", connection.create_channel()).await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let looked =
            channel.exchange_declare(short(&exchange.name), kind(exchange.kind), options, FieldTable::default());
        if is_missing(within("exchange.declare", looked).await)? {
            missing.push(exchange.name.clone());
        }
    }
    for queue in &topology.queues {
        // A declaration of what stands compares the arguments; a passive one would not. Missing queues are looked for first, so
        // that nothing is made.
        let channel = within("channel.open", connection.create_channel()).await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let looked = channel.queue_declare(short(&queue.name), options, FieldTable::default());
        if is_missing(within("queue.declare", looked).await.map(|_| ()))? {
            missing.push(queue.name.clone());
        } else {
            let compared = channel.queue_declare(short(&queue.name), QueueDeclareOptions::durable(), arguments(queue));
            match within("queue.declare", compared).await {
                // A user that may not declare may look all the same: the queue stands, and its arguments are somebody else's to compare. The
                // broker has closed the channel.
                Err(error) if reply_code(&error) == Some(403) => continue,
                compared => compared.map_err(|error| different(&queue.name, error))?,
            };
            within("channel.close", channel.close(200, short("looked"))).await?;
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(missing)) }
}

/// A passive declaration of what is missing closes the channel with 404.
fn is_missing(looked: Result<(), lapin::Error>) -> Result<bool, TopologyError> {
    match looked {
        Ok(()) => Ok(false),
        Err(error) if reply_code(&error) == Some(404) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn different(name: &str, error: lapin::Error) -> TopologyError {
    if reply_code(&error) == Some(406) {
        return TopologyError::Different { name: name.to_owned(), reason: error.to_string() };
    }
    error.into()
}

fn kind(kind: ExchangeKind) -> LapinKind {
    match kind {
        ExchangeKind::Topic => LapinKind::Topic,
        ExchangeKind::Fanout => LapinKind::Fanout,
    }
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert(short(name), value);
    }
    table
}
