//! Puts e-mail jobs on the Postrider queue.

pub mod embedded;
