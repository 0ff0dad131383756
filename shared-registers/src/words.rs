//! Shared memory as atomic 64-bit words, and rings in it.
//!
//! Both sides of a file may change it at any moment, and one side may be hostile, so nothing here
//! ever makes a byte slice into the memory: words are loaded once into private memory, checked
//! there, and used from there. The algorithms above are written over [`Words`], which mapped files
//! and plain vectors implement alike (and a model checker's atomics can).

use std::fs::File;
use std::io;
use std::ops::BitOrAssign;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::ids::ServerId;
use crate::limits::{MAX_SERVERS, POPULATED_BYTES};

/// Pages of a file that are made zero together begin and end at multiples of this.
const PAGE_BYTES: usize = 4096;

/// Memory that can be loaded word by word.
pub trait Words {
    /// How many words there are.
    fn len(&self) -> usize;
    /// Loads word `index`.
    fn load(&self, index: usize, order: Ordering) -> u64;
    /// A full fence.
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
    /// Appends the bytes of `count` words from `start` on to `out`, each loaded once.
    fn copy_out(&self, start: usize, count: usize, out: &mut Vec<u8>) {
        for index in start..start + count {
            out.extend_from_slice(&self.load(index, Ordering::Relaxed).to_le_bytes());
        }
    }
    /// Whether there are no words.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory that can also be stored to.
pub trait WordsMut: Words {
    /// Stores word `index`.
    fn store(&self, index: usize, value: u64, order: Ordering);
    /// Has what was stored outlive the machine's memory, if there is anything that does.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    /// Makes `count` words from `start` on zero.
    fn clear(&self, start: usize, count: usize) {
        (start..start + count).for_each(|index| self.store(index, 0, Ordering::Relaxed));
    }
    /// Stores `bytes`, zero-padded to whole words, from word `start` on.
    fn copy_in(&self, start: usize, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for (i, word) in words.iter().enumerate() {
            self.store(start + i, u64::from_le_bytes(*word), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.store(start + words.len(), u64::from_le_bytes(last), Ordering::Relaxed);
        }
    }
}

/// Words in this process's own memory.
pub struct VecWords(Vec<AtomicU64>);

impl VecWords {
    /// `words` words of zero.
    pub fn new(words: usize) -> VecWords {
        VecWords((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Words for VecWords {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[index].load(order)
    }
}

impl WordsMut for VecWords {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

impl<W: Words + ?Sized> Words for std::sync::Arc<W> {
    fn len(&self) -> usize {
        (**self).len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        (**self).load(index, order)
    }
    fn fence(&self) {
        (**self).fence();
    }
    fn copy_out(&self, start: usize, count: usize, out: &mut Vec<u8>) {
        (**self).copy_out(start, count, out);
    }
}

impl<W: WordsMut + ?Sized> WordsMut for std::sync::Arc<W> {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        (**self).store(index, value, order);
    }
    fn copy_in(&self, start: usize, bytes: &[u8]) {
        (**self).copy_in(start, bytes);
    }
    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
    fn clear(&self, start: usize, count: usize) {
        (**self).clear(start, count);
    }
}

/// A shared mapping of a file, as words. Kept private so that only [`MappedReadOnly`] and
/// [`MappedReadWrite`] decide what may be done with it.
struct Mapping {
    words: NonNull<AtomicU64>,
    len: usize,
    map: MmapRaw,
    /// Of each chunk of pages whether it is populated. Chunks begin behind the first page, as rings
    /// do.
    reached: Box<[AtomicBool]>,
}

// SAFETY: the mapping is memory that any thread may reach; it is touched through atomics alone and
// unmapped only when the owner is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above: `&Mapping` gives nothing but atomic loads and stores.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: MmapRaw) -> io::Result<Mapping> {
        // Rings are used in small steps: reading megabytes of a file around each first touch only
        // stalls the one who touches. Advice may be ignored.
        let _ = map.advise(Advice::Random);
        let words = NonNull::new(map.as_mut_ptr().cast::<AtomicU64>())
            .filter(|p| p.is_aligned())
            .ok_or_else(|| io::Error::other("the mapping is not aligned"))?;
        let chunks = map.len().saturating_sub(PAGE_BYTES).div_ceil(POPULATED_BYTES);
        let reached = (0..chunks).map(|_| AtomicBool::new(false)).collect();
        Ok(Mapping { words, len: map.len() / 8, map, reached })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` is the aligned start of a live mapping of at least `len` words, which
        // outlives `self`. Everybody reaches it as atomics: this process through this slice, which
        // allows nothing else, others through their own mappings. It is never made a byte slice.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    /// Maps the pages of the chunks that so many words lie in, unless that was done before: so the
    /// next chunk's worth of records costs no page faults, and what nobody has come to yet costs no
    /// memory. After the first lap of a ring this is one look at a flag. Populating for stores makes
    /// pages dirty before they are used, so a file that is synced is written a chunk ahead.
    fn reach(&self, start: usize, count: usize, how: Advice) {
        let chunk = |word: usize| (8 * word).saturating_sub(PAGE_BYTES) / POPULATED_BYTES;
        for chunk in chunk(start)..=chunk(start + count.saturating_sub(1)) {
            if self.reached.get(chunk).is_some_and(|reached| !reached.load(Ordering::Relaxed)) {
                self.populate(chunk, how);
            }
        }
    }

    /// Whether it worked shows in nothing but time, and in resident memory.
    #[cold]
    fn populate(&self, chunk: usize, how: Advice) {
        self.reached[chunk].store(true, Ordering::Relaxed);
        let at = PAGE_BYTES + chunk * POPULATED_BYTES;
        let bytes = POPULATED_BYTES.min(self.map.len() - at);
        // What lies on a disk only comes in large parts.
        for advice in [Advice::Sequential, how, Advice::Random] {
            let _ = self.map.advise_range(advice, at, bytes);
        }
    }

    fn copy_out(&self, start: usize, count: usize, out: &mut Vec<u8>) {
        let words = &self.words()[start..start + count];
        self.reach(start, count, Advice::PopulateRead);
        let before = out.len();
        out.resize(before + 8 * count, 0);
        let (room, _) = out[before..].as_chunks_mut::<8>();
        for (bytes, word) in room.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
    }
}

/// A file mapped for reading. Its pages are protected against this process's stores.
pub struct MappedReadOnly(Mapping);

impl MappedReadOnly {
    /// Maps all of `file`.
    pub fn map(file: &File) -> io::Result<MappedReadOnly> {
        Ok(MappedReadOnly(Mapping::new(MmapOptions::new().map_raw_read_only(file)?)?))
    }
}

impl Words for MappedReadOnly {
    fn len(&self) -> usize {
        self.0.len
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.words()[index].load(order)
    }
    fn copy_out(&self, start: usize, count: usize, out: &mut Vec<u8>) {
        self.0.copy_out(start, count, out);
    }
}

/// A file mapped for reading and writing, shared with everyone else who maps it.
pub struct MappedReadWrite(Mapping, File);

impl MappedReadWrite {
    /// Maps all of `file`.
    pub fn map(file: &File) -> io::Result<MappedReadWrite> {
        let mapping = Mapping::new(MmapOptions::new().map_raw(file)?)?;
        Ok(MappedReadWrite(mapping, file.try_clone()?))
    }
}

impl Words for MappedReadWrite {
    fn len(&self) -> usize {
        self.0.len
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.words()[index].load(order)
    }
    fn copy_out(&self, start: usize, count: usize, out: &mut Vec<u8>) {
        self.0.copy_out(start, count, out);
    }
}

impl WordsMut for MappedReadWrite {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0.words()[index].store(value, order);
    }
    fn copy_in(&self, start: usize, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<8>();
        let words = &self.0.words()[start..start + whole.len() + usize::from(!rest.is_empty())];
        self.0.reach(start, words.len(), Advice::PopulateWrite);
        for (word, bytes) in words.iter().zip(whole) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if let (Some(word), false) = (words.last(), rest.is_empty()) {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            word.store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.1.sync_data()
    }
    fn clear(&self, start: usize, count: usize) {
        // Without a store to each page, where there is a file system; a device has none.
        let page = PAGE_BYTES / 8;
        let (first, last) = (start.next_multiple_of(page), (start + count) / page * page);
        let done = first < last && zero(&self.1, first * 8, (last - first) * 8).is_ok();
        let (before, after) = if done { (first, last) } else { (start, start) };
        for index in (start..before).chain(after..start + count) {
            self.store(index, 0, Ordering::Relaxed);
        }
    }
}

/// Makes bytes of a file zero. They keep their room on the disk: a store into a hole that finds the
/// disk full kills whoever makes it.
fn zero(file: &File, at: usize, bytes: usize) -> nix::Result<()> {
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let with = |how| fallocate(file, how | keep, at as i64, bytes as i64);
    with(FallocateFlags::FALLOC_FL_ZERO_RANGE).or_else(|_| {
        with(FallocateFlags::FALLOC_FL_PUNCH_HOLE)?;
        let _ = with(keep);
        Ok(())
    })
}

extern "C" fn on_bus_error(_: libc::c_int) {
    const SAID: &[u8] = b"a mapped register file has lost its room on the disk: it was cut short, \
        or the disk is full or broken; mend that and start again\n";
    // SAFETY: write and _exit are async-signal-safe, and SAID lives for ever.
    unsafe {
        libc::write(libc::STDERR_FILENO, SAID.as_ptr().cast(), SAID.len());
        libc::_exit(1);
    }
}

/// From now on a process whose mapped file gives way under it says so and exits with code 1 instead
/// of being killed without a word (SIGBUS).
pub fn explain_bus_errors() -> io::Result<()> {
    let handler = SigHandler::Handler(on_bus_error);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches nothing of this process, and does not return.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

/// Where a ring lies in a file. Places in it are byte counts from the beginning of time, always
/// multiples of 8; the ring holds the last `bytes` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The file's word at which the ring begins.
    pub base: usize,
    /// Its size: a power of two.
    pub bytes: u64,
}

impl Ring {
    fn word(&self, at: u64) -> usize {
        self.base + ((at & (self.bytes - 1)) / 8) as usize
    }

    /// Bytes from place `at` to where the ring wraps.
    fn before_wrap(&self, at: u64) -> u64 {
        self.bytes - (at & (self.bytes - 1))
    }

    /// Stores `bytes`, zero-padded to whole words, at place `at`. Publishing them is a release
    /// store of the caller's.
    pub fn put<W: WordsMut>(&self, words: &W, at: u64, bytes: &[u8]) {
        let first = self.before_wrap(at).min(bytes.len() as u64) as usize;
        words.copy_in(self.word(at), &bytes[..first]);
        if first < bytes.len() {
            words.copy_in(self.base, &bytes[first..]);
        }
    }

    /// Copies `len` bytes from place `at` to the end of `out`. What they are is for the caller to
    /// check, on the copy.
    pub fn get<W: Words>(&self, words: &W, at: u64, len: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let (padded, room) = (padded(len), self.before_wrap(at));
        out.reserve(padded as usize);
        words.copy_out(self.word(at), (padded.min(room) / 8) as usize, out);
        if padded > room {
            words.copy_out(self.base, ((padded - room) / 8) as usize, out);
        }
        out.truncate(start + len);
    }

    /// Makes all of it zero but the `bytes` bytes from place `at` on.
    pub fn clear_but<W: WordsMut>(&self, words: &W, at: u64, bytes: u64) {
        let (start, len) = (at + bytes, self.bytes - bytes);
        let first = self.before_wrap(start).min(len);
        words.clear(self.word(start), (first / 8) as usize);
        words.clear(self.base, ((len - first) / 8) as usize);
    }

    /// The one word at place `at`.
    pub fn get_word<W: Words>(&self, words: &W, at: u64) -> u64 {
        words.load(self.word(at), Ordering::Relaxed)
    }
}

/// Rounds a length up to whole words.
pub const fn padded(len: usize) -> u64 {
    len.next_multiple_of(8) as u64
}

/// What can be news to a sleeper: a bit for each stream's records, and one for all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News(u64);

impl News {
    /// What is no record: drops, room, links, another incarnation.
    pub const ELSE: News = News(1);
    /// Anything.
    pub const ALL: News = News(0xffff_ffff);

    /// Records of `writer`.
    pub const fn of(writer: ServerId) -> News {
        News(2 << (writer.0 as u32 % MAX_SERVERS as u32))
    }

    /// Whether there is any of `other` in it.
    pub const fn has(self, other: News) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOrAssign for News {
    fn bitor_assign(&mut self, other: News) {
        self.0 |= other.0;
    }
}

/// One side's view of the doorbell words: who sleeps, and whether it was rung already.
///
/// A side that wants to sleep says in its word which [`News`] it wants to be rung for, fences, looks
/// once more, and only then blocks. The other side publishes its work, fences, and rings if the
/// word wants any of that, once per nap. The upper half of the word counts naps. Both words may
/// hold anything (the guest's is hostile): the worst is a needless or missing ring.
#[derive(Default)]
pub struct Doorbell {
    naps: u64,
    rung: Option<u64>,
}

impl Doorbell {
    /// A side whose word is `word`, going on from the naps of its earlier incarnations, so that no
    /// nap of its own looks like one that was rung before.
    pub fn resume<W: Words>(words: &W, word: usize) -> Doorbell {
        let naps = words.load(word, Ordering::Relaxed) & !News::ALL.0;
        Doorbell { naps, rung: None }
    }

    /// Says in `word` that this side is about to sleep, and for what it is to be rung. Look for that
    /// once more after this.
    pub fn doze<W: WordsMut>(&mut self, words: &W, word: usize, wanted: News) {
        self.naps = self.naps.wrapping_add(News::ALL.0 + 1);
        words.store(word, self.naps | wanted.0, Ordering::Relaxed);
        words.fence();
    }

    /// Says in `word` that this side is awake.
    pub fn wake<W: WordsMut>(&mut self, words: &W, word: usize) {
        words.store(word, self.naps, Ordering::Relaxed);
    }

    /// Whether the other side, whose word is `word`, sleeps, waits for any of this `news`, and was
    /// not rung in this nap. Call it after publishing; then ring.
    pub fn must_ring<W: Words>(&mut self, words: &W, word: usize, news: News) -> bool {
        words.fence();
        let nap = words.load(word, Ordering::Relaxed);
        if nap & news.0 == 0 || self.rung == Some(nap) {
            return false;
        }
        self.rung = Some(nap);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_ring_gives_back_what_was_put_across_the_wrap(
            at in 0u64..1000, bytes in proptest::collection::vec(any::<u8>(), 1..64)
        ) {
            let words = VecWords::new(100);
            let ring = Ring { base: 3, bytes: 64 };
            ring.put(&words, at * 8, &bytes);
            let mut out = vec![9];
            ring.get(&words, at * 8, bytes.len(), &mut out);
            prop_assert_eq!(&out[1..], &bytes[..]);
        }
    }

    #[test]
    fn a_read_only_mapping_sees_what_a_read_write_one_stores() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (rw, ro) = (MappedReadWrite::map(&file).unwrap(), MappedReadOnly::map(&file).unwrap());
        rw.store(5, 42, Ordering::Release);
        assert_eq!(ro.load(5, Ordering::Acquire), 42);
    }

    /// KiB that are resident of the mappings of a file with these permissions, in this process.
    fn resident(file: &tempfile::NamedTempFile, permissions: &str) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut ours, mut sum) = (false, 0);
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                // START-END PERMISSIONS OFFSET DEVICE INODE PATH; the path only of a file.
                [range, found, _, _, _, ref path @ ..] if range.contains('-') => {
                    let path = path.first().copied().unwrap_or_default();
                    ours = path == file.path().to_str().unwrap() && found.starts_with(permissions);
                }
                ["Rss:", kib, _] if ours => sum += kib.parse::<u64>().unwrap(),
                _ => {}
            }
        }
        sum
    }

    #[test]
    fn pages_are_populated_chunk_by_chunk_as_a_ring_is_used() {
        const CHUNK: u64 = POPULATED_BYTES as u64;
        const KIB: u64 = CHUNK >> 10;
        let file = tempfile::NamedTempFile::new().unwrap();
        // The last chunk ends with the file, in the middle.
        file.as_file().set_len(PAGE_BYTES as u64 + 4 * CHUNK + CHUNK / 2).unwrap();
        let writes = MappedReadWrite::map(file.as_file()).unwrap();
        let reads = MappedReadOnly::map(file.as_file()).unwrap();
        let (ring, rest) = (
            Ring { base: PAGE_BYTES / 8, bytes: 4 * CHUNK },
            Ring { base: (PAGE_BYTES + 4 * POPULATED_BYTES) / 8, bytes: CHUNK / 2 },
        );
        let are = |written, read, what: &str| {
            let found = (resident(&file, "rw"), resident(&file, "r-"));
            assert_eq!(found, (written, read), "{what}");
        };
        are(0, 0, "nothing was used");
        let mut out = Vec::new();
        ring.put(&writes, 0, &[1; 8]);
        are(KIB, 0, "one side writes");
        ring.get(&reads, CHUNK - 8, 8, &mut out);
        are(KIB, KIB, "the other reads");
        ring.put(&writes, CHUNK - 8, &[2; 8]);
        are(KIB, KIB, "both are there");
        ring.put(&writes, CHUNK - 8, &[2; 16]);
        are(2 * KIB, KIB, "a record reaches into the next");
        // Where somebody begins who attaches later, and any place that a damaged file may name.
        ring.get(&reads, u64::MAX - 15, 16, &mut out);
        are(2 * KIB, 2 * KIB, "the last words of the ring");
        ring.put(&writes, 8 * CHUNK - 8, &[3; 16]);
        are(3 * KIB, 2 * KIB, "across the wrap");
        rest.put(&writes, 0, &[4; 8]);
        rest.get(&reads, CHUNK / 2 - 8, 16, &mut out);
        are(3 * KIB + KIB / 2, 2 * KIB + KIB / 2, "a ring smaller than a chunk");
        ring.put(&writes, 0, &vec![5; ring.bytes as usize]);
        ring.put(&writes, ring.bytes, &vec![6; ring.bytes as usize]);
        are(4 * KIB + KIB / 2, 2 * KIB + KIB / 2, "all of it, twice");
    }

    #[test]
    fn a_sleeper_is_rung_once_a_nap() {
        let words = VecWords::new(1);
        let (mut sleeper, mut ringer) = (Doorbell::default(), Doorbell::default());
        assert!(!ringer.must_ring(&words, 0, News::of(ServerId(2))));
        sleeper.doze(&words, 0, News::ALL);
        assert!(ringer.must_ring(&words, 0, News::of(ServerId(2))));
        assert!(!ringer.must_ring(&words, 0, News::of(ServerId(2))));
        sleeper.wake(&words, 0);
        assert!(!ringer.must_ring(&words, 0, News::of(ServerId(2))));
        sleeper.doze(&words, 0, News::ALL);
        assert!(ringer.must_ring(&words, 0, News::of(ServerId(2))));
    }

    #[test]
    fn a_sleeper_is_rung_for_what_it_waits_for_and_nothing_else() {
        let words = VecWords::new(1);
        let (mut sleeper, mut ringer) = (Doorbell::default(), Doorbell::default());
        let last = ServerId(MAX_SERVERS as u16 - 1);
        let mut wanted = News::of(last);
        wanted |= News::ELSE;
        sleeper.doze(&words, 0, wanted);
        for writer in (0..last.0).map(ServerId) {
            assert!(!ringer.must_ring(&words, 0, News::of(writer)));
        }
        assert!(ringer.must_ring(&words, 0, News::of(last)));
        assert!(!ringer.must_ring(&words, 0, News::ALL), "once a nap");
        sleeper.doze(&words, 0, wanted);
        assert!(ringer.must_ring(&words, 0, News::ELSE));
        sleeper.wake(&words, 0);
        assert!(!ringer.must_ring(&words, 0, News::ALL), "who is awake looks by itself");
        let resumed = Doorbell::resume(&words, 0);
        assert_eq!(resumed.naps, sleeper.naps, "naps go on where they were");
    }
}
