//! The admin address: is the process alive, are its consumers up.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `/healthz` and `/readyz` until `stop`. Returns the address it listens on.
///
/// `/healthz` says that this process runs, whatever its neighbours do: a restart mends no broker. `/readyz` says 200 while `ready` does.
pub async fn serve(
    address: SocketAddr,
    ready: impl Fn() -> bool + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let ready = Arc::new(ready);
    let stopping = stop.clone();
    let app =
        Router::new().route("/healthz", get(|| async { "alive\n" })).route(
            "/readyz",
            get(move || {
                let up = ready() && !stopping.is_cancelled();
                async move {
                    if up { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
                }
            }),
        );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::warn!(%error, "The admin address stopped");
        }
    });
    Ok(address)
}
