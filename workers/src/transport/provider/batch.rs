//! Jobs that share a call.

use serde_json::Value;

use super::reply::Verdict;

/// A job's part of a call. Those with the same `shared` part may go together.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What all jobs of one call have in common; empty where each message of a call stands for itself.
    pub shared: String,
    /// What is this job's own.
    pub own: Value,
}

/// What the answer to a shared call says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batched {
    /// Of each job, in the order of the call.
    Each(Vec<Verdict>),
    /// Of the call as a whole.
    Whole(Verdict),
}
