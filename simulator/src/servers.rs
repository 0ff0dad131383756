//! The servers of a simulation: their files and clocks, and their guests.

use host_agent::Host;
use protocol::replica;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::{ClientId, Micros, OrderNumber, ServerId};

use crate::clock::Clock;
use crate::cluster::{self, CLUSTER};
use crate::engine::{Event, Sim};
use crate::faults::Timer;
use crate::guest::store::Disk;
use crate::guest::{Guest, GuestConfig, GuestInput, GuestOutput};
use crate::history::{Event as Happened, Longest};
use crate::memory::{Memory, SimWords};
use crate::plan::Plan;
use crate::recovery::Loss;

/// Where virtual time begins for wall clocks: some day of 2023.
pub(crate) const EPOCH: Micros = Micros(1_700_000_000_000_000);

/// A server: a host and a guest, and what they share.
pub(crate) struct Server {
    pub(crate) read: Memory,
    pub(crate) write: Memory,
    pub(crate) host: Option<Host<Memory, Memory>>,
    /// Which incarnation of the host agent this is.
    pub(crate) host_epoch: u64,
    pub(crate) host_clock: Clock,
    /// Of what the host, in any of its incarnations, keeps.
    pub(crate) longest: Longest,
    /// What the host's wall clock shows more than its other one.
    pub(crate) wall: Micros,
    /// The host's next step is its last: only so many of its stores take effect.
    pub(crate) dies_after: Option<u64>,
    /// That step is one in which it takes a frame of its guest's.
    pub(crate) dies_admitting: bool,
    /// R6: what becomes of its files before it starts again.
    pub(crate) loss: Option<Loss>,
    /// Names the boot of its machine.
    pub(crate) boot: u64,
    /// It died with all others: no fault of its own.
    pub(crate) felled: bool,
    /// How often its host began to recover, and whether it does, or did when it died.
    pub(crate) recoveries: u64,
    pub(crate) recovering: bool,
    /// Given up by an operator, and not come back since.
    pub(crate) retired: bool,
    /// What its guest was shown before its host lost records, until a checkpoint covers that.
    pub(crate) shown_before: Option<Vec<u64>>,
    /// Its guest's store was deleted: so many records had it written, and no stable checkpoint that
    /// covers them is stored yet.
    pub(crate) wiped: Option<u64>,
    /// Under what its guest began (R6).
    began_under: (u64, u64, u64),
    /// What the history knows of its registers: records copied and exposed, per stream.
    pub(crate) copied: Vec<u64>,
    pub(crate) exposed: Vec<u64>,
    /// ... and reclaimed.
    pub(crate) first: Vec<u64>,
    pub(crate) guest: Option<Guest>,
    /// Whether its host was told that there is one.
    pub(crate) attended: bool,
    pub(crate) guest_epoch: u64,
    pub(crate) config: GuestConfig,
    /// The last delivery of a correct guest.
    pub(crate) delivered: OrderNumber,
    guest_clock: Clock,
    timer: Option<Timer>,
    /// The host's next exchange.
    pub(crate) tick: Option<Timer>,
}

impl Server {
    pub(crate) fn new(me: ServerId, plan: &Plan, rng: &mut ChaCha8Rng) -> Server {
        let geometry = cluster::geometry(me, plan.n, &plan.rings);
        let mut clock = |offset: u64| Clock {
            offset: Micros(rng.random_range(0..offset)),
            drift_ppm: rng.random_range(-plan.processes.drift_ppm..=plan.processes.drift_ppm),
        };
        let (host_clock, guest_clock) = (clock(10_000_000), clock(10_000_000));
        let lying = plan.clients.iter().zip(0..).filter(|(client, _)| client.lying);
        let lying = lying.map(|(_, id)| (ClientId(id), cluster::order_keys(ClientId(id), plan.n)));
        let config = GuestConfig {
            me,
            n: plan.n,
            cluster: CLUSTER,
            geometry,
            replica: replica_config(me, plan),
            strategies: plan.guests[me.index()].clone().unwrap_or_default(),
            seed: rng.next_u64(),
            lying: lying.collect(),
            script: plan.script.clone(),
            store: plan.hosts.store.map(|takes| (Disk::default(), takes)),
        };
        Server {
            read: memory(geometry.read_file_bytes(), plan),
            write: memory(geometry.write_file_bytes(), plan),
            host: None,
            host_epoch: 0,
            host_clock,
            longest: Longest::default(),
            wall: EPOCH.plus(Micros(rng.random_range(0..5_000_000))),
            dies_after: None,
            dies_admitting: false,
            loss: None,
            boot: 0,
            felled: false,
            recoveries: 0,
            recovering: false,
            retired: false,
            shown_before: None,
            wiped: None,
            began_under: (0, 0, 0),
            copied: vec![0; plan.n],
            exposed: vec![0; plan.n],
            first: vec![0; plan.n],
            guest: None,
            attended: false,
            guest_epoch: 0,
            config,
            delivered: OrderNumber(0),
            guest_clock,
            timer: None,
            tick: None,
        }
    }

    /// Its guest's store was deleted, and what was there may be nowhere else; so it is faulty until
    /// it has stored a stable checkpoint that covers what it claimed before. Where guests have no
    /// stores, all that restart lose their snapshots.
    pub(crate) fn is_behind(&self) -> bool {
        let reclaimed = self.first.iter().any(|first| *first > 0);
        let forgets = self.config.store.is_none() && reclaimed;
        self.wiped.is_some() || forgets && self.guest.as_ref().is_some_and(|guest| !guest.serves())
    }
}

/// A register file of a server.
pub(crate) fn memory(bytes: u64, plan: &Plan) -> Memory {
    let on_disk = plan.hosts.loss_every.is_some() || plan.hosts.durable;
    Memory::new(if on_disk { SimWords::on_disk(bytes) } else { SimWords::new(bytes) })
}

fn replica_config(me: ServerId, plan: &Plan) -> replica::Config {
    let limits = cluster::geometry(me, plan.n, &plan.rings).limits;
    replica::Config {
        me,
        n: plan.n,
        clients: plan.clients.len() as u32,
        cluster: CLUSTER,
        max_payload_bytes: limits.max_payload_bytes,
        window: plan.timing.window,
        checkpoint_weight: limits.checkpoint_weight(),
        soft_batch_bytes: limits.soft_batch_bytes(),
        change: plan.timing.change,
        change_cap: plan.timing.change_cap,
        host_down: plan.timing.host_down,
        retain_messages: cluster::RETAIN_MESSAGES,
        retain_bytes: cluster::RETAIN_BYTES,
    }
}

impl Sim {
    pub(crate) fn is_byzantine(&self, server: ServerId) -> bool {
        self.plan.guests[server.index()].is_some()
    }

    /// A guest starts on whatever the files hold.
    pub(crate) fn start_guest(&mut self, server: ServerId) {
        let correct = !self.is_byzantine(server);
        let entry = &mut self.servers[server.index()];
        if entry.guest.is_some() {
            return;
        }
        if entry.loss.is_some() {
            // Its files are about to be others: it waits for its host.
            return self.after(Micros(50_000), Event::GuestStart(server));
        }
        entry.guest_epoch += 1;
        entry.timer = None;
        entry.delivered = OrderNumber(0);
        let now = entry.guest_clock.show(self.now);
        let (read, write) = (entry.read.clone(), entry.write.clone());
        entry.guest = Some(Guest::start(now, &entry.config, read, write));
        entry.began_under = entry.life();
        self.history.push(self.now, Happened::GuestStarted { server, correct });
        self.look_at_bell(server);
        self.step_guest(server, GuestInput::Registers);
    }

    /// A guest's process, or its whole machine, is gone.
    pub(crate) fn stop_guest(&mut self, server: ServerId) {
        let entry = &mut self.servers[server.index()];
        if entry.guest.take().is_some() {
            entry.guest_epoch += 1;
            self.history.push(self.now, Happened::GuestStopped { server });
            for client in self.crowd.ids() {
                self.break_connection(client, server);
            }
            self.break_transfers(server);
            self.look_at_bell(server);
        }
    }

    pub(crate) fn guest_lost_source(&mut self, server: ServerId, source: ServerId, epoch: u64) {
        if self.servers[server.index()].guest_epoch == epoch {
            self.step_guest(server, GuestInput::SourceLost(source));
        }
    }

    pub(crate) fn guest_bell(&mut self, server: ServerId) {
        self.step_guest(server, GuestInput::Registers);
    }

    pub(crate) fn guest_timer(&mut self, server: ServerId, epoch: u64) {
        let entry = &mut self.servers[server.index()];
        // It may be late: its process was paused.
        if entry.guest_epoch == epoch
            && let Some(timer) = entry.timer.take_if(|timer| timer.at <= self.now)
        {
            self.went_off(timer);
            self.step_guest(server, GuestInput::Timer);
        }
    }

    pub(crate) fn guest_lost(&mut self, server: ServerId, client: ClientId, epoch: u64) {
        if self.servers[server.index()].guest_epoch == epoch {
            self.step_guest(server, GuestInput::ClientLost(client));
        }
    }

    pub(crate) fn step_guest(&mut self, server: ServerId, input: GuestInput) {
        let entry = &mut self.servers[server.index()];
        if entry.guest.is_some() && entry.began_under != entry.life() {
            // R6: what it read does not hold any more. It starts over.
            self.stop_guest(server);
            return self.start_guest(server);
        }
        let Some(guest) = &mut entry.guest else { return };
        let mut out = Vec::new();
        guest.step(entry.guest_clock.show(self.now), input, &mut out);
        let mut rings = false;
        for output in out {
            match output {
                GuestOutput::ToClient(client, message) => {
                    self.send_to_client(server, client, message);
                }
                GuestOutput::ToGuest(to, order) => self.send_forward(server, to, order),
                GuestOutput::Transfer(to, message) => self.send_transfer(server, to, &message),
                GuestOutput::RingHost => rings = true,
                GuestOutput::Note(event) => {
                    // What one that was broken into says of itself means nothing.
                    if !self.is_byzantine(server) {
                        if let Happened::Delivered { order, .. }
                        | Happened::Restored { order, .. } = &event
                        {
                            self.servers[server.index()].delivered = *order;
                        }
                        if let Happened::Stable { checkpoint, .. } = &event {
                            self.note_stable(checkpoint);
                        }
                        self.history.push(self.now, event);
                    }
                }
            }
        }
        if rings {
            let delay = self.between((Micros(5), Micros(100)));
            self.after(delay, Event::HostLooks(server));
        }
        self.arm_guest(server);
    }

    /// Sets the guest's timer, early or late if that is among the faults.
    fn arm_guest(&mut self, server: ServerId) {
        let entry = &self.servers[server.index()];
        let Some(deadline) = entry.guest.as_ref().and_then(Guest::next_deadline) else { return };
        let (at, epoch) = (entry.guest_clock.when(deadline), entry.guest_epoch);
        if entry.timer.is_some_and(|set| set.at <= at) {
            return;
        }
        let timer = self.skewed(at);
        let entry = &mut self.servers[server.index()];
        if entry.timer.is_none_or(|set| set.at > timer.at) {
            entry.timer = Some(timer);
            self.at(timer.at, Event::GuestTimer(server, epoch));
        }
    }
}
