//! Every bound of the replica, and of those who speak to it, by name. What a cluster can set is in
//! [`crate::replica::Config`].

/// Orders held of one client that it sent directly.
pub const DIRECT_ORDERS: usize = 512;
/// Bytes of their payloads; one order is held in any case.
pub const DIRECT_BYTES: usize = 4 << 20;
/// ... and of all clients together: each has its share.
pub const DIRECT_TOTAL_BYTES: usize = 512 << 20;
/// Bytes of payload that a client of so many may have under way, or one order: what servers hold of
/// it, and as much again for those that are behind. More would be dropped until it is sent again.
pub fn bytes_in_flight(clients: u32) -> usize {
    DIRECT_BYTES.min(DIRECT_TOTAL_BYTES / (clients as usize).max(1)) / 2
}

/// Orders held that one other server forwarded.
pub const FORWARDED_ORDERS: usize = 1024;
/// Bytes of their payloads; one order is held in any case.
pub const FORWARDED_BYTES: usize = 8 << 20;
/// Orders that go to a new sequencer when its term begins; clients send again what did not.
pub const FORWARDED_AT_ONCE: usize = 1024;
/// Bytes of their payloads.
pub const FORWARDED_AT_ONCE_BYTES: usize = 8 << 20;
/// An order that its client sends again goes on to the sequencer again, if it did not come within
/// so many microseconds before.
pub const FORWARD_AGAIN_US: u64 = 100_000;
/// How far ahead of its client's last delivered order an order may be to be held.
pub const EARLY_ORDERS: u64 = 512;
/// Orders of one client that one batch takes before the others get their turn.
pub const ORDERS_PER_CLIENT_TURN: usize = 64;
/// Batches proposed and not committed: more orders wait and make larger batches.
pub const PIPELINE: u64 = 4;
/// Every so many batches, one of distrusted copies goes first (if any waits).
pub const DISTRUSTED_TURN: u64 = 4;
/// Replies kept per client.
pub const KEPT_REPLIES: usize = 256;
/// Bytes of replies kept per client; the newest is kept in any case.
pub const KEPT_REPLY_BYTES: usize = 1 << 20;
/// A client sends an unanswered order again; one that has not done so for this long, in
/// microseconds, has crashed or given up, and its order arms no suspicion any more.
pub const ABANDONED_US: u64 = 60_000_000;
/// `M`: deliveries within one term after which the change time-out halves.
pub const HALVE_AFTER_DELIVERIES: u64 = 100;
/// Own frames written and not yet read back.
pub const OWN_FRAMES_IN_FLIGHT: usize = 64;
/// After a drop that rewriting cannot mend, wait so long, in microseconds, before trying again.
pub const DROP_BACKOFF_US: u64 = 10_000;
/// Messages of the history that make a part of a snapshot (section 6) ...
pub const SEGMENT_MESSAGES: usize = 1024;
/// ... or bytes of their payloads that do: a segment closes at whichever comes first.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// Clients whose table entries make a part of a snapshot.
pub const CLIENTS_PER_PART: usize = 16;
/// Parts of a snapshot.
pub const MAX_PARTS: usize = 1 << 17;
/// Bytes of a part: a group of clients whose newest replies all are of the largest size.
pub const MAX_PART_BYTES: u64 = 512 << 20;
/// Bytes of a snapshot.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 36;
/// Bytes of a manifest: every part's entry, and what a reader starts from.
pub const MAX_MANIFEST_BYTES: u64 = (64 * MAX_PARTS) as u64;
/// Bytes of a piece of a snapshot on the payload network: what fits any cluster's frames.
pub const PIECE_BYTES: usize = 8 << 10;
/// Pieces that one source was asked for and has not sent yet.
pub const PIECES_IN_FLIGHT: usize = 16;
/// R7: one in so many parts of the own ring is left free of batches, and of votes but one per term.
pub const LAST_PART: u64 = 16;
/// Snapshots that wait for their checkpoint to become stable; the oldest goes first.
pub const PENDING_SNAPSHOTS: usize = 4;
/// The sequencer proposes nothing while the orders since the stable checkpoint weigh so many times
/// `K` (R7): then its ring is three quarters full.
pub const WINDOW_CHECKPOINTS: u64 = 3;

/// Most orders of a session that may be unanswered at a time: as many as servers keep replies for
/// (P1).
pub const MAX_IN_FLIGHT: usize = KEPT_REPLIES;
/// Bytes that a session or a listener keeps of one server. A session: replies on which `f + 1` do not
/// agree yet; what comes on top is asked for again after the agreement. A listener: payloads for
/// orders after the next wanted one; more than its window, for the payloads that it is asked for.
pub const HELD_BYTES_PER_SERVER: usize = 32 << 20;
/// Messages that one server may send a listener before any of them has left; also how many order
/// numbers, from the next wanted one on, are kept track of.
pub const WINDOW_MESSAGES: u64 = 1024;
/// Bytes that one server may send a listener before any of them have left, by
/// [`Delivery::cost`](crate::messages::Delivery::cost); the last delivery may go over it.
pub const WINDOW_BYTES: u64 = 8 << 20;
/// A listener asks for missing payloads only so close to the next wanted order.
pub const FETCH_AHEAD: u64 = 64;
/// Most messages of credit that a server honours; what is granted on top is lost.
pub const MAX_CREDIT_MESSAGES: u64 = 1 << 16;
/// Most bytes of credit that a server honours; what is granted on top is lost.
pub const MAX_CREDIT_BYTES: u64 = 1 << 28;
const _: () = assert!(WINDOW_MESSAGES <= MAX_CREDIT_MESSAGES && WINDOW_BYTES <= MAX_CREDIT_BYTES);
const _: () = assert!(
    WINDOW_BYTES as usize + shared_registers::limits::MAX_PAYLOAD_BYTES <= HELD_BYTES_PER_SERVER
);

/// Points in time that a guest keeps while it is asked for them; the oldest goes first.
pub const TRACE_POINTS: usize = 8192;
/// Points in time in one answer: what fits any cluster's frames.
pub const TRACE_PAGE_POINTS: usize = 192;

/// Bytes of all keys and values together that the application `kv` holds.
pub const KV_BYTES: usize = 1 << 30;
/// The largest reply that the application `echo-sized` gives.
pub const ECHO_REPLY_BYTES: usize = 16 << 20;
