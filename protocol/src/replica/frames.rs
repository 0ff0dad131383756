//! Own frames: written, not yet read back, and perhaps dropped by the host (R1).
//!
//! A frame is meant for one position of the own stream, so what is in flight is always the run of
//! positions behind what was read of it. The registers are the memory (P6): everything here can be
//! forgotten, and is when the host drops a frame, because what it stood for is still in the pool or
//! in the streams.

use std::collections::VecDeque;

use shared_registers::guest_side::DropNotice;
use shared_registers::ids::{Batch, Micros, OrderId, Seq, Term};
use shared_registers::layout::DropReason;
use shared_registers::record::Body;

use super::{Output, Replica};
use crate::limits::{DROP_BACKOFF_US, OWN_FRAMES_IN_FLIGHT};
use crate::messages::{Refusal, ToClient};
use crate::pool::Source;

/// What a frame in flight will have said.
pub(super) enum What {
    Propose { term: Term, orders: Vec<(Source, OrderId)>, weight: u64 },
    Vote { term: Term, upto: Batch, claim: Option<(Term, Batch)> },
    Claim { at: (Term, Batch) },
    Change { term: Term },
}

#[derive(Default)]
pub(super) struct Frames {
    /// Each with the bytes of its body.
    in_flight: VecDeque<(Seq, What, u64)>,
    hold: Option<Micros>,
}

impl Frames {
    /// The segment that follows the CHANGEs in flight.
    pub(super) fn segment(&self) -> Term {
        let changes = self.in_flight.iter().filter_map(|(_, what, _)| match what {
            What::Change { term } => Some(term.next()),
            _ => None,
        });
        changes.max().unwrap_or_default()
    }

    /// The highest vote of a term in flight.
    pub(super) fn voted(&self, in_term: Term) -> Option<Batch> {
        let votes = self.in_flight.iter().filter_map(|(_, what, _)| match what {
            What::Vote { term, upto, .. } if *term == in_term => Some(*upto),
            _ => None,
        });
        votes.max()
    }

    /// The orders of each proposal of a term in flight; an opening without a batch has none.
    pub(super) fn proposals(&self, in_term: Term) -> impl Iterator<Item = &[(Source, OrderId)]> {
        self.in_flight.iter().filter_map(move |(_, what, _)| match what {
            What::Propose { term, orders, .. } if *term == in_term => Some(&orders[..]),
            _ => None,
        })
    }

    /// What the orders of the proposals of a term in flight weigh.
    pub(super) fn weight(&self, in_term: Term) -> u64 {
        let weights = self.in_flight.iter().map(|(_, what, _)| match what {
            What::Propose { term, weight, .. } if *term == in_term => *weight,
            _ => 0,
        });
        weights.sum()
    }

    /// Whether a claim of this checkpoint is in flight.
    pub(super) fn claimed(&self, wanted: (Term, Batch)) -> bool {
        self.in_flight.iter().any(|(_, what, _)| match what {
            What::Vote { claim, .. } => *claim == Some(wanted),
            What::Claim { at } => *at == wanted,
            _ => false,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.in_flight.iter().map(|(_, _, bytes)| bytes).sum()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn full(&self) -> bool {
        self.in_flight() >= OWN_FRAMES_IN_FLIGHT
    }

    /// The own record `seq` was read.
    pub(super) fn on_own_record(&mut self, seq: Seq) {
        while self.in_flight.front().is_some_and(|(sent, ..)| *sent <= seq) {
            self.in_flight.pop_front();
        }
    }

    /// Whether writing waits, after a drop that writing the same again would not mend.
    pub(super) fn on_hold(&mut self, now: Micros) -> bool {
        if self.hold.is_some_and(|until| now >= until) {
            self.hold = None;
        }
        self.hold.is_some()
    }

    pub(super) fn held_until(&self) -> Option<Micros> {
        self.hold
    }

    /// Forgets the frames from `seq` on; returns the first, which is the one that was dropped.
    fn lose(&mut self, seq: Seq) -> Option<What> {
        let keep = self.in_flight.partition_point(|(sent, ..)| *sent < seq);
        self.in_flight.drain(keep..).next().map(|(_, what, _)| what)
    }
}

impl Replica {
    /// Writes a frame behind those in flight.
    pub(super) fn write(&mut self, what: What, body: &Body<'_>, out: &mut Vec<Output>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.write_bytes(what, bytes, out);
    }

    pub(super) fn write_bytes(&mut self, what: What, body: Vec<u8>, out: &mut Vec<Output>) {
        let read = self.reader.read_count(self.config.me).0;
        let seq = Seq(read + self.frames.in_flight.len() as u64 + 1);
        self.frames.in_flight.push_back((seq, what, body.len() as u64));
        out.push(Output::Write { seq, body });
    }

    // P1: when its host names an order whose MAC fails it drops that copy, not the identity, and
    // proposes the rest. All frames behind the dropped one are lost with it (R1).
    pub(super) fn on_drop(&mut self, now: Micros, notice: &DropNotice, out: &mut Vec<Output>) {
        self.counters.drops_noticed += 1;
        let dropped = self.frames.lose(notice.seq);
        self.sequencing.reset();
        let orders = match dropped {
            Some(What::Propose { orders, .. }) => orders,
            _ => Vec::new(),
        };
        let failed: Vec<_> = notice.orders.iter().filter_map(|i| orders.get(*i)).collect();
        if failed.is_empty() {
            self.frames.hold = Some(now.plus(Micros(DROP_BACKOFF_US)));
        }
        let reason = match notice.reason {
            Some(DropReason::TooLarge) => Refusal::TooLarge,
            _ => Refusal::BadMac,
        };
        for (source, id) in failed {
            self.pool.fail(*source, *id);
            self.counters.orders_refused += 1;
            if let Source::Client(client) = source {
                let (session, count) = (id.session, id.count);
                let refused = ToClient::Refused { session, count, reason };
                out.push(Output::ToClient(*client, refused));
            }
        }
    }
}
