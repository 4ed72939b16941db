//! How a gateway is set up.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use postrider_schemas::JobLimits;
use secrecy::SecretString;

/// The checked settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where it listens for HTTP.
    pub listen: SocketAddr,
    /// What the secret access keys of AWS's clients are made from; without it their signatures are refused.
    pub signing_secret: Option<SecretString>,
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
    /// SMTP submission.
    pub smtp: SmtpConfig,
    /// Limits on a job.
    pub job: JobLimits,
}

/// The settings of SMTP submission.
#[derive(Debug, Clone, Default)]
pub struct SmtpConfig {
    /// Where it listens for STARTTLS (port 587).
    pub listen: Option<SocketAddr>,
    /// Where it listens for TLS from the first byte (port 465).
    pub listen_tls: Option<SocketAddr>,
    /// Certificates, in PEM.
    pub certificate: Option<PathBuf>,
    /// The key of the first one, in PEM.
    pub private_key: Option<PathBuf>,
    /// A key may be shown without TLS.
    pub plaintext_auth: bool,
    /// A message without an idempotency key gets one from its `Message-ID` and recipients.
    pub derive_key: bool,
}

impl GatewayConfig {
    /// Octets of a message whose job is within the limits: base64 makes four of three.
    pub fn message_max(&self) -> usize {
        (self.job.bytes_max.saturating_sub(ENVELOPE) / 4 * 3).min(self.body_max)
    }
}

/// Room of a job beside its message.
const ENVELOPE: usize = 64 * 1024;
