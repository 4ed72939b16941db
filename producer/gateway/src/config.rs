//! How a gateway is set up.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use postrider_schemas::JobLimits;

/// The checked settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where it listens for HTTP.
    pub listen: SocketAddr,
    /// The file or folder of API keys.
    pub keys: Option<PathBuf>,
    /// Largest body, before and after it is decompressed.
    pub body_max: usize,
    /// Bytes that all requests under way may take together.
    pub memory: usize,
    /// Connections at once; who comes then waits for one to end.
    pub connections: usize,
    /// How long a body may take to arrive.
    pub read_timeout: Duration,
    /// How long the queue may take to confirm.
    pub confirm_timeout: Duration,
    /// How long a stop waits for requests under way.
    pub drain: Duration,
    /// Limits on a job.
    pub job: JobLimits,
}
