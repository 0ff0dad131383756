//! A cluster of real processes with clients, what is broken in it, and who has recovered.
//!
//! A server counts as faulty from the moment that anything of it is killed or stopped until, with
//! both its processes back, it has delivered all that the others had when it came back. At most `f`
//! servers are faulty at a time; an act that would make it more waits.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use shared_registers::ids::{Batch, Micros, ServerId};
use simulator::history::Event;
use simulator::recorded::Recorded;

use crate::clients::{Crew, Job};
use crate::log::now;
use crate::registers::Streams;
use crate::schedule::{Act, Deed};
use crate::support::{Cluster, Role};
use crate::watch::Watch;

/// A server that is back has delivered within so long what the others had.
const CATCH_UP: Duration = Duration::from_secs(40);
/// Everything that is asked for in a calm, or before it, is answered within so long.
pub(crate) const LIVENESS: Duration = Duration::from_secs(30);
/// How often the world is looked at.
const LOOK: Duration = Duration::from_millis(4);
/// Anonymous memory of a process, in KiB. A guest keeps 64 MiB of payloads for listeners, and what
/// it has not delivered; a host next to nothing.
const MEMORY_KIB: [(Role, &str, u64); 2] = [
    (Role::Host, "KiB of anonymous memory of a host", 64 << 10),
    (Role::Guest, "KiB of anonymous memory of a guest", 192 << 10),
];
const MEMORY_EVERY: Micros = Micros::from_ms(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    Start(Role),
    Resume(Role),
}

/// How a server is.
#[derive(Default)]
struct Health {
    /// What will be done about it, and when.
    repairs: Vec<(Micros, Repair)>,
    faulty: bool,
    /// When it came back, and what the others had delivered by then.
    back: Option<(Micros, u64)>,
}

/// A client that is to come back.
enum Return {
    Start(usize),
    Resume(usize),
}

pub(crate) struct World {
    // Clients end before the servers do.
    pub(crate) crew: Crew,
    watch: Watch,
    pub(crate) cluster: Cluster,
    pub(crate) streams: Vec<Streams>,
    health: Vec<Health>,
    returns: Vec<(Micros, Return)>,
    memory: BTreeMap<(Role, u16), u64>,
    memory_at: Micros,
    /// How often each deed was done.
    pub(crate) deeds: BTreeMap<Deed, u64>,
    /// The longest that a server took to catch up.
    pub(crate) caught_up: Micros,
}

impl World {
    /// Starts the clients of a cluster that serves.
    pub(crate) fn new(cluster: Cluster, seed: u64, jobs: &[Job]) -> World {
        let mut crew = Crew::new(&cluster, seed, jobs);
        crew.start_all();
        World {
            crew,
            watch: Watch::start(&cluster),
            streams: Streams::attach_all(&cluster),
            health: cluster.ids().map(|_| Health::default()).collect(),
            returns: Vec::new(),
            memory: BTreeMap::new(),
            memory_at: Micros(0),
            deeds: BTreeMap::new(),
            caught_up: Micros(0),
            cluster,
        }
    }

    /// Looks at everything until `done` says so; returns whether it did in time.
    fn run_until(&mut self, patience: Duration, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = now().plus(micros(patience));
        loop {
            self.look();
            if done(self) {
                return true;
            }
            if now() > end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// As [`Self::run_until`]; it must be done in time.
    pub(crate) fn await_that(
        &mut self,
        what: &str,
        patience: Duration,
        done: impl FnMut(&mut World) -> bool,
    ) {
        let in_time = self.run_until(patience, done);
        assert!(in_time, "waited {patience:?} in vain: {what}; {}", self.account());
    }

    /// What is known of everybody, for those who waited in vain.
    fn account(&self) -> String {
        let said = |answer: &Option<(Micros, protocol::messages::Status)>| match answer {
            Some((at, s)) => format!(
                "{} ms ago delivered {} in term {}, host {}",
                now().since(*at).0 / 1000,
                s.delivered,
                s.term,
                if s.host_up { "up" } else { "gone" }
            ),
            None => "never".to_owned(),
        };
        let servers = self.watch.answers();
        let servers: Vec<_> = servers.iter().map(said).collect();
        let lengths: Vec<_> = self.streams.iter().map(Streams::lengths).collect();
        format!(
            "servers answered {servers:?}; their hosts show {lengths:?}; last {}",
            self.crew.last
        )
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Takes in what happened, and does what is due.
    fn look(&mut self) {
        self.crew.poll();
        self.streams.iter_mut().for_each(Streams::read);
        self.cluster.assert_all_run();
        self.repair();
        self.judge_health();
        self.weigh();
    }

    fn repair(&mut self) {
        let time = now();
        for id in self.cluster.ids() {
            let repairs = &mut self.health[usize::from(id)].repairs;
            let due: Vec<_> = repairs.extract_if(.., |(at, _)| *at <= time).collect();
            for (_, repair) in due {
                match repair {
                    Repair::Start(role) => self.cluster.start(role, id),
                    Repair::Resume(role) => self.cluster.resume(role, id),
                }
            }
        }
        for (_, back) in self.returns.extract_if(.., |(at, _)| *at <= time).collect::<Vec<_>>() {
            match back {
                Return::Start(id) => self.crew.start(id),
                Return::Resume(id) => self.crew.signal(id, Signal::SIGCONT),
            }
        }
    }

    fn judge_health(&mut self) {
        let answers = self.watch.answers();
        let most = answers.iter().flatten().map(|(_, status)| status.delivered.0).max();
        for (id, health) in self.health.iter_mut().enumerate() {
            if !health.faulty || !health.repairs.is_empty() {
                continue;
            }
            let (at, target) = *health.back.get_or_insert_with(|| (now(), most.unwrap_or(0)));
            let there = answers[id].as_ref().is_some_and(|(asked, status)| {
                *asked >= at && status.host_up && status.delivered.0 >= target
            });
            let took = now().since(at);
            if there {
                *health = Health::default();
                self.caught_up = self.caught_up.max(took);
            } else if took > micros(CATCH_UP) {
                let account = self.account();
                panic!("server {id} did not deliver {target} in {CATCH_UP:?}; {account}");
            }
        }
    }

    /// Notes how much memory each process has, where it is more than before.
    fn weigh(&mut self) {
        if now().since(self.memory_at) < MEMORY_EVERY {
            return;
        }
        self.memory_at = now();
        for (role, name, bound) in MEMORY_KIB {
            for id in self.cluster.ids() {
                let Some(length) = self.anonymous_kib(role, id) else { continue };
                let most = self.memory.entry((role, id)).or_default();
                if length > *most {
                    *most = length;
                    let event = Event::Queue { owner: u32::from(id), name, length, bound };
                    self.crew.noted.push((now(), event));
                }
            }
        }
    }

    /// Memory of a process that runs, without the register files.
    pub(crate) fn anonymous_kib(&self, role: Role, id: u16) -> Option<u64> {
        if !self.cluster.has(role, id) {
            return None;
        }
        let path = format!("/proc/{}/status", self.cluster.pid(role, id));
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The most that any process of a kind ever had, in KiB.
    pub(crate) fn most_memory(&self, role: Role) -> u64 {
        let all = self.memory.iter().filter(|((r, _), _)| *r == role);
        all.map(|(_, kib)| *kib).max().unwrap_or(0)
    }

    pub(crate) fn faulty(&self) -> usize {
        self.health.iter().filter(|health| health.faulty).count()
    }

    /// The highest term that a server said it is in.
    pub(crate) fn term(&self) -> u64 {
        let answers = self.watch.answers();
        answers.iter().flatten().map(|(_, status)| status.term.0).max().unwrap_or(0)
    }

    /// What a server said last that it has delivered.
    pub(crate) fn delivered(&self, id: u16) -> u64 {
        let answers = self.watch.answers();
        answers[usize::from(id)].as_ref().map_or(0, |(_, status)| status.delivered.0)
    }

    /// All who send are answered what they wait for, and end.
    pub(crate) fn dismiss_all(&mut self) -> Vec<usize> {
        let people = 0..self.crew.len();
        let (listeners, senders): (Vec<_>, Vec<_>) =
            people.partition(|id| self.crew.is_listener(*id));
        senders.iter().for_each(|id| self.crew.dismiss(*id));
        self.await_that("all clients are done", LIVENESS, |world| {
            senders.iter().all(|id| world.crew.has_ended(*id))
        });
        listeners
    }

    /// Waits its time, and until it makes no more than `f` servers faulty; then does it.
    pub(crate) fn perform(&mut self, act: &Act) {
        self.pass(act.wait);
        *self.deeds.entry(act.deed).or_default() += 1;
        let (guest, host): (&[Role], &[Role]) = (&[Role::Guest], &[Role::Host]);
        let both = &[Role::Host, Role::Guest];
        match act.deed {
            Deed::KillGuest => self.strike(act, guest, true),
            Deed::KillHost => self.strike(act, host, true),
            Deed::KillBoth => self.strike(act, both, true),
            Deed::StopGuest => self.strike(act, guest, false),
            Deed::StopHost => self.strike(act, host, false),
            Deed::StopBoth => self.strike(act, both, false),
            Deed::KillClient | Deed::StopClient => self.strike_client(act),
            Deed::KillAll => {
                for id in self.cluster.ids() {
                    self.break_server(id, act, both, true);
                }
            }
        }
    }

    fn strike(&mut self, act: &Act, roles: &[Role], kill: bool) {
        let n = self.cluster.n() as u64;
        let f = self.cluster.description.f;
        let mut victim = 0;
        self.await_that("a server may be broken", CATCH_UP, |world| {
            victim = ((world.term() + u64::from(act.victim)) % n) as u16;
            let already = world.health[usize::from(victim)].faulty;
            already || world.faulty() < f
        });
        self.break_server(victim, act, roles, kill);
    }

    fn break_server(&mut self, id: u16, act: &Act, roles: &[Role], kill: bool) {
        let health = &mut self.health[usize::from(id)];
        for role in roles {
            if !self.cluster.has(*role, id) {
                continue; // It is dead already, and will be started.
            }
            let late = (*role == Role::Guest) != act.guest_first;
            let apart = if late { act.apart } else { Duration::ZERO };
            let back = now().plus(micros(act.lasts + apart));
            let resume = Repair::Resume(*role);
            let stopped = health.repairs.iter().any(|(_, repair)| *repair == resume);
            if kill {
                health.repairs.retain(|(_, repair)| *repair != resume);
                self.cluster.kill(*role, id);
                health.repairs.push((back, Repair::Start(*role)));
            } else if !stopped {
                self.cluster.pause(*role, id);
                health.repairs.push((back, resume));
            }
            (health.faulty, health.back) = (true, None);
        }
    }

    fn strike_client(&mut self, act: &Act) {
        let id = usize::from(act.victim) % self.crew.len();
        let back = now().plus(micros(act.lasts));
        let stopped = self.returns.iter().any(|(_, r)| matches!(r, Return::Resume(i) if *i == id));
        if !self.crew.runs(id) {
            return;
        }
        if act.deed == Deed::KillClient {
            self.returns.retain(|(_, back)| !matches!(back, Return::Resume(i) if *i == id));
            self.crew.kill(id);
            self.returns.push((back, Return::Start(id)));
        } else if !stopped {
            self.crew.signal(id, Signal::SIGSTOP);
            self.returns.push((back, Return::Resume(id)));
        }
    }

    /// Nothing is broken any more; then whatever was asked for is answered in time, and so is
    /// what is asked for now.
    pub(crate) fn calm(&mut self) {
        self.await_that("all are back and have caught up", CATCH_UP, |world| {
            world.faulty() == 0 && world.returns.is_empty()
        });
        let healed = now();
        let correct = ServerId::all(self.cluster.n()).collect();
        self.crew.noted.push((healed, Event::Healed { correct }));
        self.await_that("all requests are answered in the calm", LIVENESS, |world| {
            world.crew.unserved_since(healed).is_none()
        });
    }

    pub(crate) fn shake(&mut self) {
        self.crew.noted.push((now(), Event::Shaken));
    }

    /// Ends the run: all clients finish, a listener hears everything from the start, all servers
    /// are at one place and all hosts hold the same.
    pub(crate) fn finish(&mut self) {
        let listeners = self.dismiss_all();
        let last = self.crew.last;
        self.await_that("all listeners have heard everything", LIVENESS, |world| {
            listeners.iter().all(|id| world.crew.heard(*id) >= last)
        });
        let again = listeners[0];
        self.crew.kill(again);
        self.crew.start_over(again);
        self.await_that("a new listener hears everything", LIVENESS, |world| {
            world.crew.heard(again) >= last
        });
        listeners.iter().for_each(|id| self.crew.dismiss(*id));
        self.await_that("all listeners are done", LIVENESS, |world| {
            listeners.iter().all(|id| world.crew.has_ended(*id))
        });
        let quiet = now();
        self.await_that("all servers are at one place", LIVENESS, |world| {
            world.note_statuses(quiet) && {
                let lengths = world.streams[0].lengths();
                world.streams.iter().all(|streams| streams.lengths() == lengths)
            }
        });
    }

    /// Notes what all servers say of themselves, if they all answered since and say the same.
    fn note_statuses(&mut self, since: Micros) -> bool {
        let answers: Vec<_> = self.watch.answers().into_iter().flatten().collect();
        let place = |status: &protocol::messages::Status| (status.delivered, status.committed);
        let alike = answers.iter().all(|(at, s)| *at > since && place(s) == place(&answers[0].1));
        if answers.len() < self.cluster.n() || !alike || answers[0].1.delivered.0 < self.crew.last {
            return false;
        }
        for (at, status) in answers {
            let (server, batch, chain) = (status.id, Batch(status.committed), status.chain);
            self.crew.noted.push((at, Event::Committed { server, batch, chain }));
        }
        true
    }

    /// Kills everything; what was recorded.
    pub(crate) fn into_recorded(mut self) -> Recorded {
        let description = &self.cluster.description;
        Recorded {
            cluster: description.id(),
            n: description.n(),
            clients: description.clients,
            window: description.limits.window,
            liveness_bound: micros(LIVENESS),
            noted: std::mem::take(&mut self.crew.noted),
            streams: self.streams.into_iter().map(|streams| streams.records).collect(),
        }
    }
}

pub(crate) fn micros(time: Duration) -> Micros {
    Micros(time.as_micros() as u64)
}
