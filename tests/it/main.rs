//! The stories, one promise a file.

mod chaos;
mod degraded;
mod harness;
mod journey;
mod ledger;
mod partial;
mod relay_trouble;
