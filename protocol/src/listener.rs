//! A listener of the one order, as a pure state machine: messages 1, 2, 3, ... out of the words of
//! servers of which `f` may lie.
//!
//! Every server is asked for its deliveries from the next wanted one on. An order number counts
//! when `f + 1` servers name the same order, digest and delivery time for it (P5); its payload must
//! be of that digest, and is asked for from the agreeing servers in turn if it does not come by
//! itself. What is complete leaves in order, as fast as the caller has room for it.
//!
//! A server may send as much as it has credit for: a window of messages and of bytes. It gets
//! credit back, about half a window at a time, for what has left the listener. So correct servers
//! never send what the listener cannot keep, however slow its caller is, and send everything once.
//! They name one delivery after the other without holes, so the credit in messages is a limit to
//! the order numbers that a server may name; what is beyond it is a liar's, and ignored. A server
//! is asked to start again only on a new connection, after it left one out, and when it had nothing
//! so old.
//!
//! What earlier subscriptions on the same connection brought on their way needs no care: it is in
//! order and is taken, or it is not and is ignored, and then the new run comes from its start. The
//! worst of it is bytes of credit that are given back and were not taken; the next subscription
//! sets that right, and memory is bounded by what is held, not by credit.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Micros, OrderId, OrderNumber, ServerId};
use shared_registers::limits::MAX_PAYLOAD_BYTES;
use shared_registers::order;

use crate::limits::FETCH_AHEAD;
use crate::messages::{Body, Delivery, ToClient, ToServer};
use crate::replica::Queue;

pub use crate::limits::{HELD_BYTES_PER_SERVER, WINDOW_BYTES, WINDOW_MESSAGES};

/// The time to the next request for the same payload doubles at most so often.
const MAX_DOUBLINGS: u32 = 6;
/// A server that left an order out is asked again after so long, and so often.
const ASK_AGAIN: Micros = Micros::from_ms(1000);

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
    /// Ignored: sent without credit for it, or for an earlier subscription.
    pub beyond_credit: u64,
    /// Ignored: the server left out the one before it, or it is of an earlier subscription.
    pub left_out: u64,
    /// Payloads that were not kept, to be asked for later: more than one server may have here.
    pub beyond_hold: u64,
    /// Ignored: contradicts the same server's earlier words, or a payload that does not match.
    pub wrong: u64,
    /// Ignored: not for a listener, or of a server that is not connected.
    pub unknown: u64,
}

/// What a server says of an order number.
type Vote = (OrderId, Digest, Micros);

#[derive(Clone, Default)]
struct Account {
    vote: Option<Vote>,
    payload: Option<Vec<u8>>,
    gone: bool,
    /// What its deliveries of this order took of its credit.
    cost: u64,
}

/// What the servers said of one order number.
struct Slot {
    accounts: Vec<Account>,
    agreed: Option<Vote>,
    fetches: u32,
    /// When its payload is asked for, once it is agreed on.
    fetch_at: Micros,
}

/// A server, as a source of deliveries.
#[derive(Clone, Default)]
struct Source {
    connected: bool,
    /// What it will name next, if it leaves nothing out.
    expected: OrderNumber,
    /// What it has no credit to name any more.
    limit: OrderNumber,
    /// Bytes that it may be given credit for.
    returned: u64,
    /// It left something out, and will be asked again at this time.
    ask_again_at: Option<Micros>,
    /// It had `expected` no longer, and nothing before this; its subscription has ended.
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
            Input::FromServer(server, _) if !self.is_connected(server) => {
                self.counters.unknown += 1;
            }
            Input::FromServer(server, ToClient::Delivery(delivery)) => {
                self.on_delivery(now, server, delivery);
            }
            Input::FromServer(server, ToClient::TooOld { from, first }) => {
                self.on_too_old(server, from, first);
            }
            Input::FromServer(_, _) => self.counters.unknown += 1,
            Input::Connected(server) => {
                self.sources[server.index()].connected = true;
                self.forget_words_of(server);
                self.subscribe(server, out);
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
        self.deliver(out);
        self.rejoin(out);
        self.give_credit(out);
        self.judge_too_old(now, out);
    }

    fn is_connected(&self, server: ServerId) -> bool {
        self.sources.get(server.index()).is_some_and(|source| source.connected)
    }

    /// When a [`Input::Tick`] is due; it may turn out to be too early, never too late.
    pub fn next_deadline(&self) -> Option<Micros> {
        if self.ended {
            return None;
        }
        let fetch = self.fetches.first().map(|(at, _)| *at);
        let ask_again = self.sources.iter().filter_map(|source| source.ask_again_at).min();
        [fetch, ask_again, self.too_old_at].into_iter().flatten().min()
    }

    /// The next delivery that is wanted.
    pub fn next(&self) -> OrderNumber {
        self.next
    }

    /// How many order numbers are kept track of, and how many bytes of payload are kept from the
    /// server of which most are.
    pub fn fill(&self) -> (usize, usize) {
        let held = self.sources.iter().map(|source| source.held).max();
        (self.slots.len(), held.unwrap_or(0))
    }

    /// Its collections: whoever drives a listener can see that none grows past its bound.
    pub fn queues(&self) -> [Queue; 3] {
        let queue = |name, length, bound| Queue { name, length, bound };
        let (window, (slots, held)) = (WINDOW_MESSAGES as usize, self.fill());
        [
            queue("order numbers that a listener keeps track of", slots, window),
            // The next wanted one is kept in any case.
            queue("bytes kept of one server", held, HELD_BYTES_PER_SERVER + MAX_PAYLOAD_BYTES),
            queue("payloads that may be asked for", self.fetches.len(), window),
        ]
    }

    /// What the listener did and saw so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Has a server start at the next wanted delivery, with a full window of credit.
    fn subscribe(&mut self, server: ServerId, out: &mut Vec<Output>) {
        let from = self.next;
        let limit = from.0.saturating_add(WINDOW_MESSAGES);
        let source = &mut self.sources[server.index()];
        *source = Source {
            connected: true,
            expected: from,
            limit: OrderNumber(limit),
            held: source.held,
            ..Source::default()
        };
        // The new credit does not depend on what the old was spent for.
        self.slots.values_mut().for_each(|slot| slot.accounts[server.index()].cost = 0);
        let messages = limit - from.0;
        out.push(Output::Send(server, ToServer::Subscribe { from, messages, bytes: WINDOW_BYTES }));
    }

    fn subscribe_again(&mut self, server: ServerId, out: &mut Vec<Output>) {
        self.counters.resubscribed += 1;
        self.subscribe(server, out);
    }

    fn on_delivery(&mut self, now: Micros, server: ServerId, delivery: Delivery) {
        let order = delivery.order;
        let named = |slot: &Slot| slot.accounts[server.index()].vote.is_some();
        let named = self.slots.get(&order).is_some_and(named);
        let source = &mut self.sources[server.index()];
        if order >= source.limit {
            self.counters.beyond_credit += 1;
            return;
        }
        if order == source.expected {
            source.expected = order.next();
            source.ask_again_at = None;
        } else if order > source.expected && !named {
            self.counters.left_out += 1;
            source.ask_again_at.get_or_insert(now.plus(ASK_AGAIN));
            return;
        }
        if order < self.next {
            source.returned += delivery.cost();
            self.counters.late += 1;
            return;
        }
        self.take(now, server, delivery);
    }

    /// Takes the word of a server, which is within its credit and not late.
    fn take(&mut self, now: Micros, server: ServerId, delivery: Delivery) {
        let cost = delivery.cost();
        let Delivery { order, id, digest, time, payload } = delivery;
        let source = &mut self.sources[server.index()];
        let wrong = |bytes: &[u8]| order::digest(&self.config.cluster, id, bytes) != digest;
        if matches!(&payload, Body::Here(bytes) if wrong(bytes)) {
            source.returned += cost;
            self.counters.wrong += 1;
            return;
        }
        let slot = self.slots.entry(order).or_insert_with(|| Slot::new(self.config.n));
        let vote = (id, digest, time);
        let known_payload = slot.payload_of(digest);
        let account = &mut slot.accounts[server.index()];
        account.cost += cost;
        let said_before = account.vote.is_some();
        if *account.vote.get_or_insert(vote) != vote {
            self.counters.wrong += 1;
            return;
        }
        let news = match payload {
            Body::Here(bytes) if !known_payload => {
                let full = source.held + bytes.len() > HELD_BYTES_PER_SERVER;
                if full && order > self.next {
                    self.counters.beyond_hold += 1;
                } else {
                    source.held += bytes.len();
                    account.payload = Some(bytes.into());
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
        let short = usize::from(broken(Canary::P5ListenerQuorum));
        if slot.agreed.is_none() && slot.support(vote) > self.config.f - short {
            slot.agreed = Some(vote);
            slot.fetch_at = now.plus(self.config.fetch);
            self.fetches.insert((slot.fetch_at, order));
        }
    }

    /// A server that comes back may have been cleaned since: what it said of orders that are not
    /// agreed on is void, and what it sent before took nothing of its new credit.
    fn forget_words_of(&mut self, server: ServerId) {
        let source = &mut self.sources[server.index()];
        for slot in self.slots.values_mut() {
            let account = &mut slot.accounts[server.index()];
            account.cost = 0;
            if slot.agreed.is_none() {
                let said = std::mem::take(account);
                source.held -= said.payload.map_or(0, |bytes| bytes.len());
            }
        }
    }

    fn on_too_old(&mut self, server: ServerId, from: OrderNumber, first: OrderNumber) {
        let source = &mut self.sources[server.index()];
        let slot = self.slots.get_mut(&from);
        let account = slot.map(|slot| &mut slot.accounts[server.index()]);
        if first <= from {
            self.counters.wrong += 1;
        } else if from == source.expected {
            source.too_old = Some(first);
            source.ask_again_at = None;
        } else if let Some(account) = account.filter(|account| account.vote.is_some()) {
            // It was asked for the payload.
            account.gone = true;
        } else {
            self.counters.late += 1;
        }
    }

    /// Hands out what is complete, in order, while the caller has room.
    fn deliver(&mut self, out: &mut Vec<Output>) {
        while self.room_messages > 0 && self.room_bytes > 0 && self.next_is_complete() {
            let order = self.next;
            let Some(slot) = self.slots.remove(&order) else { return };
            // What has left in time must not wait there for the time to ask for it.
            self.fetches.remove(&(slot.fetch_at, order));
            let Some((id, digest, time)) = slot.agreed else { return };
            let mut payload = None;
            for (source, account) in self.sources.iter_mut().zip(slot.accounts) {
                source.held -= account.payload.as_ref().map_or(0, Vec::len);
                source.returned += account.cost;
                let right = account.vote.is_some_and(|vote| vote.1 == digest);
                payload = payload.or(account.payload.filter(|_| right));
            }
            let Some(payload) = payload else { return };
            self.room_messages -= 1;
            self.room_bytes = self.room_bytes.saturating_sub(payload.len() as i64);
            self.counters.delivered += 1;
            self.next = order.next();
            out.push(Output::Deliver(Delivered { order, id, time, payload }));
        }
    }

    fn next_is_complete(&self) -> bool {
        self.slots.get(&self.next).is_some_and(Slot::is_complete)
    }

    /// Has servers start again that had nothing so old, now that the next is not too old for them.
    fn rejoin(&mut self, out: &mut Vec<Output>) {
        for server in ServerId::all(self.config.n) {
            let too_old = self.sources[server.index()].too_old;
            if too_old.is_some_and(|first| first <= self.next) {
                self.subscribe_again(server, out);
            }
        }
    }

    /// Gives servers credit for what has left or was of no use, once it is worth a message. What a
    /// server has not named it cannot have spent, so nobody gets more than a window.
    fn give_credit(&mut self, out: &mut Vec<Output>) {
        for (server, source) in ServerId::all(self.config.n).zip(&mut self.sources) {
            if !source.connected || source.too_old.is_some() {
                continue;
            }
            let limit = source.expected.min(self.next).0.saturating_add(WINDOW_MESSAGES);
            let messages = limit - source.limit.0;
            if messages >= WINDOW_MESSAGES / 2 || source.returned >= WINDOW_BYTES / 2 {
                source.limit = OrderNumber(limit);
                let bytes = std::mem::take(&mut source.returned);
                out.push(Output::Send(server, ToServer::Credit { messages, bytes }));
            }
        }
    }

    /// Passes on that the next wanted delivery is no longer kept, when `f + 1` servers say so: one
    /// of them is correct. The rest get `T_fetch` to say their `first`, for a better answer.
    fn judge_too_old(&mut self, now: Micros, out: &mut Vec<Output>) {
        // Who named the next wanted one and has not the one after that says nothing of it.
        let there = self.sources.iter().filter(|source| source.expected <= self.next);
        let claims = there.filter_map(|source| source.too_old);
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
        for server in ServerId::all(self.config.n) {
            let source = &self.sources[server.index()];
            if source.ask_again_at.is_some_and(|at| at <= now) {
                self.subscribe_again(server, out);
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
        slot.fetch_at = now.plus(Micros(interval));
        self.fetches.insert((slot.fetch_at, order));
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
            let gone = |a: &mut Account| std::mem::take(&mut a.gone);
            let gone: Vec<_> = slot.accounts.iter_mut().map(gone).collect();
            for (server, gone) in ServerId::all(n).zip(gone) {
                if gone && self.sources[server.index()].connected {
                    self.subscribe_again(server, out);
                }
            }
        }
    }
}

impl Slot {
    fn new(n: usize) -> Slot {
        Slot {
            accounts: vec![Account::default(); n],
            agreed: None,
            fetches: 0,
            fetch_at: Micros(0),
        }
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
