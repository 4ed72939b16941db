//! The queue without services: one SQLite file, shared by the processes of one machine.
//!
//! [`db`] is the file with its one writer thread per process ([`actor`] is that thread); [`clock`] is its time, [`error`] says how it fails.
//! [`tables`] is the layout of messages and events, [`publisher`] the way in for jobs.

mod actor;
pub mod clock;
pub mod db;
pub mod error;
mod file;
pub mod publisher;
pub mod tables;

pub use clock::FileClock;
pub use db::Db;
pub use error::DbError;
pub use publisher::EmbeddedPublisher;
