//! Two correct replicas over three real hosts; the third guest writes what it likes, or runs a
//! third replica. Clients say anything, frames and records move when the story says so, and guests
//! and hosts start again. In a calm story everything also moves after every act: that gets far, to
//! deliveries and later terms, where a wild one seldom comes.
//!
//! After every act: nothing goes back, and every queue is within its bound. In the end everything
//! is brought everywhere, and then the correct replicas must have one order (DA2, DA4), in which
//! nothing stands that no client sent, and nothing twice (DA3); and whoever reads the same streams
//! in another order must conclude the same (section 4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use host_agent::{Host, Input as HostInput, Now};
use protocol::application::Log;
use protocol::limits::OWN_FRAMES_IN_FLIGHT;
use protocol::messages::{self, OrderMessage, ToClient, ToServer};
use protocol::replica::{Config, Input, Lookup, Output, Replica};
use shared_registers::crypto::Digest;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{
    Batch, ClientId, Micros, OrderId, OrderNumber, Position, Seq, ServerId,
};
use shared_registers::record::{Body, Record};

use crate::acts;
use crate::drafts::{BodyDraft, CLIENTS, CLUSTER, Facts, MAX_PAYLOAD, N, OrderDraft};
use crate::files::{Memory, geometry, host_config, memory};

/// Rings of this size are full after some hundred records.
const RING_BYTES: u64 = 1 << 15;
/// The guest that may be broken into: the first sequencer's.
const LIAR: usize = 0;
/// Rounds until everything is everywhere: far more than there are records.
const MAX_ROUNDS: usize = 2000;
/// A CHANGE and an opening are written also when the queue of frames is full.
const MAX_FRAMES: usize = OWN_FRAMES_IN_FLIGHT + 2;
/// Frames that a guest had no room for, at most; the rest it would write anew.
const MAX_UNWRITTEN: usize = MAX_FRAMES;

#[derive(Arbitrary, Debug)]
enum Act<'a> {
    /// A client's order comes to a guest.
    Order { to: u8, order: OrderDraft },
    /// So many orders of a client's session 1 come to a guest, all right, from its first on or from
    /// a later one.
    Orders { to: u8, client: u8, from: u8, len: u8 },
    /// A client asks for a reply.
    Fetch { to: u8, order: OrderDraft },
    /// The guest that lies forwards an order.
    Forward { to: u8, order: OrderDraft },
    /// The guest that lies writes.
    Lie { body: BodyDraft<'a> },
    /// A guest's host looks at its frames.
    Admit { server: u8 },
    /// So many frames go from one host to another.
    Relay { from: u8, to: u8, count: u8 },
    /// A guest reads so many records of a stream.
    Read { guest: u8, writer: u8, count: u8 },
    /// A guest hears its host's hints and drop notice, and acts.
    Idle { guest: u8 },
    /// Everything moves once between all.
    Round,
    /// Time passes.
    Pass { ms: u16 },
    /// A link between hosts breaks, or is made.
    Link { between: u8, up: bool },
    /// A guest starts again, with nothing but its registers (P6).
    RestartGuest { guest: u8 },
    /// A host starts again with its files (R6).
    RestartHost { server: u8 },
}

struct Server {
    host: Host<Memory, Memory>,
    guest: GuestRegisters<Memory, Memory>,
    /// None: this guest is broken into.
    replica: Option<Replica>,
    files: (Memory, Memory),
    /// Frames for which there was no room.
    unwritten: VecDeque<(Seq, Vec<u8>)>,
    /// What the replica had delivered when last seen: it never goes back.
    delivered: OrderNumber,
}

struct World {
    servers: Vec<Server>,
    links: [bool; N],
    now: Micros,
    /// All orders that clients sent with a right MAC for at least one host.
    sent: BTreeSet<(OrderId, Digest)>,
}

/// The replicas' story: see the [module](self).
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let mode = bytes.arbitrary::<u8>().unwrap_or(0);
    let (lies, calm) = (mode & 3 != 0, mode & 12 != 0);
    let mut world = World::new(lies);
    acts(&mut bytes, |act| {
        world.act(act);
        if calm {
            world.round();
        }
        world.check();
    });
    world.settle();
    world.check();
    world.check_one_order();
    world.check_second_reading();
}

/// What a replica of these stories is told.
pub(crate) fn config(me: usize) -> Config {
    Config {
        me: ServerId(me as u16),
        n: N,
        clients: CLIENTS,
        cluster: CLUSTER,
        max_payload_bytes: MAX_PAYLOAD,
        window: 16,
        checkpoint_weight: RING_BYTES / 4,
        soft_batch_bytes: RING_BYTES as usize / 32,
        change: Micros::from_ms(100),
        change_cap: Micros::from_ms(6400),
        host_down: Micros::from_ms(20),
        retain_messages: 10_000,
        retain_bytes: 1 << 24,
    }
}

fn new_replica(me: usize) -> Replica {
    Replica::new(config(me), Box::new(Log))
}

impl Server {
    fn new(i: usize, lies: bool) -> Server {
        let geometry = geometry(i, RING_BYTES);
        let files = memory(&geometry);
        let registers = HostRegisters::create(geometry, files.0.clone(), files.1.clone())
            .expect("files of the right size");
        let guest = GuestRegisters::attach(geometry, files.0.clone(), files.1.clone())
            .expect("files of the right size");
        Server {
            host: Host::new(host_config(i), registers, Now::default()),
            guest,
            replica: (!(lies && i == LIAR)).then(|| new_replica(i)),
            files,
            unwritten: VecDeque::new(),
            delivered: OrderNumber(0),
        }
    }

    /// Reads the next record of `writer` if there is one that may be read (V0).
    fn read(&mut self, now: Micros, writer: ServerId, out: &mut Vec<Output>) -> bool {
        let Some(replica) = &mut self.replica else { return false };
        match self.guest.next(writer) {
            Next::Nothing => return false,
            Next::Reclaimed => panic!("no checkpoint is claimed here"),
            Next::Damaged => panic!("a host exposes a damaged record"),
            Next::Record(record) if replica.can_read(&record.stamp) => {
                replica.step(now, Input::Record(record), out);
            }
            Next::Record(_) => return false,
        }
        self.guest.advance(writer);
        true
    }

    fn write_waiting(&mut self) {
        while let Some((seq, body)) = self.unwritten.front() {
            if self.guest.write(*seq, body).is_err() {
                return;
            }
            self.unwritten.pop_front();
        }
    }
}

impl World {
    fn new(lies: bool) -> World {
        let servers = (0..N).map(|i| Server::new(i, lies)).collect();
        let now = Micros(1_000_000);
        let mut world = World { servers, links: [false; N], now, sent: BTreeSet::new() };
        (0..N).for_each(|between| world.link(between, true));
        world
    }

    fn clock(&self) -> Now {
        Now { wall: self.now, mono: self.now }
    }

    fn act(&mut self, act: Act<'_>) {
        let server = |i: u8| usize::from(i) % N;
        match act {
            Act::Order { to, order } => self.order(server(to), order),
            Act::Orders { to, client, from, len } => {
                let first = 1 + 4 * u64::from(from.saturating_sub(128));
                for count in first..first + u64::from(len % 64) {
                    let client = ClientId(u32::from(client) % CLIENTS);
                    self.right_order(server(to), OrderId { client, session: 1, count });
                }
            }
            Act::Fetch { to, order } => {
                let OrderId { client, session, count } = order.id();
                let fetch = ToServer::FetchReply { session, count };
                self.step(server(to), Input::Client(client, fetch));
            }
            Act::Forward { to, order } => {
                self.note(order);
                let forwarder = ServerId(LIAR as u16);
                self.step(server(to), Input::Forward(forwarder, order.message()));
            }
            Act::Lie { body } => self.lie(&body),
            Act::Admit { server: i } => {
                self.admit(server(i));
            }
            Act::Relay { from, to, count } => {
                self.relay(server(from), server(to), usize::from(count));
            }
            Act::Read { guest, writer, count } => {
                let writer = ServerId(server(writer) as u16);
                for _ in 0..count {
                    if !self.read(server(guest), writer) {
                        break;
                    }
                }
            }
            Act::Idle { guest } => {
                self.idle(server(guest));
            }
            Act::Round => {
                self.round();
            }
            Act::Pass { ms } => {
                self.now = self.now.plus(Micros::from_ms(u64::from(ms % 512)));
                let now = self.clock();
                for server in &mut self.servers {
                    server.host.step(now, HostInput::Tick).expect("only peers' frames fail");
                }
            }
            Act::Link { between, up } => self.link(server(between), up),
            Act::RestartGuest { guest } => self.restart_guest(server(guest)),
            Act::RestartHost { server: i } => self.restart_host(server(i)),
        }
    }

    /// Remembers that a client made this order, if any host would take it.
    fn note(&mut self, order: OrderDraft) {
        if (0..N).any(|host| order.is_right_for(host)) {
            let digest = shared_registers::order::digest(&CLUSTER, order.id(), &order.payload());
            self.sent.insert((order.id(), digest));
        }
    }

    fn order(&mut self, to: usize, order: OrderDraft) {
        self.note(order);
        let message = ToServer::Order(order.message());
        self.step(to, Input::Client(order.client(), message));
    }

    fn right_order(&mut self, to: usize, id: OrderId) {
        let keys: Vec<_> = (0..N).map(|host| crate::drafts::order_key(host, id.client.0)).collect();
        let message = OrderMessage::new(&CLUSTER, id, Vec::new(), &keys);
        self.sent.insert((id, shared_registers::order::digest(&CLUSTER, id, &[])));
        self.step(to, Input::Client(id.client, ToServer::Order(message)));
    }

    fn step(&mut self, i: usize, input: Input<'_>) {
        let mut out = Vec::new();
        if let Some(replica) = &mut self.servers[i].replica {
            replica.step(self.now, input, &mut out);
        }
        self.carry_out(i, out);
    }

    fn carry_out(&mut self, i: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Write { seq, body } => {
                    let server = &mut self.servers[i];
                    server.unwritten.push_back((seq, body));
                    server.write_waiting();
                    assert!(server.unwritten.len() <= MAX_UNWRITTEN, "frames pile up");
                }
                Output::ToClient(client, _) => assert!(client.0 < CLIENTS, "to no client"),
                Output::Forward(to, order) => {
                    assert_ne!(to.index(), i, "forwarded to itself");
                    self.step(to.index(), Input::Forward(ServerId(i as u16), order));
                }
            }
        }
    }

    /// What is true in the cluster, for lies that are nearly true.
    fn facts(&self) -> Facts {
        let mut facts = Facts { chains: vec![Digest::of(&[&CLUSTER.0])], ..Facts::default() };
        for replica in self.servers.iter().filter_map(|server| server.replica.as_ref()) {
            let status = replica.status();
            facts.chains.push(status.chain);
            facts.term = facts.term.max(status.term);
            facts.batch = facts.batch.max(Batch(status.committed));
        }
        let mut bytes = Vec::new();
        let registers = self.servers[LIAR].host.registers();
        for writer in ServerId::all(N) {
            for seq in 1..=registers.exposed(writer).0 {
                bytes.clear();
                registers.record(writer, Seq(seq), &mut bytes);
                let record = Record::decode(&bytes, N).expect("only records are exposed");
                match Body::decode(record.body, N) {
                    Ok(Body::Change(change)) => {
                        facts.changes.push((change.term, Position { writer, seq: Seq(seq) }));
                    }
                    Ok(Body::Accept(accept)) => {
                        facts.chains.extend(accept.vote.map(|vote| vote.chain));
                    }
                    _ => {}
                }
            }
        }
        facts
    }

    fn lie(&mut self, body: &BodyDraft<'_>) {
        if self.servers[LIAR].replica.is_some() {
            return;
        }
        let body = body.encode(LIAR, &self.facts());
        if let Ok(Body::Propose(propose)) = Body::decode(&body, N) {
            for order in &propose.orders {
                if crate::drafts::verifies(LIAR, order) {
                    let digest = shared_registers::order::digest(&CLUSTER, order.id, order.payload);
                    self.sent.insert((order.id, digest));
                }
            }
        }
        let server = &mut self.servers[LIAR];
        let _ = server.guest.drop_notice();
        let seq = server.host.registers().copied(ServerId(LIAR as u16)).next();
        let _ = server.guest.write(seq, &body);
        self.admit(LIAR);
    }

    fn admit(&mut self, i: usize) -> bool {
        let now = self.clock();
        let host = &mut self.servers[i].host;
        let any = host.has_frames();
        while host.has_frames() {
            host.step(now, HostInput::Guest).expect("only peers' frames fail");
        }
        self.servers[i].write_waiting();
        any
    }

    /// Moves frames over a link that is up; the link of two servers is named by the third.
    fn relay(&mut self, from: usize, to: usize, count: usize) -> bool {
        let (now, mut frame, mut any) = (self.clock(), Vec::new(), false);
        if from == to || !self.links[N - from - to] {
            return false;
        }
        for _ in 0..count {
            if !self.servers[from].host.next_frame(ServerId(to as u16), &mut frame) {
                break;
            }
            any = true;
            let input = HostInput::PeerFrame(ServerId(from as u16), &frame);
            self.servers[to].host.step(now, input).expect("hosts are honest");
        }
        any
    }

    fn link(&mut self, between: usize, up: bool) {
        self.links[between] = up;
        let now = self.clock();
        let ends: Vec<_> = (0..N).filter(|i| *i != between).collect();
        for (here, there) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let there = ServerId(there as u16);
            let input = if up { HostInput::PeerUp(there) } else { HostInput::PeerDown(there) };
            self.servers[here].host.step(now, input).expect("only peers' frames fail");
        }
    }

    fn read(&mut self, i: usize, writer: ServerId) -> bool {
        let mut out = Vec::new();
        let any = self.servers[i].read(self.now, writer, &mut out);
        self.carry_out(i, out);
        any
    }

    fn idle(&mut self, i: usize) -> bool {
        let Server { guest, replica, unwritten, .. } = &mut self.servers[i];
        let Some(replica) = replica else { return false };
        let mut out = Vec::new();
        if let Some(notice) = guest.drop_notice() {
            unwritten.clear();
            replica.step(self.now, Input::Dropped(notice), &mut out);
        }
        let hints: Vec<_> = guest.hints().collect();
        replica.step(self.now, Input::Hints(&hints), &mut out);
        replica.step(self.now, Input::Idle, &mut out);
        let any = !out.is_empty();
        self.carry_out(i, out);
        any
    }

    /// Everything moves once. Returns whether anything did.
    fn round(&mut self) -> bool {
        let mut any = false;
        for i in 0..N {
            any |= self.admit(i);
            for to in 0..N {
                any |= self.relay(i, to, usize::MAX);
            }
        }
        for i in 0..N {
            // Streams wait for each other (V0): go round until none has anything.
            while ServerId::all(N).map(|writer| self.read(i, writer)).fold(false, |a, b| a | b) {
                any = true;
            }
            any |= self.idle(i);
        }
        any
    }

    fn restart_guest(&mut self, i: usize) {
        if self.servers[i].replica.is_none() {
            return;
        }
        let server = &mut self.servers[i];
        let (read, write) = server.files.clone();
        let attached = GuestRegisters::attach(geometry(i, RING_BYTES), read, write);
        server.guest = attached.expect("files of the right size");
        server.unwritten.clear();
        self.admit(i);
        let server = &mut self.servers[i];
        // P6: it reads only once its host has drained its write file, which one whose stream is
        // full does not do: that guest stays out.
        if server.guest.drained() {
            (server.replica, server.delivered) = (Some(new_replica(i)), OrderNumber(0));
        } else {
            server.replica = None;
        }
    }

    fn restart_host(&mut self, i: usize) {
        for between in (0..N).filter(|between| *between != i) {
            if self.links[between] {
                self.link(between, false);
            }
        }
        let server = &mut self.servers[i];
        let (read, write) = server.files.clone();
        let registers = HostRegisters::reopen(geometry(i, RING_BYTES), read, write)
            .expect("a host's own file is whole");
        let now = Now { wall: self.now, mono: self.now };
        server.host = Host::new(host_config(i), registers, now);
    }

    fn check(&mut self) {
        for server in &mut self.servers {
            let Some(replica) = &server.replica else { continue };
            for queue in replica.queues() {
                assert!(queue.length <= queue.bound, "{queue:?}");
            }
            assert!(server.delivered <= replica.last_delivered());
            server.delivered = replica.last_delivered();
        }
    }

    /// All links are made and everything is brought everywhere, without time passing.
    fn settle(&mut self) {
        for between in 0..N {
            self.link(between, false);
            self.link(between, true);
        }
        for _ in 0..MAX_ROUNDS {
            if !self.round() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn check_one_order(&self) {
        let replicas: Vec<_> = self.servers.iter().filter_map(|s| s.replica.as_ref()).collect();
        let mut logs = replicas.iter().map(|replica| self.log(replica));
        let Some(first) = logs.next() else { return };
        for log in logs {
            let common = first.len().min(log.len());
            assert_eq!(first[..common], log[..common], "DA2, DA4: the order is not one");
        }
    }

    /// Section 4: what is concluded is a function of what was read. A replica that reads all of it at
    /// once, and the streams in the other order, concludes the same.
    fn check_second_reading(&self) {
        for (i, server) in self.servers.iter().enumerate() {
            let Some(first) = &server.replica else { continue };
            let (shape, mut second) = (geometry(i, RING_BYTES), new_replica(i));
            let (_, scratch) = memory(&shape);
            let mut registers = GuestRegisters::attach(shape, server.files.0.clone(), scratch)
                .expect("files of the right size");
            let mut progress = true;
            while std::mem::take(&mut progress) {
                for writer in ServerId::all(N).rev() {
                    while let Next::Record(record) = registers.next(writer) {
                        if !second.can_read(&record.stamp) {
                            break;
                        }
                        second.step(self.now, Input::Record(record), &mut Vec::new());
                        registers.advance(writer);
                        progress = true;
                    }
                }
            }
            let conclusions = |replica: &Replica| {
                let status = replica.status();
                (status.term, status.committed, status.chain, self.log(replica))
            };
            assert_eq!(conclusions(first), conclusions(&second), "section 4: read otherwise");
        }
    }

    /// The order as a replica has it, each delivery judged (C2, DA3).
    fn log(&self, replica: &Replica) -> Vec<(OrderId, Digest, Micros)> {
        let (mut log, mut last) = (Vec::new(), BTreeMap::new());
        let mut time = Micros(0);
        while let Lookup::Found(ToClient::Delivery(delivery)) =
            replica.delivery(OrderNumber(log.len() as u64 + 1), true)
        {
            let (id, digest) = (delivery.id, delivery.digest);
            let messages::Body::Here(payload) = &delivery.payload else {
                panic!("bytes were asked for")
            };
            assert_eq!(shared_registers::order::digest(&CLUSTER, id, payload), digest);
            assert!(self.sent.contains(&(id, digest)), "DA3: nobody sent {id}");
            let before: (u64, u64) =
                last.insert(id.client, (id.session, id.count)).unwrap_or_default();
            let next = id.session == before.0 && id.count == before.1 + 1;
            assert!(next || (id.session > before.0 && id.count == 1), "C2: {id} out of turn");
            assert!(time <= delivery.time, "C2: time goes back");
            time = delivery.time;
            log.push((id, digest, delivery.time));
        }
        log
    }
}
