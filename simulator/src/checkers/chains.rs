//! C1: no two committed chains. Whatever two correct replicas hold for committed up to one batch is
//! one history, and what one holds for committed stays so.

use std::collections::BTreeMap;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ServerId};

use super::{Events, Facts};
use crate::history::Event;

/// By batch: who held it for committed first, and after what.
type Chains = BTreeMap<Batch, (ServerId, Digest)>;

fn same(chains: &mut Chains, server: ServerId, batch: Batch, chain: Digest) -> Result<(), String> {
    let (other, known) = chains.entry(batch).or_insert((server, chain));
    match *known == chain {
        true => Ok(()),
        false => Err(format!(
            "servers {other} and {server} hold {known} and {chain} for committed up to batch \
             {batch}"
        )),
    }
}

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    let mut chains = Chains::new();
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
                same(&mut chains, *server, *batch, *chain)?;
            }
            // Perhaps behind what it knew before it lost its replica.
            Event::Restored { server, checkpoint, chain, .. } => {
                last.insert(*server, checkpoint.batch);
                same(&mut chains, *server, checkpoint.batch, *chain)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{judge, restored};
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
    fn a_snapshot_of_another_chain_is_rejected() {
        let from = |chain| restored(1, 1, 1, Digest([chain; 32]));
        let before = [committed(0, 1, 1), committed(0, 2, 2), committed(1, 2, 2)];
        let with = |event| [&before[..], &[event]].concat();
        assert_eq!(judge(check, &with(from(1))), Ok(()), "behind what it knew");
        assert!(judge(check, &with(from(2))).is_err());
    }

    #[test]
    fn taking_back_what_was_committed_is_rejected() {
        assert!(judge(check, &[committed(0, 2, 2), committed(0, 1, 1)]).is_err());
    }
}
