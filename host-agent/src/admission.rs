//! R1: what may enter a stream. One function, [`Admission::admit`], makes an admitted record out of
//! a guest's frame, or says why not; nothing else in this crate makes records.
//!
//! A guest may be anything, so a frame may be anything. What is checked is only what the protocol's
//! safety rests on: the frame's number (R3), its shape, each order's MAC, and the rule on CHANGE.
//! Whether a record makes sense in the protocol is for its readers to judge.

use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::host_side::{Counter, Frame};
use shared_registers::ids::{Micros, Seq, ServerId, Term};
use shared_registers::layout::{DropReason, Geometry};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Body, Record, Stamp};

/// What the host knows when it looks at a frame.
pub(crate) struct Moment {
    /// Drops that the guest was told of.
    pub(crate) drops: u64,
    /// Per stream, how many records are exposed (R4). All own records are.
    pub(crate) seen: Box<[u64]>,
    /// The host's clock.
    pub(crate) time: Micros,
    /// R6.
    pub(crate) incarnation: u32,
}

/// R1: whether `writer` may write `CHANGE(term)`, where the guest may see, or could have seen,
/// CHANGEs up to these terms.
fn allows(exposed: &[Option<Term>], writer: ServerId, term: Term) -> bool {
    if exposed[writer.index()].is_some_and(|last| term <= last) {
        return false;
    }
    let Some(before) = term.0.checked_sub(1) else { return true };
    if broken(Canary::R1Change) {
        return true;
    }
    let quorum = exposed.len() / 2 + 1;
    exposed.iter().filter(|t| t.is_some_and(|t| t.0 >= before)).count() >= quorum
}

/// Why a frame enters no stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was admitted before.
    Stale,
    /// It follows a drop and does not acknowledge it.
    Unacknowledged,
    /// Its guest must be told.
    Drop {
        /// Why; of an order, the reason of the first that failed.
        reason: DropReason,
        /// Indices of all orders that failed.
        orders: Vec<usize>,
        /// How many of them failed by their MAC.
        bad_macs: u64,
    },
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Refusal {
        Refusal::Drop { reason, orders: Vec::new(), bad_macs: 0 }
    }
}

/// The keys and facts that R1 needs.
pub(crate) struct Admission {
    me: ServerId,
    n: usize,
    cluster: ClusterId,
    max_payload_bytes: usize,
    /// Order keys, by client.
    keys: Vec<MacKey>,
}

impl Admission {
    pub(crate) fn new(geometry: &Geometry, keys: Vec<MacKey>) -> Admission {
        Admission {
            me: geometry.server,
            n: geometry.n,
            cluster: geometry.cluster,
            max_payload_bytes: geometry.limits.max_payload_bytes,
            keys,
        }
    }

    /// R1: a frame that may enter the stream becomes a record, stamped with its writer (R2), its
    /// place and what the guest could have seen (R4). Also says which counter counts it. `changes`
    /// says of each writer up to which term the guest may see CHANGEs.
    pub(crate) fn admit<'a>(
        &self,
        frame: &Frame<'a>,
        moment: Moment,
        changes: impl FnOnce() -> Vec<Option<Term>>,
    ) -> Result<(Record<'a>, Counter), Refusal> {
        // A pipelined successor of a dropped frame must not break the term.
        if frame.drops < moment.drops && !broken(Canary::R1Unacknowledged) {
            return Err(Refusal::Unacknowledged);
        }
        // R3: each frame is admitted at most once, across restarts of host and guest.
        let seq = Seq(moment.seen[self.me.index()]).next();
        if frame.seq < seq && !broken(Canary::R3Number) {
            return Err(Refusal::Stale);
        }
        if frame.seq > seq && !broken(Canary::R1Unacknowledged) {
            return Err(DropReason::Number.into());
        }
        let counter = match Body::decode(frame.body, self.n) {
            Err(_) => return Err(DropReason::Malformed.into()),
            Ok(Body::Propose(propose)) => {
                self.check_orders(&propose.orders)?;
                Counter::Proposes
            }
            Ok(Body::Accept(_)) => Counter::Accepts,
            Ok(Body::Change(change)) => {
                if !allows(&changes(), self.me, change.term) {
                    return Err(DropReason::Change.into());
                }
                Counter::Changes
            }
        };
        let Moment { seen, time, incarnation, .. } = moment;
        let stamp = Stamp { writer: self.me, seq, time, incarnation, seen };
        Ok((Record { stamp, body: frame.body }, counter))
    }

    /// Every order is looked at, so that the guest learns of all that fail at once.
    fn check_orders(&self, orders: &[OrderView<'_>]) -> Result<(), Refusal> {
        let (mut failed, mut first, mut bad_macs) = (Vec::new(), None, 0);
        for (i, order) in orders.iter().enumerate() {
            if let Err(reason) = self.check_order(order) {
                failed.push(i);
                first = first.or(Some(reason));
                bad_macs += u64::from(reason == DropReason::OrderMac);
            }
        }
        match first {
            None => Ok(()),
            Some(reason) => Err(Refusal::Drop { reason, orders: failed, bad_macs }),
        }
    }

    fn check_order(&self, order: &OrderView<'_>) -> Result<(), DropReason> {
        let key = self.keys.get(order.id.client.index()).ok_or(DropReason::UnknownClient)?;
        if order.payload.len() > self.max_payload_bytes {
            return Err(DropReason::TooLarge);
        }
        // What the guest says of the digest is checked with the MAC: readers go by it.
        let digest = order::digest(&self.cluster, order.id, order.payload);
        let named = order.digest == digest || broken(Canary::R1OrderDigest);
        let signed = order::verify(key, &digest, order.mac) || broken(Canary::R1OrderMac);
        if named && signed { Ok(()) } else { Err(DropReason::OrderMac) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_distinct_writers_allow_a_change() {
        let me = ServerId(0);
        let allowed = |exposed: [Option<u64>; 3], term| {
            allows(&exposed.map(|term| term.map(Term)), me, Term(term))
        };
        assert!(allowed([None; 3], 0) && !allowed([None; 3], 1));
        assert!(!allowed([None, Some(1), None], 1), "one writer");
        let two = [None, Some(1), Some(0)];
        assert!(allowed(two, 1) && !allowed(two, 2) && !allowed(two, u64::MAX));
        // A CHANGE of a later term speaks for the earlier ones; an own one closes all below it.
        let own = [Some(1), Some(1), Some(0)];
        assert!(!allowed(own, 0) && !allowed(own, 1) && allowed(own, 2));
    }
}
