//! Words over the atomics of a model checker. Only the words that both sides use in a test are
//! modelled, named by the test; each such word is a point at which the checker branches, and the
//! rest of a file's thousand are plain.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use shared_registers::words::{VecWords, Words, WordsMut};

/// A model checker's atomic.
pub(crate) trait Atomic: Send + Sync {
    fn zero() -> Self;
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn fence();
}

impl Atomic for loom::sync::atomic::AtomicU64 {
    fn zero() -> Self {
        Self::new(0)
    }
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    fn fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Atomic for shuttle::sync::atomic::AtomicU64 {
    fn zero() -> Self {
        Self::new(0)
    }
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
    fn fence() {
        shuttle::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// What a backing does less than it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weakness {
    None,
    /// Stores to this word publish nothing.
    RelaxedStore(usize),
    /// Loads of this word see nothing but its value.
    RelaxedLoad(usize),
    /// Fences do nothing.
    NoFence,
}

pub(crate) struct Modelled<A> {
    plain: VecWords,
    modelled: BTreeMap<usize, A>,
    weakness: Weakness,
}

impl<A: Atomic> Modelled<A> {
    /// `bytes` of zero, of which the `modelled` words are the checker's.
    pub(crate) fn new(
        bytes: u64,
        modelled: impl IntoIterator<Item = usize>,
        weakness: Weakness,
    ) -> Modelled<A> {
        let modelled = modelled.into_iter().map(|word| (word, A::zero())).collect();
        Modelled { plain: VecWords::new((bytes / 8) as usize), modelled, weakness }
    }
}

impl<A: Atomic> Words for Modelled<A> {
    fn len(&self) -> usize {
        self.plain.len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        let weak = self.weakness == Weakness::RelaxedLoad(index);
        let order = if weak { Ordering::Relaxed } else { order };
        match self.modelled.get(&index) {
            Some(word) => word.load(order),
            None => self.plain.load(index, order),
        }
    }
    fn fence(&self) {
        if self.weakness != Weakness::NoFence {
            A::fence();
        }
    }
}

impl<A: Atomic> WordsMut for Modelled<A> {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        let weak = self.weakness == Weakness::RelaxedStore(index);
        let order = if weak { Ordering::Relaxed } else { order };
        match self.modelled.get(&index) {
            Some(word) => word.store(value, order),
            None => self.plain.store(index, value, order),
        }
    }
}
