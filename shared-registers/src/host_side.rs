//! The two files as a host uses them: it takes frames out of the write file, and keeps the streams
//! in the read file (`streams`). What may enter a stream is `host-agent`'s business.

mod streams;

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::canary::{Canary, broken};
use crate::ids::{Micros, Seq, ServerId};
use crate::layout::{
    DropReason, FRAME_HEADER_BYTES, FRAME_MAGIC, Geometry, HEADER_BYTES, LayoutError, LinkState,
    SET, floor_from_word, floor_to_word, floor_word, hint_word, read, write,
};
use crate::limits::MAX_ORDERS_PER_BATCH;
use crate::words::{Doorbell, News, Words, WordsMut, padded};
use streams::Stream;

/// What a host counts; each is a word of the read file, so that its guest can report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// PROPOSEs admitted from this host's guest.
    Proposes,
    /// ACCEPTs admitted.
    Accepts,
    /// CHANGEs admitted.
    Changes,
    /// Bytes of the records admitted.
    AdmittedBytes,
    /// Orders whose MAC, or digest, failed here.
    OrderMacFailed,
    /// Frames dropped because they came after a drop that they do not acknowledge.
    DroppedUnacknowledged,
    /// Frames that were admitted before and came again.
    DroppedStale,
    /// Looks at the write file that found an impossible head.
    BadHead,
    /// Record frames sent to peers.
    RecordFramesSent,
    /// Record frames received from peers.
    RecordFramesReceived,
    /// Records from peers that were here already.
    RecordsDuplicate,
    /// Records from peers that cannot follow what is here.
    RecordsOutOfOrder,
    /// Bytes sent to peers.
    LinkBytesSent,
    /// Bytes received from peers.
    LinkBytesReceived,
    /// Connections or frames on the trusted network that do not authenticate or decode.
    LinkRefused,
    /// Times that a peer's link came up.
    LinkUps,
    /// Checkpoints that became stable here (section 6).
    Checkpoints,
    /// Times that this host jumped over records that were reclaimed elsewhere.
    Jumps,
    /// Frames of a host's earlier incarnation, which nobody listens to any more (R6).
    EarlierIncarnation,
    /// Frames dropped, by [`DropReason`]: this counter plus the reason.
    Dropped,
}

impl Counter {
    fn word(self) -> usize {
        read::COUNTERS + self as usize
    }

    /// The words of [`Counter::Dropped`] for one reason, relative to the counters.
    pub fn dropped(reason: DropReason) -> usize {
        Counter::Dropped as usize + reason as usize
    }
}

const _: () = assert!(Counter::Dropped as usize + 8 <= read::COUNTERS_LEN);

/// A frame of the guest's, copied out.
pub struct Frame<'a> {
    /// The stream position that the guest means it for.
    pub seq: Seq,
    /// How many drops the guest knows of.
    pub drops: u64,
    /// A body, not yet looked at.
    pub body: &'a [u8],
}

/// What the write file holds next.
pub enum Taken<'a> {
    /// Nothing.
    Nothing,
    /// A frame. It counts as consumed after [`HostRegisters::consume`].
    Frame(Frame<'a>),
    /// Bytes that are no frame; all that was published is skipped.
    Garbage,
}

/// A stream's ring is full of records that may not be reclaimed yet (R7): wait for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring of stream {0} is full")]
pub struct StreamFull(pub ServerId);

/// Why a read file from an earlier run cannot be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReopenError {
    /// Not this server's file.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A record in it is damaged.
    #[error("holds a damaged record: number {seq} of stream {writer}")]
    Damaged {
        /// Whose stream.
        writer: ServerId,
        /// Which record.
        seq: u64,
    },
    /// A record that was here is not.
    #[error("lacks record {seq} of stream {writer}, which this server's own last record names")]
    Missing {
        /// Whose stream.
        writer: ServerId,
        /// Which record.
        seq: u64,
    },
    /// A word of its header is damaged.
    #[error("holds a damaged header")]
    Header,
    /// The host did not come to the end of recovering it.
    #[error("was not recovered to the end")]
    Recovering,
}

/// The host's side of its two files.
pub struct HostRegisters<R: WordsMut, W: Words> {
    geometry: Geometry,
    read: R,
    write: W,
    streams: Vec<Stream>,
    consumed: u64,
    taking: u64,
    bad_head: Option<u64>,
    drops: u64,
    bell: Doorbell,
    copy: Vec<u8>,
    /// R6: what counts has been synced.
    durable: bool,
    /// Something was appended or promised since the last sync.
    unsynced: Cell<bool>,
}

impl<R: WordsMut, W: Words> HostRegisters<R, W> {
    /// Formats an empty read file. Both files must have the sizes that `geometry` says.
    pub fn create(geometry: Geometry, read: R, write: W) -> Result<Self, LayoutError> {
        geometry.format_read(&read);
        geometry.check_read(&read)?;
        geometry.check_write(&write)?;
        Ok(Self::empty(geometry, read, write))
    }

    /// Goes on with the read file of an earlier run of the same boot: checks every record, and
    /// takes nothing that was not published. What is stable it does not say: [`Self::set_stable`].
    pub fn reopen(geometry: Geometry, read: R, write: W) -> Result<Self, ReopenError> {
        geometry.check_read(&read)?;
        geometry.check_write(&write)?;
        let mut this = Self::empty(geometry, read, write);
        this.durable = this.header(read::DURABLE) == SET;
        this.consumed = this.read.load(read::CONSUMED, Ordering::Relaxed) & !7;
        // The guest goes by this word too.
        this.read.store(read::CONSUMED, this.consumed, Ordering::Relaxed);
        this.drops = this.read.load(read::DROPS, Ordering::Relaxed);
        if this.recovering() {
            return Err(ReopenError::Recovering);
        }
        let floors = ServerId::all(geometry.n).map(|server| this.whole_floor(server));
        let floors = floors.collect::<Option<Vec<u32>>>().ok_or(ReopenError::Header)?;
        if u64::from(floors[geometry.server.index()]) != this.header(read::INCARNATION) {
            return Err(ReopenError::Header);
        }
        for writer in ServerId::all(geometry.n) {
            this.scan(writer)?;
        }
        this.check_own_past()?;
        Ok(this)
    }

    /// R6: begins to recover: keeps of the read file what is intact, and formats it if nothing is.
    /// Frames that wait in the write file are passed over: they were written for a stream that may
    /// be lost. Both files must have the sizes that `geometry` says.
    pub fn recover(geometry: Geometry, read: R, write: W) -> Result<Self, LayoutError> {
        if geometry.check_read(&read).is_err() {
            // No file of this name looks whole before it says that it is not.
            read.clear(0, (HEADER_BYTES / 8) as usize);
            read.store(read::RECOVERING, SET, Ordering::Relaxed);
            geometry.format_read(&read);
        }
        geometry.check_read(&read)?;
        geometry.check_write(&write)?;
        let mut this = Self::empty(geometry, read, write);
        // Before anything else changes: so a kill is followed by another recovery, and the guest is
        // warned.
        this.durable = this.header(read::DURABLE) == SET;
        this.read.store(read::CLEAN, 0, Ordering::Relaxed);
        this.read.store(read::RECOVERING, SET, Ordering::Relaxed);
        let others = ((1 << geometry.n) - 1) ^ (1 << geometry.server.0);
        this.set_waits(others);
        this.read.fence();
        let head = this.write.load(write::HEAD, Ordering::Acquire) & !7;
        this.consumed = head;
        this.read.store(read::CONSUMED, head, Ordering::Relaxed);
        this.drops = this.read.load(read::DROPS, Ordering::Relaxed);
        for server in ServerId::all(geometry.n) {
            // A damaged one is learned again from the others.
            this.set_floor(server, this.floor(server));
            this.salvage(server);
        }
        Ok(this)
    }

    /// R6: whether this host recovers.
    pub fn recovering(&self) -> bool {
        self.header(read::RECOVERING) != 0
    }

    /// R6: which hosts it waits for then, one bit for each. For people.
    pub fn set_waits(&self, hosts: u64) {
        self.read.store(read::WAITS, hosts, Ordering::Release);
    }

    /// R6: the own stream is whole again, and goes on under this incarnation.
    pub fn recovered(&self, incarnation: u32) {
        self.set_waits(0);
        self.read.store(read::INCARNATION, u64::from(incarnation), Ordering::Relaxed);
        self.read.store(read::RECOVERING, 0, Ordering::Release);
        self.unsynced.set(true);
    }

    /// R6: the least incarnation of `server` that is listened to. The own one's is this host's.
    pub fn floor(&self, server: ServerId) -> u32 {
        self.whole_floor(server).unwrap_or(0)
    }

    /// R6: the floors of all servers.
    pub fn floors(&self) -> Box<[u32]> {
        ServerId::all(self.geometry.n).map(|server| self.floor(server)).collect()
    }

    fn whole_floor(&self, server: ServerId) -> Option<u32> {
        floor_from_word(self.read.load(floor_word(server), Ordering::Relaxed))
    }

    /// R6: stores it. It never falls.
    pub fn set_floor(&self, server: ServerId, floor: u32) {
        self.read.store(floor_word(server), floor_to_word(floor), Ordering::Relaxed);
        self.unsynced.set(true);
    }

    fn empty(geometry: Geometry, read: R, write: W) -> Self {
        let bell = Doorbell::resume(&read, read::HOST_NAP);
        HostRegisters {
            streams: (0..geometry.n).map(|_| Stream::empty(0, 0, None)).collect(),
            geometry,
            read,
            write,
            consumed: 0,
            taking: 0,
            bad_head: None,
            drops: 0,
            bell,
            copy: Vec::new(),
            durable: false,
            unsynced: Cell::new(false),
        }
    }

    /// R6: from now on with durability `disk`, or not: then a record counts when it is synced. What
    /// is in the file is synced already.
    pub fn durable(self, durable: bool) -> Self {
        self.set_header(read::DURABLE, if durable { SET } else { 0 });
        HostRegisters { durable, ..self }
    }

    /// Whose files, and their shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Copies the next frame out of the write file. It is taken only by [`Self::consume`]; garbage
    /// is skipped at once.
    pub fn take(&mut self) -> Taken<'_> {
        let head = self.write.load(write::HEAD, Ordering::Acquire);
        let ring = self.geometry.frame_ring();
        let waiting = head.wrapping_sub(self.consumed);
        if waiting == 0 {
            return Taken::Nothing;
        }
        if !self.possible(head) {
            // It says nothing about frames: wait for a possible one, and count this one once.
            if self.bad_head != Some(head) {
                self.bad_head = Some(head);
                self.count(Counter::BadHead, 1);
            }
            return Taken::Nothing;
        }
        let first = ring.get_word(&self.write, self.consumed);
        let len = (first & 0xffff_ffff) as usize;
        let max = FRAME_HEADER_BYTES - 8 + self.geometry.limits.max_body_bytes();
        let fits = (FRAME_HEADER_BYTES - 8..=max).contains(&len) && 8 + padded(len) <= waiting;
        if first >> 32 != FRAME_MAGIC >> 32 || !fits {
            self.consumed = head;
            self.read.store(read::CONSUMED, self.consumed, Ordering::Release);
            return Taken::Garbage;
        }
        // One fetch: from here on only the copy counts.
        self.copy.clear();
        ring.get(&self.write, self.consumed + 8, len, &mut self.copy);
        self.taking = 8 + padded(len);
        let (header, body) = self.copy.split_at(FRAME_HEADER_BYTES - 8);
        let word = |i: usize| u64::from_le_bytes(header.as_chunks().0[i]);
        Taken::Frame(Frame { seq: Seq(word(0)), drops: word(1), body })
    }

    /// For [`Canary::R1DoubleFetch`] alone: the body of the frame that [`Self::take`] gave, as the
    /// guest's file has it now.
    pub fn fetch_again(&self) -> Option<Vec<u8>> {
        broken(Canary::R1DoubleFetch).then(|| {
            let (ring, mut again) = (self.geometry.frame_ring(), Vec::new());
            ring.get(&self.write, self.consumed + 8, self.copy.len(), &mut again);
            again.split_off(FRAME_HEADER_BYTES - 8)
        })
    }

    /// Whether a head can be the place behind a last whole frame.
    fn possible(&self, head: u64) -> bool {
        let waiting = head.wrapping_sub(self.consumed);
        waiting <= self.geometry.limits.write_ring_bytes && waiting.is_multiple_of(8)
    }

    /// The frame that [`Self::take`] gave is dealt with.
    pub fn consume(&mut self) {
        self.consumed = self.consumed.wrapping_add(std::mem::take(&mut self.taking));
        self.read.store(read::CONSUMED, self.consumed, Ordering::Release);
    }

    /// Tells the guest that its frame for position `seq` was dropped, and which of its orders
    /// failed (by their index, at most [`MAX_ORDERS_PER_BATCH`]). Returns how many drops that makes.
    pub fn notify_drop(&mut self, seq: Seq, reason: DropReason, orders: &[usize]) -> u64 {
        let mut bits = [0u64; MAX_ORDERS_PER_BATCH / 64];
        for order in orders {
            bits[order / 64] |= 1 << (order % 64);
        }
        for (i, word) in bits.iter().enumerate() {
            self.read.store(read::DROP_ORDERS + i, *word, Ordering::Relaxed);
        }
        self.read.store(read::DROP_SEQ, seq.0, Ordering::Relaxed);
        self.read.store(read::DROP_REASON, reason as u64, Ordering::Relaxed);
        self.drops = self.drops.wrapping_add(1);
        self.read.store(read::DROPS, self.drops, Ordering::Release);
        self.add(Counter::dropped(reason), 1);
        self.drops
    }

    /// Drops notified so far.
    pub fn drops(&self) -> u64 {
        self.drops
    }

    /// Publishes R8's hint about a peer's host.
    pub fn hint(&self, peer: ServerId, state: LinkState, silence: Micros) {
        self.read.store(hint_word(peer, read::SILENCE), silence.0, Ordering::Relaxed);
        self.read.store(hint_word(peer, read::STATE), state as u64, Ordering::Release);
    }

    /// Says whether the guest's own stream is full, so that it can say so too.
    pub fn set_stream_full(&self, full: bool) {
        self.read.store(read::STREAM_FULL, u64::from(full), Ordering::Relaxed);
    }

    /// The header word `which` of the read file that recovery keeps (boot, incarnation, clean).
    pub fn header(&self, which: usize) -> u64 {
        self.read.load(which, Ordering::Relaxed)
    }

    /// Stores such a word.
    pub fn set_header(&self, which: usize, value: u64) {
        assert!(
            [read::BOOT, read::CLEAN, read::DURABLE].contains(&which),
            "not a word of its caller's"
        );
        self.read.store(which, value, Ordering::Relaxed);
    }

    /// R6: whether its last records may be lost: the file is of another `boot` than this one, and
    /// was in use when the machine went down, in whose memory they were.
    pub fn may_lack_records(&self, boot: u64) -> bool {
        let kept = self.header(read::DURABLE) == SET || self.header(read::CLEAN) == SET;
        self.header(read::BOOT) != boot && !kept && !broken(Canary::R6OtherBoot)
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, by: u64) {
        self.add(counter as usize, by);
    }

    fn add(&self, index: usize, by: u64) {
        let word = read::COUNTERS + index;
        let value = self.read.load(word, Ordering::Relaxed).wrapping_add(by);
        self.read.store(word, value, Ordering::Relaxed);
    }

    /// A counter's value.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.read.load(counter.word(), Ordering::Relaxed)
    }

    /// Says that the host is about to sleep. Look once more after this.
    pub fn doze(&mut self) {
        self.bell.doze(&self.read, read::HOST_NAP, News::ELSE);
    }

    /// Says that the host is awake.
    pub fn wake(&mut self) {
        self.bell.wake(&self.read, read::HOST_NAP);
    }

    /// Whether the write file holds anything new.
    pub fn has_frames(&self) -> bool {
        let head = self.write.load(write::HEAD, Ordering::Acquire);
        // An impossible head is looked at once, to be counted.
        head != self.consumed && (self.possible(head) || self.bad_head != Some(head))
    }

    /// Whether the guest sleeps and must be rung to see this news.
    pub fn must_ring(&mut self, news: News) -> bool {
        self.bell.must_ring(&self.write, write::GUEST_NAP, news)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crypto::ClusterId;
    use crate::guest_side::GuestRegisters;
    use crate::layout::stream_word;
    use crate::limits::RegisterLimits;
    use crate::record::{Record, Stamp};
    use crate::words::VecWords;

    fn geometry(ring_bytes: u64) -> Geometry {
        let write_ring_bytes = ring_bytes;
        let limits = RegisterLimits { max_payload_bytes: 64, ring_bytes, write_ring_bytes };
        Geometry { n: 3, server: ServerId(0), cluster: ClusterId([1; 32]), limits }
    }

    /// New files: the read file and the write file.
    fn files(geometry: Geometry) -> (Arc<VecWords>, Arc<VecWords>) {
        let words = |bytes: u64| Arc::new(VecWords::new((bytes / 8) as usize));
        (words(geometry.read_file_bytes()), words(geometry.write_file_bytes()))
    }

    #[test]
    fn a_read_file_whose_counts_do_not_fit_its_records_is_refused() {
        let geometry = geometry(1 << 9);
        let reopened = |pokes: &[(u16, usize, u64)]| {
            let (read, write) = files(geometry);
            let mut host = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
            // The own record names one of server 1's.
            for (writer, seen) in [(1, [0, 0, 0]), (0, [0, 1, 0])] {
                let (writer, seen) = (ServerId(writer), Box::from(seen));
                let stamp = Stamp { writer, seq: Seq(1), time: Micros(0), incarnation: 0, seen };
                let mut bytes = Vec::new();
                Record::encode(&stamp, &[], &mut bytes);
                host.append(&Record { stamp, body: &[] }, &bytes).unwrap();
            }
            host.expose();
            for (writer, which, value) in pokes {
                read.store(stream_word(ServerId(*writer), *which), *value, Ordering::Relaxed);
            }
            HostRegisters::reopen(geometry, read, write).map(|_| ())
        };
        let damaged = |writer, seq| Err(ReopenError::Damaged { writer: ServerId(writer), seq });
        assert_eq!(reopened(&[]), Ok(()));
        for (which, value) in [
            (read::FIRST_SEQ, 2),
            (read::FIRST_AT, 8),
            (read::COPIED_AT, 1 << 20),
            (read::COPIED_AT, u64::MAX),
            (read::EXPOSED_SEQ, 2),
            (read::EXPOSED_SEQ, u64::MAX),
        ] {
            assert_eq!(reopened(&[(1, which, value)]), damaged(1, 1));
        }
        assert_eq!(reopened(&[(1, read::COPIED_SEQ, 2)]), damaged(1, 2));
        // One that the own stream names has vanished.
        let vanished = [(1, read::COPIED_SEQ, 0), (1, read::EXPOSED_SEQ, 0)];
        let missing = ReopenError::Missing { writer: ServerId(1), seq: 1 };
        assert_eq!(reopened(&vanished), Err(missing));
    }

    /// R6: else one flipped bit would let a host go on where a power failure left it.
    #[test]
    fn no_flipped_bit_sets_a_mark_or_ends_a_recovery() {
        let geometry = geometry(1 << 9);
        let (read, write) = files(geometry);
        let host = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
        host.set_header(read::BOOT, 7);
        let flip = |word: usize, bit: u32| {
            read.store(word, read.load(word, Ordering::Relaxed) ^ 1 << bit, Ordering::Relaxed);
        };
        for (word, bit) in
            [read::CLEAN, read::DURABLE].map(|w| (0..64).map(move |b| (w, b))).into_iter().flatten()
        {
            flip(word, bit);
            assert!(host.may_lack_records(8), "bit {bit} of word {word}");
            flip(word, bit);
        }
        host.set_header(read::CLEAN, SET);
        assert!(!host.may_lack_records(8));
        drop(host);
        let host = HostRegisters::recover(geometry, read.clone(), write).unwrap();
        for bit in 0..64 {
            flip(read::RECOVERING, bit);
            assert!(host.recovering(), "bit {bit}");
            flip(read::RECOVERING, bit);
        }
    }

    #[test]
    fn a_head_that_was_impossible_once_is_taken_when_it_is_reached() {
        let geometry = geometry(1 << 22);
        let (read, file) = files(geometry);
        let mut host = HostRegisters::create(geometry, read.clone(), file.clone()).unwrap();
        // A broken-in guest leaves a head that a clean one after it will reach exactly.
        let frames = (1 << 22) / 72 + 5;
        file.store(write::HEAD, 72 * frames, Ordering::Release);
        assert!(matches!(host.take(), Taken::Nothing));
        assert_eq!(host.counter(Counter::BadHead), 1);
        let mut guest = GuestRegisters::attach(geometry, read, file).unwrap();
        assert!(guest.drained());
        for seq in 1..=frames {
            guest.write(Seq(seq), &[7; 42]).unwrap();
            assert!(host.has_frames(), "frame {seq} of {frames}");
            assert!(matches!(host.take(), Taken::Frame(_)));
            host.consume();
        }
    }
}
