//! Who listens to the deliveries, how far each has got, and how much it may be sent.
//!
//! A subscriber is a cursor into what the core retains, and its credit: a delivery is made for it
//! when its connection has room and it has said that it can take one. So a slow subscriber costs a
//! few numbers, is sent nothing that it would drop, and when it falls behind what is retained it is
//! told so.

use std::collections::BTreeMap;

use protocol::messages::{Credit, ToClient};
use protocol::replica::Lookup;
use shared_registers::ids::OrderNumber;

use crate::connections::Connections;
use crate::counters::Counters;
use crate::limits::DELIVERIES_PER_TURN;
use crate::net::Token;

struct Subscriber {
    /// The next delivery that it wants.
    next: OrderNumber,
    credit: Credit,
}

/// The subscriptions. There is at most one per connection.
#[derive(Default)]
pub(crate) struct Subscriptions {
    by_connection: BTreeMap<Token, Subscriber>,
}

impl Subscriptions {
    /// This connection wants every delivery from `from` on, whatever it wanted before. Without a
    /// message to take it wants none.
    pub(crate) fn subscribe(&mut self, token: Token, from: OrderNumber, messages: u64, bytes: u64) {
        if messages == 0 {
            self.by_connection.remove(&token);
            return;
        }
        let (next, credit) = (from.max(OrderNumber(1)), Credit::new(messages, bytes));
        self.by_connection.insert(token, Subscriber { next, credit });
    }

    /// This connection can take so much more.
    pub(crate) fn give_credit(&mut self, token: Token, messages: u64, bytes: u64) {
        if let Some(subscriber) = self.by_connection.get_mut(&token) {
            subscriber.credit.add(messages, bytes);
        }
    }

    /// This connection was sent a delivery that it asked for.
    pub(crate) fn on_fetched(&mut self, token: Token, delivery: &ToClient) {
        if let Some(subscriber) = self.by_connection.get_mut(&token) {
            subscriber.credit.spend_bytes(cost(delivery));
        }
    }

    /// Forgets those whose connection is gone: to be called where [`Self::pump`] is not, lest whoever
    /// comes and goes leave something each time.
    pub(crate) fn forget_closed(&mut self, connections: &Connections) {
        self.by_connection.retain(|token, _| connections.is_open(*token));
    }

    /// Sends each subscriber what it has room and credit for, up to `last`, which `lookup` finds.
    /// Returns whether one of them could take more at once.
    pub(crate) fn pump(
        &mut self,
        last: OrderNumber,
        lookup: impl Fn(OrderNumber) -> Lookup,
        connections: &mut Connections,
        counters: &mut Counters,
    ) -> bool {
        let mut more = false;
        self.by_connection.retain(|token, subscriber| {
            for _ in 0..DELIVERIES_PER_TURN {
                if !subscriber.wants(last) || !connections.has_room(*token) {
                    return connections.is_open(*token);
                }
                match lookup(subscriber.next) {
                    Lookup::Future => return true,
                    Lookup::Found(delivery) => {
                        if let Some(bytes) = connections.send(*token, &delivery) {
                            counters.deliveries_sent += 1;
                            counters.delivery_bytes_sent += bytes;
                        }
                        subscriber.credit.spend(cost(&delivery));
                        subscriber.next = subscriber.next.next();
                    }
                    Lookup::TooOld { first } => {
                        let too_old = ToClient::TooOld { from: subscriber.next, first };
                        if connections.send(*token, &too_old).is_none() {
                            counters.dropped_replies += 1;
                        }
                        return false;
                    }
                }
            }
            more |= subscriber.wants(last) && connections.has_room(*token);
            true
        });
        more
    }
}

impl Subscriber {
    /// Whether it may be sent something, when `last` is the last delivery.
    fn wants(&self, last: OrderNumber) -> bool {
        self.next <= last && self.credit.allows()
    }
}

fn cost(message: &ToClient) -> u64 {
    match message {
        ToClient::Delivery(delivery) => delivery.cost(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};

    use protocol::messages::{Body, DELIVERY_COST_BYTES, Delivery, ToServer};
    use shared_registers::channel::Channel;
    use shared_registers::crypto::{ClusterId, Digest, Secret};
    use shared_registers::ids::{ClientId, Micros, OrderId, ServerId};
    use shared_registers::link::{Link, Party};

    use super::*;
    use crate::connections::{Bounds, Identity, Keys};
    use crate::net::{FIRST_CONNECTION, Poll, Socket};

    const CLUSTER: ClusterId = ClusterId([1; 32]);
    const LAST: OrderNumber = OrderNumber(1000);

    struct Bench {
        subscriptions: Subscriptions,
        connections: Connections,
        counters: Counters,
        poll: Poll,
        /// Keeps the connection open.
        client: Option<Link<Socket>>,
    }

    /// One client's open connection, which is [`FIRST_CONNECTION`].
    fn bench() -> Bench {
        let key = Secret::new([1; 32]).mac_key();
        let keys = Keys { replies: vec![key.clone()], operator: key.clone(), forwards: vec![] };
        let identity = Identity { me: ServerId(0), cluster: CLUSTER, n: 3, max_frame: 1000, keys };
        let mut connections = Connections::new(identity, Bounds::default());
        let (mut counters, mut poll) = (Counters::default(), Poll::new().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        connections.open(accepted, Micros(0), &poll, &mut counters).unwrap();
        let (mut hello, me) = (Vec::new(), Party::Client(ClientId(0)));
        let ends = (me, Party::Guest(ServerId(0)));
        let channel = Channel::dial(ends, &key, CLUSTER, [7; 16], 1000, &mut hello);
        let mut client = Link::new(Socket::new(stream).unwrap(), channel, hello);
        // Until the client has proved who it is.
        while connections.next_deadline().is_some() {
            let _ = client.flush();
            let mut ready = Vec::new();
            poll.wait(Micros(1000), &mut ready).unwrap();
            for (token, flags) in ready {
                connections.on_event(token, flags, &mut counters);
            }
            connections.flush(&poll);
            client.socket().allow();
            let _ = client.read(&mut [0; 1000], &|_| None, |_| {});
        }
        let subscriptions = Subscriptions::default();
        Bench { subscriptions, connections, counters, poll, client: Some(client) }
    }

    fn delivery(order: OrderNumber) -> ToClient {
        let id = OrderId { client: ClientId(0), session: 1, count: order.0 };
        let payload = Body::Here(vec![0; 22].into());
        ToClient::Delivery(Delivery {
            order,
            id,
            digest: Digest([0; 32]),
            time: Micros(0),
            payload,
        })
    }

    impl Bench {
        fn subscribe(&mut self, messages: u64, bytes: u64) {
            self.subscriptions.subscribe(FIRST_CONNECTION, OrderNumber(1), messages, bytes);
        }

        fn credit(&mut self, messages: u64, bytes: u64) {
            self.subscriptions.give_credit(FIRST_CONNECTION, messages, bytes);
        }

        /// What is sent until nothing more is to do at once; and how often the core was asked.
        fn pump(&mut self) -> (u64, u64) {
            let (before, asked) = (self.counters.deliveries_sent, Cell::new(0));
            let Bench { subscriptions, connections, counters, .. } = self;
            let lookup = |order| {
                asked.set(asked.get() + 1);
                Lookup::Found(delivery(order))
            };
            while subscriptions.pump(LAST, lookup, connections, counters) {}
            (counters.deliveries_sent - before, asked.get())
        }
    }

    #[test]
    fn who_has_no_credit_gets_nothing_and_costs_nothing() {
        let mut bench = bench();
        bench.subscribe(3, 0);
        assert_eq!(bench.pump(), (0, 0));
        let cost = DELIVERY_COST_BYTES + 22;
        bench.credit(0, 2 * cost);
        assert_eq!(bench.pump(), (2, 2));
        bench.credit(0, 1);
        assert_eq!(bench.pump(), (1, 1));
        bench.credit(0, u64::MAX);
        assert_eq!(bench.pump(), (0, 0));
        bench.credit(100, 0);
        assert_eq!(bench.pump(), (100, 100));
        // It is in the place of what there was.
        bench.subscribe(5, u64::MAX);
        assert_eq!(bench.pump(), (5, 5));
    }

    #[test]
    fn what_was_asked_for_takes_credit_in_bytes() {
        let mut bench = bench();
        bench.subscribe(10, 1);
        bench.subscriptions.on_fetched(FIRST_CONNECTION, &delivery(OrderNumber(9)));
        assert_eq!(bench.pump(), (0, 0));
        bench.credit(0, DELIVERY_COST_BYTES + 22);
        assert_eq!(bench.pump(), (1, 1));
    }

    /// A guest that catches up has nothing to send, and may take long.
    #[test]
    fn who_is_gone_is_forgotten_though_nothing_is_sent() {
        let mut bench = bench();
        bench.subscribe(10, 1);
        bench.subscriptions.forget_closed(&bench.connections);
        assert_eq!(bench.subscriptions.by_connection.len(), 1);
        bench.client = None;
        while bench.connections.len() > 0 {
            let mut ready = Vec::new();
            bench.poll.wait(Micros(1000), &mut ready).unwrap();
            for (token, flags) in ready {
                bench.connections.on_event(token, flags, &mut bench.counters);
            }
        }
        bench.subscriptions.forget_closed(&bench.connections);
        assert!(bench.subscriptions.by_connection.is_empty());
    }

    #[test]
    fn who_unsubscribes_gets_nothing_whatever_its_credit() {
        let mut bench = bench();
        bench.subscribe(u64::MAX, u64::MAX);
        let ToServer::Subscribe { from, messages, bytes } = ToServer::UNSUBSCRIBE else { panic!() };
        bench.subscriptions.subscribe(FIRST_CONNECTION, from, messages, bytes);
        bench.credit(u64::MAX, u64::MAX);
        assert_eq!(bench.pump(), (0, 0));
        assert!(bench.subscriptions.by_connection.is_empty());
    }
}
