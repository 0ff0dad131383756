//! The way of one request: eight hops between processes, and how many bytes pass at each.
//!
//! ```text
//! 0 client   -- TCP, ORDER with its payload and a MAC for every host --> guest of the sequencer
//! 1 guest    -- shared memory, a frame with a PROPOSE of that order  --> its host
//! 2 host     -- TCP, a record with it                                --> another host
//! 3 host     -- shared memory, that record                           --> its guest
//! 4 guest    -- shared memory, a frame with an ACCEPT                --> its host
//! 5 host     -- TCP, a record with it                                --> the sequencer's host
//! 6 host     -- shared memory, that record                           --> its guest
//! 7 guest    -- TCP, REPLY with its bytes                            --> client
//! ```
//!
//! The bytes are what the encoders of the product make of messages of such sizes. What passes
//! besides (the other servers' records and replies) is on nobody's way.

use protocol::messages::{self, OrderMessage, Reply, ToClient, ToServer};
use shared_registers::crypto::{ClusterId, Digest, Secret, TAG_BYTES};
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, OrderNumber, Seq, ServerId, Term};
use shared_registers::layout::FRAME_HEADER_BYTES;
use shared_registers::record::{Accept, Body, Propose, Record, Stamp, Vote};

use super::payload::Shape;

/// Hops on the way, and processes that a ring of them needs.
pub(crate) const HOPS: usize = 8;

/// What kind of channel a hop goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP connection.
    Tcp,
    /// Shared memory, and a byte on a unix socket that wakes its reader.
    Shared,
}

/// One hop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    /// Over what.
    pub(crate) kind: Kind,
    /// How many bytes; of a TCP connection the frame's length and tag too.
    pub(crate) bytes: usize,
}

/// The hops of a request of this shape in a cluster of so many servers, from the client on.
pub(crate) fn hops(shape: Shape, servers: usize) -> [Hop; HOPS] {
    let id = OrderId { client: ClientId(0), session: 1, count: 1 };
    let keys = vec![Secret::new([7; 32]).mac_key(); servers];
    let order = OrderMessage::new(&ClusterId([7; 32]), id, shape.payload(), &keys);
    let orders = vec![order.view(ServerId(0))];
    let propose = Propose { term: Term(0), batch: Batch(1), evidence: Vec::new(), orders };
    let propose = body(&Body::Propose(propose));
    let vote = Some(Vote { upto: Batch(1), chain: Digest::default() });
    let accept = body(&Body::Accept(Accept { term: Term(0), vote, checkpoint: None }));
    let (proposed, accepted) = (record(&propose, servers), record(&accept, servers));
    let reply = ToClient::Reply(Reply {
        session: 1,
        count: 1,
        order: OrderNumber(1),
        digest: Digest::default(),
        term: Term(0),
        body: messages::Body::Here(vec![0; shape.reply as usize].into()),
    });
    let tcp = |bytes| Hop { kind: Kind::Tcp, bytes: sealed(bytes) };
    let shared = |bytes| Hop { kind: Kind::Shared, bytes };
    // A RECORD frame between hosts has one byte that says what it is.
    [
        tcp(messages::encode(&ToServer::Order(order)).len()),
        shared(FRAME_HEADER_BYTES + propose.len()),
        tcp(1 + proposed),
        shared(proposed),
        shared(FRAME_HEADER_BYTES + accept.len()),
        tcp(1 + accepted),
        shared(accepted),
        tcp(messages::encode(&reply).len()),
    ]
}

fn body(body: &Body<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.encode(&mut bytes);
    bytes
}

/// The bytes of a record with this body.
fn record(body: &[u8], servers: usize) -> usize {
    let seen = vec![0; servers].into();
    let stamp = Stamp { writer: ServerId(0), seq: Seq(1), time: Micros(0), incarnation: 0, seen };
    let mut bytes = Vec::new();
    Record::encode(&stamp, body, &mut bytes);
    bytes.len()
}

/// The bytes of a frame on an authenticated connection: its length, itself, its tag.
fn sealed(bytes: usize) -> usize {
    size_of::<u32>() + bytes + TAG_BYTES
}

#[cfg(test)]
mod tests {
    use shared_registers::channel::{Channel, Party};

    use super::*;

    #[test]
    fn payloads_pass_where_they_are_needed_and_nowhere_else() {
        let bytes = |request, reply| hops(Shape { request, reply }, 3).map(|hop| hop.bytes);
        let empty = bytes(0, 0);
        let grown = |with: [usize; HOPS]| std::array::from_fn(|i| with[i] - empty[i]);
        assert_eq!(grown(bytes(4096, 0)), [4096, 4096, 4096, 4096, 0, 0, 0, 0]);
        assert_eq!(grown(bytes(0, 4096)), [0, 0, 0, 0, 0, 0, 0, 4096]);
        assert!(empty.iter().all(|bytes| (60..400).contains(bytes)), "{empty:?}");
    }

    #[test]
    fn more_servers_need_more_macs_and_longer_stamps() {
        let bytes = |servers| hops(Shape { request: 0, reply: 0 }, servers).map(|hop| hop.bytes);
        let (three, seven) = (bytes(3), bytes(7));
        // Each MAC stands with its length.
        assert_eq!(seven[0] - three[0], 4 * (8 + 32));
        assert_eq!(seven[1], three[1]);
        assert_eq!([2, 3, 5, 6].map(|hop| seven[hop] - three[hop]), [4 * 8; 4]);
    }

    #[test]
    fn a_sealed_frame_is_as_long_as_a_channel_makes_it() {
        let (key, cluster) = (Secret::new([1; 32]).mac_key(), ClusterId([2; 32]));
        let ends = (Party::Client(ClientId(0)), Party::Guest(ServerId(0)));
        let (mut there, mut back) = (Vec::new(), Vec::new());
        let mut dialer = Channel::dial(ends, &key, cluster, [3; 16], 1000, &mut there);
        let mut acceptor = Channel::accept(ends.1, cluster, [4; 16], 1000);
        let keys = |_| Some(key.clone());
        acceptor.receive(&there);
        assert!(acceptor.next(&keys, &mut back).is_ok());
        dialer.receive(&back);
        assert!(dialer.next(&keys, &mut Vec::new()).is_ok());
        let mut frame = Vec::new();
        assert!(dialer.seal(&mut frame, |out| out.extend_from_slice(&[5; 100])));
        assert_eq!(frame.len(), sealed(100));
    }
}
