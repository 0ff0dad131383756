//! A whole cluster in one thread: real hosts, registers and replicas, with a network that delivers
//! whatever the story does not break, and a clock that the story moves.

use std::collections::BTreeMap;
use std::sync::Arc;

use host_agent::{Host, HostConfig, Input as HostInput, Now};
use protocol::application::{Application, Log};
use protocol::messages::{OrderMessage, ToClient, ToServer};
use protocol::replica::{Config, Input, Lookup, Output, Replica};
use protocol::snapshot::Snapshot;
use shared_registers::crypto::{ClusterId, MacKey, Secret};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, Seq, ServerId, Term};
use shared_registers::layout::Geometry;
use shared_registers::limits::RegisterLimits;
use shared_registers::record::Body;
use shared_registers::words::VecWords;

pub(crate) const CLUSTER: ClusterId = ClusterId([3; 32]);
pub(crate) const CLIENTS: u32 = 4;
pub(crate) const CHANGE_MS: u64 = 100;
pub(crate) const HOST_DOWN_MS: u64 = 20;

type Memory = Arc<VecWords>;

pub(crate) struct Server {
    pub(crate) host: Host<Memory, Memory>,
    pub(crate) registers: GuestRegisters<Memory, Memory>,
    pub(crate) replica: Replica,
    files: (Memory, Memory),
    pub(crate) host_up: bool,
    pub(crate) guest_up: bool,
}

pub(crate) struct Cluster {
    pub(crate) n: usize,
    pub(crate) now: Micros,
    pub(crate) servers: Vec<Server>,
    /// `links[i][j]`: whether hosts i and j are connected.
    links: Vec<Vec<bool>>,
    /// How often hosts exchange their lengths.
    pub(crate) heartbeat_us: u64,
    /// `K` of section 6.
    checkpoint_weight: u64,
    /// What each client got from each server, in the order in which it came.
    pub(crate) received: BTreeMap<(ClientId, ServerId), Vec<ToClient>>,
}

pub(crate) fn order_key(client: u32, server: usize) -> MacKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(u64::from(client) << 8 | server as u64).to_le_bytes());
    Secret::new(bytes).mac_key()
}

/// An order of `client`, with right MACs for all hosts.
pub(crate) fn order(
    n: usize,
    client: u32,
    session: u64,
    count: u64,
    payload: &[u8],
) -> OrderMessage {
    let keys: Vec<_> = (0..n).map(|server| order_key(client, server)).collect();
    let id = OrderId { client: ClientId(client), session, count };
    OrderMessage::new(&CLUSTER, id, payload.to_vec(), &keys)
}

fn geometry(n: usize, server: usize) -> Geometry {
    let limits =
        RegisterLimits { max_payload_bytes: 4096, ring_bytes: 1 << 23, write_ring_bytes: 1 << 22 };
    Geometry { n, server: ServerId(server as u16), cluster: CLUSTER, limits }
}

pub(crate) fn config(n: usize, me: usize, checkpoint_weight: u64) -> Config {
    Config {
        me: ServerId(me as u16),
        n,
        clients: CLIENTS,
        cluster: CLUSTER,
        max_payload_bytes: 4096,
        window: 16,
        checkpoint_weight,
        soft_batch_bytes: 1 << 18,
        change: Micros::from_ms(CHANGE_MS),
        change_cap: Micros::from_ms(64 * CHANGE_MS),
        host_down: Micros::from_ms(HOST_DOWN_MS),
        retain_messages: 10_000,
        retain_bytes: 1 << 24,
    }
}

fn replica(n: usize, me: usize, checkpoint_weight: u64) -> Replica {
    let application: Box<dyn Application> = Box::new(Log);
    Replica::new(config(n, me, checkpoint_weight), application)
}

impl Cluster {
    pub(crate) fn new(f: usize) -> Cluster {
        Cluster::with_checkpoints(f, 1 << 21)
    }

    pub(crate) fn with_checkpoints(f: usize, checkpoint_weight: u64) -> Cluster {
        let n = 2 * f + 1;
        let mut cluster = Cluster {
            n,
            now: Micros(1_000_000),
            servers: Vec::new(),
            links: vec![vec![false; n]; n],
            heartbeat_us: 10_000,
            checkpoint_weight,
            received: BTreeMap::new(),
        };
        for i in 0..n {
            let geometry = geometry(n, i);
            let words = |bytes: u64| Arc::new(VecWords::new((bytes / 8) as usize));
            let files = (words(geometry.read_file_bytes()), words(geometry.write_file_bytes()));
            let registers = HostRegisters::create(geometry, files.0.clone(), files.1.clone());
            let order_keys = (0..CLIENTS).map(|client| order_key(client, i)).collect();
            let config = HostConfig { order_keys, exchange: Micros::from_ms(10) };
            let host = Host::new(config, registers.unwrap(), cluster.clock());
            let registers =
                GuestRegisters::attach(geometry, files.0.clone(), files.1.clone()).unwrap();
            let replica = replica(n, i, checkpoint_weight);
            let server = Server { host, registers, replica, files, host_up: true, guest_up: true };
            cluster.servers.push(server);
        }
        for i in 0..n {
            for j in 0..i {
                cluster.connect(i, j);
            }
        }
        cluster.settle();
        cluster
    }

    fn clock(&self) -> Now {
        Now { wall: self.now, mono: self.now }
    }

    pub(crate) fn connect(&mut self, i: usize, j: usize) {
        for (a, b) in [(i, j), (j, i)] {
            self.links[a][b] = true;
            let now = self.clock();
            let up = HostInput::PeerUp(ServerId(b as u16));
            self.servers[a].host.step(now, up).unwrap();
        }
    }

    pub(crate) fn disconnect(&mut self, i: usize, j: usize) {
        for (a, b) in [(i, j), (j, i)] {
            self.links[a][b] = false;
            let now = self.clock();
            let down = HostInput::PeerDown(ServerId(b as u16));
            self.servers[a].host.step(now, down).unwrap();
        }
    }

    pub(crate) fn kill_guest(&mut self, i: usize) {
        self.servers[i].guest_up = false;
    }

    pub(crate) fn kill_host(&mut self, i: usize) {
        self.servers[i].host_up = false;
        self.servers[i].guest_up = false;
        for j in (0..self.n).filter(|j| *j != i) {
            self.disconnect(i, j);
        }
    }

    /// A clean guest in the place of whatever was there (P6).
    pub(crate) fn restart_guest(&mut self, i: usize) {
        let (read, write) = self.servers[i].files.clone();
        let server = &mut self.servers[i];
        server.registers = GuestRegisters::attach(geometry(self.n, i), read, write).unwrap();
        server.replica = replica(self.n, i, self.checkpoint_weight);
        self.pump_hosts();
        assert!(self.servers[i].registers.drained(), "P6: the host takes what was left");
        self.servers[i].guest_up = true;
    }

    /// A clean guest that starts from the snapshot that server `of` has.
    pub(crate) fn restart_from_snapshot(&mut self, i: usize, of: usize) {
        self.restart_guest(i);
        let snapshot = self.servers[of].replica.snapshot().expect("it has one").clone();
        let (checkpoint, parts) = (snapshot.checkpoint().clone(), snapshot.parts().to_vec());
        let cut = checkpoint.cut.clone();
        let copy = Snapshot::assemble(checkpoint, snapshot.manifest().clone(), parts).unwrap();
        let config = config(self.n, i, self.checkpoint_weight);
        let server = &mut self.servers[i];
        server.replica = Replica::from_snapshot(config, Box::new(Log), copy).unwrap();
        for (writer, cut) in ServerId::all(self.n).zip(cut) {
            for _ in 0..cut {
                assert!(matches!(server.registers.next(writer), Next::Record(_)));
                server.registers.advance(writer);
            }
        }
    }

    /// Lets everything happen that happens without time passing.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut any = self.pump_hosts();
            for i in 0..self.n {
                any |= self.pump_guest(i);
            }
            if !any {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// As [`Self::settle`], but a guest looks only when its host rings it, as those do that sleep in
    /// between. Returns how often each looked.
    pub(crate) fn settle_by_ringing(&mut self) -> Vec<u32> {
        let mut looks = vec![0; self.n];
        (0..self.n).for_each(|i| self.doze(i));
        for _ in 0..10_000 {
            let mut any = self.pump_hosts();
            for (i, looks) in looks.iter_mut().enumerate() {
                if self.servers[i].host.must_ring() {
                    any = true;
                    *looks += 1;
                    self.pump_guest(i);
                    self.doze(i);
                }
            }
            if !any {
                return looks;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn pump_hosts(&mut self) -> bool {
        let mut any = false;
        let now = self.clock();
        for i in 0..self.n {
            if !self.servers[i].host_up {
                continue;
            }
            while self.servers[i].host.has_frames() {
                self.servers[i].host.step(now, HostInput::Guest).unwrap();
                any = true;
            }
            for j in (0..self.n).filter(|j| *j != i) {
                let mut frame = Vec::new();
                while self.links[i][j]
                    && self.servers[i].host.next_frame(ServerId(j as u16), &mut frame)
                {
                    any = true;
                    let input = HostInput::PeerFrame(ServerId(i as u16), &frame);
                    self.servers[j].host.step(now, input).unwrap();
                }
            }
        }
        any
    }

    /// A guest goes to sleep, unless there is something that it wants.
    fn doze(&mut self, i: usize) {
        while self.servers[i].guest_up {
            let Server { replica, registers, .. } = &mut self.servers[i];
            let wanted = replica.wanted();
            registers.doze(wanted);
            if !registers.has_news(wanted) {
                return;
            }
            self.pump_guest(i);
        }
    }

    /// A guest looks, because of the clock.
    pub(crate) fn look(&mut self, i: usize) {
        self.pump_guest(i);
    }

    fn pump_guest(&mut self, i: usize) -> bool {
        let server = &mut self.servers[i];
        if !server.guest_up {
            return false;
        }
        let (mut any, mut out) = (false, Vec::new());
        loop {
            let mut progress = false;
            for writer in ServerId::all(self.n) {
                while let Next::Record(record) = server.registers.next(writer) {
                    if !server.replica.can_read(&record.stamp) {
                        break;
                    }
                    server.replica.step(self.now, Input::Record(record), &mut out);
                    server.registers.advance(writer);
                    progress = true;
                }
            }
            if !progress {
                break;
            }
            any = true;
        }
        if let Some(notice) = server.registers.drop_notice() {
            server.replica.step(self.now, Input::Dropped(notice), &mut out);
        }
        let hints: Vec<_> = server.registers.hints().collect();
        server.replica.step(self.now, Input::Hints(&hints), &mut out);
        let (me, limits) = (ServerId(i as u16), server.registers.geometry().limits);
        server.replica.on_room(server.registers.room(me), &limits);
        server.replica.step(self.now, Input::Idle, &mut out);
        self.carry_out(i, out) || any
    }

    fn carry_out(&mut self, i: usize, out: Vec<Output>) -> bool {
        let any = !out.is_empty();
        let me = ServerId(i as u16);
        for output in out {
            match output {
                Output::Write { seq, body } => {
                    self.servers[i].registers.write(seq, &body).unwrap();
                }
                Output::ToClient(client, message) => {
                    self.received.entry((client, me)).or_default().push(message);
                }
                Output::Forward(to, order) => {
                    if self.servers[to.index()].guest_up {
                        let mut more = Vec::new();
                        let input = Input::Forward(me, order);
                        self.servers[to.index()].replica.step(self.now, input, &mut more);
                        self.carry_out(to.index(), more);
                    }
                }
            }
        }
        any
    }

    /// A client's message reaches server `to`.
    pub(crate) fn deliver(&mut self, to: usize, client: u32, message: ToServer) {
        if self.servers[to].guest_up {
            let (mut out, input) = (Vec::new(), Input::Client(ClientId(client), message));
            self.servers[to].replica.step(self.now, input, &mut out);
            self.carry_out(to, out);
        }
    }

    pub(crate) fn send(&mut self, to: usize, order: OrderMessage) {
        self.deliver(to, order.id.client.0, ToServer::Order(order));
    }

    pub(crate) fn send_all(&mut self, order: &OrderMessage) {
        for to in 0..self.n {
            self.send(to, order.clone());
        }
    }

    /// Time passes, a millisecond at a time.
    pub(crate) fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now.plus(Micros(1000));
            if self.now.0.is_multiple_of(self.heartbeat_us) {
                let now = self.clock();
                for server in self.servers.iter_mut().filter(|server| server.host_up) {
                    server.host.step(now, HostInput::Tick).unwrap();
                }
            }
            self.settle();
        }
    }

    /// Time passes until `done`, at most `ms`; returns how many milliseconds it took.
    pub(crate) fn pass_until(&mut self, ms: u64, done: impl Fn(&Cluster) -> bool) -> u64 {
        for passed in 0..ms {
            self.settle();
            if done(self) {
                return passed;
            }
            self.pass(1);
        }
        panic!("not within {ms} ms: {:?}", self.live().map(|i| self.status(i)).collect::<Vec<_>>());
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n).filter(|i| self.servers[*i].guest_up)
    }

    pub(crate) fn status(&self, i: usize) -> (Term, OrderNumber) {
        let status = self.servers[i].replica.status();
        (status.term, status.delivered)
    }

    pub(crate) fn counter(&self, i: usize, name: &str) -> u64 {
        let counters = self.servers[i].replica.status().counters;
        counters.iter().find(|(n, _)| n == name).expect("a counter of that name").1
    }

    /// Whether every live server has delivered `count` messages.
    pub(crate) fn delivered(&self, count: u64) -> bool {
        self.live().all(|i| self.status(i).1.0 == count)
    }

    /// The one order, as `i` has it: whose message, which of theirs.
    pub(crate) fn log(&self, i: usize) -> Vec<(u32, u64, Vec<u8>)> {
        let mut log = Vec::new();
        while let Lookup::Found(ToClient::Delivery(delivery)) =
            self.servers[i].replica.delivery(OrderNumber(log.len() as u64 + 1), true)
        {
            let protocol::messages::Body::Here(payload) = delivery.payload else { panic!() };
            log.push((delivery.id.client.0, delivery.id.count, payload.into()));
        }
        log
    }

    /// Checks that all live servers have the same order; returns it.
    pub(crate) fn one_order(&self) -> Vec<(u32, u64, Vec<u8>)> {
        let mut logs = self.live().map(|i| self.log(i));
        let first = logs.next().expect("somebody lives");
        assert!(logs.all(|log| log == first), "the servers disagree");
        first
    }

    /// Who sent `client` a reply to order `count`, and with which order number and bytes.
    pub(crate) fn replies(&self, client: u32, count: u64) -> Vec<(usize, u64, bool)> {
        let replies = self.received.iter().filter(|((c, _), _)| c.0 == client);
        let mut found = Vec::new();
        for ((_, server), messages) in replies {
            for message in messages {
                if let ToClient::Reply(reply) = message
                    && reply.count == count
                {
                    let bytes = matches!(reply.body, protocol::messages::Body::Here(_));
                    found.push((server.index(), reply.order.0, bytes));
                }
            }
        }
        found
    }

    /// What a broken-in guest writes into its stream.
    pub(crate) fn forge(&mut self, i: usize, body: &Body<'_>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        let seq = self.servers[i].host.registers().copied(ServerId(i as u16)).next();
        self.forge_at(i, seq, &bytes);
    }

    pub(crate) fn forge_at(&mut self, i: usize, seq: Seq, bytes: &[u8]) {
        let _ = self.servers[i].registers.drop_notice();
        self.servers[i].registers.write(seq, bytes).unwrap();
        self.pump_hosts();
    }

    /// Drops that the host of `i` has told of.
    pub(crate) fn drops(&self, i: usize) -> u64 {
        self.servers[i].host.registers().drops()
    }
}
