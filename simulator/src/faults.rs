//! What goes wrong, and when. Each kind of fault that the plan has comes again and again, after
//! times drawn around its mean, until the faults are over.

use rand::RngExt;
use shared_registers::ids::{ClientId, Micros, ServerId};

use crate::engine::{Event, Process, Sim};
use crate::recovery::Loss;
use crate::servers::Server;

/// A kind of fault that comes by itself. Those of single messages are in `network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A connection of the payload network breaks.
    Reset,
    /// The payload network parts.
    Partition,
    /// A link of the trusted network breaks.
    LinkDown,
    /// A host agent, or a whole machine, dies.
    HostCrash,
    /// A host dies, and something becomes of its file (R6).
    HostLoss,
    /// A guest dies, and its store is deleted.
    Wipe,
    /// Everything dies at once.
    All,
    /// A guest dies.
    GuestCrash,
    /// A process stops for a while.
    Pause,
    /// A guest stops for so long that it is left behind.
    Lag,
    /// A host's wall clock jumps.
    ClockJump,
    /// A client dies.
    ClientCrash(ClientId),
}

/// A timer that is set, and what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    pub(crate) at: Micros,
    fault: Option<&'static str>,
}

/// A host dies within so many stores of a step, at most.
const STORES_BEFORE_DEATH: u64 = 120;
/// About as many stores as it takes to admit a small frame.
const STORES_OF_ADMISSION: u64 = 40;

impl Sim {
    /// How often a fault comes, and how long one lasts at most.
    fn habit(&self, fault: Fault) -> Option<(Micros, Micros)> {
        let (payload, processes) = (&self.plan.payload, &self.plan.processes);
        let no_time = |every: Option<Micros>| every.map(|every| (every, Micros(0)));
        match fault {
            Fault::Reset => no_time(payload.reset_every),
            Fault::Partition => payload.partition_every,
            Fault::LinkDown => self.plan.trusted.down_every,
            Fault::HostCrash => processes.host_crash_every,
            Fault::HostLoss => self.plan.hosts.loss_every,
            Fault::Wipe => self.plan.hosts.wipe_every,
            Fault::All => self.plan.hosts.all_every,
            Fault::GuestCrash => processes.guest_crash_every,
            Fault::Pause => processes.pause_every,
            Fault::Lag => processes.lag_every,
            Fault::ClockJump => no_time(processes.clock_jump_every),
            Fault::ClientCrash(client) => no_time(self.plan.clients[client.index()].crash_every),
        }
    }

    pub(crate) fn plan_faults(&mut self) {
        let mut faults = vec![
            Fault::Reset,
            Fault::Partition,
            Fault::LinkDown,
            Fault::HostCrash,
            Fault::GuestCrash,
            Fault::Pause,
            Fault::Lag,
            Fault::ClockJump,
            Fault::HostLoss,
            Fault::Wipe,
            Fault::All,
        ];
        faults.extend(self.crowd.ids().map(Fault::ClientCrash));
        for fault in faults {
            self.plan_fault(fault);
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        if let Some((every, _)) = self.habit(fault) {
            let delay = self.between((Micros(0), Micros(2 * every.0)));
            self.after(delay, Event::Fault(fault));
        }
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        let most = self.habit(fault).map_or(Micros(0), |(_, most)| most);
        let time = self.between((Micros(100), most));
        let n = self.plan.n as u16;
        let server = ServerId(self.rng.random_range(0..n));
        match fault {
            Fault::Reset => {
                let clients = self.plan.clients.len() as u32;
                let client = ClientId(self.rng.random_range(0..clients));
                if self.break_connection(client, server) {
                    self.count("payload: broken connection");
                }
            }
            Fault::Partition => self.part(time),
            Fault::LinkDown => {
                let other = ServerId((server.0 + self.rng.random_range(1..n)) % n);
                if self.break_link(server, other, time) {
                    self.count("trusted: broken link");
                }
            }
            Fault::HostCrash => self.inject_host_crash(server, time, None),
            Fault::HostLoss => {
                let loss = self.draw_loss();
                match self.rng.random_bool(0.4) {
                    true => self.spread_to_one(server, time, loss),
                    false => self.inject_host_crash(server, time, Some(loss)),
                }
            }
            Fault::GuestCrash => {
                if self.may_fail(server) && self.servers[server.index()].guest.is_some() {
                    self.count("guest crash");
                    self.stop_guest(server);
                    self.after(time, Event::GuestStart(server));
                }
            }
            Fault::Wipe => self.wipe_guest(server, time),
            Fault::All => self.kill_all(most),
            Fault::Pause => self.inject_pause(server, time),
            Fault::Lag => {
                self.pause(Process::Guest(server), time);
                if self.rng.random_bool(0.3) {
                    self.pause(Process::Host(server), time);
                }
            }
            Fault::ClockJump => {
                self.count("host clock jump");
                let (back, jump) = (self.rng.random_bool(0.5), self.rng.random_range(1..5_000_000));
                let wall = &mut self.servers[server.index()].wall;
                wall.0 = if back { wall.0 - jump } else { wall.0 + jump };
            }
            Fault::ClientCrash(client) => self.crash_client(client),
        }
        self.plan_fault(fault);
    }

    /// Whether a server may fail now: with it, at most `f` are faulty.
    pub(crate) fn may_fail(&self, server: ServerId) -> bool {
        let faulty = |s: ServerId| {
            let entry = &self.servers[s.index()];
            self.is_byzantine(s)
                || entry.host.is_none()
                || entry.guest.is_none()
                || entry.dies_after.is_some()
                || entry.is_behind()
                || entry.has_forgotten()
        };
        let others = ServerId::all(self.plan.n).filter(|s| *s != server && faulty(*s));
        others.count() < self.plan.f
    }

    fn inject_host_crash(&mut self, server: ServerId, time: Micros, loss: Option<Loss>) {
        if !self.may_fail(server) || self.servers[server.index()].host.is_none() {
            return;
        }
        self.servers[server.index()].loss = loss;
        if self.happens(self.plan.processes.mid_step) {
            // Peers' frames come most often; what is between admitting a frame and consuming it
            // (R3) is seen only by who dies of its guest's.
            let admitting = self.rng.random_bool(0.5);
            let most = if admitting { STORES_OF_ADMISSION } else { STORES_BEFORE_DEATH };
            let stores = self.rng.random_range(0..most);
            let entry = &mut self.servers[server.index()];
            (entry.dies_after, entry.dies_admitting) = (Some(stores), admitting);
        } else {
            self.count("host crash");
            self.crash_host(server);
            self.after(time, Event::HostStart(server));
            self.follow_loss(server, time);
            if self.happens(self.plan.hosts.retired) {
                self.after(Micros(time.0 / 2), Event::Retire(server));
            }
        }
        if self.happens(self.plan.processes.with_guest) {
            self.stop_guest(server);
            self.after(time.plus(Micros(50_000)), Event::GuestStart(server));
        }
    }

    fn inject_pause(&mut self, server: ServerId, time: Micros) {
        let (host, guest) = (self.rng.random_bool(0.6), self.rng.random_bool(0.6));
        if host {
            self.pause(Process::Host(server), time);
        }
        if guest {
            self.pause(Process::Guest(server), time);
        }
    }

    /// When a timer goes off that should at `at`. One that is set early or late may still be
    /// replaced, or its process die: the fault counts when it [goes off](Self::went_off).
    pub(crate) fn skewed(&mut self, at: Micros) -> Timer {
        let plan = self.plan.processes;
        let (mut skewed, mut fault) = (at, None);
        if self.happens(plan.early_timers) {
            let left = at.since(self.now);
            skewed = self.now.plus(self.between((Micros(0), left)));
            fault = Some("timer early");
        } else if self.happens(plan.late_timers.0) {
            skewed = at.plus(self.between((Micros(0), plan.late_timers.1)));
            fault = Some("timer late");
        }
        // One that is due already goes off a moment later, not in the same one for ever.
        let [due, skewed] = [at, skewed].map(|at| at.max(self.now.plus(Micros(10))));
        Timer { at: skewed, fault: fault.filter(|_| skewed != due) }
    }

    /// A timer goes off.
    pub(crate) fn went_off(&mut self, timer: Timer) {
        if let Some(fault) = timer.fault {
            self.count(fault);
        }
    }

    /// The faults are over: the network is calm, whoever may come back does, and the liars fall
    /// silent. Servers that were broken into stay so, and hosts that are to stay down do.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.plan.payload = crate::plan::PayloadPlan::calm();
        self.plan.trusted = crate::plan::TrustedPlan::calm();
        self.plan.processes.early_timers = 0;
        self.plan.processes.late_timers.0 = 0;
        self.rejoin_all();
        self.resume_all();
        for server in ServerId::all(self.plan.n) {
            self.return_retired(server);
            let entry = &mut self.servers[server.index()];
            entry.dies_after = None;
            if entry.host.is_some() {
                entry.loss = None;
                self.start_guest(server);
            } else if self.plan.processes.stay_down && !entry.felled {
                self.count("host stays down");
                self.stop_guest(server);
            } else {
                self.start_host(server, true);
                self.start_guest(server);
            }
        }
        if self.servers.iter().any(Server::recovers) {
            // It waits for all others: an operator gives those up that stay down.
            ServerId::all(self.plan.n).for_each(|server| self.retire(server));
        }
        self.mend_links();
        for client in self.crowd.ids() {
            if !self.crowd.runs(client) && !self.plan.clients[client.index()].stays_down {
                self.start_client(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(sim: &Sim, kind: &str) -> u64 {
        sim.fault_counts().get(kind).copied().unwrap_or(0)
    }

    #[test]
    fn a_timer_counts_when_it_goes_off_and_only_if_that_is_early_or_late() {
        let mut sim = Sim::calm(1);
        let at = sim.now.plus(Micros(1_000_000));
        sim.plan.processes.early_timers = 1000;
        let early = sim.skewed(at);
        assert!(early.at < at && counted(&sim, "timer early") == 0);
        sim.went_off(early);
        assert_eq!(counted(&sim, "timer early"), 1);
        let due = sim.skewed(sim.now);
        sim.went_off(due);
        assert_eq!(counted(&sim, "timer early"), 1, "it was due already");
        sim.plan.processes.early_timers = 0;
        sim.plan.processes.late_timers = (1000, Micros(1_000_000));
        let late = sim.skewed(at);
        assert!(late.at > at && counted(&sim, "timer late") == 0);
        sim.went_off(late);
        assert_eq!(counted(&sim, "timer late"), 1);
    }

    #[test]
    fn a_pause_counts_once_and_only_of_a_process_that_lives() {
        let mut sim = Sim::calm(1);
        sim.crash_host(ServerId(0));
        for host in [ServerId(0), ServerId(1)] {
            sim.pause(Process::Host(host), Micros(200_000));
        }
        while sim.now < Micros(100_000) {
            sim.step();
        }
        assert_eq!(counted(&sim, "host pause"), 1);
    }

    #[test]
    fn a_host_that_dies_between_two_steps_does_not_die_in_one() {
        for (stores, kind) in [(0, "host crash in mid-step"), (1_000_000, "host crash")] {
            let mut sim = Sim::calm(1);
            (sim.servers[0].dies_after, sim.servers[0].dies_admitting) = (Some(stores), true);
            while sim.servers[0].dies_after.is_some() {
                sim.step();
            }
            assert_eq!((counted(&sim, kind), sim.fault_counts().len()), (1, 1), "{kind}");
        }
    }
}
