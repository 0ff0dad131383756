//! The host agent's own bounds. Those of the registers and links are in `shared_registers::limits`.

/// Bytes of frames that a host takes from its guest before it looks at its peers again; the frame
/// that goes past it is the last one.
pub(crate) const MAX_BYTES_PER_TURN: usize = 1 << 20;
/// Connections on the trusted network that have not proved yet who they are; the oldest goes.
pub const MAX_STRANGERS: usize = 64;
/// Connections that are accepted before others get their turn.
pub(crate) const MAX_ACCEPTS_PER_TURN: usize = 64;
/// A connection, dialed or accepted, proves within so long who it is, or is closed.
pub(crate) const HANDSHAKE_MS: u64 = 5_000;
/// A host is dialed again after so long, and after twice as long each time that it fails.
pub(crate) const REDIAL_MIN_MS: u64 = 20;
/// The longest wait before a host is dialed again.
pub(crate) const REDIAL_MAX_MS: u64 = 500;
/// A link on which nothing came for so many heartbeats, and for [`LINK_DEAD_MS`], is closed: its
/// bytes go nowhere and TCP would not tell for minutes.
pub(crate) const LINK_DEAD_HEARTBEATS: u64 = 20;
/// See [`LINK_DEAD_HEARTBEATS`].
pub(crate) const LINK_DEAD_MS: u64 = 3_000;
/// Bytes that one read takes from a socket.
pub(crate) const READ_BYTES: usize = 1 << 17;
/// Rings of the doorbell that are discarded before others get their turn.
pub(crate) const BELL_BYTES: usize = 1 << 12;
/// Events that one wait returns; the rest come with the next.
pub(crate) const EVENTS_PER_TURN: usize = 128;
/// Rings of the guest's that are left unread at a time: each takes about 1 KiB of its socket's
/// buffer, which holds 200, and a ring that finds no room there is none.
pub(crate) const RINGS_UNREAD: u64 = 64;
/// How often in a row the doorbell is read: a guest that writes to it without end is not to keep
/// its host there.
pub(crate) const BELL_READS: usize = 4;
/// Full rings, which wait for a checkpoint, are logged at most so often.
pub(crate) const FULL_LOG_MS: u64 = 10_000;
/// Refusals are logged at most so often.
pub(crate) const REFUSAL_LOG_MS: u64 = 1_000;
/// Largest incarnation of a host (R6): there is always one above it, and one that is even.
pub(crate) const MAX_INCARNATION: u32 = u32::MAX - 3;
/// How often a host that recovers says for whom it waits.
pub(crate) const RECOVERY_LOG_MS: u64 = 5_000;
/// How often an agent looks whether a server was retired.
pub(crate) const RETIRED_LOOK_MS: u64 = 1_000;
