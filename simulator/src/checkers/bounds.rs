//! Every queue stays within its named bound.

use super::{Events, Facts};
use crate::history::Event;

/// See the [module](self).
pub fn check(events: &Events, _: &Facts) -> Result<(), String> {
    for (_, event) in events {
        if let Event::Queue { owner, name, length, bound } = event
            && length > bound
        {
            return Err(format!("{length} {name} at {owner}, where {bound} may be"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::judge;
    use super::*;
    use crate::engine::Sim;
    use crate::history::Longest;
    use shared_registers::ids::Micros;

    #[test]
    fn a_queue_past_its_bound_is_rejected() {
        let queue = |length| Event::Queue { owner: 0, name: "frames", length, bound: 2 };
        assert_eq!(judge(check, &[queue(1), queue(2)]), Ok(()));
        assert!(judge(check, &[queue(3)]).is_err());
    }

    /// What is measured in a run in which nothing goes wrong, of hosts, links, guests, clients.
    const MEASURED: [&str; 18] = [
        "records of one stream",
        "bytes of a frame copied out",
        "bytes of a record",
        "records admitted in one turn",
        "frames on a link",
        "bytes on a link",
        "own frames in flight",
        "records since the stable cut",
        "votes kept of one writer",
        "terms kept",
        "batches kept",
        "deliveries kept",
        "batches uncommitted",
        "subscribers of a guest",
        "messages of a subscriber's credit",
        "bytes of a subscriber's credit",
        "order numbers that a listener keeps track of",
        "unanswered orders of a client",
    ];

    #[test]
    fn every_queue_is_measured_and_one_entry_too_many_in_any_is_rejected() {
        let mut sim = Sim::calm(1);
        while sim.now < Micros(500_000) {
            sim.step();
        }
        let mut missing = MEASURED.to_vec();
        for (_, event) in sim.history().events() {
            let Event::Queue { owner, name, length, bound } = event else { continue };
            assert!(*length > 0 && length <= bound, "{length} {name} of {bound}");
            missing.retain(|expected| expected != name);
            let (owner, name, bound) = (*owner, *name, *bound);
            let queue = |length| Event::Queue { owner, name, length, bound };
            assert_eq!(judge(check, &[queue(bound)]), Ok(()));
            assert!(judge(check, &[queue(bound + 1)]).is_err(), "{name}");
        }
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn a_queue_is_told_of_when_it_grows_and_when_its_bound_shrinks() {
        let mut longest = Longest::default();
        let mut told = |length, bound| longest.is(0, ("frames", length, bound)).is_some();
        assert_eq!([told(0, 2), told(2, 2), told(1, 2), told(2, 2)], [false, true, false, false]);
        assert_eq!([told(1, 0), told(3, 3)], [true, true]);
    }
}
