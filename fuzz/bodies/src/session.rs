//! The ordering side of a client, by servers that say anything. Of the three one at most lies; what
//! the story's servers say may break that, so what is checked holds whatever they say: an order is
//! done at most once, and only as `f + 1` servers said alike (P5).

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Unstructured};
use protocol::client_session::{
    ClientSession, HELD_BYTES_PER_SERVER, Input, Output, SessionConfig, Ticket,
};
use protocol::messages::{Body, Refusal, Reply, ToClient, ToServer};
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId, Term};

use crate::acts;
use crate::drafts::{CLUSTER, F, MAX_PAYLOAD, N, order_key};

const CLIENT: ClientId = ClientId(1);
const MAX_IN_FLIGHT: usize = 8;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Key {
    session: u8,
    count: u8,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Broadcast {
        len: u8,
    },
    Reply {
        server: u8,
        key: Key,
        order: u8,
        reply: u8,
        body: u8,
        term: u8,
    },
    /// `f + 1` servers say the same.
    Agreed {
        first: u8,
        key: Key,
        order: u8,
        reply: u8,
        body: u8,
    },
    Stale {
        server: u8,
        key: Key,
    },
    Refused {
        server: u8,
        key: Key,
        large: bool,
    },
    Other {
        server: u8,
    },
    Connected {
        server: u8,
    },
    Disconnected {
        server: u8,
    },
    Pass {
        ms: u16,
    },
}

/// What a reply says.
type Word = (OrderId, OrderNumber, Digest);

struct World {
    session: ClientSession,
    now: Micros,
    tickets: u64,
    /// Tickets that are neither done nor failed.
    open: BTreeSet<Ticket>,
    /// Who said what of which order, since it came back last.
    said: BTreeMap<Word, BTreeSet<ServerId>>,
    /// What `f + 1` have said at one time.
    agreed: BTreeSet<Word>,
    connected: [bool; N],
}

/// The session's story: see the [module](self).
pub(crate) fn run(bytes: &[u8]) {
    let mut world = World::new();
    let mut bytes = Unstructured::new(bytes);
    acts(&mut bytes, |act| world.act(act));
}

fn server(id: u8) -> ServerId {
    // One that does not exist among them.
    ServerId(u16::from(id) % (N as u16 + 1))
}

/// A reply's bytes; few, so that servers agree now and then.
fn reply_bytes(reply: u8) -> Vec<u8> {
    vec![reply; usize::from(reply % 3)]
}

impl World {
    fn new() -> World {
        let session = ClientSession::new(SessionConfig {
            client: CLIENT,
            n: N,
            f: F,
            cluster: CLUSTER,
            order_keys: (0..N).map(|host| order_key(host, CLIENT.0)).collect(),
            session: 1,
            leap: 3,
            resend: Micros::from_ms(300),
            fetch: Micros::from_ms(50),
            max_in_flight: MAX_IN_FLIGHT,
            max_payload_bytes: MAX_PAYLOAD,
        });
        World {
            session,
            now: Micros(0),
            tickets: 0,
            open: BTreeSet::new(),
            said: BTreeMap::new(),
            agreed: BTreeSet::new(),
            connected: [false; N],
        }
    }

    /// The order that a key means: one of the present session, mostly.
    fn id(&self, key: Key) -> OrderId {
        let session = match key.session {
            255 => u64::MAX,
            254 => u64::MAX - 1,
            by => self.session.session().saturating_add(u64::from(by % 4)).saturating_sub(1),
        };
        OrderId { client: CLIENT, session, count: u64::from(key.count % 10) }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Broadcast { len } => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.open.insert(ticket);
                let payload = vec![len; usize::from(len) % (MAX_PAYLOAD + 2)];
                self.step(Input::Broadcast { ticket, payload });
            }
            Act::Reply { server: from, key, order, reply, body, term } => {
                self.reply(server(from), key, order, (reply, body), term);
            }
            Act::Agreed { first, key, order, reply, body } => {
                for from in (0..=F as u8).map(|i| first.wrapping_add(i)) {
                    self.reply(server(from % N as u8), key, order, (reply, body), 0);
                }
            }
            Act::Stale { server: from, key } => {
                let OrderId { session, count, .. } = self.id(key);
                self.hear(server(from), ToClient::Stale { session, count });
            }
            Act::Refused { server: from, key, large } => {
                let OrderId { session, count, .. } = self.id(key);
                let reason = if large { Refusal::TooLarge } else { Refusal::BadMac };
                self.hear(server(from), ToClient::Refused { session, count, reason });
            }
            Act::Other { server: from } => {
                self.hear(server(from), ToClient::Status(Box::default()));
            }
            Act::Connected { server: id } => {
                let id = ServerId(u16::from(id) % N as u16);
                self.connected[id.index()] = true;
                // P5: what it said before counts no more.
                self.said.values_mut().for_each(|who| _ = who.remove(&id));
                self.step(Input::Connected(id));
            }
            Act::Disconnected { server: id } => {
                let id = ServerId(u16::from(id) % N as u16);
                self.connected[id.index()] = false;
                self.step(Input::Disconnected(id));
            }
            Act::Pass { ms } => self.pass(Micros::from_ms(u64::from(ms))),
        }
        assert!(self.session.held_bytes() <= HELD_BYTES_PER_SERVER);
        assert!(self.session.unanswered().count() <= MAX_IN_FLIGHT);
    }

    fn reply(&mut self, from: ServerId, key: Key, order: u8, reply: (u8, u8), term: u8) {
        let (id, bytes) = (self.id(key), reply_bytes(reply.0));
        let (order, digest) = (OrderNumber(u64::from(order % 4)), Digest::of(&[&bytes]));
        let body = match reply.1 % 8 {
            0 => Body::Gone,
            1 => Body::Here(b"not this"[..].into()),
            2..4 => Body::Elsewhere,
            _ => Body::Here(bytes.into()),
        };
        if from.index() < N {
            let who = self.said.entry((id, order, digest)).or_default();
            who.insert(from);
            if who.len() > F {
                self.agreed.insert((id, order, digest));
            }
        }
        let (session, count) = (id.session, id.count);
        let term = if term == 255 { Term(u64::MAX) } else { Term(u64::from(term % 8)) };
        self.hear(from, ToClient::Reply(Reply { session, count, order, digest, term, body }));
    }

    fn hear(&mut self, from: ServerId, message: ToClient) {
        self.step(Input::FromServer(from, message));
    }

    fn pass(&mut self, time: Micros) {
        self.now = self.now.plus(time);
        self.step(Input::Tick);
        let due = self.session.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "a tick that changes nothing: it spins");
    }

    fn step(&mut self, input: Input) {
        let mut out = Vec::new();
        self.session.step(self.now, input, &mut out);
        assert!(out.len() <= MAX_IN_FLIGHT * (N + 2), "too much is said at once");
        for output in out {
            match output {
                Output::Send(to, message) => {
                    assert!(self.connected[to.index()], "sent to one that is not connected");
                    if let ToServer::Order(order) = message {
                        assert!(order.id.client == CLIENT && order.macs.len() == N);
                    }
                }
                Output::Done { ticket, id, order, reply } => {
                    assert!(self.open.remove(&ticket), "done twice, or never asked for");
                    self.check_done(id, order, reply);
                }
                Output::Failed { ticket, .. } => {
                    assert!(self.open.remove(&ticket), "failed after it ended");
                }
            }
        }
    }

    // P5: f + 1 servers said this order number and this digest.
    fn check_done(&self, id: OrderId, order: OrderNumber, reply: Option<Vec<u8>>) {
        let alike = |word: &&Word| {
            let bytes = reply.as_ref().is_none_or(|bytes| Digest::of(&[bytes]) == word.2);
            word.0 == id && word.1 == order && bytes
        };
        assert!(self.agreed.iter().any(|word| alike(&word)), "fewer than f + 1 said so");
    }
}
