//! Clients: correct ones, which drive the production session and listener, and lying ones.
//!
//! A correct client broadcasts messages that are unlike any other's, and notes what it sent and
//! what it was answered. It may crash; its next incarnation starts a session of its own, numbered
//! by its clock. A lying one holds keys like any client's and says whatever it likes with them.

use std::collections::BTreeSet;

use protocol::client_session::{self as session, ClientSession, SessionConfig, Ticket};
use protocol::listener::{self, Listener, ListenerConfig};
use protocol::messages::{Delivery, OrderMessage, Reply, ToClient, ToServer};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use shared_registers::crypto::{MacKey, Secret};
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId};
use shared_registers::order;

use crate::cluster::{self, CLUSTER};
use crate::history::{Event, Longest};
use crate::plan::{ClientPlan, RingPlan, Timing};

/// Deliveries and bytes that a listener's caller can take at once.
const ROOM: (u64, u64) = (64, 1 << 16);

/// Something that happens to a client.
pub(crate) enum Input {
    /// A message came from a server.
    FromServer(ServerId, ToClient),
    /// A server can be sent to.
    Connected(ServerId),
    /// It cannot any more.
    Disconnected(ServerId),
    /// The caller wants something ordered, if the client has room for it.
    Broadcast,
    /// A deadline has come, or is near.
    Timer,
}

/// Something that a client wants done.
pub(crate) enum Output {
    /// Send this to a server.
    Send(ServerId, ToServer),
    /// For the history.
    Note(Event),
}

/// A correct client, while it runs.
pub(crate) struct Client {
    id: ClientId,
    session: ClientSession,
    listener: Option<Listener>,
    /// Orders that were sent in this incarnation.
    sent: BTreeSet<(u64, u64)>,
    unanswered: BTreeSet<u64>,
    in_flight: usize,
    /// Payloads are filled up with fewer bytes.
    filling: usize,
    longest: Longest,
}

impl Client {
    /// Starts an incarnation whose first session is `session`.
    pub(crate) fn start(
        id: ClientId,
        f: usize,
        plan: &ClientPlan,
        (timing, rings): (&Timing, &RingPlan),
        (now, leap): (u64, u32),
    ) -> Client {
        let n = 2 * f + 1;
        let (resend, fetch) = (timing.resend, Micros(timing.resend.0 / 2));
        let config = SessionConfig {
            client: id,
            n,
            f,
            cluster: CLUSTER,
            order_keys: cluster::order_keys(id, n),
            session: now,
            leap,
            resend,
            fetch,
            max_in_flight: plan.in_flight,
            max_payload_bytes: rings.max_payload_bytes,
        };
        let from = OrderNumber(1);
        let listener = || {
            let mut listener =
                Listener::new(ListenerConfig { n, f, cluster: CLUSTER, from, fetch });
            let (messages, bytes) = ROOM;
            let room = listener::Input::Room { messages, bytes };
            listener.step(Micros(0), room, &mut Vec::new());
            listener
        };
        Client {
            id,
            session: ClientSession::new(config),
            listener: plan.listens.then(listener),
            sent: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            in_flight: plan.in_flight,
            filling: rings.filling,
            longest: Longest::default(),
        }
    }

    /// Takes an input at the client's own time `now`. `ticket` is its caller's name for the next
    /// broadcast; returns whether that was used.
    pub(crate) fn step(
        &mut self,
        now: Micros,
        input: Input,
        ticket: u64,
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Output>,
    ) -> bool {
        let (mut to_do, mut heard, mut used) = (Vec::new(), Vec::new(), false);
        match input {
            Input::FromServer(server, message) => {
                out.extend(told(self.id, server, &message).map(Output::Note));
                if matches!(message, ToClient::Delivery(_) | ToClient::TooOld { .. }) {
                    let input = listener::Input::FromServer(server, message);
                    self.tell_listener(now, input, &mut heard);
                } else {
                    let input = session::Input::FromServer(server, message);
                    self.session.step(now, input, &mut to_do);
                }
            }
            Input::Connected(server) => {
                self.session.step(now, session::Input::Connected(server), &mut to_do);
                self.tell_listener(now, listener::Input::Connected(server), &mut heard);
            }
            Input::Disconnected(server) => {
                self.session.step(now, session::Input::Disconnected(server), &mut to_do);
                self.tell_listener(now, listener::Input::Disconnected(server), &mut heard);
            }
            Input::Broadcast => {
                if self.session.has_room() {
                    used = true;
                    self.broadcast(now, ticket, rng, &mut to_do, out);
                }
            }
            Input::Timer => {
                self.session.step(now, session::Input::Tick, &mut to_do);
                self.tell_listener(now, listener::Input::Tick, &mut heard);
            }
        }
        self.carry_out(to_do, out);
        self.hear(now, heard, out);
        self.measure(out);
        used
    }

    /// Tells the history of every queue that is longer than ever.
    fn measure(&mut self, out: &mut Vec<Output>) {
        let orders = ("unanswered orders of a client", self.unanswered.len(), self.in_flight);
        let listens = self.listener.iter().flat_map(Listener::queues);
        let listens = listens.map(|queue| (queue.name, queue.length, queue.bound));
        for queue in listens.chain([orders]) {
            let news = self.longest.is(1000 + self.id.0, queue);
            out.extend(news.map(Output::Note));
        }
    }

    fn tell_listener(
        &mut self,
        now: Micros,
        input: listener::Input,
        heard: &mut Vec<listener::Output>,
    ) {
        let Some(listener) = &mut self.listener else { return };
        listener.step(now, input, heard);
    }

    fn broadcast(
        &mut self,
        now: Micros,
        ticket: u64,
        rng: &mut ChaCha8Rng,
        to_do: &mut Vec<session::Output>,
        out: &mut Vec<Output>,
    ) {
        let mut payload = format!("{} {ticket} ", self.id).into_bytes();
        payload.resize(payload.len() + rng.random_range(0..self.filling), b'.');
        let client = self.id;
        out.push(Output::Note(Event::Broadcast { client, ticket, payload: payload.clone() }));
        self.unanswered.insert(ticket);
        let input = session::Input::Broadcast { ticket: Ticket(ticket), payload };
        self.session.step(now, input, to_do);
    }

    fn carry_out(&mut self, to_do: Vec<session::Output>, out: &mut Vec<Output>) {
        let client = self.id;
        for output in to_do {
            match output {
                session::Output::Send(server, message) => {
                    if let ToServer::Order(OrderMessage { id, payload, .. }) = &message
                        && self.sent.insert((id.session, id.count))
                    {
                        let digest = order::digest(&CLUSTER, *id, payload);
                        out.push(Output::Note(Event::Sent { id: *id, digest }));
                    }
                    out.push(Output::Send(server, message));
                }
                session::Output::Done { ticket: Ticket(ticket), id, order, reply } => {
                    self.unanswered.remove(&ticket);
                    out.push(Output::Note(Event::Answered { client, ticket, id, order, reply }));
                }
                session::Output::Failed { ticket: Ticket(ticket), .. } => {
                    self.unanswered.remove(&ticket);
                    out.push(Output::Note(Event::Refused { client, ticket }));
                }
            }
        }
    }

    fn hear(&mut self, now: Micros, mut heard: Vec<listener::Output>, out: &mut Vec<Output>) {
        let client = self.id;
        while !heard.is_empty() {
            let (mut messages, mut bytes) = (0, 0);
            for output in std::mem::take(&mut heard) {
                match output {
                    listener::Output::Send(server, message) => {
                        out.push(Output::Send(server, message));
                    }
                    listener::Output::Deliver(delivered) => {
                        (messages, bytes) = (messages + 1, bytes + delivered.payload.len() as u64);
                        let listener::Delivered { order, id, time, payload } = delivered;
                        let note = Event::Heard { client, order, id, time, payload };
                        out.push(Output::Note(note));
                    }
                    listener::Output::TooOld { first } => {
                        panic!("servers say that they keep nothing before {first}")
                    }
                }
            }
            // The caller has taken them, and can take as many again.
            if messages > 0
                && let Some(listener) = &mut self.listener
            {
                let input = listener::Input::Room { messages, bytes };
                listener.step(now, input, &mut heard);
            }
        }
    }

    /// When [`Input::Timer`] must come.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let listener = self.listener.as_ref().and_then(Listener::next_deadline);
        [self.session.next_deadline(), listener].into_iter().flatten().min()
    }

    /// Whether it was told that its session is an old one, and took a new one.
    pub(crate) fn has_leapt(&self) -> bool {
        self.session.counters().sessions > 0
    }

    /// Whether everything that its caller wanted is done, and its listener has heard up to `last`.
    pub(crate) fn is_content(&self, last: OrderNumber) -> bool {
        self.unanswered.is_empty() && self.listener.as_ref().is_none_or(|l| l.next() > last)
    }

    /// What it waits for, for people.
    pub(crate) fn complaint(&self, last: OrderNumber) -> String {
        let orders: Vec<_> = self.session.unanswered().collect();
        let heard = self.listener.as_ref().map(|l| l.next());
        format!(
            "waits for {orders:?}; its listener wants {heard:?} and {last} were delivered; {:?}",
            self.session.counters()
        )
    }
}

/// What a server's message says was delivered, for the history.
fn told(client: ClientId, server: ServerId, message: &ToClient) -> Option<Event> {
    match message {
        ToClient::Reply(Reply { session, count, order, digest, .. }) => {
            let id = OrderId { client, session: *session, count: *count };
            let (order, digest) = (*order, *digest);
            Some(Event::Told { client, server, id, order, digest, time: None })
        }
        ToClient::Delivery(Delivery { order, id, digest, time, .. }) => {
            let (id, order, digest, time) = (*id, *order, *digest, Some(*time));
            Some(Event::Told { client, server, id, order, digest, time })
        }
        _ => None,
    }
}

/// A client that lies with the keys that it has.
pub(crate) struct Liar {
    id: ClientId,
    keys: Vec<MacKey>,
    session: u64,
    count: u64,
    max_payload_bytes: usize,
}

impl Liar {
    /// A liar.
    pub(crate) fn new(id: ClientId, n: usize, max_payload_bytes: usize) -> Liar {
        let keys = cluster::order_keys(id, n);
        Liar { id, keys, session: 1, count: 0, max_payload_bytes }
    }

    /// One lie, or a few that belong together, and what kind of lie it is.
    pub(crate) fn lie(&mut self, rng: &mut ChaCha8Rng, out: &mut Vec<Output>) -> &'static str {
        let n = self.keys.len();
        let kind = rng.random_range(0..5);
        if rng.random_bool(0.2) {
            (self.session, self.count) = (self.session + rng.random_range(1..5), 0);
        }
        self.count += 1;
        let mut id = OrderId { client: self.id, session: self.session, count: self.count };
        let payload = |rng: &mut ChaCha8Rng| {
            let mut payload = b"a lie ".to_vec();
            payload.extend_from_slice(&rng.next_u64().to_le_bytes());
            payload
        };
        if kind == 0 {
            // Right MACs for some hosts only.
            let wrong = Secret::new([0xee; 32]).mac_key();
            let keys: Vec<_> = (0..n)
                .map(|i| if rng.random_bool(0.5) { self.keys[i].clone() } else { wrong.clone() })
                .collect();
            let message = cluster::order(id, payload(rng), &keys);
            self.spread(rng, out, |_| message.clone());
            return "lying client: right MACs for some hosts only";
        }
        if kind == 1 {
            // The same name for different payloads.
            let orders: Vec<_> =
                (0..n).map(|_| cluster::order(id, payload(rng), &self.keys)).collect();
            self.spread(rng, out, |server| orders[server].clone());
            return "lying client: one name for many payloads";
        }
        if kind == 2 {
            id.session = [0, 1, u64::MAX, u64::MAX - 1, rng.next_u64()][rng.random_range(0..5)];
            id.count = [1, 1, 2, 600, u64::MAX][rng.random_range(0..5)];
            let message = cluster::order(id, payload(rng), &self.keys);
            self.spread(rng, out, |_| message.clone());
            return "lying client: wild session";
        }
        if kind == 3 {
            // Too large, or of a client that is not there.
            let payload = vec![b'x'; self.max_payload_bytes + 1];
            let mut message = cluster::order(id, payload, &self.keys);
            if rng.random_bool(0.5) {
                message.id.client = ClientId(self.id.0 + 1000);
            }
            self.spread(rng, out, |_| message.clone());
            return "lying client: too large, or another's name";
        }
        let message = cluster::order(id, payload(rng), &self.keys);
        self.spread(rng, out, |_| message.clone());
        "lying client: an order like any other"
    }

    fn spread(
        &self,
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Output>,
        message: impl Fn(usize) -> OrderMessage,
    ) {
        let all = rng.random_bool(0.5);
        for server in ServerId::all(self.keys.len()) {
            if all || rng.random_bool(0.5) {
                let message = ToServer::Order(message(server.index()));
                out.push(Output::Send(server, message));
            }
        }
    }
}
