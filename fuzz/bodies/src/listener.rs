//! The listening side of a client, by servers that say anything. Whatever they say, deliveries
//! leave in order and without holes, each as `f + 1` servers said alike, with the payload of the
//! agreed digest, and never more than the caller has room for.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Unstructured};
use protocol::listener::{
    HELD_BYTES_PER_SERVER, Input, Listener, ListenerConfig, Output, WINDOW_MESSAGES,
};
use protocol::messages::{Body, Delivery, ToClient};
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId};
use shared_registers::order;

use crate::acts;
use crate::drafts::{CLUSTER, F, MAX_PAYLOAD, N};

#[derive(Arbitrary, Debug)]
enum Act {
    /// A server names a delivery; `version` tells its several lies apart.
    Delivery {
        server: u8,
        at: u8,
        version: u8,
        body: u8,
    },
    /// It names so many in a row, truly.
    Run {
        server: u8,
        from: u8,
        len: u8,
        bytes: bool,
    },
    TooOld {
        server: u8,
        at: u8,
        first: u8,
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
    Room {
        messages: u8,
        bytes: u16,
    },
    Pass {
        ms: u16,
    },
}

/// What a delivery says.
type Word = (OrderNumber, OrderId, Digest, Micros);

struct World {
    listener: Listener,
    now: Micros,
    from: OrderNumber,
    next: OrderNumber,
    said: BTreeMap<Word, BTreeSet<ServerId>>,
    agreed: BTreeSet<Word>,
    connected: [bool; N],
    room_messages: u64,
    /// The last delivery may take more than there is.
    room_bytes: i64,
    ended: bool,
}

/// The listener's story: see the [module](self).
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let from = match bytes.arbitrary::<u8>() {
        Ok(255) => u64::MAX - 3,
        Ok(from) => u64::from(from % 4),
        Err(_) => 0,
    };
    let mut world = World::new(OrderNumber(from));
    acts(&mut bytes, |act| world.act(act));
}

/// The delivery at a place, and a server's version of it.
fn delivery(order: OrderNumber, version: u8) -> (OrderId, Digest, Micros, Vec<u8>) {
    let version = if version >= 4 { 0 } else { version };
    let id = OrderId { client: ClientId(0), session: 1, count: order.0 };
    let payload = vec![version; (order.0 % MAX_PAYLOAD as u64) as usize];
    let digest = order::digest(&CLUSTER, id, &payload);
    (id, digest, Micros(u64::from(version)), payload)
}

impl World {
    fn new(from: OrderNumber) -> World {
        let config =
            ListenerConfig { n: N, f: F, cluster: CLUSTER, from, fetch: Micros::from_ms(50) };
        World {
            listener: Listener::new(config),
            now: Micros(0),
            from,
            next: from.max(OrderNumber(1)),
            said: BTreeMap::new(),
            agreed: BTreeSet::new(),
            connected: [false; N],
            room_messages: 0,
            room_bytes: 0,
            ended: false,
        }
    }

    /// An order number near the next wanted one, or far beyond what anyone has credit for.
    fn order(&self, at: u8) -> OrderNumber {
        match at {
            255 => OrderNumber(u64::MAX),
            254 => OrderNumber(0),
            253 => OrderNumber(self.next.0.saturating_add(WINDOW_MESSAGES)),
            252 => OrderNumber(self.next.0.saturating_add(WINDOW_MESSAGES - 1)),
            at => OrderNumber(self.next.0.saturating_add(u64::from(at % 16)).saturating_sub(4)),
        }
    }

    fn act(&mut self, act: Act) {
        let any = |id: u8| ServerId(u16::from(id) % (N as u16 + 1));
        let known = |id: u8| ServerId(u16::from(id) % N as u16);
        match act {
            Act::Delivery { server, at, version, body } => {
                self.name(any(server), self.order(at), version, body);
            }
            Act::Run { server, from, len, bytes } => {
                let from = self.order(from);
                for order in (0..u64::from(len)).map_while(|i| from.0.checked_add(i)) {
                    self.name(any(server), OrderNumber(order), 0, if bytes { 255 } else { 2 });
                }
            }
            Act::TooOld { server, at, first } => {
                let (from, first) = (self.order(at), self.order(first));
                self.step(Input::FromServer(any(server), ToClient::TooOld { from, first }));
            }
            Act::Other { server } => {
                let stale = ToClient::Stale { session: 1, count: 1 };
                self.step(Input::FromServer(any(server), stale));
            }
            Act::Connected { server } => {
                self.connected[known(server).index()] = true;
                self.said.values_mut().for_each(|who| _ = who.remove(&known(server)));
                self.step(Input::Connected(known(server)));
            }
            Act::Disconnected { server } => {
                self.connected[known(server).index()] = false;
                self.step(Input::Disconnected(known(server)));
            }
            Act::Room { messages, bytes } => {
                let (messages, bytes) = (u64::from(messages), u64::from(bytes));
                self.room_messages += messages;
                self.room_bytes += bytes as i64;
                self.step(Input::Room { messages, bytes });
            }
            Act::Pass { ms } => {
                self.now = self.now.plus(Micros::from_ms(u64::from(ms)));
                self.step(Input::Tick);
                let due = self.listener.next_deadline();
                assert!(due.is_none_or(|due| due > self.now), "a tick changes nothing: it spins");
            }
        }
        let (slots, held) = self.listener.fill();
        assert!(slots as u64 <= WINDOW_MESSAGES, "more order numbers than the window");
        assert!(held <= HELD_BYTES_PER_SERVER + MAX_PAYLOAD);
        assert_eq!(self.listener.next(), self.next);
    }

    fn name(&mut self, server: ServerId, order: OrderNumber, version: u8, body: u8) {
        let (id, digest, time, payload) = delivery(order, version);
        let payload = match body % 8 {
            0 => Body::Gone,
            1 => Body::Here(b"not this"[..].into()),
            2..4 => Body::Elsewhere,
            _ => Body::Here(payload.into()),
        };
        if server.index() < N {
            let who = self.said.entry((order, id, digest, time)).or_default();
            who.insert(server);
            if who.len() > F {
                self.agreed.insert((order, id, digest, time));
            }
        }
        let delivery = Delivery { order, id, digest, time, payload };
        self.step(Input::FromServer(server, ToClient::Delivery(delivery)));
    }

    fn step(&mut self, input: Input) {
        let mut out = Vec::new();
        self.listener.step(self.now, input, &mut out);
        assert!(out.len() as u64 <= WINDOW_MESSAGES + 4 * N as u64, "too much is said at once");
        for output in out {
            assert!(!self.ended, "a listener that has ended goes on");
            match output {
                Output::Send(to, _) => {
                    assert!(self.connected[to.index()], "sent to one that is not connected");
                }
                Output::Deliver(delivered) => {
                    assert_eq!(delivered.order, self.next, "out of order");
                    assert!(self.room_messages > 0 && self.room_bytes > 0, "there is no room");
                    self.room_messages -= 1;
                    self.room_bytes -= delivered.payload.len() as i64;
                    let digest = order::digest(&CLUSTER, delivered.id, &delivered.payload);
                    let word = (delivered.order, delivered.id, digest, delivered.time);
                    assert!(self.agreed.contains(&word), "P5: fewer than f + 1 said so");
                    self.next = self.next.next();
                }
                Output::TooOld { first } => {
                    assert!(first > self.next && self.next >= self.from);
                    self.ended = true;
                }
            }
        }
    }
}
