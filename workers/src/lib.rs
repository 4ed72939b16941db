//! Takes e-mail jobs off the queue and delivers them, each once. The rooms, in reading order.

pub mod compose;
pub mod decide;
pub mod outcome;
pub mod transport;
