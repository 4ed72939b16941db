//! One job, top to bottom: decode, route, claim, send, settle; failover; dead letters.

pub mod attempt;
pub mod dead_letter;
pub mod failover;
pub mod ledger_updates;
