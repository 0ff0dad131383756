//! The connections that others open to this guest: clients, other guests, the operator.
//!
//! Whoever can reach the payload address can open a connection; what counts is the proof of a key
//! that its channel makes at its start, and the seal of each frame after that. Everything here is
//! bounded twice: in how much there may be of it ([`Bounds`]), and in how much of one turn of the
//! loop it may take. What was read of a connection waits in its inbox; while anything is there,
//! nothing more is read from it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::take;
use std::net::TcpStream;

use nix::sys::epoll::EpollFlags;
use protocol::messages::{self, ToClient, ToGuest, ToServer};
use shared_registers::channel::{Channel, Event};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{ClientId, Micros, ServerId};
use shared_registers::link::{Link, LinkError, Party};

use crate::counters::Counters;
use crate::limits;
use crate::net::{FIRST_CONNECTION, Poll, Socket, Token, nonce};

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) unproven: usize,
    pub(crate) per_client: usize,
    pub(crate) per_peer: usize,
    pub(crate) of_clients: usize,
    pub(crate) handshake: Micros,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            unproven: limits::MAX_UNPROVEN,
            per_client: limits::CONNECTIONS_PER_CLIENT,
            per_peer: limits::CONNECTIONS_PER_PEER,
            of_clients: limits::MAX_CLIENT_CONNECTIONS,
            handshake: limits::HANDSHAKE,
        }
    }
}

/// The keys that this guest shares with those who connect to it.
pub(crate) struct Keys {
    pub(crate) replies: Vec<MacKey>,
    pub(crate) operator: MacKey,
    /// By server; none for this one.
    pub(crate) forwards: Vec<Option<MacKey>>,
}

impl Keys {
    fn of(&self, party: Party) -> Option<MacKey> {
        match party {
            Party::Client(client) => self.replies.get(client.index()).cloned(),
            Party::Guest(server) => self.forwards.get(server.index()).cloned().flatten(),
            Party::Operator => Some(self.operator.clone()),
            // Hosts speak on the trusted network alone.
            Party::Host(_) => None,
        }
    }
}

/// A message of somebody who may send it.
pub(crate) enum Message {
    /// From a client, and its own.
    Client(ClientId, ToServer),
    /// From another guest; an order is whose it says, or not.
    Guest(ServerId, ToGuest),
    /// From a client or the operator.
    Status,
    /// From the operator: its question for points in time, from this number on.
    Trace(u64),
}

/// What every connection of this guest has in common.
pub(crate) struct Identity {
    pub(crate) me: ServerId,
    pub(crate) cluster: ClusterId,
    pub(crate) n: usize,
    pub(crate) max_frame: usize,
    pub(crate) keys: Keys,
}

impl Identity {
    /// What an authenticated frame says, if its sender may say it.
    fn decode(&self, from: Party, bytes: &[u8]) -> Option<Message> {
        match from {
            Party::Client(client) => {
                match messages::decode_to_server(bytes, client, self.n).ok()? {
                    ToServer::Status => Some(Message::Status),
                    ToServer::Trace { .. } => None,
                    message => Some(Message::Client(client, message)),
                }
            }
            Party::Guest(server) => {
                let message = messages::decode_to_guest(bytes, self.n).ok()?;
                let may = match &message {
                    ToGuest::Forward(order) => order.id.client.index() < self.keys.replies.len(),
                    ToGuest::Fetch { .. } => true,
                    // Answers come on connections that this guest dials, where it asks.
                    ToGuest::Piece { .. } | ToGuest::Gone { .. } => false,
                };
                may.then_some(Message::Guest(server, message))
            }
            Party::Operator => match messages::decode(bytes).ok()? {
                ToServer::Status => Some(Message::Status),
                ToServer::Trace { from } => Some(Message::Trace(from)),
                _ => None,
            },
            Party::Host(_) => None,
        }
    }
}

struct Connection {
    link: Link<Socket>,
    party: Option<Party>,
    inbox: VecDeque<Message>,
    watched: EpollFlags,
    /// In the list of those to flush.
    unflushed: bool,
    /// Nothing more comes or goes; what is in the inbox still counts.
    over: bool,
}

/// Where a client's answers go: to the connection that its last order came from, or, as long as
/// none came here (orders go to the sequencer alone), to all of its connections.
#[derive(Clone, Default)]
struct Route {
    last: Option<Token>,
    all: Vec<Token>,
}

/// All accepted connections.
pub(crate) struct Connections {
    identity: Identity,
    bounds: Bounds,
    table: BTreeMap<Token, Connection>,
    next: Token,
    /// Those that have yet to prove who they are, and until when, oldest first.
    unproven: VecDeque<(Token, Micros)>,
    /// Those with something in their inbox.
    ready: VecDeque<Token>,
    /// Those that may have something to flush.
    unflushed: Vec<Token>,
    /// By client, where its answers go.
    routes: Vec<Route>,
    scratch: Vec<u8>,
}

impl Connections {
    pub(crate) fn new(identity: Identity, bounds: Bounds) -> Connections {
        Connections {
            routes: vec![Route::default(); identity.keys.replies.len()],
            identity,
            bounds,
            table: BTreeMap::new(),
            next: FIRST_CONNECTION,
            unproven: VecDeque::new(),
            ready: VecDeque::new(),
            unflushed: Vec::new(),
            scratch: vec![0; limits::READ_BYTES_PER_TURN],
        }
    }

    /// Takes an accepted connection.
    pub(crate) fn open(
        &mut self,
        stream: TcpStream,
        now: Micros,
        poll: &Poll,
        counters: &mut Counters,
    ) -> io::Result<()> {
        counters.connections_accepted += 1;
        while self.unproven.len() >= self.bounds.unproven {
            let Some((oldest, _)) = self.unproven.front().copied() else { break };
            self.refuse(oldest, counters);
        }
        let socket = Socket::new(stream)?;
        let Identity { me, cluster, max_frame, .. } = self.identity;
        let channel = Channel::accept(Party::Guest(me), cluster, nonce()?, max_frame);
        let token = self.next;
        self.next += 1;
        poll.watch(&socket, token, EpollFlags::EPOLLIN)?;
        let connection = Connection {
            link: Link::new(socket, channel, Vec::new()),
            party: None,
            inbox: VecDeque::new(),
            watched: EpollFlags::EPOLLIN,
            unflushed: false,
            over: false,
        };
        self.table.insert(token, connection);
        self.unproven.push_back((token, now.plus(self.bounds.handshake)));
        Ok(())
    }

    /// When the next handshake is overdue.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.unproven.front().map(|(_, until)| *until)
    }

    /// Closes those whose handshake is overdue.
    pub(crate) fn expire(&mut self, now: Micros, counters: &mut Counters) {
        while let Some((token, until)) = self.unproven.front().copied() {
            if until > now {
                return;
            }
            counters.handshake_timeouts += 1;
            self.refuse(token, counters);
        }
    }

    /// What epoll says of a connection.
    pub(crate) fn on_event(&mut self, token: Token, flags: EpollFlags, counters: &mut Counters) {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.mark(token);
        }
        if flags != EpollFlags::EPOLLOUT {
            self.read(token, counters);
        }
    }

    fn read(&mut self, token: Token, counters: &mut Counters) {
        let Connections { identity, table, scratch, .. } = self;
        let Some(connection) = table.get_mut(&token) else { return };
        if connection.over || !connection.inbox.is_empty() {
            return;
        }
        let (mut party, inbox) = (connection.party, &mut connection.inbox);
        let mut bad = false;
        connection.link.socket().allow();
        let result = connection.link.read(scratch, &|p| identity.keys.of(p), |event| match event {
            Event::Established(peer) => party = Some(peer),
            Event::Frame(_) if bad => {}
            Event::Frame(bytes) => match party.and_then(|p| identity.decode(p, bytes)) {
                Some(message) => inbox.push_back(message),
                None => bad = true,
            },
        });
        let newcomer = party.filter(|_| connection.party.is_none());
        connection.party = party;
        connection.over = bad || result.is_err();
        if bad || matches!(result, Err(LinkError::Channel(_)) if party.is_some()) {
            counters.bad_frames += 1;
            tracing::debug!(?party, "closed a connection that sent a bad frame");
        }
        if let Some(party) = newcomer {
            self.unproven.retain(|(t, _)| *t != token);
            self.admit(token, party, counters);
        }
        match self.table.get(&token) {
            Some(c) if !c.inbox.is_empty() => self.ready.push_back(token),
            Some(c) if c.over && c.party.is_none() => self.refuse(token, counters),
            Some(c) if c.over => self.close(token),
            _ => {}
        }
        self.mark(token);
    }

    /// Keeps the bounds now that somebody has proved to be `party`.
    fn admit(&mut self, token: Token, party: Party, counters: &mut Counters) {
        if let Party::Client(client) = party {
            self.routes[client.index()].all.push(token);
        }
        let client = matches!(party, Party::Client(_));
        let bound = if client { self.bounds.per_client } else { self.bounds.per_peer };
        if self.of(party).count() > bound {
            let oldest = self.of(party).find(|t| *t != token);
            self.refuse(oldest.unwrap_or(token), counters);
        }
        if !client {
            return;
        }
        let mut counts = BTreeMap::new();
        for connection in self.table.values() {
            if let Some(Party::Client(client)) = connection.party {
                *counts.entry(client).or_insert(0) += 1;
            }
        }
        if counts.values().sum::<usize>() > self.bounds.of_clients {
            // Who has most gives one, so a single client cannot keep the others out.
            let most = counts.into_iter().max_by_key(|(_, count)| *count).filter(|(_, c)| *c > 1);
            let victim = most.and_then(|(c, _)| self.of(Party::Client(c)).find(|t| *t != token));
            self.refuse(victim.unwrap_or(token), counters);
        }
    }

    fn of(&self, party: Party) -> impl Iterator<Item = Token> {
        self.table.iter().filter(move |(_, c)| c.party == Some(party)).map(|(token, _)| *token)
    }

    fn refuse(&mut self, token: Token, counters: &mut Counters) {
        counters.refused_connections += 1;
        self.close(token);
    }

    fn close(&mut self, token: Token) {
        self.unproven.retain(|(t, _)| *t != token);
        if let Some(Connection { party: Some(Party::Client(client)), .. }) =
            self.table.remove(&token)
        {
            let route = &mut self.routes[client.index()];
            route.last = route.last.filter(|t| *t != token);
            route.all.retain(|t| *t != token);
        }
    }

    /// Whether messages wait to be handled.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The connections whose messages are to be handled in this turn, at most
    /// [`limits::CONNECTIONS_PER_TURN`].
    pub(crate) fn take_ready(&mut self) -> Vec<Token> {
        let count = self.ready.len().min(limits::CONNECTIONS_PER_TURN);
        self.ready.drain(..count).collect()
    }

    /// The next message of a connection. Call [`Self::served`] when that is all or enough.
    pub(crate) fn next_message(&mut self, token: Token) -> Option<Message> {
        self.table.get_mut(&token)?.inbox.pop_front()
    }

    /// Whether the next message of a connection asks for a piece of a snapshot.
    pub(crate) fn next_is_fetch(&self, token: Token) -> bool {
        let next = self.table.get(&token).and_then(|connection| connection.inbox.front());
        matches!(next, Some(Message::Guest(_, ToGuest::Fetch { .. })))
    }

    /// Others have taken what there was in this turn for this connection: in the next it comes before
    /// them, so that who asks without end does not keep it waiting.
    pub(crate) fn passed_over(&mut self, token: Token) {
        self.ready.push_front(token);
    }

    /// Enough of this connection for now.
    pub(crate) fn served(&mut self, token: Token) {
        match self.table.get(&token) {
            Some(c) if !c.inbox.is_empty() => self.ready.push_back(token),
            Some(c) if c.over => self.close(token),
            _ => {}
        }
    }

    /// From now on this client's answers go to this connection.
    pub(crate) fn route(&mut self, client: ClientId, token: Token) {
        self.routes[client.index()].last = Some(token);
    }

    /// Closes the connections that clients' last orders came on, so that they turn to everyone.
    pub(crate) fn hang_up(&mut self) {
        let last: Vec<_> = self.routes.iter().filter_map(|route| route.last).collect();
        last.into_iter().for_each(|token| self.close(token));
    }

    /// Where a client's answers go, by index: `None` when there are no more.
    pub(crate) fn route_of(&self, client: ClientId, index: usize) -> Option<Token> {
        let Route { last, all } = self.routes.get(client.index())?;
        match last {
            Some(token) => (index == 0).then_some(*token),
            None => all.get(index).copied(),
        }
    }

    /// Whether the connection is still there.
    pub(crate) fn is_open(&self, token: Token) -> bool {
        self.table.get(&token).is_some_and(|c| !c.over)
    }

    /// Whether a frame may be queued on the connection. One that does not read what it is sent
    /// soon has no room.
    pub(crate) fn has_room(&self, token: Token) -> bool {
        self.table.get(&token).is_some_and(|c| !c.over && c.link.has_room())
    }

    /// Queues a message. Returns its bytes, or `None` if there is no such connection or no room in
    /// it.
    pub(crate) fn send(&mut self, token: Token, message: &ToClient) -> Option<u64> {
        self.send_with(token, |out| messages::encode_into(message, out))
    }

    /// As [`Self::send`], on a connection of another guest.
    pub(crate) fn send_to_guest(&mut self, token: Token, message: &ToGuest) -> Option<u64> {
        self.send_with(token, |out| messages::encode_into(message, out))
    }

    fn send_with(&mut self, token: Token, encode: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        let connection = self.table.get_mut(&token)?;
        if connection.over || !connection.link.has_room() {
            return None;
        }
        let mut bytes = 0;
        let write = |out: &mut Vec<u8>| {
            let before = out.len();
            encode(out);
            bytes = (out.len() - before) as u64;
        };
        if !connection.link.send(write) {
            return None;
        }
        self.mark(token);
        Some(bytes)
    }

    fn mark(&mut self, token: Token) {
        if let Some(connection) = self.table.get_mut(&token)
            && !connection.unflushed
        {
            connection.unflushed = true;
            self.unflushed.push(token);
        }
    }

    /// Writes what the sockets take, and watches for room in those that do not take all.
    pub(crate) fn flush(&mut self, poll: &Poll) {
        for token in take(&mut self.unflushed) {
            let Some(connection) = self.table.get_mut(&token) else { continue };
            connection.unflushed = false;
            if connection.over {
                continue;
            }
            let mut failed = connection.link.flush().is_err();
            let mut wanted = EpollFlags::EPOLLIN;
            wanted.set(EpollFlags::EPOLLOUT, connection.link.wants_write());
            if wanted != connection.watched {
                failed |= poll.change(connection.link.socket(), token, wanted).is_err();
                connection.watched = wanted;
            }
            connection.over = failed;
            if failed && connection.inbox.is_empty() {
                self.close(token);
            }
        }
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use shared_registers::crypto::Secret;

    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 32]);

    struct Bench {
        listener: TcpListener,
        poll: Poll,
        connections: Connections,
        counters: Counters,
    }

    fn key(client: u32) -> MacKey {
        Secret::new([client as u8; 32]).mac_key()
    }

    impl Bench {
        fn new(bounds: Bounds) -> Bench {
            let keys = Keys {
                replies: (0..4).map(key).collect(),
                operator: key(100),
                forwards: vec![None; 3],
            };
            let identity =
                Identity { me: ServerId(0), cluster: CLUSTER, n: 3, max_frame: 1000, keys };
            Bench {
                listener: TcpListener::bind("127.0.0.1:0").unwrap(),
                poll: Poll::new().unwrap(),
                connections: Connections::new(identity, bounds),
                counters: Counters::default(),
            }
        }

        /// A new connection, accepted at `now`; returns the other end.
        fn open(&mut self, now: Micros) -> TcpStream {
            let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = self.listener.accept().unwrap();
            self.connections.open(accepted, now, &self.poll, &mut self.counters).unwrap();
            stream
        }

        /// A connection of `client`, as far as the guest lets it come.
        fn connect(&mut self, client: u32) -> Link<Socket> {
            let socket = Socket::new(self.open(Micros(0))).unwrap();
            let (mut hello, me) = (Vec::new(), Party::Client(ClientId(client)));
            let ends = (me, Party::Guest(ServerId(0)));
            let channel = Channel::dial(ends, &key(client), CLUSTER, [7; 16], 1000, &mut hello);
            let mut link = Link::new(socket, channel, hello);
            let before = self.connections.of(me).count();
            let refused = self.counters.refused_connections;
            while self.connections.of(me).count() == before
                && self.counters.refused_connections == refused
            {
                let _ = link.flush();
                self.turn();
                link.socket().allow();
                let _ = link.read(&mut [0; 1000], &|_| None, |_| {});
            }
            link
        }

        fn turn(&mut self) {
            let mut ready = Vec::new();
            self.poll.wait(Micros(1000), &mut ready).unwrap();
            for (token, flags) in ready {
                self.connections.on_event(token, flags, &mut self.counters);
            }
            self.connections.flush(&self.poll);
        }

        fn count(&self, client: u32) -> usize {
            self.connections.of(Party::Client(ClientId(client))).count()
        }
    }

    #[test]
    fn when_clients_have_all_connections_who_has_most_gives_one() {
        let mut bench = Bench::new(Bounds { of_clients: 3, ..Bounds::default() });
        let mut links: Vec<_> = (0..3).map(|_| bench.connect(0)).collect();
        links.push(bench.connect(1));
        assert_eq!((bench.count(0), bench.count(1)), (2, 1));
        links.push(bench.connect(2));
        assert_eq!((bench.count(0), bench.count(1), bench.count(2)), (1, 1, 1));
        // Now nobody has more than a newcomer would.
        links.push(bench.connect(3));
        assert_eq!((bench.connections.len(), bench.count(3)), (3, 0));
        assert_eq!(bench.counters.refused_connections, 3);
    }

    #[test]
    fn of_those_who_have_proved_nothing_the_oldest_goes_first() {
        let mut bench = Bench::new(Bounds { unproven: 3, ..Bounds::default() });
        let proven = bench.connect(0);
        let _strangers: Vec<_> = (1..=5).map(|at| bench.open(Micros(at))).collect();
        assert_eq!((bench.connections.len(), bench.count(0)), (4, 1));
        let oldest = bench.connections.next_deadline();
        assert_eq!(oldest, Some(Micros(3).plus(limits::HANDSHAKE)));
        drop(proven);
    }

    #[test]
    fn who_does_not_prove_itself_in_time_is_refused() {
        let mut bench = Bench::new(Bounds::default());
        let _silent = bench.open(Micros(0));
        let _proven = bench.connect(1);
        let until = bench.connections.next_deadline().unwrap();
        bench.connections.expire(Micros(until.0 - 1), &mut bench.counters);
        assert_eq!(bench.connections.len(), 2);
        bench.connections.expire(until, &mut bench.counters);
        assert_eq!((bench.connections.len(), bench.count(1)), (1, 1));
        assert_eq!(bench.counters.handshake_timeouts, 1);
        assert_eq!(bench.connections.next_deadline(), None);
    }

    #[test]
    fn more_messages_than_fit_a_turn_wait_their_turn_and_nothing_is_read_meanwhile() {
        let mut bench = Bench::new(Bounds::default());
        let mut link = bench.connect(0);
        let question = messages::encode(&ToServer::Status);
        let sent = limits::MESSAGES_PER_TURN * 3;
        for _ in 0..sent {
            assert!(link.send(|out| out.extend_from_slice(&question)));
        }
        let mut got = 0;
        while got < sent {
            let _ = link.flush();
            bench.turn();
            let most = bench.connections.table.values().map(|c| c.inbox.len()).max().unwrap();
            for token in bench.connections.take_ready() {
                if bench.connections.next_message(token).is_some() {
                    got += 1;
                }
                bench.turn();
                let now = bench.connections.table[&token].inbox.len();
                assert!(now < most, "read more while messages waited");
                bench.connections.served(token);
            }
        }
        assert!(!bench.connections.has_ready());
    }

    #[test]
    fn who_was_passed_over_comes_first_in_the_next_turn() {
        let mut bench = Bench::new(Bounds::default());
        let mut links = [bench.connect(0), bench.connect(1)];
        for link in &mut links {
            for _ in 0..2 {
                assert!(link.send(|out| messages::encode_into(&ToServer::Status, out)));
            }
            let _ = link.flush();
            bench.turn();
        }
        let turn = bench.connections.take_ready();
        let [greedy, waits] = turn[..] else { panic!("both have something: {turn:?}") };
        assert!(bench.connections.next_message(greedy).is_some());
        bench.connections.served(greedy);
        bench.connections.passed_over(waits);
        assert_eq!(bench.connections.take_ready(), [waits, greedy]);
    }
}
