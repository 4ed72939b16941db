//! The admin address: is the process alive, are its consumers up, what do its instruments say.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What `/healthz` says of a process that does nothing any more.
const STANDS_STILL: &str = "not alive: what keeps the consumers up did nothing for 90 seconds; restart this process\n";

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
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::warn!(%error, "The admin address stopped");
        }
    });
    Ok(address)
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
