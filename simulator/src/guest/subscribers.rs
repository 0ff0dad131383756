//! The listeners of a guest: what each has credit for, and what it is sent next.

use std::collections::BTreeMap;

use protocol::limits::{MAX_CREDIT_BYTES, MAX_CREDIT_MESSAGES};
use protocol::messages::{Credit, ToClient, ToServer};
use protocol::replica::{Lookup, Replica};
use shared_registers::ids::{ClientId, OrderNumber};

use super::GuestOutput;

/// Deliveries that one subscriber is sent per turn.
const DELIVERIES_PER_TURN: usize = 64;

/// Somebody who follows the deliveries.
struct Subscriber {
    next: OrderNumber,
    credit: Credit,
}

/// All of them: at most one for each client.
#[derive(Default)]
pub(super) struct Subscribers(BTreeMap<ClientId, Subscriber>);

impl Subscribers {
    /// Takes what concerns listening, and the operator's question; gives back what is the
    /// replica's. There is none while its guest catches up.
    pub(super) fn take(
        &mut self,
        replica: Option<&Replica>,
        client: ClientId,
        message: ToServer,
        out: &mut Vec<GuestOutput>,
    ) -> Option<ToServer> {
        match message {
            ToServer::Subscribe { messages: 0, .. } => self.lose(client),
            ToServer::Subscribe { from, messages, bytes } => {
                let credit = Credit::new(messages, bytes);
                self.0.insert(client, Subscriber { next: from, credit });
            }
            ToServer::Credit { messages, bytes } => {
                if let Some(subscriber) = self.0.get_mut(&client) {
                    subscriber.credit.add(messages, bytes);
                }
            }
            ToServer::FetchDelivery { order } => self.fetch(replica, client, order, out),
            ToServer::Status => {
                let status = replica.map(|replica| ToClient::Status(Box::new(replica.status())));
                out.extend(status.map(|status| GuestOutput::ToClient(client, status)));
            }
            message => return Some(message),
        }
        None
    }

    /// The connection of a client is gone, and its subscription with it.
    pub(super) fn lose(&mut self, client: ClientId) {
        self.0.remove(&client);
    }

    /// How many there are, and the largest credit.
    pub(super) fn queues(&self, clients: usize) -> [(&'static str, usize, usize); 3] {
        let left = || self.0.values().map(|subscriber| subscriber.credit.left());
        let messages = left().map(|(messages, _)| messages as usize).max().unwrap_or(0);
        let bytes = left().map(|(_, bytes)| bytes.max(0) as usize).max().unwrap_or(0);
        [
            ("subscribers of a guest", self.0.len(), clients),
            ("messages of a subscriber's credit", messages, MAX_CREDIT_MESSAGES as usize),
            ("bytes of a subscriber's credit", bytes, MAX_CREDIT_BYTES as usize),
        ]
    }

    fn fetch(
        &mut self,
        replica: Option<&Replica>,
        client: ClientId,
        order: OrderNumber,
        out: &mut Vec<GuestOutput>,
    ) {
        let Some(replica) = replica else { return };
        let found = match replica.delivery(order, true) {
            Lookup::Found(found) => found,
            Lookup::TooOld { first } => ToClient::TooOld { from: order, first },
            Lookup::Future => return,
        };
        if let Some(subscriber) = self.0.get_mut(&client) {
            subscriber.credit.spend_bytes(cost(&found));
        }
        out.push(GuestOutput::ToClient(client, found));
    }

    /// Sends each subscriber what it has credit for. Returns whether one could take more at once.
    pub(super) fn pump(&mut self, replica: &Replica, out: &mut Vec<GuestOutput>) -> bool {
        let mut more = false;
        self.0.retain(|client, subscriber| {
            for _ in 0..DELIVERIES_PER_TURN {
                if !subscriber.credit.allows() {
                    return true;
                }
                match replica.delivery(subscriber.next, false) {
                    Lookup::Future => return true,
                    Lookup::Found(delivery) => {
                        subscriber.credit.spend(cost(&delivery));
                        subscriber.next = subscriber.next.next();
                        out.push(GuestOutput::ToClient(*client, delivery));
                    }
                    Lookup::TooOld { first } => {
                        let too_old = ToClient::TooOld { from: subscriber.next, first };
                        out.push(GuestOutput::ToClient(*client, too_old));
                        return false;
                    }
                }
            }
            more = true;
            true
        });
        more
    }
}

fn cost(message: &ToClient) -> u64 {
    match message {
        ToClient::Delivery(delivery) => delivery.cost(),
        _ => 0,
    }
}
