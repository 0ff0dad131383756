//! Who listens to the deliveries, and how far each has got.
//!
//! A subscriber is a cursor into what the core retains: a delivery is made for it when its
//! connection has room. So a slow subscriber costs one number, and when it falls behind what is
//! retained it is told so.

use std::collections::BTreeMap;

use protocol::messages::{self, ToClient};
use protocol::replica::Lookup;
use shared_registers::ids::OrderNumber;

use crate::connections::Connections;
use crate::counters::Counters;
use crate::limits::DELIVERIES_PER_TURN;
use crate::net::Token;

/// The subscriptions. There is at most one per connection.
#[derive(Default)]
pub(crate) struct Subscriptions {
    /// The next delivery that each wants.
    cursors: BTreeMap<Token, OrderNumber>,
}

impl Subscriptions {
    /// This connection wants every delivery from `from` on, whatever it wanted before.
    pub(crate) fn subscribe(&mut self, token: Token, from: OrderNumber) {
        self.cursors.insert(token, from.max(OrderNumber(1)));
    }

    /// Sends each subscriber what it has room for, up to `last`, which `lookup` finds. Returns
    /// whether one of them could take more at once.
    pub(crate) fn pump(
        &mut self,
        last: OrderNumber,
        lookup: impl Fn(OrderNumber) -> Lookup,
        connections: &mut Connections,
        counters: &mut Counters,
    ) -> bool {
        let mut more = false;
        self.cursors.retain(|token, cursor| {
            for _ in 0..DELIVERIES_PER_TURN {
                if *cursor > last || !connections.has_room(*token) {
                    return connections.is_open(*token);
                }
                match lookup(*cursor) {
                    Lookup::Future => return true,
                    Lookup::Found(delivery) => {
                        let frame = messages::encode(&delivery);
                        if connections.send(*token, &frame) {
                            counters.deliveries_sent += 1;
                            counters.delivery_bytes_sent += frame.len() as u64;
                        }
                        *cursor = cursor.next();
                    }
                    Lookup::TooOld { first } => {
                        let frame = messages::encode(&ToClient::TooOld { first });
                        if !connections.send(*token, &frame) {
                            counters.dropped_replies += 1;
                        }
                        return false;
                    }
                }
            }
            more |= *cursor <= last && connections.has_room(*token);
            true
        });
        more
    }
}
