//! What is known of one stream.

use std::collections::BTreeMap;

use shared_registers::canary::{Canary, broken};
use shared_registers::ids::{Batch, Seq, Term};

/// A vote, where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct VoteAt {
    pub(super) seq: Seq,
    pub(super) term: Term,
    pub(super) upto: Batch,
}

/// A CHANGE, where it stands, and its writer's highest vote before it (B1).
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeAt {
    pub(super) seq: Seq,
    pub(super) highest: Option<(Term, Batch)>,
}

/// One stream, as far as it was read. Votes and changes grow with the stream; they are pruned to
/// what lies after the last stable cut, so its ring bounds them (section 6).
#[derive(Default)]
pub(super) struct Writer {
    pub(super) read: Seq,
    /// The segment that the next record stands in (V1).
    pub(super) segment: Term,
    /// Votes; rising by position, by term, and within a term by batch.
    pub(super) votes: Vec<VoteAt>,
    pub(super) changes: BTreeMap<Term, ChangeAt>,
}

impl Writer {
    pub(super) fn vote(&mut self, seq: Seq, term: Term, upto: Batch) {
        self.votes.push(VoteAt { seq, term, upto });
    }

    /// The CHANGE of `term`, if it is record `seq`.
    pub(super) fn change_at(&self, seq: Seq, term: Term) -> Option<&ChangeAt> {
        let change = match broken(Canary::V2EvidenceTerm) {
            false => self.changes.get(&term)?,
            true => self.changes.values().find(|change| change.seq == seq)?,
        };
        (change.seq == seq).then_some(change)
    }

    /// The highest vote so far, by term, then by batch (B1).
    pub(super) fn highest(&self) -> Option<(Term, Batch)> {
        if broken(Canary::B1BatchOnly) {
            let votes = self.votes.iter().map(|v| (v.term, v.upto));
            return votes.max_by_key(|(term, upto)| (*upto, *term));
        }
        self.votes.last().map(|v| (v.term, v.upto))
    }

    /// The highest vote of `term` within the first `read` records.
    pub(super) fn vote_within(&self, term: Term, read: u64) -> Option<Batch> {
        let last = self.votes.last()?;
        let within = if last.seq.0 <= read && last.term <= term {
            Some(last)
        } else {
            let end = self.votes.partition_point(|v| v.seq.0 <= read && v.term <= term);
            self.votes[..end].last()
        };
        within.filter(|vote| vote.term == term).map(|vote| vote.upto)
    }

    /// The last CHANGE within the first `read` records, and its term.
    pub(super) fn change_within(&self, read: u64) -> Option<(Term, &ChangeAt)> {
        let mut changes = self.changes.iter().rev().map(|(term, change)| (*term, change));
        changes.find(|(_, change)| change.seq.0 <= read)
    }

    /// Forgets what a reader that starts at a checkpoint of `term`, whose cut covers `read` records
    /// of this stream, never asks for: votes of earlier terms, and within the cut all votes but the
    /// last, and all CHANGEs of earlier terms but the last. Later ones are some later cut's last.
    pub(super) fn prune(&mut self, term: Term, read: u64) {
        let last = self.change_within(read).map(|(term, _)| term);
        self.changes
            .retain(|changed, at| *changed >= term || at.seq.0 > read || Some(*changed) == last);
        let within = self.votes.partition_point(|v| v.seq.0 <= read && v.term <= term);
        self.votes.drain(..within.saturating_sub(1));
        self.votes.retain(|vote| vote.term >= term);
    }
}
