//! A sequencer that proposes wrongly on purpose, for the paper's Figure 3b and for tests.
//!
//! It is a correct guest, but for every tenth batch that it proposes: that one leaves it with a
//! number that does not follow the last. Its host admits it, since a host knows nothing of batches;
//! whoever reads it takes the term for dead (V2) and leaves it at once (P3), its writer too.
//!
//! Built in with the feature `faulty-sequencer` alone; `difato --version` of such a build says so.

use shared_registers::ids::Batch;
use shared_registers::record::Body;

/// One batch in so many is wrong.
pub(crate) const EVERY: u64 = 10;

/// What this guest has done.
#[derive(Default)]
pub(crate) struct Faulty {
    batches: u64,
}

impl Faulty {
    /// How many batches were made wrong.
    pub(crate) fn wrong(&self) -> u64 {
        self.batches / EVERY
    }

    /// What is to be written in a frame's place, in a cluster of `n` servers: the frame itself,
    /// unless it is the batch whose turn it is.
    pub(crate) fn spoil(&mut self, n: usize, frame: Vec<u8>) -> Vec<u8> {
        let Ok(Body::Propose(mut propose)) = Body::decode(&frame, n) else { return frame };
        if propose.batch == Batch(0) {
            return frame; // An opening without a batch has no number to be wrong.
        }
        self.batches += 1;
        if !self.batches.is_multiple_of(EVERY) {
            return frame;
        }
        propose.batch = propose.batch.next();
        let mut wrong = Vec::with_capacity(frame.len());
        Body::Propose(propose).encode(&mut wrong);
        wrong
    }
}

#[cfg(test)]
mod tests {
    use shared_registers::crypto::{Digest, MAC_BYTES};
    use shared_registers::ids::{ClientId, OrderId, Position, Seq, ServerId, Term};
    use shared_registers::order::OrderView;
    use shared_registers::record::{Change, Propose, Reason};

    use super::*;

    fn frame(batch: u64, evidence: Vec<Position>) -> Vec<u8> {
        let id = OrderId { client: ClientId(1), session: 1, count: 1 };
        let (digest, mac) = (Digest::default(), &[0; MAC_BYTES]);
        let order = OrderView { id, digest, mac, payload: b"hello" };
        let orders = if batch == 0 { vec![] } else { vec![order] };
        let mut bytes = Vec::new();
        Body::Propose(Propose { term: Term(3), batch: Batch(batch), evidence, orders })
            .encode(&mut bytes);
        bytes
    }

    #[test]
    fn every_tenth_batch_is_wrong_and_nothing_else() {
        let mut faulty = Faulty::default();
        let mut change = Vec::new();
        Body::Change(Change { term: Term(2), reason: Reason::Dead }).encode(&mut change);
        let cited = vec![Position { writer: ServerId(1), seq: Seq(7) }];
        let opening = frame(0, cited.clone());
        for batch in 1..=3 * EVERY {
            for other in [&change, &opening] {
                assert_eq!(faulty.spoil(3, other.clone()), *other);
            }
            let right = frame(batch, cited.clone());
            let wanted =
                if batch % EVERY == 0 { frame(batch + 1, cited.clone()) } else { right.clone() };
            assert_eq!(faulty.spoil(3, right), wanted);
        }
        assert_eq!(faulty.wrong(), 3);
    }
}
