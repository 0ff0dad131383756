//! The register files of a simulated server: plain memory, in which a host can die in mid-store.
//!
//! A process that is killed has stored some words of what it was about to store and not the rest.
//! [`SimWords::kill_after`] makes just that happen: so many more stores reach the memory, all later
//! ones are lost. Whoever starts anew on the memory calls [`SimWords::revive`] first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shared_registers::words::{VecWords, Words, WordsMut};

/// A register file, as host and guest of one server share it.
pub type Memory = Arc<SimWords>;

/// Words whose writer can be killed between two stores.
pub struct SimWords {
    words: VecWords,
    /// How many more stores take effect; `u64::MAX` for all.
    stores_left: AtomicU64,
    /// A store did not.
    lost: AtomicBool,
}

impl SimWords {
    /// So many bytes of zero.
    pub fn new(bytes: u64) -> SimWords {
        let words = VecWords::new((bytes / 8) as usize);
        let (stores_left, lost) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        SimWords { words, stores_left, lost }
    }

    /// Only so many more stores take effect.
    pub fn kill_after(&self, stores: u64) {
        self.stores_left.store(stores, Ordering::Relaxed);
    }

    /// Whether the killed writer wanted to store more.
    pub fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// All stores take effect again.
    pub fn revive(&self) {
        self.stores_left.store(u64::MAX, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
    }
}

impl Words for SimWords {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words.load(index, order)
    }
}

impl WordsMut for SimWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        match self.stores_left.load(Ordering::Relaxed) {
            u64::MAX => {}
            0 => return self.lost.store(true, Ordering::Relaxed),
            left => self.stores_left.store(left - 1, Ordering::Relaxed),
        }
        self.words.store(index, value, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_writer_leaves_a_part_of_what_it_stored() {
        let words = SimWords::new(64);
        words.kill_after(2);
        words.copy_in(0, &[1; 16]);
        assert!(!words.has_lost());
        words.copy_in(0, &[1; 24]);
        let all = |i| words.load(i, Ordering::Relaxed);
        assert_eq!((all(0) != 0, all(1) != 0, all(2)), (true, true, 0));
        assert!(words.has_lost());
        words.revive();
        words.copy_in(0, &[1; 24]);
        assert!(all(2) != 0 && !words.has_lost());
    }
}
