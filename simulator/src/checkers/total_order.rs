//! DA4 and C2: there is one order. Whatever two correct servers or listeners have in one place is
//! the same order with the same time; places have no gaps; time does not go back.

use std::collections::BTreeMap;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Micros, OrderId, OrderNumber};
use shared_registers::order;

use super::{Events, Facts};
use crate::history::Event;

type Entry = (OrderId, Digest, Micros);

#[derive(Default)]
struct Order {
    entries: BTreeMap<OrderNumber, Entry>,
    /// The last place that each server and listener has got to.
    last: BTreeMap<String, OrderNumber>,
}

impl Order {
    fn take(&mut self, who: String, place: OrderNumber, entry: Entry) -> Result<(), String> {
        let last = self.last.entry(who.clone()).or_default();
        if place != last.next() {
            return Err(format!("{who} has order {place} after order {last}"));
        }
        *last = place;
        let known = self.entries.entry(place).or_insert(entry);
        if *known != entry {
            return Err(format!("{who} has {entry:?} as order {place}, and another {known:?}"));
        }
        let before = self.entries.range(..place).next_back();
        if before.is_some_and(|(_, before)| before.2 > entry.2) {
            return Err(format!("the time of order {place} is before that of the one before it"));
        }
        Ok(())
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut all = Order::default();
    for (_, event) in events {
        match event {
            Event::GuestStarted { server, .. } => {
                all.last.remove(&format!("server {server}"));
            }
            Event::Restored { server, order, .. } => {
                all.last.insert(format!("server {server}"), *order);
            }
            Event::ListenerStarted { client, from } => {
                let before = OrderNumber(from.0.saturating_sub(1));
                all.last.insert(format!("listener {client}"), before);
            }
            Event::Delivered { server, order, id, digest, time, .. } => {
                all.take(format!("server {server}"), *order, (*id, *digest, *time))?;
            }
            Event::Heard { client, order, id, time, payload } => {
                let digest = order::digest(&facts.cluster, *id, payload);
                all.take(format!("listener {client}"), *order, (*id, digest, *time))?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{delivered, id, judge, restored, started};
    use super::*;
    use shared_registers::ids::ClientId;

    #[test]
    fn two_orders_in_one_place_are_rejected() {
        let (a, b) = (delivered(0, 1, id(0, 1), b"a"), delivered(1, 1, id(0, 1), b"b"));
        assert_eq!(judge(check, &[a.clone(), delivered(1, 1, id(0, 1), b"a")]), Ok(()));
        assert!(judge(check, &[a.clone(), b]).is_err());
        let client = ClientId(0);
        let (order, time) = (OrderNumber(1), Micros(1));
        let heard = Event::Heard { client, order, id: id(0, 1), time, payload: b"b".to_vec() };
        assert!(judge(check, &[a, heard]).is_err());
    }

    #[test]
    fn gaps_and_repeats_are_rejected_but_not_a_server_that_starts_anew() {
        let one = |server| delivered(server, 1, id(0, 1), b"a");
        assert!(judge(check, &[delivered(0, 2, id(0, 1), b"a")]).is_err());
        assert!(judge(check, &[one(0), one(0)]).is_err());
        assert_eq!(judge(check, &[one(0), started(0), one(0)]), Ok(()));
    }

    #[test]
    fn a_listener_begins_where_it_asked_to() {
        let (client, time) = (ClientId(0), Micros(1));
        let started = |from| Event::ListenerStarted { client, from: OrderNumber(from) };
        let heard = |place| {
            let (order, payload) = (OrderNumber(place), b"a".to_vec());
            Event::Heard { client, order, id: id(0, place), time, payload }
        };
        assert_eq!(judge(check, &[started(5), heard(5), heard(6)]), Ok(()));
        assert!(judge(check, &[started(5), heard(6)]).is_err());
        assert!(judge(check, &[started(5), heard(5), started(5), heard(6)]).is_err());
    }

    #[test]
    fn time_that_goes_back_is_rejected() {
        let mut late = delivered(0, 1, id(0, 1), b"a");
        if let Event::Delivered { time, .. } = &mut late {
            *time = Micros(9);
        }
        assert!(judge(check, &[late, delivered(0, 2, id(0, 2), b"b")]).is_err());
    }

    #[test]
    fn who_starts_from_a_snapshot_goes_on_behind_it() {
        let all = |server, orders: &[u64]| -> Vec<_> {
            let one = |order: &u64| delivered(server, *order, id(0, *order), b"a");
            orders.iter().map(one).collect()
        };
        let start = [started(1), restored(1, 1, 2, Digest::default())];
        let with = |orders: &[u64]| [&all(0, &[1, 2, 3])[..], &start, &all(1, orders)].concat();
        assert_eq!(judge(check, &with(&[3])), Ok(()));
        assert!(judge(check, &with(&[1])).is_err() && judge(check, &with(&[4])).is_err());
    }
}
