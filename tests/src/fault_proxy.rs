//! A TCP proxy that spoils connections: late bytes, a cut after so many of them, silence, a half-close.
//!
//! It runs on a thread of its own, so a test may block its runtime. It does not look into the bytes. Delays are latency, not
//! throughput: what arrives while earlier bytes wait gets its own due time.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::background::Background;

/// Chunks of at most 16 KiB that wait for their time, per direction and connection.
const WAITING: usize = 1024;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Each byte arrives this much later.
    pub delay: Duration,
    /// After so many bytes of a connection in this direction, this happens.
    pub end: Option<(u64, End)>,
}

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides get a reset.
    Cut,
    /// The receiver sees the end of the stream; the other direction goes on.
    HalfClose,
    /// Bytes vanish; nobody is told.
    BlackHole,
}

/// What the proxy does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Client to server.
    pub to_server: Flow,
    /// Server to client.
    pub to_client: Flow,
    /// New connections get a reset at once.
    pub refuse: bool,
}

impl Faults {
    /// The server's answers come this much later, as from far away.
    pub fn delay_replies(delay: Duration) -> Self {
        Self { to_client: Flow { delay, end: None }, ..Self::default() }
    }

    /// Both sides get a reset after the client has sent this many bytes.
    pub fn cut_after_sent(bytes: u64) -> Self {
        Self { to_server: Flow { end: Some((bytes, End::Cut)), ..Flow::default() }, ..Self::default() }
    }

    /// Both sides get a reset after the server has sent this many bytes.
    pub fn cut_after_received(bytes: u64) -> Self {
        Self { to_client: Flow { end: Some((bytes, End::Cut)), ..Flow::default() }, ..Self::default() }
    }

    /// Nothing gets through in either direction, connections stay open.
    pub fn black_hole() -> Self {
        let hole = Flow { end: Some((0, End::BlackHole)), ..Flow::default() };
        Self { to_server: hole, to_client: hole, refuse: false }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct FaultProxy {
    server: Background,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    faults: Mutex<Faults>,
    /// Counts the calls of `cut_all`; connections watch it.
    cuts: watch::Sender<u64>,
    accepted: AtomicU64,
    open: AtomicU64,
    most_open: AtomicU64,
}

impl Shared {
    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultProxy {
    /// A proxy to `target` on 127.0.0.1 that does no harm yet.
    pub fn start(target: u16) -> Result<Self> {
        let shared = Arc::new(Shared {
            target,
            faults: Mutex::default(),
            cuts: watch::Sender::new(0),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            most_open: AtomicU64::new(0),
        });
        let server = Background::serve({
            let shared = shared.clone();
            move |client| accepted(client, shared.clone())
        })?;
        Ok(Self { server, shared })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// What happens from now on, to the connections that are open as well; `Faults::default()` heals.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Resets every open connection.
    pub fn cut_all(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Connections accepted so far, refused ones included.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The most connections that were open at once.
    pub fn most_open(&self) -> u64 {
        self.shared.most_open.load(Ordering::Relaxed)
    }
}

async fn accepted(client: TcpStream, shared: Arc<Shared>) -> Result<()> {
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    if shared.faults().refuse {
        client.set_zero_linger()?;
        return Ok(());
    }
    let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most_open.fetch_max(open, Ordering::Relaxed);
    let ended = connection(client, &shared).await;
    shared.open.fetch_sub(1, Ordering::Relaxed);
    ended
}

async fn connection(client: TcpStream, shared: &Shared) -> Result<()> {
    let mut cuts = shared.cuts.subscribe();
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let both = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_server, || shared.faults().to_server),
            pump(&mut from_server, &mut to_client, || shared.faults().to_client),
        )
    };
    let ended = tokio::select! {
        ended = both => ended.map(drop),
        _ = cuts.changed() => Err(Cut),
    };
    if ended.is_err() {
        for half in [to_client, to_server] {
            half.as_ref().set_zero_linger()?;
            // A write half that is dropped says goodbye properly, which is not what a cut is.
            half.forget();
        }
    }
    Ok(())
}

/// The connection has to end with a reset on both sides: asked for, or because one side did so.
struct Cut;

/// Carries one direction to its end: reads at once, writes when the time has come.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, flow: impl Fn() -> Flow) -> Result<(), Cut> {
    let (send, mut receive) = mpsc::channel::<(Instant, Step)>(WAITING);
    let reading = async move {
        let mut buffer = vec![0_u8; 16 * 1024];
        let mut passed = 0_u64;
        let mut closed = false;
        loop {
            let count = from.read(&mut buffer).await.map_err(|_| Cut)?;
            let flow = flow();
            let due = Instant::now() + flow.delay;
            let step = |step| send.send((due, step));
            if count == 0 {
                // After a black hole the receiver must not learn of the end either: it stays open with the other direction.
                return match (flow.end, closed) {
                    (Some((limit, End::BlackHole)), _) if passed >= limit => Ok(()),
                    (_, true) => Ok(()),
                    _ => step(Step::Close).await.map_err(|_| Cut),
                };
            }
            let count = count as u64;
            let allowed = flow.end.map_or(count, |(limit, _)| count.min(limit.saturating_sub(passed)));
            passed += allowed;
            // `allowed` is at most the buffer's length.
            let bytes = Bytes::copy_from_slice(&buffer[..usize::try_from(allowed).map_err(|_| Cut)?]);
            if !closed && !bytes.is_empty() {
                step(Step::Bytes(bytes)).await.map_err(|_| Cut)?;
            }
            match flow.end {
                Some((limit, End::Cut)) if passed >= limit => step(Step::Cut).await.map_err(|_| Cut)?,
                Some((limit, End::HalfClose)) if passed >= limit && !closed => {
                    closed = true;
                    step(Step::Close).await.map_err(|_| Cut)?;
                }
                _ => {}
            }
        }
    };
    let writing = async {
        while let Some((due, step)) = receive.recv().await {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            match step {
                Step::Bytes(bytes) => to.write_all(&bytes).await.map_err(|_| Cut)?,
                Step::Close => to.shutdown().await.map_err(|_| Cut)?,
                Step::Cut => return Err(Cut),
            }
        }
        Ok(())
    };
    tokio::try_join!(reading, writing).map(drop)
}

enum Step {
    Bytes(Bytes),
    Close,
    Cut,
}
