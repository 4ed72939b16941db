//! The stories, one promise a file.

mod harness;
mod journey;
mod ledger;
