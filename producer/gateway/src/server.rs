//! Accepts connections, and lets those go that say nothing.

use std::{convert::Infallible, net::IpAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{handle::Shared, keys, keys::Keys};

/// The head of a request is there within this, or the connection is closed; also the rest between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a head.
const HEAD_MAX: usize = 64 * 1024;
/// The wait after a connection could not be accepted: no file descriptor is left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How often the files of keys are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Serves until `stop`, then ends when every request under way has its answer, or after the drain time. True: all had.
pub async fn serve(gateway: Shared, listener: TcpListener, stop: CancellationToken) -> bool {
    let tasks = TaskTracker::new();
    let watching = tokio::spawn(watch_keys(Arc::clone(&gateway)));
    stop.run_until_cancelled(accept(&gateway, listener, &stop, &tasks)).await;
    watching.abort();
    tasks.close();
    let is_whole = timeout(gateway.config.drain, tasks.wait()).await.is_ok();
    if !is_whole {
        warn!(
            connections = tasks.len(),
            "The drain time is over; requests under way get no answer and may be repeated"
        );
    }
    gateway.queue.close().await;
    is_whole
}

async fn accept(gateway: &Shared, listener: TcpListener, stop: &CancellationToken, tasks: &TaskTracker) {
    let places = Arc::new(Semaphore::new(gateway.config.connections));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (gateway, stop) = (Arc::clone(gateway), stop.clone());
                tasks.spawn(async move {
                    connection(gateway, stream, peer.ip(), stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%error, "A connection could not be accepted; the gateway goes on");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Requests of one connection. What goes wrong here is the other side's matter.
async fn connection(gateway: Shared, stream: TcpStream, peer: IpAddr, stop: CancellationToken) {
    // An answer is one write: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, Infallible>(gateway.handle(request, peer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_MAX);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = serving.as_mut() => {
            if let Err(error) = result {
                debug!(%error, "A connection ended within a request");
            }
        }
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

/// What tells a changed file from an unchanged one.
type Print = Vec<(PathBuf, Option<(std::time::SystemTime, u64)>)>;

fn print_of(path: &std::path::Path) -> Print {
    let print = |file: PathBuf| {
        let found = std::fs::metadata(&file).ok().and_then(|found| Some((found.modified().ok()?, found.len())));
        (file, found)
    };
    keys::files(path).unwrap_or_default().into_iter().map(print).collect()
}

/// Reads the keys anew when their files change. A file that cannot be read leaves the keys as they were.
async fn watch_keys(gateway: Shared) {
    let Some(path) = gateway.config.keys.clone() else { return };
    let mut applied = print_of(&path);
    loop {
        sleep(LOOK_EVERY).await;
        let seen = print_of(&path);
        if seen == applied {
            continue;
        }
        applied = seen;
        match Keys::read(&path) {
            Ok(keys) => {
                info!(keys = keys.len(), "The changed API keys apply");
                gateway.keys.store(Arc::new(keys));
            }
            Err(error) => warn!(error, "The changed API keys are refused; the old ones stay"),
        }
    }
}
