//! The stories, one promise a file.

mod harness;
mod ledger;
