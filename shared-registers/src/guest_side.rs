//! The two files as a guest uses them: it reads the streams, the drop notice, the hints and the
//! counters from the read file, and writes frames into the write file.
//!
//! A guest reads each stream record by record, and knows the number of the next. A host forgets what
//! a stable checkpoint covers (section 6), so that record may be gone, or go while it is copied: the
//! mark FIRST_AT, looked at again after the copy, says so ([`Next::Reclaimed`]). Then the guest
//! starts from a snapshot and goes on behind it ([`GuestRegisters::seek`]); to find out which
//! snapshot it reads whatever is still there ([`GuestRegisters::rewind`]).

use std::sync::atomic::Ordering;

use crate::ids::{Micros, Seq, ServerId};
use crate::layout::{
    DropReason, FRAME_HEADER_BYTES, FRAME_MAGIC, Geometry, LayoutError, LinkState, hint_word, read,
    stream_word, write,
};
use crate::limits::MAX_ORDERS_PER_BATCH;
use crate::record::{HEADER_BYTES, Record};
use crate::words::{Doorbell, News, Words, WordsMut, padded};

/// R8's hint about one host. For suspicion (P3), never for safety.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostHint {
    /// The link's state.
    pub state: LinkState,
    /// How long nothing was heard from it.
    pub silence: Micros,
}

/// What the host said of a frame that it dropped (R1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropNotice {
    /// Drops so far; frames that carry this number acknowledge it.
    pub drops: u64,
    /// The stream position that the frame was meant for. It and all after it are lost.
    pub seq: Seq,
    /// Why; `None` for a reason that this guest does not know.
    pub reason: Option<DropReason>,
    /// Indices of the orders that failed.
    pub orders: Vec<usize>,
}

/// The write file has no room; wait until the host has consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the write file is full")]
pub struct WriteFull;

/// What the read file holds next of a stream.
pub enum Next<'a> {
    /// Nothing new.
    Nothing,
    /// A record, which counts as read after [`GuestRegisters::advance`].
    Record(Record<'a>),
    /// The record that was to be read is reclaimed, or the host jumped over it (section 6). It
    /// stays so until [`GuestRegisters::seek`] or [`GuestRegisters::rewind`].
    Reclaimed,
    /// Bytes that are no record. Hosts do not write such: the file is damaged.
    Damaged,
}

/// Records that were wanted are reclaimed (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was to be read is reclaimed")]
pub struct Reclaimed;

/// Where a stream is read.
#[derive(Clone, Copy)]
struct Cursor {
    /// The next place to look at.
    at: u64,
    /// The next record to be read; 0 for whichever comes.
    wanted: u64,
    /// It is reclaimed, and the guest was told.
    lost: bool,
}

/// The guest's side of its two files.
pub struct GuestRegisters<R: Words, W: WordsMut> {
    geometry: Geometry,
    read: R,
    write: W,
    cursors: Vec<Cursor>,
    /// Number and place of what comes behind the record that was copied last.
    behind: Option<(u64, u64)>,
    head: u64,
    drops: u64,
    /// Something was written that the host was not rung for and may not have seen.
    unrung: bool,
    bell: Doorbell,
    copy: Vec<u8>,
}

impl<R: Words, W: WordsMut> GuestRegisters<R, W> {
    /// Attaches to the files. Frames that an earlier guest left in the write file stay: wait for
    /// [`Self::drained`] before reading, so that its own stream is complete (P6). Each stream is
    /// read from its record 1 on.
    pub fn attach(geometry: Geometry, read: R, write: W) -> Result<Self, LayoutError> {
        geometry.check_read(&read)?;
        geometry.check_write(&write)?;
        geometry.format_write(&write);
        let consumed = read.load(read::CONSUMED, Ordering::Acquire);
        let mut head = write.load(write::HEAD, Ordering::Acquire);
        let waiting = head.wrapping_sub(consumed);
        if waiting > geometry.limits.write_ring_bytes || !waiting.is_multiple_of(8) {
            // A head that cannot be: the earlier guest was broken into. Nothing of it can be read.
            head = consumed;
            write.store(write::HEAD, head, Ordering::Release);
        }
        let drops = read.load(read::DROPS, Ordering::Acquire);
        let first = |writer| read.load(stream_word(writer, read::FIRST_AT), Ordering::Acquire);
        Ok(GuestRegisters {
            cursors: ServerId::all(geometry.n)
                .map(|writer| Cursor { at: first(writer), wanted: 1, lost: false })
                .collect(),
            behind: None,
            head,
            drops,
            unrung: false,
            bell: Doorbell::resume(&write, write::GUEST_NAP),
            copy: Vec::new(),
            geometry,
            read,
            write,
        })
    }

    /// Whose files, and their shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// R6: which hosts the own host waits for while it recovers its streams, one bit for each; `None`
    /// if it does not recover. While it does, all can be read that is exposed, and nothing written.
    pub fn recovering(&self) -> Option<u64> {
        let recovering = self.read.load(read::RECOVERING, Ordering::Acquire) != 0;
        recovering.then(|| self.read.load(read::WAITS, Ordering::Relaxed))
    }

    /// Which incarnation of the own host writes (R6): what was read under another one is to be
    /// read again.
    pub fn incarnation(&self) -> u64 {
        self.read.load(read::INCARNATION, Ordering::Acquire)
    }

    /// Whether the host has taken every frame (P6). Meanwhile drops are adopted silently: they
    /// speak of an earlier guest's frames.
    pub fn drained(&mut self) -> bool {
        let done = self.read.load(read::CONSUMED, Ordering::Acquire) == self.head;
        self.drops = self.read.load(read::DROPS, Ordering::Acquire);
        done
    }

    /// Copies the next exposed record of `writer`, if there is one.
    pub fn next(&mut self, writer: ServerId) -> Next<'_> {
        let ring = self.geometry.stream_ring(writer);
        let Cursor { mut at, wanted, lost } = self.cursors[writer.index()];
        if lost {
            return Next::Reclaimed;
        }
        let len = loop {
            let exposed = self.word(writer, read::EXPOSED_AT, Ordering::Acquire);
            // Places only rise, and so does `at`. Behind what is exposed, it is where a jump that is
            // not finished will go on.
            let waiting = exposed.saturating_sub(at);
            if waiting == 0 {
                self.cursors[writer.index()].at = at;
                if self.overtaken(writer) {
                    return self.lose(writer);
                }
                let placed = at <= self.word(writer, read::COPIED_AT, Ordering::Relaxed);
                return if placed { Next::Nothing } else { Next::Damaged };
            }
            let len = (ring.get_word(&self.read, at) & 0xffff_ffff) as usize;
            let seq = ring.get_word(&self.read, at.wrapping_add(8));
            let whole = len >= HEADER_BYTES && padded(len) <= waiting && waiting <= ring.bytes;
            let fits = whole && len <= self.geometry.max_record_bytes();
            if fits && seq >= wanted {
                self.copy.clear();
                ring.get(&self.read, at, len, &mut self.copy);
            }
            if !self.kept(writer, at) {
                // Gone while it was looked at. One that is only passed over may go.
                if wanted == 0 || self.overtaken(writer) {
                    return self.lose(writer);
                }
                at = self.word(writer, read::FIRST_AT, Ordering::Acquire);
                continue;
            }
            if !fits {
                return Next::Damaged;
            }
            if seq >= wanted {
                break len;
            }
            at += padded(len);
        };
        let record = match Record::decode(&self.copy, self.geometry.n) {
            Ok(record) if record.stamp.writer == writer => record,
            _ => return Next::Damaged,
        };
        let seq = record.stamp.seq.0;
        let cursor = &mut self.cursors[writer.index()];
        if wanted != 0 && seq != wanted {
            // The host jumped.
            cursor.lost = true;
            return Next::Reclaimed;
        }
        cursor.at = at;
        self.behind = Some((seq.wrapping_add(1), at.wrapping_add(padded(len))));
        Next::Record(record)
    }

    fn word(&self, writer: ServerId, which: usize, order: Ordering) -> u64 {
        self.read.load(stream_word(writer, which), order)
    }

    /// Whether what was copied from place `at` on is what had been appended there: the host puts
    /// the mark up, and fences, before it overwrites anything behind the mark.
    fn kept(&self, writer: ServerId, at: u64) -> bool {
        self.read.fence();
        self.word(writer, read::FIRST_AT, Ordering::Relaxed) <= at
    }

    /// Whether the next record to be read is reclaimed: also where nothing comes after it.
    fn overtaken(&self, writer: ServerId) -> bool {
        let wanted = self.cursors[writer.index()].wanted;
        wanted != 0 && self.word(writer, read::FIRST_SEQ, Ordering::Acquire) >= wanted
    }

    fn lose(&mut self, writer: ServerId) -> Next<'_> {
        self.cursors[writer.index()].lost = true;
        Next::Reclaimed
    }

    /// The record of `writer` that [`Self::next`] gave is read.
    pub fn advance(&mut self, writer: ServerId) {
        let cursor = &mut self.cursors[writer.index()];
        if let Some(behind) = self.behind.take() {
            (cursor.wanted, cursor.at) = behind;
        }
    }

    /// How many records of `writer` are reclaimed.
    pub fn first(&self, writer: ServerId) -> Seq {
        Seq(self.word(writer, read::FIRST_SEQ, Ordering::Acquire))
    }

    /// How many records of `writer` the last stable checkpoint covers, as far as the host knows.
    pub fn stable(&self, writer: ServerId) -> Seq {
        Seq(self.read.load(hint_word(writer, read::STABLE_SEQ), Ordering::Relaxed))
    }

    /// How many bytes of records the window of `writer` still takes before the next checkpoint has
    /// to be stable (R7). For people, and for a guest's own discipline.
    pub fn room(&self, writer: ServerId) -> u64 {
        let stable = self.read.load(hint_word(writer, read::STABLE_AT), Ordering::Relaxed);
        let used = self.word(writer, read::COPIED_AT, Ordering::Relaxed).wrapping_sub(stable);
        self.geometry.limits.ring_bytes.saturating_sub(used)
    }

    /// Reads `writer` on behind its record `after`, whether that is exposed yet or not. Fails if
    /// the one behind it is reclaimed; then [`Self::next`] says so too.
    pub fn seek(&mut self, writer: ServerId, after: Seq) -> Result<(), Reclaimed> {
        self.rewind(writer);
        self.cursors[writer.index()].wanted = after.0.saturating_add(1);
        if self.overtaken(writer) { Err(Reclaimed) } else { Ok(()) }
    }

    /// Reads `writer` from its first record on that is still there, whichever that is; it may be
    /// one that is being reclaimed.
    pub fn rewind(&mut self, writer: ServerId) {
        let at = self.word(writer, read::FIRST_AT, Ordering::Acquire);
        self.cursors[writer.index()] = Cursor { at, wanted: 0, lost: false };
    }

    /// Publishes a frame that is meant for position `seq` of the own stream, acknowledging every
    /// drop that [`Self::drop_notice`] has told of. The caller then rings if
    /// [`Self::must_ring`] says so.
    pub fn write(&mut self, seq: Seq, body: &[u8]) -> Result<(), WriteFull> {
        let consumed = self.read.load(read::CONSUMED, Ordering::Acquire);
        let ring = self.geometry.frame_ring();
        let len = FRAME_HEADER_BYTES - 8 + body.len();
        let size = 8 + padded(len);
        if self.head.wrapping_sub(consumed) > ring.bytes {
            // Somebody else stored to this file, and the host has skipped past what is written.
            self.head = consumed;
        }
        if self.head.wrapping_sub(consumed) + size > ring.bytes {
            return Err(WriteFull);
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..8].copy_from_slice(&(FRAME_MAGIC | len as u64).to_le_bytes());
        header[8..16].copy_from_slice(&seq.0.to_le_bytes());
        header[16..].copy_from_slice(&self.drops.to_le_bytes());
        ring.put(&self.write, self.head, &header);
        ring.put(&self.write, self.head.wrapping_add(FRAME_HEADER_BYTES as u64), body);
        self.head = self.head.wrapping_add(size);
        self.unrung = true;
        self.write.store(write::HEAD, self.head, Ordering::Release);
        Ok(())
    }

    /// The host's word on a drop that this guest does not know of yet. From now on its frames
    /// acknowledge it.
    pub fn drop_notice(&mut self) -> Option<DropNotice> {
        let drops = self.read.load(read::DROPS, Ordering::Acquire);
        if drops == self.drops {
            return None;
        }
        self.drops = drops;
        let word = |i| self.read.load(i, Ordering::Relaxed);
        let code = word(read::DROP_REASON);
        let failed = |i: &usize| word(read::DROP_ORDERS + i / 64) >> (i % 64) & 1 == 1;
        Some(DropNotice {
            drops,
            seq: Seq(word(read::DROP_SEQ)),
            reason: DropReason::ALL.into_iter().find(|r| *r as u64 == code),
            orders: (0..MAX_ORDERS_PER_BATCH).filter(failed).collect(),
        })
    }

    /// R8's hints, one per server; the own entry means nothing.
    pub fn hints(&self) -> impl Iterator<Item = HostHint> + '_ {
        ServerId::all(self.geometry.n).map(|server| {
            let state = match self.read.load(hint_word(server, read::STATE), Ordering::Acquire) {
                1 => LinkState::Up,
                2 => LinkState::Lost,
                _ => LinkState::Never,
            };
            HostHint {
                state,
                silence: Micros(
                    self.read.load(hint_word(server, read::SILENCE), Ordering::Relaxed),
                ),
            }
        })
    }

    /// Whether the host takes no frame because the own stream's ring is full.
    pub fn stream_full(&self) -> bool {
        self.read.load(read::STREAM_FULL, Ordering::Relaxed) != 0
    }

    /// The host's counters, in the order of [`crate::host_side::Counter`].
    pub fn counters(&self) -> Vec<u64> {
        (0..read::COUNTERS_LEN)
            .map(|i| self.read.load(read::COUNTERS + i, Ordering::Relaxed))
            .collect()
    }

    /// Says that the guest is about to sleep, and for what it is to be rung. Look for that once more
    /// after this.
    pub fn doze(&mut self, wanted: News) {
        self.bell.doze(&self.write, write::GUEST_NAP, wanted);
    }

    /// Says that the guest is awake.
    pub fn wake(&mut self) {
        self.bell.wake(&self.write, write::GUEST_NAP);
    }

    /// Whether any of what is `wanted` may have come since the guest last looked. A stream of which
    /// it was told that what it wants is reclaimed brings nothing.
    pub fn has_news(&self, wanted: News) -> bool {
        let news = |(writer, cursor): (ServerId, &Cursor)| {
            let exposed = self.word(writer, read::EXPOSED_AT, Ordering::Acquire);
            wanted.has(News::of(writer))
                && !cursor.lost
                && (exposed > cursor.at || self.overtaken(writer))
        };
        self.read.load(read::DROPS, Ordering::Acquire) != self.drops
            || ServerId::all(self.geometry.n).zip(&self.cursors).any(news)
    }

    /// Whether the host sleeps and must be rung to see what was written since the last call.
    pub fn must_ring(&mut self) -> bool {
        // A host that is awake looks once more before it sleeps.
        std::mem::take(&mut self.unrung)
            && self.bell.must_ring(&self.read, read::HOST_NAP, News::ELSE)
    }
}
