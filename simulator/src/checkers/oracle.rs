//! Section 6: a reader that starts from a stable snapshot concludes what a full reader concludes.
//! The streams are there from their first records on, whatever hosts have reclaimed since.

use std::collections::BTreeSet;

use protocol::application::Application;
use protocol::oracle::{ClaimsAre, FullReading};
use protocol::replica;
use shared_registers::ids::{Micros, ServerId};
use shared_registers::record::Checkpoint;

use super::{Events, Facts};
use crate::application::Tally;
use crate::cluster::{RETAIN_BYTES, RETAIN_MESSAGES};
use crate::history::{Event, Streams};

/// Snapshots of one run that are started from: each costs as much as reading everything behind it.
const STARTS: usize = 6;

fn config(facts: &Facts, all: &Streams) -> replica::Config {
    replica::Config {
        me: ServerId(0),
        n: facts.n,
        clients: facts.lying.len() as u32,
        cluster: facts.cluster,
        max_payload_bytes: all.max_payload_bytes,
        window: all.window,
        checkpoint_weight: all.checkpoint_weight,
        soft_batch_bytes: 0,
        change: Micros(1),
        change_cap: Micros(1),
        host_down: Micros(1),
        retain_messages: RETAIN_MESSAGES,
        retain_bytes: RETAIN_BYTES,
    }
}

fn compare(stable: &BTreeSet<Checkpoint>, all: &Streams, facts: &Facts) -> Result<(), String> {
    // Another order of reading each time, the same in each run of a seed.
    let mut turn = 0usize;
    let mut choose = |among: usize| {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (turn >> 33) % among.max(1)
    };
    let application = || -> Box<dyn Application> { Box::new(Tally::default()) };
    let mut full = FullReading::new(config(facts, all), &application, &all.streams, &mut choose);
    full.compare(None, ClaimsAre::Read, &mut choose).map_err(|differs| differs.to_string())?;
    let of = |c: &Checkpoint| (c.term, c.batch);
    let mut found = Vec::new();
    for checkpoint in stable {
        let snapshot = full.snapshots().find(|s| of(s.checkpoint()) == of(checkpoint));
        // One that could be claimed only together with a later one is not kept.
        let Some(snapshot) = snapshot else { continue };
        if snapshot.checkpoint() != checkpoint {
            return Err(format!(
                "{checkpoint:?} is stable, and a full reader has {:?}",
                snapshot.checkpoint()
            ));
        }
        found.push(snapshot.clone());
    }
    let every = found.len().div_ceil(STARTS).max(1);
    for (i, snapshot) in found.iter().step_by(every).enumerate() {
        let claims = if i % 2 == 0 { ClaimsAre::LeftOut } else { ClaimsAre::Read };
        let compared = full.compare(Some(snapshot), claims, &mut choose);
        compared.map_err(|differs| differs.to_string())?;
    }
    Ok(())
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut stable = BTreeSet::new();
    for (_, event) in events {
        match event {
            Event::Stable { checkpoint, .. } | Event::Restored { checkpoint, .. } => {
                stable.insert(checkpoint.clone());
            }
            Event::Streams(all) => compare(&stable, all, facts)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::made_up::facts;
    use crate::engine::Sim;
    use shared_registers::crypto::Digest;

    /// What a calm run with small rings says of its streams, and what was stable.
    fn run() -> Vec<(Micros, Event)> {
        let mut sim = Sim::calm_laps(1);
        while sim.now < Micros(3_000_000) {
            sim.step();
        }
        sim.note_streams();
        let of_interest = |(_, event): &&(Micros, Event)| {
            matches!(event, Event::Stable { .. } | Event::Streams(_))
        };
        sim.history().events().iter().filter(of_interest).cloned().collect()
    }

    #[test]
    fn a_stable_checkpoint_that_no_full_reader_comes_to_is_rejected() {
        let events = run();
        let clients = |events: &Events| {
            let streams = events.iter().rev().find_map(|(_, event)| match event {
                Event::Streams(all) => Some(all.clients),
                _ => None,
            });
            Facts { lying: vec![false; streams.unwrap_or(0)], ..facts() }
        };
        let facts = clients(&events);
        assert!(events.len() > 5, "{}", events.len());
        assert_eq!(check(&events, &facts), Ok(()));
        let spoils: [fn(&mut Checkpoint); 2] =
            [|checkpoint| checkpoint.digest = Digest([1; 32]), |checkpoint| checkpoint.cut[0] += 1];
        for spoil in spoils {
            let mut events = events.clone();
            let Some((_, Event::Stable { checkpoint, .. })) = events.first_mut() else {
                panic!("something is stable")
            };
            spoil(checkpoint);
            let why = check(&events, &facts).expect_err("it is another");
            assert!(why.contains("a full reader has"), "{why}");
        }
    }

    #[test]
    fn streams_that_lead_elsewhere_are_rejected() {
        let mut events = run();
        let facts = facts();
        // A cluster with other keys of clients has another client table.
        assert!(check(&events, &Facts { lying: vec![false; 40], ..facts }).is_err());
        events.retain(|(_, event)| matches!(event, Event::Streams(_)));
        assert_eq!(events.len(), 1);
    }
}
