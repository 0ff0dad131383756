//! Reading the streams (section 4): the rules V0 to V3, B1 and C1.
//!
//! Everything here is a pure function of the stream prefixes that were read. Two readers that have
//! read the same conclude the same, and reading more never retracts anything: each record is judged
//! once, when it is read, by what lies within its own causal past.
//!
//! A reader need not start at the beginning: `start` is how it starts from a checkpoint, and how
//! one that has read everything forgets what such a one does not know (section 6).

mod start;
mod term;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use shared_registers::canary::{Canary, broken};
use shared_registers::checkpoint::Claims;
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Batch, Micros, OrderId, Position, Seq, ServerId, Term};
use shared_registers::order;
use shared_registers::record::{Accept, Body, Checkpoint, Propose, Record, Stamp};

pub use start::{Start, WriterStart};
use term::{LiveBatch, Opening};
pub use term::{Mark, TermState};
use writer::{ChangeAt, Writer};

/// An order of a batch that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOrder {
    /// Whose, and which of theirs.
    pub id: OrderId,
    /// Its digest: see [`order::digest`].
    pub digest: Digest,
    /// The message.
    pub payload: Bytes,
}

/// A committed batch, to be delivered.
#[derive(Clone, Debug)]
pub struct CommittedBatch {
    /// Its number.
    pub batch: Batch,
    /// The chain value after it.
    pub chain: Digest,
    /// The term that proposed it.
    pub term: Term,
    /// When the host of its proposer admitted it.
    pub time: Micros,
    /// Whether the weight of the history passes a multiple of `K` with it: then a checkpoint at it
    /// is due in its term (section 6).
    pub due: bool,
    /// Its orders.
    pub orders: Arc<[ReadOrder]>,
}

/// Where a term begins (B1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The last batch that it takes over.
    pub batch: Batch,
    /// The term whose chain it continues; `None` before any vote.
    pub parent: Option<Term>,
    /// The chain value there.
    pub chain: Digest,
}

/// What a record said, as far as a replica has to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A live batch, or opening, of a term.
    Proposed(Term),
    /// A vote that counts.
    Voted(Term),
    /// A CHANGE.
    Changed(Term),
    /// Nothing that counts: reading rules ignore it.
    Nothing,
}

/// The reader of all streams of a cluster.
pub struct Reader {
    n: usize,
    f: usize,
    window: u64,
    checkpoint_weight: u64,
    writers: Vec<Writer>,
    terms: BTreeMap<Term, TermState>,
    /// How many distinct writers have a CHANGE of exactly this term.
    changed: BTreeMap<Term, usize>,
    entered: Term,
    /// The first term that counts: that of the checkpoint that it started from, or was pruned to.
    oldest: Term,
    /// Where open terms begin: with a base, a checkpoint of the term is due.
    bases: BTreeSet<(Batch, Term)>,
    /// Terms that still hold the orders of undelivered batches.
    holding: BTreeSet<Term>,
    committed: (Term, Batch),
    taken: (Batch, Digest),
    claims: Claims,
    /// The claim of the record that was read last, and what else it said.
    claim: Option<Checkpoint>,
    said: Said,
    /// Weight of the history at the stable checkpoint.
    stable_history: u64,
    /// The checkpoint that everything is pruned to.
    pruned: Option<(Term, Batch)>,
}

impl Reader {
    /// A reader that has read nothing. `window` is `W` (V2), `checkpoint_weight` is `K` (section
    /// 6).
    pub fn new(cluster: ClusterId, n: usize, window: u64, checkpoint_weight: u64) -> Reader {
        // C_0 names the cluster: chains of two clusters never meet.
        let start = Digest::of(&[&cluster.0]);
        let base = Base { batch: Batch(0), parent: None, chain: start };
        let first = TermState::open(Seq(0), Box::default(), base, 0);
        Reader {
            n,
            f: n / 2,
            window,
            checkpoint_weight: checkpoint_weight.max(1),
            writers: (0..n).map(|_| Writer::default()).collect(),
            terms: BTreeMap::from([(Term(0), first)]),
            changed: BTreeMap::new(),
            entered: Term(0),
            oldest: Term(0),
            bases: BTreeSet::new(),
            holding: BTreeSet::new(),
            committed: (Term(0), Batch(0)),
            taken: (Batch(0), start),
            claims: Claims::new(n, None),
            claim: None,
            said: Said::Nothing,
            stable_history: 0,
            pruned: None,
        }
    }

    /// Whether a record may be read now: it is its stream's next, and everything that its `seen`
    /// names has been read (V0).
    pub fn can_read(&self, stamp: &Stamp) -> bool {
        let next = self.writers[stamp.writer.index()].read.next() == stamp.seq;
        if broken(Canary::V0Seen) {
            return next;
        }
        next && stamp.seen.iter().zip(&self.writers).all(|(seen, writer)| *seen <= writer.read.0)
    }

    /// Reads a record, for which [`Self::can_read`] must hold.
    pub fn read(&mut self, record: &Record<'_>) -> Said {
        let stamp = &record.stamp;
        assert!(self.can_read(stamp), "V0: a record was read before its causal past");
        self.writers[stamp.writer.index()].read = stamp.seq;
        self.claim = None;
        self.said = match Body::decode(record.body, self.n) {
            Ok(Body::Propose(propose)) => self.read_propose(stamp, &propose),
            Ok(Body::Accept(accept)) => {
                let said = self.read_accept(stamp, &accept);
                self.read_claim(stamp, accept.checkpoint);
                said
            }
            Ok(Body::Change(change)) => self.read_change(stamp, change.term),
            // Hosts admit only well-formed bodies (R1); what is not says nothing.
            Err(_) => Said::Nothing,
        };
        self.said
    }

    /// What the record said that was read last.
    pub fn said(&self) -> Said {
        self.said
    }

    // V1: a CHANGE closes its writer's segments up to its term.
    fn read_change(&mut self, stamp: &Stamp, term: Term) -> Said {
        let writer = &mut self.writers[stamp.writer.index()];
        if term < writer.segment {
            return Said::Nothing; // R1 does not admit it.
        }
        let highest = writer.highest();
        writer.changes.insert(term, ChangeAt { seq: stamp.seq, highest });
        writer.segment = match broken(Canary::V1Jump) {
            false => term.next(),
            true => writer.segment.next(),
        };
        let writers = self.changed.entry(term).or_default();
        *writers += 1;
        if *writers == self.f + 1 {
            self.entered = self.entered.max(term.next());
        }
        Said::Changed(term)
    }

    // V2: proposals of term t stand in segment t of its sequencer's stream.
    fn read_propose(&mut self, stamp: &Stamp, propose: &Propose<'_>) -> Said {
        let term = propose.term;
        let in_segment =
            self.writers[stamp.writer.index()].segment == term || broken(Canary::V1Propose);
        if !in_segment || term.sequencer(self.n) != stamp.writer {
            return Said::Nothing; // V1
        }
        if term < self.oldest {
            return Said::Nothing; // Nothing before a stable checkpoint's term counts any more.
        }
        let reopens = broken(Canary::V2Reopened) && term.0 > 0 && propose.orders.is_empty();
        let known = self.terms.get(&term).filter(|_| !reopens);
        // A reader that starts from a checkpoint may know the term before its opening is read.
        let opens = term.0 > 0 && known.is_none_or(|state| state.declared() == stamp.seq);
        if known.is_none() {
            let opening = self.opening(stamp, propose);
            self.terms.insert(term, opening);
        }
        if self.terms[&term].is_dead() {
            return Said::Nothing;
        }
        let empty_opening = opens && propose.orders.is_empty();
        if !empty_opening && !self.extend(stamp, propose) {
            if opens {
                // An opening whose own batch breaks the rule opens nothing.
                self.terms.insert(term, TermState::dead(stamp.seq));
            } else {
                self.terms.get_mut(&term).expect("inserted above").kill();
            }
            return Said::Nothing;
        }
        if opens {
            self.bases.insert((self.terms[&term].base().batch, term));
        }
        // A live PROPOSE is its writer's vote (V3).
        if !(broken(Canary::V3Propose) || opens && broken(Canary::V3Opening)) {
            let last = self.terms[&term].last();
            self.count_vote(stamp, term, last);
        }
        Said::Proposed(term)
    }

    // V2: the first proposal of a later term must cite f + 1 CHANGEs of the term before.
    fn opening(&self, stamp: &Stamp, propose: &Propose<'_>) -> TermState {
        let count = propose.evidence.len() + usize::from(broken(Canary::V2EvidenceCount));
        let saw = |cited: &Position| stamp.saw(*cited) || broken(Canary::V2EvidenceSeen);
        let valid = count == self.f + 1 && propose.evidence.iter().all(saw);
        let base = valid.then(|| self.base_of(propose.term, &propose.evidence)).flatten();
        match base {
            Some(base) => {
                let of = base.parent.and_then(|parent| self.terms.get(&parent));
                let history =
                    of.and_then(|parent| parent.mark(base.batch)).map_or(0, |m| m.history);
                TermState::open(stamp.seq, stamp.seen.clone(), base, history)
            }
            None => TermState::dead(stamp.seq),
        }
    }

    /// B1: the base that an opening of `term` with this evidence has; `None` if the evidence is not
    /// CHANGEs of exactly the term before, by distinct writers.
    pub fn base_of(&self, term: Term, evidence: &[Position]) -> Option<Base> {
        let before = Term(term.0.checked_sub(1)?);
        let (mut writers, mut votes) = (BTreeSet::new(), Vec::new());
        for cited in evidence {
            let change = self.writers.get(cited.writer.index())?.change_at(cited.seq, before)?;
            if !writers.insert(cited.writer) && !broken(Canary::V2EvidenceWriters) {
                return None;
            }
            if cited.writer == term.sequencer(self.n) || !broken(Canary::B1OwnVotes) {
                votes.push(change.highest);
            }
        }
        Some(match highest(votes) {
            None => Base { parent: None, ..self.terms.get(&Term(0))?.base() },
            Some((parent, batch)) => {
                let chain = self.terms.get(&parent)?.chain_at(batch)?;
                Base { batch, parent: Some(parent), chain }
            }
        })
    }

    /// `f + 1` CHANGEs of the term before `term`, if so many were read.
    pub fn evidence_for(&self, term: Term) -> Option<Vec<Position>> {
        let before = Term(term.0.checked_sub(1)?);
        let cited = ServerId::all(self.n).filter_map(|writer| {
            let change = self.writers[writer.index()].changes.get(&before)?;
            Some(Position { writer, seq: change.seq })
        });
        let evidence: Vec<_> = cited.take(self.f + 1).collect();
        (evidence.len() == self.f + 1).then_some(evidence)
    }

    // V2: batches are consecutive, never empty, never more than W past what the term's own votes
    // commit within the record's past, or past the base.
    fn extend(&mut self, stamp: &Stamp, propose: &Propose<'_>) -> bool {
        let base = self.terms[&propose.term].base().batch;
        let committed = self.committed_within(propose.term, &stamp.seen).unwrap_or(base);
        let limit = committed.0.saturating_add(self.window);
        if broken(Canary::V2Consecutive) {
            self.terms.get_mut(&propose.term).expect("it is open").withdraw(propose.batch);
        }
        let term = &self.terms[&propose.term];
        let ahead = propose.batch.0 > limit && !broken(Canary::V2Window);
        if propose.batch != term.last().next() || ahead {
            return false;
        }
        let orders: Arc<[ReadOrder]> = propose.orders.iter().map(|o| self.read_order(o)).collect();
        let mut digests = Vec::with_capacity(orders.len() * 32);
        for order in orders.iter() {
            digests.extend_from_slice(&order.digest.0);
        }
        // C_b = H(C_{b-1} || digest of batch b), over its orders without their MACs.
        let before = term.last_mark();
        let chain = Digest::of(&[&before.chain.0, &Digest::of(&[&digests]).0]);
        let weight: u64 = orders.iter().map(|o| order::weight(o.payload.len())).sum();
        let history = before.history.saturating_add(weight);
        let due = before.history / self.checkpoint_weight < history / self.checkpoint_weight;
        let live = LiveBatch {
            mark: Mark { seq: stamp.seq, chain, history },
            time: stamp.time,
            cut: due.then(|| stamp.seen.clone()),
            orders: Some(orders),
        };
        self.holding.insert(propose.term);
        self.terms.get_mut(&propose.term).expect("looked up above").push(live);
        true
    }

    fn read_order(&self, order: &order::OrderView<'_>) -> ReadOrder {
        // R1: the proposer's host has checked the digest.
        ReadOrder {
            id: order.id,
            digest: order.digest,
            payload: Bytes::copy_from_slice(order.payload),
        }
    }

    /// The last batch that `term`'s own votes commit within the causal past `seen`.
    fn committed_within(&self, term: Term, seen: &[u64]) -> Option<Batch> {
        let votes = self.writers.iter().zip(seen).map(|(w, seen)| w.vote_within(term, *seen));
        quorum(votes, self.f)
    }

    // V3: whether an ACCEPT is a vote.
    fn read_accept(&mut self, stamp: &Stamp, accept: &Accept) -> Said {
        let (Some(vote), term) = (accept.vote, accept.term) else { return Said::Nothing };
        let writer = &self.writers[stamp.writer.index()];
        if writer.segment != term && !broken(Canary::V1Vote) {
            return Said::Nothing; // V1
        }
        let Some(state) = self.terms.get(&term) else { return Said::Nothing };
        let seen = Seq(stamp.seen[term.sequencer(self.n).index()]);
        let stands = match state.opening() {
            Opening::At(opening) => {
                let saw = |seq| seq <= seen || broken(Canary::V3Unseen);
                opening <= seen && state.mark(vote.upto).is_some_and(|mark| saw(mark.seq))
            }
            Opening::None => false,
        };
        let chain = state.chain_at(vote.upto) == Some(vote.chain) || broken(Canary::V3Chain);
        let rising =
            writer.vote_within(term, stamp.seq.0) <= Some(vote.upto) || broken(Canary::V3Falling);
        if !(stands && chain && rising) {
            return Said::Nothing;
        }
        self.count_vote(stamp, term, vote.upto);
        Said::Voted(term)
    }

    // C1: f + 1 votes of one term commit its chain.
    fn count_vote(&mut self, stamp: &Stamp, term: Term, upto: Batch) {
        self.writers[stamp.writer.index()].vote(stamp.seq, term, upto);
        let votes = self.writers.iter().map(|w| w.vote_within(term, u64::MAX));
        let Some(batch) = quorum(votes, self.f) else { return };
        if let Some(state) = self.terms.get_mut(&term) {
            state.commit(batch);
        }
        if batch > self.committed.1 {
            self.committed = (term, batch);
        }
    }

    /// The next committed batch that was not taken yet, in sequence.
    pub fn take_committed(&mut self) -> Option<CommittedBatch> {
        let batch = self.taken.0.next();
        if batch > self.committed.1 {
            return None;
        }
        let term = self.term_holding(self.committed.0, batch);
        let live = self.terms[&term].get(batch).expect("a committed batch was read");
        let orders = live.orders.clone().expect("orders stay until their batch is taken");
        let (chain, time, due) = (live.mark.chain, live.time, live.cut.is_some());
        let taken = CommittedBatch { batch, term, chain, time, due, orders };
        self.taken = (batch, taken.chain);
        let terms = &mut self.terms;
        self.holding.retain(|term| {
            terms.get_mut(term).is_some_and(|state| state.forget_orders_upto(batch))
        });
        Some(taken)
    }

    /// The term that holds batch `batch` of `term`'s chain: itself, or one that it continues.
    fn term_holding(&self, mut term: Term, batch: Batch) -> Term {
        while let Some(base) = self.terms.get(&term).map(TermState::base) {
            match base.parent {
                Some(parent) if batch <= base.batch => term = parent,
                _ => break,
            }
        }
        term
    }

    /// The orders of the batches of `term`'s chain that are not taken yet, in sequence.
    pub fn untaken(&self, term: Term) -> impl Iterator<Item = &Arc<[ReadOrder]>> {
        let last = self.terms.get(&term).map_or(Batch(0), TermState::last);
        (self.taken.0.0 + 1..=last.0).filter_map(move |batch| {
            let holder = self.term_holding(term, Batch(batch));
            self.terms.get(&holder)?.get(Batch(batch))?.orders.as_ref()
        })
    }

    /// Records read of a stream.
    pub fn read_count(&self, writer: ServerId) -> Seq {
        self.writers[writer.index()].read
    }

    /// The segment that a writer is in (V1).
    pub fn segment(&self, writer: ServerId) -> Term {
        self.writers[writer.index()].segment
    }

    /// A writer's highest vote of a term.
    pub fn vote(&self, writer: ServerId, term: Term) -> Option<Batch> {
        self.writers[writer.index()].vote_within(term, u64::MAX)
    }

    /// The newest term that `f + 1` CHANGEs of the one before let a replica enter (P4).
    pub fn entered(&self) -> Term {
        self.entered
    }

    /// The first term that counts: what earlier ones can still say was settled by a checkpoint.
    pub fn oldest(&self) -> Term {
        self.oldest
    }

    /// What is known of a term; `None` before its opening.
    pub fn term(&self, term: Term) -> Option<&TermState> {
        self.terms.get(&term)
    }

    /// The last committed batch (C1).
    pub fn committed(&self) -> Batch {
        self.committed.1
    }

    /// The last batch that was taken for delivery, and the chain value after it.
    pub fn taken(&self) -> (Batch, Digest) {
        self.taken
    }
}

/// The highest of the cited writers' votes, by term, then by batch (B1); `None` is no vote.
fn highest(votes: Vec<Option<(Term, Batch)>>) -> Option<(Term, Batch)> {
    let votes = votes.into_iter();
    if broken(Canary::B1Lowest) {
        return votes.min().flatten();
    } else if broken(Canary::B1BatchOnly) {
        return votes.max_by_key(|vote| vote.map(|(term, upto)| (upto, term))).flatten();
    }
    votes.max().flatten()
}

/// The highest batch that `f + 1` of the votes reach.
fn quorum(votes: impl Iterator<Item = Option<Batch>>, f: usize) -> Option<Batch> {
    let mut reached = [Batch(0); shared_registers::limits::MAX_SERVERS];
    let mut count = 0;
    for batch in votes.flatten() {
        reached[count] = batch;
        count += 1;
    }
    let reached = &mut reached[..count];
    reached.sort_unstable();
    let needed = f + usize::from(!broken(Canary::C1Quorum));
    reached.len().checked_sub(needed).map(|i| reached[i])
}

#[cfg(test)]
mod tests;
