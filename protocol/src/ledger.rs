//! Delivery (C2): which orders of the committed batches are delivered, with which order number and
//! time, and what their senders were answered. A pure function of the committed batches, so the
//! same at every replica.
//!
//! In a snapshot (section 6) the client table is cut into groups of [`CLIENTS_PER_PART`], and only
//! the groups that changed are made anew. A group's head, little-endian; the bodies are the
//! replies:
//!
//! ```text
//! first client u32 | clients u32 | per client: session u64, count u64, replies u32,
//!   per reply: count u64, order number u64, digest, kept u8, length u32
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use shared_registers::canary::{Canary, broken};
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber};

use crate::limits::{CLIENTS_PER_PART, KEPT_REPLIES, KEPT_REPLY_BYTES};
use crate::snapshot::{Kind, Part};

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

/// How long the head of a group's part is.
pub(crate) fn head_bytes(part: &[u8]) -> Result<usize, Malformed> {
    let mut from = Reader::new(part);
    parse(&mut from)?;
    Ok(part.len() - from.left())
}

/// Takes a group's head off the front of `from`: its first client and all of them, with the length
/// of each body in the place of the body.
#[allow(clippy::type_complexity)] // Said in one place, and taken apart right away.
fn parse(
    from: &mut Reader<'_>,
) -> Result<(u32, Vec<(Last, Vec<(KeptReply, Option<usize>)>)>), Malformed> {
    let (first, clients) = (from.u32()?, from.u32()? as usize);
    if clients == 0 || clients > CLIENTS_PER_PART {
        return Err(Malformed);
    }
    let mut group = Vec::with_capacity(clients);
    for _ in 0..clients {
        let last = (from.u64()?, from.u64()?);
        let count = from.u32()? as usize;
        if count > KEPT_REPLIES {
            return Err(Malformed);
        }
        let mut reply = || {
            let (count, order) = (from.u64()?, OrderNumber(from.u64()?));
            let digest = Digest(*from.array()?);
            let len = match (from.u8()?, from.u32()? as usize) {
                (0, 0) => None,
                (1, len) => Some(len),
                _ => return Err(Malformed),
            };
            Ok((KeptReply { count, order, digest, body: None }, len))
        };
        let replies = (0..count).map(|_| reply()).collect::<Result<Vec<_>, _>>()?;
        // They are the last ones without a gap: that is how they are found.
        let dense = replies.iter().rev().zip(0..).all(|((reply, _), back)| {
            last.1.checked_sub(back).is_some_and(|count| reply.count == count)
        });
        if !dense {
            return Err(Malformed);
        }
        group.push((last, replies));
    }
    Ok((first, group))
}

/// The replies behind a head, which must be what the head says.
pub(crate) fn bodies(head: &[u8], rest: &Bytes) -> Result<Vec<Bytes>, Malformed> {
    let mut from = Reader::new(head);
    let (_, group) = parse(&mut from)?;
    let (mut bodies, mut at) = (Vec::new(), 0);
    for (reply, len) in group.into_iter().flat_map(|(_, replies)| replies) {
        let Some(len) = len else { continue };
        let body = rest.get(at..).and_then(|rest| rest.get(..len)).ok_or(Malformed)?;
        if Digest::of(&[body]) != reply.digest {
            return Err(Malformed);
        }
        bodies.push(rest.slice(at..at + len));
        at += len;
    }
    if at == rest.len() { Ok(bodies) } else { Err(Malformed) }
}

/// The client table and the counters of the one order.
pub struct Ledger {
    clients: Vec<Entry>,
    /// Each group of clients as a part of a snapshot, until it changes.
    parts: Vec<Option<Arc<Part>>>,
    delivered: OrderNumber,
    time: Micros,
    skipped: u64,
}

impl Ledger {
    /// The ledger before the first delivery, for clients `0..clients`.
    pub fn new(clients: u32) -> Ledger {
        Ledger {
            clients: (0..clients).map(|_| Entry::default()).collect(),
            parts: vec![None; (clients as usize).div_ceil(CLIENTS_PER_PART)],
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
        self.parts[id.client.index() / CLIENTS_PER_PART] = None;
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
        self.parts[client.index() / CLIENTS_PER_PART] = None;
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

    /// Its parts of a snapshot.
    pub fn parts(&mut self) -> Vec<Arc<Part>> {
        let groups = self.clients.chunks(CLIENTS_PER_PART).zip(&mut self.parts).enumerate();
        let part = |(at, (group, part)): (usize, (&[Entry], &mut Option<Arc<Part>>))| {
            let first = (at * CLIENTS_PER_PART) as u32;
            part.get_or_insert_with(|| Arc::new(group_part(first, group))).clone()
        };
        groups.map(part).collect()
    }

    /// A ledger of so many clients as a snapshot holds it.
    pub fn restore(
        clients: u32,
        (delivered, time, skipped): (OrderNumber, Micros, u64),
        parts: &[Arc<Part>],
    ) -> Result<Ledger, Malformed> {
        let mut table = Vec::with_capacity(clients as usize);
        for part in parts {
            let (first, group) = parse(&mut Reader::new(part.head()))?;
            let expected = (clients as usize - table.len()).min(CLIENTS_PER_PART);
            if first as usize != table.len() || group.len() != expected {
                return Err(Malformed);
            }
            let mut bodies = part.bodies().iter();
            for (last, replies) in group {
                let mut entry = Entry { last, ..Entry::default() };
                for (mut reply, len) in replies {
                    reply.body = len.and_then(|_| bodies.next().cloned());
                    entry.bytes += reply.body.as_ref().map_or(0, Bytes::len);
                    entry.replies.push_back(reply);
                }
                table.push(entry);
            }
        }
        if table.len() != clients as usize {
            return Err(Malformed);
        }
        let parts = parts.iter().map(|part| Some(part.clone())).collect();
        Ok(Ledger { clients: table, parts, delivered, time, skipped })
    }

    /// The most replies that are kept for one client.
    pub fn longest(&self) -> usize {
        self.clients.iter().map(|entry| entry.replies.len()).max().unwrap_or(0)
    }

    /// The last order number.
    pub fn delivered(&self) -> OrderNumber {
        self.delivered
    }

    /// The last delivery time.
    pub fn time(&self) -> Micros {
        self.time
    }

    /// Orders that committed batches held and C2 skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

fn group_part(first: u32, group: &[Entry]) -> Part {
    let (mut head, mut bodies) = (Vec::new(), Vec::new());
    head.put_u32(first);
    head.put_u32(group.len() as u32);
    for entry in group {
        head.put_u64(entry.last.0);
        head.put_u64(entry.last.1);
        head.put_u32(entry.replies.len() as u32);
        for reply in &entry.replies {
            head.put_u64(reply.count);
            head.put_u64(reply.order.0);
            head.extend_from_slice(&reply.digest.0);
            head.push(u8::from(reply.body.is_some()));
            head.put_u32(reply.body.as_ref().map_or(0, Bytes::len) as u32);
            bodies.extend(reply.body.clone());
        }
    }
    Part::new(Kind::Clients, head.into(), bodies)
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

    #[test]
    fn a_table_comes_back_from_its_parts_and_only_what_changed_is_made_anew() {
        let clients = 2 * CLIENTS_PER_PART as u32 + 3;
        let mut ledger = Ledger::new(clients);
        let act = |ledger: &mut Ledger, client: u32, count: u64| {
            ledger.deliver(id(client, 4, count), Micros(count)).unwrap();
            let body: Bytes = vec![count as u8; 8000].into();
            ledger.keep(ClientId(client), Digest::of(&[&body]), body);
        };
        (1..=KEPT_REPLIES as u64 + 3).for_each(|count| act(&mut ledger, 1, count));
        act(&mut ledger, clients - 1, 1);
        let before = ledger.parts();
        let counters = (ledger.delivered(), ledger.time(), ledger.skipped());
        let verified: Vec<_> = before
            .iter()
            .map(|part| {
                let bytes = part.read_at(0, usize::MAX).into();
                let cluster = shared_registers::crypto::ClusterId([0; 32]);
                Arc::new(Part::verified(part.entry(), bytes, &cluster).unwrap())
            })
            .collect();
        let mut back = Ledger::restore(clients, counters, &verified).unwrap();
        for ledger in [&mut ledger, &mut back] {
            act(ledger, 1, KEPT_REPLIES as u64 + 4);
        }
        let entries = |parts: &[Arc<Part>]| parts.iter().map(|p| p.entry()).collect::<Vec<_>>();
        let after = ledger.parts();
        assert_eq!(entries(&after), entries(&back.parts()));
        assert!(!Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
        assert!(Ledger::restore(clients + 1, counters, &before).is_err());
        assert!(Ledger::restore(clients, counters, &before[1..]).is_err());
    }
}
