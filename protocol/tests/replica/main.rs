//! Whole clusters of real hosts, registers and replicas in one thread.

mod byzantine;
mod stories;
mod support;
