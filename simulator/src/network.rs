//! The payload network: between clients and guests, and between guests.
//!
//! A client has one connection to each guest. What passes on it is authenticated, so the network
//! can do no more than lose, delay, repeat and reorder, or break the connection. Orders, replies
//! and forwarded orders may suffer all of that: the protocol claims to survive it. A subscription
//! is spared what a stream of bytes rules out: losing a part of it breaks the connection, and a new
//! one starts afresh. To attack the decoders too, some messages' bytes are altered and decoded.

use std::collections::{BTreeMap, BTreeSet};

use protocol::messages::{self, OrderMessage, ToClient, ToGuest, ToServer};
use rand::RngExt;
use shared_registers::ids::{ClientId, Micros, ServerId};

use crate::engine::{Event, Sim};
use crate::guest::GuestInput;

/// Who is on the payload network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Client(ClientId),
    Guest(ServerId),
}

/// A client's connection to a guest.
#[derive(Clone, Default)]
struct Connection {
    up: bool,
    /// What belongs to an earlier one is lost.
    generation: u64,
    /// By [`Way`]: the next part of a stream comes after this.
    floors: [Micros; 2],
    dialing: bool,
}

/// A connection on which a guest asks another for pieces of a snapshot.
#[derive(Clone, Default)]
struct Transfers {
    /// What belongs to an earlier one is lost.
    generation: u64,
    /// Of questions and of answers: the next comes after this.
    floors: [Micros; 2],
}

/// The payload network.
pub(crate) struct Payload {
    n: usize,
    /// By who asks, and whom.
    transfers: Vec<Transfers>,
    connections: Vec<Connection>,
    /// From whom nothing gets to whom, by partition.
    partitions: BTreeMap<u64, BTreeSet<(Node, Node)>>,
    next_partition: u64,
}

impl Payload {
    pub(crate) fn new(clients: usize, n: usize) -> Payload {
        Payload {
            n,
            transfers: vec![Transfers::default(); n * n],
            connections: vec![Connection::default(); clients * n],
            partitions: BTreeMap::new(),
            next_partition: 0,
        }
    }

    fn connection(&mut self, client: ClientId, server: ServerId) -> &mut Connection {
        &mut self.connections[client.index() * self.n + server.index()]
    }

    fn blocked(&self, from: Node, to: Node) -> bool {
        self.partitions.values().any(|pairs| pairs.contains(&(from, to)))
    }
}

/// What became of a message.
enum Fate {
    /// It comes after so long, and perhaps once more.
    Comes(Micros, Option<Micros>),
    /// It is lost.
    Lost,
    /// The connection that it was on is closed.
    Closed,
}

/// On a client's connection: to the guest, or to the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Whether a message is a part of a subscription's stream.
fn streams_up(message: &ToServer) -> bool {
    !matches!(message, ToServer::Order(_) | ToServer::FetchReply { .. })
}

fn streams_down(message: &ToClient) -> bool {
    matches!(message, ToClient::Delivery(_) | ToClient::TooOld { .. })
}

impl Sim {
    fn fate(&mut self, from: Node, to: Node, stream: bool) -> Fate {
        if self.payload.blocked(from, to) {
            return if stream { Fate::Closed } else { Fate::Lost };
        }
        let plan = self.plan.payload;
        if self.happens(plan.flip) {
            self.count("payload: flipped bit");
            return Fate::Closed;
        }
        if self.happens(plan.loss) {
            self.count("payload: lost message");
            return if stream { Fate::Closed } else { Fate::Lost };
        }
        let mut delay = self.between(plan.delay);
        if self.happens(plan.reorder) {
            self.count("payload: held up message");
            delay = delay.plus(self.between((Micros(0), plan.held_up)));
        }
        let again = (!stream && self.happens(plan.duplicate)).then(|| {
            self.count("payload: repeated message");
            self.between((plan.delay.0, plan.delay.1.plus(plan.held_up)))
        });
        Fate::Comes(delay, again)
    }

    /// Altered bytes for a decoder, which must survive them.
    fn alter(&mut self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if !self.happens(self.plan.payload.hostile) {
            return None;
        }
        self.count("payload: hostile bytes");
        for _ in 0..self.rng.random_range(1..4) {
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
        }
        if self.rng.random_bool(0.3) {
            bytes.truncate(self.rng.random_range(0..bytes.len()));
        }
        Some(bytes)
    }

    pub(crate) fn send_to_server(&mut self, client: ClientId, server: ServerId, message: ToServer) {
        let bytes = messages::encode(&message);
        if let Some(bytes) = self.alter(bytes.clone()) {
            let _ = messages::decode_to_server(&bytes, client, self.plan.n);
        }
        // What is no message of this client's ends at the guest's decoder.
        let Ok(message) = messages::decode_to_server(&bytes, client, self.plan.n) else {
            self.break_connection(client, server);
            return;
        };
        let (way, stream) = (Way::Up, streams_up(&message));
        let event = |generation| Event::ToServer { client, server, generation, message };
        self.send(client, server, way, stream, event);
    }

    pub(crate) fn send_to_client(&mut self, server: ServerId, client: ClientId, message: ToClient) {
        if client.index() >= self.plan.clients.len() {
            return; // A liar of a guest made it up.
        }
        if let Some(bytes) = self.alter(messages::encode(&message)) {
            let _ = messages::decode::<ToClient>(&bytes);
        }
        let (way, stream) = (Way::Down, streams_down(&message));
        let event = |generation| Event::ToClient { server, client, generation, message };
        self.send(client, server, way, stream, event);
    }

    /// Sends something on a connection, if it is up: `event` is its arrival, on the connection of
    /// this generation.
    fn send(
        &mut self,
        client: ClientId,
        server: ServerId,
        way: Way,
        stream: bool,
        event: impl FnOnce(u64) -> Event,
    ) {
        let connection = self.payload.connection(client, server);
        if !connection.up {
            return;
        }
        let generation = connection.generation;
        let (mut from, mut to) = (Node::Client(client), Node::Guest(server));
        if way == Way::Down {
            (from, to) = (to, from);
        }
        let (first, second) = match self.fate(from, to, stream) {
            Fate::Lost => return,
            Fate::Closed => {
                self.break_connection(client, server);
                return;
            }
            Fate::Comes(first, second) => (first, second),
        };
        let mut at = self.now.plus(first);
        if stream {
            let floor = &mut self.payload.connection(client, server).floors[way as usize];
            *floor = at.max(floor.plus(Micros(1)));
            at = *floor;
        }
        let event = event(generation);
        if let Some(again) = second {
            self.after(again, event.clone());
        }
        self.at(at, event);
    }

    pub(crate) fn send_forward(&mut self, from: ServerId, to: ServerId, order: OrderMessage) {
        if from == to || to.index() >= self.plan.n {
            return;
        }
        let bytes = messages::encode(&ToGuest::Forward(order));
        if let Some(bytes) = self.alter(bytes.clone()) {
            let _ = messages::decode_to_guest(&bytes, self.plan.n);
        }
        let decoded = messages::decode_to_guest(&bytes, self.plan.n);
        let Ok(ToGuest::Forward(order)) = decoded else { return };
        let epoch = self.servers[to.index()].guest_epoch;
        let Fate::Comes(first, second) = self.fate(Node::Guest(from), Node::Guest(to), false)
        else {
            return;
        };
        let event = Event::Forward { from, to, epoch, order };
        if let Some(again) = second {
            self.after(again, event.clone());
        }
        self.after(first, event);
    }

    /// Sends a question for a piece of a snapshot, or an answer. They go on a connection that whoever
    /// asks has made, a stream of bytes: what happens to a part of it breaks it, and all that is on
    /// its way is lost. Then the next question makes a new one.
    pub(crate) fn send_transfer(&mut self, from: ServerId, to: ServerId, message: &ToGuest) {
        if from == to || to.index() >= self.plan.n {
            return;
        }
        let bytes = messages::encode(message);
        if let Some(bytes) = self.alter(bytes.clone()) {
            let _ = messages::decode_to_guest(&bytes, self.plan.n);
        }
        let Ok(message) = messages::decode_to_guest(&bytes, self.plan.n) else { return };
        let answers = !matches!(message, ToGuest::Fetch { .. });
        let (asker, source) = if answers { (to, from) } else { (from, to) };
        let link = asker.index() * self.plan.n + source.index();
        let fate = self.fate(Node::Guest(from), Node::Guest(to), true);
        let transfers = &mut self.payload.transfers[link];
        let Fate::Comes(delay, _) = fate else {
            transfers.generation += 1;
            return self.tell_lost(asker, source);
        };
        let (floor, generation) =
            (&mut transfers.floors[usize::from(answers)], transfers.generation);
        let at = self.now.plus(delay).max(floor.plus(Micros(1)));
        *floor = at;
        let epoch = self.servers[to.index()].guest_epoch;
        let event = Event::Transfer { from, to, epoch, generation, message };
        if self.happens(self.plan.payload.duplicate) {
            // Asked twice, and answered twice.
            self.count("payload: repeated piece or question");
            let held_up = self.plan.payload.held_up;
            let again = self.between((Micros(1), held_up));
            self.at(at.plus(again), event.clone());
        }
        self.at(at, event);
    }

    /// A guest is gone, and so are the connections on which others fetch from it.
    pub(crate) fn break_transfers(&mut self, source: ServerId) {
        for asker in ServerId::all(self.plan.n).filter(|asker| *asker != source) {
            self.payload.transfers[asker.index() * self.plan.n + source.index()].generation += 1;
            self.tell_lost(asker, source);
        }
    }

    /// Where guests have no stores nobody is told, and silence has to do: so it is in kept seeds.
    fn tell_lost(&mut self, asker: ServerId, source: ServerId) {
        if self.plan.hosts.store.is_some() {
            let delay = self.between((Micros(1_000), Micros(50_000)));
            let epoch = self.servers[asker.index()].guest_epoch;
            self.after(delay, Event::SourceLost { server: asker, source, epoch });
        }
    }

    pub(crate) fn transferred(
        &mut self,
        (from, to): (ServerId, ServerId),
        epoch: u64,
        generation: u64,
        message: ToGuest,
    ) {
        let answers = !matches!(message, ToGuest::Fetch { .. });
        let (asker, source) = if answers { (to, from) } else { (from, to) };
        let link = &self.payload.transfers[asker.index() * self.plan.n + source.index()];
        if self.servers[to.index()].guest_epoch == epoch && link.generation == generation {
            self.history.trace((from, to, messages::encode(&message)));
            self.step_guest(to, GuestInput::Transfer(from, message));
        }
    }

    pub(crate) fn reach_server(
        &mut self,
        client: ClientId,
        server: ServerId,
        generation: u64,
        message: ToServer,
    ) {
        if self.payload.connection(client, server).generation == generation {
            self.history.trace((client, server, messages::encode(&message)));
            self.step_guest(server, GuestInput::FromClient(client, message));
        }
    }

    pub(crate) fn forwarded(
        &mut self,
        from: ServerId,
        to: ServerId,
        epoch: u64,
        order: OrderMessage,
    ) {
        if self.servers[to.index()].guest_epoch == epoch {
            self.history.trace((from, to, messages::encode(&ToGuest::Forward(order.clone()))));
            self.step_guest(to, GuestInput::FromGuest(from, order));
        }
    }

    /// Whether a message of a guest may still come to a client.
    pub(crate) fn is_open(&mut self, client: ClientId, server: ServerId, generation: u64) -> bool {
        self.payload.connection(client, server).generation == generation
    }

    /// A client connects to a guest, if it can; else it tries again later.
    pub(crate) fn dial(&mut self, client: ClientId, server: ServerId) {
        let (here, there) = (Node::Client(client), Node::Guest(server));
        let blocked = self.payload.blocked(here, there) || self.payload.blocked(there, here);
        let guest = self.servers[server.index()].guest.as_ref();
        let serves = guest.is_some_and(|guest| guest.serves());
        self.payload.connection(client, server).dialing = false;
        if self.payload.connection(client, server).up || !self.crowd.runs(client) {
            return;
        }
        if blocked || !serves {
            return self.dial_later(client, server);
        }
        let connection = self.payload.connection(client, server);
        connection.up = true;
        connection.generation += 1;
        connection.floors = [self.now; 2];
        let epoch = self.crowd.epoch(client);
        self.client_link(client, server, epoch, true);
    }

    pub(crate) fn dial_later(&mut self, client: ClientId, server: ServerId) {
        let delay = self.between((Micros(30_000), Micros(150_000)));
        let connection = self.payload.connection(client, server);
        if !std::mem::replace(&mut connection.dialing, true) {
            self.after(delay, Event::Dial { client, server });
        }
    }

    /// A connection breaks: what is on its way is lost, and both ends learn so.
    /// False if it was down already.
    pub(crate) fn break_connection(&mut self, client: ClientId, server: ServerId) -> bool {
        let connection = self.payload.connection(client, server);
        if !std::mem::take(&mut connection.up) {
            return false;
        }
        connection.generation += 1;
        let epoch = self.servers[server.index()].guest_epoch;
        self.after(Micros(1), Event::GuestLost { server, client, epoch });
        let epoch = self.crowd.epoch(client);
        let delay = self.between((Micros(1), Micros(20_000)));
        self.after(delay, Event::ClientLink { client, server, epoch, up: false });
        self.dial_later(client, server);
        true
    }

    /// Parts the network in two, in one direction or both, for so long.
    pub(crate) fn part(&mut self, time: Micros) {
        let clients = self.crowd.ids().map(Node::Client);
        let nodes: Vec<_> = clients.chain(ServerId::all(self.plan.n).map(Node::Guest)).collect();
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for node in nodes {
            if self.rng.random_bool(0.5) { &mut here } else { &mut there }.push(node);
        }
        let both = self.rng.random_bool(0.5);
        let mut pairs = BTreeSet::new();
        for a in &here {
            for b in &there {
                pairs.insert((*a, *b));
                if both {
                    pairs.insert((*b, *a));
                }
            }
        }
        if pairs.is_empty() {
            return; // All are on one side.
        }
        self.count(if both { "payload: partition" } else { "payload: one-way partition" });
        let name = self.payload.next_partition;
        self.payload.next_partition += 1;
        self.payload.partitions.insert(name, pairs);
        self.after(time, Event::Rejoin(name));
    }

    pub(crate) fn rejoin(&mut self, partition: u64) {
        self.payload.partitions.remove(&partition);
    }

    /// No partition is left.
    pub(crate) fn rejoin_all(&mut self) {
        self.payload.partitions.clear();
    }
}

#[cfg(test)]
mod tests {
    use protocol::messages::Refusal;
    use shared_registers::ids::OrderId;

    use super::*;
    use crate::cluster;

    /// The trace of a run after `what` happened in it.
    fn trace(what: impl FnOnce(&mut Sim)) -> u64 {
        let mut sim = Sim::calm(1);
        what(&mut sim);
        sim.history().hash()
    }

    /// Nobody does anything about these but keep some of them: only their bytes tell them apart.
    #[test]
    fn two_runs_differ_whose_messages_differ_in_one_byte() {
        let (client, server, order) = (ClientId(0), ServerId(1), |byte| {
            let id = OrderId { client: ClientId(0), session: 1, count: 9 };
            cluster::order(id, vec![byte], &cluster::order_keys(id.client, 3))
        });
        let refused = |reason| ToClient::Refused { session: 1, count: 1, reason };
        let told = |reason| trace(|sim| sim.reach_client(server, client, 0, refused(reason)));
        assert_eq!(told(Refusal::BadMac), told(Refusal::BadMac));
        assert_ne!(told(Refusal::BadMac), told(Refusal::TooLarge));
        let forwarded = |byte| trace(|sim| sim.forwarded(ServerId(0), server, 1, order(byte)));
        assert_eq!(forwarded(1), forwarded(1));
        assert_ne!(forwarded(1), forwarded(2));
        let sent = |byte| {
            let message = ToServer::Order(order(byte));
            trace(|sim| sim.reach_server(client, server, 0, message))
        };
        assert_ne!(sent(1), sent(2));
    }
}
