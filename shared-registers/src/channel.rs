//! Authenticated frames over a byte stream, without I/O.
//!
//! Both networks use it: hosts among each other with link keys, clients and guests with reply keys.
//! A three-way handshake (HMAC-SHA256) proves to each end that the other holds their key and makes a
//! fresh key per direction; from then on every frame is sealed under its number with AES-256-GCM, so
//! that nothing can be altered, replayed, reordered or brought over from another connection. GCM's
//! tag is the MAC that the protocol asks for; that it also encrypts comes with the fastest way to
//! compute it, and nothing rests on it. A channel that fails stays failed: close the connection.
//!
//! ```text
//! dialer   -> acceptor  magic, who dials, whom it means, 16 random bytes
//! acceptor -> dialer    16 random bytes, MAC          (the dialer learns: the key is right)
//! dialer   -> acceptor  MAC                           (the acceptor learns it too)
//! both ways             length u32, sealed bytes, tag
//! ```

use crate::codec::Reader;
use crate::crypto::{ClusterId, FrameKey, MAC_BYTES, MacKey, TAG_BYTES};
use crate::ids::{ClientId, ServerId};

const MAGIC: &[u8; 8] = b"DifATo/3";
const PARTY_BYTES: usize = 5;
/// Random bytes that each end contributes.
pub const NONCE_BYTES: usize = 16;
const HELLO_BYTES: usize = MAGIC.len() + 2 * PARTY_BYTES + NONCE_BYTES;
const ANSWER_BYTES: usize = NONCE_BYTES + MAC_BYTES;

/// Who can stand at an end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A host agent, on the trusted network.
    Host(ServerId),
    /// A guest, on the payload network.
    Guest(ServerId),
    /// A client.
    Client(ClientId),
    /// Whoever asks for status; can do nothing else.
    Operator,
}

impl Party {
    fn bytes(self) -> [u8; PARTY_BYTES] {
        let (kind, id) = match self {
            Party::Host(id) => (1, u32::from(id.0)),
            Party::Guest(id) => (2, u32::from(id.0)),
            Party::Client(id) => (3, id.0),
            Party::Operator => (4, 0),
        };
        let [a, b, c, d] = id.to_le_bytes();
        [kind, a, b, c, d]
    }

    fn parse(bytes: &[u8; PARTY_BYTES]) -> Option<Party> {
        let [kind, a, b, c, d] = *bytes;
        let id = u32::from_le_bytes([a, b, c, d]);
        match (kind, u16::try_from(id)) {
            (1, Ok(id)) => Some(Party::Host(ServerId(id))),
            (2, Ok(id)) => Some(Party::Guest(ServerId(id))),
            (3, _) => Some(Party::Client(ClientId(id))),
            (4, Ok(0)) => Some(Party::Operator),
            _ => None,
        }
    }
}

/// Why a channel failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The bytes are not of this protocol.
    #[error("not a DifATo peer")]
    NotOurs,
    /// The other end is nobody that this end talks to, or means somebody else.
    #[error("a party that is not known here")]
    Unknown,
    /// A MAC does not verify: the ends hold different keys, or somebody altered the bytes.
    #[error("a MAC does not verify")]
    BadMac,
    /// A frame longer than the limit.
    #[error("a frame over the length limit")]
    TooLong,
}

/// What a channel has received.
pub enum Event<'a> {
    /// The handshake is done; the other end is who it says.
    Established(Party),
    /// A frame.
    Frame(&'a [u8]),
}

enum State {
    /// Acceptor, before the hello.
    AwaitHello,
    /// Dialer, before the answer.
    AwaitAnswer {
        key: MacKey,
        hello: [u8; HELLO_BYTES],
    },
    /// Acceptor, before the confirmation.
    AwaitConfirm {
        key: MacKey,
        hello: [u8; HELLO_BYTES],
        nonce: [u8; NONCE_BYTES],
    },
    Open,
    Failed(ChannelError),
}

/// One end of an authenticated byte stream.
pub struct Channel {
    me: Party,
    peer: Option<Party>,
    cluster: ClusterId,
    nonce: [u8; NONCE_BYTES],
    max_frame: usize,
    state: State,
    sending: Option<(FrameKey, u64)>,
    receiving: Option<(FrameKey, u64)>,
    buffer: Vec<u8>,
    start: usize,
}

impl Channel {
    /// The end that connects. `key` is the one that `me` shares with `to`; `nonce` must be fresh
    /// random bytes; frames are at most `max_frame` bytes. Appends the hello to `out`.
    pub fn dial(
        (me, to): (Party, Party),
        key: &MacKey,
        cluster: ClusterId,
        nonce: [u8; NONCE_BYTES],
        max_frame: usize,
        out: &mut Vec<u8>,
    ) -> Channel {
        let mut hello = [0; HELLO_BYTES];
        hello[..8].copy_from_slice(MAGIC);
        hello[8..13].copy_from_slice(&me.bytes());
        hello[13..18].copy_from_slice(&to.bytes());
        hello[18..].copy_from_slice(&nonce);
        out.extend_from_slice(&hello);
        let state = State::AwaitAnswer { key: key.clone(), hello };
        let mut channel = Channel::new(me, cluster, nonce, max_frame, state);
        channel.peer = Some(to);
        channel
    }

    /// The end that is connected to.
    pub fn accept(
        me: Party,
        cluster: ClusterId,
        nonce: [u8; NONCE_BYTES],
        max_frame: usize,
    ) -> Channel {
        Channel::new(me, cluster, nonce, max_frame, State::AwaitHello)
    }

    fn new(me: Party, cluster: ClusterId, nonce: [u8; 16], max_frame: usize, state: State) -> Self {
        Channel {
            me,
            peer: None,
            cluster,
            nonce,
            max_frame,
            state,
            sending: None,
            receiving: None,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Whether frames may be sent.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// The other end, once it has proved who it is.
    pub fn peer(&self) -> Option<Party> {
        self.peer.filter(|_| self.is_open())
    }

    /// Takes received bytes. They wait, at most a frame and a read of them, for [`Self::next`].
    pub fn receive(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Failed(_)) {
            return; // Nobody will ever take them.
        }
        self.buffer.drain(..std::mem::take(&mut self.start));
        self.buffer.extend_from_slice(bytes);
    }

    /// What the received bytes say next; `None` when more bytes are needed. `keys` finds the key
    /// for a party that dials; the handshake's answers are appended to `out`.
    pub fn next(
        &mut self,
        keys: &dyn Fn(Party) -> Option<MacKey>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'_>>, ChannelError> {
        let step = match &self.state {
            State::Open => return self.next_frame(),
            State::Failed(error) => return Err(*error),
            State::AwaitHello => self.on_hello(keys, out),
            State::AwaitAnswer { .. } => self.on_answer(out),
            State::AwaitConfirm { .. } => self.on_confirm(),
        };
        match step {
            Ok(Some(peer)) => Ok(Some(Event::Established(peer))),
            // The hello was taken: what follows it may be here already.
            Ok(None) if self.waiting() >= MAC_BYTES && self.awaits_confirm() => {
                self.next(keys, out)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Bytes that were received and not used yet. Once [`Self::next`] has returned `None` they are
    /// less than one frame of the largest size.
    pub fn buffered(&self) -> usize {
        self.waiting()
    }

    fn awaits_confirm(&self) -> bool {
        matches!(self.state, State::AwaitConfirm { .. })
    }

    fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn fail(&mut self, error: ChannelError) -> ChannelError {
        self.state = State::Failed(error);
        self.buffer = Vec::new();
        self.start = 0;
        error
    }

    fn on_hello(
        &mut self,
        keys: &dyn Fn(Party) -> Option<MacKey>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Party>, ChannelError> {
        let here = &self.buffer[self.start..];
        let magic = here.len().min(MAGIC.len());
        if here[..magic] != MAGIC[..magic] {
            return Err(ChannelError::NotOurs);
        }
        let Some(hello) = here.first_chunk::<HELLO_BYTES>().copied() else { return Ok(None) };
        let mut from = Reader::new(&hello[MAGIC.len()..]);
        let mut party = || Party::parse(from.array().ok()?);
        let (peer, meant) = (party(), party());
        let known = peer.filter(|_| meant == Some(self.me)).and_then(|p| Some((p, keys(p)?)));
        let (peer, key) = known.ok_or(ChannelError::Unknown)?;
        self.start += HELLO_BYTES;
        self.peer = Some(peer);
        let proof = key.mac(&[b"difato answer\0", &self.cluster.0, &hello, &self.nonce]);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&proof.0);
        self.state = State::AwaitConfirm { key, hello, nonce: self.nonce };
        Ok(None)
    }

    fn on_answer(&mut self, out: &mut Vec<u8>) -> Result<Option<Party>, ChannelError> {
        let here = &self.buffer[self.start..];
        let Some(answer) = here.first_chunk::<ANSWER_BYTES>().copied() else { return Ok(None) };
        let State::AwaitAnswer { key, hello } = &self.state else { return Ok(None) };
        let (key, hello) = (key.clone(), *hello);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&answer[..NONCE_BYTES]);
        let mut proof = [0; MAC_BYTES];
        proof.copy_from_slice(&answer[NONCE_BYTES..]);
        if !key.verify(&[b"difato answer\0", &self.cluster.0, &hello, &nonce], &proof) {
            return Err(ChannelError::BadMac);
        }
        self.start += ANSWER_BYTES;
        let confirm = key.mac(&[b"difato confirm\0", &self.cluster.0, &hello, &nonce]);
        out.extend_from_slice(&confirm.0);
        self.open(&key, &hello, &nonce, true);
        Ok(self.peer)
    }

    fn on_confirm(&mut self) -> Result<Option<Party>, ChannelError> {
        let here = &self.buffer[self.start..];
        let Some(proof) = here.first_chunk::<MAC_BYTES>().copied() else { return Ok(None) };
        let State::AwaitConfirm { key, hello, nonce } = &self.state else { return Ok(None) };
        let (key, hello, nonce) = (key.clone(), *hello, *nonce);
        if !key.verify(&[b"difato confirm\0", &self.cluster.0, &hello, &nonce], &proof) {
            return Err(ChannelError::BadMac);
        }
        self.start += MAC_BYTES;
        self.open(&key, &hello, &nonce, false);
        Ok(self.peer)
    }

    fn open(&mut self, key: &MacKey, hello: &[u8], nonce: &[u8], dialer: bool) {
        let forth = key.derive(&[b"difato forth\0", &self.cluster.0, hello, nonce]);
        let back = key.derive(&[b"difato back\0", &self.cluster.0, hello, nonce]);
        let (send, receive) = if dialer { (forth, back) } else { (back, forth) };
        self.sending = Some((send, 0));
        self.receiving = Some((receive, 0));
        self.state = State::Open;
    }

    fn next_frame(&mut self) -> Result<Option<Event<'_>>, ChannelError> {
        let here = &mut self.buffer[self.start..];
        let Some(len) = here.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > self.max_frame {
            return Err(self.fail(ChannelError::TooLong));
        }
        let Some(sealed) = here.get_mut(4..4 + len + TAG_BYTES) else { return Ok(None) };
        let Some((key, number)) = &mut self.receiving else { return Ok(None) };
        if !key.open(*number, sealed) {
            return Err(self.fail(ChannelError::BadMac));
        }
        *number += 1;
        let begin = self.start + 4;
        self.start = begin + len + TAG_BYTES;
        Ok(Some(Event::Frame(&self.buffer[begin..begin + len])))
    }

    /// Appends a frame to `out`, whose bytes `write` appends. Returns false, and leaves `out` as it
    /// was, before the channel is open or if the frame would be over the limit.
    #[must_use]
    pub fn seal(&mut self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some((key, number)) = &mut self.sending else { return false };
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        write(out);
        let len = out.len() - (start + 4);
        if len > self.max_frame {
            out.truncate(start);
            return false;
        }
        out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
        let tag = key.seal(*number, &mut out[start + 4..]);
        out.extend_from_slice(&tag);
        *number += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    const CLUSTER: ClusterId = ClusterId([5; 32]);
    const CLIENT: Party = Party::Client(ClientId(3));
    const GUEST: Party = Party::Guest(ServerId(1));

    fn key(byte: u8) -> MacKey {
        Secret::new([byte; 32]).mac_key()
    }

    /// Runs a handshake byte by byte; returns both ends or the first error.
    fn connect(dial_key: u8, accept_key: u8) -> Result<(Channel, Channel), ChannelError> {
        let mut forth = Vec::new();
        let mut dialer =
            Channel::dial((CLIENT, GUEST), &key(dial_key), CLUSTER, [1; 16], 100, &mut forth);
        let mut acceptor = Channel::accept(GUEST, CLUSTER, [2; 16], 100);
        let keys = |party| (party == CLIENT).then(|| key(accept_key));
        let mut back = Vec::new();
        for _ in 0..3 {
            for byte in std::mem::take(&mut forth) {
                acceptor.receive(&[byte]);
                acceptor.next(&keys, &mut back)?;
            }
            for byte in std::mem::take(&mut back) {
                dialer.receive(&[byte]);
                dialer.next(&|_| None, &mut forth)?;
            }
        }
        Ok((dialer, acceptor))
    }

    fn received(channel: &mut Channel, bytes: &[u8]) -> Result<Vec<u8>, ChannelError> {
        channel.receive(bytes);
        match channel.next(&|_| None, &mut Vec::new())? {
            Some(Event::Frame(bytes)) => Ok(bytes.to_vec()),
            _ => Ok(Vec::new()),
        }
    }

    #[test]
    fn frames_pass_both_ways_after_the_handshake() {
        let (mut dialer, mut acceptor) = connect(7, 7).unwrap();
        assert_eq!(acceptor.peer(), Some(CLIENT));
        let mut wire = Vec::new();
        assert!(dialer.seal(&mut wire, |out| out.extend_from_slice(b"hello")));
        assert_eq!(received(&mut acceptor, &wire).unwrap(), b"hello");
        wire.clear();
        assert!(acceptor.seal(&mut wire, |out| out.extend_from_slice(b"yes")));
        assert_eq!(received(&mut dialer, &wire).unwrap(), b"yes");
    }

    #[test]
    fn ends_with_different_keys_learn_it_from_a_mac() {
        assert_eq!(connect(7, 8).err(), Some(ChannelError::BadMac));
    }

    #[test]
    fn a_replayed_altered_or_foreign_frame_is_refused() {
        let (mut dialer, mut acceptor) = connect(7, 7).unwrap();
        let mut wire = Vec::new();
        assert!(dialer.seal(&mut wire, |out| out.extend_from_slice(b"once")));
        assert_eq!(received(&mut acceptor, &wire).unwrap(), b"once");
        assert_eq!(received(&mut acceptor, &wire), Err(ChannelError::BadMac));

        for bit in 0..wire.len() * 8 {
            let (_, mut acceptor) = connect(7, 7).unwrap();
            let mut altered = wire.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(received(&mut acceptor, &altered), Ok(b"once".to_vec()));
        }
        // A frame that went one way means nothing the other way.
        let (mut dialer, _) = connect(7, 7).unwrap();
        assert_eq!(received(&mut dialer, &wire), Err(ChannelError::BadMac));
    }

    #[test]
    fn strangers_and_noise_are_refused_at_once() {
        let mut acceptor = Channel::accept(GUEST, CLUSTER, [2; 16], 100);
        acceptor.receive(b"GET / HTTP/1.1\r\n");
        assert_eq!(acceptor.next(&|_| None, &mut Vec::new()).err(), Some(ChannelError::NotOurs));
        acceptor.receive(b"Host: example.org\r\n");
        assert_eq!(acceptor.buffered(), 0, "a failed channel keeps nothing");

        let mut hello = Vec::new();
        Channel::dial((CLIENT, GUEST), &key(1), CLUSTER, [1; 16], 100, &mut hello);
        let mut acceptor = Channel::accept(GUEST, CLUSTER, [2; 16], 100);
        acceptor.receive(&hello);
        assert_eq!(acceptor.next(&|_| None, &mut Vec::new()).err(), Some(ChannelError::Unknown));
    }

    #[test]
    fn a_frame_over_the_limit_is_neither_sent_nor_taken() {
        let (mut dialer, mut acceptor) = connect(7, 7).unwrap();
        let mut wire = b"before".to_vec();
        assert!(!dialer.seal(&mut wire, |out| out.extend_from_slice(&[0; 101])));
        assert_eq!(wire, b"before");
        assert_eq!(received(&mut acceptor, &u32::MAX.to_le_bytes()), Err(ChannelError::TooLong));
    }
}
