//! Decisions: pure functions over data. No IO, no async, no clock, no dice, no vendor crate.

pub mod answers;
pub mod capabilities;
pub mod classify;
pub mod crowd;
pub mod doubt;
pub mod due;
pub mod explain;
pub mod failover;
pub mod fingerprint;
pub mod group;
pub mod limits;
pub mod poison;
pub mod retry;
pub mod route;
pub mod settle;
pub mod settlement;
