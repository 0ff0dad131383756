//! How long everything is that a replica keeps, next to how long it may be.

use shared_registers::limits::CLAIMS_HELD;

use super::Replica;
use crate::limits::{
    DIRECT_BYTES, DIRECT_ORDERS, FORWARDED_BYTES, FORWARDED_ORDERS, KEPT_REPLIES,
    OWN_FRAMES_IN_FLIGHT, PENDING_SNAPSHOTS,
};
use crate::messages::Held;

/// A collection of a replica, and its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// What it holds.
    pub name: &'static str,
    /// How long it is; of several of one kind, the longest.
    pub length: usize,
    /// How long it may be.
    pub bound: usize,
}

impl Replica {
    /// Bytes that it holds, for status.
    pub(super) fn held(&self) -> Held {
        Held {
            history: self.history.bytes() as u64,
            snapshot: self.snapshot().map_or(0, |snapshot| snapshot.bytes()),
            orders: self.pool.bytes() as u64,
        }
    }

    /// Its collections: whoever drives a replica can see that none grows past its bound.
    pub fn queues(&self) -> [Queue; 12] {
        let queue = |name, length, bound| Queue { name, length, bound };
        let [snapshots, made, claims] = self.checkpoints.held();
        let [direct, forwarded] = self.pool.largest();
        // A source's only order may be as large as any.
        let largest = self.config.max_payload_bytes;
        let clients = self.config.clients as usize;
        [
            queue("orders held of one client", direct.0, DIRECT_ORDERS),
            queue("bytes held of one client", direct.1, DIRECT_BYTES.max(largest)),
            queue("orders held of one forwarder", forwarded.0, FORWARDED_ORDERS),
            queue("bytes held of one forwarder", forwarded.1, FORWARDED_BYTES.max(largest)),
            // A CHANGE does not wait for those before it; one follows it at most.
            queue("own frames in flight", self.frames.in_flight(), OWN_FRAMES_IN_FLIGHT + 2),
            queue("replies kept for one client", self.ledger.longest(), KEPT_REPLIES),
            queue("deliveries kept", self.history.len(), self.config.retain_messages.max(1)),
            queue("clients in turn", self.sequencing.len(), clients),
            // V2: the window, and the batch of the opening.
            queue("batches uncommitted", self.suspicion.len(), self.config.window as usize + 1),
            queue("snapshots pending", snapshots, PENDING_SNAPSHOTS),
            queue("snapshots made", made, PENDING_SNAPSHOTS),
            queue("own claims known", claims, CLAIMS_HELD),
        ]
    }
}
