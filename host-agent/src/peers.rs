//! R5: what a host owes each of its peers, and R8: what it tells its guest of them.
//!
//! Nothing waits here. Per peer and stream there is one number, how far the peer is known to have
//! it or was sent it on this connection, and the next record to send is looked up when the link
//! has room for it. A slow peer thus holds back nothing but its own numbers.
//!
//! Two kinds of frames pass between hosts:
//!
//! ```text
//! LENGTHS  1 u8 | linked u32, one bit per host the sender is connected to | n x u64, its records
//! RECORD   2 u8 | a record
//! ```
//!
//! Own records go to every peer at once. A third party's go only to a peer that will not get them
//! from their writer: one that says it is not connected to the writer, or that lacks what this host
//! already had a whole exchange earlier. So in the normal case no record is sent to anyone twice.

use shared_registers::canary::{Canary, broken};
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::LinkState;

const LENGTHS: u8 = 1;
/// First byte of a RECORD frame.
pub(crate) const RECORD: u8 = 2;
/// To be handed over as long as there is anything.
const ALL: u64 = u64::MAX;

/// What a peer says of itself.
pub(crate) struct Lengths {
    /// Per stream, how many records it has.
    pub(crate) counts: Box<[u64]>,
    /// One bit per host that it is connected to.
    linked: u32,
}

/// A frame from a peer.
pub(crate) enum PeerFrame<'a> {
    Lengths(Lengths),
    /// Not decoded yet.
    Record(&'a [u8]),
}

impl<'a> PeerFrame<'a> {
    pub(crate) fn decode(bytes: &'a [u8], n: usize) -> Result<PeerFrame<'a>, Malformed> {
        let mut from = Reader::new(bytes);
        match from.u8()? {
            LENGTHS => {
                let linked = from.u32()?;
                let counts = (0..n).map(|_| from.u64()).collect::<Result<_, _>>()?;
                from.end()?;
                if linked >> n != 0 {
                    return Err(Malformed);
                }
                Ok(PeerFrame::Lengths(Lengths { counts, linked }))
            }
            RECORD => Ok(PeerFrame::Record(&bytes[1..])),
            _ => Err(Malformed),
        }
    }
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    Lengths,
    Record(ServerId, Seq),
}

/// A connection on which the peer's LENGTHS came.
struct Session {
    /// Per stream, the records that the peer has or was sent on this connection. Only grows.
    has: Box<[u64]>,
    /// Per stream, how far it is to be handed over.
    upto: Box<[u64]>,
    /// When the peer was last judged to be behind or not, and what this host had then.
    judged: Micros,
    held: Box<[u64]>,
    /// The stream of which a record was sent last: the others come first now.
    last: usize,
}

struct Peer {
    state: LinkState,
    heard: Micros,
    owes_lengths: bool,
    session: Option<Session>,
}

/// All peers of a host.
pub(crate) struct Peers {
    me: ServerId,
    exchange: Micros,
    peers: Vec<Peer>,
}

impl Peers {
    pub(crate) fn new(me: ServerId, n: usize, exchange: Micros, now: Micros) -> Peers {
        let peer =
            |_| Peer { state: LinkState::Never, heard: now, owes_lengths: false, session: None };
        Peers { me, exchange, peers: (0..n).map(peer).collect() }
    }

    pub(crate) fn up(&mut self, peer: ServerId, now: Micros) {
        let entry = &mut self.peers[peer.index()];
        (entry.state, entry.heard, entry.session) = (LinkState::Up, now, None);
        self.announce();
    }

    pub(crate) fn down(&mut self, peer: ServerId) {
        let entry = &mut self.peers[peer.index()];
        (entry.state, entry.session) = (LinkState::Lost, None);
        self.announce();
    }

    /// LENGTHS go to every connected peer.
    pub(crate) fn announce(&mut self) {
        for peer in &mut self.peers {
            peer.owes_lengths = peer.state == LinkState::Up;
        }
    }

    pub(crate) fn is_up(&self, peer: ServerId) -> bool {
        self.peers[peer.index()].state == LinkState::Up
    }

    pub(crate) fn heard(&mut self, peer: ServerId, now: Micros) {
        self.peers[peer.index()].heard = now;
    }

    /// R8: state of a peer's link, and how long nothing was heard from it.
    pub(crate) fn hint(&self, peer: ServerId, now: Micros) -> (LinkState, Micros) {
        let peer = &self.peers[peer.index()];
        (peer.state, now.since(peer.heard))
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
        let session = self.peers[peer.index()].session.get_or_insert_with(|| Session {
            has: lengths.counts.clone(),
            upto: held.iter().map(|_| 0).collect(),
            judged: now,
            held: held.clone(),
            last: me,
        });
        let judge = now.since(session.judged) >= exchange;
        for (k, count) in lengths.counts.iter().enumerate() {
            session.has[k] = session.has[k].max(*count);
            let upto = &mut session.upto[k];
            if k == peer.index() || (k != me && broken(Canary::R5ThirdParties)) {
                continue; // It has all that there is.
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

    /// What this host owes `peer` next, having `held`. It counts as sent.
    pub(crate) fn owed(&mut self, peer: ServerId, held: impl Fn(ServerId) -> Seq) -> Option<Owed> {
        let peer = &mut self.peers[peer.index()];
        if std::mem::take(&mut peer.owes_lengths) {
            return Some(Owed::Lengths);
        }
        // Nothing is sent to a peer that has not said what it has.
        let session = peer.session.as_mut()?;
        let n = session.has.len();
        for k in (1..=n).map(|i| (session.last + i) % n) {
            let writer = ServerId(k as u16);
            if session.has[k] < session.upto[k].min(held(writer).0) {
                session.has[k] += 1;
                session.last = k;
                return Some(Owed::Record(writer, Seq(session.has[k])));
            }
        }
        None
    }

    /// Writes the LENGTHS of a host that has `held`.
    pub(crate) fn encode_lengths(&self, held: &[u64], out: &mut Vec<u8>) {
        let up = |k: &usize| self.peers[*k].state == LinkState::Up;
        let linked = (0..self.peers.len()).filter(up).fold(0, |bits, k| bits | 1 << k);
        out.push(LENGTHS);
        out.put_u32(linked);
        for count in held {
            out.put_u64(*count);
        }
    }
}
