//! SMTP submission: any framework's mail settings, with an API key as the password.
//!
//! [`command`], [`content`], [`session`] and [`message`] are pure; [`dialog`] does the IO of one connection, [`tls`] reads certificates.

pub mod command;
pub mod content;
pub mod dialog;
pub mod message;
pub mod session;
pub mod tls;

use std::sync::Arc;

use tokio::net::TcpListener;

pub use self::{session::Policy, tls::Tls};

/// A port that takes messages.
pub struct Port {
    /// Where clients come.
    pub listener: TcpListener,
    /// How it is served.
    pub settings: PortSettings,
}

/// How a port is served.
#[derive(Clone)]
pub struct PortSettings {
    /// The certificate, where there is one.
    pub tls: Option<Arc<Tls>>,
    /// TLS from the first byte (port 465) instead of STARTTLS.
    pub is_implicit: bool,
    /// A key may be shown without TLS.
    pub plaintext_auth: bool,
    /// Octets of a message.
    pub size: usize,
    /// Recipients of a message.
    pub recipients: usize,
    /// A message without an idempotency key gets one from its `Message-ID` and recipients.
    pub derive_key: bool,
}
