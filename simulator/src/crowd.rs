//! The clients of a simulation, and what they are put through.

use protocol::messages::{self, ToClient};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::{ClientId, Micros, OrderNumber, ServerId};

use crate::client::{Client, Input, Liar, Output};
use crate::clock::Clock;
use crate::engine::{Event, Sim};
use crate::faults::Timer;
use crate::history::Event as Happened;
use crate::plan::Plan;
use crate::servers::EPOCH;

/// Lies of one client.
const MAX_LIES: u64 = 60;

enum Mind {
    Correct(Option<Box<Client>>),
    Lying(Liar),
}

struct Person {
    mind: Mind,
    epoch: u64,
    clock: Clock,
    /// What its wall clock shows more than its other one, to number sessions.
    wall: Micros,
    timer: Option<Timer>,
    /// It has not crashed again since it crashed by itself.
    relapses: bool,
    tickets: u64,
    lies: u64,
    rng: ChaCha8Rng,
}

/// All clients.
pub(crate) struct Crowd {
    people: Vec<Person>,
}

impl Crowd {
    pub(crate) fn new(plan: &Plan, rng: &mut ChaCha8Rng) -> Crowd {
        let (drift, payload) = (plan.processes.drift_ppm, plan.rings.max_payload_bytes);
        let mut person = |id: ClientId, lying: bool| Person {
            mind: if lying {
                Mind::Lying(Liar::new(id, plan.n, payload))
            } else {
                Mind::Correct(None)
            },
            epoch: 0,
            clock: Clock {
                offset: Micros(rng.random_range(0..10_000_000)),
                drift_ppm: rng.random_range(-drift..=drift),
            },
            wall: EPOCH,
            timer: None,
            relapses: false,
            tickets: 0,
            lies: 0,
            rng: Sim::derive(rng),
        };
        let people = plan.clients.iter().zip(0..);
        Crowd { people: people.map(|(plan, id)| person(ClientId(id), plan.lying)).collect() }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ClientId> + use<> {
        (0..self.people.len() as u32).map(ClientId)
    }

    /// Whether a client's process runs.
    pub(crate) fn runs(&self, client: ClientId) -> bool {
        !matches!(self.people[client.index()].mind, Mind::Correct(None))
    }

    /// Which incarnation of a client this is.
    pub(crate) fn epoch(&self, client: ClientId) -> u64 {
        self.people[client.index()].epoch
    }

    /// The first client that is not content, and what it waits for.
    pub(crate) fn complaint(&self, last: OrderNumber) -> Option<(ClientId, String)> {
        self.people.iter().zip(0..).find_map(|(person, id)| match &person.mind {
            Mind::Correct(Some(client)) if !client.is_content(last) => {
                Some((ClientId(id), client.complaint(last)))
            }
            _ => None,
        })
    }
}

impl Sim {
    pub(crate) fn start_clients(&mut self) {
        for client in self.crowd.ids() {
            self.start_client(client);
            if let Mind::Lying(_) = self.crowd.people[client.index()].mind {
                self.after(Micros(50_000), Event::Lie(client));
            }
        }
    }

    /// A client starts: its first incarnation, or one after a crash.
    pub(crate) fn start_client(&mut self, client: ClientId) {
        let plan = self.plan.clients[client.index()];
        let person = &mut self.crowd.people[client.index()];
        if let Mind::Correct(Some(_)) = &person.mind {
            return;
        }
        person.epoch += 1;
        let epoch = person.epoch;
        if let Mind::Correct(mind) = &mut person.mind {
            let session = person.clock.show(self.now).plus(person.wall).0;
            // 24 bits, as real clients draw them.
            let life = (session, person.rng.random::<u32>() >> 8);
            let settings = (&self.plan.timing, &self.plan.rings);
            let new = Client::start(client, self.plan.f, &plan, settings, life);
            *mind = Some(Box::new(new));
            person.timer = None;
            self.history.push(self.now, Happened::ClientStarted { client, session });
            if plan.listens {
                self.history
                    .push(self.now, Happened::ListenerStarted { client, from: OrderNumber(1) });
            }
            self.want_later(client, epoch);
        }
        for server in ServerId::all(self.plan.n) {
            self.break_connection(client, server);
            self.dial_later(client, server);
        }
    }

    /// A client crashes; unless it stays down, it starts again some time.
    pub(crate) fn crash_client(&mut self, client: ClientId) {
        let plan = self.plan.clients[client.index()];
        let back = self.between((Micros(10_000), Micros(2_000_000)));
        if !self.stop_client(client) || plan.stays_down {
            return;
        }
        self.crowd.people[client.index()].relapses = plan.relapses;
        if plan.clock_back && self.rng.random_bool(0.5) {
            self.set_clock_back(client);
        }
        self.after(back, Event::ClientStart(client));
    }

    /// A client crashes that has just taken a session past those of its earlier lives. What it sent
    /// in that may still be on its way when its next life, whose clock is behind too, takes one.
    pub(crate) fn relapse(&mut self, client: ClientId, epoch: u64) {
        if self.crowd.epoch(client) == epoch && !self.healed && self.stop_client(client) {
            self.set_clock_back(client);
            let back = self.between((Micros(100), Micros(20_000)));
            self.after(back, Event::ClientStart(client));
        }
    }

    /// A client's process is gone. False if it was not there.
    fn stop_client(&mut self, client: ClientId) -> bool {
        let person = &mut self.crowd.people[client.index()];
        let Mind::Correct(mind @ Some(_)) = &mut person.mind else { return false };
        *mind = None;
        person.epoch += 1;
        self.count("client crash");
        self.history.push(self.now, Happened::ClientCrashed { client });
        for server in ServerId::all(self.plan.n) {
            self.break_connection(client, server);
        }
        true
    }

    fn set_clock_back(&mut self, client: ClientId) {
        self.count("client clock went back");
        let person = &mut self.crowd.people[client.index()];
        person.wall = Micros(person.wall.0 - self.rng.random_range(1..20_000_000));
        self.history.push(self.now, Happened::ClockWentBack { client });
    }

    fn want_later(&mut self, client: ClientId, epoch: u64) {
        let every = self.plan.clients[client.index()].every;
        let delay = self.between((Micros(0), Micros(2 * every.0)));
        self.after(delay, Event::ClientWants(client, epoch));
    }

    pub(crate) fn client_wants(&mut self, client: ClientId, epoch: u64) {
        let person = &self.crowd.people[client.index()];
        if person.epoch != epoch || self.healed || person.tickets >= self.plan.rings.orders {
            return;
        }
        self.step_client(client, Input::Broadcast);
        self.want_later(client, epoch);
    }

    /// Every client that runs wants one more thing ordered.
    pub(crate) fn probe(&mut self) {
        for client in self.crowd.ids() {
            self.step_client(client, Input::Broadcast);
        }
    }

    pub(crate) fn reach_client(
        &mut self,
        server: ServerId,
        client: ClientId,
        generation: u64,
        message: ToClient,
    ) {
        if self.is_open(client, server, generation) {
            self.history.trace((server, client, messages::encode(&message)));
            self.step_client(client, Input::FromServer(server, message));
        }
    }

    pub(crate) fn client_link(&mut self, client: ClientId, server: ServerId, epoch: u64, up: bool) {
        if self.crowd.epoch(client) == epoch {
            let input = if up { Input::Connected(server) } else { Input::Disconnected(server) };
            self.step_client(client, input);
        }
    }

    pub(crate) fn client_timer(&mut self, client: ClientId, epoch: u64) {
        let person = &mut self.crowd.people[client.index()];
        if person.epoch == epoch
            && let Some(timer) = person.timer.take_if(|timer| timer.at <= self.now)
        {
            self.went_off(timer);
            self.step_client(client, Input::Timer);
        }
    }

    fn step_client(&mut self, client: ClientId, input: Input) {
        let mut out = Vec::new();
        let person = &mut self.crowd.people[client.index()];
        let Mind::Correct(Some(process)) = &mut person.mind else { return };
        let now = person.clock.show(self.now);
        if process.step(now, input, person.tickets + 1, &mut person.rng, &mut out) {
            person.tickets += 1;
        }
        let relapses = process.has_leapt() && std::mem::take(&mut person.relapses);
        let epoch = person.epoch;
        self.carry_out_client(client, out);
        if relapses {
            let soon = self.between((Micros(0), Micros(20_000)));
            self.after(soon, Event::Relapse(client, epoch));
        }
        self.arm_client(client);
    }

    fn carry_out_client(&mut self, client: ClientId, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(server, message) => self.send_to_server(client, server, message),
                Output::Note(event) => self.history.push(self.now, event),
            }
        }
    }

    fn arm_client(&mut self, client: ClientId) {
        let person = &self.crowd.people[client.index()];
        let Mind::Correct(Some(process)) = &person.mind else { return };
        let Some(deadline) = process.next_deadline() else { return };
        let (at, epoch) = (person.clock.when(deadline), person.epoch);
        if person.timer.is_some_and(|set| set.at <= at) {
            return;
        }
        let timer = self.skewed(at);
        let person = &mut self.crowd.people[client.index()];
        if person.timer.is_none_or(|set| set.at > timer.at) {
            person.timer = Some(timer);
            self.at(timer.at, Event::ClientTimer(client, epoch));
        }
    }

    pub(crate) fn lie(&mut self, client: ClientId) {
        let every = self.plan.clients[client.index()].every;
        let person = &mut self.crowd.people[client.index()];
        let Mind::Lying(liar) = &mut person.mind else { return };
        if self.healed || person.lies >= MAX_LIES {
            return;
        }
        person.lies += 1;
        let mut out = Vec::new();
        let kind = liar.lie(&mut person.rng, &mut out);
        self.count(kind);
        self.carry_out_client(client, out);
        let delay = self.between((Micros(1_000), every));
        self.after(delay, Event::Lie(client));
    }
}
