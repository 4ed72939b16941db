//! The admin address: is the process alive, are its consumers up, what do its instruments say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// What `/healthz` says of a process that does nothing any more.
const STANDS_STILL: &str = "not alive: what keeps the consumers up did nothing for 90 seconds; restart this process\n";
/// Connections at once; who comes then waits for one to end.
pub const CONNECTIONS: usize = 64;
/// The head of a request is there within this, or the connection is closed.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// A connection ends within this whatever it does. It serves one request.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// The wait after a connection could not be accepted: no file descriptor is left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Whether a worker does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// All of it.
    Ready,
    /// What can be done without the store. Still ready: nothing is gained by taking such a worker away, and what it does somebody waits for.
    WithoutStore,
    /// Nothing: its consumers are not up, or it stops.
    NotReady,
}

impl Readiness {
    fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Ready => (StatusCode::OK, "ready\n"),
            Self::WithoutStore => (
                StatusCode::OK,
                "ready, degraded: the store is away; bulk mail waits, transactional mail goes on with a share of the limits\n",
            ),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        }
    }
}

/// Serves `/healthz`, `/readyz` and, where there is a `page`, `/metrics` until `stop`. Returns the address it listens on.
///
/// `/healthz` says that this process works, whatever its neighbours do: a restart mends no broker, but it does mend a process in which nothing moves
/// any more, which `is_alive` tells. `/readyz` says what `readiness` does.
pub async fn serve(
    address: SocketAddr,
    is_alive: impl Fn() -> bool + Send + Sync + 'static,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    page: Option<impl Fn() -> Result<String, String> + Send + Sync + 'static>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let (is_alive, readiness) = (Arc::new(is_alive), Arc::new(readiness));
    let stopping = stop.clone();
    let alive = move || {
        let answer =
            if is_alive() { (StatusCode::OK, "alive\n") } else { (StatusCode::SERVICE_UNAVAILABLE, STANDS_STILL) };
        async move { answer }
    };
    let mut app = Router::new().route("/healthz", get(alive)).route(
        "/readyz",
        get(move || {
            let now = if stopping.is_cancelled() { Readiness::NotReady } else { readiness() };
            async move { now.answer() }
        }),
    );
    if let Some(page) = page.map(Arc::new) {
        app = app.route("/metrics", get(move || exposition(Arc::clone(&page))));
    }
    tokio::spawn(async move { stop.run_until_cancelled(accept(listener, app)).await });
    Ok(address)
}

/// Accepts for as long as it is polled, never more than [`CONNECTIONS`] at once.
async fn accept(listener: TcpListener, app: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    // Who does not come to an end in time is hung up on.
                    let _ = timeout(CONNECTION_LIMIT, answer(stream, app)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "The admin address could not accept a connection; it goes on");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// One request and its answer. What goes wrong here is the other side's matter.
async fn answer(stream: TcpStream, app: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).keep_alive(false);
    let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

/// The instruments as Prometheus reads them. Gathering takes locks and walks every series: not on a thread that delivers mail.
async fn exposition(
    page: Arc<impl Fn() -> Result<String, String> + Send + Sync + 'static>,
) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let text = |kind| [(CONTENT_TYPE, kind)];
    match tokio::task::spawn_blocking(move || page()).await {
        Ok(Ok(body)) => (StatusCode::OK, text("text/plain; version=0.0.4; charset=utf-8"), body),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, text("text/plain"), format!("{error}\n")),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, text("text/plain"), "the page failed\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    async fn started(stop: &CancellationToken) -> SocketAddr {
        let page = None::<fn() -> Result<String, String>>;
        serve(([127, 0, 0, 1], 0).into(), || true, || Readiness::Ready, page, stop.clone()).await.unwrap()
    }

    async fn asked(mut stream: TcpStream) -> String {
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_and_one_without_a_request_is_closed() {
        let stop = CancellationToken::new();
        let address = started(&stop).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /readyz HTTP/1.1\r\nHost:").await.unwrap();
        assert!(asked(TcpStream::connect(address).await.unwrap()).await.ends_with("ready\n"));
        let begun = Instant::now();
        for mut stream in [silent, slow] {
            let mut rest = Vec::new();
            // Closed, or reset: gone in both cases.
            let _ = timeout(2 * HEAD_LIMIT, stream.read_to_end(&mut rest)).await.expect("it is never closed");
        }
        assert!(begun.elapsed() < 2 * HEAD_LIMIT);
        stop.cancel();
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_the_others_out_for_longer_than_the_limit() {
        let stop = CancellationToken::new();
        let address = started(&stop).await;
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = asked(TcpStream::connect(address).await.unwrap());
        let answer = timeout(4 * HEAD_LIMIT, answer).await.expect("nobody is let in");
        assert!(answer.ends_with("ready\n"), "{answer}");
        stop.cancel();
    }
}
