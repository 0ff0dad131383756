//! The deliveries that are kept for listeners: the newest, bounded by count and bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Micros, OrderId, OrderNumber};

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

/// The newest deliveries.
pub struct History {
    first: OrderNumber,
    kept: VecDeque<Kept>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl History {
    /// Keeps at most so many messages and so many bytes of payload, and the newest in any case.
    pub fn new(max_messages: usize, max_bytes: usize) -> History {
        History { first: OrderNumber(1), kept: VecDeque::new(), bytes: 0, max_messages, max_bytes }
    }

    /// Adds the delivery with the next order number.
    pub fn push(&mut self, delivery: Kept) {
        self.bytes += delivery.payload.len();
        self.kept.push_back(delivery);
        let over = |h: &History| h.kept.len() > h.max_messages || h.bytes > h.max_bytes;
        while self.kept.len() > 1 && over(self) {
            let oldest = self.kept.pop_front().expect("there are two");
            self.bytes -= oldest.payload.len();
            self.first = self.first.next();
        }
    }

    /// The oldest order number that is kept, or the next one if none is.
    pub fn first(&self) -> OrderNumber {
        self.first
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// A delivery, if it is kept.
    pub fn get(&self, order: OrderNumber) -> Option<&Kept> {
        let index = order.0.checked_sub(self.first.0)?;
        self.kept.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_newest_within_both_bounds() {
        let mut history = History::new(3, 10);
        for size in [1, 1, 1, 1, 9, 20] {
            let payload = vec![0; size].into();
            let (id, digest) = (OrderId::default(), Digest::default());
            history.push(Kept { id, digest, time: Micros(0), payload });
        }
        assert_eq!(history.first(), OrderNumber(6));
        assert_eq!(history.get(OrderNumber(6)).unwrap().payload.len(), 20);
        assert!(history.get(OrderNumber(5)).is_none() && history.get(OrderNumber(7)).is_none());
    }
}
