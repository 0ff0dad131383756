//! The host agent: the trusted process of a DifATo server.
//!
//! A server is a host and one guest. The guest runs the protocol and may be broken into; the host
//! never lies, because all that it does fits in this crate and `shared-registers`. It has one job:
//! to **admit** what its guest writes if it is well-formed and authentic (R1), to **stamp** it with
//! its writer, its place and its causal past (R2, R4), to **expose** records to its guest once
//! their causal past is exposed (R4), to **spread** them, so that what one live host has every live
//! host gets (R5), and to **reclaim** them once a checkpoint covers them (section 6). It does not
//! interpret the protocol: what the records mean is for the guests to read.
//!
//! | module | one job |
//! |---|---|
//! | [`host`] | the host itself, without I/O or a clock; what a simulator drives |
//! | `admission` | R1 in one function: a frame becomes an admitted record, or is dropped |
//! | `checkpoints` | section 6: which checkpoint is stable, so that what it covers may go |
//! | `peers` | R5 and R8: what each peer has, and what it is owed |
//! | `recovery` | R6: where the own stream ends, if its file does not say so |
//! | [`agent`] | the process: one thread, one epoll loop around [`Host`] |
//! | `net` | its links on the trusted network |
//! | `files` | its register files, made or gone on with |
//! | `limits` | every bound of these, by name |
//!
//! Whatever comes from the guest or the network may be anything. It is counted and dropped; it
//! never makes this process panic, grow past a bound, or keep others waiting.

#![forbid(unsafe_code)]

mod admission;
pub mod agent;
mod checkpoints;
mod files;
pub mod host;
mod limits;
mod net;
mod peers;
mod recovery;

pub use agent::{AgentError, Options, run};
pub use host::{Host, HostConfig, Input, Now, PeerFault, Turn};
pub use limits::MAX_STRANGERS;
pub use net::Level;
pub use shared_registers::canary;
