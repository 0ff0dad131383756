//! What a broken-in guest knows: all that its host exposes to it, read by the same rules as
//! everybody reads it, and the orders that came to it.

use std::collections::BTreeMap;

use protocol::ledger::{Last, Ledger, Verdict, judge};
use protocol::messages::OrderMessage;
use protocol::reader::{Reader, Said, TermState};
use protocol::replica;
use protocol::snapshot::{Kind, Manifest, Snapshot};
use shared_registers::crypto::{ClusterId, Digest, MAC_BYTES, MacKey};
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Position, Seq, ServerId, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Body, Record};

use super::GuestConfig;

/// Orders that are remembered; the first ones of the first clients are forgotten first.
const ORDERS: usize = 512;

/// An order as this guest would propose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: OrderId,
    pub(super) digest: Digest,
    pub(super) mac: [u8; MAC_BYTES],
    pub(super) payload: Vec<u8>,
}

impl Item {
    pub(super) fn of_message(message: &OrderMessage, host: ServerId) -> Item {
        let mac = message.macs.get(host.index()).map_or([0; MAC_BYTES], |mac| **mac);
        Item { id: message.id, digest: message.digest, mac, payload: message.payload.clone() }
    }

    pub(super) fn of_view(view: &OrderView<'_>) -> Item {
        let (id, digest, mac) = (view.id, view.digest, *view.mac);
        Item { id, digest, mac, payload: view.payload.to_vec() }
    }

    pub(super) fn view(&self) -> OrderView<'_> {
        OrderView { id: self.id, digest: self.digest, mac: &self.mac, payload: &self.payload }
    }
}

/// What was read and heard.
pub(super) struct View {
    me: ServerId,
    n: usize,
    cluster: ClusterId,
    pub(super) reader: Reader,
    ledger: Ledger,
    config: replica::Config,
    orders: BTreeMap<OrderId, Item>,
    /// Every CHANGE, in the order in which they were read. Each is a record of a ring.
    changes: Vec<(Term, Position)>,
}

impl View {
    pub(super) fn new(config: &GuestConfig) -> View {
        View {
            me: config.me,
            n: config.n,
            cluster: config.cluster,
            reader: Reader::new(
                config.cluster,
                config.n,
                config.replica.window,
                config.replica.checkpoint_weight,
            ),
            ledger: Ledger::new(config.replica.clients),
            config: config.replica.clone(),
            orders: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    /// Forgets what it knows, and starts from a snapshot.
    pub(super) fn start_from(&mut self, snapshot: &Snapshot) {
        let checkpoint = snapshot.checkpoint();
        let manifest = Manifest::decode(snapshot.manifest(), checkpoint).expect("it was verified");
        let counters = (manifest.delivered, manifest.time, manifest.skipped);
        let clients = snapshot.parts().iter().filter(|part| part.entry().kind == Kind::Clients);
        let clients: Vec<_> = clients.cloned().collect();
        let (window, weight) = (self.config.window, self.config.checkpoint_weight);
        let (start, stable) = (&manifest.start, checkpoint.clone());
        self.reader = Reader::from_start(self.cluster, window, weight, start, stable);
        self.ledger = Ledger::restore(self.config.clients, counters, &clients).expect("the same");
    }

    /// Reads a record that [`Reader::can_read`].
    pub(super) fn read(&mut self, record: &Record<'_>) {
        let said = self.reader.read(record);
        if let (Said::Changed(term), stamp) = (said, &record.stamp) {
            self.changes.push((term, Position { writer: stamp.writer, seq: stamp.seq }));
        }
        while let Some(batch) = self.reader.take_committed() {
            for order in batch.orders.iter() {
                self.ledger.deliver(order.id, Micros(0));
            }
        }
    }

    /// An order came, from its client or another guest.
    pub(super) fn learn(&mut self, order: &OrderMessage) {
        self.orders.insert(order.id, Item::of_message(order, self.me));
        if self.orders.len() > ORDERS {
            self.orders.pop_first();
        }
    }

    pub(super) fn f(&self) -> usize {
        self.n / 2
    }

    /// The term that everybody is in, or on the way to.
    pub(super) fn term(&self) -> Term {
        self.reader.entered()
    }

    pub(super) fn sequences(&self, term: Term) -> bool {
        term.sequencer(self.n) == self.me
    }

    /// A term that may be voted in.
    pub(super) fn open(&self, term: Term) -> Option<&TermState> {
        self.reader.term(term).filter(|state| state.is_open())
    }

    pub(super) fn voted(&self, writer: ServerId, term: Term) -> Option<Batch> {
        self.reader.vote(writer, term)
    }

    /// Whether another server has voted in `term` for `batch` or more.
    pub(super) fn others_voted(&self, term: Term, batch: Batch) -> bool {
        self.others().any(|writer| self.voted(writer, term) >= Some(batch))
    }

    fn others(&self) -> impl Iterator<Item = ServerId> + '_ {
        ServerId::all(self.n).filter(|writer| *writer != self.me)
    }

    /// The CHANGEs of exactly `term`.
    pub(super) fn changes_of(&self, term: Term) -> Vec<Position> {
        self.changes_where(|left| left == term)
    }

    /// The CHANGEs of such terms, oldest first.
    pub(super) fn changes_where(&self, which: impl Fn(Term) -> bool) -> Vec<Position> {
        let such = self.changes.iter().filter(|(term, _)| which(*term));
        such.map(|(_, position)| *position).collect()
    }

    /// How many other servers have a CHANGE of exactly `term`.
    pub(super) fn others_left(&self, term: Term) -> usize {
        self.changes_of(term).iter().filter(|position| position.writer != self.me).count()
    }

    /// Of all choices of `count` CHANGEs of `term`, one whose base is the lowest.
    pub(super) fn lowest_evidence(&self, term: Term, count: usize) -> Option<Vec<Position>> {
        let known = self.changes_of(term);
        let choices = 0u32..1 << known.len().min(16);
        let choices = choices.filter(|bits| bits.count_ones() as usize == count);
        let evidence = choices.map(|bits| {
            let chosen = known.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
            chosen.map(|(_, position)| *position).collect::<Vec<_>>()
        });
        evidence.min_by_key(|evidence| {
            let base = self.reader.base_of(term.next(), evidence);
            base.map(|base| (base.parent, base.batch))
        })
    }

    /// The position where the next record of a writer will be.
    pub(super) fn next_of(&self, writer: ServerId) -> Position {
        Position { writer, seq: self.reader.read_count(writer).next() }
    }

    /// Records read of a stream.
    pub(super) fn read_count(&self, writer: ServerId) -> Seq {
        self.reader.read_count(writer)
    }

    /// Orders that C2 would deliver next, each client's in its order, and not in `term` yet.
    pub(super) fn waiting(&self, term: Term) -> Vec<Item> {
        let mut last: BTreeMap<ClientId, Last> = BTreeMap::new();
        let mut project = |id: OrderId| {
            let last = last.entry(id.client).or_insert_with(|| self.ledger.last(id.client));
            let next = judge(*last, id) == Verdict::Next;
            if next {
                *last = (id.session, id.count);
            }
            next
        };
        for order in self.reader.untaken(term).flat_map(|orders| orders.iter()) {
            project(order.id);
        }
        self.orders.values().filter(|item| project(item.id)).cloned().collect()
    }

    /// Orders that were delivered.
    pub(super) fn delivered(&self) -> Option<&Item> {
        self.orders.values().find(|item| self.ledger.verdict(item.id) == Verdict::Delivered)
    }

    /// Any order.
    pub(super) fn any_order(&self) -> Option<&Item> {
        self.orders.values().next()
    }

    /// Deliveries so far.
    pub(super) fn delivered_count(&self) -> u64 {
        self.ledger.delivered().0
    }

    /// Gives an order its own digest.
    pub(super) fn name(&self, item: &mut Item) {
        item.digest = order::digest(&self.cluster, item.id, &item.payload);
    }

    /// Gives an order the digest and MAC that the holder of these keys, by host, would.
    pub(super) fn sign(&self, keys: &[MacKey], item: &mut Item) {
        self.name(item);
        if let Some(key) = keys.get(self.me.index()) {
            item.mac = order::mac(key, &item.digest).0;
        }
    }

    /// The chain value of `term` after another batch of these orders.
    pub(super) fn chain_after(&self, term: Term, items: &[Item]) -> Option<Digest> {
        let state = self.open(term)?;
        let digests = items.iter().flat_map(|item| item.digest.0);
        let digests: Vec<u8> = digests.collect();
        Some(Digest::of(&[&state.chain().0, &Digest::of(&[&digests]).0]))
    }

    /// The orders of a PROPOSE.
    pub(super) fn items_of(body: &Body<'_>) -> Vec<Item> {
        match body {
            Body::Propose(propose) => propose.orders.iter().map(Item::of_view).collect(),
            _ => Vec::new(),
        }
    }
}
