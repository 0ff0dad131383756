//! Whole clusters of real processes: what the command promises, what survives which failure, and
//! what attackers do not achieve.
//!
//! Every test is a story about a [`support::Cluster`] of its own, on loopback addresses and in a
//! folder of its own. Every wait is for a condition, and bounded; a test that fails prints the
//! ends of all logs and the one command that runs it again. At most two clusters run at a time.

mod attack;
mod attacker;
mod bad_input;
mod bench;
mod commands;
mod counters;
mod damaged_macs;
mod demo;
mod durable;
mod failures;
mod figures;
mod flood;
mod full_disk;
mod guard;
mod memory;
mod noise;
mod recovery;
mod rejoin;
mod soak;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the target `storm` uses the rest")]
mod support;
mod trace;
mod up;
