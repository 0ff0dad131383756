//! DA1 and the end of section 8: once the faults are over, every message of a client that did not
//! crash is answered, and delivered at every correct server, within a bounded time.

use std::collections::BTreeMap;

use shared_registers::ids::{ClientId, Micros, OrderNumber, ServerId};

use super::{Events, Facts};
use crate::history::Event;

#[derive(Default)]
struct Seen {
    healed: Option<Micros>,
    correct: Vec<ServerId>,
    /// Messages of clients that run, by client and ticket, and where they were delivered.
    waiting: BTreeMap<(ClientId, u64), Micros>,
    places: BTreeMap<OrderNumber, (ClientId, u64)>,
    delivered: BTreeMap<ServerId, OrderNumber>,
}

impl Seen {
    /// Whether a message that was wanted at `wanted` and is not answered before `now` waited too
    /// long since then, counted in the calm alone.
    fn is_late(&self, wanted: Micros, now: Micros, facts: &Facts) -> bool {
        let waited = |healed: Micros| now.since(healed.max(wanted));
        self.healed.is_some_and(|healed| waited(healed) > facts.liveness_bound)
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut seen = Seen::default();
    let mut late = None;
    for (at, event) in events {
        match event {
            Event::Broadcast { client, ticket, .. } => {
                seen.waiting.insert((*client, *ticket), *at);
            }
            Event::ClientCrashed { client } => seen.waiting.retain(|(c, _), _| c != client),
            Event::Answered { client, ticket, order, .. } => {
                seen.places.insert(*order, (*client, *ticket));
                let wanted = seen.waiting.remove(&(*client, *ticket));
                if wanted.is_some_and(|wanted| seen.is_late(wanted, *at, facts)) {
                    late = Some((*client, *ticket));
                }
            }
            Event::GuestStarted { server, .. } => {
                seen.delivered.remove(server);
            }
            Event::Delivered { server, order, .. } | Event::Restored { server, order, .. } => {
                seen.delivered.insert(*server, *order);
            }
            Event::Healed { correct } => {
                seen.healed = Some(*at);
                seen.correct = correct.clone();
            }
            Event::Shaken => {
                let old = |(_, wanted): &(_, &Micros)| seen.is_late(**wanted, *at, facts);
                late = late.or(seen.waiting.iter().find(old).map(|(message, _)| *message));
                seen.healed = None;
            }
            _ => {}
        }
    }
    let said = facts.complaint.as_deref().unwrap_or("nobody complains");
    if let Some((client, ticket)) = seen.waiting.keys().next().copied().or(late) {
        let all = seen.waiting.len();
        return Err(format!(
            "message {ticket} of client {client} and {all} in all were not answered in time: {said}"
        ));
    }
    for server in &seen.correct {
        let upto = seen.delivered.get(server).copied().unwrap_or_default();
        if let Some((place, (client, _))) = seen.places.range(upto.next()..).next() {
            return Err(format!(
                "server {server} did not deliver order {place}, which client {client} was \
                 answered: {said}"
            ));
        }
    }
    match &facts.complaint {
        Some(complaint) => Err(complaint.clone()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{answered, broadcast, delivered, facts, id, judge, restored};
    use super::*;
    use crate::phases::LIVENESS_BOUND;
    use shared_registers::crypto::Digest;

    #[test]
    fn a_message_that_nobody_answers_is_rejected_unless_its_client_crashed() {
        let wanted = broadcast(0, 1, b"a");
        assert!(judge(check, std::slice::from_ref(&wanted)).is_err());
        let crashed = Event::ClientCrashed { client: ClientId(0) };
        assert_eq!(judge(check, &[wanted, crashed]), Ok(()));
    }

    #[test]
    fn a_correct_server_that_never_delivers_is_rejected() {
        let correct = vec![ServerId(0), ServerId(1)];
        let rest =
            [Event::Healed { correct }, broadcast(0, 1, b"a"), answered(1, id(0, 1), 1, b"")];
        let one = |server| delivered(server, 1, id(0, 1), b"a");
        assert_eq!(judge(check, &[&rest[..], &[one(0), one(1)]].concat()), Ok(()));
        assert!(judge(check, &[&rest[..], &[one(0)]].concat()).is_err());
        let from = |order| restored(1, 1, order, Digest::default());
        assert_eq!(judge(check, &[&rest[..], &[one(0), from(1)]].concat()), Ok(()));
        assert!(judge(check, &[&rest[..], &[one(0), from(0)]].concat()).is_err());
    }

    #[test]
    fn an_answer_that_comes_too_late_is_rejected() {
        let healed = Event::Healed { correct: vec![] };
        let answer = answered(1, id(0, 1), 1, b"");
        let late = LIVENESS_BOUND.plus(Micros(3));
        let events = [(Micros(1), healed), (Micros(2), broadcast(0, 1, b"a")), (late, answer)];
        assert!(check(&events, &facts()).is_err());
    }

    #[test]
    fn faults_excuse_who_waits_but_not_who_waited_through_a_calm() {
        let healed = || Event::Healed { correct: vec![] };
        let wanted = broadcast(0, 1, b"a");
        let answer = answered(1, id(0, 1), 1, b"");
        let late = |times: u64| Micros(times * LIVENESS_BOUND.0 + 9);
        let judge = |shaken, again, answered| {
            let events = [
                (Micros(1), wanted.clone()),
                (Micros(2), healed()),
                (shaken, Event::Shaken),
                (again, healed()),
                (answered, answer.clone()),
            ];
            check(&events, &facts())
        };
        assert_eq!(judge(Micros(3), late(2), late(2).plus(Micros(1))), Ok(()));
        assert!(judge(Micros(3), late(2), late(3).plus(Micros(1))).is_err());
        assert!(judge(late(1), late(2), late(2).plus(Micros(1))).is_err());
    }
}
