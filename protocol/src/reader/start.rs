//! Where a reader starts that does not start at the beginning (section 6): what a full reader knows
//! at a checkpoint's cut, as far as it still matters to whoever reads on from there.
//!
//! What matters is little. Let the checkpoint be `(t, b)`: term `t`'s own votes commit batch `b`.
//! Each of those `f + 1` votes comes after the record that proposed `b`, so none is within the cut,
//! nor is its writer's CHANGE of `t` or of a later term. At most `f` writers have such a CHANGE
//! there: nobody has one of `t + 1` (R1), and no term after `t` is open. A later term's evidence
//! names one of the voters (section 8), so its base is `(t, b)` or higher, and what it has seen
//! covers the cut. Terms before `t` can still commit, but only what `base(t)` already holds.
//!
//! So a [`Start`] holds: term `t` with the part of its chain that records after the cut can still
//! be judged by; per writer its position, last CHANGE and highest vote of `t`; and whether term
//! `t + 1` is dead. Pruning makes a full reader forget everything else, so that what it holds is
//! bounded by what lies between the stable cut and now.

use shared_registers::canary::{Canary, broken};
use shared_registers::checkpoint::Claims;
use shared_registers::codec::{Malformed, Put, Reader as Bytes};
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Batch, Micros, Seq, Term};
use shared_registers::record::{Checkpoint, Stamp};

use super::term::{LiveBatch, Mark, Opening, TermState};
use super::writer::{ChangeAt, Writer};
use super::{Base, Reader};

/// One stream at the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterStart {
    /// Records within the cut.
    pub read: Seq,
    /// The last CHANGE among them: its place and its term. The segment follows from it (V1).
    pub change: Option<(Seq, Term)>,
    /// The writer's highest vote of the term among them, unless it is below [`Start::floor`]: such
    /// a vote decides nothing any more, and not every reader knows of it.
    pub vote: Option<Batch>,
}

/// What a reader starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The checkpoint's term, whose own votes commit the batch.
    pub term: Term,
    /// The record that opened it; 0 for term 0.
    pub opening: Seq,
    /// Where it began (B1).
    pub base: Base,
    /// The checkpoint's batch, and the chain there.
    pub batch: (Batch, Mark),
    /// The last batch that the term's own votes commit within the cut, or the base: votes below it
    /// decide nothing (C1: `f + 1` writers are there already).
    pub floor: (Batch, Mark),
    /// The chain at each batch after the floor and before the checkpoint's: votes for these that
    /// come after the cut still move V2's window. At most `W` of them.
    pub kept: Vec<Mark>,
    /// Whether term `t + 1` is dead already.
    pub next_dead: bool,
    /// Each stream.
    pub writers: Vec<WriterStart>,
}

const MARK_BYTES: usize = 48;

fn put_mark(out: &mut Vec<u8>, mark: &Mark) {
    out.put_u64(mark.seq.0);
    out.extend_from_slice(&mark.chain.0);
    out.put_u64(mark.history);
}

fn mark(from: &mut Bytes<'_>) -> Result<Mark, Malformed> {
    let (seq, chain) = (Seq(from.u64()?), Digest(*from.array()?));
    Ok(Mark { seq, chain, history: from.u64()? })
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(u8::from(value.is_some()));
    out.put_u64(value.unwrap_or(0));
}

/// One encoding of each value: what is not there is zero.
fn option(from: &mut Bytes<'_>) -> Result<Option<u64>, Malformed> {
    match (from.u8()?, from.u64()?) {
        (0, 0) => Ok(None),
        (1, value) => Ok(Some(value)),
        _ => Err(Malformed),
    }
}

impl Start {
    /// Per stream, how many records it covers.
    pub fn cut(&self) -> Vec<u64> {
        self.writers.iter().map(|writer| writer.read.0).collect()
    }

    /// Appends the one encoding of it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.term.0);
        out.put_u64(self.opening.0);
        out.put_u64(self.base.batch.0);
        put_option(out, self.base.parent.map(|term| term.0));
        out.extend_from_slice(&self.base.chain.0);
        for (batch, mark) in [&self.batch, &self.floor] {
            out.put_u64(batch.0);
            put_mark(out, mark);
        }
        out.put_u32(self.kept.len() as u32);
        self.kept.iter().for_each(|mark| put_mark(out, mark));
        out.push(u8::from(self.next_dead));
        out.put_u16(self.writers.len() as u16);
        for writer in &self.writers {
            out.put_u64(writer.read.0);
            let (seq, term) = writer.change.unzip();
            put_option(out, seq.map(|seq| seq.0));
            put_option(out, term.map(|term| term.0));
            put_option(out, writer.vote.map(|batch| batch.0));
        }
    }

    /// Takes one, of a cluster of `n` servers, off the front of `from`.
    pub fn decode(from: &mut Bytes<'_>, n: usize) -> Result<Start, Malformed> {
        let (term, opening) = (Term(from.u64()?), Seq(from.u64()?));
        let (batch, parent) = (Batch(from.u64()?), option(from)?.map(Term));
        let base = Base { batch, parent, chain: Digest(*from.array()?) };
        let batch = (Batch(from.u64()?), mark(from)?);
        let floor = (Batch(from.u64()?), mark(from)?);
        let count = from.u32()? as usize;
        if count > from.left() / MARK_BYTES {
            return Err(Malformed);
        }
        let kept = (0..count).map(|_| mark(from)).collect::<Result<Vec<_>, _>>()?;
        // The floor and what is kept lead from the base to the batch before the checkpoint's.
        let reaches = floor.0.0.checked_add(count as u64);
        let at_base = batch.0 == base.batch && reaches == Some(base.batch.0);
        if !at_base && reaches.and_then(|last| last.checked_add(1)) != Some(batch.0.0)
            || floor.0 < base.batch
            || term == Term(u64::MAX)
        {
            return Err(Malformed);
        }
        let next_dead = match from.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        if usize::from(from.u16()?) != n {
            return Err(Malformed);
        }
        let writer = |_| {
            let read = Seq(from.u64()?);
            let change = match (option(from)?, option(from)?) {
                (Some(seq), Some(term)) if seq <= read.0 => Some((Seq(seq), Term(term))),
                (None, None) => None,
                _ => return Err(Malformed),
            };
            Ok(WriterStart { read, change, vote: option(from)?.map(Batch) })
        };
        let writers = (0..n).map(writer).collect::<Result<Vec<_>, _>>()?;
        Ok(Start { term, opening, base, batch, floor, kept, next_dead, writers })
    }

    /// The term, as it stands at the cut.
    fn term_state(&self) -> TermState {
        let at_base = self.batch.0 == self.base.batch;
        let seen = if at_base { self.cut().into() } else { Box::default() };
        let mut state = TermState::open(self.opening, seen, self.base, 0);
        state.prune(self.floor.0, self.floor.1);
        for mark in &self.kept {
            let (time, cut, orders) = (Micros(0), None, None);
            state.push(LiveBatch { mark: *mark, time, cut, orders });
        }
        state
    }

    /// A stream, as it stands at the cut.
    fn writer(&self, start: &WriterStart) -> Writer {
        let mut writer = Writer { read: start.read, ..Writer::default() };
        let vote = start.vote.map(|upto| (self.term, upto));
        if let Some((_, upto)) = vote {
            // Where exactly it stands is never asked: whatever counts has seen the whole cut.
            writer.vote(start.read, self.term, upto);
        }
        if let Some((seq, term)) = start.change {
            writer.segment = term.next();
            writer.changes.insert(term, ChangeAt { seq, highest: vote });
        }
        writer
    }
}

impl Reader {
    /// A reader that starts from the stable checkpoint that `start` is of. The rest is as in
    /// [`Self::new`].
    pub fn from_start(
        cluster: ClusterId,
        window: u64,
        checkpoint_weight: u64,
        start: &Start,
        stable: Checkpoint,
    ) -> Reader {
        let n = start.writers.len();
        let mut reader = Reader::new(cluster, n, window, checkpoint_weight);
        let term = start.term;
        reader.writers = start.writers.iter().map(|writer| start.writer(writer)).collect();
        reader.terms = [(term, start.term_state())].into();
        if start.next_dead {
            let sequencer = &start.writers[term.next().sequencer(n).index()];
            reader.terms.insert(term.next(), TermState::dead(sequencer.read));
        }
        let changed = start.writers.iter().filter(|w| w.change.is_some_and(|c| c.1 == term));
        reader.changed = [(term, changed.count())].into();
        if let Some(batch) = reader.committed_within(term, &start.cut())
            && let Some(state) = reader.terms.get_mut(&term)
        {
            state.commit(batch);
        }
        (reader.entered, reader.oldest) = (term, term);
        reader.committed = (term, start.batch.0);
        reader.taken = (start.batch.0, start.batch.1.chain);
        reader.claims = Claims::new(n, Some(stable));
        reader.stable_history = start.batch.1.history;
        reader.pruned = Some((term, start.batch.0));
        reader
    }

    /// What a reader starts from at the checkpoint `(term, batch)`; `None` unless a checkpoint is
    /// due there, the term's own votes commit it, and it lies after the one that this reader was
    /// pruned to.
    pub fn start_at(&self, term: Term, batch: Batch) -> Option<Start> {
        let state = self.terms.get(&term)?;
        if state.committed()? < batch {
            return None;
        }
        let (cut, base) = (self.cut_at(term, batch)?, state.base());
        let floor = self.committed_within(term, cut).unwrap_or(base.batch);
        let kept = (floor.0 + 1..batch.0).map(|batch| state.mark(Batch(batch)).copied());
        let next = self.terms.get(&term.next()).filter(|next| next.opening() == Opening::None);
        let of_next = cut[term.next().sequencer(self.n).index()];
        let writers = self.writers.iter().zip(cut).map(|(writer, read)| WriterStart {
            read: Seq(*read),
            change: writer
                .change_within(*read)
                .map(|(term, change)| (change.seq, term))
                .filter(|_| !broken(Canary::S6LastChange)),
            vote: writer
                .vote_within(term, *read)
                .filter(|upto| *upto >= floor && !broken(Canary::S6Votes)),
        });
        let opening = match state.opening() {
            Opening::At(seq) => seq,
            Opening::None => return None,
        };
        Some(Start {
            term,
            opening,
            base,
            batch: (batch, *state.mark(batch)?),
            floor: (floor, *state.mark(floor)?),
            kept: kept.collect::<Option<_>>()?,
            next_dead: next.is_some_and(|next| next.declared().0 <= of_next)
                && !broken(Canary::S6NextDead),
            writers: writers.collect(),
        })
    }

    /// The cut of the checkpoint that is due at `(term, batch)`, if its term's own votes commit it.
    pub fn cut_of(&self, term: Term, batch: Batch) -> Option<&[u64]> {
        let state = self.terms.get(&term)?;
        self.cut_at(term, batch).filter(|_| state.committed() >= Some(batch))
    }

    fn cut_at(&self, term: Term, batch: Batch) -> Option<&[u64]> {
        let cut = self.terms.get(&term)?.cut(batch);
        if broken(Canary::S6Cut) {
            let others = self.terms.range(..term).rev();
            let others = others.filter_map(|(_, other)| other.cut(other.base().batch));
            return others.take(1).next().or(cut);
        }
        cut
    }

    /// Open terms whose base is the last batch that was taken: a checkpoint is due there in each.
    pub fn based_on(&self, batch: Batch, chain: Digest) -> impl Iterator<Item = Term> {
        let bases = self.bases.range((batch, Term(0))..=(batch, Term(u64::MAX)));
        let same = move |term: &Term| self.terms.get(term).is_some_and(|s| s.base().chain == chain);
        bases.map(|(_, term)| *term).filter(same)
    }

    // Section 6: counts a claim.
    pub(super) fn read_claim(&mut self, stamp: &Stamp, claim: Option<Checkpoint>) {
        self.claim = claim;
        let Some(claim) = &self.claim else { return };
        if self.claims.count(stamp, claim).is_some() {
            let state = self.terms.get(&claim.term);
            // One of its claimants is correct: whoever reads its claim has read what it claims.
            let mark = state.and_then(|state| state.mark(claim.batch));
            self.stable_history = mark.map_or(self.stable_history, |mark| mark.history);
        }
    }

    /// The claim of the record that was read last, if it holds one.
    pub fn claim(&self) -> Option<&Checkpoint> {
        self.claim.as_ref()
    }

    /// The last stable checkpoint.
    pub fn stable(&self) -> Option<&Checkpoint> {
        self.claims.stable()
    }

    /// Whether `cut` lies after the last stable one.
    pub fn is_news(&self, cut: &[u64]) -> bool {
        self.stable().is_none_or(|stable| {
            *stable.cut != *cut && cut.iter().zip(&stable.cut).all(|(new, old)| new >= old)
        })
    }

    /// What the orders since the stable checkpoint weigh, up to the last live batch of `term`.
    pub fn weight_since_stable(&self, term: Term) -> u64 {
        let last = self.terms.get(&term).map_or(0, |state| state.last_mark().history);
        last.saturating_sub(self.stable_history)
    }

    /// The same for a term that begins at `base`.
    pub fn weight_at(&self, base: &Base) -> u64 {
        let parent = base.parent.and_then(|parent| self.terms.get(&parent));
        let history = parent.and_then(|parent| parent.mark(base.batch)).map_or(0, |m| m.history);
        history.saturating_sub(self.stable_history)
    }

    /// Forgets what a reader that starts from the stable checkpoint does not know, once everything
    /// up to it was taken for delivery.
    pub fn prune(&mut self) {
        let Some(stable) = self.claims.stable() else { return };
        let (term, batch) = (stable.term, stable.batch);
        if self.pruned == Some((term, batch)) || self.taken.0 < batch || broken(Canary::S6Prune) {
            return;
        }
        // More than f liars can make anything stable; then there is nothing to go by.
        let start = self.start_at(term, batch).filter(|start| Some(&start.cut()) == self.cut());
        self.pruned = Some((term, batch));
        let Some(start) = start else { return };
        self.terms = self.terms.split_off(&term);
        if let Some(state) = self.terms.get_mut(&term) {
            state.prune(start.floor.0, start.floor.1);
        }
        self.changed = self.changed.split_off(&term);
        self.bases.retain(|(_, of)| *of >= term);
        self.holding.retain(|of| *of >= term);
        self.oldest = self.oldest.max(term);
        for (writer, start) in self.writers.iter_mut().zip(&start.writers) {
            writer.prune(term, start.read.0);
        }
    }

    fn cut(&self) -> Option<&Vec<u64>> {
        self.claims.stable().map(|stable| &stable.cut)
    }

    /// The most votes and CHANGEs that are kept of one writer; and terms, and live batches, that
    /// are kept. All are bounded by the records since the stable cut (R7).
    pub fn held(&self) -> [usize; 4] {
        let votes = self.writers.iter().map(|writer| writer.votes.len()).max();
        let changes = self.writers.iter().map(|writer| writer.changes.len()).max();
        let batches = self.terms.values().map(TermState::len).sum();
        [votes.unwrap_or(0), changes.unwrap_or(0), self.terms.len(), batches]
    }
}
