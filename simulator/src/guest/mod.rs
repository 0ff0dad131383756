//! The guests of a simulated cluster: correct ones, and those that were broken into.
//!
//! A [`Guest`] is one running guest process. The engine gives it what comes from its doorbell, the
//! payload network and its timers, and carries out what it wants. A guest without strategies is
//! [`Correct`]: the production replica over the production registers. Any other is [`Byzantine`].
//!
//! | module | one job |
//! |---|---|
//! | [`correct`] | what a correct guest does |
//! | `catch_up` | how one whose records are reclaimed comes back |
//! | [`strategies`] | what others do, as data, and how it is drawn |
//! | [`byzantine`] | the others: replicas, and what is done to their inputs and outputs |
//! | `view` | what a broken-in guest knows |
//! | `rewrite`, `schemes`, `openings` | what it does to its replicas' frames, and what it adds |
//! | `lies` | what it tells clients |
//! | `section6` | what it claims, and what it gives out for snapshots |
//! | `abuse` | what it does to its write file |
//! | [`script`] | what several of them know of each other |
//! | [`store`] | a correct guest's snapshots on its disk |
//! | `subscribers` | listeners, of either kind of guest |

mod abuse;
pub mod byzantine;
mod catch_up;
pub mod correct;
mod lies;
mod openings;
mod rewrite;
mod schemes;
pub mod script;
mod section6;
pub mod store;
pub mod strategies;
mod subscribers;
#[cfg(test)]
mod tests;
mod view;

use protocol::messages::{OrderMessage, ToClient, ToGuest, ToServer};
use protocol::replica;
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{ClientId, Micros, ServerId};
use shared_registers::layout::Geometry;

use crate::history::Event;
use crate::memory::Memory;
use byzantine::Byzantine;
use correct::Correct;
use script::Script;
use store::Disk;
use strategies::Strategy;

/// What a guest process is started with.
#[derive(Clone)]
pub struct GuestConfig {
    /// Whose guest it is.
    pub me: ServerId,
    /// How many servers there are.
    pub n: usize,
    /// The cluster.
    pub cluster: ClusterId,
    /// The shape of its two files.
    pub geometry: Geometry,
    /// What a correct replica is told.
    pub replica: replica::Config,
    /// What it does instead of what it should; nothing in a correct guest.
    pub strategies: Vec<Strategy>,
    /// Where its random choices come from.
    pub seed: u64,
    /// What lying clients gave away: their order keys, by host. A guest knows no others.
    pub lying: Vec<(ClientId, Vec<MacKey>)>,
    /// What it shares with the other broken-in guests: clones of one.
    pub script: Script,
    /// Where a correct one stores snapshots, and how long that takes; it claims none before. None:
    /// it keeps them in its memory alone.
    pub store: Option<(Disk, Micros)>,
}

/// Something that happens to a guest.
#[derive(Debug)]
pub enum GuestInput {
    /// Its host rang: there may be news in the registers.
    Registers,
    /// A client's message, from a connection that proved to be its own.
    FromClient(ClientId, ToServer),
    /// The connection of a client is gone; so is its subscription.
    ClientLost(ClientId),
    /// An order that another guest forwards.
    FromGuest(ServerId, OrderMessage),
    /// A question for a piece of a snapshot from another guest, or its answer (section 6).
    Transfer(ServerId, ToGuest),
    /// The connection to a guest that it asks is gone, and what was on its way.
    SourceLost(ServerId),
    /// [`Guest::next_deadline`] has come, or is near.
    Timer,
}

/// Something that a guest wants done.
#[derive(Debug)]
pub enum GuestOutput {
    /// Send this to a client.
    ToClient(ClientId, ToClient),
    /// Forward this to another guest.
    ToGuest(ServerId, OrderMessage),
    /// Ask another guest for a piece of a snapshot, or answer it (section 6).
    Transfer(ServerId, ToGuest),
    /// Ring the host's doorbell: frames were written.
    RingHost,
    /// For the history: what this guest concluded. Only a correct guest's notes mean anything.
    Note(Event),
}

/// A running guest process.
pub enum Guest {
    /// It does what the protocol says.
    Correct(Box<Correct>),
    /// It was broken into.
    Byzantine(Box<Byzantine>),
}

impl Guest {
    /// Starts on the files of its host: `read`, which only the host may write, and `write`.
    pub fn start(now: Micros, config: &GuestConfig, read: Memory, write: Memory) -> Guest {
        match config.strategies.is_empty() {
            true => Guest::Correct(Box::new(Correct::start(now, config, read, write))),
            false => Guest::Byzantine(Box::new(Byzantine::start(now, config, read, write))),
        }
    }

    /// Takes an input and appends what is to be done to `out`, in the order in which to do it.
    pub fn step(&mut self, now: Micros, input: GuestInput, out: &mut Vec<GuestOutput>) {
        match self {
            Guest::Correct(guest) => guest.step(now, input, out),
            Guest::Byzantine(guest) => guest.step(now, input, out),
        }
    }

    /// When [`GuestInput::Timer`] must come even if nothing happens before.
    pub fn next_deadline(&self) -> Option<Micros> {
        match self {
            Guest::Correct(guest) => guest.next_deadline(),
            Guest::Byzantine(guest) => guest.next_deadline(),
        }
    }

    /// Whether it takes connections yet (P6).
    pub fn serves(&self) -> bool {
        match self {
            Guest::Correct(guest) => guest.serves(),
            Guest::Byzantine(guest) => guest.serves(),
        }
    }
}
