//! The authenticated channel under an attacker who owns the wire: it sees all bytes of all
//! connections, and alters, drops, repeats, reflects and makes up what it likes.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};
use shared_registers::channel::{Channel, Event, NONCE_BYTES, Party};
use shared_registers::crypto::{MAC_BYTES, MacKey, Secret, TAG_BYTES};
use shared_registers::ids::{ClientId, ServerId};

use crate::acts;
use crate::drafts::CLUSTER;

const CLIENT: Party = Party::Client(ClientId(3));
const GUEST: Party = Party::Guest(ServerId(1));
const MAX_FRAME: usize = 100;
/// Received and not used: less than a frame's length, bytes and MAC.
const MAX_BUFFERED: usize = 4 + MAX_FRAME + TAG_BYTES;
/// Bytes of the wire's log; more is not remembered.
const MAX_LOG: usize = 1 << 16;

#[derive(Arbitrary, Debug)]
enum Act<'a> {
    /// An end seals a frame of so many bytes.
    Send { by_dialer: bool, len: u8 },
    /// So many bytes of the wire arrive.
    Carry { to_dialer: bool, len: u8 },
    /// All of it arrives.
    CarryAll { to_dialer: bool },
    /// The attacker's own bytes come first.
    Noise { to_dialer: bool, bytes: &'a [u8] },
    /// A bit changes on the wire.
    Flip { to_dialer: bool, at: u8, bit: u8 },
    /// Bytes vanish from it.
    Lose { to_dialer: bool, len: u8 },
    /// Bytes that once passed, either way and on any connection, come again.
    Replay { to_dialer: bool, at: u16, len: u8 },
    /// Both ends connect anew.
    Reconnect,
}

/// One end and what is on its way to it.
struct End {
    channel: Channel,
    wire: VecDeque<u8>,
    /// Frames that the other end has sealed and this one has not taken.
    due: VecDeque<Vec<u8>>,
    /// Nobody touched what comes here.
    clean: bool,
}

impl End {
    fn new(channel: Channel) -> End {
        End { channel, wire: VecDeque::new(), due: VecDeque::new(), clean: true }
    }
}

struct World {
    /// The acceptor, the dialer.
    ends: [End; 2],
    /// Whether both hold the same key.
    same_key: bool,
    connections: u8,
    log: Vec<u8>,
}

fn key(same: bool) -> MacKey {
    Secret::new([if same { 1 } else { 2 }; 32]).mac_key()
}

/// The channel's story: see the [module](self).
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let same_key = bytes.arbitrary::<u8>().is_ok_and(|byte| !byte.is_multiple_of(4));
    let mut world = World::new(same_key);
    acts(&mut bytes, |act| world.act(act));
    // What nobody touched arrives whole.
    for _ in 0..4 {
        world.carry(0, usize::MAX);
        world.carry(1, usize::MAX);
    }
    for end in world.ends.iter().filter(|_| world.ends.iter().all(|end| end.clean)) {
        assert_eq!(end.channel.is_open(), same_key, "an undisturbed handshake");
        assert!(end.due.is_empty(), "an undisturbed frame is lost");
    }
}

impl World {
    fn new(same_key: bool) -> World {
        let mut world = World {
            ends: World::connect(0, same_key, &mut Vec::new()),
            same_key,
            connections: 0,
            log: Vec::new(),
        };
        world.reconnect();
        world
    }

    /// A fresh acceptor and a fresh dialer, whose hello goes to `hello`.
    fn connect(connection: u8, same_key: bool, hello: &mut Vec<u8>) -> [End; 2] {
        let nonce = |end: u8| {
            let mut nonce = [end; NONCE_BYTES];
            nonce[0] = connection;
            nonce
        };
        let acceptor = Channel::accept(GUEST, CLUSTER, nonce(1), MAX_FRAME);
        let (parties, key) = ((CLIENT, GUEST), key(same_key));
        let dialer = Channel::dial(parties, &key, CLUSTER, nonce(2), MAX_FRAME, hello);
        [End::new(acceptor), End::new(dialer)]
    }

    fn reconnect(&mut self) {
        // 255 connections are more than a story has acts for.
        self.connections = self.connections.saturating_add(1);
        let mut hello = Vec::new();
        self.ends = World::connect(self.connections, self.same_key, &mut hello);
        self.put(0, &hello);
    }

    /// Bytes of an honest end go on the wire to `to`.
    fn put(&mut self, to: usize, bytes: &[u8]) {
        let room = MAX_LOG.saturating_sub(self.log.len()).min(bytes.len());
        self.log.extend_from_slice(&bytes[..room]);
        self.ends[to].wire.extend(bytes);
    }

    fn act(&mut self, act: Act<'_>) {
        match act {
            Act::Send { by_dialer, len } => self.send(usize::from(by_dialer), len),
            Act::Carry { to_dialer, len } => self.carry(usize::from(to_dialer), usize::from(len)),
            Act::CarryAll { to_dialer } => self.carry(usize::from(to_dialer), usize::MAX),
            Act::Noise { to_dialer, bytes } => {
                let bytes = &bytes[..bytes.len().min(2 * MAX_BUFFERED)];
                self.ends[usize::from(to_dialer)].clean &= bytes.is_empty();
                self.receive(usize::from(to_dialer), bytes);
            }
            Act::Flip { to_dialer, at, bit } => {
                let end = &mut self.ends[usize::from(to_dialer)];
                let at = usize::from(at).checked_rem(end.wire.len());
                if let Some(byte) = at.and_then(|at| end.wire.get_mut(at)) {
                    *byte ^= 1 << (bit % 8);
                    end.clean = false;
                }
            }
            Act::Lose { to_dialer, len } => {
                let end = &mut self.ends[usize::from(to_dialer)];
                let len = usize::from(len).min(end.wire.len());
                end.wire.drain(..len);
                end.clean &= len == 0;
            }
            Act::Replay { to_dialer, at, len } => {
                let at = usize::from(at) % self.log.len();
                let end = (at + usize::from(len)).min(self.log.len());
                let bytes = self.log[at..end].to_vec();
                self.ends[usize::from(to_dialer)].clean &= bytes.is_empty();
                self.receive(usize::from(to_dialer), &bytes);
            }
            Act::Reconnect => self.reconnect(),
        }
    }

    fn send(&mut self, from: usize, len: u8) {
        let mut wire = Vec::new();
        let frame = vec![len; usize::from(len)];
        let write = |out: &mut Vec<u8>| out.extend_from_slice(&frame);
        let sealed = self.ends[from].channel.seal(&mut wire, write);
        let open = self.ends[from].channel.is_open();
        assert!(!sealed || frame.len() <= MAX_FRAME, "a frame over the limit is sealed");
        assert!(sealed || wire.is_empty());
        // An end that failed may still seal; nobody carries what it says.
        if sealed && open {
            self.put(1 - from, &wire);
            self.ends[1 - from].due.push_back(frame);
        }
    }

    fn carry(&mut self, to: usize, len: usize) {
        let len = len.min(self.ends[to].wire.len());
        let bytes: Vec<u8> = self.ends[to].wire.drain(..len).collect();
        self.receive(to, &bytes);
    }

    fn receive(&mut self, to: usize, bytes: &[u8]) {
        let same_key = self.same_key;
        let clean = self.ends.iter().all(|end| end.clean);
        let keys = |party| (party == CLIENT).then(|| key(true));
        let mut answer = Vec::new();
        let end = &mut self.ends[to];
        end.channel.receive(bytes);
        loop {
            match end.channel.next(&keys, &mut answer) {
                Ok(Some(Event::Established(peer))) => {
                    assert!(same_key, "somebody without the key is believed");
                    assert_eq!(peer, if to == 0 { CLIENT } else { GUEST });
                }
                Ok(Some(Event::Frame(frame))) => {
                    let due = end.due.pop_front();
                    assert_eq!(due.as_deref(), Some(frame), "a frame that was not sent");
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(end.channel.next(&keys, &mut answer).err(), Some(error));
                    assert!(!end.channel.is_open() && end.channel.peer().is_none());
                    assert!(!clean || !same_key, "an undisturbed channel fails: {error}");
                    break;
                }
            }
        }
        assert!(end.channel.buffered() < MAX_BUFFERED, "received bytes pile up");
        assert!(answer.len() <= NONCE_BYTES + 2 * MAC_BYTES, "an answer to nothing");
        self.put(1 - to, &answer);
    }
}
