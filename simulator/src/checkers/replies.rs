//! What correct clients were answered is what was delivered: the right order in the right place.
//! Real-time order: what was wanted after something was answered comes after it, whoever wanted it.
//! And no correct client is told that its order was refused.

use std::collections::BTreeMap;

use shared_registers::ids::{ClientId, OrderId, OrderNumber};

use super::{Events, Facts};
use crate::history::Event;

#[derive(Default)]
struct Seen {
    /// The highest place that anybody was answered.
    answered: OrderNumber,
    /// By broadcast: what that was when it was wanted.
    wanted: BTreeMap<(ClientId, u64), OrderNumber>,
    delivered: BTreeMap<OrderNumber, OrderId>,
    /// Per client: its answered tickets and their places.
    places: BTreeMap<(ClientId, u64), OrderNumber>,
}

impl Seen {
    fn answer(
        &mut self,
        client: ClientId,
        ticket: u64,
        id: OrderId,
        order: OrderNumber,
    ) -> Result<(), String> {
        // Some correct server was the first of f + 1 to say it, and had delivered it by then.
        if self.delivered.get(&order) != Some(&id) {
            return Err(format!("{id} was answered as order {order}, which it is not"));
        }
        match self.wanted.get(&(client, ticket)) {
            None => return Err(format!("client {client} was answered what it never wanted")),
            Some(before) if *before >= order => {
                return Err(format!(
                    "message {ticket} of client {client} is order {order}, and was wanted after \
                     order {before} was answered"
                ));
            }
            Some(_) => {}
        }
        self.answered = self.answered.max(order);
        if self.places.insert((client, ticket), order).is_some() {
            return Err(format!("message {ticket} of client {client} was answered twice"));
        }
        Ok(())
    }

    /// FIFO: a client's places grow with its tickets.
    fn in_order(&self) -> Result<(), String> {
        let all: Vec<_> = self.places.iter().collect();
        for two in all.windows(2) {
            let [((client, ticket), order), ((other, _), later)] = two else { continue };
            if client == other && order >= later {
                return Err(format!("message {ticket} of client {client} was overtaken"));
            }
        }
        Ok(())
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut seen = Seen::default();
    for (_, event) in events {
        match event {
            Event::Broadcast { client, ticket, .. } => {
                seen.wanted.insert((*client, *ticket), seen.answered);
            }
            Event::Delivered { order, id, .. } => {
                seen.delivered.insert(*order, *id);
            }
            Event::Answered { client, ticket, id, order, .. } if facts.is_steady(*client) => {
                seen.answer(*client, *ticket, *id, *order)?;
            }
            Event::Refused { client, ticket } => {
                return Err(format!("message {ticket} of client {client} was refused"));
            }
            _ => {}
        }
    }
    seen.in_order()
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{answered, broadcast, delivered, id, judge};
    use super::*;

    #[test]
    fn an_answer_that_nobody_delivered_is_rejected() {
        let (wanted, answer) = (broadcast(0, 1, b"a"), answered(1, id(0, 1), 1, b""));
        let right = delivered(0, 1, id(0, 1), b"a");
        assert_eq!(judge(check, &[wanted.clone(), right.clone(), answer.clone()]), Ok(()));
        assert!(judge(check, &[wanted.clone(), answer.clone()]).is_err());
        let other = delivered(0, 1, id(1, 1), b"a");
        assert!(judge(check, &[wanted, other, answer.clone()]).is_err());
        assert!(judge(check, &[right, answer]).is_err(), "nobody wanted it");
    }

    #[test]
    fn breaking_real_time_order_is_rejected() {
        let two = [delivered(0, 1, id(0, 1), b"a"), delivered(0, 2, id(0, 2), b"b")];
        let history = |first: &[Event], then: &[Event]| [&two[..], first, then].concat();
        let wants = [broadcast(0, 1, b"a"), broadcast(0, 2, b"b")];
        let answers = [answered(1, id(0, 1), 1, b""), answered(2, id(0, 2), 2, b"")];
        assert_eq!(judge(check, &history(&wants, &answers)), Ok(()));
        // The second was answered before the first was wanted.
        let first = [wants[1].clone(), answers[1].clone()];
        let then = [wants[0].clone(), answers[0].clone()];
        assert!(judge(check, &history(&first, &then)).is_err());
    }

    #[test]
    fn a_client_whose_messages_are_answered_out_of_order_is_rejected() {
        let events = [
            broadcast(0, 1, b"a"),
            broadcast(0, 2, b"b"),
            delivered(0, 1, id(0, 1), b"b"),
            delivered(0, 2, id(0, 2), b"a"),
            answered(2, id(0, 1), 1, b""),
            answered(1, id(0, 2), 2, b""),
        ];
        assert!(judge(check, &events).is_err());
    }

    #[test]
    fn a_refused_order_of_a_correct_client_is_rejected() {
        assert!(judge(check, &[Event::Refused { client: ClientId(0), ticket: 1 }]).is_err());
    }
}
