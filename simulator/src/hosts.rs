//! The hosts and the trusted network between them.
//!
//! A link is a connection: frames come in their order or not at all. When it breaks, what was on
//! its way is lost, and both ends learn so, each at a time of its own. It holds a limited number of
//! frames, so a host that dies has spread its newest records to some peers and not to others.

use std::sync::Arc;

use host_agent::{Host, HostConfig, Input, Now, PeerFault};
use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::Digest;
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{ClientId, Micros, Seq, ServerId};
use shared_registers::limits::{LINK_SEND_BYTES, MAX_FRAMES_PER_TURN};
use shared_registers::record::Record;
use shared_registers::words::WordsMut;

use crate::cluster::{self, CLUSTER};
use crate::engine::{Event, Sim};
use crate::history::{Event as Happened, RecordSeen};
use crate::plan::MAX_LINK_FRAMES;
use crate::records;
use crate::recovery::Found;

/// What a host learns of its link to a peer: of which connection, too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkNews {
    Up(u64),
    Down(u64),
}

/// One direction of a link.
#[derive(Clone, Default)]
struct Direction {
    in_flight: usize,
    bytes: usize,
    /// The next frame comes after this.
    floor: Micros,
    /// The last connection that the receiver was told is up.
    told: u64,
}

/// The link between two hosts.
#[derive(Clone, Default)]
struct Link {
    up: bool,
    /// Which connection this is: what belongs to an earlier one is lost.
    generation: u64,
    /// Not connected again before this.
    down_until: Micros,
    /// From the lower number to the higher, and back.
    ways: [Direction; 2],
}

/// The trusted network.
pub(crate) struct Trusted {
    n: usize,
    links: Vec<Link>,
    /// Every record that any host has had, by stream: what the history says of it.
    records: Vec<Vec<Arc<RecordSeen>>>,
    /// ... and its bytes.
    pub(crate) streams: Vec<Vec<Vec<u8>>>,
}

impl Trusted {
    pub(crate) fn new(n: usize) -> Trusted {
        let (records, streams) = (vec![Vec::new(); n], vec![Vec::new(); n]);
        Trusted { n, links: vec![Link::default(); n * n], records, streams }
    }

    fn link(&mut self, a: ServerId, b: ServerId) -> &mut Link {
        &mut self.links[a.min(b).index() * self.n + a.max(b).index()]
    }

    fn way(&mut self, from: ServerId, to: ServerId) -> &mut Direction {
        &mut self.link(from, to).ways[usize::from(from > to)]
    }
}

impl Sim {
    fn host_now(&self, host: ServerId) -> Now {
        let server = &self.servers[host.index()];
        let mono = server.host_clock.show(self.now);
        Now { wall: mono.plus(server.wall), mono }
    }

    /// A host agent starts, on an empty file or on the one that it left.
    pub(crate) fn start_host(&mut self, host: ServerId, again: bool) {
        let (n, now) = (self.plan.n, self.host_now(host));
        let clients = self.plan.clients.len() as u32;
        let order_keys = (0..clients).map(|client| cluster::order_key(ClientId(client), host));
        let config =
            HostConfig { order_keys: order_keys.collect(), exchange: self.plan.timing.exchange };
        if self.servers[host.index()].host.is_some() {
            return;
        }
        let found = if again { self.find_files(host) } else { self.make_files(host) };
        let registers = found.registers.durable(self.plan.hosts.durable);
        // Before the host's first step: what it finds, and not what it makes of that.
        let copied = ServerId::all(n).map(|writer| registers.copied(writer).0).collect();
        let mut exposed = registers.exposed_all().into_vec();
        let last = |writer| registers.last_change(writer, registers.copied(writer));
        let changes = ServerId::all(n).map(last).collect();
        let server = &mut self.servers[host.index()];
        if found.recovers {
            server.knows_no_more_than(&registers);
        }
        let process = Host::new(config, registers, now);
        if found.lags {
            exposed = process.registers().exposed_all().into_vec();
        }
        server.host = Some(process);
        server.attended = false;
        server.host_epoch += 1;
        (server.dies_after, server.tick, server.felled) = (None, None, false);
        let epoch = server.host_epoch;
        let recovers = found.recovers;
        let started = Happened::HostStarted { host, recovers, copied, exposed, changes };
        self.history.push(self.now, started);
        self.after(Micros(1), Event::HostTick(host, epoch));
        for peer in ServerId::all(n).filter(|peer| *peer != host) {
            let delay = self.between((Micros(100), Micros(20_000)));
            self.after(delay, Event::LinkDial(host, peer));
        }
        self.look_for_retired(host);
        self.observe(host);
        self.after_host_step(host);
        self.look_at_bell(host);
    }

    /// R8: a host hears when its guest comes to its doorbell, and when it leaves.
    pub(crate) fn look_at_bell(&mut self, host: ServerId) {
        let server = &mut self.servers[host.index()];
        let here = server.guest.is_some();
        if server.host.is_some() && server.attended != here {
            server.attended = here;
            self.step_host(host, Input::AtDoorbell(here));
        }
    }

    /// A host's first start.
    fn make_files(&mut self, host: ServerId) -> Found {
        let server = &mut self.servers[host.index()];
        let (read, write) = (server.read.clone(), server.write.clone());
        let registers = HostRegisters::create(server.config.geometry, read, write);
        let registers = registers.expect("made for it");
        server.read.sync().expect("memory");
        Found { registers, recovers: false, lags: false }
    }

    /// A host agent is gone; its file stays.
    pub(crate) fn crash_host(&mut self, host: ServerId) {
        let server = &mut self.servers[host.index()];
        if server.host.take().is_none() {
            return;
        }
        server.host_epoch += 1;
        server.dies_after = None;
        server.read.revive();
        self.history.push(self.now, Happened::HostCrashed { host });
        for peer in ServerId::all(self.plan.n).filter(|peer| *peer != host) {
            self.break_link(host, peer, Micros(0));
        }
    }

    pub(crate) fn host_looks(&mut self, host: ServerId) {
        self.step_host(host, Input::Guest);
    }

    pub(crate) fn host_tick(&mut self, host: ServerId, epoch: u64) {
        if self.servers[host.index()].host_epoch == epoch {
            // Its period is one of its own clock, which drifts, and its timer is a timer.
            let clock = self.servers[host.index()].host_clock;
            let due = clock.when(clock.show(self.now).plus(self.plan.timing.exchange));
            let timer = self.skewed(due);
            if let Some(now) = self.servers[host.index()].tick.replace(timer) {
                self.went_off(now);
            }
            self.at(timer.at, Event::HostTick(host, epoch));
            self.step_host(host, Input::Tick);
        }
    }

    pub(crate) fn host_link(&mut self, host: ServerId, peer: ServerId, epoch: u64, link: LinkNews) {
        if self.servers[host.index()].host_epoch != epoch {
            return;
        }
        // News of a connection that another has taken the place of is no news.
        let told = &mut self.trusted.way(peer, host).told;
        match link {
            LinkNews::Up(generation) if generation > *told => {
                *told = generation;
                self.step_host(host, Input::PeerUp(peer));
            }
            LinkNews::Down(generation) if generation >= *told => {
                self.step_host(host, Input::PeerDown(peer));
            }
            LinkNews::Up(_) | LinkNews::Down(_) => {}
        }
    }

    pub(crate) fn host_frame(
        &mut self,
        to: ServerId,
        from: ServerId,
        generation: u64,
        bytes: &[u8],
    ) {
        if self.trusted.link(from, to).generation != generation {
            return;
        }
        self.history.trace((from, to, bytes));
        let way = self.trusted.way(from, to);
        (way.in_flight, way.bytes) = (way.in_flight - 1, way.bytes - bytes.len());
        self.step_host(to, Input::PeerFrame(from, bytes));
        self.pump_link(from, to);
    }

    /// Two hosts connect, if they can.
    pub(crate) fn link_dial(&mut self, a: ServerId, b: ServerId) {
        let lives = |s: ServerId| self.servers[s.index()].host.is_some();
        if !lives(a) || !lives(b) {
            return; // Whoever starts dials.
        }
        let now = self.now;
        let link = self.trusted.link(a, b);
        if link.up {
            return;
        }
        if now < link.down_until {
            let at = link.down_until;
            return self.at(at, Event::LinkDial(a, b));
        }
        link.up = true;
        link.generation += 1;
        let generation = link.generation;
        for (host, peer) in [(a, b), (b, a)] {
            let at = now.plus(self.between(self.plan.trusted.delay));
            let way = self.trusted.way(peer, host);
            (way.in_flight, way.bytes, way.floor) = (0, 0, at);
            let epoch = self.servers[host.index()].host_epoch;
            let link = LinkNews::Up(generation);
            self.at(at, Event::HostLink { host, peer, epoch, link });
        }
    }

    /// A link breaks: what is on its way is lost, and both ends learn so in time. It stays down for
    /// a while. False if it was down already.
    pub(crate) fn break_link(&mut self, a: ServerId, b: ServerId, down_for: Micros) -> bool {
        let until = self.now.plus(down_for);
        let link = self.trusted.link(a, b);
        link.down_until = link.down_until.max(until);
        if !std::mem::take(&mut link.up) {
            return false;
        }
        let generation = link.generation;
        link.generation += 1;
        let mut latest = Micros(0);
        for (host, peer) in [(a, b), (b, a)] {
            // Not before it learned that the link was up.
            let floor = self.trusted.way(peer, host).floor.max(self.now);
            let at = floor.plus(self.between((Micros(1), Micros(30_000))));
            latest = latest.max(at);
            let epoch = self.servers[host.index()].host_epoch;
            let link = LinkNews::Down(generation);
            self.at(at, Event::HostLink { host, peer, epoch, link });
        }
        let redial = latest.plus(self.between((Micros(1_000), Micros(100_000))));
        self.at(redial, Event::LinkDial(a, b));
        true
    }

    /// A link that is down may come up again.
    pub(crate) fn mend_link(&mut self, a: ServerId, b: ServerId) {
        let now = self.now;
        self.trusted.link(a, b).down_until = now;
    }

    /// All links come up again soon.
    pub(crate) fn mend_links(&mut self) {
        for a in ServerId::all(self.plan.n) {
            for b in ServerId::all(self.plan.n).filter(|b| a < *b) {
                self.trusted.link(a, b).down_until = self.now;
                self.after(Micros(100_000), Event::LinkDial(a, b));
            }
        }
    }

    pub(crate) fn step_host(&mut self, host: ServerId, input: Input<'_>) {
        let (now, before) = (self.host_now(host), self.admitted(host));
        let server = &mut self.servers[host.index()];
        let Some(process) = &mut server.host else { return };
        process.registers_mut().wake();
        let peer = match &input {
            Input::PeerFrame(peer, _) => Some(*peer),
            _ => None,
        };
        let dies = match &input {
            // It dies where there is something to be torn.
            Input::Guest if process.has_frames() => server.dies_after.take(),
            Input::PeerFrame(..) if !server.dies_admitting => server.dies_after.take(),
            _ => None,
        };
        if let Some(stores) = dies {
            server.read.kill_after(stores);
        }
        let turn = process.step(now, input);
        if dies.is_some() {
            let torn = server.read.has_lost();
            self.count(if torn { "host crash in mid-step" } else { "host crash" });
            let time = self.plan.processes.host_crash_every.map_or(Micros(0), |(_, most)| most);
            let back = self.between((Micros(100), time));
            self.after(back, Event::HostStart(host));
            self.crash_host(host);
            return self.follow_loss(host, back);
        }
        match turn {
            Ok(turn) if turn.more => self.after(Micros(20), Event::HostLooks(host)),
            Ok(_) => {}
            Err(PeerFault::Over { .. }) if self.servers[host.index()].retired => {
                return self.is_over(host);
            }
            Err(fault) => {
                let (peer, what) = (peer.unwrap_or(host), fault.to_string());
                self.history.push(self.now, Happened::HostFault { host, peer, what });
                self.break_link(host, peer, Micros(0));
            }
        }
        let queues = self.servers[host.index()].host.as_ref().map(Host::queues);
        queues.into_iter().flatten().for_each(|queue| self.measure(host, queue));
        if !self.servers[host.index()].recovering {
            let admitted = self.admitted(host) - before;
            self.measure(host, ("records admitted in one turn", admitted, MAX_FRAMES_PER_TURN));
        }
        self.observe(host);
        self.after_host_step(host);
    }

    /// Records that a running host has of its own stream.
    fn admitted(&self, host: ServerId) -> usize {
        let process = self.servers[host.index()].host.as_ref();
        process.map_or(0, |process| process.registers().copied(host).0 as usize)
    }

    /// Something of a host's that is bounded is so long now.
    fn measure(&mut self, host: ServerId, queue: (&'static str, usize, usize)) {
        let news = self.servers[host.index()].longest.is(u32::from(host.0), queue);
        if let Some(event) = news {
            self.history.push(self.now, event);
        }
    }

    /// What the agent does around a step: it spreads what it can, rings, and sleeps.
    fn after_host_step(&mut self, host: ServerId) {
        for peer in ServerId::all(self.plan.n).filter(|peer| *peer != host) {
            self.pump_link(host, peer);
        }
        let bell = self.between((Micros(5), Micros(100)));
        let Some(process) = &mut self.servers[host.index()].host else { return };
        if process.must_ring() {
            self.after(bell, Event::GuestBell(host));
        }
        let Some(process) = &mut self.servers[host.index()].host else { return };
        process.registers_mut().doze();
        if process.has_frames() {
            self.after(Micros(20), Event::HostLooks(host));
        }
        if self.plan.hosts.durable {
            // What was synced counts from now on.
            self.observe(host);
        }
        self.note_recovery(host);
    }

    /// Gives a link as many frames as it holds.
    fn pump_link(&mut self, from: ServerId, to: ServerId) {
        let link = self.trusted.link(from, to);
        let generation = link.generation;
        while self.trusted.link(from, to).up
            && self.trusted.way(from, to).in_flight < self.plan.trusted.window
            && self.trusted.way(from, to).bytes < LINK_SEND_BYTES
        {
            let mut bytes = Vec::new();
            let Some(host) = &mut self.servers[from.index()].host else { return };
            if !host.next_frame(to, &mut bytes) {
                return;
            }
            if broken(Canary::R3Twin) && to.0 % 2 == 1 {
                bytes = twins(bytes, self.plan.n);
            }
            let at = self.now.plus(self.between(self.plan.trusted.delay));
            let way = self.trusted.way(from, to);
            (way.in_flight, way.bytes) = (way.in_flight + 1, way.bytes + bytes.len());
            let (frames, held) = (way.in_flight, way.bytes);
            way.floor = at.max(way.floor.plus(Micros(1)));
            let at = way.floor;
            self.at(at, Event::HostFrame { to, from, generation, bytes });
            // One frame goes past what a link holds.
            let geometry = cluster::geometry(from, self.plan.n, &self.plan.rings);
            let largest = 1 + geometry.max_record_bytes();
            self.measure(from, ("bytes on a link", held, LINK_SEND_BYTES + largest));
            self.measure(from, ("frames on a link", frames, MAX_LINK_FRAMES));
        }
    }

    /// Writes into the history what is new in a host's registers.
    pub(crate) fn observe(&mut self, host: ServerId) {
        let n = self.plan.n;
        let mut bytes = Vec::new();
        for writer in ServerId::all(n) {
            loop {
                let server = &mut self.servers[host.index()];
                let Some(process) = &server.host else { return };
                let known = &mut server.copied[writer.index()];
                if *known >= process.registers().copied(writer).0 {
                    break;
                }
                let to = process.registers().first(writer).0;
                if *known < to {
                    *known = to;
                    let change = process.registers().last_change(writer, Seq(to));
                    self.history.push(self.now, Happened::Jumped { host, writer, to, change });
                    continue;
                }
                *known += 1;
                let seq = Seq(*known);
                bytes.clear();
                assert!(process.registers().record(writer, seq, &mut bytes), "it is copied");
                let known = self.trusted.records[writer.index()].len() as u64;
                let record = self.trusted.note(writer, seq, &bytes);
                // One that comes back to a host that lost it was admitted before (R6).
                if host == writer && seq.0 > known {
                    self.note_admitted(&record, &bytes);
                }
                self.history.push(self.now, Happened::Copied { host, record });
            }
        }
        self.note_marks(host);
    }

    fn note_admitted(&mut self, record: &RecordSeen, bytes: &[u8]) {
        let (host, seq, n, now) = (record.writer, record.seq, self.plan.n, self.now);
        let (seen, says) = (record.seen.clone(), records::says(bytes, n, &CLUSTER));
        self.history.push(now, Happened::Admitted { host, seq, seen, says });
        if let Some(claim) = records::claim(bytes, n) {
            let seen = record.seen.clone();
            self.history.push(now, Happened::Claimed { host, seq, seen, claim });
        }
    }

    /// Writes into the history what a host exposes, and what it has reclaimed.
    fn note_marks(&mut self, host: ServerId) {
        let server = &mut self.servers[host.index()];
        let Some(process) = &server.host else { return };
        let registers = process.registers();
        let first: Vec<_> = ServerId::all(self.plan.n).map(|w| registers.first(w).0).collect();
        let upto = registers.exposed_all().into_vec();
        if server.first != first {
            server.first = first.clone();
            self.history.push(self.now, Happened::Reclaimed { host, first });
        }
        if server.exposed != upto {
            server.exposed = upto.clone();
            self.history.push(self.now, Happened::Exposed { host, upto });
        }
    }
}

impl Trusted {
    /// R6: so many records of a stream are left.
    pub(crate) fn forget(&mut self, writer: ServerId, end: u64) {
        self.records[writer.index()].truncate(end as usize);
        self.streams[writer.index()].truncate(end as usize);
    }

    /// What the history says of a record: the same thing for the same bytes.
    fn note(&mut self, writer: ServerId, seq: Seq, bytes: &[u8]) -> Arc<RecordSeen> {
        let digest = Digest::of(&[bytes]);
        let stream = &mut self.records[writer.index()];
        let index = (seq.0 - 1) as usize;
        if let Some(known) = stream.get(index).filter(|known| known.digest == digest) {
            return known.clone();
        }
        let record = Arc::new(records::describe(writer, seq, bytes, self.n, &CLUSTER));
        if index == stream.len() {
            stream.push(record.clone());
            self.streams[writer.index()].push(bytes.to_vec());
        }
        record
    }
}

/// For [`Canary::R3Twin`] alone: what half of the hosts get instead of a frame, as if the first
/// server had two hosts that go by one name and admit different records.
fn twins(frame: Vec<u8>, n: usize) -> Vec<u8> {
    let Ok(mut record) = Record::decode(&frame[1..], n) else { return frame };
    if record.stamp.writer != ServerId(0) {
        return frame;
    }
    record.stamp.time = record.stamp.time.plus(Micros(1));
    let mut other = vec![frame[0]];
    Record::encode(&record.stamp, record.body, &mut other);
    other
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use shared_registers::layout::{LinkState, hint_word};
    use shared_registers::words::Words;

    use super::*;

    /// Whether every host says that its link to every other is up (R8).
    fn all_linked(sim: &Sim) -> bool {
        let up = |host: ServerId, peer: ServerId| {
            let word = hint_word(peer, 0);
            let state = sim.servers[host.index()].read.load(word, Ordering::Relaxed);
            host == peer || state == LinkState::Up as u64
        };
        let all = ServerId::all(sim.plan.n);
        all.clone().all(|host| all.clone().all(|peer| up(host, peer)))
    }

    fn pass(sim: &mut Sim, time: Micros) {
        let end = sim.now.plus(time);
        while sim.now < end {
            sim.step();
        }
    }

    /// The news of the old links' end may come later than that of the new links: it left two hosts
    /// apart for ever when it was taken for news of those.
    #[test]
    fn a_host_that_comes_back_at_once_is_linked_again() {
        for seed in 0..50 {
            let mut sim = Sim::calm(seed);
            pass(&mut sim, Micros(300_000));
            assert!(all_linked(&sim), "seed {seed}");
            sim.crash_host(ServerId(0));
            sim.start_host(ServerId(0), true);
            pass(&mut sim, Micros(300_000));
            assert!(all_linked(&sim), "seed {seed}");
        }
    }

    #[test]
    fn two_runs_differ_in_which_hosts_frames_differ_in_one_byte() {
        let trace = |byte| {
            let mut sim = Sim::calm(1);
            let (from, to) = (ServerId(0), ServerId(1));
            let way = sim.trusted.way(from, to);
            (way.in_flight, way.bytes) = (1, 1);
            // Its link is not up: nobody looks at what comes.
            sim.host_frame(to, from, 0, &[byte]);
            sim.history().hash()
        };
        assert_eq!(trace(7), trace(7));
        assert_ne!(trace(7), trace(8));
    }
}
