//! The register files of a simulated server: plain memory, in which a host can die in mid-store.
//!
//! A process that is killed has stored some words of what it was about to store and not the rest.
//! [`SimWords::kill_after`] makes just that happen: so many more stores reach the memory, all later
//! ones are lost. Whoever starts anew on the memory calls [`SimWords::revive`] first.
//!
//! Who shares a file with a hostile process may find another word at its second look than at its
//! first. [`SimWords::alter_after`] makes that happen between any two loads.
//!
//! A machine that loses its power loses what was not synced, page by page as the system had got to
//! writing it: [`SimWords::power_failure`], of memory that was made [on a disk](SimWords::on_disk).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use shared_registers::words::{VecWords, Words, WordsMut};

/// A register file, as host and guest of one server share it.
pub type Memory = Arc<SimWords>;

/// Which of two copies of a page.
enum Kept {
    Memory,
    Disk,
}

/// Words of a page, which a disk writes whole.
const PAGE: usize = 512;

/// What is on the disk.
struct Disk {
    words: VecWords,
    /// By page: it is not what is in memory.
    dirty: Vec<AtomicBool>,
}

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
    disk: Option<Disk>,
}

impl SimWords {
    /// So many bytes of zero.
    pub fn new(bytes: u64) -> SimWords {
        let words = VecWords::new((bytes / 8) as usize);
        let (stores_left, lost) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        let (traps, set) = (Mutex::default(), AtomicUsize::new(0));
        SimWords { words, stores_left, lost, traps, set, altered: AtomicU64::new(0), disk: None }
    }

    /// The same, of a file whose machine can lose its power.
    pub fn on_disk(bytes: u64) -> SimWords {
        let this = SimWords::new(bytes);
        let (len, pages) = (this.words.len(), this.words.len().div_ceil(PAGE));
        let dirty = (0..pages).map(|_| AtomicBool::new(false)).collect();
        SimWords { disk: Some(Disk { words: VecWords::new(len), dirty }), ..this }
    }

    /// The power fails. Of what was not synced the system has written those pages that `written`
    /// says; the rest is lost.
    pub fn power_failure(&self, mut written: impl FnMut() -> bool) {
        self.clean(|| match written() {
            true => Kept::Memory,
            false => Kept::Disk,
        });
    }

    /// Makes memory and disk alike, page by page.
    fn clean(&self, mut keep: impl FnMut() -> Kept) {
        let Some(disk) = &self.disk else { return };
        for (page, dirty) in disk.dirty.iter().enumerate() {
            if !dirty.swap(false, Ordering::Relaxed) {
                continue;
            }
            let (from, to) = match keep() {
                Kept::Memory => (&self.words, &disk.words),
                Kept::Disk => (&disk.words, &self.words),
            };
            for i in page * PAGE..((page + 1) * PAGE).min(from.len()) {
                to.store(i, from.load(i, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
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
        if let Some(disk) = &self.disk {
            disk.dirty[index / PAGE].store(true, Ordering::Relaxed);
        }
        self.words.store(index, value, order);
    }

    fn sync(&self) -> io::Result<()> {
        self.clean(|| Kept::Memory);
        Ok(())
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

    #[test]
    fn a_power_failure_loses_what_was_not_synced_and_no_disk_wrote() {
        let words = SimWords::on_disk(3 * 8 * PAGE as u64);
        let all = || [0, PAGE, 2 * PAGE].map(|i| words.load(i, Ordering::Relaxed));
        let store = |page: usize, value| words.store(page * PAGE, value, Ordering::Relaxed);
        store(0, 1);
        words.sync().unwrap();
        (0..3).for_each(|page| store(page, 2));
        let mut written = [false, true, false].into_iter();
        words.power_failure(|| written.next().unwrap());
        assert_eq!(all(), [1, 2, 0]);
        words.power_failure(|| panic!("nothing is dirty"));
        assert_eq!(all(), [1, 2, 0]);
    }
}
