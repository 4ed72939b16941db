//! Accepts connections, and lets those go that say nothing.

use std::{convert::Infallible, net::IpAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{join, join_all};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{handle::Shared, keys, keys::Keys, smtp};

/// The head of a request is there within this, or the connection is closed; also the rest between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a head.
const HEAD_MAX: usize = 64 * 1024;
/// The wait after a connection could not be accepted: no file descriptor is left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How often the files of keys and certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Serves until `stop`, then ends when every request under way has its answer, or after the drain time. True: all had.
pub async fn serve(
    gateway: Shared,
    listener: TcpListener,
    submission: Vec<smtp::Port>,
    stop: CancellationToken,
) -> bool {
    let tasks = TaskTracker::new();
    let watching =
        tokio::spawn(watch_files(Arc::clone(&gateway), submission.iter().find_map(|port| port.settings.tls.clone())));
    let http = accept(listener, gateway.config.connections, &tasks, |stream, peer| {
        connection(Arc::clone(&gateway), stream, peer, stop.clone())
    });
    let smtp = submission.into_iter().map(|port| {
        let (gateway, settings) = (Arc::clone(&gateway), port.settings);
        accept(port.listener, gateway.config.connections, &tasks, move |stream, peer| {
            let (gateway, settings) = (Arc::clone(&gateway), settings.clone());
            async move {
                if let Err(error) = smtp::dialog::run(&gateway, stream, peer, &settings).await {
                    debug!(%error, "An SMTP connection ended early");
                }
            }
        })
    });
    stop.run_until_cancelled(join(http, join_all(smtp.collect::<Vec<_>>()))).await;
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

/// Hands connections over, so many at once; who comes then waits for one to end.
async fn accept<F>(
    listener: TcpListener,
    connections: usize,
    tasks: &TaskTracker,
    serve: impl Fn(TcpStream, IpAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let serving = serve(stream, peer.ip());
                tasks.spawn(async move {
                    serving.await;
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

fn print_of(files: impl IntoIterator<Item = PathBuf>) -> Print {
    let print = |file: PathBuf| {
        let found = std::fs::metadata(&file).ok().and_then(|found| Some((found.modified().ok()?, found.len())));
        (file, found)
    };
    files.into_iter().map(print).collect()
}

/// Reads keys and certificate anew when their files change. A file that cannot be read leaves what was.
async fn watch_files(gateway: Shared, tls: Option<Arc<smtp::Tls>>) {
    let path = gateway.config.keys.clone();
    let of_keys = || print_of(path.as_deref().and_then(|path| keys::files(path).ok()).unwrap_or_default());
    let of_tls = || print_of(tls.iter().flat_map(|tls| tls.files().to_vec()));
    let (mut applied_keys, mut applied_tls) = (of_keys(), of_tls());
    loop {
        sleep(LOOK_EVERY).await;
        let (seen_keys, seen_tls) = (of_keys(), of_tls());
        if seen_keys != applied_keys {
            applied_keys = seen_keys;
            read_keys(&gateway);
        }
        if let Some(tls) = tls.as_ref().filter(|_| seen_tls != applied_tls) {
            applied_tls = seen_tls;
            match tls.reload() {
                Ok(()) => info!("The changed certificate applies to connections from now on"),
                Err(error) => {
                    warn!(error = format!("{error:#}"), "The changed certificate is refused; the old one stays");
                }
            }
        }
    }
}

fn read_keys(gateway: &Shared) {
    let Some(path) = &gateway.config.keys else { return };
    match Keys::read(path) {
        Ok(keys) => {
            info!(keys = keys.len(), "The changed API keys apply");
            gateway.keys.store(Arc::new(keys));
        }
        Err(error) => warn!(error, "The changed API keys are refused; the old ones stay"),
    }
}
