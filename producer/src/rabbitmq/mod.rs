//! The broker's side of publishing: a supervised connection, and the topology.

pub mod address;
pub mod frames;
pub mod intake;
pub mod link;
mod stream;
pub mod topology;

use std::{io, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
    uri::AMQPUri,
};
use tokio::time::timeout;

use self::intake::Intake;

/// How long a connection may take to stand.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the broker may take to answer a call.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Why a broker cannot be reached. Never shows a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is none of AMQP.
    #[error("not an AMQP address (amqp://user:password@host:5672/vhost): {0}")]
    Url(String),
    /// Nothing answered in time.
    #[error("no answer from {0} within {1:?}; does it run, and is the address right?")]
    Timeout(String, Duration),
    /// The broker or the network refused.
    #[error("connecting to {0}: {1}")]
    Refused(String, lapin::Error),
}

/// Frames of connections that carry no jobs: as small as every broker takes.
const SMALL_FRAMES: u32 = 8192;

/// Opens a connection that asks and is answered, and carries no jobs. Lapin keeps room for 64 frames a connection from the start: 8 MiB where they have
/// the broker's usual size.
pub async fn connect_to_ask(url: &str, name: &str) -> Result<Connection, ConnectError> {
    let mut uri = address::parse(url).map_err(ConnectError::Url)?;
    uri.query.frame_max.get_or_insert(SMALL_FRAMES);
    open(uri, name).await
}

/// Opens a connection. Lapin's own recovery stays off: after any failure the caller makes everything anew.
pub async fn connect(url: &str, name: &str) -> Result<Connection, ConnectError> {
    open(address::parse(url).map_err(ConnectError::Url)?, name).await
}

/// Opens a connection that reads no more than an intake allows.
pub async fn connect_with_intake(url: &str, name: &str, intake: &Intake) -> Result<Connection, ConnectError> {
    open_on(address::parse(url).map_err(ConnectError::Url)?, name, intake.clone()).await
}

async fn open(uri: AMQPUri, name: &str) -> Result<Connection, ConnectError> {
    open_on(uri, name, Intake::new(u64::MAX)).await
}

async fn open_on(mut uri: AMQPUri, name: &str, intake: Intake) -> Result<Connection, ConnectError> {
    // Fails only where the process has a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    uri.query.heartbeat.get_or_insert(10);
    let host = address::shown(&uri.authority.host, uri.authority.port);
    let limit = uri.query.connection_timeout.map_or(CONNECT_LIMIT, Duration::from_millis);
    let properties = ConnectionProperties::default().with_connection_name(name.to_owned().into());
    match timeout(limit, stream::connect(uri, properties, intake)).await {
        Err(_) => Err(ConnectError::Timeout(host, limit)),
        Ok(Err(error)) => Err(ConnectError::Refused(host, error)),
        Ok(Ok(connection)) => Ok(connection),
    }
}

/// The user that an AMQP address names; nothing for another address.
pub fn user(url: &str) -> Option<String> {
    let uri = address::parse(url).ok()?;
    Some(uri.authority.userinfo.username)
}

/// Makes a call to the broker end: by its answer, or by an error that says what was not answered. A connection that dies while a call is on its way
/// leaves it without an answer for ever.
pub async fn within<T>(call: &str, answer: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, lapin::Error> {
    match timeout(CALL_LIMIT, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("{call}: no answer within {CALL_LIMIT:?}")).into())
        }
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
