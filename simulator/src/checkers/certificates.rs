//! C1, from the records themselves: whatever a correct replica holds for committed continues what
//! it held before, batch by batch, and `f + 1` distinct servers have named that very history in
//! votes of one term: each in that term's segment of its stream (V1), and of batches that it had
//! seen (V3).
//!
//! This is no second reader. It does not ask which term was open, and by what evidence, but only
//! whether the votes that a commit claims to have are there.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Batch, Seq, ServerId, Term};

use super::{Events, Facts};
use crate::history::{Event, Says};

/// Histories of one length that are told apart. A broken-in sequencer can make many; of a run in
/// which there are more nothing further is demanded.
const FORKS: usize = 512;

/// Ends of histories, and how much the vote for each had seen of the sequencer's stream.
type Named = BTreeMap<(Batch, Digest), u64>;

#[derive(Default)]
struct Seen {
    /// No batch, and `C_0`.
    start: (Batch, Digest),
    /// By batch: each chain value that proposals can have made, and the one before it.
    chains: BTreeMap<Batch, BTreeMap<Digest, Digest>>,
    /// By term and batch: those that its proposals can have made.
    made: BTreeMap<(Term, Batch), BTreeSet<Digest>>,
    too_many: bool,
    segments: BTreeMap<ServerId, Term>,
    /// Terms with an opening without a batch, which is a vote for a base that it does not name.
    opened: BTreeSet<Term>,
    /// Where a batch was proposed in a term first.
    proposals: BTreeMap<(Term, Batch), Seq>,
    /// By term and writer: the histories that it has named.
    named: BTreeMap<Term, BTreeMap<ServerId, Named>>,
    /// Hosts that are down. One that died while it admitted a record may have shown it to its
    /// guest, and tells of it only when it starts again.
    down: BTreeSet<ServerId>,
    /// What each replica holds for committed.
    committed: BTreeMap<ServerId, (Batch, Digest)>,
}

impl Seen {
    fn new(cluster: &ClusterId) -> Seen {
        let start = (Batch(0), Digest::of(&[&cluster.0]));
        let chains = BTreeMap::from([(start.0, BTreeMap::from([(start.1, start.1)]))]);
        Seen { start, chains, ..Seen::default() }
    }

    fn admit(&mut self, writer: ServerId, seq: Seq, seen: &[u64], says: &Says) {
        let segment = self.segments.get(&writer).copied().unwrap_or_default();
        match says {
            Says::Propose { term, batch, content, .. } if *batch > Batch(0) => {
                let before = Batch(batch.0 - 1);
                let own = self.made.get(&(*term, before)).cloned();
                // The first batch of a term continues whatever its base is.
                let any = || self.chains.get(&before).into_iter().flat_map(|all| all.keys());
                let parents = own.unwrap_or_else(|| any().copied().collect());
                for chain in parents {
                    let next = Digest::of(&[&chain.0, &content.0]);
                    self.chains.entry(*batch).or_default().insert(next, chain);
                    self.made.entry((*term, *batch)).or_default().insert(next);
                    if *term == segment {
                        let named = self.named.entry(*term).or_default();
                        named.entry(writer).or_default().insert((*batch, next), seq.0);
                    }
                }
                self.too_many |= self.chains.get(batch).is_some_and(|all| all.len() > FORKS);
                if *term == segment {
                    self.proposals.entry((*term, *batch)).or_insert(seq);
                }
            }
            Says::Propose { term, opens: true, .. } if *term == segment => {
                self.opened.insert(*term);
            }
            Says::Vote { term, upto, chain } if *term == segment => {
                let past = seen[term.sequencer(seen.len()).index()];
                let named = self.named.entry(*term).or_default().entry(writer).or_default();
                let most = named.entry((*upto, *chain)).or_default();
                *most = past.max(*most);
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
        let before = self.committed.insert(server, end).unwrap_or(self.start);
        let (batch, chain) = end;
        if self.down.contains(&server) {
            return Ok(());
        }
        if !self.continues(end, before) {
            return Err(format!(
                "server {server} holds {chain} for committed up to batch {batch}, which does not \
                 continue {} up to batch {}",
                before.1, before.0
            ));
        }
        let voters = |(term, writers): (&Term, &BTreeMap<ServerId, Named>)| {
            // V3: the vote had seen the batch, or it is of an earlier term, and this one's base.
            let saw = |(upto, chain): (Batch, Digest), past: u64| {
                let earlier =
                    |t: &Term| self.made.get(&(*t, upto)).is_some_and(|m| m.contains(&chain));
                self.proposals.get(&(*term, upto)).is_none_or(|seq| seq.0 <= past)
                    || (0..term.0).map(Term).any(|t| earlier(&t))
            };
            let names = |named: &Named| {
                let mut later = named.range((batch, Digest::default())..);
                later.any(|(later, past)| saw(*later, *past) && self.continues(*later, end))
            };
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
    let mut seen = Seen::new(&facts.cluster);
    for (_, event) in events {
        match event {
            Event::HostCrashed { host } => {
                seen.down.insert(*host);
            }
            Event::HostStarted { host, .. } => {
                seen.down.remove(host);
            }
            Event::GuestStarted { server, .. } => {
                seen.committed.remove(server);
            }
            Event::Restored { server, checkpoint, chain, .. } if !seen.too_many => {
                seen.committed.remove(server);
                seen.commit(*server, (checkpoint.batch, *chain), facts.f)?;
            }
            Event::Admitted { host, seq, seen: past, says } if !seen.too_many => {
                seen.admit(*host, *seq, past, says);
            }
            Event::Committed { server, batch, chain } if !seen.too_many => {
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
    use crate::checkers::made_up::{admitted, committed, judge, rejected, restored};
    use crate::cluster::CLUSTER;

    fn content(what: &str) -> Digest {
        Digest::of(&[what.as_bytes()])
    }

    fn chain(contents: &[&str]) -> Digest {
        let start = Seen::new(&CLUSTER).start.1;
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
        // So has one that starts from a snapshot.
        let start = restored(1, 2, 9, chain(&["a", "b"]));
        assert_eq!(judge(check, &with(&[voted.clone(), start.clone()])), Ok(()));
        rejected(check, &with(std::slice::from_ref(&start)), "1 have voted");
        // Nobody but the sequencer has voted.
        rejected(check, &with(std::slice::from_ref(&both)), "1 have voted");
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
