//! A client's ordering side, as a pure state machine: what to send to which server, and when an
//! order counts as delivered.
//!
//! An order goes to the *presumed sequencer* alone, and to every server once it has waited
//! `T_resend` or the connection to that sequencer is lost (section 3). It is answered when `f + 1`
//! servers sent the same order number and reply digest and bytes of that digest are there (P5): one
//! of the `f + 1` is correct, so `f` liars can neither make up an answer nor, since the `f + 1`
//! correct ones answer in the end, withhold it. Everything else that comes is counted and dropped.
//!
//! A session counts its orders 1, 2, 3, ... and servers deliver exactly the next (C2), so an order
//! is never skipped: it is sent again until it is answered. Two things start a new session, in
//! which the orders that are not yet answered get new counts, in their order: `f + 1` equal `STALE`
//! (the client's clock went back, P1), and an order that `f + 1` servers' hosts refused, behind
//! which the rest of its session would wait for ever (section 7). Whoever gives up waiting for an
//! order need not tell the session: the order may still be delivered, and those behind it need it.

use std::collections::BTreeMap;

use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::{ClusterId, Digest, MacKey};
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId, Term};

use crate::messages::{Body, OrderMessage, Refusal, Reply, ToClient, ToServer};

pub use crate::limits::{HELD_BYTES_PER_SERVER, MAX_IN_FLIGHT};

/// The time to the next resend, and to the next fetch, doubles at most so often.
const MAX_DOUBLINGS: u32 = 4;

/// What a [`ClientSession`] is made with.
pub struct SessionConfig {
    /// Who the client is.
    pub client: ClientId,
    /// How many servers there are.
    pub n: usize,
    /// How many of them may be faulty.
    pub f: usize,
    /// The cluster.
    pub cluster: ClusterId,
    /// The order keys that the client shares with the hosts, by server: `n` of them.
    pub order_keys: Vec<MacKey>,
    /// The session's number, larger than the client's last: its clock, in microseconds.
    pub session: u64,
    /// Drawn at random: how far past the newest session the client goes whose clock went back, so
    /// that two lives of it whose clock did never mean two orders by one name. 24 bits are enough
    /// for that, and are 17 seconds until the clock is past such a session.
    pub leap: u32,
    /// `T_resend`.
    pub resend: Micros,
    /// `T_fetch`: how long after the agreement bytes that are missing are asked for.
    pub fetch: Micros,
    /// Most unanswered orders; [`MAX_IN_FLIGHT`] is a good number.
    pub max_in_flight: usize,
    /// Largest payload.
    pub max_payload_bytes: usize,
}

/// The caller's name for an order: it stays the same when the order changes its session. Each must
/// be used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happens to a session.
#[derive(Debug)]
pub enum Input {
    /// The caller wants this ordered, after all that it gave before.
    Broadcast {
        /// The caller's name for it.
        ticket: Ticket,
        /// The message.
        payload: Vec<u8>,
    },
    /// A message came, authenticated, from a server.
    FromServer(ServerId, ToClient),
    /// A server can be sent to from now on.
    Connected(ServerId),
    /// A server's connection was lost, or could not be made.
    Disconnected(ServerId),
    /// Time has passed.
    Tick,
}

/// What a session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to a connected server.
    Send(ServerId, ToServer),
    /// An order was delivered and executed.
    Done {
        /// Which.
        ticket: Ticket,
        /// As which of the client's orders it was delivered.
        id: OrderId,
        /// Its place in the one order.
        order: OrderNumber,
        /// The reply, or `None` if `f + 1` servers keep it no longer.
        reply: Option<Vec<u8>>,
    },
    /// An order will not be delivered.
    Failed {
        /// Which.
        ticket: Ticket,
        /// Why.
        why: Failure,
    },
}

/// Why an order failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// So many servers' hosts refused it: more than can lie.
    Refused {
        /// How many.
        servers: usize,
        /// What most of them said.
        reason: Refusal,
    },
    /// Its payload is over the limit, in bytes. Nothing was sent.
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Too many are unanswered: ask [`ClientSession::has_room`] first. Nothing was sent.
    TooMany,
}

/// What one server said about an unanswered order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing.
    Nothing,
    /// That it was delivered, in this place.
    Replied(OrderNumber),
    /// That its host refused it.
    Refused(Refusal),
    /// That the client already used this later session.
    Stale(u64),
}

/// What the servers said about an unanswered order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Which.
    pub ticket: Ticket,
    /// What it is called at present.
    pub id: OrderId,
    /// By server.
    pub said: Vec<Said>,
    /// How many servers, at most, replied alike.
    pub alike: usize,
}

/// Counts of what a session did and saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Orders sent for the first time.
    pub orders: u64,
    /// Copies sent after the first, to any server.
    pub resends: u64,
    /// Requests for a reply's bytes.
    pub fetches: u64,
    /// Replies that counted.
    pub replies: u64,
    /// New sessions after the first.
    pub sessions: u64,
    /// Ignored: about orders that are answered already; the last servers' replies always are.
    pub late: u64,
    /// Ignored: said before by the same server.
    pub duplicate: u64,
    /// Ignored: about nothing that this session sent.
    pub unknown: u64,
    /// Ignored: contradicts the same server's earlier words, or bytes that do not match.
    pub wrong: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Connection {
    /// Neither made nor failed yet.
    Unknown,
    Up,
    Down,
}

/// What one server said of one order.
#[derive(Clone, Default)]
struct Account {
    vote: Option<(OrderNumber, Digest)>,
    bytes: Option<Vec<u8>>,
    gone: bool,
    refused: Option<Refusal>,
}

/// What `f + 1` servers agreed on, while its bytes are missing.
struct Agreed {
    value: (OrderNumber, Digest),
    fetch_at: Micros,
    fetches: u32,
}

/// An unanswered order.
struct Entry {
    ticket: Ticket,
    message: OrderMessage,
    accounts: Vec<Account>,
    agreed: Option<Agreed>,
    resend_at: Micros,
    resends: u32,
    /// It was sent to everyone, not to the presumed sequencer alone.
    spread: bool,
    /// The caller was told that it failed; it stays until those before it are answered.
    failed: bool,
}

/// The state machine: see the [module](self).
pub struct ClientSession {
    config: SessionConfig,
    session: u64,
    last_count: u64,
    /// By session and count, which is the order in which they are sent.
    entries: BTreeMap<(u64, u64), Entry>,
    connections: Vec<Connection>,
    /// The highest term that each server named.
    terms: Vec<Term>,
    sequencer: ServerId,
    stale: Vec<Option<(u64, u64)>>,
    /// Bytes in the accounts, by server.
    held: Vec<usize>,
    /// No entry is due before this.
    quiet_until: Micros,
    counters: Counters,
    no_bytes: Digest,
}

impl ClientSession {
    /// A session that has sent nothing.
    ///
    /// # Panics
    ///
    /// If the number of servers is not `2f + 1`, or that of the keys not `n`.
    pub fn new(config: SessionConfig) -> ClientSession {
        let n = config.n;
        assert!(n == 2 * config.f + 1 && config.order_keys.len() == n, "a cluster of 2f + 1");
        ClientSession {
            session: config.session,
            last_count: 0,
            entries: BTreeMap::new(),
            connections: vec![Connection::Unknown; n],
            terms: vec![Term(0); n],
            sequencer: Term(0).sequencer(n),
            stale: vec![None; n],
            held: vec![0; n],
            quiet_until: Micros(u64::MAX),
            counters: Counters::default(),
            no_bytes: Digest::of(&[]),
            config,
        }
    }

    /// Takes one input, at the time `now`, and appends what is to be done to `out`.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Broadcast { ticket, payload } => self.on_broadcast(now, ticket, payload, out),
            Input::FromServer(server, _) if server.index() >= self.config.n => {
                self.counters.unknown += 1;
            }
            Input::FromServer(server, ToClient::Reply(reply)) => {
                let term = reply.term;
                self.on_reply(now, server, reply, out);
                self.on_term(server, term, out);
            }
            Input::FromServer(server, ToClient::Stale { session, count }) => {
                self.on_stale(now, server, (session, count), out);
            }
            Input::FromServer(server, ToClient::Refused { session, count, reason }) => {
                self.on_refused(now, server, (session, count), reason, out);
            }
            Input::FromServer(_, _) => self.counters.unknown += 1,
            Input::Connected(server) => self.on_connected(server, out),
            Input::Disconnected(server) => self.on_disconnected(server, out),
            Input::Tick => self.on_tick(now, out),
        }
    }

    /// When a [`Input::Tick`] is due; it may turn out to be too early, never too late.
    pub fn next_deadline(&self) -> Option<Micros> {
        (!self.entries.is_empty()).then_some(self.quiet_until)
    }

    /// Whether another order can be taken.
    pub fn has_room(&self) -> bool {
        self.entries.len() < self.config.max_in_flight
    }

    /// The session's number.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// What the session did and saw so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of replies that are kept from the server of which most are.
    pub fn held_bytes(&self) -> usize {
        self.held.iter().copied().max().unwrap_or(0)
    }

    /// What the servers said about each unanswered order, in their order.
    pub fn unanswered(&self) -> impl Iterator<Item = Unanswered> + '_ {
        self.entries.values().filter(|e| !e.failed).map(|entry| self.summary(entry))
    }

    fn summary(&self, entry: &Entry) -> Unanswered {
        let said = entry.accounts.iter().zip(&self.stale).map(|(account, stale)| {
            match (account.vote, account.refused, stale) {
                (Some((order, _)), _, _) => Said::Replied(order),
                (None, Some(reason), _) => Said::Refused(reason),
                (None, None, Some((session, _))) => Said::Stale(*session),
                (None, None, None) => Said::Nothing,
            }
        });
        let votes = entry.accounts.iter().filter_map(|a| a.vote);
        let alike = votes.map(|v| entry.support(v)).max().unwrap_or(0);
        Unanswered { ticket: entry.ticket, id: entry.message.id, said: said.collect(), alike }
    }

    fn on_broadcast(
        &mut self,
        now: Micros,
        ticket: Ticket,
        payload: Vec<u8>,
        out: &mut Vec<Output>,
    ) {
        let limit = self.config.max_payload_bytes;
        if payload.len() > limit {
            return out.push(Output::Failed { ticket, why: Failure::TooLarge { limit } });
        }
        if !self.has_room() {
            return out.push(Output::Failed { ticket, why: Failure::TooMany });
        }
        self.counters.orders += 1;
        self.enter(now, ticket, payload, out);
    }

    /// Gives a message the session's next count and sends it.
    fn enter(&mut self, now: Micros, ticket: Ticket, payload: Vec<u8>, out: &mut Vec<Output>) {
        let SessionConfig { client, cluster, order_keys, n, resend, .. } = &self.config;
        self.last_count += 1;
        let id = OrderId { client: *client, session: self.session, count: self.last_count };
        let mut entry = Entry {
            ticket,
            message: OrderMessage::new(cluster, id, payload, order_keys),
            accounts: vec![Account::default(); *n],
            agreed: None,
            resend_at: now.plus(*resend),
            resends: 0,
            spread: false,
            failed: false,
        };
        self.quiet_until = self.quiet_until.min(entry.resend_at);
        match self.connections[self.sequencer.index()] {
            Connection::Up => {
                out.push(Output::Send(self.sequencer, ToServer::Order(entry.message.clone())));
            }
            Connection::Down => {
                entry.spread(&self.connections, out);
            }
            Connection::Unknown => {}
        }
        self.entries.insert((id.session, id.count), entry);
    }

    fn on_reply(&mut self, now: Micros, server: ServerId, reply: Reply, out: &mut Vec<Output>) {
        let key = (reply.session, reply.count);
        let Some(entry) = self.entries.get_mut(&key).filter(|e| !e.failed) else {
            return self.count_unexpected(key);
        };
        // P5: bytes count only if they are what the server itself says they are.
        if matches!(&reply.body, Body::Here(bytes) if Digest::of(&[bytes]) != reply.digest) {
            self.counters.wrong += 1;
            return;
        }
        let account = &mut entry.accounts[server.index()];
        let value = (reply.order, reply.digest);
        let said_before = account.vote.is_some();
        if *account.vote.get_or_insert(value) != value {
            self.counters.wrong += 1;
            return;
        }
        let news = match reply.body {
            Body::Here(bytes) if account.bytes.is_none() => {
                let held = &mut self.held[server.index()];
                let agreed = entry.agreed.as_ref().is_some_and(|a| a.value == value);
                if agreed || *held + bytes.len() <= HELD_BYTES_PER_SERVER {
                    *held += bytes.len();
                    account.bytes = Some(bytes.into());
                }
                true
            }
            Body::Gone => !std::mem::replace(&mut account.gone, true),
            Body::Here(_) | Body::Elsewhere => false,
        };
        if said_before && !news {
            self.counters.duplicate += 1;
            return;
        }
        self.counters.replies += 1;
        self.settle(now, key, value, out);
    }

    fn count_unexpected(&mut self, (session, count): (u64, u64)) {
        // Earlier sessions of this client are over, whoever had them.
        let sent = session < self.session || (session == self.session && count <= self.last_count);
        let counter = if sent { &mut self.counters.late } else { &mut self.counters.unknown };
        *counter += 1;
    }

    /// P5: sees whether a vote for `value` made `f + 1`, and whether the bytes are there.
    fn settle(
        &mut self,
        now: Micros,
        key: (u64, u64),
        value: (OrderNumber, Digest),
        out: &mut Vec<Output>,
    ) {
        let (f, fetch) = (self.config.f, self.config.fetch);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.agreed.is_none() {
            if entry.support(value) <= f - usize::from(broken(Canary::P5Quorum)) {
                return;
            }
            let fetch_at = now.plus(fetch);
            entry.agreed = Some(Agreed { value, fetch_at, fetches: 0 });
            self.quiet_until = self.quiet_until.min(fetch_at);
        }
        let Some(Agreed { value, .. }) = entry.agreed else { return };
        let of_value = |a: &&Account| a.vote.is_some_and(|vote| vote.1 == value.1);
        let here = entry.accounts.iter().filter(of_value).any(|a| a.bytes.is_some());
        let empty = value.1 == self.no_bytes;
        // Gone: one of `f + 1` is correct, and all correct ones keep alike.
        if !here && !empty && entry.gone(value) <= f {
            return;
        }
        let Some(entry) = self.remove(key) else { return };
        let (ticket, id) = (entry.ticket, entry.message.id);
        let mut bytes = entry.accounts.into_iter().filter(|a| of_value(&a));
        let reply = bytes.find_map(|a| a.bytes).or(empty.then(Vec::new));
        out.push(Output::Done { ticket, id, order: value.0, reply });
        self.pass_failed(now, out);
    }

    fn remove(&mut self, key: (u64, u64)) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        for (held, account) in self.held.iter_mut().zip(&entry.accounts) {
            *held -= account.bytes.as_ref().map_or(0, Vec::len);
        }
        Some(entry)
    }

    /// The `f + 1`-th highest term that servers named: `f` liars cannot raise it above what a
    /// correct server said.
    fn on_term(&mut self, server: ServerId, term: Term, out: &mut Vec<Output>) {
        let named = &mut self.terms[server.index()];
        if term <= *named {
            return;
        }
        *named = term;
        let mut terms = self.terms.clone();
        terms.sort_unstable_by(|a, b| b.cmp(a));
        let sequencer = terms[self.config.f].sequencer(self.config.n);
        if sequencer == self.sequencer {
            return;
        }
        self.sequencer = sequencer;
        // The new sequencer may know nothing of the orders that went to the old one alone.
        match self.connections[sequencer.index()] {
            Connection::Up => self.offer(sequencer, |entry| !entry.spread, out),
            Connection::Down => self.spread_all(out),
            Connection::Unknown => {}
        }
    }

    fn on_stale(
        &mut self,
        now: Micros,
        server: ServerId,
        newest: (u64, u64),
        out: &mut Vec<Output>,
    ) {
        // A correct server that names our own session means an older one's late copy: nothing of
        // this session is stale, and to number it anew could get it delivered twice.
        if newest.0 <= self.session {
            self.counters.late += 1;
            return;
        }
        self.stale[server.index()] = Some(newest);
        let equal = self.stale.iter().filter(|s| **s == Some(newest)).count();
        if equal > self.config.f && newest.0 < u64::MAX {
            let leap = if broken(Canary::P1Leap) { 0 } else { self.config.leap };
            let leap = 1 + u64::from(leap);
            self.new_session(now, newest.0.saturating_add(leap), out);
        }
    }

    fn on_refused(
        &mut self,
        now: Micros,
        server: ServerId,
        key: (u64, u64),
        reason: Refusal,
        out: &mut Vec<Output>,
    ) {
        let Some(entry) = self.entries.get_mut(&key).filter(|e| !e.failed) else {
            return self.count_unexpected(key);
        };
        let account = &mut entry.accounts[server.index()];
        if account.refused.is_some() || entry.agreed.is_some() {
            self.counters.duplicate += 1;
            return;
        }
        account.refused = Some(reason);
        let refusals = || entry.accounts.iter().filter_map(|a| a.refused);
        let servers = refusals().count();
        if servers <= self.config.f {
            return;
        }
        let bad_macs = refusals().filter(|r| *r == Refusal::BadMac).count();
        let reason = if bad_macs * 2 >= servers { Refusal::BadMac } else { Refusal::TooLarge };
        entry.failed = true;
        let (ticket, why) = (entry.ticket, Failure::Refused { servers, reason });
        out.push(Output::Failed { ticket, why });
        self.pass_failed(now, out);
    }

    /// Starts a new session once the oldest order that is not agreed on is one that failed: those
    /// behind it can never be delivered in this one (C2), those before it still can.
    fn pass_failed(&mut self, now: Micros, out: &mut Vec<Output>) {
        let oldest = self.entries.values().find(|e| e.agreed.is_none());
        if oldest.is_some_and(|e| e.failed) {
            self.new_session(now, self.session.saturating_add(1), out);
        }
    }

    /// Gives the orders that are not agreed on new counts, in their order, in a new session. An
    /// order that is agreed on was delivered: it keeps its name, and only its bytes are missing.
    fn new_session(&mut self, now: Micros, session: u64, out: &mut Vec<Output>) {
        if session <= self.session {
            return; // The last session that there can be has begun.
        }
        let open = self.entries.iter().filter(|(_, e)| e.agreed.is_none());
        let open: Vec<_> = open.map(|(key, _)| *key).collect();
        self.session = session;
        self.last_count = 0;
        self.stale.fill(None);
        self.counters.sessions += 1;
        let moved: Vec<_> = open.into_iter().filter_map(|key| self.remove(key)).collect();
        for entry in moved.into_iter().filter(|e| !e.failed) {
            self.counters.resends += 1;
            self.enter(now, entry.ticket, entry.message.payload, out);
        }
    }

    fn on_connected(&mut self, server: ServerId, out: &mut Vec<Output>) {
        self.connections[server.index()] = Connection::Up;
        self.forget_words_of(server);
        let sequencer = server == self.sequencer;
        self.offer(server, |entry| sequencer || entry.spread, out);
    }

    /// A server that comes back may have been cleaned since: what it said of orders that are not
    /// agreed on is void. It still has one voice.
    fn forget_words_of(&mut self, server: ServerId) {
        let i = server.index();
        for entry in self.entries.values_mut().filter(|e| e.agreed.is_none()) {
            let said = std::mem::take(&mut entry.accounts[i]);
            self.held[i] -= said.bytes.map_or(0, |bytes| bytes.len());
        }
        self.stale[i] = None;
        self.terms[i] = Term(0);
    }

    fn on_disconnected(&mut self, server: ServerId, out: &mut Vec<Output>) {
        self.connections[server.index()] = Connection::Down;
        if server == self.sequencer {
            self.spread_all(out);
        }
    }

    /// Sends a server the orders, in their order, that it has not answered.
    fn offer(&mut self, server: ServerId, which: impl Fn(&Entry) -> bool, out: &mut Vec<Output>) {
        for entry in self.entries.values().filter(|e| e.open_to(server) && which(e)) {
            self.counters.resends += 1;
            out.push(Output::Send(server, ToServer::Order(entry.message.clone())));
        }
    }

    fn spread_all(&mut self, out: &mut Vec<Output>) {
        for entry in self.entries.values_mut().filter(|e| !e.spread) {
            self.counters.resends += entry.spread(&self.connections, out);
        }
    }

    fn on_tick(&mut self, now: Micros, out: &mut Vec<Output>) {
        if now < self.quiet_until {
            return;
        }
        let SessionConfig { resend, fetch, .. } = self.config;
        let mut quiet_until = Micros(u64::MAX);
        for entry in self.entries.values_mut().filter(|e| !e.failed) {
            if entry.resend_at <= now {
                self.counters.resends += entry.spread(&self.connections, out);
                entry.resends += 1;
                entry.resend_at = now.plus(doubled(resend, entry.resends));
            }
            if entry.agreed.as_ref().is_some_and(|a| a.fetch_at <= now) {
                self.counters.fetches += entry.fetch(now, fetch, &self.connections, out);
            }
            quiet_until = quiet_until.min(entry.resend_at);
            quiet_until =
                entry.agreed.as_ref().map_or(quiet_until, |a| quiet_until.min(a.fetch_at));
        }
        self.quiet_until = quiet_until;
    }
}

impl Entry {
    fn support(&self, value: (OrderNumber, Digest)) -> usize {
        self.accounts.iter().filter(|a| a.vote == Some(value)).count()
    }

    fn gone(&self, value: (OrderNumber, Digest)) -> usize {
        self.accounts.iter().filter(|a| a.gone && a.vote == Some(value)).count()
    }

    /// Whether it makes sense to send the order to a server: one that replied has delivered it.
    fn open_to(&self, server: ServerId) -> bool {
        !self.failed && self.accounts[server.index()].vote.is_none()
    }

    /// Sends the order to every server that may still act on it; returns to how many.
    fn spread(&mut self, connections: &[Connection], out: &mut Vec<Output>) -> u64 {
        self.spread = true;
        let mut copies = 0;
        for server in ServerId::all(connections.len()) {
            if connections[server.index()] == Connection::Up && self.open_to(server) {
                out.push(Output::Send(server, ToServer::Order(self.message.clone())));
                copies += 1;
            }
        }
        copies
    }

    /// Asks the next of the agreeing servers for the bytes; returns how many were asked.
    fn fetch(
        &mut self,
        now: Micros,
        interval: Micros,
        connections: &[Connection],
        out: &mut Vec<Output>,
    ) -> u64 {
        let Some(agreed) = &mut self.agreed else { return 0 };
        let n = connections.len();
        let first = agreed.fetches as usize;
        let able = |i: &usize| {
            let account = &self.accounts[*i];
            connections[*i] == Connection::Up && account.vote == Some(agreed.value) && !account.gone
        };
        let next = (first..first + n).map(|i| i % n).find(able);
        // The first round goes at full speed; it passes at least one correct server.
        agreed.fetch_at = now.plus(doubled(interval, agreed.fetches / n as u32));
        let Some(next) = next else {
            agreed.fetches = agreed.fetches.saturating_add(1);
            return 0;
        };
        let skipped = (next + n - first % n) % n;
        agreed.fetches = agreed.fetches.saturating_add(1 + skipped as u32);
        let OrderId { session, count, .. } = self.message.id;
        out.push(Output::Send(ServerId(next as u16), ToServer::FetchReply { session, count }));
        1
    }
}

fn doubled(interval: Micros, times: u32) -> Micros {
    Micros(interval.0.saturating_mul(1 << times.min(MAX_DOUBLINGS)))
}

#[cfg(test)]
mod tests;
