//! P5: what correct clients and their listeners believed, `f + 1` distinct servers had told them.
//! What they were answered is what was delivered: the right order in the right place. Real-time
//! order: what was wanted after something was answered comes after it, whoever wanted it. And no
//! correct client is told that its order was refused.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId};
use shared_registers::order;

use super::{Events, Facts};
use crate::history::Event;

/// What a client is told: a name, its place, a digest and, in a delivery, a time.
type Word = (OrderId, OrderNumber, Digest, Option<Micros>);

#[derive(Default)]
struct Seen<'a> {
    /// By client, since it started: what it was told, and by whom.
    told: BTreeMap<ClientId, BTreeMap<Word, BTreeSet<ServerId>>>,
    /// Clients whose clock has gone back: one of their messages may be delivered twice.
    unsteady: BTreeSet<ClientId>,
    messages: BTreeMap<(ClientId, u64), &'a [u8]>,
    /// The highest place that anybody was answered.
    answered: OrderNumber,
    /// By broadcast: what that was when it was wanted.
    wanted: BTreeMap<(ClientId, u64), OrderNumber>,
    delivered: BTreeMap<OrderNumber, (OrderId, &'a [u8])>,
    /// Per client: its answered tickets and their places.
    places: BTreeMap<(ClientId, u64), OrderNumber>,
}

impl Seen<'_> {
    /// P5: that `f + 1` servers had sent a client what it believed. Of a reply that is kept no
    /// longer the client has no bytes, and any digest will do.
    fn is_founded(
        &self,
        client: ClientId,
        (id, order): (OrderId, OrderNumber),
        digest: Option<Digest>,
        time: Option<Micros>,
        f: usize,
    ) -> Result<(), String> {
        let words = self.told.get(&client).into_iter().flatten();
        let same = words.filter(|((i, o, d, t), _)| {
            (*i, *o, *t) == (id, order, time) && digest.is_none_or(|digest| digest == *d)
        });
        match same.map(|(_, servers)| servers.len()).max().unwrap_or(0) {
            most if most > f => Ok(()),
            most => Err(format!(
                "client {client} believed {id} as order {order}, which {most} had told it"
            )),
        }
    }

    /// Some correct server was the first of `f + 1` to say it, and had delivered it by then. The
    /// message is the client's own, whatever became of its clock: two of its lives never mean two
    /// messages by one name (section 3).
    fn is_delivered(&self, id: OrderId, order: OrderNumber, ticket: u64) -> Result<(), String> {
        match self.delivered.get(&order) {
            Some((name, payload)) if *name == id => {
                match self.messages.get(&(id.client, ticket)).is_none_or(|own| own == payload) {
                    true => Ok(()),
                    false => {
                        Err(format!("message {ticket} was answered as {id}, which is another"))
                    }
                }
            }
            _ => Err(format!("{id} was answered as order {order}, which it is not")),
        }
    }

    fn answer(&mut self, client: ClientId, ticket: u64, order: OrderNumber) -> Result<(), String> {
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
            Event::Broadcast { client, ticket, payload } => {
                seen.messages.insert((*client, *ticket), payload);
                seen.wanted.insert((*client, *ticket), seen.answered);
            }
            Event::Delivered { order, id, payload, .. } => {
                seen.delivered.insert(*order, (*id, payload));
            }
            // What it was told before it started it has forgotten.
            Event::ClientStarted { client, .. } => {
                seen.told.remove(client);
            }
            Event::ClockWentBack { client } => {
                seen.unsteady.insert(*client);
            }
            Event::Told { client, server, id, order, digest, time } => {
                let words = seen.told.entry(*client).or_default();
                words.entry((*id, *order, *digest, *time)).or_default().insert(*server);
            }
            Event::Heard { client, order, id, time, payload } => {
                let digest = order::digest(&facts.cluster, *id, payload);
                seen.is_founded(*client, (*id, *order), Some(digest), Some(*time), facts.f)?;
            }
            Event::Answered { client, ticket, id, order, reply } => {
                let digest = reply.as_ref().map(|reply| Digest::of(&[reply]));
                seen.is_founded(*client, (*id, *order), digest, None, facts.f)?;
                seen.is_delivered(*id, *order, *ticket)?;
                if !seen.unsteady.contains(client) {
                    seen.answer(*client, *ticket, *order)?;
                }
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
    use super::super::made_up::{answered, broadcast, delivered, digest, id, judge, told};
    use super::*;

    /// Two of three servers tell a client something, and it believes them.
    fn believed(ticket: u64, id: OrderId, order: u64) -> [Event; 3] {
        [told(0, id, order, b""), told(1, id, order, b""), answered(ticket, id, order, b"")]
    }

    #[test]
    fn an_answer_that_nobody_delivered_is_rejected() {
        let (wanted, answer) = ([broadcast(0, 1, b"a")], believed(1, id(0, 1), 1));
        let right = [delivered(0, 1, id(0, 1), b"a")];
        let history = |parts: &[&[Event]]| judge(check, &parts.concat());
        assert_eq!(history(&[&wanted, &right, &answer]), Ok(()));
        assert!(history(&[&wanted, &answer]).is_err());
        let other = [delivered(0, 1, id(1, 1), b"a")];
        assert!(history(&[&wanted, &other, &answer]).is_err());
        assert!(history(&[&right, &answer]).is_err(), "nobody wanted it");
        // Not even of a client whose clock went back; but that may be answered twice.
        let back = [Event::ClockWentBack { client: ClientId(0) }];
        assert!(history(&[&back, &wanted, &other, &answer]).is_err());
        assert_eq!(history(&[&back, &wanted, &right, &answer, &answer]), Ok(()));
    }

    #[test]
    fn a_client_that_takes_the_answer_to_another_message_for_its_own_is_rejected() {
        // An earlier life's message, by the name that this life's has.
        let lives = [broadcast(0, 1, b"a"), broadcast(0, 2, b"b")];
        let back = [Event::ClockWentBack { client: ClientId(0) }];
        let history = |payload, ticket| {
            let delivered = [delivered(0, 1, id(0, 1), payload)];
            let answer = believed(ticket, id(0, 1), 1);
            judge(check, &[&lives[..], &back, &delivered, &answer].concat())
        };
        assert_eq!(history(b"b", 2), Ok(()));
        assert!(history(b"a", 2).expect_err("it is not its own").contains("which is another"));
    }

    #[test]
    fn a_client_that_believes_f_servers_is_rejected() {
        let history = |words: &[Event]| {
            let known = [broadcast(0, 1, b"a"), delivered(0, 1, id(0, 1), b"a")];
            judge(check, &[&known, words, &[answered(1, id(0, 1), 1, b"")]].concat())
        };
        let word = |server| told(server, id(0, 1), 1, b"");
        assert_eq!(history(&[word(0), word(1)]), Ok(()));
        assert!(history(&[word(0)]).is_err());
        assert!(history(&[word(0), word(0)]).is_err(), "one of them twice");
        assert!(history(&[word(0), told(1, id(0, 1), 1, b"b")]).is_err(), "another reply");
        assert!(history(&[word(0), told(1, id(0, 1), 2, b"")]).is_err(), "another place");
        let again = Event::ClientStarted { client: ClientId(0), session: 2 };
        assert!(history(&[word(0), again, word(1)]).is_err(), "one of them to another life");
    }

    #[test]
    fn a_listener_that_believes_f_servers_is_rejected() {
        let (client, order, time, id) = (ClientId(0), OrderNumber(1), Micros(1), id(1, 1));
        let word = |server, time| {
            let (server, time) = (ServerId(server), Some(Micros(time)));
            Event::Told { client, server, id, order, digest: digest(id, b"a"), time }
        };
        let heard = Event::Heard { client, order, id, time, payload: b"a".to_vec() };
        assert_eq!(judge(check, &[word(0, 1), word(1, 1), heard.clone()]), Ok(()));
        assert!(judge(check, &[word(0, 1), word(1, 2), heard.clone()]).is_err(), "another time");
        assert!(judge(check, &[word(0, 1), heard]).is_err());
    }

    #[test]
    fn breaking_real_time_order_is_rejected() {
        let two = [delivered(0, 1, id(0, 1), b"a"), delivered(0, 2, id(0, 2), b"b")];
        let wants = [broadcast(0, 1, b"a"), broadcast(0, 2, b"b")];
        let answers = [believed(1, id(0, 1), 1), believed(2, id(0, 2), 2)];
        let right = [&two[..], &wants, &answers[0], &answers[1]].concat();
        assert_eq!(judge(check, &right), Ok(()));
        // The second was answered before the first was wanted.
        let wrong = [&two[..], &wants[1..], &answers[1], &wants[..1], &answers[0]].concat();
        assert!(judge(check, &wrong).is_err());
    }

    #[test]
    fn a_client_whose_messages_are_answered_out_of_order_is_rejected() {
        let wanted = [broadcast(0, 1, b"1"), broadcast(0, 2, b"2")];
        let history = |first: u64, second: u64| {
            let message = |order, ticket: u64| {
                delivered(0, order, id(0, order), ticket.to_string().as_bytes())
            };
            let delivered = [message(1, first), message(2, second)];
            let answers = [believed(first, id(0, 1), 1), believed(second, id(0, 2), 2)].concat();
            judge(check, &[&wanted[..], &delivered, &answers].concat())
        };
        assert_eq!(history(1, 2), Ok(()));
        assert!(history(2, 1).expect_err("2 came first").contains("overtaken"));
    }

    #[test]
    fn a_refused_order_of_a_correct_client_is_rejected() {
        assert!(judge(check, &[Event::Refused { client: ClientId(0), ticket: 1 }]).is_err());
    }
}
