//! The broker's side of publishing: a supervised connection, and the topology.

pub mod intake;
pub mod link;
pub mod topology;

use std::time::Duration;

use async_rs::{Runtime, Tokio, traits::RuntimeKit, util::RuntimeParts};
use lapin::{
    Connection, ConnectionProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
    uri::AMQPUri,
};
use tokio::time::timeout;

use self::intake::{Intake, Sockets};

/// How long a connection may take to stand.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why a broker cannot be reached. Never shows a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is none of AMQP.
    #[error("not an AMQP address (amqp://user:password@host:5672/vhost): {0}")]
    Url(String),
    /// Nothing answered in time.
    #[error("no answer from {0} within {CONNECT_LIMIT:?}; does it run, and is the address right?")]
    Timeout(String),
    /// The broker or the network refused.
    #[error("connecting to {0}: {1}")]
    Refused(String, lapin::Error),
}

/// Frames of connections that carry no jobs: as small as every broker takes.
const SMALL_FRAMES: u32 = 8192;

/// Opens a connection that asks and is answered, and carries no jobs. Lapin keeps room for 64 frames a connection from the start: 8 MiB where they have
/// the broker's usual size.
pub async fn connect_to_ask(url: &str, name: &str) -> Result<Connection, ConnectError> {
    let mut uri: AMQPUri = url.parse().map_err(ConnectError::Url)?;
    uri.query.frame_max.get_or_insert(SMALL_FRAMES);
    open(uri, name).await
}

/// Opens a connection. Lapin's own recovery stays off: after any failure the caller makes everything anew.
pub async fn connect(url: &str, name: &str) -> Result<Connection, ConnectError> {
    open(url.parse().map_err(ConnectError::Url)?, name).await
}

/// Opens a connection that reads no more than an intake allows.
pub async fn connect_with_intake(url: &str, name: &str, intake: &Intake) -> Result<Connection, ConnectError> {
    let sockets = Sockets { tokio: Tokio::current(), intake: intake.clone() };
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), sockets));
    open_on(url.parse().map_err(ConnectError::Url)?, name, runtime).await
}

async fn open(uri: AMQPUri, name: &str) -> Result<Connection, ConnectError> {
    open_on(uri, name, Runtime::tokio_current()).await
}

async fn open_on<R>(mut uri: AMQPUri, name: &str, runtime: Runtime<R>) -> Result<Connection, ConnectError>
where
    R: RuntimeKit + Clone + Send + Sync + 'static,
{
    // Fails only where the process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    uri.query.heartbeat.get_or_insert(10);
    let host = format!("{}:{}", uri.authority.host, uri.authority.port);
    let properties = ConnectionProperties::default().with_connection_name(name.to_owned().into());
    match timeout(CONNECT_LIMIT, Connection::connect_uri_with_runtime(uri, properties, runtime)).await {
        Err(_) => Err(ConnectError::Timeout(host)),
        Ok(Err(error)) => Err(ConnectError::Refused(host, error)),
        Ok(Ok(connection)) => Ok(connection),
    }
}

/// A short string that cannot panic: lapin's own conversion does above 255 bytes.
pub fn short(text: &str) -> ShortString {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::try_new(&text[..end]).unwrap_or_default()
}

/// Headers as the broker wants them.
pub fn table<'a>(pairs: impl IntoIterator<Item = &'a (&'static str, String)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(short(name), AMQPValue::LongString(LongString::from(value.as_str())));
    }
    table
}

/// The AMQP reply code with which the broker closed a channel or connection.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
