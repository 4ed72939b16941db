//! The queue without services: one SQLite file, shared by the processes of one machine.
//!
//! [`db`] is the file with its one writer thread per process ([`actor`] is that thread); [`error`] says how it fails.

mod actor;
pub mod db;
pub mod error;

pub use db::Db;
pub use error::DbError;
