//! The ways out. Each transport takes a composed message and answers with an [`crate::outcome::Outcome`].

pub mod smtp;
