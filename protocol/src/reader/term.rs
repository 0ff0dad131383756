//! What is known of one term.

use std::collections::VecDeque;
use std::sync::Arc;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Micros, Seq};

use super::{Base, ReadOrder};

/// A live batch of a term (V2).
#[derive(Clone)]
pub(super) struct LiveBatch {
    /// The record that proposed it.
    pub(super) seq: Seq,
    pub(super) chain: Digest,
    pub(super) time: Micros,
    /// Until the batch of this number is taken for delivery.
    pub(super) orders: Option<Arc<[ReadOrder]>>,
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
    base: Base,
    batches: VecDeque<LiveBatch>,
    dead: bool,
}

impl TermState {
    pub(super) fn open(at: Seq, base: Base) -> TermState {
        TermState { opening: Opening::At(at), base, batches: VecDeque::new(), dead: false }
    }

    pub(super) fn dead() -> TermState {
        let base = Base { batch: Batch(0), parent: None, chain: Digest::default() };
        TermState { opening: Opening::None, base, batches: VecDeque::new(), dead: true }
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

    pub(super) fn get(&self, batch: Batch) -> Option<&LiveBatch> {
        let index = batch.0.checked_sub(self.base.batch.0 + 1)?;
        self.batches.get(usize::try_from(index).ok()?)
    }

    /// The record that a vote up to `batch` refers to: the batch's own, or the opening for the base.
    pub(super) fn seq_of(&self, batch: Batch) -> Option<Seq> {
        if batch == self.base.batch {
            return Some(Seq(0));
        }
        self.get(batch).map(|live| live.seq)
    }

    /// Forgets the orders of batches up to `batch`. Returns whether later ones are held.
    pub(super) fn forget_orders_upto(&mut self, batch: Batch) -> bool {
        let count = batch.0.saturating_sub(self.base.batch.0) as usize;
        let end = count.min(self.batches.len());
        for live in self.batches.range_mut(..end).rev() {
            if live.orders.take().is_none() {
                break; // and so are all before
            }
        }
        self.batches.len() > count
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
        Batch(self.base.batch.0 + self.batches.len() as u64)
    }

    /// Its chain value after the last live batch.
    pub fn chain(&self) -> Digest {
        self.batches.back().map_or(self.base.chain, |live| live.chain)
    }

    /// Its chain value after `batch`: the base, or a live batch.
    pub fn chain_at(&self, batch: Batch) -> Option<Digest> {
        if batch == self.base.batch {
            return self.is_open().then_some(self.base.chain);
        }
        self.get(batch).map(|live| live.chain)
    }
}
