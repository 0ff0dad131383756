//! A correct guest: what `guest-replica` does around the replica, without its sockets.
//!
//! A turn reads what is exposed, lets the replica act, writes its frames, and passes on its answers
//! and deliveries. Before it sleeps it says so in its bell word and looks once more.

use std::collections::VecDeque;

use protocol::catch_up;
use protocol::messages::{ToClient, ToGuest, ToServer};
use protocol::replica::{self, Input, Lookup, Output, Replica};
use protocol::transfer;
use shared_registers::crypto::Digest;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{ClientId, Micros, OrderNumber, Seq, ServerId};
use shared_registers::record::Checkpoint;
use shared_registers::words::News;

use super::catch_up::CatchUp;
use super::store::Store;
use super::subscribers::Subscribers;
use super::{GuestConfig, GuestInput, GuestOutput};
use crate::application::Tally;
use crate::history::{Event, Longest};
use crate::memory::Memory;

/// R8's hints are looked at so often; this is also the longest nap.
const HINTS_EVERY: Micros = Micros::from_ms(25);
/// Turns that a guest takes before it sleeps; far more than there is anything to do for.
const TURNS: usize = 10_000;
/// Frames that wait because the write file is full: the replica has no more in flight.
pub const FRAMES_QUEUED: usize = 128;

/// How far this guest is.
type Core = catch_up::Core<CatchUp>;

fn reading(mut replica: Replica, stores: bool) -> Core {
    if stores {
        replica.claim_after_store();
    }
    Core::reading(replica)
}

/// A correct guest process.
pub struct Correct {
    me: ServerId,
    n: usize,
    clients: usize,
    config: replica::Config,
    registers: GuestRegisters<Memory, Memory>,
    core: Core,
    /// The host has taken what an earlier guest left behind (P6).
    drained: bool,
    /// R6: the host recovers: everything can be read, and nothing written.
    reads_only: bool,
    store: Option<Store>,
    /// Frames for which the write file has no room.
    frames: VecDeque<(Seq, Vec<u8>)>,
    /// The longest that each queue has been.
    longest: Longest,
    subscribers: Subscribers,
    hints_at: Micros,
    noted: Noted,
    out: Vec<Output>,
}

/// What the history was told.
#[derive(Default)]
struct Noted {
    delivered: OrderNumber,
    committed: (u64, Digest),
    stable: Option<Checkpoint>,
    /// Per stream, the records before the stable checkpoint that everything is delivered up to.
    settled: Option<Vec<u64>>,
}

impl Correct {
    /// Starts on the files of its host.
    pub fn start(now: Micros, config: &GuestConfig, read: Memory, write: Memory) -> Correct {
        let registers = GuestRegisters::attach(config.geometry, read, write);
        let replica = Replica::new(config.replica.clone(), Box::new(Tally::default()));
        let registers = registers.expect("the engine made the files for this geometry");
        let reads_only = registers.recovering().is_some();
        Correct {
            me: config.me,
            n: config.n,
            clients: config.replica.clients as usize,
            config: config.replica.clone(),
            registers,
            core: reading(replica, config.store.is_some()),
            drained: reads_only,
            store: config.store.clone().map(|(disk, takes)| Store::new(disk, takes)),
            reads_only,
            frames: VecDeque::new(),
            longest: Longest::default(),
            subscribers: Subscribers::default(),
            hints_at: now,
            noted: Noted::default(),
            out: Vec::new(),
        }
    }

    /// Takes an input and appends what is to be done to `out`.
    pub fn step(&mut self, now: Micros, input: GuestInput, out: &mut Vec<GuestOutput>) {
        self.registers.wake();
        let mut rung = false;
        match input {
            GuestInput::FromClient(client, message) => self.on_client(now, client, message, out),
            GuestInput::FromGuest(_, _) if self.reads_only => {}
            GuestInput::FromGuest(server, order) => {
                if let Some(replica) = self.core.at_work() {
                    replica.step(now, Input::Forward(server, order), &mut self.out);
                }
            }
            GuestInput::Transfer(server, message) => self.on_transfer(now, server, message, out),
            GuestInput::SourceLost(source) => {
                if let Core::CatchingUp(catch_up) = &mut self.core {
                    catch_up.lost(now, source);
                }
            }
            GuestInput::ClientLost(client) => self.subscribers.lose(client),
            GuestInput::Registers => rung = true,
            GuestInput::Timer => {}
        }
        for _ in 0..TURNS {
            let more = self.turn(now, std::mem::take(&mut rung), out);
            let wanted = match self.frames.is_empty() {
                true => self.core.wanted(),
                false => News::ALL,
            };
            self.registers.doze(wanted);
            let reads = self.drained || self.store.is_some();
            let news = reads && self.registers.has_news(wanted);
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
        let core = self.core.next_deadline(CatchUp::next_deadline);
        let stored = self.store.as_ref().and_then(Store::next_deadline);
        [core, stored, Some(self.hints_at)].into_iter().flatten().min()
    }

    /// Whether it takes connections yet (P6).
    pub fn serves(&self) -> bool {
        matches!(self.core, Core::Replica { at_work: true, .. })
    }

    /// What another guest asks of a snapshot, or answers.
    fn on_transfer(
        &mut self,
        now: Micros,
        server: ServerId,
        message: ToGuest,
        out: &mut Vec<GuestOutput>,
    ) {
        match (message, &mut self.core) {
            (ToGuest::Fetch { digest, from }, core) => {
                let held = core.replica().and_then(|replica| replica.piece_of(&digest, from));
                let disk = self.store.as_ref().map(Store::disk);
                let found = held.or_else(|| disk?.piece_of(&digest, from));
                let answer = transfer::answer(digest, from, found);
                out.push(GuestOutput::Transfer(server, answer));
            }
            (answer, Core::CatchingUp(catch_up)) => catch_up.answered(now, server, answer),
            (_, Core::Replica { .. }) => {}
        }
    }

    fn on_client(
        &mut self,
        now: Micros,
        client: ClientId,
        message: ToServer,
        out: &mut Vec<GuestOutput>,
    ) {
        let known = self.core.replica();
        let Some(message) = self.subscribers.take(known, client, message, out) else { return };
        if self.reads_only && matches!(message, ToServer::Order(_)) {
            return;
        }
        let Some(replica) = self.core.at_work() else { return };
        let order = match &message {
            ToServer::Order(order) => Some(order.id),
            _ => None,
        };
        let before = orders_taken_and_forwarded(replica);
        replica.step(now, Input::Client(client, message), &mut self.out);
        let after = orders_taken_and_forwarded(replica);
        let sequencer = replica.status().term.sequencer(self.n);
        // P3: what its client sent goes on to the sequencer at once.
        if let Some(id) = order
            && after.0 > before.0
            && after.1 == before.1
            && sequencer != self.me
        {
            out.push(GuestOutput::Note(Event::KeptBack { server: self.me, id }));
        }
    }

    /// One turn. Returns whether there is more to do at once.
    fn turn(&mut self, now: Micros, rung: bool, out: &mut Vec<GuestOutput>) -> bool {
        if !self.drained {
            // P6: what an earlier guest left behind enters the stream first.
            self.drained = self.reads_only || self.registers.drained();
            if !self.drained {
                self.hints_at = now.plus(HINTS_EVERY);
                if self.store.is_none() {
                    return false;
                }
            }
        }
        self.take_stored(now);
        let unread = match self.core {
            Core::Replica { .. } => self.read_records(now, out),
            Core::CatchingUp(_) => self.catch_up(now, out),
        };
        if let Core::Replica { at_work, .. } = &mut self.core {
            // P6: everything that was exposed is read, the own stream included.
            *at_work |= !unread && self.drained;
        }
        self.act(now, rung);
        self.store(now, unread);
        self.carry_out(out);
        let Some(replica) = self.core.replica() else { return unread };
        self.subscribers.pump(replica, out) || unread
    }

    /// Gives the core the records that are exposed, each after those that it refers to (V0).
    /// Returns whether it lost its replica over it.
    fn read_records(&mut self, now: Micros, out: &mut Vec<GuestOutput>) -> bool {
        loop {
            let mut progress = false;
            for writer in ServerId::all(self.n) {
                while let Core::Replica { replica, .. } = &mut self.core {
                    match self.registers.next(writer) {
                        Next::Nothing => break,
                        Next::Reclaimed => {
                            self.fall_behind(out);
                            return true;
                        }
                        Next::Damaged => panic!("a host exposed what is no record of {writer}"),
                        Next::Record(record) => {
                            if !replica.can_read(&record.stamp) {
                                break;
                            }
                            replica.step(now, Input::Record(record), &mut self.out);
                        }
                    }
                    self.registers.advance(writer);
                    self.note(out);
                    progress = true;
                }
            }
            if !progress {
                return false;
            }
        }
    }

    /// A record that is to be read is reclaimed: all that the replica knows is void.
    fn fall_behind(&mut self, out: &mut Vec<GuestOutput>) {
        let Core::Replica { replica, .. } = &mut self.core else { return };
        let (known, stable) = match self.store.is_some() {
            true => (replica.content().parts, replica.stable().cloned()),
            false => (vec![], replica.stable().cloned()),
        };
        // What it wanted to write is of a replica that is gone.
        self.out.retain(|output| !matches!(output, Output::Write { .. }));
        self.frames.clear();
        let catch_up = CatchUp::new(&self.config, known, stable, &mut self.registers);
        self.drained &= self.store.is_none();
        self.core = Core::CatchingUp(Box::new(catch_up));
        out.push(GuestOutput::Note(Event::FellBehind { server: self.me }));
    }

    /// Goes on with catching up. Returns whether it has a replica again.
    fn catch_up(&mut self, now: Micros, out: &mut Vec<GuestOutput>) -> bool {
        let Core::CatchingUp(catch_up) = &mut self.core else { return false };
        catch_up.turn(now, &mut self.registers, self.store.as_ref().map(Store::disk), out);
        let news = self.longest.is(u32::from(self.me.0), catch_up.queue());
        out.extend(news.map(GuestOutput::Note));
        // P6: its own stream must be complete before it is read, so that nothing is written twice.
        let drained = self.reads_only || self.store.is_some() || self.registers.drained();
        if !catch_up.is_whole(&self.registers) || !drained {
            self.hints_at = now.plus(HINTS_EVERY);
            return false;
        }
        let Some(snapshot) = catch_up.take_snapshot(&mut self.registers) else { return true };
        let checkpoint = snapshot.checkpoint().clone();
        let replica =
            Replica::from_snapshot(self.config.clone(), Box::new(Tally::default()), snapshot)
                .expect("f + 1 claim a snapshot that is none");
        let (server, status) = (self.me, replica.status());
        let (order, chain) = (replica.last_delivered(), status.chain);
        self.noted = Noted {
            delivered: order,
            committed: (status.committed, chain),
            stable: Some(checkpoint.clone()),
            settled: Some(checkpoint.cut.clone()),
        };
        out.push(GuestOutput::Note(Event::Restored { server, checkpoint, order, chain }));
        self.core = reading(replica, self.store.is_some());
        true
    }

    /// What is stored by now may be claimed.
    fn take_stored(&mut self, now: Micros) {
        let Some(store) = &mut self.store else { return };
        while let Some(checkpoint) = store.take_stored(now) {
            if let Core::Replica { replica, .. } = &mut self.core {
                replica.on_stored(&checkpoint);
            }
        }
    }

    /// Hands out what is to be stored, and says what may go. Not on the way through old records.
    fn store(&mut self, now: Micros, unread: bool) {
        let Some(store) = &mut self.store else { return };
        let Core::Replica { replica, at_work } = &mut self.core else { return };
        if *at_work || !unread {
            if let Some(snapshot) = replica.to_store() {
                store.put(now, snapshot);
            }
            store.settle(replica.settled());
        }
    }

    /// Tells the history what the last record brought.
    fn note(&mut self, out: &mut Vec<GuestOutput>) {
        let (server, Some(replica)) = (self.me, self.core.replica()) else { return };
        while self.noted.delivered < replica.last_delivered() {
            self.noted.delivered = self.noted.delivered.next();
            let Lookup::Found(ToClient::Delivery(delivery)) =
                replica.delivery(self.noted.delivered, true)
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
        let (batch, (_, chain)) = (replica.reader().committed(), replica.reader().taken());
        if self.noted.committed != (batch.0, chain) {
            self.noted.committed = (batch.0, chain);
            out.push(GuestOutput::Note(Event::Committed { server, batch, chain }));
        }
        if let Some(stable) = replica.stable().filter(|s| self.noted.stable.as_ref() != Some(*s)) {
            self.noted.stable = Some(stable.clone());
            let checkpoint = stable.clone();
            out.push(GuestOutput::Note(Event::Stable { server, checkpoint }));
        }
        if let Some(stable) = replica.stable()
            && replica.reader().taken().0 >= stable.batch
            && self.noted.settled.as_ref() != Some(&stable.cut)
        {
            self.noted.settled = Some(stable.cut.clone());
        }
    }

    /// What a reader keeps is bounded by the records since the stable cut (section 6).
    fn reader_queues(&self, replica: &Replica) -> [(&'static str, usize, usize); 5] {
        let reader = replica.reader();
        let [votes, changes, terms, batches] = reader.held();
        let settled = |writer: ServerId| {
            self.noted.settled.as_ref().map_or(0, |settled| settled[writer.index()])
        };
        let since = |writer| reader.read_count(writer).0.saturating_sub(settled(writer)) as usize;
        let since: usize = ServerId::all(self.n).map(since).sum();
        let rings = self.n * self.registers.geometry().max_records();
        [
            ("records since the stable cut", since, rings),
            // Of what lies before the cut: the last vote, and two CHANGEs.
            ("votes kept of one writer", votes, since + 1),
            ("CHANGEs kept of one writer", changes, since + 2),
            // The checkpoint's and the one after, which may be dead.
            ("terms kept", terms, since + 2),
            ("batches kept", batches, since + self.config.window as usize + 1),
        ]
    }

    /// Tells the core what was dropped and what the hints are, and lets it act.
    fn act(&mut self, now: Micros, rung: bool) {
        if self.reads_only {
            self.hints_at = now.plus(HINTS_EVERY);
            return;
        }
        let Some(replica) = self.core.at_work() else { return };
        if let Some(notice) = self.registers.drop_notice() {
            // Frames that follow a dropped one are void (R1): the core writes them anew.
            self.out.retain(|output| !matches!(output, Output::Write { .. }));
            self.frames.clear();
            replica.step(now, Input::Dropped(notice), &mut self.out);
        }
        if rung || now >= self.hints_at {
            self.hints_at = now.plus(HINTS_EVERY);
            let hints: Vec<_> = self.registers.hints().collect();
            replica.step(now, Input::Hints(&hints), &mut self.out);
        }
        replica.step(now, Input::Idle, &mut self.out);
    }

    /// Tells the history of every queue that is longer than ever.
    fn measure(&mut self, out: &mut Vec<GuestOutput>) {
        let frames = ("frames that wait for the write file", self.frames.len(), FRAMES_QUEUED);
        let replicas = self.core.replica().map(Replica::queues).into_iter().flatten();
        let replicas = replicas.map(|queue| (queue.name, queue.length, queue.bound));
        let reader = self.core.replica().map(|replica| self.reader_queues(replica));
        let subscribers = self.subscribers.queues(self.clients);
        for queue in replicas.chain(reader.into_iter().flatten()).chain(subscribers).chain([frames])
        {
            let news = self.longest.is(u32::from(self.me.0), queue);
            out.extend(news.map(GuestOutput::Note));
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

fn orders_taken_and_forwarded(replica: &Replica) -> (u64, u64) {
    let counters = replica.status().counters;
    let of = |name| counters.iter().find(|(n, _)| n == name).map_or(0, |(_, value)| *value);
    (of("orders_taken"), of("orders_forwarded"))
}
