//! The running worker process: consume and drain, context, reload, heartbeat.

pub mod consumer;
pub mod context;
pub mod heartbeat;
pub mod reload;
