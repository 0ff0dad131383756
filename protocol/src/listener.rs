//! A listener of the one order, as a pure state machine: messages 1, 2, 3, ... out of the words of
//! servers of which `f` may lie.
//!
//! Every server is asked for its deliveries from the next wanted one on. An order number counts
//! when `f + 1` servers name the same order, digest and delivery time for it (P5); its payload must
//! be of that digest, and is asked for from the agreeing servers in turn if it does not come by
//! itself. What is complete leaves in order, as fast as the caller has room for it.
//!
//! What is ahead of the next wanted one is kept within a window of numbers, and of bytes per
//! server. What does not fit is dropped and noted, and once there is room that server is asked to
//! go on from there: so a server can neither flood the listener nor make it miss anything, and the
//! next wanted delivery is always taken.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Micros, OrderId, OrderNumber, ServerId};
use shared_registers::order;

use crate::messages::{Body, Delivery, ToClient, ToServer};

/// How many order numbers, from the next wanted one on, are kept track of.
pub const WINDOW_ORDERS: u64 = 1024;
/// Bytes of payload that are kept from one server for orders after the next wanted one.
pub const HELD_BYTES_PER_SERVER: usize = 32 << 20;
/// Missing payloads are asked for only so close to the next wanted order.
const FETCH_AHEAD: u64 = 64;
/// The time to the next request for the same payload doubles at most so often.
const MAX_DOUBLINGS: u32 = 6;
/// A server that went past the next wanted order without naming it is asked again so often.
const STALL: Micros = Micros::from_ms(1000);

/// What a [`Listener`] is made with.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// How many servers there are.
    pub n: usize,
    /// How many of them may be faulty.
    pub f: usize,
    /// The cluster.
    pub cluster: ClusterId,
    /// The first delivery that is wanted; the first of all is 1.
    pub from: OrderNumber,
    /// `T_fetch`: how long after the agreement a payload that is missing is asked for.
    pub fetch: Micros,
}

/// What happens to a listener.
#[derive(Debug)]
pub enum Input {
    /// A message came, authenticated, from a server.
    FromServer(ServerId, ToClient),
    /// A server can be sent to from now on.
    Connected(ServerId),
    /// A server's connection was lost.
    Disconnected(ServerId),
    /// The caller can take more, on top of what it could before: deliveries leave while there is
    /// room for a message and for a byte. At first there is none.
    Room {
        /// So many messages.
        messages: u64,
        /// And so many bytes of payload.
        bytes: u64,
    },
    /// Time has passed.
    Tick,
}

/// What a listener wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to a connected server.
    Send(ServerId, ToServer),
    /// The next delivery.
    Deliver(Delivered),
    /// `f + 1` servers keep the next wanted delivery no longer, nor any before `first`. The
    /// listener has ended.
    TooOld {
        /// The oldest that may be had.
        first: OrderNumber,
    },
}

/// A message, at its place in the one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place.
    pub order: OrderNumber,
    /// Who sent it, and which of theirs it is.
    pub id: OrderId,
    /// The delivery time, by the trusted clock (C2): microseconds since 1970.
    pub time: Micros,
    /// The message.
    pub payload: Vec<u8>,
}

/// Counts of what a listener did and saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages delivered.
    pub delivered: u64,
    /// Requests for a payload.
    pub fetches: u64,
    /// Subscriptions after the first of each connection.
    pub resubscribed: u64,
    /// Ignored: delivered already; the last servers' words always are.
    pub late: u64,
    /// Ignored: said before by the same server.
    pub duplicate: u64,
    /// Dropped, to be sent again: too far ahead.
    pub ahead: u64,
    /// Ignored: contradicts the same server's earlier words, or a payload that does not match.
    pub wrong: u64,
    /// Ignored: not for a listener.
    pub unknown: u64,
}

/// What a server says of an order number.
type Vote = (OrderId, Digest, Micros);

#[derive(Clone, Default)]
struct Account {
    vote: Option<Vote>,
    payload: Option<Vec<u8>>,
    gone: bool,
}

/// What the servers said of one order number.
struct Slot {
    accounts: Vec<Account>,
    agreed: Option<Vote>,
    fetches: u32,
}

/// A server, as a source of deliveries.
#[derive(Clone, Default)]
struct Source {
    connected: bool,
    /// The oldest delivery of its stream that was dropped.
    lost: Option<OrderNumber>,
    /// The newest that it named since it was last asked.
    newest: OrderNumber,
    /// It keeps nothing before this.
    too_old: Option<OrderNumber>,
    /// Bytes that are kept from it.
    held: usize,
}

/// The state machine: see the [module](self).
pub struct Listener {
    config: ListenerConfig,
    next: OrderNumber,
    slots: BTreeMap<OrderNumber, Slot>,
    sources: Vec<Source>,
    /// When to ask for which payload.
    fetches: BTreeSet<(Micros, OrderNumber)>,
    /// When to look for servers that left something out.
    stall_at: Micros,
    /// When `f + 1` servers' word that the next is too old is passed on.
    too_old_at: Option<Micros>,
    room_messages: u64,
    room_bytes: i64,
    ended: bool,
    counters: Counters,
}

impl Listener {
    /// A listener that has heard nothing.
    ///
    /// # Panics
    ///
    /// If the number of servers is not `2f + 1`.
    pub fn new(config: ListenerConfig) -> Listener {
        assert!(config.n == 2 * config.f + 1, "a cluster of 2f + 1");
        Listener {
            next: config.from.max(OrderNumber(1)),
            slots: BTreeMap::new(),
            sources: vec![Source::default(); config.n],
            fetches: BTreeSet::new(),
            stall_at: Micros(0),
            too_old_at: None,
            room_messages: 0,
            room_bytes: 0,
            ended: false,
            counters: Counters::default(),
            config,
        }
    }

    /// Takes one input, at the time `now`, and appends what is to be done to `out`.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Vec<Output>) {
        if self.ended {
            return;
        }
        match input {
            Input::FromServer(server, _) if server.index() >= self.config.n => {
                self.counters.unknown += 1;
            }
            Input::FromServer(server, ToClient::Delivery(delivery)) => {
                self.on_delivery(now, server, delivery);
            }
            Input::FromServer(server, ToClient::TooOld { first }) => {
                self.on_too_old(server, first);
            }
            Input::FromServer(_, _) => self.counters.unknown += 1,
            Input::Connected(server) => {
                self.sources[server.index()].connected = true;
                self.subscribe(server, self.next, out);
            }
            Input::Disconnected(server) => {
                let source = &mut self.sources[server.index()];
                *source = Source { held: source.held, ..Source::default() };
            }
            Input::Room { messages, bytes } => {
                self.room_messages = self.room_messages.saturating_add(messages);
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.room_bytes = self.room_bytes.saturating_add(bytes);
            }
            Input::Tick => self.on_tick(now, out),
        }
        self.deliver(now, out);
        self.resubscribe(out);
        self.judge_too_old(now, out);
    }

    /// When a [`Input::Tick`] is due; it may turn out to be too early, never too late.
    pub fn next_deadline(&self) -> Option<Micros> {
        if self.ended {
            return None;
        }
        let fetch = self.fetches.first().map(|(at, _)| *at);
        let past = self.sources.iter().any(|source| source.newest > self.next);
        let stall = (past || !self.slots.is_empty()).then_some(self.stall_at);
        [fetch, stall, self.too_old_at].into_iter().flatten().min()
    }

    /// The next delivery that is wanted.
    pub fn next(&self) -> OrderNumber {
        self.next
    }

    /// What the listener did and saw so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn subscribe(&mut self, server: ServerId, from: OrderNumber, out: &mut Vec<Output>) {
        let source = &mut self.sources[server.index()];
        source.lost = None;
        source.newest = OrderNumber(0);
        out.push(Output::Send(server, ToServer::Subscribe { from }));
    }

    fn on_delivery(&mut self, now: Micros, server: ServerId, delivery: Delivery) {
        let Delivery { order, id, digest, time, payload } = delivery;
        let Some(ahead) = order.0.checked_sub(self.next.0) else {
            self.counters.late += 1;
            return;
        };
        let source = &mut self.sources[server.index()];
        source.newest = source.newest.max(order);
        if ahead >= WINDOW_ORDERS {
            self.counters.ahead += 1;
            source.drop_from(order);
            return;
        }
        let wrong = |bytes: &[u8]| order::digest(&self.config.cluster, id, bytes) != digest;
        if matches!(&payload, Body::Here(bytes) if wrong(bytes)) {
            self.counters.wrong += 1;
            return;
        }
        if self.slots.is_empty() {
            self.stall_at = now.plus(STALL);
        }
        let slot = self.slots.entry(order).or_insert_with(|| Slot::new(self.config.n));
        let vote = (id, digest, time);
        let known_payload = slot.payload_of(digest);
        let account = &mut slot.accounts[server.index()];
        let said_before = account.vote.is_some();
        if *account.vote.get_or_insert(vote) != vote {
            self.counters.wrong += 1;
            return;
        }
        if source.lost == Some(order) {
            source.lost = None;
        }
        let news = match payload {
            Body::Here(bytes) if !known_payload => {
                if ahead > 0 && source.held + bytes.len() > HELD_BYTES_PER_SERVER {
                    self.counters.ahead += 1;
                    source.drop_from(order);
                } else {
                    source.held += bytes.len();
                    account.payload = Some(bytes);
                }
                true
            }
            Body::Gone => !std::mem::replace(&mut account.gone, true),
            Body::Here(_) | Body::Elsewhere => false,
        };
        if said_before && !news {
            self.counters.duplicate += 1;
        }
        // P5: believed when `f + 1` servers sent the same.
        if slot.agreed.is_none() && slot.support(vote) > self.config.f {
            slot.agreed = Some(vote);
            self.fetches.insert((now.plus(self.config.fetch), order));
        }
    }

    fn on_too_old(&mut self, server: ServerId, first: OrderNumber) {
        let source = &mut self.sources[server.index()];
        source.too_old = Some(first);
        if first <= self.next {
            // It answers an earlier subscription; by now it has what is wanted.
            self.counters.late += 1;
        }
    }

    /// Hands out what is complete, in order, while the caller has room.
    fn deliver(&mut self, now: Micros, out: &mut Vec<Output>) {
        while self.room_messages > 0 && self.room_bytes > 0 && self.next_is_complete() {
            let order = self.next;
            let Some(slot) = self.slots.remove(&order) else { return };
            let Some((id, digest, time)) = slot.agreed else { return };
            let mut payload = None;
            for (source, account) in self.sources.iter_mut().zip(slot.accounts) {
                source.held -= account.payload.as_ref().map_or(0, Vec::len);
                let right = account.vote.is_some_and(|vote| vote.1 == digest);
                payload = payload.or(account.payload.filter(|_| right));
            }
            let Some(payload) = payload else { return };
            self.room_messages -= 1;
            self.room_bytes = self.room_bytes.saturating_sub(payload.len() as i64);
            self.counters.delivered += 1;
            self.next = order.next();
            self.stall_at = now.plus(STALL);
            out.push(Output::Deliver(Delivered { order, id, time, payload }));
        }
    }

    fn next_is_complete(&self) -> bool {
        self.slots.get(&self.next).is_some_and(Slot::is_complete)
    }

    /// Asks servers whose stream was dropped, or that had nothing so old, to go on, now that there
    /// is room.
    fn resubscribe(&mut self, out: &mut Vec<Output>) {
        let next = self.next;
        for server in ServerId::all(self.config.n) {
            let source = &mut self.sources[server.index()];
            if source.too_old.is_some_and(|first| first <= next) {
                source.too_old = None;
                source.drop_from(next);
            }
            let Some(lost) = source.lost.filter(|_| source.connected) else { continue };
            let from = lost.max(next);
            // Half of the room must be free, else it would be dropped again soon.
            let near = from.0 - next.0 <= WINDOW_ORDERS / 2;
            if near && (from == next || source.held <= HELD_BYTES_PER_SERVER / 2) {
                self.counters.resubscribed += 1;
                self.subscribe(server, from, out);
            }
        }
    }

    /// Passes on that the next wanted delivery is no longer kept, when `f + 1` servers say so: one
    /// of them is correct. The rest get `T_fetch` to say their `first`, for a better answer.
    fn judge_too_old(&mut self, now: Micros, out: &mut Vec<Output>) {
        let claims = self.sources.iter().filter_map(|source| source.too_old);
        let mut claims: Vec<_> = claims.filter(|first| *first > self.next).collect();
        if claims.len() <= self.config.f || self.next_is_complete() {
            self.too_old_at = None;
            return;
        }
        let connected = self.sources.iter().filter(|source| source.connected).count();
        let due = *self.too_old_at.get_or_insert(now.plus(self.config.fetch));
        if now < due && claims.len() < connected {
            return;
        }
        // `f + 1` servers say that nothing before this is kept. A larger claim may be a liar's, and
        // would make the caller skip what is there; with all `n` here it is the median.
        claims.sort_unstable_by(|a, b| b.cmp(a));
        out.push(Output::TooOld { first: claims[self.config.f] });
        self.ended = true;
        self.slots.clear();
        self.fetches.clear();
    }

    fn on_tick(&mut self, now: Micros, out: &mut Vec<Output>) {
        while let Some(&(at, order)) = self.fetches.first() {
            if at > now {
                break;
            }
            self.fetches.pop_first();
            self.fetch(now, order, out);
        }
        if now < self.stall_at {
            return;
        }
        self.stall_at = now.plus(STALL);
        if self.next_is_complete() {
            return; // The caller has no room.
        }
        // A stream has no holes: who went past the next one has left it out.
        let next = self.next;
        let voted = |i: usize| self.slots.get(&next).is_some_and(|s| s.accounts[i].vote.is_some());
        let voted: Vec<_> = (0..self.config.n).map(voted).collect();
        for (source, voted) in self.sources.iter_mut().zip(voted) {
            if source.connected && source.newest > next && !voted {
                source.drop_from(next);
            }
        }
    }

    /// Asks the next of the agreeing servers for a payload, if it is still missing.
    fn fetch(&mut self, now: Micros, order: OrderNumber, out: &mut Vec<Output>) {
        let Some(slot) = self.slots.get_mut(&order).filter(|slot| !slot.is_complete()) else {
            return;
        };
        let Some(agreed) = slot.agreed else { return };
        let n = self.config.n;
        let interval = self.config.fetch.0 << (slot.fetches / n as u32).min(MAX_DOUBLINGS);
        self.fetches.insert((now.plus(Micros(interval)), order));
        let first = slot.fetches as usize;
        let able = |i: &usize| {
            let (source, account) = (&self.sources[*i], &slot.accounts[*i]);
            let room = order == self.next || source.held <= HELD_BYTES_PER_SERVER / 2;
            source.connected && account.vote == Some(agreed) && !account.gone && room
        };
        if order.0 - self.next.0 < FETCH_AHEAD
            && let Some(server) = (first..first + n).map(|i| i % n).find(able)
        {
            let skipped = (server + n - first % n) % n;
            slot.fetches = slot.fetches.saturating_add(skipped as u32);
            self.counters.fetches += 1;
            out.push(Output::Send(ServerId(server as u16), ToServer::FetchDelivery { order }));
        }
        slot.fetches = slot.fetches.saturating_add(1);
        let gone = slot.accounts.iter().filter(|a| a.gone && a.vote == Some(agreed)).count();
        if order == self.next && gone > self.config.f {
            // Then it is too old by now: let each say from where on it keeps them.
            for (source, account) in self.sources.iter_mut().zip(&mut slot.accounts) {
                if std::mem::take(&mut account.gone) {
                    source.drop_from(order);
                }
            }
        }
    }
}

impl Source {
    /// Notes that its stream was dropped at `order`.
    fn drop_from(&mut self, order: OrderNumber) {
        self.lost = Some(self.lost.map_or(order, |lost| lost.min(order)));
    }
}

impl Slot {
    fn new(n: usize) -> Slot {
        Slot { accounts: vec![Account::default(); n], agreed: None, fetches: 0 }
    }

    fn support(&self, vote: Vote) -> usize {
        self.accounts.iter().filter(|a| a.vote == Some(vote)).count()
    }

    /// Whether the payload of `digest` is here.
    fn payload_of(&self, digest: Digest) -> bool {
        let is_it = |a: &Account| a.payload.is_some() && a.vote.is_some_and(|v| v.1 == digest);
        self.accounts.iter().any(is_it)
    }

    fn is_complete(&self) -> bool {
        self.agreed.is_some_and(|vote| self.payload_of(vote.1))
    }
}

#[cfg(test)]
mod tests;
