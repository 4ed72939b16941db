//! Takes e-mail jobs off the queue and delivers them, each once. The rooms, in reading order.

pub mod config;
pub mod decide;
pub mod outcome;
pub mod store;
pub mod transport;
