//! C1, from the records themselves: whatever a correct replica holds for committed continues what it
//! held before, batch by batch, and `f + 1` distinct servers have named that very history in votes
//! of one term: each in that term's segment of its stream (V1), and of batches that it had seen (V3).
//!
//! This is no second reader. It does not ask which term was open, and by what evidence, but only
//! whether the votes that a commit claims to have are there.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Seq, ServerId, Term};

use super::{Events, Facts};
use crate::cluster::CLUSTER;
use crate::history::{Event, Says};

/// Histories of one length that are told apart; a broken-in sequencer can make many.
const FORKS: usize = 64;

#[derive(Default)]
struct Seen {
    /// By batch: each chain value that proposals can have made, and the one before it.
    chains: BTreeMap<Batch, BTreeMap<Digest, Digest>>,
    segments: BTreeMap<ServerId, Term>,
    /// Terms with an opening without a batch, which is a vote for a base that it does not name.
    opened: BTreeSet<Term>,
    /// Where a batch was proposed in a term first.
    proposals: BTreeMap<(Term, Batch), Seq>,
    /// By term and writer: the histories that it has named.
    named: BTreeMap<Term, BTreeMap<ServerId, BTreeSet<(Batch, Digest)>>>,
    /// What each replica holds for committed.
    committed: BTreeMap<ServerId, (Batch, Digest)>,
}

impl Seen {
    fn start() -> (Batch, Digest) {
        (Batch(0), Digest::of(&[&CLUSTER.0]))
    }

    fn new() -> Seen {
        let (batch, chain) = Seen::start();
        let chains = BTreeMap::from([(batch, BTreeMap::from([(chain, chain)]))]);
        Seen { chains, ..Seen::default() }
    }

    fn admit(&mut self, writer: ServerId, seq: Seq, seen: &[u64], says: &Says) {
        let segment = self.segments.get(&writer).copied().unwrap_or_default();
        match says {
            Says::Propose { term, batch, content, .. } if *batch > Batch(0) => {
                let before = self.chains.get(&Batch(batch.0 - 1)).cloned().unwrap_or_default();
                let all = self.chains.entry(*batch).or_default();
                for (chain, _) in before {
                    let next = Digest::of(&[&chain.0, &content.0]);
                    if all.len() < FORKS {
                        all.insert(next, chain);
                    }
                    if *term == segment {
                        let named = self.named.entry(*term).or_default();
                        named.entry(writer).or_default().insert((*batch, next));
                    }
                }
                if *term == segment {
                    self.proposals.entry((*term, *batch)).or_insert(seq);
                }
            }
            Says::Propose { term, opens: true, .. } if *term == segment => {
                self.opened.insert(*term);
            }
            Says::Vote { term, upto, chain } if *term == segment => {
                let sequencer = term.sequencer(seen.len()).index();
                let proposed = self.proposals.get(&(*term, *upto));
                // What is not in the term itself is its base.
                if proposed.is_none_or(|seq| seq.0 <= seen[sequencer]) {
                    let named = self.named.entry(*term).or_default();
                    named.entry(writer).or_default().insert((*upto, *chain));
                }
            }
            Says::Change(term) => {
                self.segments.insert(writer, segment.max(term.next()));
            }
            _ => {}
        }
    }

    /// Whether the history that ends in `later` contains the one that ends in `earlier`.
    fn continues(&self, later: (Batch, Digest), earlier: (Batch, Digest)) -> bool {
        let (mut batch, mut chain) = later;
        while batch > earlier.0 {
            let Some(before) = self.chains.get(&batch).and_then(|all| all.get(&chain)) else {
                return false;
            };
            (batch, chain) = (Batch(batch.0 - 1), *before);
        }
        (batch, chain) == earlier
    }

    fn commit(&mut self, server: ServerId, end: (Batch, Digest), f: usize) -> Result<(), String> {
        let before = self.committed.insert(server, end).unwrap_or_else(Seen::start);
        let (batch, chain) = end;
        if !self.continues(end, before) {
            return Err(format!(
                "server {server} holds {chain} for committed up to batch {batch}, which does not \
                 continue {} up to batch {}",
                before.1, before.0
            ));
        }
        let names = |named: &BTreeSet<(Batch, Digest)>| {
            named.range((batch, Digest::default())..).any(|later| self.continues(*later, end))
        };
        let voters = |(term, writers): (&Term, &BTreeMap<ServerId, BTreeSet<_>>)| {
            let sequencer = term.sequencer(2 * f + 1);
            let opener = self.opened.contains(term).then_some(sequencer);
            let named = writers.iter().filter(|(_, named)| names(named)).map(|(writer, _)| *writer);
            named.chain(opener).collect::<BTreeSet<_>>().len()
        };
        let most = self.named.iter().map(voters).max().unwrap_or(0);
        if batch > Batch(0) && most <= f {
            return Err(format!(
                "server {server} holds {chain} for committed up to batch {batch}, for which {most} \
                 have voted in one term"
            ));
        }
        Ok(())
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut seen = Seen::new();
    for (_, event) in events {
        match event {
            Event::GuestStarted { server, .. } => {
                seen.committed.remove(server);
            }
            Event::Admitted { host, seq, seen: past, says } => {
                seen.admit(*host, *seq, past, says);
            }
            Event::Committed { server, batch, chain } => {
                seen.commit(*server, (*batch, *chain), facts.f)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::made_up::{admitted, committed, judge, rejected};

    fn content(what: &str) -> Digest {
        Digest::of(&[what.as_bytes()])
    }

    fn chain(contents: &[&str]) -> Digest {
        let start = Seen::start().1;
        contents.iter().fold(start, |chain, what| Digest::of(&[&chain.0, &content(what).0]))
    }

    fn propose(term: u64, batch: u64, what: &str) -> Says {
        let (term, batch) = (Term(term), Batch(batch));
        Says::Propose { term, batch, opens: false, content: content(what) }
    }

    fn vote(upto: u64, contents: &[&str]) -> Says {
        Says::Vote { term: Term(0), upto: Batch(upto), chain: chain(contents) }
    }

    #[test]
    fn a_commit_has_its_votes_and_continues_the_one_before() {
        let proposed = [
            admitted(0, 1, [0; 3], propose(0, 1, "a")),
            admitted(0, 2, [1, 0, 0], propose(0, 2, "b")),
        ];
        let with = |more: &[_]| [&proposed[..], more].concat();
        let voted = admitted(1, 1, [2, 0, 0], vote(2, &["a", "b"]));
        let both = committed(2, 2, chain(&["a", "b"]));
        let one = committed(2, 1, chain(&["a"]));
        let good = with(&[voted.clone(), one.clone(), both.clone()]);
        assert_eq!(judge(check, &good), Ok(()));
        // Nobody but the sequencer has voted.
        rejected(check, &with(&[both.clone()]), "1 have voted");
        // A vote that names something else, or what its writer had not seen, or after its CHANGE.
        let other = admitted(1, 1, [2, 0, 0], vote(2, &["a", "c"]));
        rejected(check, &with(&[other, both.clone()]), "1 have voted");
        let blind = admitted(1, 1, [1, 0, 0], vote(2, &["a", "b"]));
        rejected(check, &with(&[blind, both.clone()]), "1 have voted");
        let left = admitted(1, 1, [2, 0, 0], Says::Change(Term(0)));
        let late = admitted(1, 2, [2, 1, 0], vote(2, &["a", "b"]));
        rejected(check, &with(&[left, late, both.clone()]), "1 have voted");
        // What is committed was replaced.
        let elsewhere = admitted(0, 3, [2, 0, 0], propose(0, 1, "c"));
        let forked = committed(2, 1, chain(&["c"]));
        rejected(check, &with(&[voted, forked, elsewhere, both]), "does not continue");
    }
}
