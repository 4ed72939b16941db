//! The running worker process: consume and drain, reload, heartbeat, what its gauges show.

pub mod consumer;
pub mod heartbeat;
mod observed;
pub mod reload;
