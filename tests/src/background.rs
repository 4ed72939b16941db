//! A server of the harness, on a port of its own and on a thread of its own, so that a test may block its runtime. It ends with the value.

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::ports;

/// A running server.
#[derive(Debug)]
pub struct Background {
    port: u16,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Serves each connection to a free port of 127.0.0.1 in a task of its own.
    pub fn serve<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let port = ports::free()?;
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port)).context("binding a server of the harness")?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let work = stop.clone().run_until_cancelled_owned(accept(listener, serve));
        // Dropping the runtime drops the connections.
        let thread = std::thread::spawn(move || drop(runtime.block_on(work)));
        Ok(Self { port, stop, thread: Some(thread) })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been printed; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

async fn accept<F>(listener: StdListener, serve: impl Fn(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = serve(stream);
        tokio::spawn(async move {
            // An error is the end of a connection, which the client notices by itself.
            let _ = connection.await;
        });
    }
}
