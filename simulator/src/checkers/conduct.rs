//! What a guest that was never broken into may write: proposals in its own terms, one batch after
//! the other (V2); votes that rise, in the term that it is in (V3, P4); nothing in a term that it
//! has left. It forwards what clients send it to the sequencer (P3). A host that admitted one of
//! its frames twice, or out of its place, shows here (R1, R3).

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::ids::{Batch, ServerId, Term};

use super::{Events, Facts};
use crate::history::{Event, Says};

/// A stream, as far as it was admitted.
#[derive(Default)]
struct Writer {
    segment: Term,
    proposed: BTreeMap<Term, Batch>,
    voted: BTreeMap<Term, Batch>,
}

impl Writer {
    fn write(&mut self, me: ServerId, says: &Says, n: usize) -> Result<(), String> {
        match says {
            Says::Propose { term, batch, opens, .. } => {
                if *term != self.segment || term.sequencer(n) != me {
                    return Err(format!("PROPOSE in term {term}"));
                }
                let last = self.proposed.get(term).copied();
                let follows = match last {
                    None => *opens || (*term, *batch) == (Term(0), Batch(1)),
                    // What follows an opening without a batch has its base's number.
                    Some(Batch(0)) => *batch > Batch(0),
                    Some(last) => *batch == last.next(),
                };
                if !follows {
                    return Err(format!("batch {batch} of term {term} after {last:?}"));
                }
                self.proposed.insert(*term, *batch);
            }
            Says::Vote { term, upto, .. } => {
                if *term != self.segment {
                    return Err(format!("vote in term {term} while in {}", self.segment));
                }
                let last = self.voted.insert(*term, *upto);
                if last.is_some_and(|last| last >= *upto) {
                    return Err(format!("vote for {upto} of term {term} after {last:?}"));
                }
            }
            Says::Change(term) => self.segment = self.segment.max(term.next()),
            Says::Nothing => {}
        }
        Ok(())
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let broken_in: BTreeSet<ServerId> = events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::GuestStarted { server, correct: false } => Some(*server),
            _ => None,
        })
        .collect();
    let mut writers: BTreeMap<ServerId, Writer> = BTreeMap::new();
    for (_, event) in events {
        if let Event::KeptBack { server, id } = event {
            return Err(format!("server {server} did not forward the order of {id} (P3)"));
        }
        if let Event::Admitted { host, seq, says, .. } = event
            && !broken_in.contains(host)
        {
            let writer = writers.entry(*host).or_default();
            let wrote = writer.write(*host, says, facts.n);
            wrote.map_err(|what| format!("the correct server {host} wrote at {seq}: {what}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::made_up::{admitted, judge, rejected};
    use shared_registers::crypto::Digest;

    fn propose(term: u64, batch: u64, opens: bool) -> Says {
        let content = Digest::default();
        Says::Propose { term: Term(term), batch: Batch(batch), opens, content }
    }

    fn vote(term: u64, upto: u64) -> Says {
        Says::Vote { term: Term(term), upto: Batch(upto), chain: Digest::default() }
    }

    #[test]
    fn batches_follow_each_other_and_votes_rise() {
        let wrote = |host: u16, all: &[Says]| -> Vec<_> {
            let records = all.iter().zip(1..);
            records.map(|(says, seq)| admitted(host, seq, [0; 3], says.clone())).collect()
        };
        let good = [propose(0, 1, false), propose(0, 2, false), Says::Change(Term(0))];
        assert_eq!(judge(check, &wrote(0, &good)), Ok(()));
        let opened = [Says::Change(Term(0)), propose(1, 0, true), propose(1, 7, false)];
        assert_eq!(judge(check, &wrote(1, &opened)), Ok(()));
        let voted = [vote(0, 1), vote(0, 3), Says::Change(Term(0)), vote(1, 2)];
        assert_eq!(judge(check, &wrote(2, &voted)), Ok(()));
        rejected(check, &wrote(0, &[propose(0, 2, false)]), "batch 2");
        rejected(check, &wrote(0, &[propose(0, 1, false), propose(0, 1, false)]), "batch 1");
        rejected(check, &wrote(1, &[propose(0, 1, false)]), "PROPOSE in term 0");
        rejected(check, &wrote(1, &[vote(0, 1), vote(0, 1)]), "vote for 1");
        rejected(check, &wrote(1, &[Says::Change(Term(0)), vote(0, 1)]), "vote in term 0");
        let id = crate::checkers::made_up::id(0, 1);
        rejected(check, &[Event::KeptBack { server: ServerId(1), id }], "did not forward");
        // One that was broken into may write anything.
        let mut broken = wrote(1, &[vote(0, 1), vote(0, 1)]);
        let started = Event::GuestStarted { server: ServerId(1), correct: false };
        broken.insert(0, started);
        assert_eq!(judge(check, &broken), Ok(()));
    }
}
