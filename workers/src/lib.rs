//! Takes e-mail jobs off the queue and delivers them, each once.

pub mod admin;
pub mod circuit_breakers;
pub mod cli;
pub mod concurrency;
pub mod config;
pub mod delivery;
pub mod descriptors;
pub mod dns;
pub mod escape;
pub mod mail_catcher;
pub mod memory;
pub mod message;
pub mod pending_receipts;
pub mod queue;
pub mod rate_limit;
pub mod render;
pub mod telemetry;
pub mod transport;
pub mod worker;

pub use postrider_policy::{self as policy, redact};
pub use postrider_providers as providers;
pub use postrider_store as store;
