//! What a client keeps, by name; what its protocol keeps is in [`protocol::limits`].

/// Bytes that may wait for a server that does not read. Frames on top are dropped, since what they
/// carry is sent again in time; a frame for which that is not so ends the connection.
pub(crate) const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Messages that wait for a subscriber; the listener keeps some more, and the servers the rest.
pub(crate) const WAITING_MESSAGES: u64 = 1024;
/// Bytes of their payloads; one message more may be over it.
pub(crate) const WAITING_BYTES: u64 = 8 << 20;
