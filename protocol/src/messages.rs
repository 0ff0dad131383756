//! What passes over the payload network (section 3), and its encoding.
//!
//! Each message is one frame of an authenticated [channel](shared_registers::channel), so it needs
//! no MAC of its own. The encoding (bincode over serde, fixed-size integers, every decode limited)
//! is used in this module alone; it could be swapped without anything else changing.

use bincode::config;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteArray;
use shared_registers::codec::Malformed;
use shared_registers::crypto::{ClusterId, Digest, MAC_BYTES, MacKey};
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId, Term};
use shared_registers::limits::{MAX_PAYLOAD_BYTES, MAX_SERVERS};
use shared_registers::order::{self, OrderView};

use crate::limits::{MAX_CREDIT_BYTES, MAX_CREDIT_MESSAGES, PIECE_BYTES};
use crate::trace::Points;

/// Largest frame on the payload network: the largest payload and the rest of a message. A channel
/// of a cluster with a smaller limit can be set tighter with [`max_frame_bytes`].
const MAX_MESSAGE_BYTES: usize = MAX_PAYLOAD_BYTES + OVERHEAD_BYTES;
const OVERHEAD_BYTES: usize = 16 << 10;

/// What a delivery costs on top of its payload's bytes: about what its other fields and its frame
/// take on the wire, so that one without a payload is not free.
pub const DELIVERY_COST_BYTES: u64 = 128;

/// The frame limit of a cluster whose payloads are at most `max_payload_bytes`.
pub const fn max_frame_bytes(max_payload_bytes: usize) -> usize {
    max_payload_bytes + OVERHEAD_BYTES
}

/// A client's message on its way to be ordered, with a MAC for every host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderMessage {
    /// Whose, and which of theirs.
    pub id: OrderId,
    /// Its digest, see [`order::digest`]: as its client says, until a host has checked it (R1).
    #[serde(with = "digest")]
    pub digest: Digest,
    /// The message.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// `macs[i]` is for host `i`.
    pub macs: Vec<ByteArray<MAC_BYTES>>,
}

impl OrderMessage {
    /// An order with its MAC vector. `keys[i]` is the order key that the client shares with host
    /// `i`.
    pub fn new(cluster: &ClusterId, id: OrderId, payload: Vec<u8>, keys: &[MacKey]) -> Self {
        let digest = order::digest(cluster, id, &payload);
        let macs = keys.iter().map(|key| ByteArray::new(order::mac(key, &digest).0)).collect();
        OrderMessage { id, digest, payload, macs }
    }

    /// The order as it stands in a PROPOSE of the guest of `server`.
    pub fn view(&self, server: ServerId) -> OrderView<'_> {
        let OrderMessage { id, digest, payload, macs } = self;
        OrderView { id: *id, digest: *digest, mac: &macs[server.index()], payload }
    }
}

/// From a client to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// Please put this in order.
    Order(OrderMessage),
    /// The bytes of a reply that this client knows by its digest alone.
    FetchReply {
        /// The client's session.
        session: u64,
        /// Which of its orders.
        count: u64,
    },
    /// Send me every delivery from `from` on, while there is [`Credit`]. It takes the place of what
    /// this connection subscribed to before, and of its credit. With `messages: 0` nothing is sent
    /// any more: that is how one unsubscribes, see [`Self::UNSUBSCRIBE`].
    Subscribe {
        /// The first that is wanted.
        from: OrderNumber,
        /// So many may be sent.
        messages: u64,
        /// And about so many bytes of them: see [`Delivery::cost`].
        bytes: u64,
    },
    /// The subscription may go on for so much more. Means nothing without one.
    Credit {
        /// So many messages.
        messages: u64,
        /// And so many bytes.
        bytes: u64,
    },
    /// The bytes of a delivery that this subscriber knows by its digest alone. They are sent even
    /// if there is no credit, and taken from its bytes.
    FetchDelivery {
        /// Which.
        order: OrderNumber,
    },
    /// How are you? The operator may ask this too.
    Status,
    /// What happened when, from the point of this number on? Also: note it for a while. Only the
    /// operator may ask. Too high a number is the next one's.
    Trace {
        /// The number of the first point that is wanted.
        from: u64,
    },
}

impl ToServer {
    /// Ends a subscription.
    pub const UNSUBSCRIBE: ToServer =
        ToServer::Subscribe { from: OrderNumber(1), messages: 0, bytes: 0 };
}

/// What a subscriber has allowed a server to send and was not sent yet. Only what is sent is
/// limited by it; what it costs to keep is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    messages: u64,
    /// Negative after the last delivery and after bytes that were asked for.
    bytes: i64,
}

impl Credit {
    /// What a subscription starts with.
    pub fn new(messages: u64, bytes: u64) -> Credit {
        let mut credit = Credit { messages: 0, bytes: 0 };
        credit.add(messages, bytes);
        credit
    }

    /// Adds to it, up to [`MAX_CREDIT_MESSAGES`] and [`MAX_CREDIT_BYTES`].
    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_add(messages).min(MAX_CREDIT_MESSAGES);
        let bytes = bytes.min(MAX_CREDIT_BYTES) as i64;
        self.bytes = self.bytes.saturating_add(bytes).min(MAX_CREDIT_BYTES as i64);
    }

    /// Messages and bytes that are left.
    pub fn left(&self) -> (u64, i64) {
        (self.messages, self.bytes)
    }

    /// Whether a delivery may be sent: there is a message and a byte left, so that the last one may
    /// take more bytes than there are.
    pub fn allows(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// A delivery of this [cost](Delivery::cost) was sent.
    pub fn spend(&mut self, cost: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.spend_bytes(cost);
    }

    /// A delivery of this cost was sent because it was asked for.
    pub fn spend_bytes(&mut self, cost: u64) {
        self.bytes = self.bytes.saturating_sub_unsigned(cost);
    }
}

/// From a guest to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// An order that its client sent to the first, for the sequencer (P3).
    Forward(OrderMessage),
    /// A piece of a snapshot, please (section 6): see [`transfer`](crate::transfer).
    Fetch {
        /// Of the manifest or part that has this digest.
        #[serde(with = "digest")]
        digest: Digest,
        /// From this byte on.
        from: u64,
    },
    /// Here it is: as long as [`PIECE_BYTES`], or all that is left.
    Piece {
        /// What was asked for.
        #[serde(with = "digest")]
        digest: Digest,
        /// The first byte.
        from: u64,
        /// How long all of it is.
        total: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// This server has no such thing, or no longer.
    Gone {
        /// What was asked for.
        #[serde(with = "digest")]
        digest: Digest,
    },
}

/// From a guest to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToClient {
    /// An order of this client was delivered and executed.
    Reply(Reply),
    /// A delivery, for a subscriber.
    Delivery(Delivery),
    /// A delivery that this client asked for, or is the next of its subscription, is no longer kept.
    /// In the second case the subscription has ended.
    TooOld {
        /// That delivery.
        from: OrderNumber,
        /// The oldest that is kept.
        first: OrderNumber,
    },
    /// The order is of an older session than the newest that was delivered, which is this.
    Stale {
        /// The newest session.
        session: u64,
        /// Its last delivered order.
        count: u64,
    },
    /// The server's host refused the order when it was proposed.
    Refused {
        /// The client's session.
        session: u64,
        /// Which of its orders.
        count: u64,
        /// Why.
        reason: Refusal,
    },
    /// The answer to [`ToServer::Status`].
    Status(Box<Status>),
    /// The answer to [`ToServer::Trace`].
    Trace(Points),
}

/// Why a host refused an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Its MAC does not verify.
    BadMac,
    /// Its payload is over the limit.
    TooLarge,
}

/// `REPLY`: believed when `f + 1` servers sent the same `order` and `digest` (P5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The client's session.
    pub session: u64,
    /// Which of its orders.
    pub count: u64,
    /// Its place in the one order.
    pub order: OrderNumber,
    /// [`Digest::of`] the reply's bytes.
    #[serde(with = "digest")]
    pub digest: Digest,
    /// The term that the server is in: a hint for where to send the next order.
    pub term: Term,
    /// The bytes, from one server (the sequencer) or on request.
    pub body: Body,
}

/// The bytes of a reply or delivery, or why they are not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Another server sends them; ask if it does not.
    Elsewhere,
    /// Here they are.
    Here(Bytes),
    /// This server keeps them no longer.
    Gone,
}

/// `DELIVERY`: believed when `f + 1` servers sent the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its place in the one order.
    pub order: OrderNumber,
    /// Who sent it, and which of theirs it is.
    pub id: OrderId,
    /// The order's digest: see [`order::digest`].
    #[serde(with = "digest")]
    pub digest: Digest,
    /// The delivery time, by the trusted clock (C2).
    pub time: Micros,
    /// The message, from one server (the sequencer) or on request.
    pub payload: Body,
}

impl Delivery {
    /// The bytes of [`Credit`] that it takes to send this.
    pub fn cost(&self) -> u64 {
        let payload = match &self.payload {
            Body::Here(bytes) => bytes.len() as u64,
            Body::Elsewhere | Body::Gone => 0,
        };
        DELIVERY_COST_BYTES + payload
    }
}

/// What a server says of itself. All counters since its process started.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Which server.
    pub id: ServerId,
    /// Whether its host agent is there. Without it a guest knows what it knew, and no more.
    pub host_up: bool,
    /// The term that it is in.
    pub term: Term,
    /// Last committed batch.
    pub committed: u64,
    /// Last order number delivered.
    pub delivered: OrderNumber,
    /// Chain value after the last delivered batch.
    #[serde(with = "digest")]
    pub chain: Digest,
    /// The last stable checkpoint that it knows of (section 6).
    pub stable: Option<StableAt>,
    /// What the orders proposed since then weigh, and what they may weigh at most (R7).
    pub window: (u64, u64),
    /// Per server, how many bytes of its stream's ring are in use, and how many there are.
    pub rings: Vec<(u64, u64)>,
    /// Bytes that it holds.
    pub held: Held,
    /// Set while it is not at work: it only reads, or fetches a snapshot (P6).
    pub catching_up: Option<CatchingUp>,
    /// Name and value of every counter, the guest's and its host's.
    pub counters: Vec<(String, u64)>,
}

/// A stable checkpoint, in a [`Status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StableAt {
    /// Its term.
    pub term: Term,
    /// Its batch.
    pub batch: u64,
    /// The last order number that its snapshot covers; `None` if this server holds none of it.
    pub order: Option<OrderNumber>,
}

/// What a server holds in memory, in bytes. The parts of a snapshot that are still in use are
/// counted in both places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Held {
    /// Payloads of the messages kept for listeners.
    pub history: u64,
    /// The snapshot that others can start from.
    pub snapshot: u64,
    /// Payloads of the orders that wait.
    pub orders: u64,
}

/// How far a server is that is not at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CatchingUp {
    /// What it does.
    pub stage: Stage,
    /// Parts of the snapshot that are there, and all of them.
    pub parts: (u64, u64),
    /// Their bytes.
    pub bytes: (u64, u64),
    /// Who sent a piece of it last.
    pub from: Option<ServerId>,
}

/// What a server does that is not at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stage {
    /// It reads the records that its host has, before it acts.
    #[default]
    Reading,
    /// Records are missing: it looks for the checkpoint that is stable.
    Looking,
    /// It fetches that checkpoint's snapshot.
    Fetching,
}

mod digest {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_bytes::ByteArray;
    use shared_registers::crypto::{DIGEST_BYTES, Digest};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        ByteArray::new(digest.0).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        Ok(Digest(ByteArray::<DIGEST_BYTES>::deserialize(from)?.into_array()))
    }
}

/// Encodes a message.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(message, &mut out);
    out
}

/// Appends an encoded message to `out`.
pub fn encode_into<M: Serialize>(message: &M, out: &mut Vec<u8>) {
    let config = config::standard().with_fixed_int_encoding();
    // The types above hold nothing that serialising could refuse, and a vector takes all.
    bincode::serde::encode_into_std_write(message, out, config).expect("messages can be encoded");
}

/// Decodes a message that fills `bytes`.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, Malformed> {
    let config = config::standard().with_fixed_int_encoding().with_limit::<MAX_MESSAGE_BYTES>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((message, used)) if used == bytes.len() => Ok(message),
        _ => Err(Malformed),
    }
}

/// Decodes a client's message; an order's must be its own, and its MAC vector of the right length.
pub fn decode_to_server(bytes: &[u8], from: ClientId, n: usize) -> Result<ToServer, Malformed> {
    match decode(bytes)? {
        ToServer::Order(order) if order.id.client != from || !well_formed(&order, n) => {
            Err(Malformed)
        }
        message => Ok(message),
    }
}

/// Decodes another guest's message.
pub fn decode_to_guest(bytes: &[u8], n: usize) -> Result<ToGuest, Malformed> {
    match decode(bytes)? {
        ToGuest::Forward(order) if !well_formed(&order, n) => Err(Malformed),
        ToGuest::Piece { bytes, .. } if bytes.len() > PIECE_BYTES => Err(Malformed),
        message => Ok(message),
    }
}

fn well_formed(order: &OrderMessage, n: usize) -> bool {
    order.macs.len() == n && n <= MAX_SERVERS && order.id.count >= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared_registers::crypto::Secret;
    use shared_registers::ids::Seq;

    use crate::limits::TRACE_PAGE_POINTS;
    use crate::trace::{Moment, Point};

    fn sample() -> OrderMessage {
        let keys: Vec<_> = (0..3).map(|i| Secret::new([i; 32]).mac_key()).collect();
        let id = OrderId { client: ClientId(2), session: 1, count: 1 };
        OrderMessage::new(&ClusterId([1; 32]), id, vec![1, 2, 3], &keys)
    }

    #[test]
    fn an_order_comes_back_as_it_went_and_belongs_to_its_sender() {
        let bytes = encode(&ToServer::Order(sample()));
        assert_eq!(decode_to_server(&bytes, ClientId(2), 3), Ok(ToServer::Order(sample())));
        assert_eq!(decode_to_server(&bytes, ClientId(1), 3), Err(Malformed));
        assert_eq!(decode_to_server(&bytes, ClientId(2), 5), Err(Malformed));
    }

    #[test]
    fn a_page_of_a_trace_fits_every_clusters_frames() {
        let order = Some(OrderId::default());
        let (writer, seq, time) = (ServerId(1), Seq(2), Micros(3));
        let moment = Moment::Read { writer, seq, time, order };
        let points = vec![Point { woke_ns: 1, at_ns: 2, moment }; TRACE_PAGE_POINTS];
        let answer = ToClient::Trace(Points { first: 1, end: 2, points });
        assert!(encode(&answer).len() <= max_frame_bytes(0));
    }

    #[test]
    fn credit_neither_wraps_nor_grows_past_its_bounds() {
        let mut credit = Credit::new(u64::MAX, u64::MAX);
        credit.add(u64::MAX, u64::MAX);
        assert_eq!(credit, Credit::new(MAX_CREDIT_MESSAGES, MAX_CREDIT_BYTES));
        assert_eq!(credit.left(), (MAX_CREDIT_MESSAGES, MAX_CREDIT_BYTES as i64));
        (0..MAX_CREDIT_MESSAGES).for_each(|_| credit.spend(0));
        assert!(!credit.allows());
        credit.spend(u64::MAX);
        credit.spend(u64::MAX);
        credit.add(1, u64::MAX);
        assert!(!credit.allows(), "what was asked for beyond the credit is paid back first");
        // Both must be there, and the last delivery may take more than there is.
        let mut credit = Credit::new(2, 1);
        credit.spend(100);
        assert!(!credit.allows());
        credit.add(0, 99);
        assert!(!credit.allows());
        credit.add(0, 1);
        assert!(credit.allows());
        credit.spend(0);
        assert!(!credit.allows());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_to_server(&bytes, ClientId(0), 3);
            let _ = decode_to_guest(&bytes, 3);
            let _ = decode::<ToClient>(&bytes);
        }
    }
}
