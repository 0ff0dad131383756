//! The phases of a run: faults, then calm in which everything must come to an end, then silence in
//! which the hosts must come to hold the same.

use std::sync::Arc;

use shared_registers::ids::{Micros, OrderNumber, ServerId};

use crate::cluster;
use crate::engine::Sim;
use crate::history::{Event as Happened, Streams};

/// Within so much virtual time after the faults everything must be done. Broken-in guests may
/// still delay every order by as long as a correct server is patient, so this is generous.
pub const LIVENESS_BOUND: Micros = Micros::from_ms(120_000);
/// So long after the faults, every client that runs wants one more thing ordered.
const PROBE_AFTER: Micros = Micros::from_ms(300);
/// How often is looked whether everything is done.
const LOOK_EVERY: Micros = Micros::from_ms(10);

/// How a run went.
pub(crate) struct Course {
    /// How long after it everything was done; none if it never was.
    pub(crate) recovered: Option<Micros>,
    /// What was not done at the end.
    pub(crate) complaint: Option<String>,
}

impl Sim {
    /// All phases, the first of at most `steps` events.
    pub(crate) fn run(&mut self, steps: u64) -> Course {
        while self.now() < self.plan.duration && self.steps() < steps {
            self.step();
        }
        self.heal();
        let healed = self.now();
        let correct = self.correct_servers();
        self.history.push(healed, Happened::Healed { correct: correct.clone() });
        self.run_until(healed.plus(PROBE_AFTER));
        self.probe();
        let mut recovered = None;
        while self.now() < healed.plus(LIVENESS_BOUND) {
            if self.complaint(&correct).is_none() {
                recovered = Some(self.now().since(healed));
                break;
            }
            self.run_until(self.now().plus(LOOK_EVERY));
        }
        let complaint = self.complaint(&correct);
        self.fall_silent();
        Course { recovered, complaint }
    }

    fn run_until(&mut self, end: Micros) {
        while self.now() < end {
            self.step();
        }
    }

    fn correct_servers(&self) -> Vec<ServerId> {
        let correct =
            |s: &ServerId| !self.is_byzantine(*s) && self.servers[s.index()].host.is_some();
        ServerId::all(self.plan.n).filter(correct).collect()
    }

    /// What is not done yet, if anything.
    fn complaint(&self, correct: &[ServerId]) -> Option<String> {
        let delivered = |s: &ServerId| self.servers[s.index()].delivered;
        let last = correct.iter().map(delivered).max().unwrap_or(OrderNumber(0));
        if let Some(behind) = correct.iter().find(|s| delivered(s) < last) {
            return Some(format!(
                "server {behind} delivered up to {} and another up to {last}",
                delivered(behind)
            ));
        }
        if let Some(host) = correct.iter().find(|s| self.servers[s.index()].recovers()) {
            return Some(format!("host {host} has not recovered"));
        }
        let (client, complaint) = self.crowd.complaint(last)?;
        Some(format!("client {client} {complaint}"))
    }

    /// Writes every record into the history.
    pub(crate) fn note_streams(&mut self) {
        let geometry = cluster::geometry(ServerId(0), self.plan.n, &self.plan.rings);
        let streams = Streams {
            streams: self.trusted.streams.clone(),
            window: self.plan.timing.window,
            checkpoint_weight: geometry.limits.checkpoint_weight(),
            clients: self.plan.clients.len(),
            max_payload_bytes: self.plan.rings.max_payload_bytes,
        };
        self.history.push(self.now(), Happened::Streams(Arc::new(streams)));
    }

    /// All guests stop, and the hosts hand each other what they lack (R5).
    fn fall_silent(&mut self) {
        for server in ServerId::all(self.plan.n) {
            self.stop_guest(server);
        }
        // An exchange finds who is behind, the next one judges it, and links hold few frames.
        let exchanges = Micros(20 * self.plan.timing.exchange.0);
        self.run_until(self.now().plus(exchanges).plus(Micros(200_000)));
        let held = |server: &crate::servers::Server| {
            let registers = server.host.as_ref()?.registers();
            let count = |writer| registers.copied(writer).0;
            Some(ServerId::all(registers.geometry().n).map(count).collect())
        };
        let copied = self.servers.iter().map(held).collect();
        self.note_streams();
        self.history.push(self.now(), Happened::Over { copied });
    }
}
