//! What attackers hold: a broken-in guest (its register files and the bell, nothing else), and a
//! client that speaks the payload network's messages by hand.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use protocol::messages::{self, OrderMessage, ToClient, ToServer, max_frame_bytes};
use shared_registers::bell;
use shared_registers::channel::{Channel, Event};
use shared_registers::cluster::{ClientKeys, load_keys};
use shared_registers::crypto::{Digest, MAC_BYTES, MacKey};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Batch, ClientId, OrderId, Seq, ServerId, Term};
use shared_registers::layout::DropReason;
use shared_registers::link::{Link, Party};
use shared_registers::order::OrderView;
use shared_registers::record::{Body, Propose};
use shared_registers::words::{MappedReadOnly, MappedReadWrite};

use crate::support::{Cluster, PATIENCE, until};

/// An order as it stands in a register, with the MAC for the proposer's host.
#[derive(Clone)]
pub(crate) struct Taken {
    pub(crate) id: OrderId,
    pub(crate) digest: Digest,
    pub(crate) mac: [u8; MAC_BYTES],
    pub(crate) payload: Vec<u8>,
}

impl Taken {
    /// What a broken-in guest `server` has of an order that a client sent it.
    pub(crate) fn of(order: &OrderMessage, server: u16) -> Taken {
        let mac = order.macs[usize::from(server)].into_array();
        Taken { id: order.id, digest: order.digest, mac, payload: order.payload.clone() }
    }
}

impl Taken {
    fn view(&self) -> OrderView<'_> {
        let Taken { id, digest, mac, payload } = self;
        OrderView { id: *id, digest: *digest, mac, payload }
    }
}

/// A guest that was broken into.
pub(crate) struct Attacker {
    registers: GuestRegisters<MappedReadOnly, MappedReadWrite>,
    bell: UnixStream,
    me: ServerId,
    /// Records of the own stream.
    own: u64,
    /// The last batch that it proposed.
    batch: u64,
    /// The orders that it proposed.
    pub(crate) proposed: Vec<Taken>,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Admitted,
    Dropped(Option<DropReason>),
}

impl Attacker {
    /// Takes the place of a guest that was killed.
    pub(crate) fn attach(cluster: &Cluster, id: u16) -> Attacker {
        let (paths, me) = (cluster.folder.paths(), ServerId(id));
        let read = File::open(paths.read_file(me)).unwrap();
        let mut how = OpenOptions::new();
        let write = how.read(true).write(true).open(paths.write_file(me)).unwrap();
        let (read, write) =
            (MappedReadOnly::map(&read).unwrap(), MappedReadWrite::map(&write).unwrap());
        let geometry = cluster.description.geometry(me);
        let registers = GuestRegisters::attach(geometry, read, write).unwrap();
        let bell = bell::connect(&paths.bell(me)).unwrap();
        let proposed = Vec::new();
        let mut this = Attacker { registers, bell, me, own: 0, batch: 0, proposed };
        this.ring();
        until("the host has taken the killed guest's frames", || this.registers.drained());
        this.read();
        this
    }

    pub(crate) fn ring(&mut self) {
        // A full socket is a bell that rings already; what the host rang means nothing to us.
        let _ = self.bell.write(&[1]);
        let _ = self.bell.read(&mut [0; 64]);
    }

    /// Reads all streams to their ends.
    pub(crate) fn read(&mut self) {
        let n = self.registers.geometry().n;
        for writer in ServerId::all(n) {
            loop {
                let record = match self.registers.next(writer) {
                    Next::Record(record) => record,
                    // What is gone it does not need.
                    Next::Reclaimed => {
                        self.registers.rewind(writer);
                        continue;
                    }
                    Next::Nothing | Next::Damaged => break,
                };
                if writer == self.me {
                    self.own = record.stamp.seq.0;
                    if let Ok(Body::Propose(propose)) = Body::decode(record.body, n) {
                        self.batch = self.batch.max(propose.batch.0);
                        let orders = propose.orders.iter().map(|order| Taken {
                            id: order.id,
                            digest: order.digest,
                            mac: *order.mac,
                            payload: order.payload.to_vec(),
                        });
                        self.proposed.extend(orders);
                    }
                }
                self.registers.advance(writer);
            }
        }
    }

    /// Writes bytes for a place `ahead` of the next one of its stream, and sees what becomes of
    /// them.
    pub(crate) fn write(&mut self, ahead: u64, bytes: &[u8]) -> Fate {
        self.read();
        let before = self.own;
        self.registers.write(Seq(before + 1 + ahead), bytes).unwrap();
        self.ring();
        let start = Instant::now();
        loop {
            if let Some(notice) = self.registers.drop_notice() {
                return Fate::Dropped(notice.reason);
            }
            self.read();
            if self.own > before {
                return Fate::Admitted;
            }
            assert!(start.elapsed() < PATIENCE, "the host says nothing of a frame");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Writes a frame, and another before it may know what became of the first.
    pub(crate) fn write_two(&mut self, first: &[u8], second: &[u8]) -> Fate {
        self.registers.write(Seq(self.own + 1), first).unwrap();
        self.write(1, second)
    }

    /// Writes these again and again, until there is no room, and rings, without a look at anything
    /// that its host says but how many frames it has dropped.
    pub(crate) fn flood(&mut self, frames: &[&[u8]]) {
        let _ = self.registers.drop_notice();
        for frame in frames.iter().cycle() {
            if self.registers.write(Seq(self.own + 1), frame).is_err() {
                break;
            }
            self.own += 1;
        }
        self.ring();
    }

    pub(crate) fn write_body(&mut self, body: &Body<'_>) -> Fate {
        self.write(0, &encoded(body))
    }

    /// Proposes the next batch.
    pub(crate) fn propose(&mut self, term: u64, orders: &[Taken]) -> Fate {
        let bytes = self.proposal(term, self.batch + 1, orders);
        self.write(0, &bytes)
    }

    pub(crate) fn proposal(&self, term: u64, batch: u64, orders: &[Taken]) -> Vec<u8> {
        let views = orders.iter().map(Taken::view).collect();
        let (term, batch, orders) = (Term(term), Batch(batch), views);
        encoded(&Body::Propose(Propose { term, batch, evidence: Vec::new(), orders }))
    }

    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    /// The host's counters.
    pub(crate) fn counters(&self) -> Vec<u64> {
        self.registers.counters()
    }
}

pub(crate) fn encoded(body: &Body<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    body.encode(&mut bytes);
    bytes
}

/// A client that makes its messages by hand.
pub(crate) struct HandClient {
    id: ClientId,
    keys: ClientKeys,
}

impl HandClient {
    pub(crate) fn new(cluster: &Cluster, id: u32) -> HandClient {
        let id = ClientId(id);
        let keys = load_keys(&cluster.folder.paths().client_keys(id)).unwrap();
        HandClient { id, keys }
    }

    /// Its order number `count` of session 1.
    pub(crate) fn order(&self, cluster: &Cluster, count: u64, payload: &str) -> OrderMessage {
        let keys: Vec<MacKey> = self.keys.orders.iter().map(|key| key.mac_key()).collect();
        let id = OrderId { client: self.id, session: 1, count };
        OrderMessage::new(&cluster.description.id(), id, payload.as_bytes().to_vec(), &keys)
    }

    /// Connects to one server's guest.
    pub(crate) fn dial(&self, cluster: &Cluster, server: u16) -> Connection {
        let at = usize::from(server);
        let socket = TcpStream::connect(cluster.description.servers[at].payload).unwrap();
        socket.set_nonblocking(true).unwrap();
        let ends = (Party::Client(self.id), Party::Guest(ServerId(server)));
        let key = self.keys.replies[at].mac_key();
        let max = max_frame_bytes(cluster.description.limits.max_payload_bytes);
        let mut hello = Vec::new();
        let cluster = cluster.description.id();
        let channel = Channel::dial(ends, &key, cluster, [7; 16], max, &mut hello);
        let mut this = Connection { link: Link::new(socket, channel, hello), inbox: Vec::new() };
        until("the guest accepts a client", || this.turn().link.peer().is_some());
        this
    }
}

/// A connection of a client's to one guest.
pub(crate) struct Connection {
    link: Link<TcpStream>,
    inbox: Vec<ToClient>,
}

impl Connection {
    pub(crate) fn send(&mut self, order: &OrderMessage) {
        let message = ToServer::Order(order.clone());
        assert!(self.link.send(|out| messages::encode_into(&message, out)));
        until("an order is on its way", || !self.turn().link.wants_write());
    }

    /// Waits for a message that `wanted` picks.
    pub(crate) fn await_message<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(&ToClient) -> Option<T>,
    ) -> T {
        let mut found = None;
        until(what, || {
            found = self.turn().inbox.iter().find_map(&wanted);
            found.is_some()
        });
        found.unwrap()
    }

    fn turn(&mut self) -> &mut Connection {
        let inbox = &mut self.inbox;
        let read = self.link.read(&mut [0; 65536], &|_| None, |event| {
            if let Event::Frame(bytes) = event {
                inbox.push(messages::decode(bytes).unwrap());
            }
        });
        read.expect("the guest keeps the connection");
        self.link.flush().expect("the guest keeps the connection");
        self
    }
}
