//! Limits what is in flight: job slots, the priority semaphore of connections and calls, the bulkhead of a transport.

pub mod bulkhead;
pub mod job_slots;
pub mod priority_semaphore;
