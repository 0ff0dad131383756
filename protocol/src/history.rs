//! The deliveries that are kept for listeners: the newest, bounded by count and bytes. What is kept
//! is decided by what was delivered alone, so it is the same at everyone and a part of snapshots
//! (section 6).
//!
//! They lie in segments that close after a fixed number of messages or bytes. A closed segment
//! never changes: its part of a snapshot is made once, from digests that were known before. It is
//! forgotten as soon as the last of its messages is. Its head, little-endian:
//!
//! ```text
//! first order number u64 | messages u32 |
//! per message: client u32, session u64, count u64, order digest, time u64, payload length u32
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber};
use shared_registers::order;

use crate::limits::{SEGMENT_BYTES, SEGMENT_MESSAGES};
use crate::snapshot::{Kind, Part};

const HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 64;

/// A delivery.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Whose, and which of theirs.
    pub id: OrderId,
    /// The order's digest.
    pub digest: Digest,
    /// Delivery time.
    pub time: Micros,
    /// The message.
    pub payload: Bytes,
}

struct Segment {
    first: OrderNumber,
    kept: Vec<Kept>,
    bytes: usize,
    /// Once it is closed and a snapshot was taken.
    part: Option<Arc<Part>>,
}

impl Segment {
    fn new(first: OrderNumber) -> Segment {
        Segment { first, kept: Vec::new(), bytes: 0, part: None }
    }

    fn push(&mut self, delivery: Kept) {
        self.bytes += delivery.payload.len();
        self.kept.push(delivery);
    }

    fn closed(&self) -> bool {
        self.kept.len() >= SEGMENT_MESSAGES || self.bytes >= SEGMENT_BYTES
    }

    fn end(&self) -> OrderNumber {
        OrderNumber(self.first.0 + self.kept.len() as u64)
    }

    fn part(&mut self) -> Arc<Part> {
        if let Some(part) = &self.part {
            return part.clone();
        }
        let mut head = Vec::with_capacity(HEAD_BYTES + ENTRY_BYTES * self.kept.len());
        head.put_u64(self.first.0);
        head.put_u32(self.kept.len() as u32);
        for kept in &self.kept {
            head.put_u32(kept.id.client.0);
            head.put_u64(kept.id.session);
            head.put_u64(kept.id.count);
            head.extend_from_slice(&kept.digest.0);
            head.put_u64(kept.time.0);
            head.put_u32(kept.payload.len() as u32);
        }
        let bodies = self.kept.iter().map(|kept| kept.payload.clone()).collect();
        let part = Arc::new(Part::new(Kind::History, head.into(), bodies));
        if self.closed() {
            self.part = Some(part.clone());
        }
        part
    }

    fn restore(part: &Arc<Part>) -> Result<Segment, Malformed> {
        let (first, entries) = parse(part.head())?;
        let mut segment = Segment::new(first);
        for ((id, digest, time, _), payload) in entries.into_iter().zip(part.bodies()) {
            segment.push(Kept { id, digest, time, payload: payload.clone() });
        }
        segment.part = segment.closed().then(|| part.clone());
        Ok(segment)
    }
}

/// How long the head of a segment's part is.
pub(crate) fn head_bytes(part: &[u8]) -> Result<usize, Malformed> {
    let mut from = Reader::new(part);
    from.u64()?;
    let count = from.u32()? as usize;
    if count == 0 || count > SEGMENT_MESSAGES {
        return Err(Malformed);
    }
    Ok(HEAD_BYTES + ENTRY_BYTES * count)
}

type Message = (OrderId, Digest, Micros, usize);

fn parse(head: &[u8]) -> Result<(OrderNumber, Vec<Message>), Malformed> {
    let mut from = Reader::new(head);
    let (first, count) = (OrderNumber(from.u64()?), from.u32()?);
    let mut entry = || {
        let client = ClientId(from.u32()?);
        let id = OrderId { client, session: from.u64()?, count: from.u64()? };
        let (digest, time) = (Digest(*from.array()?), Micros(from.u64()?));
        Ok((id, digest, time, from.u32()? as usize))
    };
    let entries = (0..count).map(|_| entry()).collect::<Result<Vec<_>, _>>()?;
    from.end()?;
    Ok((first, entries))
}

/// The payloads behind a head, which must be what the head says.
pub(crate) fn bodies(
    head: &[u8],
    rest: &Bytes,
    cluster: &ClusterId,
) -> Result<Vec<Bytes>, Malformed> {
    let (mut bodies, mut at) = (Vec::new(), 0);
    for (id, digest, _, len) in parse(head)?.1 {
        let payload = rest.get(at..).and_then(|rest| rest.get(..len)).ok_or(Malformed)?;
        if order::digest(cluster, id, payload) != digest {
            return Err(Malformed);
        }
        bodies.push(rest.slice(at..at + len));
        at += len;
    }
    if at == rest.len() { Ok(bodies) } else { Err(Malformed) }
}

/// The newest deliveries.
pub struct History {
    first: OrderNumber,
    next: OrderNumber,
    /// One after the other; all but the last are closed.
    segments: VecDeque<Segment>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl History {
    /// Keeps at most so many messages and so many bytes of payload, and the newest in any case.
    pub fn new(max_messages: usize, max_bytes: usize) -> History {
        let (first, segments) = (OrderNumber(1), VecDeque::new());
        History { first, next: first, segments, bytes: 0, max_messages, max_bytes }
    }

    /// A history as it was when the last order number was `delivered` and the oldest kept `first`.
    pub fn restore(
        limits: (usize, usize),
        first: OrderNumber,
        delivered: OrderNumber,
        parts: &[Arc<Part>],
    ) -> Result<History, Malformed> {
        let mut history = History::new(limits.0, limits.1);
        if delivered.0 == u64::MAX || first.0 == 0 || first > delivered.next() {
            return Err(Malformed);
        }
        (history.first, history.next) = (first, delivered.next());
        for part in parts {
            let segment = Segment::restore(part)?;
            let follows = history
                .segments
                .back()
                .is_none_or(|last| last.closed() && last.end() == segment.first);
            let end = segment.first.0.checked_add(segment.kept.len() as u64).ok_or(Malformed)?;
            if !follows || end <= first.0 {
                return Err(Malformed);
            }
            let numbers = segment.first.0..end;
            let kept = numbers.zip(&segment.kept).filter(|(number, _)| *number >= first.0);
            history.bytes += kept.map(|(_, kept)| kept.payload.len()).sum::<usize>();
            history.segments.push_back(segment);
        }
        let from = history.segments.front().map_or(history.next, |segment| segment.first);
        let upto = history.segments.back().map_or(history.next, Segment::end);
        if from > first || upto != history.next || history.over() {
            return Err(Malformed);
        }
        Ok(history)
    }

    fn over(&self) -> bool {
        self.len() > 1 && (self.len() > self.max_messages || self.bytes > self.max_bytes)
    }

    /// Adds the delivery with the next order number.
    pub fn push(&mut self, delivery: Kept) {
        self.bytes += delivery.payload.len();
        if self.segments.back().is_none_or(Segment::closed) {
            self.segments.push_back(Segment::new(self.next));
        }
        self.segments.back_mut().expect("there is one now").push(delivery);
        self.next = self.next.next();
        while self.over() {
            self.bytes -= self.get(self.first).map_or(0, |kept| kept.payload.len());
            self.first = self.first.next();
            while self.segments.front().is_some_and(|segment| segment.end() <= self.first) {
                self.segments.pop_front();
            }
        }
    }

    /// The oldest order number that is kept, or the next one if none is.
    pub fn first(&self) -> OrderNumber {
        self.first
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        (self.next.0 - self.first.0) as usize
    }

    /// Bytes of their payloads.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// A delivery, if it is kept.
    pub fn get(&self, order: OrderNumber) -> Option<&Kept> {
        if order < self.first {
            return None;
        }
        let after = self.segments.partition_point(|segment| segment.first <= order);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        segment.kept.get((order.0 - segment.first.0) as usize)
    }

    /// Its parts of a snapshot.
    pub fn parts(&mut self) -> impl Iterator<Item = Arc<Part>> {
        self.segments.iter_mut().map(Segment::part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(count: u64, size: usize) -> Kept {
        let payload: Bytes = vec![count as u8; size].into();
        let id = OrderId { client: ClientId(1), session: 1, count };
        let digest = order::digest(&ClusterId([0; 32]), id, &payload);
        Kept { id, digest, time: Micros(count), payload }
    }

    #[test]
    fn it_keeps_the_newest_within_both_bounds() {
        let mut history = History::new(3, 10);
        for size in [1, 1, 1, 1, 9, 20] {
            history.push(kept(1, size));
        }
        assert_eq!(history.first(), OrderNumber(6));
        assert_eq!(history.get(OrderNumber(6)).unwrap().payload.len(), 20);
        assert!(history.get(OrderNumber(5)).is_none() && history.get(OrderNumber(7)).is_none());
    }

    #[test]
    fn a_closed_segment_is_made_into_a_part_once_and_all_comes_back() {
        let mut history = History::new(3 * SEGMENT_MESSAGES / 2, 1 << 30);
        for count in 1..=2 * SEGMENT_MESSAGES as u64 + 5 {
            history.push(kept(count, 3));
        }
        let (before, again): (Vec<_>, Vec<_>) =
            (history.parts().collect(), history.parts().collect());
        assert_eq!(before.len(), 3);
        assert!(Arc::ptr_eq(&before[0], &again[0]) && Arc::ptr_eq(&before[1], &again[1]));
        assert!(!Arc::ptr_eq(&before[2], &again[2]), "the open one was made anew");

        let limits = (history.max_messages, history.max_bytes);
        let delivered = OrderNumber(history.next.0 - 1);
        let mut back = History::restore(limits, history.first(), delivered, &before).unwrap();
        for count in 1..=SEGMENT_MESSAGES as u64 {
            history.push(kept(count, 3));
            back.push(kept(count, 3));
        }
        assert_eq!((back.first(), back.bytes), (history.first(), history.bytes));
        let entries = |h: &mut History| h.parts().map(|part| part.entry()).collect::<Vec<_>>();
        assert_eq!(entries(&mut back), entries(&mut history));
        for missing in 0..3 {
            let mut some = before.clone();
            some.remove(missing);
            assert!(History::restore(limits, OrderNumber(600), delivered, &some).is_err());
        }
    }

    #[test]
    fn a_part_with_another_payload_is_refused() {
        let mut history = History::new(100, 1000);
        (1..=5).for_each(|count| history.push(kept(count, 7)));
        let part = history.parts().next().unwrap();
        let mut bytes = part.read_at(0, usize::MAX);
        let cluster = ClusterId([0; 32]);
        let back = Part::verified(part.entry(), bytes.clone().into(), &cluster).unwrap();
        assert_eq!(back.bodies(), part.bodies());
        for at in [0, 9, 20, bytes.len() - 1] {
            bytes[at] ^= 1;
            assert!(Part::verified(part.entry(), bytes.clone().into(), &cluster).is_err());
            bytes[at] ^= 1;
        }
    }
}
