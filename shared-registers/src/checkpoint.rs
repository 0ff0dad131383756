//! Which checkpoint is stable (section 6): the one thing of the protocol that hosts count.
//!
//! Replicas claim checkpoints in their ACCEPTs. `f + 1` equal claims make one stable: one of the
//! claimants is correct, so the snapshot of that digest exists and holds what the records before
//! the cut say. Hosts may then forget those records, and whoever needs them starts from the snapshot.

use std::collections::VecDeque;

use crate::canary::{Canary, broken};
use crate::ids::ServerId;
use crate::limits::CLAIMS_HELD;
use crate::record::{Checkpoint, Stamp};

/// Claims that are not stable yet, and the last checkpoint that is.
pub struct Claims {
    needed: usize,
    stable: Option<Checkpoint>,
    /// Per writer, its newest claims, oldest first.
    held: Vec<VecDeque<Checkpoint>>,
    /// Per writer, the [height](Checkpoint::height) of its last claim. Claims only rise: one that does
    /// not says nothing. So whoever counts them by height, from wherever in the streams, finds all
    /// claims of one checkpoint together, however many others a writer makes. No height is past what
    /// its writer has seen, so one that was broken into is soon heard again.
    last: Vec<u64>,
}

impl Claims {
    /// No claim was read, in a cluster of `n` servers; `stable` is the checkpoint to start from.
    pub fn new(n: usize, stable: Option<Checkpoint>) -> Claims {
        Claims { needed: n / 2 + 1, stable, held: vec![VecDeque::new(); n], last: vec![0; n] }
    }

    /// The last stable checkpoint.
    pub fn stable(&self) -> Option<&Checkpoint> {
        self.stable.as_ref()
    }

    /// Counts the claim of a record. Returns it if it is stable from now on.
    pub fn count(&mut self, stamp: &Stamp, claim: &Checkpoint) -> Option<&Checkpoint> {
        if !self.says_something(stamp, claim) {
            return None;
        }
        self.last[stamp.writer.index()] = claim.height();
        if !self.is_news(claim) {
            return None;
        }
        let held = &mut self.held[stamp.writer.index()];
        if held.len() == CLAIMS_HELD {
            held.pop_front();
        }
        held.push_back(claim.clone());
        let claimants = self.held.iter().filter(|held| held.contains(claim)).count();
        if claimants + usize::from(broken(Canary::S6Quorum)) < self.needed {
            return None;
        }
        self.adopt(claim);
        self.stable()
    }

    /// Counts the lowest of the claims that were `found`, one of a writer at most. A writer's newer
    /// claims push out its older ones, so whoever counts many records at a time looks at each stream
    /// until it finds a claim that [says something](Self::says_something), counts the lowest of all
    /// streams, and looks on there. Returns whether that one is stable from now on; `None` if there
    /// is no claim.
    pub fn count_lowest(&mut self, found: &mut [Option<(Stamp, Checkpoint)>]) -> Option<bool> {
        let claims = found.iter_mut().filter(|found| found.is_some());
        let lowest = claims.min_by_key(|found| found.as_ref().map(|(_, claim)| claim.height()));
        let (stamp, claim) = lowest.and_then(Option::take)?;
        Some(self.count(&stamp, &claim).is_some())
    }

    /// Whether a claim speaks of what its own record has seen, and of more than its writer's last.
    pub fn says_something(&self, stamp: &Stamp, claim: &Checkpoint) -> bool {
        let seen = claim.cut.iter().zip(&stamp.seen).all(|(cut, seen)| cut <= seen);
        let rises = claim.height() > self.last[stamp.writer.index()];
        (seen || broken(Canary::S6Seen)) && rises
    }

    /// Takes a checkpoint for stable that somebody who never lies has found to be, if it lies after
    /// the one that is. Returns whether it does.
    pub fn adopt(&mut self, checkpoint: &Checkpoint) -> bool {
        if !self.is_news(checkpoint) {
            return false;
        }
        self.stable = Some(checkpoint.clone());
        let mut held = std::mem::take(&mut self.held);
        held.iter_mut().for_each(|held| held.retain(|claim| self.is_news(claim)));
        self.held = held;
        true
    }

    /// How many claims of `writer` wait.
    pub fn waiting(&self, writer: ServerId) -> usize {
        self.held[writer.index()].len()
    }

    /// Whether a claim's cut lies after the stable one.
    fn is_news(&self, claim: &Checkpoint) -> bool {
        match &self.stable {
            None => true,
            Some(stable) => {
                claim.cut != stable.cut
                    && claim.cut.iter().zip(&stable.cut).all(|(new, old)| new >= old)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Digest;
    use crate::ids::{Batch, Micros, Seq, Term};

    fn stamp(writer: u16, seq: u64) -> Stamp {
        let mut seen = vec![50; 5];
        seen[usize::from(writer)] = seq - 1;
        let (writer, seq) = (ServerId(writer), Seq(seq));
        Stamp { writer, seq, time: Micros(0), incarnation: 0, seen: seen.into() }
    }

    fn claim(batch: u64, digest: u8, cut: [u64; 5]) -> Checkpoint {
        let (term, batch, digest) = (Term(0), Batch(batch), Digest([digest; 32]));
        Checkpoint { term, batch, digest, cut: cut.into() }
    }

    #[test]
    fn f_plus_1_equal_claims_of_distinct_writers_are_stable() {
        let mut claims = Claims::new(5, None);
        let (a, b) = (claim(9, 1, [10; 5]), claim(9, 2, [10; 5]));
        assert!(claims.count(&stamp(0, 20), &a).is_none());
        assert!(claims.count(&stamp(0, 21), &a).is_none(), "its own again");
        assert!(claims.count(&stamp(1, 20), &a).is_none());
        assert!(claims.count(&stamp(2, 20), &b).is_none(), "another digest");
        assert!(claims.count(&stamp(2, 21), &a).is_none(), "it does not rise");
        assert_eq!(claims.count(&stamp(3, 20), &a), Some(&a));
        assert!(claims.count(&stamp(4, 20), &a).is_none(), "stable already");
        assert_eq!(claims.stable(), Some(&a));
        assert!(ServerId::all(5).all(|writer| claims.waiting(writer) == 0));
    }

    #[test]
    fn a_claim_past_its_own_seen_or_not_after_the_stable_cut_says_nothing() {
        let mut claims = Claims::new(5, Some(claim(9, 1, [10; 5])));
        let unseen = claim(20, 1, [20, 20, 20, 20, 51]);
        let own = claim(20, 1, [20; 5]);
        let aside = claim(20, 1, [20, 20, 20, 9, 20]);
        for writer in 0..5 {
            assert!(claims.count(&stamp(writer, 30), &unseen).is_none());
            assert!(claims.count(&stamp(writer, 20), &own).is_none(), "itself or later");
            assert!(claims.count(&stamp(writer, 30), &aside).is_none());
            assert_eq!(claims.waiting(ServerId(writer)), 0);
        }
    }

    #[test]
    fn a_stable_checkpoint_is_adopted_if_it_is_news() {
        let mut claims = Claims::new(5, None);
        let (old, new) = (claim(9, 1, [10; 5]), claim(20, 1, [20; 5]));
        for claim in [&old, &new] {
            claims.count(&stamp(0, 40), claim);
        }
        assert!(claims.adopt(&old) && !claims.adopt(&old));
        assert_eq!(claims.waiting(ServerId(0)), 1, "what lies after it waits on");
        assert!(claims.adopt(&new) && !claims.adopt(&old));
        assert_eq!((claims.stable(), claims.waiting(ServerId(0))), (Some(&new), 0));
    }

    #[test]
    fn claims_of_one_writer_push_out_only_its_own() {
        let mut claims = Claims::new(5, None);
        let good = claim(9, 1, [10; 5]);
        claims.count(&stamp(0, 20), &good);
        for batch in 0..40 {
            claims.count(&stamp(1, 30 + batch), &claim(batch, 7, [10 + batch; 5]));
            assert_eq!(claims.waiting(ServerId(1)), CLAIMS_HELD.min(batch as usize + 1));
        }
        claims.count(&stamp(2, 20), &good);
        assert!(claims.count(&stamp(3, 20), &good).is_some());
    }
}
