//! How many bytes a connection may have read that nobody has taken yet. A broker counts messages and not bytes, and the library keeps every whole body
//! that arrives; so what bounds them is the socket: above the limit nothing more is read from it, and the broker waits.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use async_rs::{Tokio, traits::Reactor};
use futures_io::{AsyncRead, AsyncWrite};

/// Read from a full connection in each [`PAUSE`]: heartbeats live, and the first part of a message that is larger than the limit does not wait for ever
/// for its rest.
const DRIP: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_secs(1);
/// What a message has besides its body, at most as a rule: frames, properties, headers.
const AROUND_BODY: u64 = 4096;

/// The bytes of messages that arrived and whose turn has not come. Clones share it.
#[derive(Clone)]
pub struct Intake(Arc<Shared>);

struct Shared {
    most: u64,
    /// Read, and not yet seen as a message.
    unsorted: AtomicU64,
    /// Of messages that wait.
    waiting: AtomicU64,
    readers: Mutex<Vec<Waker>>,
}

impl Intake {
    /// At most so many bytes wait, or one message that is larger.
    pub fn new(most: u64) -> Self {
        Self(Arc::new(Shared {
            most,
            unsorted: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            readers: Mutex::default(),
        }))
    }

    /// Bytes that wait, and those that may.
    pub fn waiting(&self) -> (u64, u64) {
        (self.0.waiting.load(Ordering::Relaxed), self.0.most)
    }

    /// A message of this size has arrived, and waits.
    pub fn arrived(&self, bytes: u64) {
        self.0.waiting.fetch_add(bytes, Ordering::Relaxed);
        // Never below zero: what one message has around it is not known here.
        let around = bytes.saturating_add(AROUND_BODY + bytes / 1024);
        let less = |unsorted: u64| Some(unsorted.saturating_sub(around));
        let _ = self.0.unsorted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.wake();
    }

    /// Its turn has come, or it is gone.
    pub fn left(&self, bytes: u64) {
        self.0.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.wake();
    }

    /// True while more may be read.
    pub fn has_room(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) + self.0.unsorted.load(Ordering::Relaxed) < self.0.most
    }

    fn read(&self, bytes: usize, is_after_pause: bool) {
        if is_after_pause {
            // Whatever was read before that is no message yet is none that comes soon.
            self.0.unsorted.store(0, Ordering::Relaxed);
        }
        self.0.unsorted.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn wake(&self) {
        if self.has_room() {
            let readers = std::mem::take(&mut *self.0.readers.lock().unwrap_or_else(PoisonError::into_inner));
            readers.into_iter().for_each(Waker::wake);
        }
    }

    fn wait(&self, waker: &Waker) {
        let mut readers = self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if !readers.iter().any(|one| one.will_wake(waker)) {
            readers.push(waker.clone());
        }
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// A socket that reads no more than an intake allows.
pub struct Socket<S> {
    inner: S,
    tokio: Tokio,
    intake: Intake,
    /// When something was read last.
    last: Instant,
    pause: Option<Pin<Box<<Tokio as Reactor>::Sleep>>>,
}

impl<S> Socket<S> {
    /// Reads from `inner` as the intake allows.
    pub fn new(inner: S, tokio: Tokio, intake: Intake) -> Self {
        Self { inner, tokio, intake, last: Instant::now(), pause: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let socket = &mut *self;
        let rested = socket.last.elapsed();
        let is_after_pause = rested >= PAUSE;
        let mut most = buffer.len();
        if !is_after_pause && !socket.intake.has_room() {
            socket.intake.wait(context.waker());
            // Asked again: room that came in between has woken nobody.
            if !socket.intake.has_room() {
                let pause = socket.pause.insert(Box::pin(socket.tokio.sleep(PAUSE.saturating_sub(rested))));
                if pause.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        socket.pause = None;
        if !socket.intake.has_room() {
            most = most.min(DRIP);
        }
        let read = std::task::ready!(Pin::new(&mut socket.inner).poll_read(context, &mut buffer[..most]));
        if let Ok(bytes) = read {
            socket.last = Instant::now();
            socket.intake.read(bytes, is_after_pause);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

    use super::*;

    async fn read(socket: &mut Socket<<Tokio as Reactor>::TcpStream>, most: usize) -> Option<usize> {
        let mut buffer = vec![0; most];
        let reading = poll_fn(|context| Pin::new(&mut *socket).poll_read(context, &mut buffer));
        timeout(Duration::from_millis(200), reading).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_full_connection_is_not_read_but_for_a_little_now_and_then() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let intake = Intake::new(200_000);
        let connecting = Tokio::current().tcp_connect_addr(listener.local_addr().unwrap());
        let (socket, accepted) = tokio::join!(connecting, listener.accept());
        let mut socket = Socket::new(socket.unwrap(), Tokio::current(), intake.clone());
        let mut peer = accepted.unwrap().0;
        tokio::spawn(async move { peer.write_all(&vec![0; 1_000_000]).await });
        let mut got = 0;
        while let Some(bytes) = read(&mut socket, 50_000).await {
            got += bytes;
        }
        assert!((200_000..250_000).contains(&got), "{got}: to the limit, and not much more");
        // They were two messages, which wait now.
        intake.arrived(120_000);
        intake.arrived(120_000);
        assert_eq!(read(&mut socket, 50_000).await, None);
        // A little comes all the same: heartbeats.
        let mut buffer = vec![0; 200_000];
        let reading = poll_fn(|context| Pin::new(&mut socket).poll_read(context, &mut buffer));
        let drip = timeout(PAUSE * 3, reading).await.unwrap().unwrap();
        assert!((1..=DRIP).contains(&drip), "{drip}");
        assert_eq!(read(&mut socket, 50_000).await, None);
        // One of them leaves while somebody waits for that: at once, not at the end of a pause.
        let waiting = tokio::spawn(async move { read(&mut socket, 10_000).await });
        // It has asked, and waits.
        while intake.0.readers.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        intake.left(120_000);
        assert_eq!(waiting.await.unwrap(), Some(10_000));
    }
}
