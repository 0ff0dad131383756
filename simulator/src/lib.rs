//! Whole clusters of the production cores in one thread: `f` of 1, 2 or 3, virtual time, one seeded
//! generator, every fault.

#![forbid(unsafe_code)]

pub mod application;
pub mod guest;
pub mod history;
pub mod memory;
