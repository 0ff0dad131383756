//! The register files of a simulated server: plain memory, in which a host can die in mid-store.
//!
//! A process that is killed has stored some words of what it was about to store and not the rest.
//! [`SimWords::kill_after`] makes just that happen: so many more stores reach the memory, all later
//! ones are lost. Whoever starts anew on the memory calls [`SimWords::revive`] first.
//!
//! Who shares a file with a hostile process may find another word at its second look than at its
//! first. [`SimWords::alter_after`] makes that happen between any two loads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
    /// By word: after how many more loads it changes, and into what.
    traps: Mutex<BTreeMap<usize, (u32, u64)>>,
    /// How many there are: almost always none.
    set: AtomicUsize,
    altered: AtomicU64,
}

impl SimWords {
    /// So many bytes of zero.
    pub fn new(bytes: u64) -> SimWords {
        let words = VecWords::new((bytes / 8) as usize);
        let (stores_left, lost) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        let (traps, set) = (Mutex::default(), AtomicUsize::new(0));
        SimWords { words, stores_left, lost, traps, set, altered: AtomicU64::new(0) }
    }

    /// After `loads` more loads of word `index` it holds `value`, unless it is stored to before.
    pub fn alter_after(&self, index: usize, loads: u32, value: u64) {
        let mut traps = self.traps.lock().expect("nobody panics while it is held");
        traps.insert(index, (loads, value));
        self.set.store(traps.len(), Ordering::Relaxed);
    }

    /// How many words changed after a load.
    pub fn altered(&self) -> u64 {
        self.altered.load(Ordering::Relaxed)
    }

    /// Word `index` was loaded, or is about to be stored to.
    fn touched(&self, index: usize, loaded: bool) {
        if self.set.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut traps = self.traps.lock().expect("nobody panics while it is held");
        let Some((loads, value)) = traps.get_mut(&index) else { return };
        *loads -= u32::from(loaded);
        if *loads == 0 {
            self.words.store(index, *value, Ordering::Relaxed);
            self.altered.fetch_add(1, Ordering::Relaxed);
        }
        if *loads == 0 || !loaded {
            traps.remove(&index);
            self.set.store(traps.len(), Ordering::Relaxed);
        }
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
        let value = self.words.load(index, order);
        self.touched(index, true);
        value
    }
}

impl WordsMut for SimWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        match self.stores_left.load(Ordering::Relaxed) {
            u64::MAX => {}
            0 => return self.lost.store(true, Ordering::Relaxed),
            left => self.stores_left.store(left - 1, Ordering::Relaxed),
        }
        self.touched(index, false);
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

    #[test]
    fn a_word_is_another_at_the_look_that_was_drawn() {
        let words = SimWords::new(64);
        let look = || words.load(3, Ordering::Relaxed);
        words.alter_after(3, 2, 9);
        assert_eq!([look(), look(), look(), look()], [0, 0, 9, 9]);
        // Whatever it was to become, what is stored there is there.
        words.alter_after(3, 1, 7);
        words.store(3, 5, Ordering::Relaxed);
        assert_eq!(([look(), look()], words.altered()), ([5, 5], 1));
    }
}
