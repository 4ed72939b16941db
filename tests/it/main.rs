//! The stories, one promise a file.
#![allow(clippy::unwrap_used, reason = "helpers of stories stand outside of #[test] functions, and may fail like them")]

mod chaos;
mod commands;
mod embedded;
mod harness;
mod harness_relays;
mod journey;
mod ladder;
mod ledger;
mod partial;
mod tidy;
