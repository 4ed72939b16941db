//! Decisions: pure functions over data. No IO, no async, no clock, no dice, no vendor crate.

pub mod capabilities;
pub mod classify;
pub mod crowd;
pub mod due;
pub mod explain;
pub mod failover;
pub mod group;
pub mod headers;
pub mod limits;
pub mod poison;
pub mod publisher;
pub mod retry;
pub mod route;
pub mod settle;
pub mod settlement;
