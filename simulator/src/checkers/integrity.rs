//! DA3: what is delivered under a correct client's name was sent by it, once, and in its order. And
//! already what is in any host's registers under its name was sent by it (R1): integrity rests on
//! hosts alone.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, OrderId, OrderNumber};

use super::{Events, Facts};
use crate::history::{Event, Said};

#[derive(Default)]
struct Seen {
    sent: BTreeSet<(OrderId, Digest)>,
    /// By client: in which incarnation its caller wanted which message, and under which name.
    broadcast: BTreeMap<(ClientId, Vec<u8>), (u64, u64)>,
    incarnations: BTreeMap<ClientId, u64>,
    /// Clients whose clock has gone back. What they wanted before must still come once at most.
    unsteady: BTreeSet<ClientId>,
    /// The one order, as far as it was delivered anywhere.
    delivered: BTreeMap<OrderNumber, OrderId>,
    names: BTreeMap<OrderId, OrderNumber>,
    /// By client and its ticket: its place.
    tickets: BTreeMap<(ClientId, u64), OrderNumber>,
    last: BTreeMap<ClientId, (u64, u64)>,
    last_ticket: BTreeMap<(ClientId, u64), u64>,
}

impl Seen {
    fn was_sent(&self, id: OrderId, digest: Digest, facts: &Facts) -> Result<(), String> {
        match !facts.is_correct(id.client) || self.sent.contains(&(id, digest)) {
            true => Ok(()),
            false => Err(format!("{id} was never sent with digest {digest}")),
        }
    }

    fn deliver(&mut self, order: OrderNumber, id: OrderId, payload: &[u8]) -> Result<(), String> {
        if let Some(known) = self.delivered.insert(order, id) {
            // Another server's delivery: that it is of the same message is for others to judge.
            return if known == id { Ok(()) } else { Err(format!("{id} and {known} at {order}")) };
        }
        if let Some(twice) = self.names.insert(id, order) {
            return Err(format!("{id} was delivered as order {twice} and as order {order}"));
        }
        let name = (id.session, id.count);
        if self.last.insert(id.client, name).is_some_and(|last| last >= name) {
            return Err(format!("{id} was delivered after a later one of its client"));
        }
        let Some(&(incarnation, ticket)) = self.broadcast.get(&(id.client, payload.to_vec()))
        else {
            return Ok(());
        };
        if let Some(twice) = self.tickets.insert((id.client, ticket), order) {
            return Err(format!(
                "message {ticket} of client {} was delivered as order {twice} and as order {order}",
                id.client
            ));
        }
        let last = self.last_ticket.insert((id.client, incarnation), ticket);
        if last.is_some_and(|last| last > ticket) {
            return Err(format!("message {ticket} of client {} overtook another", id.client));
        }
        Ok(())
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut seen = Seen::default();
    for (_, event) in events {
        match event {
            Event::ClientStarted { client, .. } => {
                *seen.incarnations.entry(*client).or_default() += 1;
            }
            Event::ClockWentBack { client } => {
                seen.unsteady.insert(*client);
            }
            Event::Broadcast { client, ticket, payload } if !seen.unsteady.contains(client) => {
                let incarnation = seen.incarnations.get(client).copied().unwrap_or(0);
                seen.broadcast.insert((*client, payload.clone()), (incarnation, *ticket));
            }
            Event::Sent { id, digest } => {
                seen.sent.insert((*id, *digest));
            }
            Event::Copied { record, .. } => {
                if let Said::Propose(orders) = &record.said {
                    for (id, digest) in orders {
                        seen.was_sent(*id, *digest, facts)?;
                    }
                }
            }
            Event::Delivered { order, id, digest, payload, .. } => {
                if shared_registers::order::digest(&facts.cluster, *id, payload) != *digest {
                    return Err(format!("{id} was delivered with a digest of something else"));
                }
                seen.was_sent(*id, *digest, facts)?;
                seen.deliver(*order, *id, payload)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared_registers::ids::{Seq, ServerId};

    use super::super::made_up::{broadcast, delivered, digest, id, judge, sent};
    use super::*;
    use crate::history::RecordSeen;

    #[test]
    fn a_forged_order_is_rejected_where_it_is_admitted_and_where_it_is_delivered() {
        let one = delivered(0, 1, id(0, 1), b"a");
        assert_eq!(judge(check, &[sent(id(0, 1), b"a"), one.clone()]), Ok(()));
        assert!(judge(check, std::slice::from_ref(&one)).is_err());
        assert!(judge(check, &[sent(id(0, 1), b"b"), one]).is_err());
        let lie = delivered(0, 1, id(1, 1), b"a");
        assert_eq!(judge(check, &[lie]), Ok(()), "who lies may say it");
        let record = Arc::new(RecordSeen {
            writer: ServerId(0),
            seq: Seq(1),
            stamped: ServerId(0),
            seen: vec![0; 3],
            digest: Digest::default(),
            said: Said::Propose(vec![(id(0, 1), digest(id(0, 1), b"a"))]),
        });
        let copied = Event::Copied { host: ServerId(0), record };
        assert!(judge(check, &[copied]).is_err());
    }

    #[test]
    fn a_message_that_comes_twice_is_rejected() {
        let sent = [sent(id(0, 1), b"a"), sent(id(0, 2), b"a"), broadcast(0, 1, b"a")];
        let judge = |order, again, payload: &[u8]| {
            let twice = [delivered(0, 1, id(0, 1), b"a"), delivered(0, order, again, payload)];
            judge(check, &[&sent[..], &twice].concat())
        };
        assert!(judge(2, id(0, 1), b"a").is_err(), "one name in two places");
        assert!(judge(2, id(0, 2), b"a").is_err(), "one message under two names");
        assert_eq!(judge(1, id(0, 1), b"a"), Ok(()), "another server's delivery");
    }

    #[test]
    fn a_clock_that_goes_back_excuses_what_is_wanted_after_it() {
        let sent = [sent(id(0, 1), b"a"), sent(id(0, 2), b"a")];
        let twice = [delivered(0, 1, id(0, 1), b"a"), delivered(0, 2, id(0, 2), b"a")];
        let back = Event::ClockWentBack { client: ClientId(0) };
        let wanted = broadcast(0, 1, b"a");
        let after = [&[back.clone(), wanted.clone()], &sent[..], &twice].concat();
        assert_eq!(judge(check, &after), Ok(()));
        let before = [&[wanted, back], &sent[..], &twice].concat();
        assert!(judge(check, &before).is_err());
    }

    #[test]
    fn a_client_whose_messages_overtake_each_other_is_rejected() {
        let late = OrderId { session: 2, ..id(0, 1) };
        let sent = [sent(late, b"a"), sent(id(0, 1), b"b")];
        let two = [delivered(0, 1, late, b"a"), delivered(0, 2, id(0, 1), b"b")];
        assert!(judge(check, &[&sent[..], &two].concat()).is_err());
        let wanted = [broadcast(0, 1, b"b"), broadcast(0, 2, b"a")];
        let two = [delivered(0, 1, id(0, 1), b"a"), delivered(0, 2, id(0, 2), b"b")];
        let sent = [
            super::super::made_up::sent(id(0, 1), b"a"),
            super::super::made_up::sent(id(0, 2), b"b"),
        ];
        assert!(judge(check, &[&wanted[..], &sent, &two].concat()).is_err());
    }
}
