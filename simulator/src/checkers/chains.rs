//! C1: no two committed chains. Whatever two correct replicas hold for committed up to one batch is
//! one history, and what one holds for committed stays so.

use std::collections::BTreeMap;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ServerId};

use super::{Events, Facts};
use crate::history::Event;

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    let mut chains: BTreeMap<Batch, (ServerId, Digest)> = BTreeMap::new();
    let mut last: BTreeMap<ServerId, Batch> = BTreeMap::new();
    for (_, event) in events {
        match event {
            Event::GuestStarted { server, .. } => {
                last.remove(server);
            }
            Event::Committed { server, batch, chain } => {
                let before = last.insert(*server, *batch);
                if before.is_some_and(|before| before > *batch) {
                    return Err(format!("server {server} went back to batch {batch}"));
                }
                let (other, known) = chains.entry(*batch).or_insert((*server, *chain));
                if known != chain {
                    return Err(format!(
                        "servers {other} and {server} hold {known} and {chain} for committed up \
                         to batch {batch}"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::judge;
    use super::*;

    fn committed(server: u16, batch: u64, chain: u8) -> Event {
        let (server, batch, chain) = (ServerId(server), Batch(batch), Digest([chain; 32]));
        Event::Committed { server, batch, chain }
    }

    #[test]
    fn two_chains_are_rejected() {
        assert_eq!(judge(check, &[committed(0, 1, 1), committed(1, 1, 1)]), Ok(()));
        assert!(judge(check, &[committed(0, 1, 1), committed(1, 1, 2)]).is_err());
    }

    #[test]
    fn taking_back_what_was_committed_is_rejected() {
        assert!(judge(check, &[committed(0, 2, 2), committed(0, 1, 1)]).is_err());
    }
}
