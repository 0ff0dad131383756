//! Section 6: what is stable is stable by `f + 1` claims, each of which had seen the whole cut, and
//! whoever takes it for stable was shown so many of these; the
//! cut is what the record that proposed the batch, or opened the term, had seen; two checkpoints of
//! one term and batch are one; cuts are ordered as their terms and batches are; servers that were
//! never broken into claim alike; and no host forgets a record that no stable cut covers.

use std::collections::{BTreeMap, BTreeSet};

use shared_registers::ids::{Batch, Seq, ServerId, Term};
use shared_registers::record::Checkpoint;

use super::{Events, Facts};
use crate::history::{Event, Says};

/// A PROPOSE, as it was admitted.
struct Proposed {
    term: Term,
    batch: Batch,
    opens: bool,
    seen: Vec<u64>,
}

#[derive(Default)]
struct Seen {
    n: usize,
    quorum: usize,
    broken_in: BTreeSet<ServerId>,
    /// Hosts that are down. One that died while it admitted a record may have shown it to its
    /// guest, and tells of it only when it starts again.
    down: BTreeSet<ServerId>,
    proposed: BTreeMap<(ServerId, Seq), Proposed>,
    /// Claims that had seen their cut: by writer, the first place.
    claims: BTreeMap<Checkpoint, BTreeMap<ServerId, Seq>>,
    /// By host, how many records of each stream its guest may see.
    exposed: BTreeMap<ServerId, Vec<u64>>,
    stable: BTreeMap<(Term, Batch), Checkpoint>,
    /// What correct servers have claimed.
    correct: BTreeMap<(Term, Batch), (ServerId, Checkpoint)>,
    /// Per stream, the largest stable cut.
    covered: Vec<u64>,
}

fn within(cut: &[u64], other: &[u64]) -> bool {
    cut.len() == other.len() && cut.iter().zip(other).all(|(cut, other)| cut <= other)
}

impl Seen {
    fn claim(
        &mut self,
        host: ServerId,
        seq: Seq,
        seen: &[u64],
        claim: &Checkpoint,
    ) -> Result<(), String> {
        let at = (claim.term, claim.batch);
        let fits = within(&claim.cut, seen);
        if !self.broken_in.contains(&host) {
            if !fits {
                return Err(format!("server {host} claims {claim:?}, and had seen {seen:?}"));
            }
            let (other, first) = self.correct.entry(at).or_insert((host, claim.clone()));
            if first != claim {
                return Err(format!("servers {other} and {host} claim {first:?} and {claim:?}"));
            }
        }
        if !fits {
            return Ok(());
        }
        let claimants = self.claims.entry(claim.clone()).or_default();
        if claimants.contains_key(&host) {
            return Ok(());
        }
        claimants.insert(host, seq);
        if claimants.len() != self.quorum {
            return Ok(());
        }
        self.becomes_stable(claim)
    }

    fn becomes_stable(&mut self, claim: &Checkpoint) -> Result<(), String> {
        let at = (claim.term, claim.batch);
        if let Some(known) = self.stable.insert(at, claim.clone()) {
            return Err(format!("{known:?} and {claim:?} are stable"));
        }
        let before = self.stable.range(..at).next_back();
        let after = self.stable.range(at..).nth(1);
        let ordered = |low: &Checkpoint, high: &Checkpoint| within(&low.cut, &high.cut);
        if before.is_some_and(|(_, before)| !ordered(before, claim))
            || after.is_some_and(|(_, after)| !ordered(claim, after))
        {
            return Err(format!("the cut of {claim:?} is not ordered as {before:?}, {after:?}"));
        }
        let sequencer = claim.term.sequencer(self.n);
        let next = Seq(claim.cut[sequencer.index()]).next();
        let proposed = self.proposed.get(&(sequencer, next)).is_some_and(|record| {
            let its = record.opens || record.batch == claim.batch;
            record.term == claim.term && its && record.seen == claim.cut
        });
        if !proposed {
            return Err(format!("the cut of {claim:?} is not what its record had seen"));
        }
        self.covered.resize(self.n, 0);
        self.covered.iter_mut().zip(&claim.cut).for_each(|(most, cut)| *most = (*most).max(*cut));
        Ok(())
    }

    fn knows(&self, server: ServerId, checkpoint: &Checkpoint) -> Result<(), String> {
        if self.down.contains(&server) {
            return Ok(());
        }
        let shown = self.exposed.get(&server);
        let upto = |writer: &ServerId| shown.map_or(0, |shown| shown[writer.index()]);
        let claims = self.claims.get(checkpoint).into_iter().flatten();
        let claims = claims.filter(|(writer, seq)| seq.0 <= upto(writer)).count();
        if claims >= self.quorum {
            return Ok(());
        }
        Err(format!("server {server} takes {checkpoint:?} for stable, which {claims} claim"))
    }

    fn reclaimed(&self, host: ServerId, first: &[u64]) -> Result<(), String> {
        let none = vec![0; first.len()];
        let covered = if self.covered.is_empty() { &none } else { &self.covered };
        match within(first, covered) {
            true => Ok(()),
            false => Err(format!(
                "host {host} has reclaimed {first:?}, and stable checkpoints cover {covered:?}"
            )),
        }
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let (n, quorum) = (facts.n, facts.f + 1);
    let mut seen = Seen { n, quorum, ..Seen::default() };
    for (_, event) in events {
        match event {
            Event::GuestStarted { server, correct: false } => {
                seen.broken_in.insert(*server);
            }
            Event::HostCrashed { host } => {
                seen.down.insert(*host);
            }
            Event::HostStarted { host, .. } => {
                seen.down.remove(host);
            }
            Event::Admitted {
                host,
                seq,
                seen: past,
                says: Says::Propose { term, batch, opens, .. },
            } => {
                let (term, batch, opens, past) = (*term, *batch, *opens, past.clone());
                let proposed = Proposed { term, batch, opens, seen: past };
                seen.proposed.insert((*host, *seq), proposed);
            }
            Event::Claimed { host, seq, seen: past, claim } => {
                seen.claim(*host, *seq, past, claim)?;
            }
            Event::Exposed { host, upto } => {
                seen.exposed.insert(*host, upto.clone());
            }
            Event::Stable { server, checkpoint } | Event::Restored { server, checkpoint, .. } => {
                seen.knows(*server, checkpoint)?;
            }
            Event::Reclaimed { host, first } => seen.reclaimed(*host, first)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::made_up::{admitted, checkpoint, judge, rejected, restored};
    use shared_registers::crypto::Digest;

    /// Server 0's `seq`-th record proposes this batch, having seen its own past and one record of
    /// each other.
    fn proposed(seq: u64, batch: u64) -> Event {
        let (term, batch, content) = (Term(0), Batch(batch), Digest::default());
        admitted(0, seq, [seq - 1, 1, 1], Says::Propose { term, batch, opens: false, content })
    }

    fn claimed(host: u16, seen: [u64; 3], claim: &Checkpoint) -> Event {
        let (host, seq) = (ServerId(host), Seq(1));
        Event::Claimed { host, seq, seen: seen.to_vec(), claim: claim.clone() }
    }

    fn stable(checkpoint: &Checkpoint) -> Event {
        Event::Stable { server: ServerId(2), checkpoint: checkpoint.clone() }
    }

    fn reclaimed(first: [u64; 3]) -> Event {
        Event::Reclaimed { host: ServerId(2), first: first.to_vec() }
    }

    /// Server 2 is shown all claims there are.
    fn shown() -> Event {
        Event::Exposed { host: ServerId(2), upto: vec![9; 3] }
    }

    const PAST: [u64; 3] = [9; 3];

    #[test]
    fn what_fewer_than_f_plus_1_claim_is_not_stable() {
        let one = checkpoint(3, [2, 1, 1]);
        let all = [proposed(3, 3), claimed(1, PAST, &one), claimed(2, PAST, &one), shown()];
        let good = [&all[..], &[stable(&one), reclaimed([2, 1, 0])]].concat();
        assert_eq!(judge(check, &good), Ok(()));
        let again = [&good[..], &[claimed(1, PAST, &one)]].concat();
        assert_eq!(judge(check, &again), Ok(()), "whoever repeats itself says nothing new");
        rejected(check, &[&all[..2], &[shown(), stable(&one)]].concat(), "which 1 claim");
        rejected(check, &[&all[..3], &[stable(&one)]].concat(), "which 0 claim");
        rejected(check, &[&all[..2], &[restored(2, 3, 1, Digest::default())]].concat(), "0 claim");
        // One claim had not seen the cut: a correct server makes none, others' do not count.
        let blind = claimed(1, [9, 0, 9], &one);
        rejected(check, &[&all[..2], std::slice::from_ref(&blind)].concat(), "had seen");
        let liar = Event::GuestStarted { server: ServerId(1), correct: false };
        let blind = [liar, proposed(3, 3), blind, claimed(2, PAST, &one), shown(), stable(&one)];
        rejected(check, &blind, "which 1 claim");
    }

    #[test]
    fn records_that_no_stable_cut_covers_must_stay() {
        let one = checkpoint(3, [2, 1, 1]);
        let all = [proposed(3, 3), claimed(1, PAST, &one), claimed(2, PAST, &one)];
        rejected(check, &[&all[..2], &[reclaimed([1, 0, 0])]].concat(), "has reclaimed");
        rejected(check, &[&all[..], &[reclaimed([3, 0, 0])]].concat(), "has reclaimed");
    }

    #[test]
    fn correct_servers_that_differ_and_cuts_of_other_records_are_rejected() {
        let one = checkpoint(3, [2, 1, 1]);
        let other = Checkpoint { digest: Digest([9; 32]), ..one.clone() };
        let differ = [proposed(3, 3), claimed(1, PAST, &one), claimed(2, PAST, &other)];
        rejected(check, &differ, "servers 1 and 2 claim");
        let both = |claim: &Checkpoint| [claimed(1, PAST, claim), claimed(2, PAST, claim)];
        let elsewhere = checkpoint(3, [2, 1, 0]);
        let cut = [&[proposed(3, 3)][..], &both(&elsewhere)].concat();
        rejected(check, &cut, "not what its record had seen");
        // The same batch twice, and a later one with a cut that goes back.
        let twice = [
            &[proposed(3, 3), Event::GuestStarted { server: ServerId(1), correct: false }][..],
            &both(&one),
            &[claimed(0, PAST, &one), claimed(1, PAST, &other)],
        ];
        assert_eq!(judge(check, &twice.concat()), Ok(()));
        let back = checkpoint(4, [1, 1, 1]);
        let back = [&[proposed(2, 4), proposed(3, 3)][..], &both(&one), &both(&back)].concat();
        rejected(check, &back, "not ordered");
    }
}
