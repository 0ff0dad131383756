//! What the simulated cluster replicates: a running digest of everything delivered.
//!
//! Each reply is the digest of the whole history up to its message, so two servers give equal
//! replies only if they delivered the same, in the same order, with the same times. A checker that
//! replays the order through a fresh [`Tally`] must come to the same replies.

use protocol::application::{Application, Bytes, Delivered};
use shared_registers::codec::Malformed;
use shared_registers::crypto::Digest;

/// The digest of all that was delivered.
#[derive(Debug, Default)]
pub struct Tally(Digest);

impl Application for Tally {
    fn execute(&mut self, message: &Delivered<'_>) -> Vec<u8> {
        let id = message.id;
        self.0 = Digest::of(&[
            &self.0.0,
            &message.order.0.to_le_bytes(),
            &id.client.0.to_le_bytes(),
            &id.session.to_le_bytes(),
            &id.count.to_le_bytes(),
            &message.time.0.to_le_bytes(),
            message.payload,
        ]);
        self.0.0[..16].to_vec()
    }

    fn snapshot(&mut self) -> Vec<Bytes> {
        vec![Bytes::copy_from_slice(&self.0.0)]
    }

    fn restore(&mut self, chunks: &[Bytes]) -> Result<(), Malformed> {
        let [chunk] = chunks else { return Err(Malformed) };
        self.0 = Digest(chunk[..].try_into().map_err(|_| Malformed)?);
        Ok(())
    }
}
