//! The loop.
//!
//! A turn takes what epoll says, hands messages and records to the core, lets it act, and carries
//! out what it wants: frames for the host first, and the doorbell, since other servers wait for
//! them; then answers, forwards and deliveries. Before it sleeps, the guest says so in its bell
//! word and looks once more, so that no ring is missed.

use std::io::ErrorKind;
use std::mem::take;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use protocol::application::Application;
use protocol::messages::{Status, ToClient, ToServer};
use protocol::replica::{Input, Lookup, Output, Replica};
use shared_registers::guest_side::{HostHint, Next};
use shared_registers::ids::{ClientId, Micros, OrderNumber, ServerId};

use crate::connections::{Bounds, Connections, Message};
use crate::counters::{Counters, list_host};
use crate::error::GuestError;
use crate::forwarding::Forwarding;
use crate::limits::{
    ACCEPT_PAUSE, ACCEPTS_PER_TURN, HINTS_EVERY, MESSAGES_PER_TURN, OUTPUTS_HELD, RECORDS_PER_PASS,
    RECORDS_PER_TURN, WAIT_LOG_EVERY, WAIT_STEP,
};
use crate::net::{BELL, FIRST_CONNECTION, LISTENER, Poll, STOP, Token, token_peer};
use crate::registers::{Places, Registers};
use crate::setup::Setup;
use crate::subscriptions::Subscriptions;

/// The `now` of the core: since the process started.
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Micros {
        Micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Why a guest's life ends.
enum End {
    /// It was asked to stop.
    Asked,
    /// The host's streams are not what they were (R6).
    Over,
}

/// Runs a guest until `stop` can be read, from the registers (P6); if they are not what they were,
/// once more from the start.
pub(crate) fn run(
    setup: Setup,
    application: impl Fn() -> Box<dyn Application>,
    stop: impl AsFd,
) -> Result<(), GuestError> {
    let listener = setup.listen()?;
    while let End::Over = live(&setup, application(), &stop, &listener)? {
        tracing::warn!("the host's streams are not what they were: reading them from the start");
    }
    Ok(())
}

fn live(
    setup: &Setup,
    application: Box<dyn Application>,
    stop: impl AsFd,
    listener: &TcpListener,
) -> Result<End, GuestError> {
    let mut poll = Poll::new().map_err(GuestError::system("make an epoll instance"))?;
    poll.watch(&stop, STOP, EpollFlags::EPOLLIN)
        .map_err(GuestError::system("watch for the end"))?;
    let (clock, mut counters) = (Clock(Instant::now()), Counters::default());
    let Some(registers) = wait_for_host(setup, &mut poll, &clock, &mut counters)? else {
        return Ok(End::Asked);
    };
    let listener = listener.try_clone().map_err(GuestError::system("share the listener"))?;
    poll.watch(&listener, LISTENER, EpollFlags::EPOLLIN)
        .map_err(GuestError::system("watch the payload address"))?;
    let guest = Guest {
        n: setup.cluster.n(),
        clock,
        replica: Replica::new(setup.config(), application),
        registers,
        connections: Connections::new(setup.identity(), Bounds::default()),
        subscriptions: Subscriptions::default(),
        forwarding: setup.forwarding(),
        counters,
        listener,
        accept_after: None,
        hints_at: Micros(0),
        hints: Vec::new(),
        out: Vec::new(),
        status: None,
        poll,
    };
    tracing::info!("guest {} serves on the payload network", setup.me);
    guest.run()
}

/// Waits until the host agent is there and has taken every frame of an earlier guest (P6). Returns
/// `None` if the process is to end first.
fn wait_for_host(
    setup: &Setup,
    poll: &mut Poll,
    clock: &Clock,
    counters: &mut Counters,
) -> Result<Option<Registers>, GuestError> {
    let geometry = setup.cluster.geometry(setup.me);
    let mut registers: Option<Registers> = None;
    let mut said: Option<(&str, Micros)> = None;
    let mut ready = Vec::new();
    loop {
        let now = clock.now();
        if registers.is_none() {
            registers = Registers::map(geometry, Places::new(&setup.paths, setup.me))?;
        }
        let waiting_for = match &mut registers {
            None => "the host agent's register files",
            Some(r) => {
                r.tend_bell(now, poll, counters)?;
                r.check_full();
                if r.is_over() {
                    registers = None;
                    continue;
                }
                // R6: a host that recovers takes none, and this guest reads only.
                match (r.has_bell(), r.files.drained() || r.reads_only()) {
                    (false, _) => "the host agent's doorbell",
                    (true, false) => "the host agent to take an earlier guest's frames",
                    (true, true) => return Ok(registers),
                }
            }
        };
        if said.is_none_or(|(what, at)| what != waiting_for || now.since(at) >= WAIT_LOG_EVERY) {
            tracing::info!("waiting for {waiting_for} in {}", setup.paths.dir().display());
            said = Some((waiting_for, now));
        }
        poll.wait(WAIT_STEP, &mut ready).map_err(GuestError::system("wait for events"))?;
        for (token, _) in ready.drain(..) {
            match (token, &mut registers) {
                (STOP, _) => return Ok(None),
                (BELL, Some(r)) => r.on_bell(clock.now(), counters),
                _ => {}
            }
        }
    }
}

/// A guest at work.
struct Guest {
    n: usize,
    clock: Clock,
    poll: Poll,
    replica: Replica,
    registers: Registers,
    connections: Connections,
    subscriptions: Subscriptions,
    forwarding: Forwarding,
    counters: Counters,
    listener: TcpListener,
    /// Nothing is accepted before this; the listener is not watched meanwhile.
    accept_after: Option<Micros>,
    hints_at: Micros,
    hints: Vec<HostHint>,
    /// What the core wants and is not carried out yet.
    out: Vec<Output>,
    /// This turn's answer to all who ask for status.
    status: Option<ToClient>,
}

impl Guest {
    fn run(mut self) -> Result<End, GuestError> {
        self.replay()?;
        let mut ready = Vec::new();
        loop {
            if self.registers.is_over() {
                return Ok(End::Over);
            }
            let more = self.turn(&ready)?;
            ready.clear();
            let nap = if more { Micros(0) } else { self.doze() };
            self.poll.wait(nap, &mut ready).map_err(GuestError::system("wait for events"))?;
            self.registers.files.wake();
            if ready.iter().any(|(token, _)| *token == STOP) {
                tracing::info!("asked to stop");
                return Ok(End::Asked);
            }
        }
    }

    /// Reads all that is exposed before the core may act: its own stream tells it what it did
    /// before (P6).
    fn replay(&mut self) -> Result<(), GuestError> {
        while self.read_records()? {
            self.carry_out();
        }
        self.carry_out();
        // Nobody was there to be answered; these are not replies that somebody missed.
        self.counters.dropped_replies = 0;
        tracing::info!(delivered = %self.replica.last_delivered(), "read the registers");
        Ok(())
    }

    /// Says that this guest is about to sleep, looks once more, and returns for how long it may.
    fn doze(&mut self) -> Micros {
        self.registers.files.doze();
        if self.registers.files.has_news() {
            return Micros(0);
        }
        let now = self.clock.now();
        let deadlines = [
            self.replica.next_deadline(),
            self.connections.next_deadline(),
            self.forwarding.next_deadline(),
            self.registers.next_deadline(),
            self.accept_after,
            Some(self.hints_at),
        ];
        let next = deadlines.into_iter().flatten().min();
        next.map_or(HINTS_EVERY, |at| at.since(now)).min(HINTS_EVERY)
    }

    /// One turn. Returns whether there is more to do at once.
    fn turn(&mut self, ready: &[(Token, EpollFlags)]) -> Result<bool, GuestError> {
        let now = self.clock.now();
        self.status = None;
        let mut rung = false;
        for (token, flags) in ready {
            match *token {
                LISTENER => self.accept(now)?,
                BELL => {
                    self.registers.on_bell(now, &mut self.counters);
                    rung = true;
                }
                FIRST_CONNECTION.. => {
                    self.connections.on_event(*token, *flags, &mut self.counters);
                }
                other => {
                    if let Some(peer) = token_peer(other) {
                        self.forwarding.on_event(peer, now);
                    }
                }
            }
        }
        self.tend(now)?;
        self.serve();
        let unread = self.read_records()?;
        self.act(rung);
        self.carry_out();
        let more = self.subscriptions.pump(
            self.replica.last_delivered(),
            |order| self.replica.delivery(order, false),
            &mut self.connections,
            &mut self.counters,
        );
        self.connections.flush(&self.poll);
        Ok(unread || more || self.connections.has_ready())
    }

    /// What is due by the clock.
    fn tend(&mut self, now: Micros) -> Result<(), GuestError> {
        self.connections.expire(now, &mut self.counters);
        self.registers.tend_bell(now, &self.poll, &mut self.counters)?;
        if self.accept_after.is_some_and(|at| now >= at) {
            self.accept_after = None;
            self.watch_listener(EpollFlags::EPOLLIN)?;
        }
        Ok(())
    }

    fn watch_listener(&self, flags: EpollFlags) -> Result<(), GuestError> {
        self.poll
            .change(&self.listener, LISTENER, flags)
            .map_err(GuestError::system("watch the payload address"))
    }

    fn accept(&mut self, now: Micros) -> Result<(), GuestError> {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let opened = self.connections.open(stream, now, &self.poll, &mut self.counters);
                    if let Err(error) = opened {
                        tracing::debug!(%error, "lost a connection as it came");
                        self.counters.refused_connections += 1;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if out_of_descriptors(&error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    self.counters.refused_connections += 1;
                    self.accept_after = Some(now.plus(ACCEPT_PAUSE));
                    return self.watch_listener(EpollFlags::empty());
                }
                // The other end went away before it was accepted.
                Err(_) => self.counters.refused_connections += 1,
            }
        }
        Ok(())
    }

    /// Handles what connections have sent: of each as much as is fair.
    fn serve(&mut self) {
        for token in self.connections.take_ready() {
            for _ in 0..MESSAGES_PER_TURN {
                let Some(message) = self.connections.next_message(token) else { break };
                self.handle(token, message);
            }
            self.connections.served(token);
        }
    }

    fn handle(&mut self, token: Token, message: Message) {
        match message {
            Message::Status => self.answer_status(token),
            // R6: what cannot be proposed is not taken; its sender sends it again.
            Message::Forward(..) | Message::Client(_, ToServer::Order(_))
                if self.registers.reads_only() => {}
            Message::Forward(from, order) => {
                self.counters.forwards_received += 1;
                self.step(Input::Forward(from, order));
            }
            Message::Client(client, ToServer::Subscribe { from, messages, bytes }) => {
                tracing::debug!(%client, %from, messages, bytes, "a subscriber");
                self.subscriptions.subscribe(token, from, messages, bytes);
            }
            Message::Client(_, ToServer::Credit { messages, bytes }) => {
                self.subscriptions.give_credit(token, messages, bytes);
            }
            Message::Client(_, ToServer::FetchDelivery { order }) => self.fetch(token, order),
            Message::Client(client, message @ ToServer::FetchReply { .. }) => {
                self.connections.route(client, token);
                // Whoever does not read its answers is not given more of them to hold.
                if !self.connections.has_room(token) {
                    self.counters.dropped_replies += 1;
                    return;
                }
                self.step(Input::Client(client, message));
            }
            Message::Client(client, message @ ToServer::Order(_)) => {
                self.connections.route(client, token);
                self.counters.orders_received += 1;
                self.step(Input::Client(client, message));
            }
            // The connection has made its question a Message::Status.
            Message::Client(_, ToServer::Status) => {}
        }
    }

    /// Gives the core one message, and passes its answers on at once: thus how much they may take
    /// is bounded by the room in their connection.
    fn step(&mut self, input: Input<'_>) {
        let before = self.out.len();
        self.replica.step(self.clock.now(), input, &mut self.out);
        if self.out.len() > before {
            self.pass_answers(before);
        }
    }

    fn pass_answers(&mut self, from: usize) {
        for output in self.out.split_off(from) {
            match output {
                Output::ToClient(client, answer) => self.answer(client, &answer),
                other => self.out.push(other),
            }
        }
    }

    fn answer(&mut self, client: ClientId, answer: &ToClient) {
        if self.connections.route_of(client, 0).is_none() {
            self.counters.dropped_replies += 1;
            return;
        }
        for index in 0.. {
            let Some(token) = self.connections.route_of(client, index) else { break };
            self.send(token, answer);
        }
    }

    /// Returns whether it was sent.
    fn send(&mut self, token: Token, message: &ToClient) -> bool {
        let sent = self.connections.send(token, message);
        match sent {
            Some(bytes) => {
                self.counters.replies_sent += 1;
                self.counters.reply_bytes_sent += bytes;
            }
            None => self.counters.dropped_replies += 1,
        }
        sent.is_some()
    }

    fn fetch(&mut self, token: Token, order: OrderNumber) {
        if !self.connections.has_room(token) {
            self.counters.dropped_replies += 1;
            return;
        }
        match self.replica.delivery(order, true) {
            Lookup::Found(delivery) => {
                if self.send(token, &delivery) {
                    self.subscriptions.on_fetched(token, &delivery);
                }
            }
            Lookup::TooOld { first } => {
                self.send(token, &ToClient::TooOld { from: order, first });
            }
            Lookup::Future => {}
        }
    }

    fn answer_status(&mut self, token: Token) {
        let made = self.status.take();
        let answer = made.unwrap_or_else(|| ToClient::Status(Box::new(self.make_status())));
        match self.connections.send(token, &answer) {
            Some(_) => self.counters.status_sent += 1,
            None => self.counters.dropped_replies += 1,
        }
        self.status = Some(answer);
    }

    fn make_status(&self) -> Status {
        let mut status = self.replica.status();
        status.host_up = self.registers.has_bell();
        let files = &self.registers.files;
        self.counters.list(&mut status.counters);
        status.counters.push(("connections".to_owned(), self.connections.len() as u64));
        let waits_for = files.recovering().unwrap_or(0);
        list_host(&files.counters(), files.stream_full(), waits_for, &mut status.counters);
        status
    }

    /// Gives the core the records that are exposed, each after those that it refers to (V0).
    /// Returns whether there may be more.
    fn read_records(&mut self) -> Result<bool, GuestError> {
        let mut count = 0;
        while count < RECORDS_PER_TURN {
            let before = count;
            for writer in ServerId::all(self.n) {
                for _ in 0..RECORDS_PER_PASS {
                    if !self.read_record(writer)? {
                        break;
                    }
                    count += 1;
                }
            }
            if count == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_record(&mut self, writer: ServerId) -> Result<bool, GuestError> {
        match self.registers.files.next(writer) {
            Next::Nothing => return Ok(false),
            Next::Reclaimed => return Err(GuestError::Reclaimed { writer }),
            Next::Damaged => {
                if self.registers.is_over() {
                    return Ok(false); // R6: cut off. There will be no next turn.
                }
                let path = self.registers.read_path().to_owned();
                return Err(GuestError::Damaged { path, writer });
            }
            Next::Record(record) => {
                // V0
                if !self.replica.can_read(&record.stamp) {
                    return Ok(false);
                }
                self.replica.step(self.clock.now(), Input::Record(record), &mut self.out);
            }
        }
        self.registers.files.advance(writer);
        if self.out.len() >= OUTPUTS_HELD {
            self.carry_out();
        }
        Ok(true)
    }

    /// Tells the core what was dropped and what the hints are, and lets it act.
    fn act(&mut self, rung: bool) {
        if self.registers.reads_only() {
            return; // P6: its own stream has to be whole before it goes on with it.
        }
        let now = self.clock.now();
        if let Some(notice) = self.registers.drop_notice() {
            // Frames that follow a dropped one are void (R1): the core writes them anew.
            self.out.retain(|output| !matches!(output, Output::Write { .. }));
            self.replica.step(now, Input::Dropped(notice), &mut self.out);
        }
        if rung || now >= self.hints_at {
            self.hints_at = now.plus(HINTS_EVERY);
            self.hints.clear();
            self.hints.extend(self.registers.files.hints());
            self.replica.step(now, Input::Hints(&self.hints), &mut self.out);
            self.registers.check_full();
        }
        self.replica.step(now, Input::Idle, &mut self.out);
    }

    /// Carries out what the core wants: frames and the bell before all else, since every other
    /// server waits for them.
    fn carry_out(&mut self) {
        let mut rest = Vec::new();
        for output in self.out.drain(..) {
            match output {
                Output::Write { seq, body } => {
                    self.registers.write(seq, body, &mut self.counters);
                }
                other => rest.push(other),
            }
        }
        let now = self.clock.now();
        self.registers.publish(now, &mut self.counters);
        for output in take(&mut rest) {
            match output {
                Output::Forward(to, order) => {
                    self.forwarding.enqueue(to, order, &mut self.counters);
                }
                Output::ToClient(client, answer) => self.answer(client, &answer),
                Output::Write { .. } => {}
            }
        }
        self.forwarding.tend(now, &self.poll, &mut self.counters);
    }
}

/// Whether the process or the system can open no more files for now.
fn out_of_descriptors(error: &std::io::Error) -> bool {
    let errors = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| errors.contains(&Errno::from_raw(code)))
}
