//! Delivery (C2): which orders of the committed batches are delivered, with which order number and
//! time, and what their senders were answered. A pure function of the committed batches, so the
//! same at every replica.

use std::collections::VecDeque;

use bytes::Bytes;
use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber};

use crate::limits::{KEPT_REPLIES, KEPT_REPLY_BYTES};

/// What C2 would do with an order now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver it: it is its client's next.
    Next,
    /// Skip it: something of its client must be delivered before. It may be proposed again.
    Early,
    /// Skip it: it was delivered.
    Delivered,
    /// Skip it: a later session of its client was delivered.
    Stale,
    /// Skip it: there is no such client.
    Unknown,
}

/// A client's last delivered order: `(session, count)`, `(0, 0)` before the first.
pub type Last = (u64, u64);

/// C2: what an order is to a client whose last delivered one is `last`.
pub fn judge(last: Last, id: OrderId) -> Verdict {
    let (session, count) = last;
    if id.session < session {
        Verdict::Stale
    } else if id.session == session {
        match id.count {
            c if c <= count => Verdict::Delivered,
            c if c == count + 1 => Verdict::Next,
            _ => Verdict::Early,
        }
    } else if id.count == 1 {
        Verdict::Next
    } else {
        Verdict::Early
    }
}

/// A reply that is kept for a client that asks again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptReply {
    /// Which of the session's orders.
    pub count: u64,
    /// Its place in the one order.
    pub order: OrderNumber,
    /// [`Digest::of`] the reply.
    pub digest: Digest,
    /// The reply; `None` if its bytes are kept no longer.
    pub body: Option<Bytes>,
}

#[derive(Default)]
struct Entry {
    last: Last,
    /// Replies of the last session, oldest first.
    replies: VecDeque<KeptReply>,
    bytes: usize,
}

/// The client table and the counters of the one order.
pub struct Ledger {
    clients: Vec<Entry>,
    delivered: OrderNumber,
    time: Micros,
    skipped: u64,
}

impl Ledger {
    /// The ledger before the first delivery, for clients `0..clients`.
    pub fn new(clients: u32) -> Ledger {
        Ledger {
            clients: (0..clients).map(|_| Entry::default()).collect(),
            delivered: OrderNumber(0),
            time: Micros(0),
            skipped: 0,
        }
    }

    /// What C2 would do with an order now.
    pub fn verdict(&self, id: OrderId) -> Verdict {
        match self.clients.get(id.client.index()) {
            Some(entry) => judge(entry.last, id),
            None => Verdict::Unknown,
        }
    }

    /// A client's last delivered order.
    pub fn last(&self, client: ClientId) -> Last {
        self.clients.get(client.index()).map_or((0, 0), |entry| entry.last)
    }

    /// C2: delivers an order of a batch proposed at `proposed`, or skips it. Returns its order
    /// number and delivery time.
    pub fn deliver(&mut self, id: OrderId, proposed: Micros) -> Option<(OrderNumber, Micros)> {
        let wanted = match self.verdict(id) {
            Verdict::Next => true,
            Verdict::Delivered => broken(Canary::C2Repeated),
            Verdict::Early => broken(Canary::C2Early),
            Verdict::Stale | Verdict::Unknown => false,
        };
        if !wanted {
            self.skipped += 1;
            if broken(Canary::C2Skipped) {
                self.delivered = self.delivered.next();
            }
            return None;
        }
        let entry = &mut self.clients[id.client.index()];
        if entry.last.0 != id.session {
            entry.replies.clear();
            entry.bytes = 0;
        }
        entry.last = (id.session, id.count);
        self.delivered = self.delivered.next();
        // One trusted clock for leases: it never goes back, whoever the sequencer is.
        self.time = self.time.max(proposed);
        Some((self.delivered, self.time))
    }

    /// Keeps the reply to the order of `client` that was just delivered.
    pub fn keep(&mut self, client: ClientId, digest: Digest, body: Bytes) {
        let entry = &mut self.clients[client.index()];
        entry.bytes += body.len();
        let (count, order) = (entry.last.1, self.delivered);
        entry.replies.push_back(KeptReply { count, order, digest, body: Some(body) });
        if entry.replies.len() > KEPT_REPLIES
            && let Some(oldest) = entry.replies.pop_front()
        {
            entry.bytes -= oldest.body.map_or(0, |b| b.len());
        }
        let newest = entry.replies.len() - 1;
        for reply in entry.replies.range_mut(..newest) {
            if entry.bytes <= KEPT_REPLY_BYTES {
                break;
            }
            entry.bytes -= reply.body.take().map_or(0, |b| b.len());
        }
    }

    /// The kept reply to an order, if it still is.
    pub fn reply(&self, id: OrderId) -> Option<&KeptReply> {
        let entry = self.clients.get(id.client.index())?;
        let first = entry.replies.front()?.count;
        let index = usize::try_from(id.count.checked_sub(first)?).ok()?;
        entry.replies.get(index).filter(|_| entry.last.0 == id.session)
    }

    /// The most replies that are kept for one client.
    pub fn longest(&self) -> usize {
        self.clients.iter().map(|entry| entry.replies.len()).max().unwrap_or(0)
    }

    /// The last order number.
    pub fn delivered(&self) -> OrderNumber {
        self.delivered
    }

    /// Orders that committed batches held and C2 skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u32, session: u64, count: u64) -> OrderId {
        OrderId { client: ClientId(client), session, count }
    }

    fn deliver(ledger: &mut Ledger, id: OrderId) -> Option<u64> {
        ledger.deliver(id, Micros(0)).map(|(order, _)| order.0)
    }

    #[test]
    fn c2_delivers_exactly_the_next_and_numbers_densely() {
        let mut ledger = Ledger::new(2);
        assert_eq!(deliver(&mut ledger, id(0, 5, 2)), None, "too early");
        assert_eq!(deliver(&mut ledger, id(0, 5, 1)), Some(1));
        assert_eq!(deliver(&mut ledger, id(0, 5, 1)), None, "a repeat");
        assert_eq!(deliver(&mut ledger, id(1, 1, 1)), Some(2));
        assert_eq!(deliver(&mut ledger, id(0, 5, 2)), Some(3), "the early one, proposed again");
        assert_eq!(deliver(&mut ledger, id(0, 9, 2)), None, "a later session begins at 1");
        assert_eq!(deliver(&mut ledger, id(0, 9, 1)), Some(4));
        assert_eq!(deliver(&mut ledger, id(0, 5, 3)), None, "an older session");
        assert_eq!(deliver(&mut ledger, id(2, 1, 1)), None, "no such client");
        assert_eq!(ledger.skipped(), 5);
    }

    #[test]
    fn c2_time_never_goes_back() {
        let mut ledger = Ledger::new(1);
        let mut time = |count, at| ledger.deliver(id(0, 1, count), Micros(at)).unwrap().1.0;
        assert_eq!((time(1, 50), time(2, 40), time(3, 60)), (50, 50, 60));
    }

    #[test]
    fn replies_are_kept_within_their_bounds() {
        let mut ledger = Ledger::new(1);
        for count in 1..=KEPT_REPLIES as u64 + 9 {
            ledger.deliver(id(0, 1, count), Micros(0)).unwrap();
            ledger.keep(ClientId(0), Digest::default(), vec![0; 8192].into());
        }
        assert_eq!(ledger.clients[0].replies.len(), KEPT_REPLIES);
        assert!(ledger.clients[0].bytes <= KEPT_REPLY_BYTES);
        assert_eq!(ledger.reply(id(0, 1, 9)), None);
        let (old, new) = (id(0, 1, 10), id(0, 1, KEPT_REPLIES as u64 + 9));
        assert!(ledger.reply(old).unwrap().body.is_none(), "its bytes went, its digest stays");
        assert!(ledger.reply(new).unwrap().body.is_some());
        assert_eq!(ledger.reply(id(0, 2, 10)), None, "another session");
    }
}
