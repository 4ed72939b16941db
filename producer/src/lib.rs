//! Puts e-mail jobs on the Postrider queue.
//!
//! [`Publisher`] is what a service uses: `connect`, `publish`, `publish_all`, `close`. `Ok` from `publish` means that the queue has the job on
//! disk. [`rabbitmq`] and [`embedded`] hold the two queues' publishing sides, which workers use as well to republish copies. Nothing here
//! knows how mail is delivered.

pub mod embedded;
pub mod rabbitmq;

mod publisher;
mod trace;

pub use publisher::{Publisher, PublisherError};
pub use rabbitmq::link::PublishError;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
