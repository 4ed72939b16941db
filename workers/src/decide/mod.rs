//! Decisions: pure functions over data. No IO, no async, no clock, no dice, no vendor crate.

pub mod classify;
