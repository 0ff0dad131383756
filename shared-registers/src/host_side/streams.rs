//! The streams as a host keeps them: appended, exposed (R4), reclaimed (section 6), jumped over,
//! and found again after the host was killed.
//!
//! **Reclaiming is lazy.** What a stable checkpoint covers stays until [`HostRegisters::append`]
//! needs its room, so that a slow reader is told as late as possible. The mark goes up before the
//! first byte behind it is overwritten, with a fence between: a reader that copies, fences and then
//! finds the mark where it was has copied what it meant to.
//!
//! **A kill may fall between any two stores.** A count and its place are two of them, so one is
//! believed and the other made to fit: the count. Where the first records are that are still there
//! is found from the place of the first, which may be one that was reclaimed already; it says itself
//! which it is. A jump is believed from its one store that puts the number of records reclaimed
//! above the number of records here, and is then finished.
//!
//! **Durability `disk`** (R6): a record that was appended counts only once the file was synced
//! ([`HostRegisters::commit`]); until then it is neither exposed nor sent. The words that count it are
//! stored after that sync, so on disk they never count what is not there, and may lag behind by one
//! sync: what is whole behind the last that they count is found again, and was admitted too.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::{HostRegisters, ReopenError, StreamFull};
use crate::canary::{Canary, broken};
use crate::ids::{Seq, ServerId, Term};
use crate::layout::{SET, hint_word, read, stream_word};
use crate::limits::{MAX_PLACE, MAX_RECORDS, RECLAIM_AHEAD};
use crate::record::{self, Body, Checkpoint, Record, Stamp};
use crate::words::{News, Words, WordsMut, padded};

/// What the host knows of a stream. Whatever grows with its records is bounded by the ring that
/// holds them.
pub(super) struct Stream {
    /// Places of the records that are here, from the first on, and behind the last.
    places: VecDeque<u64>,
    first: u64,
    copied: u64,
    /// Of these, those that count: all, unless some wait for a sync (R6).
    counted: u64,
    exposed: u64,
    /// So many records the last stable checkpoint covers.
    stable: u64,
    /// R1: the highest term of the CHANGEs that are reclaimed, ...
    changed: Option<Term>,
    /// ... and of each CHANGE here and those before it, with its number.
    changes: VecDeque<(u64, Term)>,
    /// `seen` of the records that are copied and not exposed.
    waiting: VecDeque<Box<[u64]>>,
}

impl Stream {
    /// A stream of which nothing is here: its first `first` records are gone, and the next goes to
    /// place `at`.
    pub(super) fn empty(first: u64, at: u64, changed: Option<Term>) -> Stream {
        Stream {
            places: VecDeque::from([at]),
            first,
            copied: first,
            counted: first,
            exposed: first,
            stable: first,
            changed,
            changes: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    fn place(&self, seq: u64) -> u64 {
        self.places[(seq - 1 - self.first) as usize]
    }

    fn end(&self) -> u64 {
        self.places[self.places.len() - 1]
    }

    /// The highest term of the CHANGEs among the first `upto` records, which are all here or gone.
    fn last_change(&self, upto: u64) -> Option<Term> {
        let here = self.changes.iter().rev().find(|(seq, _)| *seq <= upto);
        here.map_or(self.changed, |(_, term)| Some(*term))
    }

    /// The next record is here, and ends at place `end`.
    fn push(&mut self, record: &Record<'_>, end: u64) {
        self.places.push_back(end);
        if let Some(term) = record.change() {
            let highest = self.last_change(self.copied).max(Some(term)).unwrap_or(term);
            self.changes.push_back((record.stamp.seq.0, highest));
        }
        self.copied += 1;
    }

    /// The first record that is here is not, from now on.
    fn pop(&mut self) {
        self.places.pop_front();
        self.first += 1;
        // Terms only rise from one to the next.
        if let Some((_, term)) = self.changes.front().filter(|(seq, _)| *seq <= self.first) {
            self.changed = Some(*term);
            self.changes.pop_front();
        }
    }
}

/// A term as a word: 0 is none. No record vouches for it, so its upper 16 bits do. Terms go up one by
/// one, so that 48 bits last.
fn to_word(term: Option<Term>) -> u64 {
    term.map_or(0, |term| vouched(term.next().0))
}

fn vouched(value: u64) -> u64 {
    let value = value & (u64::MAX >> 16);
    u64::from(crc32fast::hash(&value.to_le_bytes())) << 48 | value
}

/// The term in a word, unless it is no such word.
fn from_word(word: u64) -> Option<Option<Term>> {
    let value = word & (u64::MAX >> 16);
    (word == 0 || word == vouched(value)).then(|| value.checked_sub(1).map(Term))
}

impl<R: WordsMut, W: Words> HostRegisters<R, W> {
    fn load(&self, writer: ServerId, which: usize) -> u64 {
        self.read.load(stream_word(writer, which), Ordering::Relaxed)
    }

    /// Stores a word of a stream's state, after whatever was stored before it.
    fn store(&self, writer: ServerId, which: usize, value: u64) {
        self.read.store(stream_word(writer, which), value, Ordering::Release);
    }

    /// Finds a stream again as an earlier run left it.
    pub(super) fn scan(&mut self, writer: ServerId) -> Result<(), ReopenError> {
        let reclaimed = self.load(writer, read::FIRST_SEQ);
        let jumping = reclaimed > self.load(writer, read::COPIED_SEQ);
        if jumping && reclaimed <= MAX_RECORDS && self.load(writer, read::ARRIVING) != 0 {
            self.land(writer, reclaimed);
        }
        self.store(writer, read::ARRIVING, 0);
        let exposed = self.load(writer, read::EXPOSED_SEQ);
        match self.find(writer, exposed) {
            (stream, None) if (stream.first..=stream.copied).contains(&exposed) => {
                let copied = stream.copied;
                self.settle(writer, Stream { exposed, ..stream });
                if self.durable {
                    self.keep(writer, copied);
                }
                Ok(())
            }
            (stream, seq) => {
                Err(ReopenError::Damaged { writer, seq: seq.unwrap_or(stream.copied) })
            }
        }
    }

    /// R6: keeps of a stream what is intact, from its first record on; none of it is exposed yet.
    /// All else is made zero: bytes that once were a record must not be taken for one again, behind
    /// what will be appended.
    pub(super) fn salvage(&mut self, writer: ServerId) {
        let (stream, _) = self.find(writer, 0);
        let copied = stream.copied;
        // In this order: whoever is killed between finds no more than is there.
        self.settle(writer, Stream { exposed: stream.first, ..stream });
        self.store(writer, read::ARRIVING, 0);
        self.keep(writer, copied);
    }

    /// Counts so many records, and leaves nothing else in the ring.
    fn keep(&self, writer: ServerId, copied: u64) {
        self.store(writer, read::COPIED_SEQ, copied);
        let (stream, ring) = (&self.streams[writer.index()], self.geometry.stream_ring(writer));
        ring.clear_but(&self.read, stream.places[0], stream.end() - stream.places[0]);
    }

    /// What of a stream is in the ring, as far as it is whole, and the first record that is not.
    /// Records past `exposed` wait for their causal past.
    fn find(&self, writer: ServerId, exposed: u64) -> (Stream, Option<u64>) {
        let word = |which| self.load(writer, which);
        let (reclaimed, copied) = (word(read::FIRST_SEQ), word(read::COPIED_SEQ));
        let (first_at, end) = (word(read::FIRST_AT), word(read::COPIED_AT));
        let ring = self.geometry.stream_ring(writer);
        let nothing = || (Stream::empty(0, 0, None), Some(copied));
        let fits = end.checked_sub(first_at).is_some_and(|bytes| bytes <= ring.bytes);
        if !fits || first_at % 8 != 0 || end > MAX_PLACE || copied > MAX_RECORDS {
            return nothing();
        }
        let Some(changed) = from_word(word(read::CHANGED)) else { return nothing() };
        let changed = changed.filter(|_| !broken(Canary::S6Changed));
        let mut stream = Stream::empty(copied, first_at, changed);
        let mut bytes = Vec::new();
        if end > first_at {
            // One that is not counted was never admitted: then there is none.
            let first = self.whole(writer, first_at, end, &mut bytes);
            let Some((record, _)) = first else { return nothing() };
            let seq = record.stamp.seq.0;
            if seq != copied + 1 {
                stream = Stream::empty(seq.saturating_sub(1), first_at, changed);
            }
        }
        if stream.first > reclaimed || reclaimed > copied {
            return nothing();
        }
        // What is not counted counts if it waited for a sync.
        let end = if self.durable { first_at + ring.bytes } else { end };
        let mut damaged = None;
        while stream.copied < copied || self.durable {
            let (seq, at) = (stream.copied + 1, stream.end());
            let (record, behind) = match self.whole(writer, at, end, &mut bytes) {
                Some(whole) if whole.0.stamp.seq.0 == seq => whole,
                _ => {
                    damaged = (seq <= copied).then_some(seq);
                    break;
                }
            };
            stream.push(&record, behind);
            if seq > exposed.max(reclaimed) {
                stream.waiting.push_back(record.stamp.seen);
            }
        }
        if stream.copied < reclaimed {
            return nothing();
        }
        while stream.first < reclaimed {
            stream.pop();
        }
        stream.stable = reclaimed;
        stream.counted = stream.copied;
        (stream, damaged)
    }

    /// A stream that was found is what the host goes on with.
    fn settle(&mut self, writer: ServerId, stream: Stream) {
        let (end, exposed) = (stream.end(), stream.exposed);
        let exposed_at = stream.place(exposed + 1);
        self.streams[writer.index()] = stream;
        self.store(writer, read::EXPOSED_SEQ, exposed);
        self.store(writer, read::COPIED_AT, end);
        self.store(writer, read::EXPOSED_AT, exposed_at);
        self.show_first(writer);
        self.show_stable(writer);
    }

    /// The record of `writer` at place `at`, and the place behind it, if it is whole and ends at
    /// `end` or before.
    fn whole<'a>(
        &self,
        writer: ServerId,
        at: u64,
        end: u64,
        bytes: &'a mut Vec<u8>,
    ) -> Option<(Record<'a>, u64)> {
        let ring = self.geometry.stream_ring(writer);
        let len = (ring.get_word(&self.read, at) & 0xffff_ffff) as usize;
        if len > self.geometry.max_record_bytes() || padded(len) > end.checked_sub(at)? {
            return None;
        }
        bytes.clear();
        ring.get(&self.read, at, len, bytes);
        let record = Record::decode(bytes, self.geometry.n).ok()?;
        (record.stamp.writer == writer).then_some((record, at + padded(len)))
    }

    /// The own stream names only what was exposed here (R4), so what it names must still be here,
    /// or have been.
    pub(super) fn check_own_past(&self) -> Result<(), ReopenError> {
        let (me, n, mut bytes) = (self.geometry.server, self.geometry.n, Vec::new());
        if self.record(me, self.copied(me), &mut bytes)
            && let Ok(last) = Record::decode(&bytes, n)
        {
            for (writer, seen) in ServerId::all(n).zip(&last.stamp.seen) {
                if *seen > self.copied(writer).0 {
                    return Err(ReopenError::Missing { writer, seq: *seen });
                }
            }
        }
        Ok(())
    }

    /// Records of `writer` that are reclaimed.
    pub fn first(&self, writer: ServerId) -> Seq {
        Seq(self.streams[writer.index()].first)
    }

    /// Records of `writer` that are here, or were, and count.
    pub fn copied(&self, writer: ServerId) -> Seq {
        Seq(self.streams[writer.index()].counted)
    }

    /// Records of `writer` that were appended, those included that wait for a sync (R6).
    pub fn appended(&self, writer: ServerId) -> Seq {
        Seq(self.streams[writer.index()].copied)
    }

    /// R6, durability `disk`: syncs what was appended or promised since the last time, if anything
    /// was; then it counts. Returns whether it did.
    ///
    /// # Panics
    ///
    /// If the file cannot be synced: what others would rely on from now on may be lost.
    pub fn commit(&mut self) -> bool {
        if !self.durable || !self.unsynced.replace(false) {
            return false;
        }
        self.must_sync();
        ServerId::all(self.geometry.n).for_each(|writer| self.count_appended(writer));
        true
    }

    fn must_sync(&self) {
        if let Err(error) = self.read.sync() {
            // What is in memory is not what the disk has, and no later sync would say so.
            self.read.store(read::RECOVERING, SET, Ordering::Release);
            panic!(
                "the read file cannot be synced to its disk ({error}), so nothing counts from here \
                 on; mend the disk, remove the folder that the file is in and start the host agent \
                 again: it recovers from the others"
            );
        }
    }

    fn count_appended(&mut self, writer: ServerId) {
        let stream = &mut self.streams[writer.index()];
        if stream.counted < stream.copied {
            stream.counted = stream.copied;
            let (seq, end) = (stream.counted, stream.end());
            self.store(writer, read::COPIED_AT, end);
            self.store(writer, read::COPIED_SEQ, seq);
        }
    }

    /// Records of `writer` that the guest may see, or could have seen.
    pub fn exposed(&self, writer: ServerId) -> Seq {
        Seq(self.streams[writer.index()].exposed)
    }

    /// Per stream, how many records are exposed: what R4 stamps.
    pub fn exposed_all(&self) -> Box<[u64]> {
        self.streams.iter().map(|s| s.exposed).collect()
    }

    /// R1: the highest term of the CHANGEs among the first `upto` records of `writer`. They must
    /// not be fewer than are reclaimed.
    pub fn last_change(&self, writer: ServerId, upto: Seq) -> Option<Term> {
        let stream = &self.streams[writer.index()];
        assert!(upto.0 >= stream.first, "nobody knows any more");
        stream.last_change(upto.0)
    }

    /// Of the streams of which most are: records that are here, those that are not exposed, and
    /// CHANGEs that are here.
    pub fn longest(&self) -> [usize; 3] {
        let most = |length: fn(&Stream) -> usize| self.streams.iter().map(length).max();
        let lengths: [fn(&Stream) -> usize; 3] =
            [|s| s.places.len() - 1, |s| s.waiting.len(), |s| s.changes.len()];
        lengths.map(|length| most(length).unwrap_or(0))
    }

    /// Appends a record that follows what is here. It is not exposed yet. Reclaims what it must of
    /// the records that a stable checkpoint covers.
    pub fn append(&mut self, record: &Record<'_>, bytes: &[u8]) -> Result<(), StreamFull> {
        let writer = record.stamp.writer;
        let ring = self.geometry.stream_ring(writer);
        let stream = &self.streams[writer.index()];
        assert_eq!(record.stamp.seq.0, stream.copied + 1, "a record out of its place");
        let (at, len) = (stream.end(), padded(bytes.len()));
        if !self.make_room(writer, len) {
            return Err(StreamFull(writer));
        }
        ring.put(&self.read, at, bytes);
        let stream = &mut self.streams[writer.index()];
        stream.push(record, at + len);
        stream.waiting.push_back(record.stamp.seen.clone());
        self.unsynced.set(true);
        if !self.durable {
            self.count_appended(writer);
        }
        Ok(())
    }

    /// Section 6: reclaims records of `writer`, oldest first, until `len` more bytes have room; no
    /// more than that, and none that the stable checkpoint does not cover. Returns whether there is
    /// room.
    fn make_room(&mut self, writer: ServerId, len: u64) -> bool {
        let ring = self.geometry.stream_ring(writer);
        let stream = &mut self.streams[writer.index()];
        let end = stream.end() + len;
        if end - stream.places[0] <= ring.bytes {
            return true;
        }
        if end - stream.place(stream.stable + 1) > ring.bytes {
            return false; // R7
        }
        // R6: what is overwritten must not be what the words on disk speak of. That takes a sync,
        // so it is made to last.
        let ahead = if self.durable { ring.bytes / RECLAIM_AHEAD } else { 0 };
        let wanted = |stream: &Stream| {
            let used = end - stream.places[0];
            used > ring.bytes || (used + ahead > ring.bytes && stream.first < stream.stable)
        };
        while wanted(stream) {
            stream.pop();
        }
        self.show_first(writer);
        self.read.fence();
        if self.durable {
            self.must_sync();
        }
        true
    }

    fn show_first(&self, writer: ServerId) {
        let stream = &self.streams[writer.index()];
        self.store(writer, read::FIRST_SEQ, stream.first);
        self.store(writer, read::CHANGED, to_word(stream.changed));
        self.store(writer, read::FIRST_AT, stream.places[0]);
    }

    /// Section 6: `cut` is stable: so many records of each stream may be reclaimed from now on.
    pub fn set_stable(&mut self, cut: &[u64]) {
        for (writer, cut) in ServerId::all(self.geometry.n).zip(cut) {
            // A stable cut is exposed. Whatever a peer said: what is not is kept.
            let stream = &mut self.streams[writer.index()];
            let cut = if broken(Canary::S6Reclaim) { u64::MAX } else { *cut };
            stream.stable = stream.stable.max(stream.exposed.min(cut));
            self.show_stable(writer);
        }
    }

    fn show_stable(&self, writer: ServerId) {
        let stream = &self.streams[writer.index()];
        let (seq, at) = (stream.stable, stream.place(stream.stable + 1));
        self.read.store(hint_word(writer, read::STABLE_SEQ), seq, Ordering::Relaxed);
        self.read.store(hint_word(writer, read::STABLE_AT), at, Ordering::Relaxed);
    }

    /// Section 6: jumps, in every stream that is not so far, to `cut`, which is causally closed:
    /// the records before it are gone everywhere. `changed` says of each stream what
    /// [`Self::last_change`] is there. The own stream stays, unless this host recovers (R6): nobody
    /// else adds to it. Returns whether any stream jumped. [`Self::expose`] must follow.
    pub fn jump(&mut self, cut: &[u64], changed: &[Option<Term>]) -> bool {
        let mut any = false;
        self.commit();
        for (writer, (cut, changed)) in ServerId::all(self.geometry.n).zip(cut.iter().zip(changed))
        {
            let stream = &self.streams[writer.index()];
            let own = writer == self.geometry.server && !self.recovering();
            if stream.copied >= *cut || own {
                continue;
            }
            assert!(*cut <= MAX_RECORDS, "a peer's word is checked before it comes here");
            let end = stream.end();
            let changed = stream.last_change(stream.copied).max(*changed);
            self.store(writer, read::ARRIVING, to_word(changed).saturating_add(1));
            // From here on it has jumped, whoever is killed.
            self.store(writer, read::FIRST_SEQ, *cut);
            self.land(writer, *cut);
            self.streams[writer.index()] = Stream::empty(*cut, end, changed);
            self.show_stable(writer);
            any = true;
        }
        if any && self.durable {
            self.must_sync(); // As where room is made.
        }
        any
    }

    /// What follows from FIRST_SEQ when a stream jumps to it. May be done twice.
    fn land(&self, writer: ServerId, first: u64) {
        self.read.fence();
        let end = self.load(writer, read::COPIED_AT);
        let changed = self.load(writer, read::ARRIVING).saturating_sub(1);
        self.store(writer, read::CHANGED, changed);
        self.store(writer, read::FIRST_AT, end);
        self.store(writer, read::EXPOSED_SEQ, first);
        self.store(writer, read::EXPOSED_AT, end);
        // The jump is over.
        self.store(writer, read::COPIED_SEQ, first);
        self.store(writer, read::ARRIVING, 0);
        // Nothing is appended over what a reader copies before it can know.
        self.read.fence();
    }

    /// Exposes to the guest whatever has its causal past exposed (R4). Returns what there was.
    pub fn expose(&mut self) -> News {
        let mut news = News::default();
        loop {
            let mut progress = false;
            for writer in ServerId::all(self.geometry.n) {
                while self.exposable(writer) {
                    let stream = &mut self.streams[writer.index()];
                    stream.waiting.pop_front();
                    stream.exposed += 1;
                    let seq = stream.exposed;
                    let end = stream.place(seq + 1);
                    let word = |which| stream_word(writer, which);
                    self.read.store(word(read::EXPOSED_SEQ), seq, Ordering::Relaxed);
                    self.read.store(word(read::EXPOSED_AT), end, Ordering::Release);
                    progress = true;
                    news |= News::of(writer);
                }
            }
            if !progress {
                return news;
            }
        }
    }

    fn exposable(&self, writer: ServerId) -> bool {
        let stream = &self.streams[writer.index()];
        let waiting = stream.waiting.front().filter(|_| stream.exposed < stream.counted);
        waiting.is_some_and(|seen| {
            let shown = |(seen, stream): (&u64, &Stream)| *seen <= stream.exposed;
            broken(Canary::R4Exposure) || seen.iter().zip(&self.streams).all(shown)
        })
    }

    /// Copies record `seq` of `writer` to the end of `out`, if it is here.
    pub fn record(&self, writer: ServerId, seq: Seq, out: &mut Vec<u8>) -> bool {
        let stream = &self.streams[writer.index()];
        if seq.0 <= stream.first || seq.0 > stream.copied {
            return false;
        }
        let ring = self.geometry.stream_ring(writer);
        let at = stream.place(seq.0);
        let len = (ring.get_word(&self.read, at) & 0xffff_ffff) as usize;
        ring.get(&self.read, at, len, out);
        true
    }

    /// The checkpoint that record `seq` of `writer` claims, if it is here and claims one. Costs no
    /// more than a look at one word for a record that does not. `bytes` is room to work in.
    pub fn claim(
        &self,
        writer: ServerId,
        seq: Seq,
        bytes: &mut Vec<u8>,
    ) -> Option<(Stamp, Checkpoint)> {
        let stream = &self.streams[writer.index()];
        if seq.0 <= stream.first || seq.0 > stream.copied {
            return None;
        }
        let (n, ring) = (self.geometry.n, self.geometry.stream_ring(writer));
        let body = stream.place(seq.0) + (record::HEADER_BYTES + 8 * n) as u64;
        let [kind, flags, ..] = ring.get_word(&self.read, body).to_le_bytes();
        if !record::claims([kind, flags]) {
            return None;
        }
        bytes.clear();
        self.record(writer, seq, bytes);
        let record = Record::decode(bytes, n).ok()?;
        match Body::decode(record.body, n) {
            Ok(Body::Accept(accept)) => accept.checkpoint.map(|claim| (record.stamp, claim)),
            _ => None,
        }
    }
}
