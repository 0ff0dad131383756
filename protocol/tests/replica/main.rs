//! Whole clusters of real hosts, registers and replicas in one thread.

mod byzantine;
mod checkpoints;
mod oracle;
mod stories;
mod support;
