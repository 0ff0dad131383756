//! Whole clusters of real hosts, registers and replicas in one thread.

mod byzantine;
mod oracle;
mod stories;
mod support;
