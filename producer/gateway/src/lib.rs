//! The way in over HTTP and SMTP: takes jobs, checks them, publishes them, and answers when the queue has confirmed them.
//!
//! [`api`] says which paths there are and holds one file of pure functions for each form of request; [`handle`] takes a request from its first byte to
//! the answer; [`server`] accepts connections; [`smtp`] speaks with clients of
//! SMTP. The gateway keeps nothing that must survive it: a job's id follows from its tenant and its
//! idempotency key ([`idempotency`]), so every gateway gives a repeat the same answer.

pub mod api;
pub mod body;
pub mod config;
pub mod form;
pub mod handle;
pub mod idempotency;
pub mod keys;
pub mod metrics;
pub mod problem;
pub mod queue;
pub mod rate;
pub mod records;
pub mod server;
pub mod sigv4;
pub mod smtp;

pub use config::GatewayConfig;
pub use handle::Gateway;
