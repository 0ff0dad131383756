//! Every bound of the register layer, by name. What may be set per cluster is in
//! [`RegisterLimits`]; the constants are what the formats themselves can hold.

/// Most servers of a cluster (`f = 15`): the read file's header has room for so many.
pub const MAX_SERVERS: usize = 31;
/// Most clients of a cluster.
pub const MAX_CLIENTS: usize = 4096;
/// Most orders of one PROPOSE: the drop notice has one bit for each.
pub const MAX_ORDERS_PER_BATCH: usize = 1024;
/// A batch takes no further order once its payloads are past so many bytes, or past
/// [`RegisterLimits::soft_batch_bytes`] where rings are small.
pub const SOFT_BATCH_BYTES: usize = 1 << 20;
/// The largest payload that a cluster can be configured for.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;
/// Smallest ring of either file.
pub const MIN_RING_BYTES: u64 = 1 << 16;
/// Largest ring of either file.
pub const MAX_RING_BYTES: u64 = 1 << 36;
/// Most records of a stream: what is said to hold more is malformed, so that no count overflows.
pub const MAX_RECORDS: u64 = 1 << 62;
/// The last place of a stream, in bytes since its beginning.
pub const MAX_PLACE: u64 = 1 << 62;
/// With durability `disk` a host reclaims one part in so many of a ring at a time.
pub const RECLAIM_AHEAD: u64 = 16;
/// Checkpoint claims of one writer that are counted at a time: the newest (section 6).
pub const CLAIMS_HELD: usize = 16;
/// Bytes of a mapped file whose pages are mapped together, when the first of them is needed: what a
/// process has mapped exceeds what it has used by at most as much in each ring. Mapping them takes
/// a fraction of a millisecond, so that fewer than one record in a hundred should wait for it, also
/// of those with 4 KiB.
pub const POPULATED_BYTES: usize = 1 << 20;
/// Frames that a host takes from its guest before it looks at its peers again.
pub const MAX_FRAMES_PER_TURN: usize = 64;
/// Bytes that wait in a link's send buffer before its sender holds back.
pub const LINK_SEND_BYTES: usize = 1 << 20;
/// Bytes that a link takes from its socket before others get their turn.
pub const LINK_READ_BYTES: usize = 1 << 20;

/// The bounds that `cluster.toml` sets and that hosts and guests must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterLimits {
    /// Largest payload of one order, in bytes.
    pub max_payload_bytes: usize,
    /// Bytes of each of the `n` rings of the read file: a power of two.
    pub ring_bytes: u64,
    /// Bytes of the write file's ring: a power of two.
    pub write_ring_bytes: u64,
}

impl RegisterLimits {
    /// A batch takes no further order once its payloads are past so many bytes: a small part of a
    /// ring, since a ring has to hold all batches since the last stable checkpoint.
    pub fn soft_batch_bytes(&self) -> usize {
        SOFT_BATCH_BYTES.min(usize::try_from(self.ring_bytes / 32).unwrap_or(SOFT_BATCH_BYTES))
    }

    /// The largest body that a frame or record can have, in bytes: a batch just below
    /// [`Self::soft_batch_bytes`] that takes one more order of the largest size.
    pub fn max_body_bytes(&self) -> usize {
        let per_order = crate::order::ORDER_HEADER_BYTES + crate::crypto::MAC_BYTES;
        4096 + self.soft_batch_bytes() + self.max_payload_bytes + MAX_ORDERS_PER_BATCH * per_order
    }

    /// `K` of section 6: the weight of orders from one checkpoint to the next, see
    /// [`weight`](crate::order::weight). Four of them fill a ring.
    pub fn checkpoint_weight(&self) -> u64 {
        self.ring_bytes / 4
    }
}
