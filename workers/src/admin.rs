//! The admin address: is the process alive, are its consumers up, what do its instruments say.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
/// `/healthz` says that this process runs, whatever its neighbours do: a restart mends no broker. `/readyz` says what `readiness` does.
pub async fn serve(
    address: SocketAddr,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    page: Option<impl Fn() -> Result<String, String> + Send + Sync + 'static>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let readiness = Arc::new(readiness);
    let stopping = stop.clone();
    let mut app = Router::new().route("/healthz", get(|| async { "alive\n" })).route(
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
