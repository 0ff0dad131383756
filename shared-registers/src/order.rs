//! An order: one client's message, its digest and its MAC (section 3).
//!
//! The digest names everything of the order, the cluster included; the MAC for server `i` is taken
//! over the digest with the order key that the client shares with *host* `i`. A client thus hashes
//! its payload once for all `n` MACs, and a guest never holds a key that could speak for a client.
//! The digest travels with the order: what clients and guests say of it is only said, until the
//! proposer's host has recomputed it (R1); what stands in a stream is right, and no reader hashes.

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{ClusterId, DIGEST_BYTES, Digest, MAC_BYTES, Mac, MacKey};
use crate::ids::{ClientId, OrderId};

/// Bytes of an order in a PROPOSE, without its MAC and payload.
pub const ORDER_HEADER_BYTES: usize = 24 + DIGEST_BYTES;

/// Bytes that an order takes in rings besides its payload, and more: with its share of the records
/// that propose and accept its batch, were it alone in it.
pub const ORDER_WEIGHT: u64 = 512;

/// What an order weighs towards the next checkpoint: at least what it takes of any stream's ring.
pub fn weight(payload_bytes: usize) -> u64 {
    ORDER_WEIGHT + payload_bytes as u64
}

/// The digest of an order: over the payload, the cluster's id and the identity. The payload comes
/// first, since BLAKE3 takes several whole chunks of it at a time only if they begin at the start;
/// what follows has a fixed length, so nothing can be read as another order.
pub fn digest(cluster: &ClusterId, id: OrderId, payload: &[u8]) -> Digest {
    Digest::of(&[
        payload,
        b"difato order\0",
        &cluster.0,
        &id.client.0.to_le_bytes(),
        &id.session.to_le_bytes(),
        &id.count.to_le_bytes(),
    ])
}

/// The MAC that a client puts on an order for one host.
pub fn mac(key: &MacKey, digest: &Digest) -> Mac {
    key.mac(&[b"difato order mac\0", &digest.0])
}

/// Whether `claimed` is the client's MAC for the host that holds `key` (R1).
pub fn verify(key: &MacKey, digest: &Digest, claimed: &[u8; MAC_BYTES]) -> bool {
    key.verify(&[b"difato order mac\0", &digest.0], claimed)
}

/// An order as it stands in a PROPOSE: with the one MAC for the proposer's host.
#[derive(Clone, Copy)]
pub struct OrderView<'a> {
    /// Whose it is, and which of theirs.
    pub id: OrderId,
    /// Its digest: see [`digest`].
    pub digest: Digest,
    /// The client's MAC for the host of the proposer.
    pub mac: &'a [u8; MAC_BYTES],
    /// The message.
    pub payload: &'a [u8],
}

impl<'a> OrderView<'a> {
    /// Appends the order:
    /// `client u32, payload length u32, session u64, count u64, digest, MAC, payload`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.id.client.0);
        out.put_u32(self.payload.len() as u32);
        out.put_u64(self.id.session);
        out.put_u64(self.id.count);
        out.extend_from_slice(&self.digest.0);
        out.extend_from_slice(self.mac);
        out.extend_from_slice(self.payload);
    }

    /// Takes an order off the front of `from`.
    pub fn decode(from: &mut Reader<'a>) -> Result<OrderView<'a>, Malformed> {
        let client = ClientId(from.u32()?);
        let len = from.u32()? as usize;
        let id = OrderId { client, session: from.u64()?, count: from.u64()? };
        let (digest, mac) = (Digest(*from.array()?), from.array()?);
        Ok(OrderView { id, digest, mac, payload: from.bytes(len)? })
    }
}
