//! The socket of a connection, with [`Filter`] between it and the AMQP library.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, TokioRuntime, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt as _, OwnedTLSConfig},
    uri::AMQPUri,
};

use super::{
    frames::Filter,
    intake::{self, Intake},
};

/// Octets that are read at once.
const CHUNK: usize = 64 << 10;

type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Opens a connection whose frames are looked at before the library reads them, and which reads no more than the intake allows.
pub async fn connect(uri: AMQPUri, properties: ConnectionProperties, intake: Intake) -> lapin::Result<Connection> {
    let runtime = TokioRuntime::tokio_current();
    let kit = Runtime::new(RuntimeParts::new(Tokio::current(), Filtered(Tokio::current(), intake.clone())));
    let open = async move |uri: AMQPUri, _: Runtime<_>| {
        let filter = Filter::new(uri.query.frame_max);
        let tls = OwnedTLSConfig::default();
        let socket = uri.connect_with_config_async(tls.as_ref(), &runtime).await?;
        Ok(AsyncTcpStream::Plain(FilteredSocket::new(socket, filter, intake.clone())))
    };
    Connection::connector(uri, kit, open, properties).await
}

/// A socket that shows what the filter lets pass.
pub struct FilteredSocket {
    socket: intake::Socket<Socket>,
    filter: Filter,
    /// What passed the filter, from `shown` on.
    ready: Vec<u8>,
    shown: usize,
    chunk: Box<[u8]>,
}

impl FilteredSocket {
    fn new(socket: Socket, filter: Filter, intake: Intake) -> Self {
        let socket = intake::Socket::new(socket, Tokio::current(), intake);
        Self { socket, filter, ready: Vec::new(), shown: 0, chunk: vec![0; CHUNK].into_boxed_slice() }
    }
}

impl AsyncRead for FilteredSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.shown == this.ready.len() {
            this.ready.clear();
            this.shown = 0;
            let count = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut this.chunk))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            this.filter.feed(&this.chunk[..count], &mut this.ready)?;
        }
        let waiting = &this.ready[this.shown..];
        let count = waiting.len().min(buffer.len());
        buffer[..count].copy_from_slice(&waiting[..count]);
        this.shown += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for FilteredSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// Tokio's reactor, but for the type of its sockets: the library takes a socket of no other type than its runtime's.
#[derive(Clone)]
struct Filtered(Tokio, Intake);

impl fmt::Debug for Filtered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filtered")
    }
}

impl Reactor for Filtered {
    type TcpStream = FilteredSocket;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<FilteredSocket>> + Send + 'static {
        let (connecting, intake) = (self.0.tcp_connect_addr(address), self.1.clone());
        async move { Ok(FilteredSocket::new(AsyncTcpStream::Plain(connecting.await?), Filter::default(), intake)) }
    }
}
