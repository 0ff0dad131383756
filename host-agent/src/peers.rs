//! R5: what a host owes each of its peers, and R8: what it tells its guest of them.
//!
//! Nothing waits here. Per peer and stream there is one number, how far the peer is known to have
//! it or was sent it on this connection, and the next record to send is looked up when the link
//! has room for it. A slow peer thus holds back nothing but its own numbers.
//!
//! Three kinds of frames pass between hosts:
//!
//! ```text
//! LENGTHS  1 u8 | linked u32, one bit per host the sender is connected to; its own bit says that
//!               its guest was at its doorbell and has left (R8)
//!               | full u32, one bit per stream of which it takes nothing
//!               | recovering u8: 1 if it lacks records of its own stream, 2 if it is no
//!               incarnation yet either (R6)
//!               | n x (its records u64 | the least incarnation that it listens to u32, its own
//!               of itself)
//! RECORD   2 u8 | a record
//! JUMP     3 u8 | a stable checkpoint: term u64 | batch u64 | digest 32 u8
//!               | n x (cut u64 | term + 1 of the last CHANGE at the cut u64, 0 for none)
//! ```
//!
//! Own records go to every peer at once. A third party's go only to a peer that will not get them
//! from their writer: one that says it is not connected to the writer, or that lacks what this host
//! already had a whole exchange earlier. So in the normal case no record is sent to anyone twice.
//!
//! A peer whose ring is full refuses a record (R7) and says so: LENGTHS with the stream's bit mean
//! that what was sent beyond them is lost, and that nothing more is taken until LENGTHS without it.
//! A peer that lacks what is reclaimed here jumps (section 6).
//!
//! LENGTHS carry all of R6 too: see `recovery`. A connection begins with them, and nothing else that
//! comes on it counts if they were those of an incarnation that is over.

use shared_registers::canary::{Canary, broken};
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Micros, Seq, ServerId, Term};
use shared_registers::layout::LinkState;
use shared_registers::limits::MAX_RECORDS;
use shared_registers::record::Checkpoint;

use crate::limits::MAX_INCARNATION;

const LENGTHS: u8 = 1;
/// First byte of a RECORD frame.
pub(crate) const RECORD: u8 = 2;
const JUMP: u8 = 3;
/// To be handed over as long as there is anything.
const ALL: u64 = u64::MAX;

/// What a peer says of itself.
pub(crate) struct Lengths {
    /// Per stream, how many records it has.
    pub(crate) counts: Box<[u64]>,
    /// R6: per host, the least incarnation that it listens to; its own one of itself.
    pub(crate) floors: Box<[u32]>,
    /// R6: it recovers.
    pub(crate) recovering: bool,
    /// R6: it is no incarnation yet.
    pub(crate) unnamed: bool,
    /// One bit per host that it is connected to, and its own if its guest has left.
    linked: u32,
    /// One bit per stream of which it takes nothing, its ring being full.
    full: u32,
}

/// What this host says of itself.
pub(crate) struct Own<'a> {
    /// As [`Lengths::counts`].
    pub(crate) held: &'a [u64],
    /// As [`Lengths::floors`].
    pub(crate) floors: &'a [u32],
    /// As [`Lengths::recovering`].
    pub(crate) recovering: bool,
    /// As [`Lengths::unnamed`].
    pub(crate) unnamed: bool,
}

/// Where a peer that lacks reclaimed records goes on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// It is stable.
    pub(crate) checkpoint: Checkpoint,
    /// R1: per writer, the term of its last CHANGE at the cut.
    pub(crate) changes: Vec<Option<Term>>,
}

impl Jump {
    /// Appends the frame to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Checkpoint { term, batch, digest, cut } = &self.checkpoint;
        out.push(JUMP);
        out.put_u64(term.0);
        out.put_u64(batch.0);
        out.extend_from_slice(&digest.0);
        for (cut, change) in cut.iter().zip(&self.changes) {
            out.put_u64(*cut);
            out.put_u64(change.map_or(0, |term| term.next().0));
        }
    }

    fn decode(from: &mut Reader<'_>, n: usize) -> Result<Jump, Malformed> {
        let (term, batch) = (Term(from.u64()?), Batch(from.u64()?));
        let digest = Digest(*from.array()?);
        let (mut cut, mut changes) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for _ in 0..n {
            cut.push(Some(from.u64()?).filter(|cut| *cut <= MAX_RECORDS).ok_or(Malformed)?);
            changes.push(from.u64()?.checked_sub(1).map(Term));
        }
        Ok(Jump { checkpoint: Checkpoint { term, batch, digest, cut }, changes })
    }
}

/// A frame from a peer.
pub(crate) enum PeerFrame<'a> {
    Lengths(Lengths),
    /// Not decoded yet.
    Record(&'a [u8]),
    Jump(Jump),
}

impl<'a> PeerFrame<'a> {
    pub(crate) fn decode(bytes: &'a [u8], n: usize) -> Result<PeerFrame<'a>, Malformed> {
        let mut from = Reader::new(bytes);
        match from.u8()? {
            LENGTHS => {
                let (linked, full, recovering) = (from.u32()?, from.u32()?, from.u8()?);
                let each = (0..n).map(|_| Ok((from.u64()?, from.u32()?)));
                let (counts, floors): (Vec<u64>, Vec<u32>) =
                    each.collect::<Result<Vec<_>, Malformed>>()?.into_iter().unzip();
                from.end()?;
                if (linked | full) >> n != 0 || recovering > 2 || !floors.iter().all(possible) {
                    return Err(Malformed);
                }
                let (counts, floors) = (counts.into(), floors.into());
                let (recovering, unnamed) = (recovering > 0, recovering > 1);
                let lengths = Lengths { counts, floors, recovering, unnamed, linked, full };
                Ok(PeerFrame::Lengths(lengths))
            }
            RECORD => Ok(PeerFrame::Record(&bytes[1..])),
            JUMP => {
                let jump = Jump::decode(&mut from, n)?;
                from.end()?;
                Ok(PeerFrame::Jump(jump))
            }
            _ => Err(Malformed),
        }
    }
}

/// Whether there is a floor above this one for ever: so many incarnations no host has.
fn possible(floor: &u32) -> bool {
    *floor <= MAX_INCARNATION
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    Lengths,
    Record(ServerId, Seq),
    /// To the stable cut that was given.
    Jump,
}

/// A connection on which the peer's LENGTHS came.
struct Session {
    /// Per stream, the records that the peer has or was sent on this connection. Only grows,
    /// unless the peer refuses what was sent.
    has: Box<[u64]>,
    /// Per stream, how far it is to be handed over.
    upto: Box<[u64]>,
    /// One bit per stream of which the peer takes nothing now.
    full: u32,
    /// When the peer was last judged to be behind or not, and what this host had then.
    judged: Micros,
    held: Box<[u64]>,
    /// The stream of which a record was sent last: the others come first now.
    last: usize,
}

struct Peer {
    state: LinkState,
    heard: Micros,
    /// R8: its guest has left its doorbell, as it says.
    deserted: bool,
    owes_lengths: bool,
    /// One bit per stream of which it was refused a record since it was last sent LENGTHS: they
    /// must say so, though there may be room by then.
    refused: u32,
    /// R6: which incarnation of it is at the other end of this connection, once it has said so.
    incarnation: Option<u32>,
    session: Option<Session>,
}

/// All peers of a host.
pub(crate) struct Peers {
    me: ServerId,
    exchange: Micros,
    /// R8: the own guest has left its doorbell.
    deserted: bool,
    peers: Vec<Peer>,
}

impl Peers {
    pub(crate) fn new(me: ServerId, n: usize, exchange: Micros, now: Micros) -> Peers {
        let peer = |_| Peer {
            state: LinkState::Never,
            heard: now,
            deserted: false,
            owes_lengths: false,
            refused: 0,
            incarnation: None,
            session: None,
        };
        Peers { me, exchange, deserted: false, peers: (0..n).map(peer).collect() }
    }

    pub(crate) fn up(&mut self, peer: ServerId, now: Micros) {
        let entry = &mut self.peers[peer.index()];
        (entry.state, entry.heard, entry.deserted) = (LinkState::Up, now, false);
        (entry.incarnation, entry.session) = (None, None);
        self.announce();
    }

    pub(crate) fn down(&mut self, peer: ServerId) {
        let entry = &mut self.peers[peer.index()];
        (entry.state, entry.incarnation, entry.session) = (LinkState::Lost, None, None);
        self.announce();
    }

    /// R8: the own guest has come to its doorbell, or left it.
    pub(crate) fn desert(&mut self, deserted: bool) {
        self.deserted = deserted;
        self.announce();
    }

    /// LENGTHS go to every connected peer.
    pub(crate) fn announce(&mut self) {
        for peer in &mut self.peers {
            peer.owes_lengths = peer.state == LinkState::Up;
        }
    }

    /// R7: a record of `writer` was not taken, for want of room. Whoever sent it, all are told.
    pub(crate) fn refuse(&mut self, writer: ServerId) {
        for peer in &mut self.peers {
            peer.refused |= 1 << writer.index();
        }
        self.announce();
    }

    pub(crate) fn is_up(&self, peer: ServerId) -> bool {
        self.peers[peer.index()].state == LinkState::Up
    }

    /// R6: this host is another incarnation from now on: what it sent before was perhaps not taken.
    pub(crate) fn start_over(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.session = None);
        self.announce();
    }

    /// R6: whether what comes from `peer` comes from an incarnation that is listened to.
    pub(crate) fn listens(&self, peer: ServerId, floor: u32) -> bool {
        self.peers[peer.index()].incarnation.is_some_and(|incarnation| incarnation >= floor)
    }

    /// R6: a peer said which incarnation it is, if any. Of one that is over nothing is taken, and it
    /// is sent nothing but LENGTHS, which tell it so. Returns whether it is not over; of one that
    /// has yet to find out which it is nothing is taken either.
    pub(crate) fn meet(&mut self, peer: ServerId, said: &Lengths, floor: u32) -> bool {
        let entry = &mut self.peers[peer.index()];
        entry.incarnation = (!said.unnamed).then_some(said.floors[peer.index()]);
        let over = entry.incarnation.is_some_and(|incarnation| incarnation < floor);
        if over {
            entry.session = None;
        }
        !over
    }

    pub(crate) fn heard(&mut self, peer: ServerId, now: Micros) {
        self.peers[peer.index()].heard = now;
    }

    /// R8: state of a peer's link, and how long nothing was heard from it. One whose guest has left
    /// is as good as lost.
    pub(crate) fn hint(&self, peer: ServerId, now: Micros) -> (LinkState, Micros) {
        let peer = &self.peers[peer.index()];
        let deserted = peer.deserted && peer.state == LinkState::Up;
        let state = if deserted { LinkState::Lost } else { peer.state };
        (state, now.since(peer.heard))
    }

    /// A peer said what it has; `held` is what this host has.
    pub(crate) fn lengths(
        &mut self,
        peer: ServerId,
        lengths: &Lengths,
        held: Box<[u64]>,
        now: Micros,
    ) {
        let (me, exchange) = (self.me.index(), self.exchange);
        self.peers[peer.index()].deserted = lengths.linked >> peer.index() & 1 == 1;
        let session = self.peers[peer.index()].session.get_or_insert_with(|| Session {
            has: lengths.counts.clone(),
            upto: held.iter().map(|_| 0).collect(),
            full: 0,
            judged: now,
            held: held.clone(),
            last: me,
        });
        let judge = now.since(session.judged) >= exchange;
        session.full = lengths.full;
        for (k, count) in lengths.counts.iter().enumerate() {
            let refused = lengths.full >> k & 1 == 1;
            session.has[k] = if refused { *count } else { session.has[k].max(*count) };
            let upto = &mut session.upto[k];
            if k == peer.index() {
                // It has all that there is, unless it recovers (R6).
                *upto = if lengths.recovering { ALL } else { 0 };
            } else if k != me && broken(Canary::R5ThirdParties) {
                continue;
            } else if k == me || lengths.linked >> k & 1 == 0 {
                *upto = ALL;
            } else if judge {
                // Whatever it still lacks of what was here at the last exchange.
                *upto = if *count < session.held[k] { session.held[k] } else { 0 };
            } else if *upto == ALL {
                *upto = 0; // It has found its writer again.
            }
        }
        if judge {
            (session.judged, session.held) = (now, held);
        }
    }

    /// Whether [`Self::owed`] begins with LENGTHS.
    pub(crate) fn owes_lengths(&self, peer: ServerId) -> bool {
        self.peers[peer.index()].owes_lengths
    }

    /// What this host owes `peer` next. Of each stream it has `held`: so many records were
    /// reclaimed, and so many are here or were; and `cut` is a stable one that covers all that is
    /// reclaimed. What is returned counts as sent.
    pub(crate) fn owed(
        &mut self,
        peer: ServerId,
        held: impl Fn(ServerId) -> (Seq, Seq),
        cut: Option<&[u64]>,
    ) -> Option<Owed> {
        let peer = &mut self.peers[peer.index()];
        if std::mem::take(&mut peer.owes_lengths) {
            return Some(Owed::Lengths);
        }
        // Nothing is sent to a peer that has not said what it has.
        let session = peer.session.as_mut()?;
        let n = session.has.len();
        for k in (1..=n).map(|i| (session.last + i) % n) {
            let writer = ServerId(k as u16);
            let (first, copied) = held(writer);
            if session.has[k] >= session.upto[k].min(copied.0) {
                continue;
            }
            if session.has[k] < first.0 {
                // Section 6. Without such a cut it has to wait for the next one.
                let Some(cut) = cut else { continue };
                for (has, cut) in session.has.iter_mut().zip(cut) {
                    *has = (*has).max(*cut);
                }
                return Some(Owed::Jump);
            }
            if session.full >> k & 1 == 0 {
                session.has[k] += 1;
                session.last = k;
                return Some(Owed::Record(writer, Seq(session.has[k])));
            }
        }
        None
    }

    /// Writes the LENGTHS for `peer` of a host that has `held`, listens to `floors`, and takes
    /// nothing of the streams that are `full`. They count as sent.
    pub(crate) fn encode_lengths(
        &mut self,
        peer: ServerId,
        own: &Own<'_>,
        full: &[bool],
        out: &mut Vec<u8>,
    ) {
        let Own { held, floors, recovering, unnamed } = *own;
        let bits = |of: &dyn Fn(usize) -> bool| {
            (0..held.len()).filter(|k| of(*k)).fold(0, |bits, k| bits | 1_u32 << k)
        };
        let own = |k| k == self.me.index() && self.deserted;
        let linked = bits(&|k| own(k) || self.peers[k].state == LinkState::Up);
        let full = bits(&|k| full[k]);
        let peer = &mut self.peers[peer.index()];
        let refused = std::mem::take(&mut peer.refused);
        // What was refused and would be taken now takes two: go back, and go on.
        peer.owes_lengths |= refused & !full != 0;
        out.push(LENGTHS);
        out.put_u32(linked);
        out.put_u32(full | refused);
        out.push(u8::from(recovering) + u8::from(unnamed));
        for (count, floor) in held.iter().zip(floors) {
            out.put_u64(*count);
            out.put_u32(*floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_comes_back_as_it_went_and_no_other_bytes_are_one() {
        let (term, batch, digest) = (Term(3), Batch(9), Digest([7; 32]));
        let checkpoint = Checkpoint { term, batch, digest, cut: vec![5, MAX_RECORDS, 0] };
        let jump = Jump { checkpoint, changes: vec![None, Some(Term(0)), Some(Term(8))] };
        let mut bytes = Vec::new();
        jump.encode(&mut bytes);
        let decoded = |bytes: &[u8]| match PeerFrame::decode(bytes, 3) {
            Ok(PeerFrame::Jump(jump)) => Some(jump),
            _ => None,
        };
        assert_eq!(decoded(&bytes), Some(jump));
        assert!((0..bytes.len()).all(|len| PeerFrame::decode(&bytes[..len], 3).is_err()));
        // No stream is so long that its counts could overflow.
        bytes[65] += 1;
        assert!(PeerFrame::decode(&bytes, 3).is_err());
        bytes[65] -= 1;
        bytes.push(0);
        assert!(PeerFrame::decode(&bytes, 3).is_err());
    }

    #[test]
    fn what_a_peer_refused_is_sent_again_once_it_has_room() {
        let (me, peer) = (ServerId(0), ServerId(1));
        let mut peers = Peers::new(me, 3, Micros(10), Micros(0));
        peers.up(peer, Micros(0));
        let mut say = |count, full| {
            let (counts, floors) = ([count, 0, 0].into(), [0; 3].into());
            let (recovering, unnamed, linked) = (false, false, 0b101);
            let lengths = Lengths { counts, floors, recovering, unnamed, linked, full };
            peers.lengths(peer, &lengths, [9, 0, 0].into(), Micros(0));
            let mut sent = Vec::new();
            while let Some(owed) = peers.owed(peer, |w| (Seq(0), Seq([9, 0, 0][w.index()])), None) {
                if let Owed::Record(_, seq) = owed {
                    sent.push(seq.0);
                }
            }
            sent
        };
        assert_eq!(say(5, 0), [6, 7, 8, 9]);
        assert_eq!(say(7, 0), [0; 0], "on its way");
        assert!(say(7, 1).is_empty() && say(7, 1).is_empty());
        assert_eq!(say(7, 0), [8, 9]);
    }

    #[test]
    fn a_refusal_is_told_though_there_is_room_again() {
        let mut peers = Peers::new(ServerId(0), 3, Micros(10), Micros(0));
        peers.up(ServerId(1), Micros(0));
        let told = |peers: &mut Peers, full| {
            let (mut bits, held) = (Vec::new(), |_| (Seq(0), Seq(0)));
            while peers.owed(ServerId(1), held, None) == Some(Owed::Lengths) {
                let mut out = Vec::new();
                let (recovering, unnamed) = (false, false);
                let own = Own { held: &[0; 3], floors: &[0; 3], recovering, unnamed };
                peers.encode_lengths(ServerId(1), &own, full, &mut out);
                match PeerFrame::decode(&out, 3) {
                    Ok(PeerFrame::Lengths(lengths)) => bits.push(lengths.full),
                    _ => panic!("not LENGTHS"),
                }
            }
            bits
        };
        assert_eq!(told(&mut peers, &[false; 3]), [0]);
        peers.refuse(ServerId(2));
        assert_eq!(told(&mut peers, &[false; 3]), [0b100, 0]);
        peers.refuse(ServerId(2));
        assert_eq!(told(&mut peers, &[false, false, true]), [0b100]);
        peers.announce();
        assert_eq!(told(&mut peers, &[false; 3]), [0]);
    }
}
