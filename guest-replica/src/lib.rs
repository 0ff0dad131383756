//! The guest process of a DifATo server.
//!
//! A guest runs in a virtual machine on its host and may be broken into; up to `f` of them may do
//! anything. It holds no state of its own: registers and snapshots are its memory (P6). What it
//! concludes and does is decided by the pure [core](protocol::replica); this crate gives the core what comes
//! in and carries out what it says. One thread does it all, because each wake-up of another would
//! cost more than the work, but for what waits for a disk:
//!
//! ```text
//!   payload network                                              registers
//!   clients   --orders-->  connections  --+                 +--  records, drop notices, hints
//!   guests   --forwards->                 +-->  the core  <-+
//!   clients   <-replies--                 +--            --+-->  frames, then the doorbell
//!   listeners <-deliveries- subscriptions |
//!   guests   <-forwards--  peers        --+
//!   guests   --snapshot--> peers ------------>  catch_up  -----  claims; streams behind its cut
//! ```
//!
//! The payload network is hostile, and other guests and clients may be: whatever comes from there
//! is authenticated, decoded in one place, bounded by a name in `limits`, and counted when it is
//! dropped. The host is trusted, but it may go away and come back at any time.
//!
//! | module | one job |
//! |---|---|
//! | `guest` | the loop: answers, records, status |
//! | `catch_up` | the way back when records are reclaimed |
//! | `setup` | cluster, keys, address |
//! | `store` | snapshots on this guest's own disk |
//! | `registers` | the mapped files and the doorbell, through restarts of the host agent |
//! | `bell` | the way to the host agent's doorbell |
//! | `frames` | frames that wait for room in the write file |
//! | `connections` | who connects, bounds, inboxes, where answers go |
//! | `subscriptions` | cursors of those who listen |
//! | `peers` | links to other guests: orders for them, and questions |
//! | `net` | sockets and epoll |
//! | `counters` | what is counted, and its names |
//! | `trace` | points in time, for whoever measures |
//! | `faulty` | wrong proposals on purpose, in builds for figures and tests alone |
//! | [`vm`] | the guest as the one process of a virtual machine |
//! | `limits` | every bound |

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocol::application::{self, Application};
use shared_registers::words::explain_bus_errors;

mod bell;
mod catch_up;
mod connections;
mod counters;
mod error;
#[cfg(feature = "faulty-sequencer")]
mod faulty;
mod frames;
mod guest;
mod limits;
mod net;
mod peers;
mod registers;
mod setup;
mod store;
mod subscriptions;
mod trace;
pub mod vm;

pub use error::GuestError;
pub use limits::{CONNECTIONS_PER_CLIENT, MAX_UNPROVEN};
pub use setup::raise_open_files;

use setup::Setup;

/// Whether this build proposes wrongly on purpose (the feature `faulty-sequencer`). No guest that
/// anybody deploys may.
pub const FAULTY_SEQUENCER: bool = cfg!(feature = "faulty-sequencer");

/// Which guest this process is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's folder.
    pub dir: PathBuf,
    /// The server's id: `0..n`.
    pub id: u16,
}

/// Makes the application as it is before the first message: at the start, and whenever the guest
/// starts over from a snapshot.
type Factory = Box<dyn FnMut() -> Box<dyn Application>>;

/// Runs a guest with the application that `cluster.toml` names, until SIGTERM or SIGINT. Blocks
/// both signals in the calling thread; other threads must not take them.
pub fn run(options: Options) -> Result<(), GuestError> {
    let setup = Setup::load(&options.dir, options.id)?;
    let Some(make) = application::by_name(&setup.cluster.application) else {
        let (name, path) = (setup.cluster.application, setup.paths.cluster_toml());
        return Err(GuestError::Application { name, path });
    };
    guest::run(setup, Box::new(make), signals()?)
}

/// As [`run`], with an application of the caller's own; the name in `cluster.toml` means nothing.
/// A guest that finds the records it needs reclaimed starts over from a snapshot of the others'
/// (section 6), so this is how to make one that has executed nothing: `Log::default`, or a closure.
pub fn run_with<A: Application + 'static>(
    options: Options,
    application: impl FnMut() -> A + 'static,
) -> Result<(), GuestError> {
    guest::run(Setup::load(&options.dir, options.id)?, boxed(application), signals()?)
}

/// As [`run_with`], until `stop` can be read (one end of a pipe or socket whose other end is closed
/// can be); leaves signals alone. For guests that share a process with others.
pub fn run_until<A: Application + 'static>(
    options: Options,
    application: impl FnMut() -> A + 'static,
    stop: impl AsFd,
) -> Result<(), GuestError> {
    guest::run(Setup::load(&options.dir, options.id)?, boxed(application), stop)
}

fn boxed<A: Application + 'static>(mut make: impl FnMut() -> A + 'static) -> Factory {
    Box::new(move || Box::new(make()))
}

/// A descriptor that can be read when the process is to end.
fn signals() -> Result<SignalFd, GuestError> {
    explain_bus_errors().map_err(GuestError::system("handle SIGBUS"))?;
    let failed = |error: nix::errno::Errno| GuestError::system("wait for signals")(error.into());
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(failed)
}
