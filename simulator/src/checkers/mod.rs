//! Whether what happened may happen. One file a checker; each reads the events alone, and its test
//! shows it a made-up history that it must reject.
//!
//! | checker | what it demands |
//! |---|---|
//! | [`total_order`] | DA4: one order, dense, with one time each, at servers and listeners |
//! | [`chains`] | C1: one committed chain |
//! | [`certificates`] | C1: what is committed extends what was, and has its votes in the streams |
//! | [`conduct`] | P1-P4: what a guest that was never broken into may write |
//! | [`agreement`] | DA2: at the end all correct servers are at one place |
//! | [`integrity`] | DA3: nothing forged, nothing twice, each client's messages in its order |
//! | [`registers`] | R1-R5, over the registers of all hosts |
//! | [`checkpoints`] | section 6: what is stable, and what hosts forget |
//! | [`oracle`] | section 6: who starts from a stable snapshot concludes what all conclude |
//! | [`replies`] | P5: what clients believed `f + 1` had said, and is delivered; real-time order |
//! | [`replay`] | the order, executed anew, gives every reply |
//! | [`bounds`] | nothing grows past its bound |
//! | [`liveness`] | DA1: after the faults everything asked for is delivered everywhere, in time |
//!
//! Where hosts lost records (R6), all but [`registers`] judge what has [survived](surviving).

pub mod agreement;
pub mod bounds;
pub mod certificates;
pub mod chains;
pub mod checkpoints;
pub mod conduct;
pub mod integrity;
pub mod liveness;
pub mod oracle;
pub mod registers;
pub mod replay;
pub mod replies;
pub mod surviving;
pub mod total_order;

use shared_registers::crypto::ClusterId;
use shared_registers::ids::Micros;

use crate::cluster::CLUSTER;
use crate::history::Event;
use crate::phases::LIVENESS_BOUND;
use crate::plan::Plan;

/// Events and when they happened.
pub type Events = [(Micros, Event)];

/// What checkers know besides the events.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which cluster: digests and chains name it.
    pub cluster: ClusterId,
    /// How many servers there are.
    pub n: usize,
    /// How many of them may be faulty.
    pub f: usize,
    /// By client: it lies.
    pub lying: Vec<bool>,
    /// Within so much time after the faults everything that was asked for must be done.
    pub liveness_bound: Micros,
    /// What was not done when the run ended, as the clients tell it.
    pub complaint: Option<String>,
}

impl Facts {
    /// What a plan says, and what was not done at the end of its run.
    pub fn new(plan: &Plan, complaint: Option<String>) -> Facts {
        let lying = plan.clients.iter().map(|client| client.lying).collect();
        let (cluster, liveness_bound) = (CLUSTER, LIVENESS_BOUND);
        Facts { cluster, n: plan.n, f: plan.f, lying, liveness_bound, complaint }
    }

    /// Whether a client does what a client should.
    pub fn is_correct(&self, client: shared_registers::ids::ClientId) -> bool {
        self.lying.get(client.index()).is_some_and(|lying| !lying)
    }
}

/// What a checker is.
pub type Checker = fn(&Events, &Facts) -> Result<(), String>;

/// The checker that sees everything, also what has vanished.
const REGISTERS: &str = "registers";

/// All checkers, by name.
pub const ALL: [(&str, Checker); 13] = [
    ("total order", total_order::check),
    ("one committed chain", chains::check),
    ("certificates", certificates::check),
    ("conduct", conduct::check),
    ("agreement", agreement::check),
    ("integrity", integrity::check),
    (REGISTERS, registers::check),
    ("checkpoints", checkpoints::check),
    ("oracle", oracle::check),
    ("replies", replies::check),
    ("replay", replay::check),
    ("bounds", bounds::check),
    ("liveness", liveness::check),
];

/// Asks every checker; returns what they object to.
pub fn check(events: &Events, facts: &Facts) -> Vec<String> {
    let survived = surviving::of(events);
    let ask = |(name, checker): &(&str, Checker)| {
        let events = if *name == REGISTERS { events } else { &survived };
        checker(events, facts).err().map(|why| format!("{name}: {why}"))
    };
    ALL.iter().filter_map(ask).collect()
}

/// Made-up histories.
#[cfg(test)]
mod made_up {
    use shared_registers::crypto::Digest;
    use shared_registers::ids::{
        Batch, ClientId, Micros, OrderId, OrderNumber, Seq, ServerId, Term,
    };
    use shared_registers::order;
    use shared_registers::record::Checkpoint;

    use super::{Checker, Facts};
    use crate::cluster::CLUSTER;
    use crate::history::{Event, Says};
    use crate::phases::LIVENESS_BOUND;

    pub(super) fn facts() -> Facts {
        let lying = vec![false, true];
        let (cluster, liveness_bound) = (CLUSTER, LIVENESS_BOUND);
        Facts { cluster, n: 3, f: 1, lying, liveness_bound, complaint: None }
    }

    /// What a checker says of these events, a millisecond apart.
    pub(super) fn judge(checker: Checker, events: &[Event]) -> Result<(), String> {
        let times = (1..).map(Micros::from_ms);
        let events: Vec<_> = times.zip(events.iter().cloned()).collect();
        checker(&events, &facts())
    }

    pub(super) fn id(client: u32, count: u64) -> OrderId {
        OrderId { client: ClientId(client), session: 1, count }
    }

    pub(super) fn digest(id: OrderId, payload: &[u8]) -> Digest {
        order::digest(&CLUSTER, id, payload)
    }

    pub(super) fn started(server: u16) -> Event {
        Event::GuestStarted { server: ServerId(server), correct: true }
    }

    pub(super) fn broadcast(client: u32, ticket: u64, payload: &[u8]) -> Event {
        Event::Broadcast { client: ClientId(client), ticket, payload: payload.to_vec() }
    }

    pub(super) fn sent(id: OrderId, payload: &[u8]) -> Event {
        Event::Sent { id, digest: digest(id, payload) }
    }

    /// Delivery of `payload`, at the time of its place.
    pub(super) fn delivered(server: u16, order: u64, id: OrderId, payload: &[u8]) -> Event {
        Event::Delivered {
            server: ServerId(server),
            order: OrderNumber(order),
            id,
            digest: digest(id, payload),
            time: Micros(order),
            payload: payload.to_vec(),
        }
    }

    pub(super) fn answered(ticket: u64, id: OrderId, order: u64, reply: &[u8]) -> Event {
        let (client, order, reply) = (id.client, OrderNumber(order), Some(reply.to_vec()));
        Event::Answered { client, ticket, id, order, reply }
    }

    /// A reply that a server sent.
    pub(super) fn told(server: u16, id: OrderId, order: u64, reply: &[u8]) -> Event {
        let (client, digest) = (id.client, Digest::of(&[reply]));
        let (server, order) = (ServerId(server), OrderNumber(order));
        Event::Told { client, server, id, order, digest, time: None }
    }

    pub(super) fn admitted(host: u16, seq: u64, seen: [u64; 3], says: Says) -> Event {
        Event::Admitted { host: ServerId(host), seq: Seq(seq), seen: seen.to_vec(), says }
    }

    pub(super) fn committed(server: u16, batch: u64, chain: Digest) -> Event {
        Event::Committed { server: ServerId(server), batch: Batch(batch), chain }
    }

    /// A guest starts from the snapshot of a checkpoint at `batch`.
    pub(super) fn restored(server: u16, batch: u64, order: u64, chain: Digest) -> Event {
        let (server, order) = (ServerId(server), OrderNumber(order));
        Event::Restored { server, checkpoint: checkpoint(batch, [0; 3]), order, chain }
    }

    /// A checkpoint of term 0.
    pub(super) fn checkpoint(batch: u64, cut: [u64; 3]) -> Checkpoint {
        let (term, batch, digest) = (Term(0), Batch(batch), Digest([batch as u8; 32]));
        Checkpoint { term, batch, digest, cut: cut.to_vec() }
    }

    /// What a checker says has this in it.
    pub(super) fn rejected(checker: Checker, events: &[Event], why: &str) {
        let said = judge(checker, events).expect_err(why);
        assert!(said.contains(why), "{said}");
    }
}
