//! The background task: it owns the connections, the session and the listener.
//!
//! It is one hand-written future. When anything wakes it, it takes the commands, reads every
//! connection dry, runs the timers, lets the state machines say what is to be done, and writes all
//! of that in one go: a request costs one wake-up to send and about one per server to hear.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::client_session::{self as session, ClientSession, Failure, SessionConfig, Ticket};
use protocol::listener::{self, Listener, ListenerConfig};
use protocol::messages::{ToClient, ToServer, max_frame_bytes};
use shared_registers::channel::Party;
use shared_registers::ids::{Micros, OrderNumber, ServerId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::ClientConfig;
use crate::connection::{Connection, Incoming, Peer};
use crate::error::{ClientError, NoAnswer, ServerAccount};
use crate::limits::{WAITING_BYTES, WAITING_MESSAGES};
use crate::subscription::Message;
use crate::{Delivered, Reply};

/// Bytes that one read takes from a socket.
const READ_BYTES: usize = 64 << 10;
/// The timer is set at least this often, so that it always is in the future.
const IDLE: Duration = Duration::from_secs(3600);
/// Messages that are taken from one server before the next has its turn.
const MESSAGES_PER_PASS: usize = 32;

/// A request's place among those in flight, and its bytes.
pub(crate) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What the task is asked to do. The queue is bounded: each submission holds one of `max_in_flight`
/// permits, and a subscriber tells of room at most twice per queue of messages.
pub(crate) enum Command {
    Submit {
        payload: Vec<u8>,
        deadline: Instant,
        answer: oneshot::Sender<Result<Reply, ClientError>>,
        room: Room,
    },
    Subscribe {
        id: u64,
        from: OrderNumber,
        sink: mpsc::UnboundedSender<Result<Message, ClientError>>,
    },
    Room {
        id: u64,
        messages: u64,
        bytes: u64,
    },
    Unsubscribe {
        id: u64,
    },
    Close,
}

/// Somebody who waits for an answer.
struct Waiter {
    answer: oneshot::Sender<Result<Reply, ClientError>>,
    /// Lets another submit when it is dropped.
    _room: Room,
}

struct Listening {
    id: u64,
    listener: Listener,
    sink: mpsc::UnboundedSender<Result<Message, ClientError>>,
}

pub(crate) struct Driver {
    config: Arc<ClientConfig>,
    started: Instant,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Nobody can send commands any more.
    deserted: bool,
    connections: Vec<Connection>,
    /// By server, whether it was said that it cannot be reached.
    missed: Vec<bool>,
    /// Who is heard first in the next pass.
    first: usize,
    session: ClientSession,
    listening: Option<Listening>,
    last_ticket: u64,
    /// Those who wait for an answer: at most `max_in_flight`.
    waiters: BTreeMap<Ticket, Waiter>,
    /// When they stop waiting; the first is always of a waiter.
    deadlines: VecDeque<(Instant, Ticket)>,
    /// Messages for which the session has no room, because orders of those who stopped waiting are
    /// still on their way.
    queue: VecDeque<(Ticket, Vec<u8>)>,
    timer: Pin<Box<Sleep>>,
    scratch: Vec<u8>,
    to_do: Vec<session::Output>,
    heard: Vec<listener::Output>,
}

impl Driver {
    pub(crate) fn new(
        config: Arc<ClientConfig>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Driver {
        let now = Instant::now();
        // A clock before 1970 makes a session of 0: the servers will say so, and it is mended.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = ClientSession::new(SessionConfig {
            client: config.client,
            n: config.servers.len(),
            f: config.f,
            cluster: config.cluster,
            order_keys: config.order_keys.clone(),
            session: clock.as_micros() as u64,
            // Without randomness it goes no further than it must.
            leap: getrandom::u32().unwrap_or_default() >> 8,
            resend: micros(config.resend),
            fetch: micros(config.fetch),
            max_in_flight: config.max_in_flight,
            max_payload_bytes: config.max_payload_bytes,
        });
        Driver {
            started: now,
            commands,
            deserted: false,
            connections: connections(&config),
            missed: vec![false; config.servers.len()],
            first: 0,
            session,
            listening: None,
            last_ticket: 0,
            waiters: BTreeMap::new(),
            deadlines: VecDeque::new(),
            queue: VecDeque::new(),
            timer: Box::pin(sleep_until(now + IDLE)),
            scratch: vec![0; READ_BYTES],
            to_do: Vec::new(),
            heard: Vec::new(),
            config,
        }
    }

    fn micros_at(&self, at: Instant) -> Micros {
        micros(at - self.started)
    }

    /// Returns whether the client was closed.
    fn take_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        while !self.deserted {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Close)) => return true,
                Poll::Ready(Some(command)) => self.on_command(command, now),
                Poll::Ready(None) => self.deserted = true,
                Poll::Pending => break,
            }
        }
        false
    }

    fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Submit { payload, deadline, answer, room } => {
                self.last_ticket += 1;
                let ticket = Ticket(self.last_ticket);
                self.waiters.insert(ticket, Waiter { answer, _room: room });
                self.deadlines.push_back((deadline, ticket));
                self.queue.push_back((ticket, payload));
            }
            Command::Subscribe { id, from, sink } => self.on_subscribe(id, from, sink, now),
            Command::Room { id, messages, bytes } => {
                if self.listening.as_ref().is_some_and(|listening| listening.id == id) {
                    self.tell_listener(listener::Input::Room { messages, bytes }, now);
                }
            }
            Command::Unsubscribe { id } => {
                if self.listening.as_ref().is_some_and(|listening| listening.id == id) {
                    self.end_listening(None);
                }
            }
            Command::Close => {}
        }
    }

    fn on_subscribe(
        &mut self,
        id: u64,
        from: OrderNumber,
        sink: mpsc::UnboundedSender<Result<Message, ClientError>>,
        now: Instant,
    ) {
        let n = self.connections.len();
        let (f, cluster, fetch) = (self.config.f, self.config.cluster, micros(self.config.fetch));
        let listener = Listener::new(ListenerConfig { n, f, cluster, from, fetch });
        self.end_listening(Some(ClientError::Replaced));
        self.listening = Some(Listening { id, listener, sink });
        let room = listener::Input::Room { messages: WAITING_MESSAGES, bytes: WAITING_BYTES };
        self.tell_listener(room, now);
        for server in ServerId::all(n) {
            if self.connections[server.index()].is_open() {
                self.tell_listener(listener::Input::Connected(server), now);
            }
        }
    }

    /// Ends the subscription, if there is one: tells it why, and the servers to send no more.
    fn end_listening(&mut self, why: Option<ClientError>) {
        // What it wanted to be sent comes before the end of it.
        self.do_it();
        let Some(listening) = self.listening.take() else { return };
        if let Some(why) = why {
            // Nobody listens if it was dropped meanwhile.
            let _ = listening.sink.send(Err(why));
        }
        for connection in &mut self.connections {
            connection.send(&ToServer::UNSUBSCRIBE);
        }
    }

    fn tell_session(&mut self, input: session::Input, now: Instant) {
        let now = self.micros_at(now);
        self.session.step(now, input, &mut self.to_do);
    }

    fn tell_listener(&mut self, input: listener::Input, now: Instant) {
        let now = self.micros_at(now);
        if let Some(listening) = &mut self.listening {
            listening.listener.step(now, input, &mut self.heard);
        }
    }

    /// Takes what one server has to say; returns whether it said anything.
    fn hear(&mut self, cx: &mut Context<'_>, server: ServerId, now: Instant) -> bool {
        let connection = &mut self.connections[server.index()];
        let Poll::Ready(incoming) = connection.poll_next(cx, now, &mut self.scratch) else {
            return false;
        };
        if let (Some(witness), Incoming::Message(message)) = (&self.config.witness, &incoming) {
            witness(server, message);
        }
        match incoming {
            Incoming::Open => {
                self.tell_session(session::Input::Connected(server), now);
                self.tell_listener(listener::Input::Connected(server), now);
            }
            Incoming::Lost => {
                let (address, problem) = (connection.address(), connection.problem());
                if !std::mem::replace(&mut self.missed[server.index()], true) {
                    tracing::warn!(%server, %address, ?problem, "not connected; goes on trying");
                }
                self.tell_session(session::Input::Disconnected(server), now);
                self.tell_listener(listener::Input::Disconnected(server), now);
            }
            Incoming::Message(message @ (ToClient::Delivery(_) | ToClient::TooOld { .. })) => {
                self.tell_listener(listener::Input::FromServer(server, message), now);
            }
            Incoming::Message(message) => {
                self.tell_session(session::Input::FromServer(server, message), now);
            }
        }
        // At once, so that what waits to be done stays small.
        self.do_it();
        true
    }

    /// Takes what the servers say, from each as much as is fair and another one first each time:
    /// one that floods keeps nobody else unheard. Returns whether there may be more.
    fn hear_all(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let n = self.connections.len();
        let mut more = false;
        for i in 0..n {
            let server = ServerId(((self.first + i) % n) as u16);
            let heard = (0..MESSAGES_PER_PASS).take_while(|_| self.hear(cx, server, now)).count();
            more |= heard == MESSAGES_PER_PASS;
        }
        self.first = (self.first + 1) % n;
        more
    }

    /// Does what the state machines want done.
    fn do_it(&mut self) {
        let mut to_do = std::mem::take(&mut self.to_do);
        for output in to_do.drain(..) {
            match output {
                session::Output::Send(server, message) => {
                    self.connections[server.index()].send(&message);
                }
                session::Output::Done { ticket, id, order, reply } => {
                    let gone = || ClientError::Gone(Delivered { order, id });
                    let reply = reply.map(|bytes| Reply { order, id, bytes });
                    self.answer(ticket, reply.ok_or_else(gone));
                }
                session::Output::Failed { ticket, why } => {
                    let error = self.failure(why);
                    self.answer(ticket, Err(error));
                }
            }
        }
        self.to_do = to_do;
        let mut ended = None;
        let mut heard = std::mem::take(&mut self.heard);
        for output in heard.drain(..) {
            let Some(listening) = &self.listening else { continue };
            // A sink that nobody reads is on its way to be unsubscribed.
            match output {
                listener::Output::Send(server, message) => {
                    self.connections[server.index()].send(&message);
                }
                listener::Output::Deliver(delivered) => {
                    let _ = listening.sink.send(Ok(delivered.into()));
                }
                listener::Output::TooOld { first } => ended = Some(ClientError::TooOld { first }),
            }
        }
        self.heard = heard;
        if ended.is_some() {
            self.end_listening(ended);
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Reply, ClientError>) {
        if let Some(waiter) = self.waiters.remove(&ticket) {
            // The caller may have lost interest.
            let _ = waiter.answer.send(answer);
        }
    }

    fn failure(&self, why: Failure) -> ClientError {
        match why {
            Failure::Refused { servers, reason } => {
                let key_file = self.config.key_file.clone();
                ClientError::Refused { servers, reason, key_file }
            }
            Failure::TooLarge { .. } | Failure::TooMany => {
                unreachable!("`submit` asked for the limit, and the driver for room")
            }
        }
    }

    /// Hands the session what it has room for.
    fn submit(&mut self, now: Instant) {
        while self.session.has_room() {
            let Some((ticket, payload)) = self.queue.pop_front() else { return };
            // Whoever gave up before anything was sent has given up for good.
            if self.waiters.get(&ticket).is_some_and(|waiter| !waiter.answer.is_closed()) {
                self.tell_session(session::Input::Broadcast { ticket, payload }, now);
            } else {
                self.waiters.remove(&ticket);
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        let core = self.micros_at(now);
        if self.session.next_deadline().is_some_and(|at| at <= core) {
            self.tell_session(session::Input::Tick, now);
        }
        if self.listener_deadline().is_some_and(|at| at <= core) {
            self.tell_listener(listener::Input::Tick, now);
        }
        while let Some(&(deadline, ticket)) = self.deadlines.front() {
            let waits = self.waiters.contains_key(&ticket);
            if waits && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            if waits {
                let error = ClientError::Deadline(Box::new(self.no_answer(ticket)));
                self.answer(ticket, Err(error));
            }
        }
        self.judge_keys();
    }

    /// Fails all who wait when so many servers hold other keys that nothing can be believed.
    fn judge_keys(&mut self) {
        if self.waiters.is_empty() && self.listening.is_none() {
            return;
        }
        let servers = self.connections.iter().filter(|c| c.has_wrong_key()).count();
        if servers > self.config.f {
            let (n, key_file) = (self.connections.len(), self.config.key_file.clone());
            let error = ClientError::WrongKey { servers, n, key_file };
            for (_, waiter) in std::mem::take(&mut self.waiters) {
                let _ = waiter.answer.send(Err(error.clone()));
            }
            self.end_listening(Some(error));
        }
    }

    fn listener_deadline(&self) -> Option<Micros> {
        self.listening.as_ref()?.listener.next_deadline()
    }

    /// What each server did about a request.
    fn no_answer(&self, ticket: Ticket) -> NoAnswer {
        let said = self.session.unanswered().find(|order| order.ticket == ticket);
        let said = said.map(|order| order.said).unwrap_or_default();
        let account = |(i, connection): (usize, &Connection)| match said.get(i) {
            Some(session::Said::Replied(order)) => ServerAccount::Replied(*order),
            Some(session::Said::Refused(reason)) => ServerAccount::Refused(*reason),
            Some(session::Said::Stale(session)) => ServerAccount::Stale(*session),
            _ if connection.is_open() => ServerAccount::Silent,
            _ => connection.problem().clone(),
        };
        NoAnswer {
            quorum: self.config.f + 1,
            waited: self.config.deadline,
            servers: self.connections.iter().enumerate().map(account).collect(),
            key_file: self.config.key_file.clone(),
        }
    }

    /// Sets the timer; returns whether it is due already. It may go off too early, which is cheaper
    /// than to set it anew for every request.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let cores = [self.session.next_deadline(), self.listener_deadline()].into_iter().flatten();
        let cores = cores.map(|at| self.started + Duration::from_micros(at.0));
        let sockets = self.connections.iter().filter_map(Connection::next_deadline);
        let waiters = self.deadlines.front().map(|(at, _)| *at);
        let next = cores.chain(sockets).chain(waiters).min().unwrap_or(now + IDLE);
        if next < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn is_over(&self) -> bool {
        self.deserted && self.waiters.values().all(|waiter| waiter.answer.is_closed())
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let now = Instant::now();
            if this.take_commands(cx, now) {
                return Poll::Ready(());
            }
            this.submit(now);
            let more = this.hear_all(cx, now);
            this.on_time(now);
            // Answers made room.
            this.submit(now);
            this.do_it();
            if this.is_over() {
                return Poll::Ready(());
            }
            for connection in &mut this.connections {
                connection.flush(cx);
            }
            if !this.arm(cx, now) {
                if more {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
    }
}

fn connections(config: &ClientConfig) -> Vec<Connection> {
    let servers = ServerId::all(config.servers.len()).zip(&config.servers).zip(&config.reply_keys);
    let peers = servers.map(|((server, address), key)| Peer {
        address: *address,
        parties: (Party::Client(config.client), Party::Guest(server)),
        key: key.clone(),
        cluster: config.cluster,
        max_frame_bytes: max_frame_bytes(config.max_payload_bytes),
    });
    peers.map(Connection::new).collect()
}

fn micros(time: Duration) -> Micros {
    Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
