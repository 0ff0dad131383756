//! Register records: what a guest may write (PROPOSE, ACCEPT, CHANGE) and the header that its host
//! stamps on it (R2, R4).
//!
//! All numbers are little-endian. A body is what a guest writes; a record is a header, the causal
//! stamp and a body, as it lies in a ring and travels between hosts:
//!
//! ```text
//! len u32 | crc u32 | seq u64 | time u64 | incarnation u32 | writer u16 | n u16 | body_len u32 |
//! reserved u32 | seen n x u64 | body
//! ```
//!
//! `len` counts the whole record, `crc` (CRC-32) covers all that follows it.

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::Digest;
use crate::ids::{Batch, Micros, Position, Seq, ServerId, Term};
use crate::limits::{MAX_ORDERS_PER_BATCH, MAX_SERVERS};
use crate::order::OrderView;

/// Bytes of a record before its `seen`.
pub const HEADER_BYTES: usize = 40;

/// `PROPOSE{term, batch, orders[], evidence?}`: one batch, or an empty opening.
#[derive(Clone)]
pub struct Propose<'a> {
    /// The term it is proposed in.
    pub term: Term,
    /// The batch's number; 0, and no orders, in an opening without a batch.
    pub batch: Batch,
    /// Positions of `f + 1` CHANGEs of the term before; empty in all but an opening (V2).
    pub evidence: Vec<Position>,
    /// The orders, in their order.
    pub orders: Vec<OrderView<'a>>,
}

/// The vote of an ACCEPT: for all batches of the term up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The last batch voted for.
    pub upto: Batch,
    /// The term's chain value there.
    pub chain: Digest,
}

/// A checkpoint claim (section 6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checkpoint {
    /// The term whose own votes commit the batch.
    pub term: Term,
    /// The batch whose history the snapshot holds.
    pub batch: Batch,
    /// The snapshot's digest.
    pub digest: Digest,
    /// Per stream, how many records the snapshot covers.
    pub cut: Vec<u64>,
}

impl Checkpoint {
    /// How many records its cut covers, of all streams: it rises from one checkpoint to the next.
    pub fn height(&self) -> u64 {
        self.cut.iter().fold(0, |sum, cut| sum.saturating_add(*cut))
    }
}

/// `ACCEPT{term, vote?, checkpoint?}`, at least one of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The term of the vote.
    pub term: Term,
    /// The vote.
    pub vote: Option<Vote>,
    /// The checkpoint.
    pub checkpoint: Option<Checkpoint>,
}

/// What made a replica suspect its sequencer (P3). For people and counters: no rule reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The order of this digest (as its client says), received from it, was not delivered in time.
    Order(Digest),
    /// A live batch stayed uncommitted.
    Batch,
    /// The term is dead: its sequencer proposed what it must not.
    Dead,
    /// The sequencer's host is down (R8).
    HostDown,
    /// `f + 1` others are done with the term already (P4).
    Follow,
}

/// `CHANGE{term, reason}`: its writer is done with `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The term that the writer leaves.
    pub term: Term,
    /// Why.
    pub reason: Reason,
}

/// What a guest writes.
#[derive(Clone)]
pub enum Body<'a> {
    /// A batch, or an opening.
    Propose(Propose<'a>),
    /// A vote, a checkpoint, or both.
    Accept(Accept),
    /// A farewell to a term.
    Change(Change),
}

const PROPOSE: u8 = 1;
const ACCEPT: u8 = 2;
const CHANGE: u8 = 3;
const HAS_VOTE: u8 = 1;
const HAS_CHECKPOINT: u8 = 2;
/// Bytes of a CHANGE's body: no other body has to be decoded to see whether it is one.
const CHANGE_BYTES: usize = 42;

/// Whether a body whose first two bytes are these is an ACCEPT with a checkpoint, if it is one.
pub(crate) fn claims(first: [u8; 2]) -> bool {
    first[0] == ACCEPT && first[1] & HAS_CHECKPOINT != 0
}

impl<'a> Body<'a> {
    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Body::Propose(p) => {
                out.extend_from_slice(&[PROPOSE, 0]);
                out.put_u16(p.evidence.len() as u16);
                out.put_u32(p.orders.len() as u32);
                out.put_u64(p.term.0);
                out.put_u64(p.batch.0);
                for cited in &p.evidence {
                    out.put_u16(cited.writer.0);
                    out.put_u64(cited.seq.0);
                }
                for order in &p.orders {
                    order.encode(out);
                }
            }
            Body::Accept(a) => {
                let vote = if a.vote.is_some() { HAS_VOTE } else { 0 };
                let checkpoint = if a.checkpoint.is_some() { HAS_CHECKPOINT } else { 0 };
                out.extend_from_slice(&[ACCEPT, vote | checkpoint]);
                out.put_u64(a.term.0);
                if let Some(vote) = &a.vote {
                    out.put_u64(vote.upto.0);
                    out.extend_from_slice(&vote.chain.0);
                }
                if let Some(c) = &a.checkpoint {
                    out.put_u64(c.term.0);
                    out.put_u64(c.batch.0);
                    out.extend_from_slice(&c.digest.0);
                    out.put_u16(c.cut.len() as u16);
                    for count in &c.cut {
                        out.put_u64(*count);
                    }
                }
            }
            Body::Change(c) => {
                let (code, digest) = match c.reason {
                    Reason::Order(digest) => (1, digest),
                    Reason::Batch => (2, Digest::default()),
                    Reason::Dead => (3, Digest::default()),
                    Reason::HostDown => (4, Digest::default()),
                    Reason::Follow => (5, Digest::default()),
                };
                out.extend_from_slice(&[CHANGE, code]);
                out.put_u64(c.term.0);
                out.extend_from_slice(&digest.0);
            }
        }
    }

    /// Reads a body of a cluster of `n` servers: the shape that R1 calls well-formed. There is one
    /// encoding of each body, and all bytes must be used.
    pub fn decode(bytes: &'a [u8], n: usize) -> Result<Body<'a>, Malformed> {
        let mut from = Reader::new(bytes);
        let kind = from.u8()?;
        let flags = from.u8()?;
        let body = match kind {
            PROPOSE if flags == 0 => Body::Propose(decode_propose(&mut from, n)?),
            ACCEPT => Body::Accept(decode_accept(&mut from, flags, n)?),
            CHANGE => Body::Change(decode_change(&mut from, flags)?),
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(body)
    }
}

fn decode_propose<'a>(from: &mut Reader<'a>, n: usize) -> Result<Propose<'a>, Malformed> {
    let cited = usize::from(from.u16()?);
    let count = from.u32()? as usize;
    let (term, batch) = (Term(from.u64()?), Batch(from.u64()?));
    // A batch has orders and a number, or is none: so a number cannot lie about an empty batch.
    if cited > n || count > MAX_ORDERS_PER_BATCH || (count == 0) != (batch == Batch(0)) {
        return Err(Malformed);
    }
    let mut evidence = Vec::with_capacity(cited);
    for _ in 0..cited {
        let position = Position { writer: ServerId(from.u16()?), seq: Seq(from.u64()?) };
        if position.writer.index() >= n {
            return Err(Malformed);
        }
        evidence.push(position);
    }
    let mut orders = Vec::with_capacity(count);
    for _ in 0..count {
        orders.push(OrderView::decode(from)?);
    }
    Ok(Propose { term, batch, evidence, orders })
}

fn decode_accept(from: &mut Reader<'_>, flags: u8, n: usize) -> Result<Accept, Malformed> {
    if flags == 0 || flags > HAS_VOTE | HAS_CHECKPOINT {
        return Err(Malformed);
    }
    let term = Term(from.u64()?);
    let vote = match flags & HAS_VOTE {
        0 => None,
        _ => Some(Vote { upto: Batch(from.u64()?), chain: Digest(*from.array()?) }),
    };
    let checkpoint = match flags & HAS_CHECKPOINT {
        0 => None,
        _ => {
            let (term, batch) = (Term(from.u64()?), Batch(from.u64()?));
            let digest = Digest(*from.array()?);
            if usize::from(from.u16()?) != n {
                return Err(Malformed);
            }
            let cut = (0..n).map(|_| from.u64()).collect::<Result<_, _>>()?;
            Some(Checkpoint { term, batch, digest, cut })
        }
    };
    Ok(Accept { term, vote, checkpoint })
}

fn decode_change(from: &mut Reader<'_>, code: u8) -> Result<Change, Malformed> {
    let term = Term(from.u64()?);
    let digest = Digest(*from.array()?);
    let reason = match code {
        1 => Reason::Order(digest),
        _ if digest != Digest::default() => return Err(Malformed),
        2 => Reason::Batch,
        3 => Reason::Dead,
        4 => Reason::HostDown,
        5 => Reason::Follow,
        _ => return Err(Malformed),
    };
    Ok(Change { term, reason })
}

/// What a host stamps on a frame that it admits (R2, R4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Whose stream it stands in.
    pub writer: ServerId,
    /// Its place there.
    pub seq: Seq,
    /// The host's clock when it was admitted, microseconds since 1970.
    pub time: Micros,
    /// Which incarnation of the host admitted it (R6).
    pub incarnation: u32,
    /// Per stream, how many records the host had exposed to its guest by then.
    pub seen: Box<[u64]>,
}

impl Stamp {
    /// Whether `position` lies within this record's causal past.
    pub fn saw(&self, position: Position) -> bool {
        position.seq.0 >= 1
            && self.seen.get(position.writer.index()).is_some_and(|seen| position.seq.0 <= *seen)
    }
}

/// A record: a stamp and a body's bytes.
#[derive(Clone)]
pub struct Record<'a> {
    /// What the host stamped.
    pub stamp: Stamp,
    /// What its guest wrote; well-formed, since it was admitted.
    pub body: &'a [u8],
}

impl<'a> Record<'a> {
    /// The term of a CHANGE; of no other record.
    pub fn change(&self) -> Option<Term> {
        if self.body.len() != CHANGE_BYTES {
            return None;
        }
        match Body::decode(self.body, self.stamp.seen.len()) {
            Ok(Body::Change(change)) => Some(change.term),
            _ => None,
        }
    }

    /// Appends the record to `out`.
    pub fn encode(stamp: &Stamp, body: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let len = HEADER_BYTES + 8 * stamp.seen.len() + body.len();
        out.reserve(len);
        out.put_u32(len as u32);
        out.put_u32(0);
        out.put_u64(stamp.seq.0);
        out.put_u64(stamp.time.0);
        out.put_u32(stamp.incarnation);
        out.put_u16(stamp.writer.0);
        out.put_u16(stamp.seen.len() as u16);
        out.put_u32(body.len() as u32);
        out.put_u32(0);
        for count in &stamp.seen {
            out.put_u64(*count);
        }
        out.extend_from_slice(body);
        let crc = crc32fast::hash(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a record that fills `bytes`, of a cluster of `n` servers. Checks the CRC and that the
    /// stamp is possible (`seen[self] = seq - 1`, R4).
    pub fn decode(bytes: &'a [u8], n: usize) -> Result<Record<'a>, Malformed> {
        let mut from = Reader::new(bytes);
        let (len, crc) = (from.u32()?, from.u32()?);
        if len as usize != bytes.len() || crc32fast::hash(&bytes[8..]) != crc {
            return Err(Malformed);
        }
        let (seq, time) = (Seq(from.u64()?), Micros(from.u64()?));
        let incarnation = from.u32()?;
        let (writer, servers) = (ServerId(from.u16()?), usize::from(from.u16()?));
        let body_len = from.u32()? as usize;
        if servers != n || n > MAX_SERVERS || from.u32()? != 0 || writer.index() >= n {
            return Err(Malformed);
        }
        let seen = (0..n).map(|_| from.u64()).collect::<Result<Box<[u64]>, _>>()?;
        let body = from.bytes(body_len)?;
        from.end()?;
        if seq.0 == 0 || seen[writer.index()] != seq.0 - 1 {
            return Err(Malformed);
        }
        Ok(Record { stamp: Stamp { writer, seq, time, incarnation, seen }, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, OrderId};
    use proptest::prelude::*;

    fn sample_bodies() -> Vec<Vec<u8>> {
        let id = OrderId { client: ClientId(3), session: 9, count: 1 };
        let mac = [7; 32];
        let digest = Digest([6; 32]);
        let order = OrderView { id, digest, mac: &mac, payload: b"hello" };
        let cited = Position { writer: ServerId(1), seq: Seq(4) };
        let vote = Some(Vote { upto: Batch(5), chain: Digest([1; 32]) });
        let checkpoint = Some(Checkpoint {
            term: Term(1),
            batch: Batch(3),
            digest: Digest([2; 32]),
            cut: vec![1, 2, 3],
        });
        let bodies = [
            Body::Propose(Propose {
                term: Term(2),
                batch: Batch(6),
                evidence: vec![cited],
                orders: vec![order, order],
            }),
            Body::Propose(Propose {
                term: Term(2),
                batch: Batch(0),
                evidence: vec![cited],
                orders: vec![],
            }),
            Body::Accept(Accept { term: Term(2), vote, checkpoint: None }),
            Body::Accept(Accept { term: Term(2), vote: None, checkpoint }),
            Body::Change(Change { term: Term(2), reason: Reason::Order(Digest([3; 32])) }),
            Body::Change(Change { term: Term(2), reason: Reason::Follow }),
        ];
        bodies.iter().map(encoded).collect()
    }

    fn encoded(body: &Body<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        body.encode(&mut out);
        out
    }

    #[test]
    fn bodies_come_back_as_they_went() {
        for bytes in sample_bodies() {
            let body = Body::decode(&bytes, 3).unwrap();
            assert_eq!(encoded(&body), bytes);
            // And what is known of them without decoding them is right.
            let claim = matches!(&body, Body::Accept(accept) if accept.checkpoint.is_some());
            assert_eq!(claims([bytes[0], bytes[1]]), claim);
            let term = if let Body::Change(change) = body { Some(change.term) } else { None };
            let (writer, seen) = (ServerId(0), Box::from([0; 3]));
            let stamp = Stamp { writer, seq: Seq(1), time: Micros(0), incarnation: 0, seen };
            assert_eq!(Record { stamp, body: &bytes }.change(), term);
        }
    }

    #[test]
    fn a_body_cut_short_or_with_a_tail_is_malformed() {
        for bytes in sample_bodies() {
            for cut in 0..bytes.len() {
                assert!(Body::decode(&bytes[..cut], 3).is_err());
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Body::decode(&longer, 3).is_err());
        }
    }

    #[test]
    fn an_empty_batch_with_a_number_and_a_batch_without_are_malformed() {
        let empty = Propose { term: Term(0), batch: Batch(1), evidence: vec![], orders: vec![] };
        assert!(Body::decode(&encoded(&Body::Propose(empty)), 3).is_err());
    }

    #[test]
    fn a_flipped_bit_of_a_record_is_seen() {
        let stamp = Stamp {
            writer: ServerId(1),
            seq: Seq(4),
            time: Micros(77),
            incarnation: 0,
            seen: vec![9, 3, 2].into(),
        };
        let mut bytes = Vec::new();
        Record::encode(&stamp, b"body", &mut bytes);
        assert_eq!(Record::decode(&bytes, 3).unwrap().stamp, stamp);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&bytes, 3).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(body) = Body::decode(&bytes, 3) {
                prop_assert_eq!(encoded(&body), bytes.clone());
            }
            let _ = Record::decode(&bytes, 3);
        }
    }
}
