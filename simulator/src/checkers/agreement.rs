//! DA2: at the end of a run, all servers that are correct after the faults have delivered equally
//! much, and are on one chain.

use std::collections::BTreeMap;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, OrderNumber, ServerId};

use super::{Events, Facts};
use crate::history::Event;

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    type End = (OrderNumber, Batch, Digest);
    let mut ends: BTreeMap<ServerId, End> = BTreeMap::new();
    let mut correct = Vec::new();
    for (_, event) in events {
        match event {
            Event::GuestStarted { server, .. } => {
                ends.remove(server);
            }
            Event::Delivered { server, order, .. } => ends.entry(*server).or_default().0 = *order,
            Event::Committed { server, batch, chain } => {
                let end = ends.entry(*server).or_default();
                (end.1, end.2) = (*batch, *chain);
            }
            Event::Restored { server, checkpoint, order, chain } => {
                ends.insert(*server, (*order, checkpoint.batch, *chain));
            }
            Event::Healed { correct: servers } => correct = servers.clone(),
            _ => {}
        }
    }
    let end = |server: &ServerId| ends.get(server).copied().unwrap_or_default();
    let Some(first) = correct.first() else { return Ok(()) };
    match correct.iter().find(|server| end(server) != end(first)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "server {first} ended at {:?} and server {other} at {:?}",
            end(first),
            end(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{delivered, id, judge, restored};
    use super::*;

    fn committed(server: u16, chain: u8) -> Event {
        let (server, batch, chain) = (ServerId(server), Batch(1), Digest([chain; 32]));
        Event::Committed { server, batch, chain }
    }

    #[test]
    fn a_server_that_stays_behind_or_elsewhere_is_rejected() {
        let healed = |correct: &[u16]| Event::Healed {
            correct: correct.iter().map(|server| ServerId(*server)).collect(),
        };
        let one = |server| delivered(server, 1, id(0, 1), b"a");
        assert_eq!(judge(check, &[healed(&[0, 1]), one(0), one(1)]), Ok(()));
        assert!(judge(check, &[healed(&[0, 1]), one(0)]).is_err());
        let start = |order| {
            [healed(&[0, 1]), one(0), committed(0, 1), restored(1, 1, order, Digest([1; 32]))]
        };
        assert_eq!(judge(check, &start(1)), Ok(()));
        assert!(judge(check, &start(2)).is_err());
        assert_eq!(judge(check, &[healed(&[0, 2]), one(0), one(2)]), Ok(()));
        assert!(judge(check, &[healed(&[0, 1]), committed(0, 1), committed(1, 2)]).is_err());
    }
}
