//! What is replicated: a deterministic state machine that executes delivered messages in order.

mod kv;

pub use bytes::Bytes;
use shared_registers::codec::Malformed;
use shared_registers::ids::{Micros, OrderId, OrderNumber};

pub use kv::KeyValue;

/// A delivered message.
#[derive(Clone, Copy, Debug)]
pub struct Delivered<'a> {
    /// Its place in the one order.
    pub order: OrderNumber,
    /// Who sent it, and which of theirs it is.
    pub id: OrderId,
    /// The delivery time: the same at every replica, and never going back (C2).
    pub time: Micros,
    /// The message.
    pub payload: &'a [u8],
}

/// A deterministic state machine: replicas that execute the same messages must give the same
/// replies, so nothing but the arguments (no clock, no randomness) may decide them.
pub trait Application: Send {
    /// Executes a message and returns the reply to its sender. A reply longer than the cluster's
    /// `max_payload_bytes` is replaced by an empty one.
    fn execute(&mut self, message: &Delivered<'_>) -> Vec<u8>;

    /// The state, in chunks of about 256 KiB or less (larger ones only make transfers start over
    /// further back): equal states must give equal chunks, however they came about. It is taken
    /// every few thousand messages (section 6), so a chunk that did not change since the last time
    /// should be the same `Bytes`: that one is not hashed again.
    fn snapshot(&mut self) -> Vec<Bytes>;

    /// Takes the state that [`Self::snapshot`] gave. The chunks are as they were given; an
    /// application that cannot make sense of them changes nothing.
    fn restore(&mut self, chunks: &[Bytes]) -> Result<(), Malformed>;
}

/// What [`Application::restore`] is to one without a state.
fn no_state(chunks: &[Bytes]) -> Result<(), Malformed> {
    if chunks.is_empty() { Ok(()) } else { Err(Malformed) }
}

/// The reply is the order number: 8 bytes, little-endian.
#[derive(Debug, Default)]
pub struct Log;

impl Application for Log {
    fn execute(&mut self, message: &Delivered<'_>) -> Vec<u8> {
        message.order.0.to_le_bytes().to_vec()
    }

    fn snapshot(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn restore(&mut self, chunks: &[Bytes]) -> Result<(), Malformed> {
        no_state(chunks)
    }
}

/// The reply has the size that the request asks for, for benchmarks: a request that begins with
/// [`EchoSized::MAGIC`] and a size (`u32`, little-endian) gets so many bytes; any other an empty
/// reply.
#[derive(Debug, Default)]
pub struct EchoSized;

impl EchoSized {
    /// How a request that asks for a size begins.
    pub const MAGIC: [u8; 4] = *b"ECHO";
    /// Bytes of a request before its filling: the magic and the size.
    pub const HEADER_BYTES: usize = 8;

    /// A request of `request` bytes (and the header) that asks for a reply of `reply` bytes.
    pub fn request(request: usize, reply: u32) -> Vec<u8> {
        let mut payload = Vec::with_capacity(Self::HEADER_BYTES + request);
        payload.extend_from_slice(&Self::MAGIC);
        payload.extend_from_slice(&reply.to_le_bytes());
        payload.resize(Self::HEADER_BYTES + request, b'q');
        payload
    }
}

impl Application for EchoSized {
    fn execute(&mut self, message: &Delivered<'_>) -> Vec<u8> {
        let asked = message.payload.strip_prefix(&Self::MAGIC).and_then(|r| r.first_chunk());
        let size = asked.map_or(0, |size| u32::from_le_bytes(*size) as usize);
        vec![b'r'; if size > crate::limits::ECHO_REPLY_BYTES { 0 } else { size }]
    }

    fn snapshot(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn restore(&mut self, chunks: &[Bytes]) -> Result<(), Malformed> {
        no_state(chunks)
    }
}

/// What makes the application that `cluster.toml` names.
pub fn by_name(name: &str) -> Option<fn() -> Box<dyn Application>> {
    match name {
        "log" => Some(|| Box::new(Log)),
        "echo-sized" => Some(|| Box::new(EchoSized)),
        "kv" => Some(|| Box::new(KeyValue::default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execute(app: &mut dyn Application, payload: &[u8]) -> Vec<u8> {
        let (order, time) = (OrderNumber(7), Micros(0));
        app.execute(&Delivered { order, id: OrderId::default(), time, payload })
    }

    #[test]
    fn log_replies_with_the_order_number() {
        assert_eq!(execute(&mut Log, b"x"), 7u64.to_le_bytes());
    }

    #[test]
    fn echo_sized_replies_with_the_size_that_is_asked_for() {
        assert_eq!(execute(&mut EchoSized, &EchoSized::request(5, 4096)).len(), 4096);
        assert_eq!(EchoSized::request(5, 0).len(), EchoSized::HEADER_BYTES + 5);
        assert!(execute(&mut EchoSized, &EchoSized::request(0, u32::MAX)).is_empty());
        for text in [&b""[..], b"ECHO", b"ECHO\x01\0\0", b"hello, world"] {
            assert!(execute(&mut EchoSized, text).is_empty());
        }
    }
}
