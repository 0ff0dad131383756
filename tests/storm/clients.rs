//! The processes of clients and listeners, and what they have noted so far.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_registers::ids::{ClientId, Micros};
use simulator::history::Event;

use crate::log::{Line, Tail, now};
use crate::process::{self, Task};
use crate::support::Cluster;

/// What a client is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    /// It sends: so many requests in flight, and with pauses of at most so many milliseconds.
    Send { in_flight: usize, pause_ms: u64 },
    /// It listens.
    Listen,
}

struct Person {
    job: Job,
    /// How often it was started.
    life: u64,
    child: Option<Child>,
    tail: Option<Tail>,
    /// It has said that it is done.
    ended: bool,
    /// By ticket: the requests of this life that are not answered, and when they were made.
    waiting: BTreeMap<u64, Micros>,
    /// When the last request was made that is answered.
    served: Micros,
    /// The last place that it has heard of.
    heard: u64,
}

/// All clients of a cluster.
pub(crate) struct Crew {
    seed: u64,
    dir: PathBuf,
    notes: PathBuf,
    people: Vec<Person>,
    /// Everything that they noted.
    pub(crate) noted: Vec<(Micros, Event)>,
    pub(crate) requests: u64,
    pub(crate) answers: u64,
    /// The highest place that anybody was answered.
    pub(crate) last: u64,
    /// The longest that a request waited for its answer.
    pub(crate) longest: Micros,
}

impl Crew {
    /// The clients 0, 1, ... of a cluster, with a job each. None is started.
    pub(crate) fn new(cluster: &Cluster, seed: u64, jobs: &[Job]) -> Crew {
        let notes = cluster.folder.beside().join("notes");
        fs::create_dir(&notes).unwrap();
        let person = |job: &Job| Person {
            job: *job,
            life: 0,
            child: None,
            tail: None,
            ended: false,
            waiting: BTreeMap::new(),
            served: Micros(0),
            heard: 0,
        };
        Crew {
            seed,
            dir: cluster.folder.dir.clone(),
            notes,
            people: jobs.iter().map(person).collect(),
            noted: Vec::new(),
            requests: 0,
            answers: 0,
            last: 0,
            longest: Micros(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.people.len()
    }

    pub(crate) fn start_all(&mut self) {
        (0..self.len()).for_each(|id| self.start(id));
    }

    /// Starts a client that does not run, for its first or a further life.
    pub(crate) fn start(&mut self, id: usize) {
        let person = &mut self.people[id];
        assert!(person.child.is_none(), "client {id} runs");
        person.life += 1;
        let (seed, life) = (self.seed, person.life);
        let task = match person.job {
            Job::Send { in_flight, pause_ms } => Task::Send { seed, life, in_flight, pause_ms },
            Job::Listen => Task::Listen { from: person.heard + 1 },
        };
        let log = self.notes.join(format!("{id}-{life}"));
        fs::write(&log, "").unwrap();
        person.tail = Some(Tail::open(&log, id as u32));
        let said = self.dir.join("logs").join(format!("client-{id}.log"));
        let said = OpenOptions::new().create(true).append(true).open(said).unwrap();
        let mut command = process::client(&self.dir, id as u32, task, &log);
        command.stdout(Stdio::from(said.try_clone().unwrap())).stderr(said);
        person.child = Some(command.spawn().unwrap());
    }

    /// A listener that never listened hears everything from the first place on.
    pub(crate) fn start_over(&mut self, id: usize) {
        self.people[id].heard = 0;
        self.start(id);
    }

    pub(crate) fn runs(&self, id: usize) -> bool {
        self.people[id].child.is_some()
    }

    /// Kills a client (SIGKILL): nobody waits for its answers any more.
    pub(crate) fn kill(&mut self, id: usize) {
        let mut child = self.people[id].child.take().expect("a client that runs");
        child.kill().unwrap();
        child.wait().unwrap();
        self.read(id);
        self.people[id].waiting.clear();
        let client = ClientId(id as u32);
        self.noted.push((now(), Event::ClientCrashed { client }));
    }

    /// SIGSTOP, SIGCONT.
    pub(crate) fn signal(&self, id: usize, signal: Signal) {
        let child = self.people[id].child.as_ref().expect("a client that runs");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    /// Tells a client to do nothing new, and to end when it is done.
    pub(crate) fn dismiss(&mut self, id: usize) {
        drop(self.people[id].child.as_mut().and_then(|child| child.stdin.take()));
    }

    /// Whether a client that was dismissed has said that it is done, and ended.
    pub(crate) fn has_ended(&mut self, id: usize) -> bool {
        let person = &mut self.people[id];
        if !person.ended {
            return false;
        }
        if let Some(mut child) = person.child.take() {
            child.wait().unwrap();
        }
        true
    }

    /// Takes what they have noted since the last call.
    ///
    /// # Panics
    ///
    /// If one says that a request failed, or has ended by itself.
    pub(crate) fn poll(&mut self) {
        for id in 0..self.len() {
            self.read(id);
            let person = &mut self.people[id];
            if let Some(child) = &mut person.child
                && let Some(status) = child.try_wait().unwrap()
            {
                self.read(id);
                assert!(self.people[id].ended, "client {id} has ended: {status}");
            }
        }
    }

    fn read(&mut self, id: usize) {
        let Some(tail) = &mut self.people[id].tail else { return };
        for line in tail.read() {
            match line {
                Line::Happened(at, event) => self.take(id, at, event),
                Line::Failed(what) => panic!("client {id} was failed: {what}"),
                Line::Ended => self.people[id].ended = true,
            }
        }
    }

    fn take(&mut self, id: usize, at: Micros, event: Event) {
        let person = &mut self.people[id];
        match &event {
            Event::Broadcast { ticket, .. } => {
                self.requests += 1;
                person.waiting.insert(*ticket, at);
            }
            Event::Answered { ticket, order, .. } => {
                self.answers += 1;
                self.last = self.last.max(order.0);
                if let Some(wanted) = person.waiting.remove(ticket) {
                    person.served = person.served.max(wanted);
                    self.longest = self.longest.max(at.since(wanted));
                }
            }
            Event::Heard { order, .. } => person.heard = order.0,
            _ => {}
        }
        self.noted.push((at, event));
    }

    /// Who sends and waits for an answer to something that was wanted before `at`, or has no answer
    /// to anything wanted since.
    pub(crate) fn unserved_since(&self, at: Micros) -> Option<usize> {
        let unserved = |person: &Person| {
            let sends = matches!(person.job, Job::Send { .. });
            let waits = person.waiting.values().any(|wanted| *wanted <= at);
            sends && (waits || person.served <= at)
        };
        self.people.iter().position(unserved)
    }

    /// The last place that a listener has heard of.
    pub(crate) fn heard(&self, id: usize) -> u64 {
        self.people[id].heard
    }

    pub(crate) fn is_listener(&self, id: usize) -> bool {
        matches!(self.people[id].job, Job::Listen)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for child in self.people.iter_mut().filter_map(|person| person.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
