//! Takes e-mail jobs off the queue and delivers them, each once. The rooms, in reading order.

pub mod admin;
pub mod catcher;
pub mod compose;
pub mod config;
pub mod decide;
pub mod outcome;
pub mod telemetry;
pub mod transport;
