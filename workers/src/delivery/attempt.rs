//! One try at one job: what it is made of, by which right it is made, and how it ended.

use postrider_schemas::{Job, Meta, event::PassedOver, meta::Pin};
use tokio_util::sync::CancellationToken;

use crate::{
    concurrency::job_slots::JobSlot,
    policy::{
        outcome::Outcome,
        route::{Route, RoutePart},
    },
    store::{Lease, LedgerKey},
};

/// A job with its message and the rule that takes it.
pub(crate) struct Attempt<'a> {
    pub(crate) job: &'a Job,
    pub(crate) meta: &'a Meta,
    pub(crate) route: &'a Route,
    /// Where its recipients go separate ways.
    pub(crate) parts: Option<Vec<RoutePart>>,
    /// Its record in the ledger.
    pub(crate) key: LedgerKey,
    /// The right to work on it; left while it only waits.
    pub(crate) job_slot: &'a JobSlot,
    /// Ends the waits of what is not under way.
    pub(crate) stop: &'a CancellationToken,
}

/// The right to attempt a job.
pub(crate) enum Authorization {
    /// Granted by the ledger.
    Leased(Lease),
    /// The store is down, the job is transactional and was never delivered before: sent without the ledger's knowledge, which
    /// is told as soon as it is back.
    WithoutStore(Lease),
}

/// How the attempt ended, and where.
pub struct FinishedAttempt {
    /// How.
    pub outcome: Outcome,
    /// The transport that it is about.
    pub transport: String,
    /// The ones before it, and why they did not take the job.
    pub passed_over: Vec<PassedOver>,
    /// The call, where it can be repeated.
    pub pin: Option<Pin>,
    /// The answer to this job's own message opened a circuit.
    pub tripped: bool,
}

impl FinishedAttempt {
    /// Of a job that was tried nowhere.
    pub fn nowhere() -> Self {
        Self::at("", Outcome::LostClaim)
    }

    /// Without anything before it.
    pub fn at(transport: &str, outcome: Outcome) -> Self {
        Self { outcome, transport: transport.to_owned(), passed_over: Vec::new(), pin: None, tripped: false }
    }
}
