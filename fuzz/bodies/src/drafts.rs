//! Bodies of records and orders that are nearly right, so that what is behind the first check is
//! reached too.

use arbitrary::Arbitrary;
use protocol::messages::OrderMessage;
use shared_registers::crypto::{ClusterId, Digest, MacKey, Secret};
use shared_registers::ids::{Batch, ClientId, OrderId, Position, Seq, ServerId, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Accept, Body, Change, Checkpoint, Propose, Reason, Vote};

/// The cluster of all stories.
pub(crate) const CLUSTER: ClusterId = ClusterId([6; 32]);
/// How many servers it has.
pub(crate) const N: usize = 3;
/// How many of them may be faulty.
pub(crate) const F: usize = 1;
/// How many clients it has.
pub(crate) const CLIENTS: u32 = 3;
/// Its largest payload.
pub(crate) const MAX_PAYLOAD: usize = 64;
/// Orders of one drafted PROPOSE, at most.
const MAX_ORDERS: usize = 6;

/// The order key that a client shares with a host.
pub(crate) fn order_key(host: usize, client: u32) -> MacKey {
    let mut key = [0; 32];
    (key[0], key[1]) = (host as u8 + 1, client as u8 + 1);
    Secret::new(key).mac_key()
}

/// An order, its MACs right or wrong.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct OrderDraft {
    client: u8,
    session: u8,
    count: u8,
    payload: u8,
    /// One bit per host for which the MAC is wrong.
    bad_macs: u8,
}

impl OrderDraft {
    /// Whose; now and then a client's that does not exist.
    pub(crate) fn client(&self) -> ClientId {
        ClientId(u32::from(self.client) % (CLIENTS + 1))
    }

    /// Which; mostly one of the first of its session, seldom the last that there can be.
    pub(crate) fn id(&self) -> OrderId {
        let session = match self.session {
            0..128 => 1,
            255 => u64::MAX,
            session => u64::from(session % 4),
        };
        let count = match self.count {
            0..128 => 1 + u64::from(self.count % 2),
            255 => u64::MAX,
            254 => 600,
            count => u64::from(count % 8),
        };
        OrderId { client: self.client(), session, count }
    }

    /// What it says; now and then too much.
    pub(crate) fn payload(&self) -> Vec<u8> {
        vec![self.payload; usize::from(self.payload) % (MAX_PAYLOAD + 2)]
    }

    /// Whether its MAC for this host is right.
    pub(crate) fn is_right_for(&self, host: usize) -> bool {
        self.bad_macs >> host & 1 == 0
    }

    /// The message that its client would send.
    pub(crate) fn message(&self) -> OrderMessage {
        let key = |host| {
            let client = self.client().0 + if self.is_right_for(host) { 0 } else { 100 };
            order_key(host, client)
        };
        let keys: Vec<_> = (0..N).map(key).collect();
        OrderMessage::new(&CLUSTER, self.id(), self.payload(), &keys)
    }
}

/// Whether a host would find the digest and the MAC of an order right.
pub(crate) fn verifies(host: usize, order: &OrderView<'_>) -> bool {
    let digest = order::digest(&CLUSTER, order.id, order.payload);
    let known = order.id.client.0 < CLIENTS && order.payload.len() <= MAX_PAYLOAD;
    known
        && order.digest == digest
        && order::verify(&order_key(host, order.id.client.0), &digest, order.mac)
}

/// What a draft may take from the state of the story, to be right where it wants to be.
#[derive(Default)]
pub(crate) struct Facts {
    /// Chain values that mean something here.
    pub(crate) chains: Vec<Digest>,
    /// Positions of CHANGEs, with their terms.
    pub(crate) changes: Vec<(Term, Position)>,
    /// The term that the cluster is in.
    pub(crate) term: Term,
    /// Its last batch.
    pub(crate) batch: Batch,
}

/// What an opening cites.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Evidence {
    None,
    /// CHANGEs of the term before, as far as there are any.
    Right,
    Any([(u8, u8); 2]),
}

/// A body. Terms and batches are offsets from what the cluster is at.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum BodyDraft<'a> {
    /// Whatever bytes.
    Raw(&'a [u8]),
    /// A batch.
    Propose { term: i8, batch: i8, orders: Vec<OrderDraft>, evidence: Evidence },
    /// A vote, a claim, or both.
    Accept { term: i8, upto: i8, chain: Option<u8>, claim: bool },
    /// A farewell.
    Change { term: i8, reason: u8 },
    /// A well-formed body with one byte changed.
    Flipped { term: i8, order: OrderDraft, at: u8, to: u8 },
}

fn offset(base: u64, by: i8) -> u64 {
    match by {
        i8::MAX => u64::MAX,
        i8::MIN => 0,
        by => base.saturating_add_signed(i64::from(by % 4)),
    }
}

impl BodyDraft<'_> {
    /// The body's bytes, as the guest of `host` writes it.
    pub(crate) fn encode(&self, host: usize, facts: &Facts) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            BodyDraft::Raw(bytes) => out.extend_from_slice(&bytes[..bytes.len().min(400)]),
            BodyDraft::Propose { term, batch, orders, evidence } => {
                let (term, batch) = (offset(facts.term.0, *term), offset(facts.batch.0, *batch));
                let orders = &orders[..orders.len().min(MAX_ORDERS)];
                let evidence = evidence.positions(Term(term), facts);
                propose(host, (Term(term), Batch(batch)), evidence, orders, &mut out);
            }
            BodyDraft::Accept { term, upto, chain, claim } => {
                let term = Term(offset(facts.term.0, *term));
                let batch = Batch(offset(facts.batch.0, *upto));
                let vote = chain.map(|chain| {
                    let chain = pick(&facts.chains, chain).copied().unwrap_or_default();
                    Vote { upto: batch, chain }
                });
                let digest = Digest::default();
                let checkpoint =
                    claim.then(|| Checkpoint { term, batch, digest, cut: vec![u64::MAX; N] });
                Body::Accept(Accept { term, vote, checkpoint }).encode(&mut out);
            }
            BodyDraft::Change { term, reason } => {
                let reason = match reason % 5 {
                    0 => Reason::Batch,
                    1 => Reason::Dead,
                    2 => Reason::HostDown,
                    3 => Reason::Follow,
                    _ => Reason::Order(Digest([*reason; 32])),
                };
                let term = Term(offset(facts.term.0, *term));
                Body::Change(Change { term, reason }).encode(&mut out);
            }
            BodyDraft::Flipped { term, order, at, to } => {
                let term = Term(offset(facts.term.0, *term));
                propose(host, (term, facts.batch.next()), Vec::new(), &[*order], &mut out);
                let at = usize::from(*at) % out.len();
                out[at] = *to;
            }
        }
        out
    }
}

impl Evidence {
    fn positions(&self, term: Term, facts: &Facts) -> Vec<Position> {
        match self {
            Evidence::None => Vec::new(),
            Evidence::Right => {
                let before = |(of, _): &&(Term, Position)| of.next() == term;
                facts.changes.iter().filter(before).map(|(_, at)| *at).take(F + 1).collect()
            }
            Evidence::Any(any) => {
                let position = |(writer, seq): &(u8, u8)| {
                    let writer = ServerId(u16::from(*writer) % (N as u16 + 1));
                    Position { writer, seq: Seq(u64::from(*seq % 8)) }
                };
                any.iter().map(position).collect()
            }
        }
    }
}

/// A PROPOSE of these orders, each with its MAC for `host`.
fn propose(
    host: usize,
    (term, batch): (Term, Batch),
    evidence: Vec<Position>,
    orders: &[OrderDraft],
    out: &mut Vec<u8>,
) {
    let messages: Vec<_> = orders.iter().map(OrderDraft::message).collect();
    let orders = messages.iter().map(|message| message.view(ServerId(host as u16))).collect();
    Body::Propose(Propose { term, batch, evidence, orders }).encode(out);
}

/// One of `from`, if there are any.
pub(crate) fn pick<T>(from: &[T], which: u8) -> Option<&T> {
    from.get(usize::from(which).checked_rem(from.len())?)
}
