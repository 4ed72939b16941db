//! Takes e-mail jobs off the queue and delivers them, each once. The rooms, in reading order.

pub mod commands;
pub mod consumer;

mod announce;
pub mod attempt;
pub mod burial;
pub mod circuits;
pub mod decide;
pub mod escape;
pub mod failover;
pub mod outcome;
pub mod redact;

pub mod dns;
pub mod heartbeat;
pub mod limiter;
pub(crate) mod losses;
pub mod memory;
pub mod seats;

pub mod queue;
pub mod reload;
pub mod replay;
pub mod store;

pub mod compose;
pub mod render;
pub mod transport;

pub mod admin;
pub mod catcher;
pub mod config;
pub mod descriptors;
pub mod telemetry;
