//! A cluster of hosts in one thread, over plain memory. Every frame moves when the story says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use host_agent::{Host, HostConfig, Input, Now, Turn};
use shared_registers::crypto::{ClusterId, Digest, MacKey, Secret};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{Counter, HostRegisters};
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Seq, ServerId, Term};
use shared_registers::layout::{DropReason, Geometry, read};
use shared_registers::limits::RegisterLimits;
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Accept, Body, Change, Checkpoint, Propose, Reason, Record, Vote};
use shared_registers::words::{VecWords, Words, WordsMut};

pub(crate) type Memory = Arc<Disk>;
/// A file: what is in the machine's memory, and what is on its disk.
pub(crate) struct Disk {
    live: VecWords,
    synced: VecWords,
    /// It cannot be written any more.
    pub(crate) broken: AtomicBool,
}

/// Words of a page, which a disk writes whole.
const PAGE: usize = 512;

impl Disk {
    fn new(words: usize) -> Disk {
        let (live, synced) = (VecWords::new(words), VecWords::new(words));
        Disk { live, synced, broken: AtomicBool::new(false) }
    }

    fn copy(from: &VecWords, to: &VecWords, page: usize) {
        for i in page * PAGE..((page + 1) * PAGE).min(from.len()) {
            to.store(i, from.load(i, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The power fails. Of what was not synced the system has written those pages that `written`
    /// says.
    pub(crate) fn power_failure(&self, mut written: impl FnMut() -> bool) {
        for page in 0..self.live.len().div_ceil(PAGE) {
            match written() {
                true => Disk::copy(&self.live, &self.synced, page),
                false => Disk::copy(&self.synced, &self.live, page),
            }
        }
    }
}

impl Words for Disk {
    fn len(&self) -> usize {
        self.live.len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.live.load(index, order)
    }
}

impl WordsMut for Disk {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.live.store(index, value, order);
    }
    fn sync(&self) -> std::io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("no such sector"));
        }
        (0..self.live.len().div_ceil(PAGE))
            .for_each(|page| Disk::copy(&self.live, &self.synced, page));
        Ok(())
    }
}

pub(crate) type TestHost = Host<Memory, Memory>;

pub(crate) const CLUSTER: ClusterId = ClusterId([5; 32]);
pub(crate) const CLIENTS: u32 = 3;
pub(crate) const MAX_PAYLOAD: usize = 1000;
pub(crate) const EXCHANGE: Micros = Micros::from_ms(25);

pub(crate) fn order_key(host: u16, client: u32) -> MacKey {
    let mut key = [0; 32];
    (key[0], key[1]) = (host as u8 + 1, client as u8 + 1);
    Secret::new(key).mac_key()
}

pub(crate) fn encoded(body: &Body<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    body.encode(&mut out);
    out
}

/// A PROPOSE of batch 1 with one order per entry, each with the MAC for `host`.
pub(crate) fn propose(host: u16, orders: &[(u32, &[u8])]) -> Vec<u8> {
    let macs: Vec<_> = orders
        .iter()
        .zip(1..)
        .map(|((client, payload), count)| {
            let id = OrderId { client: ClientId(*client), session: 1, count };
            let digest = order::digest(&CLUSTER, id, payload);
            (id, digest, order::mac(&order_key(host, *client), &digest).0)
        })
        .collect();
    let views = macs.iter().zip(orders).map(|((id, digest, mac), (_, payload))| {
        let (id, digest) = (*id, *digest);
        OrderView { id, digest, mac, payload }
    });
    let (term, batch, evidence) = (Term(0), Batch(1), vec![]);
    encoded(&Body::Propose(Propose { term, batch, evidence, orders: views.collect() }))
}

pub(crate) fn accept(upto: u64) -> Vec<u8> {
    let vote = Some(Vote { upto: Batch(upto), chain: Default::default() });
    encoded(&Body::Accept(Accept { term: Term(0), vote, checkpoint: None }))
}

/// A claim of the snapshot of this digest, for what lies before `cut`.
pub(crate) fn claim(batch: u64, digest: u8, cut: &[u64]) -> Vec<u8> {
    let (batch, digest, cut) = (Batch(batch), Digest([digest; 32]), cut.to_vec());
    let checkpoint = Some(Checkpoint { term: Term(0), batch, digest, cut });
    encoded(&Body::Accept(Accept { term: Term(0), vote: None, checkpoint }))
}

pub(crate) fn change(term: u64) -> Vec<u8> {
    encoded(&Body::Change(Change { term: Term(term), reason: Reason::Batch }))
}

pub(crate) struct Server {
    pub(crate) host: Option<TestHost>,
    pub(crate) guest: GuestRegisters<Memory, Memory>,
    pub(crate) read: Memory,
    pub(crate) write: Memory,
    /// What the guest has written so far.
    pub(crate) written: u64,
}

pub(crate) struct World {
    pub(crate) n: usize,
    /// R6: records count when they are synced.
    pub(crate) durable: bool,
    pub(crate) ring_bytes: u64,
    pub(crate) now: Now,
    pub(crate) servers: Vec<Server>,
    links: BTreeSet<(u16, u16)>,
}

impl World {
    /// `n` servers, not connected.
    pub(crate) fn apart(n: usize) -> World {
        World::with_rings(n, 1 << 16)
    }

    /// As [`Self::apart`], with rings that may be smaller than a cluster's ever are.
    pub(crate) fn with_rings(n: usize, ring_bytes: u64) -> World {
        World::made(n, ring_bytes, false)
    }

    /// As [`Self::apart`], with durability `disk` or not (R6).
    pub(crate) fn durable(n: usize, durable: bool) -> World {
        World::made(n, 1 << 16, durable)
    }

    fn made(n: usize, ring_bytes: u64, durable: bool) -> World {
        let now = Now { wall: Micros(1_700_000_000_000_000), mono: Micros(0) };
        let (servers, links) = (vec![], BTreeSet::new());
        let mut world = World { n, durable, ring_bytes, now, servers, links };
        world.servers = (0..n as u16).map(|i| world.server(i)).collect();
        world
    }

    /// `n` servers, connected, and their first LENGTHS exchanged.
    pub(crate) fn new(n: usize) -> World {
        let mut world = World::apart(n);
        world.connect_all();
        world
    }

    /// Everybody is connected to everybody, and all that was to be said is said.
    pub(crate) fn connect_all(&mut self) {
        for (a, b) in pairs(self.n) {
            if !self.links.contains(&(a, b)) {
                self.connect(a, b);
            }
        }
        self.settle();
    }

    pub(crate) fn geometry(&self, i: u16) -> Geometry {
        let limits = RegisterLimits {
            max_payload_bytes: MAX_PAYLOAD,
            ring_bytes: self.ring_bytes,
            write_ring_bytes: 1 << 16,
        };
        Geometry { n: self.n, server: ServerId(i), cluster: CLUSTER, limits }
    }

    fn config(i: u16) -> HostConfig {
        let order_keys = (0..CLIENTS).map(|client| order_key(i, client)).collect();
        HostConfig { order_keys, exchange: EXCHANGE }
    }

    /// A server with empty files.
    pub(crate) fn server(&self, i: u16) -> Server {
        let geometry = self.geometry(i);
        let memory = |bytes: u64| Arc::new(Disk::new(bytes as usize / 8));
        let (read, write) =
            (memory(geometry.read_file_bytes()), memory(geometry.write_file_bytes()));
        let registers = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
        read.sync().unwrap();
        let registers = registers.durable(self.durable);
        let host = Some(Host::new(World::config(i), registers, self.now));
        let guest = GuestRegisters::attach(geometry, read.clone(), write.clone()).unwrap();
        Server { host, guest, read, write, written: 0 }
    }

    pub(crate) fn host(&mut self, i: u16) -> &mut TestHost {
        self.servers[usize::from(i)].host.as_mut().expect("a host that is down")
    }

    pub(crate) fn guest(&mut self, i: u16) -> &mut GuestRegisters<Memory, Memory> {
        &mut self.servers[usize::from(i)].guest
    }

    pub(crate) fn counter(&mut self, i: u16, counter: Counter) -> u64 {
        self.host(i).registers().counter(counter)
    }

    /// The counters of drops by `reason` as the guest sees them.
    pub(crate) fn dropped(&mut self, i: u16, reason: DropReason) -> u64 {
        self.guest(i).counters()[Counter::dropped(reason)]
    }

    /// Sum of a counter over all hosts that are up.
    pub(crate) fn total(&self, counter: Counter) -> u64 {
        let hosts = self.servers.iter().filter_map(|server| server.host.as_ref());
        hosts.map(|host| host.registers().counter(counter)).sum()
    }

    pub(crate) fn copied(&mut self, i: u16, writer: u16) -> u64 {
        self.host(i).registers().copied(ServerId(writer)).0
    }

    pub(crate) fn exposed(&mut self, i: u16) -> Vec<u64> {
        self.host(i).registers().exposed_all().to_vec()
    }

    /// Records of the longest stream; those that are not exposed, and CHANGEs among them.
    pub(crate) fn queues(&mut self, i: u16) -> [usize; 3] {
        let [here, waiting, changes, ..] = self.host(i).queues();
        [here, waiting, changes].map(|(_, length, _)| length)
    }

    /// The guest writes `body` for the next position and its host looks.
    pub(crate) fn write(&mut self, i: u16, body: &[u8]) {
        self.write_only(i, body);
        self.look(i);
    }

    /// The guest writes `body` for the next position, and nobody looks yet.
    pub(crate) fn write_only(&mut self, i: u16, body: &[u8]) {
        let server = &mut self.servers[usize::from(i)];
        server.written += 1;
        server.guest.write(Seq(server.written), body).unwrap();
    }

    pub(crate) fn look(&mut self, i: u16) -> Turn {
        let now = self.now;
        self.host(i).step(now, Input::Guest).unwrap()
    }

    pub(crate) fn connect(&mut self, a: u16, b: u16) {
        let now = self.now;
        self.links.insert((a.min(b), a.max(b)));
        self.host(a).step(now, Input::PeerUp(ServerId(b))).unwrap();
        self.host(b).step(now, Input::PeerUp(ServerId(a))).unwrap();
    }

    pub(crate) fn cut(&mut self, a: u16, b: u16) {
        let now = self.now;
        if !self.links.remove(&(a.min(b), a.max(b))) {
            return;
        }
        for (here, there) in [(a, b), (b, a)] {
            if let Some(host) = &mut self.servers[usize::from(here)].host {
                host.step(now, Input::PeerDown(ServerId(there))).unwrap();
            }
        }
    }

    /// A host dies; what it had not sent is gone with its links.
    pub(crate) fn crash(&mut self, i: u16) {
        self.servers[usize::from(i)].host = None;
        for other in 0..self.n as u16 {
            self.cut(i, other);
        }
    }

    /// It starts again, with its files as they are.
    pub(crate) fn restart(&mut self, i: u16) {
        let (read, write) = self.files(i);
        self.start(i, HostRegisters::reopen(self.geometry(i), read, write).unwrap());
    }

    /// It starts again and recovers, with what is intact of its files (R6).
    pub(crate) fn recover(&mut self, i: u16) {
        let (read, write) = self.files(i);
        self.start(i, HostRegisters::recover(self.geometry(i), read, write).unwrap());
    }

    fn start(&mut self, i: u16, registers: HostRegisters<Memory, Memory>) {
        self.servers[usize::from(i)].read.sync().unwrap();
        let host = Host::new(World::config(i), registers.durable(self.durable), self.now);
        self.servers[usize::from(i)].host = Some(host);
    }

    /// It dies, its files are gone, and it comes back: it recovers, connected with all that are up.
    pub(crate) fn replace(&mut self, i: u16) {
        self.crash(i);
        self.lose(i);
        self.join(i);
    }

    /// Its files are gone; it starts again and recovers, with new ones (R6).
    pub(crate) fn lose(&mut self, i: u16) {
        self.servers[usize::from(i)] = self.server(i);
        self.recover(i);
    }

    /// It starts with its files once more, though it has recovered elsewhere or was retired.
    pub(crate) fn zombie(&mut self, i: u16, files: (Memory, Memory)) -> TestHost {
        let registers = HostRegisters::reopen(self.geometry(i), files.0, files.1).unwrap();
        Host::new(World::config(i), registers, self.now)
    }

    pub(crate) fn files(&self, i: u16) -> (Memory, Memory) {
        let Server { read, write, .. } = &self.servers[usize::from(i)];
        (read.clone(), write.clone())
    }

    /// Connects a host with all that are up.
    pub(crate) fn join(&mut self, i: u16) {
        for other in (0..self.n as u16).filter(|other| *other != i) {
            if self.servers[usize::from(other)].host.is_some() {
                self.connect(i, other);
            }
        }
    }

    /// For which hosts one waits, if it recovers.
    pub(crate) fn waits(&mut self, i: u16) -> Option<Vec<u16>> {
        let hosts = self.host(i).waits_for()?;
        Some((0..self.n as u16).filter(|k| hosts >> k & 1 == 1).collect())
    }

    /// So many exchanges of lengths, and all that follows from them.
    pub(crate) fn exchanges(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
            self.settle();
        }
    }

    /// One frame goes from `a` to `b`, if there is one.
    pub(crate) fn send(&mut self, a: u16, b: u16) -> bool {
        let (now, mut frame) = (self.now, Vec::new());
        let linked = self.links.contains(&(a.min(b), a.max(b)));
        if !linked || !self.host(a).next_frame(ServerId(b), &mut frame) {
            return false;
        }
        self.host(b).step(now, Input::PeerFrame(ServerId(a), &frame)).unwrap();
        true
    }

    /// All that `a` owes `b` goes to it. Returns how many frames that were.
    pub(crate) fn send_all(&mut self, a: u16, b: u16) -> usize {
        std::iter::from_fn(|| self.send(a, b).then_some(())).count()
    }

    /// Everything goes everywhere, until nobody has anything to send.
    pub(crate) fn settle(&mut self) {
        while pairs(self.n).map(|(a, b)| self.send_all(a, b) + self.send_all(b, a)).sum::<usize>()
            > 0
        {}
    }

    /// So much time passes, and every host ticks.
    pub(crate) fn tick(&mut self) {
        self.now.mono = self.now.mono.plus(EXCHANGE);
        self.now.wall = self.now.wall.plus(EXCHANGE);
        let now = self.now;
        for host in self.servers.iter_mut().filter_map(|server| server.host.as_mut()) {
            host.step(now, Input::Tick).unwrap();
        }
    }

    /// The bodies of the records of `writer` that guest `i` has not read yet, with their stamps'
    /// `seen`; checks R2 and R3 on the way.
    pub(crate) fn read(&mut self, i: u16, writer: u16) -> Vec<(Vec<u64>, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            match self.guest(i).next(ServerId(writer)) {
                Next::Nothing => return out,
                Next::Reclaimed => panic!("a record that is gone"),
                Next::Damaged => panic!("a damaged record"),
                Next::Record(record) => {
                    assert_eq!(record.stamp.writer, ServerId(writer));
                    out.push((record.stamp.seen.to_vec(), record.body.to_vec()));
                }
            }
            self.guest(i).advance(ServerId(writer));
        }
    }

    /// Record `seq` of `writer` as it lies at host `i`, if it does.
    pub(crate) fn record(&mut self, i: u16, writer: u16, seq: u64) -> Option<Vec<u8>> {
        let (mut bytes, n) = (Vec::new(), self.n);
        let here = self.host(i).registers().record(ServerId(writer), Seq(seq), &mut bytes);
        here.then(|| Record::decode(&bytes, n).expect("whole").body.to_vec())
    }

    /// How many records of each stream host `i` has reclaimed.
    pub(crate) fn first(&mut self, i: u16) -> Vec<u64> {
        let n = self.n;
        ServerId::all(n).map(|writer| self.host(i).registers().first(writer).0).collect()
    }

    /// How many records of each stream host `i` has.
    pub(crate) fn copied_all(&mut self, i: u16) -> Vec<u64> {
        (0..self.n as u16).map(|writer| self.copied(i, writer)).collect()
    }

    /// A word of a host's read file.
    pub(crate) fn peek(&self, i: u16, word: usize) -> u64 {
        self.servers[usize::from(i)].read.load(word, Ordering::SeqCst)
    }

    /// Another word in its place.
    pub(crate) fn poke(&self, i: u16, word: usize, change: impl Fn(u64) -> u64) {
        let value = change(self.peek(i, word));
        self.servers[usize::from(i)].read.store(word, value, Ordering::SeqCst);
    }

    pub(crate) fn consumed(&self, i: u16) -> u64 {
        self.peek(i, read::CONSUMED)
    }
}

/// Every two servers once.
pub(crate) fn pairs(n: usize) -> impl Iterator<Item = (u16, u16)> {
    let n = n as u16;
    (0..n).flat_map(move |a| (a + 1..n).map(move |b| (a, b)))
}
