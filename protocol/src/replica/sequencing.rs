//! What the sequencer of a term proposes (P1), and how a term is opened (P4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shared_registers::ids::{Batch, ClientId, OrderId, ServerId, Term};
use shared_registers::limits::MAX_ORDERS_PER_BATCH;
use shared_registers::order;
use shared_registers::record::{Body, Propose};

use super::frames::What;
use super::{Output, Replica};
use crate::ledger::{Last, Ledger, Verdict, judge};
use crate::limits::{DISTRUSTED_TURN, ORDERS_PER_CLIENT_TURN, PIPELINE};
use crate::pool::{Pool, Source};

/// The state of one who sequences; all of it can be made anew from the streams and the pool.
#[derive(Default)]
pub(super) struct Sequencing {
    /// What the clients' last orders will be once everything proposed is delivered.
    projected: BTreeMap<ClientId, Last>,
    /// Clients that may have an order to propose, in the order of their turns.
    queue: VecDeque<ClientId>,
    queued: BTreeSet<ClientId>,
    /// Whether the two above are to be made anew.
    stale: bool,
    /// Whether forwarded copies may hold something to propose.
    forwarded: bool,
    batches: u64,
}

impl Sequencing {
    /// Something that was proposed is void, or a term began: forget what was derived.
    pub(super) fn reset(&mut self) {
        self.stale = true;
    }

    /// A forwarded copy came, or something was delivered that one may have waited for.
    pub(super) fn news_of_forwarded(&mut self) {
        self.forwarded = true;
    }

    /// Clients that wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// A client may have something to propose.
    pub(super) fn candidate(&mut self, client: ClientId) {
        if self.queued.insert(client) {
            self.queue.push_back(client);
        }
    }

    fn last(&self, ledger: &Ledger, client: ClientId) -> Last {
        let projected = self.projected.get(&client).copied().unwrap_or_default();
        projected.max(ledger.last(client))
    }

    /// Notes that an order is proposed, if C2 will deliver it.
    fn project(&mut self, ledger: &Ledger, id: OrderId) {
        if judge(self.last(ledger, id.client), id) == Verdict::Next {
            self.projected.insert(id.client, (id.session, id.count));
        }
    }
}

/// Orders that fill a batch, by their copies.
struct Filling {
    orders: Vec<(Source, OrderId)>,
    bytes: usize,
    soft_bytes: usize,
}

impl Filling {
    fn full(&self) -> bool {
        self.orders.len() >= MAX_ORDERS_PER_BATCH || self.bytes >= self.soft_bytes
    }
}

impl Replica {
    // P1, P4: opens the term if it must be, then proposes what waits, several batches in flight.
    pub(super) fn propose(&mut self, out: &mut Vec<Output>) {
        self.refresh();
        if self.needs_opening() {
            self.open_term(out);
        }
        while let Some(batch) = self.next_batch_number() {
            let orders = self.fill_batch();
            if orders.is_empty() {
                break;
            }
            self.write_proposal(batch, Vec::new(), orders, out);
        }
    }

    fn refresh(&mut self) {
        if !std::mem::take(&mut self.sequencing.stale) {
            return;
        }
        let Replica { sequencing, reader, ledger, frames, pool, .. } = self;
        sequencing.projected.clear();
        for orders in reader.untaken(self.term) {
            for order in orders.iter() {
                sequencing.project(ledger, order.id);
            }
        }
        if reader.term(self.term).is_none()
            && let Some(evidence) = reader.evidence_for(self.term)
            && let Some(base) = reader.base_of(self.term, &evidence)
            && let Some(parent) = base.parent
        {
            // The term is not open yet: what it will take over is its base's history (B1).
            let (taken, _) = reader.taken();
            let over = base.batch.0.saturating_sub(taken.0) as usize;
            for order in reader.untaken(parent).take(over).flat_map(|orders| orders.iter()) {
                sequencing.project(ledger, order.id);
            }
        }
        for (_, id) in frames.proposals(self.term).flatten() {
            sequencing.project(ledger, *id);
        }
        for client in pool.holding() {
            sequencing.candidate(client);
        }
        sequencing.forwarded = true;
    }

    fn needs_opening(&self) -> bool {
        self.term > Term(0)
            && self.reader.term(self.term).is_none()
            && self.frames.proposals(self.term).next().is_none()
    }

    // P4: the opening cites f + 1 CHANGEs of the term before, and carries a batch if one waits and
    // R7's window lets it. V2's does: it begins at the base.
    fn open_term(&mut self, out: &mut Vec<Output>) {
        let Some(evidence) = self.reader.evidence_for(self.term) else { return };
        let Some(base) = self.reader.base_of(self.term, &evidence) else { return };
        let (_, room) = self.window();
        let orders = match self.reader.weight_at(&base) < room && self.has_room_for_a_batch() {
            true => self.fill_batch(),
            false => Vec::new(),
        };
        let batch = if orders.is_empty() { Batch(0) } else { base.batch.next() };
        self.write_proposal(batch, evidence, orders, out);
    }

    /// The number of the next batch, if another may be in flight. `None` while the opening itself
    /// is: its base is known for certain only when it is read back.
    fn next_batch_number(&self) -> Option<Batch> {
        let state = self.reader.term(self.term).filter(|state| state.is_open())?;
        let in_flight = self.frames.proposals(self.term).count() as u64;
        let next = Batch(state.last().0 + in_flight + 1);
        // V2: at most W past what the term's own votes commit, or its base.
        let from = state.committed().unwrap_or(state.base().batch);
        let ahead = next.0 - from.0.min(next.0);
        let room = ahead <= PIPELINE.min(self.config.window) && !self.frames.full();
        (room && !self.window_full() && self.has_room_for_a_batch()).then_some(next)
    }

    fn write_proposal(
        &mut self,
        batch: Batch,
        evidence: Vec<shared_registers::ids::Position>,
        orders: Vec<(Source, OrderId)>,
        out: &mut Vec<Output>,
    ) {
        let me = self.config.me;
        let copies = orders.iter().map(|(source, id)| {
            let held = self.pool.get(*source, *id).expect("a batch is filled with held orders");
            held.message.view(me)
        });
        let mut bytes = Vec::new();
        let (term, copies) = (self.term, copies.collect::<Vec<_>>());
        let weight = copies.iter().map(|order| order::weight(order.payload.len())).sum();
        let propose = Propose { term, batch, evidence, orders: copies };
        Body::Propose(propose).encode(&mut bytes);
        self.counters.batches_proposed += u64::from(batch != Batch(0));
        self.write_bytes(What::Propose { term, orders, weight }, bytes, out);
    }

    /// Takes orders that wait into a batch: direct copies of trusted clients together; those of a
    /// client, or forwarder, whose copies the host refused before in batches of their own, and
    /// last, but every [`DISTRUSTED_TURN`] batches first (P1).
    fn fill_batch(&mut self) -> Vec<(Source, OrderId)> {
        self.sequencing.batches += 1;
        let soft_bytes = self.config.soft_batch_bytes;
        let mut filling = Filling { orders: Vec::new(), bytes: 0, soft_bytes };
        let distrusted_first = self.sequencing.batches.is_multiple_of(DISTRUSTED_TURN);
        if distrusted_first {
            self.fill_distrusted(&mut filling);
        }
        if filling.orders.is_empty() {
            self.fill_direct(&mut filling, false);
        }
        if filling.orders.is_empty() && !distrusted_first {
            self.fill_distrusted(&mut filling);
        }
        filling.orders
    }

    fn fill_direct(&mut self, filling: &mut Filling, distrusted: bool) {
        // One round over the clients that wait now; who still has something comes again.
        for _ in 0..self.sequencing.queue.len() {
            if filling.full() {
                break;
            }
            let Some(client) = self.sequencing.queue.pop_front() else { break };
            let source = Source::Client(client);
            if (self.pool.failures(source) > 0) != distrusted {
                self.sequencing.queue.push_back(client);
                continue;
            }
            if self.fill_from(source, client, filling) {
                self.sequencing.queue.push_back(client);
            } else {
                self.sequencing.queued.remove(&client);
            }
            if distrusted && !filling.orders.is_empty() {
                break;
            }
        }
    }

    fn fill_distrusted(&mut self, filling: &mut Filling) {
        self.fill_direct(filling, true);
        if !filling.orders.is_empty() || !self.sequencing.forwarded {
            return;
        }
        let mut servers: Vec<_> = ServerId::all(self.config.n).collect();
        servers.sort_by_key(|server| self.pool.failures(Source::Server(*server)));
        for server in servers {
            for client in self.pool.forwarded_clients(server) {
                self.fill_from(Source::Server(server), client, filling);
                // What this client sent directly may be next now.
                self.sequencing.candidate(client);
            }
            if !filling.orders.is_empty() {
                return;
            }
        }
        self.sequencing.forwarded = false;
    }

    /// Takes a client's next orders, in its order, from one source. Returns whether its turn ended
    /// before its orders did.
    fn fill_from(&mut self, source: Source, client: ClientId, filling: &mut Filling) -> bool {
        let Replica { sequencing, pool, ledger, .. } = self;
        let mut taken = 0;
        while let Some(id) = next_of(pool, source, client, sequencing.last(ledger, client)) {
            if filling.full() || taken >= ORDERS_PER_CLIENT_TURN {
                return true;
            }
            taken += 1;
            filling.bytes += pool.get(source, id).map_or(0, |held| held.message.payload.len());
            filling.orders.push((source, id));
            sequencing.project(ledger, id);
        }
        false
    }
}

fn next_of(pool: &Pool, source: Source, client: ClientId, last: Last) -> Option<OrderId> {
    pool.next_of(source, client, last).map(|held| held.message.id)
}
