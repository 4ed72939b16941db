//! How fast mail may go: rates, buckets, the line of those who wait, and what follows from an answer that asks for patience. Pure
//! functions over states that a store keeps; the Lua scripts of the Redis store say the same, and one contract suite holds the two together.
//!
//! Times are microseconds of the store's clock as floating point numbers, because that is what Lua computes with: both sides do
//! the same operations in the same order and come to the same bits.

#![allow(
    clippy::float_cmp,
    reason = "equal is meant to the bit: a state was made with this interval or with another one"
)]

pub mod admit;
pub mod connections;
pub mod rate;
pub mod scope;
pub mod scope_view;
pub mod shaping_rule;
pub mod usage;
pub mod wait_queue;

#[cfg(test)]
mod simulation;

/// Longest time for which a job is deferred, and reach of the line: a rate that is raised meanwhile reaches it no later.
pub const PARK_MAX_US: f64 = 1.8e9;
/// From this part of the longest times on come those back who found the line full.
pub const PARK_BACK: f64 = 0.875;
