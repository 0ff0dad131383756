//! What is known of one term.

use std::collections::VecDeque;
use std::sync::Arc;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Micros, Seq};

use super::{Base, ReadOrder};

/// A live batch of a term (V2).
#[derive(Clone)]
pub(super) struct LiveBatch {
    /// The record that proposed it, and what the chain is after it.
    pub(super) mark: Mark,
    pub(super) time: Micros,
    /// If a checkpoint is due after it (section 6): its cut.
    pub(super) cut: Option<Box<[u64]>>,
    /// Until the batch of this number is taken for delivery.
    pub(super) orders: Option<Arc<[ReadOrder]>>,
}

/// A place on a term's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The record that proposed the batch; 0 for a base.
    pub seq: Seq,
    /// The chain value after it.
    pub chain: Digest,
    /// What all orders up to it weigh, of the whole history (section 6).
    pub history: u64,
}

/// Which record opened a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// None did, and none will: the first proposal was no valid opening.
    None,
    /// This one; 0 for term 0, which is open from the start.
    At(Seq),
}

/// A term whose first proposal was read (or term 0).
pub struct TermState {
    opening: Opening,
    /// The record that was judged as its opening.
    declared: Seq,
    /// What that record had seen: the cut of a checkpoint at the base (section 6). Empty if there
    /// is none: in term 0, in a dead term, and if the base lies before a stable checkpoint.
    opening_seen: Box<[u64]>,
    base: Base,
    /// The batch below which nothing is kept, and the chain there: the base, or after pruning a
    /// batch that the term's own votes have committed.
    floor: (Batch, Mark),
    batches: VecDeque<LiveBatch>,
    dead: bool,
    /// What the term's own votes commit (C1).
    committed: Option<Batch>,
}

impl TermState {
    pub(super) fn open(at: Seq, seen: Box<[u64]>, base: Base, history: u64) -> TermState {
        let floor = (base.batch, Mark { seq: Seq(0), chain: base.chain, history });
        TermState {
            opening: Opening::At(at),
            declared: at,
            opening_seen: seen,
            base,
            floor,
            batches: VecDeque::new(),
            dead: false,
            committed: None,
        }
    }

    pub(super) fn dead(at: Seq) -> TermState {
        let base = Base { batch: Batch(0), parent: None, chain: Digest::default() };
        let mut state = TermState::open(at, Box::default(), base, 0);
        (state.opening, state.dead) = (Opening::None, true);
        state
    }

    /// From here on nothing of the term counts; what was live stays so.
    pub(super) fn kill(&mut self) {
        self.dead = true;
    }

    pub(super) fn push(&mut self, batch: LiveBatch) {
        self.batches.push_back(batch);
    }

    /// Takes back the last batch if it has this number. For `Canary::V2Consecutive` alone.
    pub(super) fn withdraw(&mut self, batch: Batch) {
        if !self.batches.is_empty() && self.last() == batch {
            self.batches.pop_back();
        }
    }

    pub(super) fn opening(&self) -> Opening {
        self.opening
    }

    pub(super) fn declared(&self) -> Seq {
        self.declared
    }

    pub(super) fn get(&self, batch: Batch) -> Option<&LiveBatch> {
        let index = batch.0.checked_sub(self.floor.0.0 + 1)?;
        self.batches.get(usize::try_from(index).ok()?)
    }

    /// The chain at the floor or at a live batch after it.
    pub(super) fn mark(&self, batch: Batch) -> Option<&Mark> {
        if batch == self.floor.0 {
            return self.is_open().then_some(&self.floor.1);
        }
        self.get(batch).map(|live| &live.mark)
    }

    /// The cut of the checkpoint at `batch`, if one is due there in this term (section 6): what the
    /// record had seen that proposed it, or the opening for the base.
    pub(crate) fn cut(&self, batch: Batch) -> Option<&[u64]> {
        if batch == self.base.batch {
            return (!self.opening_seen.is_empty()).then_some(&*self.opening_seen);
        }
        self.get(batch)?.cut.as_deref()
    }

    /// Forgets what lies below `floor`, whose mark this is.
    pub(super) fn prune(&mut self, floor: Batch, mark: Mark) {
        let below = floor.0.saturating_sub(self.floor.0.0) as usize;
        self.batches.drain(..below.min(self.batches.len()));
        self.floor = (floor, mark);
    }

    /// Forgets the orders of batches up to `batch`. Returns whether later ones are held.
    pub(super) fn forget_orders_upto(&mut self, batch: Batch) -> bool {
        let count = batch.0.saturating_sub(self.floor.0.0) as usize;
        let end = count.min(self.batches.len());
        for live in self.batches.range_mut(..end).rev() {
            if live.orders.take().is_none() {
                break; // and so are all before
            }
        }
        self.batches.len() > count
    }

    pub(super) fn commit(&mut self, batch: Batch) {
        self.committed = self.committed.max(Some(batch));
    }

    /// The last batch that the term's own votes commit (C1).
    pub fn committed(&self) -> Option<Batch> {
        self.committed
    }

    /// Live batches that are kept.
    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether its sequencer broke a rule (V2): nothing more of it will count.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Whether it may be voted in: it has a valid opening.
    pub fn is_open(&self) -> bool {
        self.opening != Opening::None
    }

    /// Where it began (B1).
    pub fn base(&self) -> Base {
        self.base
    }

    /// Its last live batch, or the base.
    pub fn last(&self) -> Batch {
        Batch(self.floor.0.0 + self.batches.len() as u64)
    }

    /// Its chain after the last live batch.
    pub fn last_mark(&self) -> &Mark {
        self.batches.back().map_or(&self.floor.1, |live| &live.mark)
    }

    /// Its chain value after the last live batch.
    pub fn chain(&self) -> Digest {
        self.last_mark().chain
    }

    /// Its chain value after `batch`: the base, or a live batch, unless it was pruned.
    pub fn chain_at(&self, batch: Batch) -> Option<Digest> {
        self.mark(batch).map(|mark| mark.chain)
    }
}
