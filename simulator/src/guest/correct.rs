//! A correct guest: what `guest-replica` does around the replica, without its sockets.
//!
//! A turn reads what is exposed, lets the replica act, writes its frames, and passes on its answers
//! and deliveries. Before it sleeps it says so in its bell word and looks once more.

use std::collections::{BTreeMap, VecDeque};

use protocol::messages::{ToClient, ToServer};
use protocol::replica::{Input, Lookup, Output, Queue, Replica};
use shared_registers::crypto::Digest;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Batch, ClientId, Micros, OrderNumber, Seq, ServerId};

use super::subscribers::Subscribers;
use super::{GuestConfig, GuestInput, GuestOutput};
use crate::application::Tally;
use crate::history::Event;
use crate::memory::Memory;

/// R8's hints are looked at so often; this is also the longest nap.
const HINTS_EVERY: Micros = Micros::from_ms(25);
/// Turns that a guest takes before it sleeps; far more than there is anything to do for.
const TURNS: usize = 10_000;
/// Frames that wait because the write file is full: the replica has no more in flight.
pub const FRAMES_QUEUED: usize = 128;

/// A correct guest process.
pub struct Correct {
    me: ServerId,
    n: usize,
    registers: GuestRegisters<Memory, Memory>,
    replica: Replica,
    /// It has read what there was when it started (P6).
    ready: bool,
    /// Frames for which the write file has no room.
    frames: VecDeque<(Seq, Vec<u8>)>,
    /// The longest that each queue has been.
    longest: BTreeMap<&'static str, usize>,
    subscribers: Subscribers,
    hints_at: Micros,
    noted: OrderNumber,
    committed: (u64, Digest),
    out: Vec<Output>,
}

impl Correct {
    /// Starts on the files of its host.
    pub fn start(now: Micros, config: &GuestConfig, read: Memory, write: Memory) -> Correct {
        let registers = GuestRegisters::attach(config.geometry, read, write);
        Correct {
            me: config.me,
            n: config.n,
            registers: registers.expect("the engine made the files for this geometry"),
            replica: Replica::new(config.replica.clone(), Box::new(Tally::default())),
            ready: false,
            frames: VecDeque::new(),
            longest: BTreeMap::new(),
            subscribers: Subscribers::default(),
            hints_at: now,
            noted: OrderNumber(0),
            committed: (0, Digest::default()),
            out: Vec::new(),
        }
    }

    /// Takes an input and appends what is to be done to `out`.
    pub fn step(&mut self, now: Micros, input: GuestInput, out: &mut Vec<GuestOutput>) {
        self.registers.wake();
        let mut rung = false;
        match input {
            GuestInput::FromClient(client, message) if self.ready => {
                self.on_client(now, client, message, out);
            }
            GuestInput::FromGuest(server, order) if self.ready => {
                self.replica.step(now, Input::Forward(server, order), &mut self.out);
            }
            GuestInput::ClientLost(client) => {
                self.subscribers.lose(client);
            }
            GuestInput::Registers => rung = true,
            GuestInput::FromClient(..) | GuestInput::FromGuest(..) | GuestInput::Timer => {}
        }
        for _ in 0..TURNS {
            let more = self.turn(now, std::mem::take(&mut rung), out);
            self.registers.doze();
            let news = self.ready && self.registers.has_news();
            if !more && !news {
                return;
            }
            self.registers.wake();
        }
        // R4: a guest is never shown what it cannot read, so it always comes to rest.
        panic!("the guest of server {} does not come to rest", self.me);
    }

    /// When a [`GuestInput::Timer`] must come.
    pub fn next_deadline(&self) -> Option<Micros> {
        let core = self.replica.next_deadline().filter(|_| self.ready);
        Some(core.map_or(self.hints_at, |at| at.min(self.hints_at)))
    }

    /// Whether it takes connections yet (P6).
    pub fn serves(&self) -> bool {
        self.ready
    }

    fn on_client(
        &mut self,
        now: Micros,
        client: ClientId,
        message: ToServer,
        out: &mut Vec<GuestOutput>,
    ) {
        let Some(message) = self.subscribers.take(&self.replica, client, message, out) else {
            return;
        };
        let order = match &message {
            ToServer::Order(order) => Some(order.id),
            _ => None,
        };
        let before = self.orders_taken_and_forwarded();
        self.replica.step(now, Input::Client(client, message), &mut self.out);
        let after = self.orders_taken_and_forwarded();
        let sequencer = self.replica.status().term.sequencer(self.n);
        // P3: what its client sent goes on to the sequencer at once.
        if let Some(id) = order
            && after.0 > before.0
            && after.1 == before.1
            && sequencer != self.me
        {
            out.push(GuestOutput::Note(Event::KeptBack { server: self.me, id }));
        }
    }

    fn orders_taken_and_forwarded(&self) -> (u64, u64) {
        let counters = self.replica.status().counters;
        let of = |name| counters.iter().find(|(n, _)| n == name).map_or(0, |(_, value)| *value);
        (of("orders_taken"), of("orders_forwarded"))
    }

    /// One turn. Returns whether there is more to do at once.
    fn turn(&mut self, now: Micros, rung: bool, out: &mut Vec<GuestOutput>) -> bool {
        if !self.ready {
            // P6: what an earlier guest left behind enters the stream first.
            if !self.registers.drained() {
                self.hints_at = now.plus(HINTS_EVERY);
                return false;
            }
            self.read_records(now, out);
            self.ready = true;
        }
        self.read_records(now, out);
        self.act(now, rung);
        self.carry_out(out);
        self.subscribers.pump(&self.replica, out)
    }

    /// Gives the core the records that are exposed, each after those that it refers to (V0).
    fn read_records(&mut self, now: Micros, out: &mut Vec<GuestOutput>) {
        loop {
            let mut progress = false;
            for writer in ServerId::all(self.n) {
                loop {
                    match self.registers.next(writer) {
                        Next::Nothing => break,
                        Next::Reclaimed => panic!("records of {writer} are reclaimed unread"),
                        Next::Damaged => panic!("a host exposed what is no record of {writer}"),
                        Next::Record(record) => {
                            if !self.replica.can_read(&record.stamp) {
                                break;
                            }
                            self.replica.step(now, Input::Record(record), &mut self.out);
                        }
                    }
                    self.registers.advance(writer);
                    self.note(out);
                    progress = true;
                }
            }
            if !progress {
                return;
            }
        }
    }

    /// Tells the history what the last record brought.
    fn note(&mut self, out: &mut Vec<GuestOutput>) {
        let server = self.me;
        while self.noted < self.replica.last_delivered() {
            self.noted = self.noted.next();
            let Lookup::Found(ToClient::Delivery(delivery)) =
                self.replica.delivery(self.noted, true)
            else {
                // A place without a delivery, for the checkers to find.
                continue;
            };
            let protocol::messages::Body::Here(payload) = delivery.payload else {
                panic!("its bytes were asked for")
            };
            let (order, id, digest, time) =
                (delivery.order, delivery.id, delivery.digest, delivery.time);
            let note =
                Event::Delivered { server, order, id, digest, time, payload: payload.into() };
            out.push(GuestOutput::Note(note));
        }
        let status = self.replica.status();
        if self.committed != (status.committed, status.chain) {
            self.committed = (status.committed, status.chain);
            let (batch, chain) = (Batch(status.committed), status.chain);
            out.push(GuestOutput::Note(Event::Committed { server, batch, chain }));
        }
    }

    /// Tells the core what was dropped and what the hints are, and lets it act.
    fn act(&mut self, now: Micros, rung: bool) {
        if let Some(notice) = self.registers.drop_notice() {
            // Frames that follow a dropped one are void (R1): the core writes them anew.
            self.out.retain(|output| !matches!(output, Output::Write { .. }));
            self.frames.clear();
            self.replica.step(now, Input::Dropped(notice), &mut self.out);
        }
        if rung || now >= self.hints_at {
            self.hints_at = now.plus(HINTS_EVERY);
            let hints: Vec<_> = self.registers.hints().collect();
            self.replica.step(now, Input::Hints(&hints), &mut self.out);
        }
        self.replica.step(now, Input::Idle, &mut self.out);
    }

    /// Tells the history of every queue that is longer than ever.
    fn measure(&mut self, out: &mut Vec<GuestOutput>) {
        let (name, length) = ("frames that wait for the write file", self.frames.len());
        let frames = Queue { name, length, bound: FRAMES_QUEUED };
        let queues = self.replica.queues().into_iter().chain([frames]);
        for queue in queues {
            let longest = self.longest.entry(queue.name).or_default();
            if queue.length > *longest {
                *longest = queue.length;
                let (length, bound) = (queue.length as u64, queue.bound as u64);
                let (owner, name) = (u32::from(self.me.0), queue.name);
                out.push(GuestOutput::Note(Event::Queue { owner, name, length, bound }));
            }
        }
    }

    fn carry_out(&mut self, out: &mut Vec<GuestOutput>) {
        for output in std::mem::take(&mut self.out) {
            match output {
                Output::Write { seq, body } => self.frames.push_back((seq, body)),
                Output::ToClient(client, answer) => {
                    out.push(GuestOutput::ToClient(client, answer));
                }
                Output::Forward(to, order) => out.push(GuestOutput::ToGuest(to, order)),
            }
        }
        while let Some((seq, body)) = self.frames.front() {
            if self.registers.write(*seq, body).is_err() {
                break;
            }
            self.frames.pop_front();
        }
        self.measure(out);
        if self.registers.must_ring() {
            out.push(GuestOutput::RingHost);
        }
    }
}
