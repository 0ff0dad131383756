//! The orders that a replica holds until they are delivered (P1, P3), by who sent them: a client
//! its own, or another server those that it forwards.
//!
//! Copies are limited per source, so no source can crowd out another. One identity may have several
//! copies (a client can lie, a forwarder can alter); which of them is right only a host can say.

use std::collections::BTreeMap;
use std::ops::Bound;

use shared_registers::ids::{ClientId, Micros, OrderId, ServerId};

use crate::ledger::{Last, Verdict, judge};
use crate::limits::{
    ABANDONED_US, DIRECT_BYTES, DIRECT_ORDERS, DIRECT_TOTAL_BYTES, FORWARDED_BYTES,
    FORWARDED_ORDERS,
};
use crate::messages::OrderMessage;

/// Who sent a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Its client itself.
    Client(ClientId),
    /// This server.
    Server(ServerId),
}

/// A copy of an order.
#[derive(Clone, Debug)]
pub struct Held {
    /// The order, with its MAC vector.
    pub message: OrderMessage,
    /// When it came.
    pub arrived: Micros,
    /// When it came last.
    pub refreshed: Micros,
}

/// What became of an order that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is held now.
    Taken,
    /// This source's copy of it is held already; it came last at this time.
    Known(Micros),
    /// This source's limit is reached.
    Full,
}

/// How much one source may have held.
#[derive(Clone, Copy)]
struct Limits {
    orders: usize,
    bytes: usize,
}

type MayGo<'a> = &'a dyn Fn(&Held) -> bool;

/// The copies of one source.
#[derive(Default)]
struct Copies {
    orders: BTreeMap<OrderId, Held>,
    bytes: usize,
    /// How many of its copies the own host refused.
    failures: u64,
}

impl Copies {
    /// Takes a copy within the limits. If they are reached, one that is its client's next takes the
    /// place of one that `may_go`.
    fn offer(&mut self, held: Held, limits: Limits, is_next: bool, may_go: MayGo<'_>) -> Offered {
        let (id, bytes) = (held.message.id, held.message.payload.len());
        if let Some(known) = self.orders.get_mut(&id) {
            return Offered::Known(std::mem::replace(&mut known.refreshed, held.arrived));
        }
        let Limits { orders, bytes: max_bytes } = limits;
        while self.orders.len() >= orders || (self.bytes + bytes > max_bytes && self.bytes > 0) {
            let victim = self.orders.values().rev().find(|other| is_next && may_go(other));
            let Some(victim) = victim.map(|other| other.message.id) else { return Offered::Full };
            self.remove(victim);
        }
        self.bytes += bytes;
        self.orders.insert(id, held);
        Offered::Taken
    }

    fn remove(&mut self, id: OrderId) -> Option<Held> {
        let held = self.orders.remove(&id)?;
        self.bytes -= held.message.payload.len();
        Some(held)
    }

    /// The order of `client` that C2 would deliver next after `last`, if a copy is here.
    fn next_of(&self, client: ClientId, last: Last) -> Option<&Held> {
        let after = OrderId { client, session: last.0, count: last.1 };
        let end = OrderId { client, session: u64::MAX, count: u64::MAX };
        let later = self.orders.range((Bound::Excluded(after), Bound::Included(end)));
        later.map(|(_, held)| held).find(|held| judge(last, held.message.id) == Verdict::Next)
    }

    /// Drops the copies of `client` up to `last`.
    fn forget(&mut self, client: ClientId, last: Last) {
        let start = OrderId { client, session: 0, count: 0 };
        let end = OrderId { client, session: last.0, count: last.1 };
        while let Some((id, _)) = self.orders.range(start..=end).next() {
            let id = *id;
            self.remove(id);
        }
    }
}

/// All held orders.
pub struct Pool {
    direct: Vec<Copies>,
    forwarded: Vec<Copies>,
    /// Clients with direct copies.
    holding: std::collections::BTreeSet<ClientId>,
}

impl Pool {
    /// A pool for so many clients and servers.
    pub fn new(clients: u32, n: usize) -> Pool {
        let copies = |_| Copies::default();
        Pool {
            direct: (0..clients as usize).map(copies).collect(),
            forwarded: (0..n).map(copies).collect(),
            holding: Default::default(),
        }
    }

    fn copies(&mut self, source: Source) -> Option<&mut Copies> {
        match source {
            Source::Client(client) => self.direct.get_mut(client.index()),
            Source::Server(server) => self.forwarded.get_mut(server.index()),
        }
    }

    /// Offers a copy. `verdict` says what C2 would do with an order: when the source's limit is
    /// reached, its copies that are too early, or were long not sent again, make room for a next.
    pub fn offer(
        &mut self,
        source: Source,
        message: OrderMessage,
        now: Micros,
        verdict: impl Fn(OrderId) -> Verdict,
    ) -> Offered {
        let limits = match source {
            Source::Client(_) => {
                let share = DIRECT_TOTAL_BYTES / self.direct.len().max(1);
                Limits { orders: DIRECT_ORDERS, bytes: DIRECT_BYTES.min(share) }
            }
            Source::Server(_) => Limits { orders: FORWARDED_ORDERS, bytes: FORWARDED_BYTES },
        };
        let is_next = verdict(message.id) == Verdict::Next;
        let may_go = |other: &Held| {
            verdict(other.message.id) != Verdict::Next
                || now.since(other.refreshed) > Micros(ABANDONED_US)
        };
        let Some(copies) = self.copies(source) else { return Offered::Full };
        let held = Held { message, arrived: now, refreshed: now };
        let offered = copies.offer(held, limits, is_next, &may_go);
        if let (Source::Client(client), Offered::Taken) = (source, offered) {
            self.holding.insert(client);
        }
        offered
    }

    /// A copy that is held.
    pub fn get(&self, source: Source, id: OrderId) -> Option<&Held> {
        let copies = match source {
            Source::Client(client) => self.direct.get(client.index())?,
            Source::Server(server) => self.forwarded.get(server.index())?,
        };
        copies.orders.get(&id)
    }

    /// Drops a copy that the own host refused, and remembers it against its source.
    pub fn fail(&mut self, source: Source, id: OrderId) {
        if let Some(copies) = self.copies(source) {
            copies.remove(id);
            copies.failures += 1;
        }
        self.tidy(id.client);
    }

    /// Drops a copy that its source has long not sent again.
    pub fn expire(&mut self, source: Source, id: OrderId) {
        if let Some(copies) = self.copies(source) {
            copies.remove(id);
        }
        self.tidy(id.client);
    }

    /// Drops every copy of `client`'s orders up to `last`: they are delivered or void.
    pub fn forget(&mut self, client: ClientId, last: Last) {
        if let Some(copies) = self.direct.get_mut(client.index()) {
            copies.forget(client, last);
        }
        for copies in &mut self.forwarded {
            copies.forget(client, last);
        }
        self.tidy(client);
    }

    fn tidy(&mut self, client: ClientId) {
        if self.direct.get(client.index()).is_none_or(|copies| copies.orders.is_empty()) {
            self.holding.remove(&client);
        }
    }

    /// The copy of `source` that C2 would deliver next for `client` after `last`.
    pub fn next_of(&self, source: Source, client: ClientId, last: Last) -> Option<&Held> {
        match source {
            Source::Client(c) => self.direct.get(c.index())?.next_of(client, last),
            Source::Server(s) => self.forwarded.get(s.index())?.next_of(client, last),
        }
    }

    /// How many copies of a source the own host refused.
    pub fn failures(&self, source: Source) -> u64 {
        match source {
            Source::Client(c) => self.direct.get(c.index()).map_or(0, |copies| copies.failures),
            Source::Server(s) => self.forwarded.get(s.index()).map_or(0, |copies| copies.failures),
        }
    }

    /// Clients of which direct copies are held.
    pub fn holding(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.holding.iter().copied()
    }

    /// Bytes of the payloads of all copies.
    pub fn bytes(&self) -> usize {
        let all = self.direct.iter().chain(&self.forwarded);
        all.map(|copies| copies.bytes).sum()
    }

    /// How much the source that holds most has, of clients and of servers: copies and their bytes.
    pub fn largest(&self) -> [(usize, usize); 2] {
        [&self.direct, &self.forwarded].map(|sources| {
            let orders = sources.iter().map(|copies| copies.orders.len()).max();
            let bytes = sources.iter().map(|copies| copies.bytes).max();
            (orders.unwrap_or(0), bytes.unwrap_or(0))
        })
    }

    /// The `nth` direct copy, from 0, of each client that has so many, in each client's order.
    pub fn direct_nth(&self, nth: usize) -> impl Iterator<Item = &Held> {
        self.holding.iter().filter_map(move |c| self.direct[c.index()].orders.values().nth(nth))
    }

    /// Clients of which `server` forwarded copies.
    pub fn forwarded_clients(&self, server: ServerId) -> Vec<ClientId> {
        let mut clients: Vec<_> =
            self.forwarded[server.index()].orders.keys().map(|id| id.client).collect();
        clients.dedup();
        clients
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(0);
    const DIRECT: Source = Source::Client(CLIENT);

    fn offer(pool: &mut Pool, source: Source, message: OrderMessage) -> Offered {
        pool.offer(source, message, Micros(0), |id| judge((0, 0), id))
    }

    fn order(session: u64, count: u64, bytes: usize) -> OrderMessage {
        let id = OrderId { client: CLIENT, session, count };
        OrderMessage { id, digest: Default::default(), payload: vec![0; bytes], macs: vec![] }
    }

    #[test]
    fn a_source_is_limited_without_harm_to_others() {
        let mut pool = Pool::new(1, 3);
        for count in 1..=DIRECT_ORDERS as u64 {
            assert_eq!(offer(&mut pool, DIRECT, order(1, count, 0)), Offered::Taken);
        }
        assert_eq!(offer(&mut pool, DIRECT, order(1, 1, 0)), Offered::Known(Micros(0)));
        assert_eq!(offer(&mut pool, DIRECT, order(1, 9999, 0)), Offered::Full);
        let server = Source::Server(ServerId(1));
        assert_eq!(offer(&mut pool, server, order(1, 9999, 0)), Offered::Taken);

        let mut pool = Pool::new(1, 3);
        assert_eq!(offer(&mut pool, DIRECT, order(1, 1, DIRECT_BYTES + 1)), Offered::Taken);
        assert_eq!(offer(&mut pool, DIRECT, order(1, 2, 1)), Offered::Full);
    }

    #[test]
    fn an_order_that_is_next_takes_the_place_of_one_that_is_not() {
        let mut pool = Pool::new(1, 3);
        for session in 1..=DIRECT_ORDERS as u64 {
            assert_eq!(offer(&mut pool, DIRECT, order(session, 2, 0)), Offered::Taken);
        }
        assert_eq!(offer(&mut pool, DIRECT, order(7000, 2, 0)), Offered::Full, "an early one");
        assert_eq!(offer(&mut pool, DIRECT, order(7000, 1, 0)), Offered::Taken, "a next one");
    }

    #[test]
    fn the_next_order_is_found_and_the_delivered_are_forgotten() {
        let mut pool = Pool::new(1, 3);
        for (session, count) in [(1, 2), (1, 1), (4, 2), (4, 1)] {
            offer(&mut pool, DIRECT, order(session, count, 0));
        }
        let next = |pool: &Pool, last| {
            pool.next_of(DIRECT, CLIENT, last).map(|h| (h.message.id.session, h.message.id.count))
        };
        assert_eq!(next(&pool, (0, 0)), Some((1, 1)));
        assert_eq!(next(&pool, (1, 1)), Some((1, 2)));
        assert_eq!(next(&pool, (1, 2)), Some((4, 1)));
        pool.forget(CLIENT, (4, 1));
        assert_eq!((next(&pool, (4, 1)), pool.direct_nth(0).count()), (Some((4, 2)), 1));
        pool.fail(DIRECT, order(4, 2, 0).id);
        assert_eq!((pool.holding().count(), pool.failures(DIRECT)), (0, 1));
    }
}
