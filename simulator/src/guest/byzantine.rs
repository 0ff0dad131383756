//! A guest that was broken into: one or two correct replicas over the real registers, and between
//! them and the world whatever its strategies say.
//!
//! What the replicas want written passes through `rewrite`; what their registers tell passes
//! through `schemes`, which writes frames of its own. The replicas number their frames themselves
//! and know nothing of those, so they act only while nothing of this guest's is in flight, and what
//! was kept from them is told as a drop: they then think of something new.

use std::collections::VecDeque;

use protocol::messages::{ToGuest, ToServer};
use protocol::replica::{self, Input, Output, Replica};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared_registers::crypto::MacKey;
use shared_registers::guest_side::{DropNotice, GuestRegisters, Next};
use shared_registers::ids::{ClientId, Micros, Seq, ServerId, Term};
use shared_registers::record::Body;
use shared_registers::words::News;

use super::catch_up::CatchUp;
use super::script::Script;
use super::strategies::{Deed, Strategy, When};
use super::subscribers::Subscribers;
use super::view::View;
use super::{GuestConfig, GuestInput, GuestOutput};
use crate::application::Tally;
use crate::memory::Memory;

/// A broken-in guest looks around so often, even if nobody rings.
const LOOK_EVERY: Micros = Micros::from_ms(5);
/// Frames that wait, for their time or for room. What comes on top is lost.
const WAITING: usize = 256;
/// Turns of one step.
const TURNS: usize = 16;
/// Occasions of one strategy that are remembered as used.
const USED: usize = 64;

/// A strategy, and what it was used for already.
struct Armed {
    strategy: Strategy,
    used: VecDeque<(u64, u64)>,
}

/// A broken-in guest process.
pub struct Byzantine {
    pub(super) me: ServerId,
    pub(super) n: usize,
    pub(super) registers: GuestRegisters<Memory, Memory>,
    /// The write file, to be stored to without asking anybody.
    pub(super) file: Memory,
    /// The read file.
    pub(super) shown: Memory,
    /// Where frames end that it will rewrite once they are consumed, a word of each, and what that
    /// becomes.
    pub(super) used_up: Vec<(u64, usize, u64)>,
    pub(super) replicas: Vec<Replica>,
    config: replica::Config,
    /// It missed records, and looks for a snapshot.
    catching: Option<CatchUp>,
    pub(super) view: View,
    armed: Vec<Armed>,
    pub(super) rng: ChaCha8Rng,
    pub(super) script: Script,
    /// Keys that lying clients gave away, by host.
    pub(super) lying: Vec<(ClientId, Vec<MacKey>)>,
    started: Micros,
    pub(super) now: Micros,
    pub(super) patience: Micros,
    pub(super) window: u64,
    ready: bool,
    /// The position of the next frame.
    pub(super) next: Seq,
    /// The own segment, with the CHANGEs in flight.
    pub(super) segment: Term,
    /// The term that it opened in its own way last.
    pub(super) opened: Option<Term>,
    /// Claims that its replicas wanted written.
    pub(super) claims: u64,
    /// The cut that it claimed last, whatever became of that.
    pub(super) claimed: Vec<u64>,
    /// What is to be written now.
    pub(super) outbox: Vec<Vec<u8>>,
    /// What is to be written later.
    later: VecDeque<(Micros, Vec<u8>)>,
    /// Something was kept from a replica, or slipped in among its frames.
    pub(super) tampered: bool,
    resync: bool,
    look_at: Micros,
    subscribers: Subscribers,
}

impl Byzantine {
    /// Starts on the files of its host.
    pub fn start(now: Micros, config: &GuestConfig, read: Memory, write: Memory) -> Byzantine {
        let registers = GuestRegisters::attach(config.geometry, read.clone(), write.clone());
        let twin = config.strategies.iter().any(|strategy| strategy.deed == Deed::Twin);
        let replica = |_| Replica::new(config.replica.clone(), Box::new(Tally::default()));
        let armed = |strategy: &Strategy| Armed { strategy: *strategy, used: VecDeque::new() };
        Byzantine {
            me: config.me,
            n: config.n,
            registers: registers.expect("the engine made the files for this geometry"),
            file: write,
            shown: read,
            used_up: Vec::new(),
            replicas: (0..1 + usize::from(twin)).map(replica).collect(),
            config: config.replica.clone(),
            catching: None,
            view: View::new(config),
            armed: config.strategies.iter().map(armed).collect(),
            rng: ChaCha8Rng::seed_from_u64(config.seed),
            script: config.script.clone(),
            lying: config.lying.clone(),
            started: now,
            now,
            patience: config.replica.change,
            window: config.replica.window,
            ready: false,
            next: Seq(1),
            segment: Term(0),
            opened: None,
            claims: 0,
            claimed: Vec::new(),
            outbox: Vec::new(),
            later: VecDeque::new(),
            tampered: false,
            resync: false,
            look_at: now,
            subscribers: Subscribers::default(),
        }
    }

    /// When a [`GuestInput::Timer`] must come.
    pub fn next_deadline(&self) -> Option<Micros> {
        if let Some(catching) = &self.catching {
            return [catching.next_deadline(), Some(self.look_at)].into_iter().flatten().min();
        }
        let later = self.later.front().map(|(at, _)| *at);
        let core = self.replicas.iter().filter_map(Replica::next_deadline).min();
        // Not all of them want anything done: one that is kept waiting would have it spin.
        let core = core.map(|at| at.max(self.now.plus(Micros(1_000))));
        [later, core, Some(self.look_at)].into_iter().flatten().min()
    }

    /// Whether it takes connections yet.
    pub fn serves(&self) -> bool {
        self.ready
    }

    /// Takes an input and appends what is to be done to `out`.
    pub fn step(&mut self, now: Micros, input: GuestInput, out: &mut Vec<GuestOutput>) {
        self.now = self.now.max(now);
        self.registers.wake();
        let silent = self.at_work(|deed| *deed == Deed::Silent).is_some();
        let mut wanted = Vec::new();
        if self.ready {
            self.take(input, &mut wanted, out);
        }
        for _ in 0..TURNS {
            self.turn(silent, &mut wanted, out);
            self.registers.doze(News::ALL);
            if !self.ready || !self.registers.has_news(News::ALL) {
                break;
            }
            self.registers.wake();
        }
        if silent {
            out.clear();
        } else if self.registers.must_ring() {
            out.push(GuestOutput::RingHost);
        }
    }

    fn take(&mut self, input: GuestInput, wanted: &mut Vec<Output>, out: &mut Vec<GuestOutput>) {
        let now = self.now;
        match input {
            GuestInput::FromClient(client, message) => {
                self.lie_unasked(client, &message, out);
                if let ToServer::Order(order) = &message {
                    self.view.learn(order);
                    if self.at_work(|deed| *deed == Deed::Starve(client)).is_some() {
                        return;
                    }
                }
                let core = client.index() % self.replicas.len();
                let core = &mut self.replicas[core];
                if let Some(message) = self.subscribers.take(Some(core), client, message, out) {
                    core.step(now, Input::Client(client, message), wanted);
                }
            }
            GuestInput::FromGuest(server, order) => {
                self.view.learn(&order);
                let client = order.id.client;
                if self.at_work(|deed| *deed == Deed::Starve(client)).is_none() {
                    let core = client.index() % self.replicas.len();
                    self.replicas[core].step(now, Input::Forward(server, order), wanted);
                }
            }
            GuestInput::Transfer(server, message) => self.on_transfer(server, message, out),
            GuestInput::SourceLost(source) => {
                self.catching.iter_mut().for_each(|catching| catching.lost(now, source));
            }
            GuestInput::ClientLost(client) => self.subscribers.lose(client),
            GuestInput::Registers | GuestInput::Timer => {}
        }
    }

    fn turn(&mut self, silent: bool, wanted: &mut Vec<Output>, out: &mut Vec<GuestOutput>) {
        if !self.ready {
            self.look_at = self.now.plus(LOOK_EVERY);
            if !self.registers.drained() {
                return;
            }
            self.ready = true;
        }
        if self.catching.is_some() && !self.catch_up(out) {
            return;
        }
        self.read_records(wanted);
        self.on_drops(wanted);
        let in_flight = self.in_flight();
        if !in_flight {
            self.act(wanted);
        }
        for output in std::mem::take(wanted) {
            match output {
                Output::Write { .. } if silent => self.resync = true,
                Output::Write { body, .. } => self.rewrite(&body),
                Output::ToClient(client, answer) => self.answer(client, answer, out),
                Output::Forward(to, order) => out.push(GuestOutput::ToGuest(to, order)),
            }
        }
        if silent {
            self.outbox.clear();
            return;
        }
        if !in_flight {
            self.schemes();
        }
        self.flush();
        self.abuse();
        let mut deliveries = Vec::new();
        self.subscribers.pump(&self.replicas[0], &mut deliveries);
        for delivery in deliveries {
            match delivery {
                GuestOutput::ToClient(client, delivery) => self.answer(client, delivery, out),
                other => out.push(other),
            }
        }
    }

    /// Whether something that this guest wrote, or will write, was not read back.
    fn in_flight(&self) -> bool {
        self.view.read_count(self.me).next() < self.next || !self.later.is_empty()
    }

    fn read_records(&mut self, wanted: &mut Vec<Output>) {
        loop {
            let mut progress = false;
            for writer in ServerId::all(self.n) {
                loop {
                    let record = match self.registers.next(writer) {
                        Next::Record(record) => record,
                        Next::Reclaimed => {
                            let catching =
                                CatchUp::new(&self.config, vec![], None, &mut self.registers);
                            self.catching = Some(catching);
                            return;
                        }
                        Next::Nothing | Next::Damaged => break,
                    };
                    if !self.view.reader.can_read(&record.stamp) {
                        break;
                    }
                    for replica in &mut self.replicas {
                        replica.step(self.now, Input::Record(record.clone()), wanted);
                    }
                    self.view.read(&record);
                    self.registers.advance(writer);
                    progress = true;
                }
            }
            if !progress {
                break;
            }
        }
        self.next = self.next.max(self.view.read_count(self.me).next());
        self.segment = self.segment.max(self.view.reader.segment(self.me));
    }

    /// Whoever has nobody to deceive goes the way back like a correct guest. Returns whether it is
    /// there.
    fn catch_up(&mut self, out: &mut Vec<GuestOutput>) -> bool {
        self.look_at = self.now.plus(LOOK_EVERY);
        let Some(catching) = &mut self.catching else { return true };
        catching.turn(self.now, &mut self.registers, None, out);
        if !catching.is_whole(&self.registers) || !self.registers.drained() {
            return false;
        }
        let mut snapshots = Vec::new();
        for _ in 0..self.replicas.len() + 1 {
            let Some(snapshot) = catching.take_snapshot(&mut self.registers) else { return false };
            snapshots.push(snapshot);
        }
        self.view.start_from(&snapshots.remove(0));
        let replica = |snapshot| {
            let application = Box::new(Tally::default());
            let replica = Replica::from_snapshot(self.config.clone(), application, snapshot);
            replica.expect("f + 1 claim a snapshot that is none")
        };
        self.replicas = snapshots.into_iter().map(replica).collect();
        self.catching = None;
        true
    }

    /// What another guest answered.
    pub(super) fn answered(&mut self, server: ServerId, answer: ToGuest) {
        if let Some(catching) = &mut self.catching {
            catching.answered(self.now, server, answer);
        }
    }

    fn on_drops(&mut self, wanted: &mut Vec<Output>) {
        let notice = self.registers.drop_notice();
        if notice.is_none() && (!self.resync || self.in_flight()) {
            return;
        }
        self.resync = false;
        let own = DropNotice { drops: 0, seq: self.next, reason: None, orders: Vec::new() };
        let mut notice = notice.unwrap_or(own);
        // What failed was perhaps not the replica's, and all that is in flight is lost with it.
        if self.tampered {
            notice.orders.clear();
        }
        self.next = self.view.read_count(self.me).next();
        self.segment = self.view.reader.segment(self.me);
        notice.seq = notice.seq.min(self.next);
        for replica in &mut self.replicas {
            replica.step(self.now, Input::Dropped(notice.clone()), wanted);
        }
    }

    fn act(&mut self, wanted: &mut Vec<Output>) {
        if self.now >= self.look_at {
            self.look_at = self.now.plus(LOOK_EVERY);
            let hints: Vec<_> = self.registers.hints().collect();
            for replica in &mut self.replicas {
                replica.step(self.now, Input::Hints(&hints), wanted);
            }
        }
        if self.hesitates() {
            return;
        }
        for replica in &mut self.replicas {
            replica.step(self.now, Input::Idle, wanted);
        }
    }

    /// Whether it may do this at all: what is drawn for one who may not changes nothing.
    pub(super) fn is_armed(&self, deed: Deed) -> bool {
        self.armed.iter().any(|armed| armed.strategy.deed == deed)
    }

    /// A strategy that is at work now.
    pub(super) fn at_work(&mut self, which: impl Fn(&Deed) -> bool) -> Option<Deed> {
        let passed = self.now.since(self.started);
        let delivered = self.view.delivered_count();
        let rng = &mut self.rng;
        let mut works = |when: When| match when {
            When::Never => false,
            When::Always => true,
            When::Chance(chance) => rng.random_range(0..1000) < chance,
            When::FromOrder(order) => delivered >= order.0,
            When::Between(from, to) => from <= passed && passed < to,
        };
        let found = self.armed.iter().find(|a| which(&a.strategy.deed) && works(a.strategy.when));
        found.map(|armed| armed.strategy.deed)
    }

    /// The same, but once for each occasion.
    pub(super) fn once(
        &mut self,
        which: impl Fn(&Deed) -> bool,
        occasion: (u64, u64),
    ) -> Option<Deed> {
        let fresh = |a: &Armed| which(&a.strategy.deed) && !a.used.contains(&occasion);
        let index = self.armed.iter().position(fresh)?;
        let deed = self.armed[index].strategy.deed;
        self.at_work(|d| *d == deed)?;
        let used = &mut self.armed[index].used;
        if used.len() == USED {
            used.pop_front();
        }
        used.push_back(occasion);
        Some(deed)
    }

    /// Writes a body, if nothing is wrong with it or if something is.
    pub(super) fn say(&mut self, body: &Body<'_>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        if let Body::Change(change) = body {
            self.segment = self.segment.max(change.term.next());
        }
        self.outbox.push(bytes);
    }

    /// The same, after so long.
    pub(super) fn say_later(&mut self, after: Micros, body: &Body<'_>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.postpone(after, bytes);
    }

    fn postpone(&mut self, after: Micros, bytes: Vec<u8>) {
        let at = self.later.back().map_or(Micros(0), |(at, _)| *at).max(self.now.plus(after));
        if self.later.len() < WAITING {
            self.later.push_back((at, bytes));
        }
    }

    /// A frame of a replica's comes to nothing: it will be told.
    pub(super) fn keep_back(&mut self) {
        (self.resync, self.tampered) = (true, true);
    }

    fn flush(&mut self) {
        let slow = self.at_work(|deed| *deed == Deed::Slow).is_some();
        for body in std::mem::take(&mut self.outbox) {
            // Frames keep their order: behind one that waits all wait.
            if slow || !self.later.is_empty() {
                let delay = if slow { Micros(self.patience.0 * 9 / 10) } else { Micros(0) };
                self.postpone(delay, body);
            } else {
                self.write(&body);
            }
        }
        while self.later.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, body) = self.later.pop_front().expect("there is one");
            self.write(&body);
        }
    }

    fn write(&mut self, body: &[u8]) {
        let at = self.head();
        if self.registers.write(self.next, body).is_ok() {
            self.next = self.next.next();
            self.spoil(at, body);
        } else {
            self.keep_back();
        }
    }
}
