//! Takes e-mail jobs off the queue and delivers them.
