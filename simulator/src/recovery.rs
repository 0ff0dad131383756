//! R6: hosts whose files are lost, damaged, or suspect because their machine lost its power, and
//! servers that an operator retires.
//!
//! A host that starts again finds its files as the agent does (`host-agent/src/files.rs`): gone on
//! with if they are whole and nothing can be missing, else recovered. A server counts as faulty from
//! its loss on until it has recovered, and a checkpoint is stable that covers all that its guest was
//! shown before: until then it has forgotten what it may have told others.

use std::sync::atomic::Ordering;

use host_agent::Input;
use rand::{Rng, RngExt};
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{Micros, ServerId};
use shared_registers::layout::{floor_from_word, floor_word, read, stream_word};
use shared_registers::record::Checkpoint;
use shared_registers::words::{Words, WordsMut};

use crate::cluster;
use crate::engine::{Event, Sim};
use crate::history::Event as Happened;
use crate::memory::Memory;
use crate::servers::{Server, memory};

/// A look at the list of retired servers comes so often.
const RETIRED_LOOK: Micros = Micros::from_ms(1_000);

/// What becomes of a host's files before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They are gone, and its guest with them.
    Gone,
    /// The read file ends somewhere.
    CutShort,
    /// A bit of the read file is another.
    Damaged,
    /// The machine lost its power, and with it what no disk has.
    Power,
    /// The same, but the system had written everything.
    PowerLate,
}

impl Loss {
    /// Whether the guest cannot live through it.
    pub(crate) fn takes_guest(self) -> bool {
        !matches!(self, Loss::CutShort | Loss::Damaged)
    }

    fn name(self) -> &'static str {
        match self {
            Loss::Gone => "host file: gone",
            Loss::CutShort => "host file: cut short",
            Loss::Damaged => "host file: damaged",
            Loss::Power => "host file: power failure",
            Loss::PowerLate => "host file: power failure, all written",
        }
    }
}

/// How a server's files were found.
pub(crate) struct Found {
    pub(crate) registers: HostRegisters<Memory, Memory>,
    pub(crate) recovers: bool,
    /// It lost its power: words of the file may lag behind what was shown.
    pub(crate) lags: bool,
}

impl Server {
    /// As `files::open`: what a host agent that starts again makes of its files.
    fn open(&mut self, too_short: bool) -> (HostRegisters<Memory, Memory>, bool) {
        let geometry = self.config.geometry;
        let files = || (self.read.clone(), self.write.clone());
        let (read, write) = files();
        let whole = (!too_short).then(|| HostRegisters::reopen(geometry, read, write).ok());
        let whole = whole.flatten().filter(|registers| !registers.may_lack_records(self.boot));
        let recovers = whole.is_none();
        let registers = whole.unwrap_or_else(|| {
            let (read, write) = files();
            HostRegisters::recover(geometry, read, write).expect("files of their size")
        });
        registers.set_header(read::CLEAN, 0);
        registers.set_header(read::BOOT, self.boot);
        self.read.sync().expect("memory");
        (registers, recovers)
    }

    /// R6: under what the host writes now. A guest that began under something else is over.
    pub(crate) fn life(&self) -> (u64, u64, u64) {
        let word = |which| self.read.load(which, Ordering::Acquire);
        (self.recoveries, word(read::INCARNATION), word(read::RECOVERING))
    }

    /// R6: its host recovers.
    pub(crate) fn recovers(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.waits_for().is_some())
    }

    /// R6: it has lost records, or may have, and what it told others of them may not be so any more.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.loss.is_some() || self.retired || self.shown_before.is_some() || self.recovers()
    }

    /// What the history knows of its registers and is not there any more.
    pub(crate) fn knows_no_more_than(&mut self, registers: &HostRegisters<Memory, Memory>) {
        for (writer, known) in ServerId::all(self.copied.len()).zip(&mut self.copied) {
            *known = registers.copied(writer).0.min(*known);
        }
        self.exposed = registers.exposed_all().into_vec();
    }

    fn forget(&mut self) {
        let before = self.shown_before.take().unwrap_or_else(|| vec![0; self.exposed.len()]);
        let most = before.iter().zip(&self.exposed).map(|(a, b)| *a.max(b));
        self.shown_before = Some(most.collect());
    }
}

impl Sim {
    /// A loss that is to befall a host.
    pub(crate) fn draw_loss(&mut self) -> Loss {
        let all = [Loss::Gone, Loss::CutShort, Loss::Damaged, Loss::Power, Loss::PowerLate];
        all[[0, 0, 0, 1, 2, 2, 3, 3, 4][self.rng.random_range(0..9)]]
    }

    /// What becomes of a server's files happens now, and its host looks at what is left.
    pub(crate) fn find_files(&mut self, host: ServerId) -> Found {
        let loss = self.servers[host.index()].loss.take();
        if let Some(loss) = loss {
            self.count(loss.name());
            self.lose(host, loss);
        }
        let server = &mut self.servers[host.index()];
        let (registers, recovers) = server.open(loss == Some(Loss::CutShort));
        if recovers {
            server.recoveries += 1;
            server.recovering = true;
            server.forget();
            self.count("host recovers");
        }
        let lags = matches!(loss, Some(Loss::Power | Loss::PowerLate));
        Found { registers, recovers, lags }
    }

    fn lose(&mut self, host: ServerId, loss: Loss) {
        let geometry = cluster::geometry(host, self.plan.n, &self.plan.rings);
        let server = &mut self.servers[host.index()];
        match loss {
            Loss::Gone => {
                server.read = memory(geometry.read_file_bytes(), &self.plan);
                server.write = memory(geometry.write_file_bytes(), &self.plan);
            }
            Loss::CutShort => {
                let len = server.read.len();
                let kept = self.rng.random_range(0..len);
                server.read.clear(kept, len - kept);
            }
            Loss::Damaged => {
                let writer = ServerId(self.rng.random_range(0..self.plan.n as u16));
                let ring = geometry.stream_ring(writer);
                // What has a check: records, floors, and the counts that fit them.
                let word = match self.rng.random_range(0..8) {
                    0 => floor_word(writer),
                    1 => stream_word(writer, read::COPIED_SEQ),
                    _ => ring.base + self.rng.random_range(0..(ring.bytes / 8) as usize),
                };
                let bit = 1 << self.rng.random_range(0..64);
                let value = server.read.load(word, Ordering::Relaxed) ^ bit;
                server.read.store(word, value, Ordering::Relaxed);
            }
            Loss::Power | Loss::PowerLate => {
                server.boot += 1;
                let rng = &mut self.rng;
                for file in [&server.read, &server.write] {
                    file.power_failure(|| loss == Loss::PowerLate || rng.next_u32() & 1 == 1);
                }
            }
        }
    }

    /// A host will die of which something is lost, and until then reaches one other host alone.
    pub(crate) fn spread_to_one(&mut self, host: ServerId, back: Micros, loss: Loss) {
        if !self.may_fail(host) || self.servers[host.index()].host.is_none() {
            return;
        }
        self.servers[host.index()].loss = Some(loss);
        let n = self.plan.n as u16;
        let reached = ServerId((host.0 + self.rng.random_range(1..n)) % n);
        for other in ServerId::all(self.plan.n).filter(|other| ![host, reached].contains(other)) {
            self.break_link(host, other, back);
        }
        let delay = self.between((Micros(1_000), Micros(60_000)));
        self.after(delay, Event::HostDies { host, reached, back });
    }

    /// ... and does. Who has its last records is out of reach for a while: an answer that is missing
    /// may be the only one that matters.
    pub(crate) fn die_half_spread(&mut self, host: ServerId, reached: ServerId, back: Micros) {
        if self.healed || self.servers[host.index()].loss.is_none() {
            return;
        }
        self.count("host crash, half spread");
        self.crash_host(host);
        let back = Micros(back.0 % 100_000);
        for other in ServerId::all(self.plan.n).filter(|other| *other != reached) {
            let apart = self.between((Micros(0), Micros(600_000)));
            self.break_link(other, reached, back.plus(apart));
            if other != host {
                self.mend_link(host, other);
            }
        }
        self.after(back, Event::HostStart(host));
        self.follow_loss(host, back);
        if self.may_fail(reached) && self.happens(self.plan.hosts.retired) {
            // Nobody waits for it then, and it comes back with records that nobody else has.
            self.crash_host(reached);
            self.retire(reached);
            let back = self.between((Micros(50_000), Micros(800_000)));
            self.after(back, Event::HostStart(reached));
        }
    }

    /// A host died of which something is lost: its guest may go with it.
    pub(crate) fn follow_loss(&mut self, host: ServerId, back: Micros) {
        if self.servers[host.index()].loss.is_some_and(Loss::takes_guest) {
            self.stop_guest(host);
            self.after(back.plus(Micros(50_000)), Event::GuestStart(host));
        }
    }

    /// After each step of a host: whether its recovery has come to its end.
    pub(crate) fn note_recovery(&mut self, host: ServerId) {
        let server = &mut self.servers[host.index()];
        let Some(process) = &server.host else { return };
        let now = process.waits_for().is_some();
        if std::mem::replace(&mut server.recovering, now) <= now {
            return;
        }
        let end = process.registers().copied(host).0;
        server.retired = false;
        self.trusted.forget(host, end);
        for server in &mut self.servers {
            if let Some(shown) = &mut server.shown_before {
                // What has vanished nobody will cover.
                shown[host.index()] = shown[host.index()].min(end);
            }
        }
        self.history.push(self.now, Happened::HostRecovered { host, end });
    }

    /// A guest dies, and its store is deleted.
    pub(crate) fn wipe_guest(&mut self, server: ServerId, back: Micros) {
        let entry = &self.servers[server.index()];
        let Some((disk, _)) = entry.config.store.clone().filter(|_| entry.guest.is_some()) else {
            return;
        };
        if !self.may_fail(server) {
            return;
        }
        self.count("guest wiped");
        self.stop_guest(server);
        disk.wipe();
        let entry = &mut self.servers[server.index()];
        entry.wiped = Some(entry.copied[server.index()]);
        self.after(back, Event::GuestStart(server));
    }

    /// All guests die at once, and perhaps all hosts, or all machines lose their power. Nothing is
    /// lost by that but what nobody was told of.
    pub(crate) fn kill_all(&mut self, most: Micros) {
        let what = self.rng.random_range(0..3);
        self.count(["all guests die", "all processes die", "power failure everywhere"][what]);
        let durable = self.plan.hosts.durable;
        for server in ServerId::all(self.plan.n) {
            let back = self.between((Micros(100), most));
            if what > 0 && self.servers[server.index()].host.is_some() {
                let loss = &mut self.servers[server.index()].loss;
                if what == 2 && loss.is_none() {
                    *loss = Some(if durable { Loss::Power } else { Loss::PowerLate });
                }
                self.crash_host(server);
                self.servers[server.index()].felled = true;
                self.after(back, Event::HostStart(server));
            }
            self.stop_guest(server);
            let back = self.between((Micros(100), most));
            self.after(back, Event::GuestStart(server));
        }
    }

    /// A correct guest has read that a checkpoint is stable.
    pub(crate) fn note_stable(&mut self, checkpoint: &Checkpoint) {
        for (me, server) in ServerId::all(self.plan.n).zip(&mut self.servers) {
            let Some((disk, _)) = &server.config.store else { continue };
            let stored =
                |upto: &mut u64| checkpoint.cut[me.index()] >= *upto && disk.covers(me, *upto);
            server.wiped.take_if(stored);
        }
        for server in self.servers.iter_mut().filter(|server| !server.recovering) {
            let covers = |shown: &mut Vec<u64>| {
                shown.iter().zip(&checkpoint.cut).all(|(shown, cut)| shown <= cut)
            };
            server.shown_before.take_if(covers);
        }
    }

    /// An operator gives a server up whose host is down.
    pub(crate) fn retire(&mut self, server: ServerId) {
        let entry = &self.servers[server.index()];
        if entry.host.is_some() || entry.retired {
            return;
        }
        // As `difato retire`: all incarnations that any file here knows of are over.
        let floor = |of: &Server| of.read.load(floor_word(server), Ordering::Relaxed);
        let floors = self.servers.iter().map(|of| floor_from_word(floor(of)).unwrap_or(0));
        let below = floors.max().unwrap_or(0) | 1;
        self.count("server retired");
        self.servers[server.index()].retired = true;
        self.retired.push((server, below));
        if self.happens(500) {
            // Its operator removes its files at once, and not only when it says that it is over.
            self.servers[server.index()].loss = Some(Loss::Gone);
            self.stop_guest(server);
            self.after(RETIRED_LOOK, Event::GuestStart(server));
        }
        self.history.push(self.now, Happened::Retired { server });
        ServerId::all(self.plan.n).for_each(|host| self.look_for_retired(host));
    }

    /// A host agent looks for retired servers soon.
    pub(crate) fn look_for_retired(&mut self, host: ServerId) {
        for (server, below) in self.retired.clone() {
            let delay = self.between((Micros(1_000), RETIRED_LOOK));
            self.after(delay, Event::HostFloor { host, server, below });
        }
    }

    /// ... and does.
    pub(crate) fn host_floor(&mut self, host: ServerId, server: ServerId, below: u32) {
        let process = self.servers[host.index()].host.as_ref();
        let knows = process.is_none_or(|process| below <= process.registers().floor(server));
        // Whoever runs elsewhere has another list.
        if !knows && (host != server || self.happens(500)) {
            self.step_host(host, Input::Floor(server, below));
        }
    }

    /// A retired host was told that it is over, and stops. Its operator removes its files.
    pub(crate) fn is_over(&mut self, host: ServerId) {
        self.count("retired host with its old files");
        self.crash_host(host);
        self.servers[host.index()].loss = Some(Loss::Gone);
        self.stop_guest(host);
        let back = self.between((Micros(1_000), Micros(1_000_000)));
        self.after(back, Event::HostStart(host));
        self.after(back.plus(Micros(50_000)), Event::GuestStart(host));
    }

    /// The faults are over: whoever was retired comes back without its files, or not at all.
    pub(crate) fn return_retired(&mut self, host: ServerId) {
        let entry = &mut self.servers[host.index()];
        if entry.retired && !entry.recovers() {
            entry.loss = Some(Loss::Gone);
            self.crash_host(host);
            self.stop_guest(host);
        }
    }
}
