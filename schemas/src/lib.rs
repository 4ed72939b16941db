//! What both sides of the queue say: data only, no IO, no async, no vendor crate.
//!
//! Modules in reading order: [`job`] is what a backend service asks for, parsed once into types that cannot hold a bad
//! value; [`template`] bounds its templates; [`wire`] is how it travels; [`meta`] is what the message's headers remember between attempts; [`event`] is how
//! the sender is told what became of it; [`topology`] is the broker's side of it, as data.

pub mod address;
pub mod event;
pub mod examples;
pub mod fields;
pub mod job;
pub mod json_schema;
pub mod ladder;
pub mod limits;
pub mod meta;
pub mod permissions;
pub mod raw;
pub mod template;
pub mod topology;
pub mod wire;

pub use address::{Domain, EmailAddress, Mailbox};
pub use event::{Event, EventType};
pub use fields::{IdempotencyKey, JobId, Lane, Tenant};
pub use job::payload_hash::{self, PayloadHash};
pub use job::{Content, Job};
pub use limits::JobLimits;
pub use meta::Meta;
pub use wire::{DecodeError, JobV1, MailboxV1};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
