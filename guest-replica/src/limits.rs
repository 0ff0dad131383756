//! Every bound of the guest process, by name. What it protects against is a hostile payload
//! network, lying clients and other guests that were broken into; what may be set per cluster
//! stands in `cluster.toml`.

use shared_registers::ids::Micros;
use shared_registers::limits::{CLAIMS_HELD, MAX_CLIENTS, MAX_SERVERS};

/// Connections that are open at once, whoever is at the other end.
pub(crate) const MAX_CONNECTIONS: usize =
    MAX_CLIENT_CONNECTIONS + MAX_UNPROVEN + MAX_SERVERS * CONNECTIONS_PER_PEER;
/// Those of them whose other end has not proved yet who it is. The oldest goes first.
pub const MAX_UNPROVEN: usize = 64;
/// Connections of one client. The oldest goes first.
pub const CONNECTIONS_PER_CLIENT: usize = 8;
/// Connections of one other guest, and of the operator. The oldest goes first.
pub(crate) const CONNECTIONS_PER_PEER: usize = 4;
/// Connections of all clients. Past it the client with the most connections loses one; there is one
/// for every client and some to spare, so no client can keep another out.
pub(crate) const MAX_CLIENT_CONNECTIONS: usize = MAX_CLIENTS + 256;
/// Who connects has so long to prove who it is.
pub(crate) const HANDSHAKE: Micros = Micros::from_ms(5_000);

/// Bytes that one connection may bring per turn of the loop.
pub(crate) const READ_BYTES_PER_TURN: usize = 64 << 10;
/// Messages of one connection that are handled per turn. The rest of what was read waits, and
/// nothing more is read from that connection meanwhile.
pub(crate) const MESSAGES_PER_TURN: usize = 64;
/// Connections whose messages are handled per turn; the others come first in the next.
pub(crate) const CONNECTIONS_PER_TURN: usize = 64;
/// Sockets that are looked at per turn.
pub(crate) const EVENTS_PER_TURN: usize = 64;
/// Points in time that are noted per turn while the operator asks for them.
pub(crate) const TRACE_POINTS_PER_TURN: usize = 64;
/// They are noted for so long after the operator asked last.
pub(crate) const TRACE_FOR: Micros = Micros::from_ms(10_000);
/// Connections that are accepted per turn.
pub(crate) const ACCEPTS_PER_TURN: usize = 64;
/// Deliveries that one subscriber is sent per turn.
pub(crate) const DELIVERIES_PER_TURN: usize = 64;
/// Records that are read per turn, give or take one pass over the streams.
pub(crate) const RECORDS_PER_TURN: usize = 1024;
/// Records of one stream that are read before the next stream has its turn.
pub(crate) const RECORDS_PER_PASS: usize = 64;
/// Outputs of the core that may wait for the end of the turn.
pub(crate) const OUTPUTS_HELD: usize = 256;

/// Frames that wait because the write file is full.
pub(crate) const FRAMES_QUEUED: usize = 1024;
/// Bytes of such frames, give or take one frame.
pub(crate) const FRAME_BYTES_QUEUED: usize = 64 << 20;

/// Orders that wait to be forwarded to one other guest. The oldest goes first.
pub(crate) const FORWARDS_QUEUED: usize = 1024;
/// Bytes of such orders, give or take one order.
pub(crate) const FORWARD_BYTES_QUEUED: usize = 8 << 20;
/// Questions that wait for a link to one other guest. The oldest goes first.
pub(crate) const QUESTIONS_QUEUED: usize = 64;
/// Pieces of snapshots that others are sent per turn, of 8 KiB: the work of a guest comes first.
pub(crate) const PIECES_PER_TURN: usize = 64;
/// Snapshots in a guest's own store: the stable one, and as many later ones as hosts count claims
/// of. What is the same in two of them is there once.
pub(crate) const SNAPSHOTS_STORED: usize = CLAIMS_HELD + 1;
/// Bytes of its own store that a guest reads per turn when it starts from it, give or take a part.
pub(crate) const STORE_BYTES_PER_TURN: u64 = 8 << 20;
/// What could not be stored is tried again so often,
pub(crate) const STORE_RETRY_MS: u64 = 1_000;
/// and that is said every so many times.
pub(crate) const STORE_LOG_EVERY: u64 = 30;
/// A guest that is asked for a piece of a snapshot and sends nothing for so long is left alone for
/// as long.
pub(crate) const SOURCE_SILENCE: Micros = Micros::from_ms(1_000);
/// How far a transfer is, is said this often.
pub(crate) const TRANSFER_LOG_EVERY: Micros = Micros::from_ms(1_000);
/// The first pause before another guest is dialed again.
pub(crate) const REDIAL_MIN: Micros = Micros::from_ms(50);
/// The pause doubles up to this.
pub(crate) const REDIAL_MAX: Micros = Micros::from_ms(1_000);
/// A guest that acknowledges no byte for so long is dialed anew.
pub(crate) const FORWARD_STALLED_MS: u32 = 10_000;

/// The host agent's doorbell is tried again so often.
pub(crate) const BELL_RETRY: Micros = Micros::from_ms(100);
/// R8's hints are looked at so often; this is also the longest nap.
pub(crate) const HINTS_EVERY: Micros = Micros::from_ms(10);
/// No connection is accepted for so long when the system has no file descriptor left.
pub(crate) const ACCEPT_PAUSE: Micros = Micros::from_ms(100);
/// While it waits for its host agent, the guest looks so often,
pub(crate) const WAIT_STEP: Micros = Micros::from_ms(20);
/// and says so this often.
pub(crate) const WAIT_LOG_EVERY: Micros = Micros::from_ms(30_000);
/// Rings of the host's that are left unread at a time: each takes about 1 KiB of the socket's
/// buffer, which holds 200, and a ring that finds no room there is none.
pub(crate) const RINGS_UNREAD: u64 = 64;
/// Rings that are read at a time.
pub(crate) const RINGS_READ: usize = 256;
/// ... and how often in a row: a socket holds no more, unless more comes meanwhile.
pub(crate) const RING_READS: usize = 4;
