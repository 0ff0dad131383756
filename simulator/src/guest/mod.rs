//! The guests of a simulated cluster: correct ones, and those that were broken into.
//!
//! A [`Guest`] is one running guest process. The engine gives it what comes from its doorbell, the
//! payload network and its timers, and carries out what it wants. A guest without strategies is
//! [`Correct`](correct::Correct): the production replica over the production registers.

pub mod correct;
pub mod strategies;

use protocol::messages::{OrderMessage, ToClient, ToServer};
use protocol::replica;
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{ClientId, Micros, ServerId};
use shared_registers::layout::Geometry;

use crate::history::Event;
use crate::memory::Memory;
use correct::Correct;
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
    /// Ring the host's doorbell: frames were written.
    RingHost,
    /// For the history: what this guest concluded. Only a correct guest's notes mean anything.
    Note(Event),
}

/// A running guest process.
pub struct Guest {
    correct: Correct,
}

impl Guest {
    /// Starts on the files of its host: `read`, which only the host may write, and `write`.
    pub fn start(now: Micros, config: &GuestConfig, read: Memory, write: Memory) -> Guest {
        Guest { correct: Correct::start(now, config, read, write) }
    }

    /// Takes an input and appends what is to be done to `out`, in the order in which to do it.
    pub fn step(&mut self, now: Micros, input: GuestInput, out: &mut Vec<GuestOutput>) {
        self.correct.step(now, input, out);
    }

    /// When [`GuestInput::Timer`] must come even if nothing happens before.
    pub fn next_deadline(&self) -> Option<Micros> {
        self.correct.next_deadline()
    }

    /// Whether it takes connections yet (P6).
    pub fn serves(&self) -> bool {
        self.correct.serves()
    }
}
