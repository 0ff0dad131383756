//! The cluster's name, keys and sizes.

use protocol::messages::OrderMessage;
use shared_registers::crypto::{ClusterId, MacKey, Secret};
use shared_registers::ids::{ClientId, OrderId, ServerId};
use shared_registers::layout::Geometry;
use shared_registers::limits::RegisterLimits;

use crate::plan::RingPlan;

/// The name of every simulated cluster.
pub const CLUSTER: ClusterId = ClusterId([7; 32]);
/// Messages that replicas keep for listeners, ...
pub const RETAIN_MESSAGES: usize = 1 << 16;
/// ... and bytes of their payloads: all of a run's.
pub const RETAIN_BYTES: usize = 1 << 26;
/// Ring of a write file.
pub const WRITE_RING_BYTES: u64 = 1 << 16;

/// The order key that a client shares with a host.
pub fn order_key(client: ClientId, server: ServerId) -> MacKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&client.0.to_le_bytes());
    bytes[4..6].copy_from_slice(&server.0.to_le_bytes());
    Secret::new(bytes).mac_key()
}

/// All order keys of a client, by host.
pub fn order_keys(client: ClientId, n: usize) -> Vec<MacKey> {
    ServerId::all(n).map(|server| order_key(client, server)).collect()
}

/// An order with right MACs for all hosts whose keys these are.
pub fn order(id: OrderId, payload: Vec<u8>, keys: &[MacKey]) -> OrderMessage {
    OrderMessage::new(&CLUSTER, id, payload, keys)
}

/// The shape of a server's files.
pub fn geometry(server: ServerId, n: usize, rings: &RingPlan) -> Geometry {
    let limits = RegisterLimits {
        max_payload_bytes: rings.max_payload_bytes,
        ring_bytes: rings.ring_bytes,
        write_ring_bytes: WRITE_RING_BYTES,
    };
    Geometry { n, server, cluster: CLUSTER, limits }
}
