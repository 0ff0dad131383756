//! The engine: one heap of events in the order of virtual time, and what each of them does.
//!
//! Nothing here reads a clock, and nothing is random but what the seed's generator draws. Two
//! events of one moment come in the order in which they were scheduled. What belongs to the hosts
//! and their links is in `hosts`, to the guests in `servers`, to the payload network in `network`,
//! to the clients in `crowd`, and what goes wrong in `faults`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use protocol::messages::{OrderMessage, ToClient, ToGuest, ToServer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::{ClientId, Micros, ServerId};

use crate::crowd::Crowd;
use crate::faults::Fault;
use crate::guest::strategies::When;
use crate::history::History;
use crate::hosts::{LinkNews, Trusted};
use crate::network::Payload;
use crate::plan::Plan;
use crate::servers::Server;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A host looks at its guest's frames.
    HostLooks(ServerId),
    /// A host's exchange is due; of this incarnation.
    HostTick(ServerId, u64),
    /// A host learns that its link to a peer is up, or down.
    HostLink { host: ServerId, peer: ServerId, epoch: u64, link: LinkNews },
    /// A frame of a peer comes, on the link of this generation.
    HostFrame { to: ServerId, from: ServerId, generation: u64, bytes: Vec<u8> },
    /// Two hosts try to connect.
    LinkDial(ServerId, ServerId),
    /// A host agent starts again.
    HostStart(ServerId),
    /// A host agent dies that had reached one other host alone, and starts again so much later.
    HostDies { host: ServerId, reached: ServerId, back: Micros },
    /// An operator gives a server up.
    Retire(ServerId),
    /// A host agent reads that incarnations of a server below this one are over.
    HostFloor { host: ServerId, server: ServerId, below: u32 },
    /// A guest's doorbell rings.
    GuestBell(ServerId),
    /// A guest's timer; of this incarnation.
    GuestTimer(ServerId, u64),
    /// A guest starts again.
    GuestStart(ServerId),
    /// A guest learns that a client's connection is gone.
    GuestLost { server: ServerId, client: ClientId, epoch: u64 },
    /// A guest learns that its connection to another, of which it fetches, is gone.
    SourceLost { server: ServerId, source: ServerId, epoch: u64 },
    /// A client's message comes, on the connection of this generation.
    ToServer { client: ClientId, server: ServerId, generation: u64, message: ToServer },
    /// A guest's message comes to a client.
    ToClient { server: ServerId, client: ClientId, generation: u64, message: ToClient },
    /// A guest's order comes to another.
    Forward { from: ServerId, to: ServerId, epoch: u64, order: OrderMessage },
    /// A guest's question for a piece of a snapshot, or its answer, comes to another, on the
    /// connection of this generation.
    Transfer { from: ServerId, to: ServerId, epoch: u64, generation: u64, message: ToGuest },
    /// A client tries to connect.
    Dial { client: ClientId, server: ServerId },
    /// A client learns that its connection is up, or gone.
    ClientLink { client: ClientId, server: ServerId, epoch: u64, up: bool },
    /// A client's timer; of this incarnation.
    ClientTimer(ClientId, u64),
    /// A client's caller wants something ordered; of this incarnation.
    ClientWants(ClientId, u64),
    /// A client starts again.
    ClientStart(ClientId),
    /// A client crashes that crashed only just before; of this incarnation.
    Relapse(ClientId, u64),
    /// A liar lies.
    Lie(ClientId),
    /// A paused process goes on.
    Resume(Process),
    /// A partition of the payload network ends.
    Rejoin(u64),
    /// Something goes wrong.
    Fault(Fault),
}

/// A process that can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    Host(ServerId),
    Guest(ServerId),
}

impl Event {
    /// Whom it happens to, if that can be paused.
    fn process(&self) -> Option<Process> {
        match self {
            Event::HostLooks(s) | Event::HostTick(s, _) => Some(Process::Host(*s)),
            Event::HostLink { host, .. } => Some(Process::Host(*host)),
            Event::HostFrame { to, .. } => Some(Process::Host(*to)),
            Event::GuestBell(s) | Event::GuestTimer(s, _) => Some(Process::Guest(*s)),
            Event::GuestLost { server, .. }
            | Event::SourceLost { server, .. }
            | Event::ToServer { server, .. } => Some(Process::Guest(*server)),
            Event::Forward { to, .. } | Event::Transfer { to, .. } => Some(Process::Guest(*to)),
            _ => None,
        }
    }
}

/// A process that is paused.
#[derive(Default)]
struct Pause {
    /// What happens to it when it goes on.
    held: VecDeque<Event>,
    /// It was alive when something was held.
    felt: bool,
}

struct Scheduled {
    at: Micros,
    tie: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, so that a heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// How often each kind of fault was injected.
pub type FaultCounts = BTreeMap<Cow<'static, str>, u64>;

/// A running simulation.
pub struct Sim {
    pub(crate) plan: Plan,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now: Micros,
    heap: BinaryHeap<Scheduled>,
    tie: u64,
    steps: u64,
    paused: BTreeMap<Process, Pause>,
    pub(crate) servers: Vec<Server>,
    pub(crate) trusted: Trusted,
    pub(crate) payload: Payload,
    pub(crate) crowd: Crowd,
    pub(crate) history: History,
    pub(crate) faults: FaultCounts,
    /// Servers that were retired, and which of their incarnations are over.
    pub(crate) retired: Vec<(ServerId, u32)>,
    /// The faults are over.
    pub(crate) healed: bool,
}

impl Sim {
    /// A cluster that starts now, as `plan` says. All that is random comes from `rng`.
    pub fn new(plan: Plan, mut rng: ChaCha8Rng, history: History) -> Sim {
        let n = plan.n;
        let mut sim = Sim {
            servers: Vec::new(),
            trusted: Trusted::new(n),
            payload: Payload::new(plan.clients.len(), n),
            crowd: Crowd::new(&plan, &mut rng),
            now: Micros(0),
            heap: BinaryHeap::new(),
            tie: 0,
            steps: 0,
            paused: BTreeMap::new(),
            history,
            faults: FaultCounts::new(),
            retired: Vec::new(),
            healed: false,
            plan,
            rng,
        };
        for server in ServerId::all(n) {
            let server = Server::new(server, &sim.plan, &mut sim.rng);
            sim.servers.push(server);
        }
        for server in ServerId::all(n) {
            sim.start_host(server, false);
            sim.start_guest(server);
        }
        sim.start_clients();
        sim.count_break_ins();
        sim.plan_faults();
        sim
    }

    /// A cluster of three in which nothing goes wrong by itself, for tests.
    #[cfg(test)]
    pub(crate) fn calm(seed: u64) -> Sim {
        Sim::calm_but(seed, |_| {})
    }

    /// The same, with small rings and a client that fills them.
    #[cfg(test)]
    pub(crate) fn calm_laps(seed: u64) -> Sim {
        Sim::calm_but(seed, |plan| {
            (plan.rings.ring_bytes, plan.rings.filling) = (1 << 15, 400);
            plan.clients.iter_mut().for_each(|client| client.every = Micros(10_000));
        })
    }

    #[cfg(test)]
    fn calm_but(seed: u64, change: impl Fn(&mut Plan)) -> Sim {
        let wishes = crate::plan::Wishes { calm: true, f: Some(1), large_rings: true };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut plan = Plan::draw(&mut rng, &wishes);
        change(&mut plan);
        Sim::new(plan, rng, History::new(false))
    }

    /// A generator of its own for one part of the simulation.
    pub(crate) fn derive(rng: &mut ChaCha8Rng) -> ChaCha8Rng {
        ChaCha8Rng::from_rng(rng)
    }

    /// Lets `event` happen so much later.
    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now.plus(delay), event);
    }

    /// Lets `event` happen at `at`.
    pub(crate) fn at(&mut self, at: Micros, event: Event) {
        self.tie += 1;
        self.heap.push(Scheduled { at: at.max(self.now), tie: self.tie, event });
    }

    /// A time drawn from the two and what lies between.
    pub(crate) fn between(&mut self, (from, to): (Micros, Micros)) -> Micros {
        Micros(self.rng.random_range(from.0..=to.0.max(from.0)))
    }

    /// Whether something of this probability, in thousandths, happens.
    pub(crate) fn happens(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.random_range(0..1000) < thousandths
    }

    /// One more fault of this kind.
    pub(crate) fn count(&mut self, kind: &'static str) {
        *self.faults.entry(Cow::Borrowed(kind)).or_default() += 1;
    }

    /// What each broken-in guest does counts once; what it never does, not at all.
    fn count_break_ins(&mut self) {
        let strategies = self.plan.guests.iter().flatten().flatten();
        for strategy in strategies.filter(|strategy| strategy.when != When::Never) {
            let deed = Cow::Owned(format!("broken-in guest: {:?}", strategy.deed));
            *self.faults.entry(deed).or_default() += 1;
        }
    }

    /// How many events have happened.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The virtual time.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// What happened.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Faults injected so far.
    pub fn fault_counts(&self) -> &FaultCounts {
        &self.faults
    }

    /// Lets the next event happen. There always is one: hosts tick.
    pub(crate) fn step(&mut self) {
        let Scheduled { at, event, .. } = self.heap.pop().expect("something always happens");
        self.now = at;
        self.steps += 1;
        let kind = std::mem::discriminant(&event);
        self.history.trace((at, kind));
        match event.process() {
            Some(process) if self.paused.contains_key(&process) => self.hold(process, event),
            _ => self.handle(event),
        }
    }

    /// A paused process learns of this when it goes on.
    fn hold(&mut self, process: Process, event: Event) {
        let Some(pause) = self.paused.get_mut(&process) else { return };
        pause.held.push_back(event);
        let (lives, kind) = match process {
            Process::Host(host) => (self.servers[host.index()].host.is_some(), "host pause"),
            Process::Guest(guest) => (self.servers[guest.index()].guest.is_some(), "guest pause"),
        };
        // A pause that a process does not live through, or in which nothing happens, is none.
        if lives && !std::mem::replace(&mut pause.felt, true) {
            self.count(kind);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::HostLooks(host) => self.host_looks(host),
            Event::HostTick(host, epoch) => self.host_tick(host, epoch),
            Event::HostLink { host, peer, epoch, link } => self.host_link(host, peer, epoch, link),
            Event::HostFrame { to, from, generation, bytes } => {
                self.host_frame(to, from, generation, &bytes);
            }
            Event::LinkDial(a, b) => self.link_dial(a, b),
            // Who is down when the faults end either was started then, or stays down.
            Event::HostStart(_) | Event::GuestStart(_) | Event::Retire(_) if self.healed => {}
            Event::ClientStart(_) if self.healed => {}
            Event::HostStart(host) => self.start_host(host, true),
            Event::HostDies { host, reached, back } => self.die_half_spread(host, reached, back),
            Event::Retire(server) => self.retire(server),
            Event::HostFloor { host, server, below } => self.host_floor(host, server, below),
            Event::GuestBell(server) => self.guest_bell(server),
            Event::GuestTimer(server, epoch) => self.guest_timer(server, epoch),
            Event::GuestStart(server) => self.start_guest(server),
            Event::GuestLost { server, client, epoch } => self.guest_lost(server, client, epoch),
            Event::SourceLost { server, source, epoch } => {
                self.guest_lost_source(server, source, epoch);
            }
            Event::ToServer { client, server, generation, message } => {
                self.reach_server(client, server, generation, message);
            }
            Event::ToClient { server, client, generation, message } => {
                self.reach_client(server, client, generation, message);
            }
            Event::Forward { from, to, epoch, order } => self.forwarded(from, to, epoch, order),
            Event::Transfer { from, to, epoch, generation, message } => {
                self.transferred((from, to), epoch, generation, message);
            }
            Event::Dial { client, server } => self.dial(client, server),
            Event::ClientLink { client, server, epoch, up } => {
                self.client_link(client, server, epoch, up);
            }
            Event::ClientTimer(client, epoch) => self.client_timer(client, epoch),
            Event::ClientWants(client, epoch) => self.client_wants(client, epoch),
            Event::ClientStart(client) => self.start_client(client),
            Event::Relapse(client, epoch) => self.relapse(client, epoch),
            Event::Lie(client) => self.lie(client),
            Event::Resume(process) => self.resume(process),
            Event::Rejoin(partition) => self.rejoin(partition),
            Event::Fault(fault) => self.inject(fault),
        }
    }

    /// A process does nothing for so long; what happens to it meanwhile waits. One that is paused
    /// already goes on when it would have.
    pub(crate) fn pause(&mut self, process: Process, time: Micros) {
        if let Entry::Vacant(entry) = self.paused.entry(process) {
            entry.insert(Pause::default());
            self.after(time, Event::Resume(process));
        }
    }

    /// A paused process goes on with what waits.
    pub(crate) fn resume(&mut self, process: Process) {
        for event in self.paused.remove(&process).unwrap_or_default().held {
            self.handle(event);
        }
    }

    /// All paused processes go on.
    pub(crate) fn resume_all(&mut self) {
        for process in self.paused.keys().copied().collect::<Vec<_>>() {
            self.resume(process);
        }
    }
}
