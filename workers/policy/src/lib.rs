//! Decisions: pure functions over data. No IO, no async, no clock, no dice, no vendor crate.

pub mod answers;
pub mod capabilities;
pub mod classify;
pub mod decision;
pub mod explain;
pub mod failover;
pub mod fingerprint;
pub mod headers;
pub mod mailbox_provider;
pub mod outcome;
pub mod poison;
pub mod publisher;
pub mod rate_limit;
pub mod redact;
pub mod rejected;
pub mod retry;
pub mod route;
pub mod schedule;
pub mod settlement;
pub mod systemic_refusals;
