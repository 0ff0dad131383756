//! Which word of which file means what.
//!
//! **Read file** (the host writes, the guest reads): one header page, then one ring per server.
//! **Write file** (the guest writes, the host reads): one header page, then one ring of frames. In
//! a virtual machine both are devices whose size is a power of two, so both files are padded to one.
//! The bells' words stand with whoever stores them.

use std::sync::atomic::Ordering;

use crate::crypto::ClusterId;
use crate::ids::ServerId;
use crate::limits::{MAX_RING_BYTES, MAX_SERVERS, MIN_RING_BYTES, RegisterLimits};
use crate::words::{Ring, Words, WordsMut};

/// Bytes of either file's header.
pub const HEADER_BYTES: u64 = 4096;
/// `DifATo_R`: the first word of a read file.
pub const READ_MAGIC: u64 = u64::from_le_bytes(*b"DifATo_R");
/// `DifATo_W`: the first word of a write file.
pub const WRITE_MAGIC: u64 = u64::from_le_bytes(*b"DifATo_W");
/// Version of both layouts and of the record format.
pub const VERSION: u64 = 6;

/// Words of the read file's header.
pub mod read {
    /// [`super::READ_MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// `server id | n << 16`.
    pub const SERVER: usize = 2;
    /// Bytes of each stream's ring.
    pub const RING_BYTES: usize = 3;
    /// The cluster's id: four words.
    pub const CLUSTER: usize = 4;
    /// First eight bytes of the digest of the machine's boot id under which the file was written.
    pub const BOOT: usize = 8;
    /// Which incarnation of the host writes (R6). For the guest: what it read under another one it
    /// reads again.
    pub const INCARNATION: usize = 9;
    /// [`super::SET`] after a clean shutdown.
    pub const CLEAN: usize = 10;
    /// Not 0 while the host recovers its stream (R6): it takes no frame, and streams may grow shorter.
    pub const RECOVERING: usize = 11;
    /// One bit per host that it waits for then.
    pub const WAITS: usize = 12;
    /// [`super::SET`] if records count only once they are synced (R6, durability `disk`).
    pub const DURABLE: usize = 13;
    /// The host's bell word.
    pub const HOST_NAP: usize = 16;
    /// Bytes of the write file's ring that the host has consumed, since the beginning.
    pub const CONSUMED: usize = 17;
    /// 1 while the guest's own stream's ring is full (R7): no frame is taken.
    pub const STREAM_FULL: usize = 18;
    /// Drops that want acknowledging, so far; each has overwritten the notice before.
    pub const DROPS: usize = 24;
    /// The notice: which frame (the stream position that it would have had).
    pub const DROP_SEQ: usize = 25;
    /// The notice: a [`super::DropReason`].
    pub const DROP_REASON: usize = 26;
    /// The notice: one bit per order of the frame that failed; 16 words.
    pub const DROP_ORDERS: usize = 28;
    /// The host's counters: see [`crate::host_side::Counter`].
    pub const COUNTERS: usize = 64;
    /// Room for so many counters.
    pub const COUNTERS_LEN: usize = 32;
    /// Per server: the least incarnation that is listened to (R6), and its complement above it, so
    /// that a damaged word is known for one.
    pub const FLOORS: usize = 96;
    /// Per server: R8's link state and silence, see [`crate::guest_side::HostHint`], and how far
    /// its stream may be reclaimed.
    pub const HINTS: usize = 128;
    /// Words per server there.
    pub const HINT_WORDS: usize = 4;
    /// Hint: a [`super::LinkState`].
    pub const STATE: usize = 0;
    /// Hint: microseconds in which nothing was heard.
    pub const SILENCE: usize = 1;
    /// Hint: how many records of its stream the last stable checkpoint covers (section 6).
    pub const STABLE_SEQ: usize = 2;
    /// Hint: the place behind them. What lies behind that fills the window (R7).
    pub const STABLE_AT: usize = 3;
    /// Per stream: its state.
    pub const STREAMS: usize = 256;
    /// Words per stream there.
    pub const STREAM_WORDS: usize = 8;
    /// Stream state: records reclaimed.
    pub const FIRST_SEQ: usize = 0;
    /// Stream state: place of the first record that is still there. After a kill it may be one
    /// that is reclaimed; the record there says which it is.
    pub const FIRST_AT: usize = 1;
    /// Stream state: records that the host has.
    pub const COPIED_SEQ: usize = 2;
    /// Stream state: place behind them.
    pub const COPIED_AT: usize = 3;
    /// Stream state: records exposed to the guest (R4).
    pub const EXPOSED_SEQ: usize = 4;
    /// Stream state: place behind them.
    pub const EXPOSED_AT: usize = 5;
    /// Stream state: the last CHANGE among the records reclaimed: its term + 1, or 0 for none (R1).
    pub const CHANGED: usize = 6;
    /// Stream state: 0, or that word and 1 more of a jump that is under way (section 6).
    pub const ARRIVING: usize = 7;
}

/// Words of the write file's header.
pub mod write {
    /// [`super::WRITE_MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// The guest's bell word.
    pub const GUEST_NAP: usize = 16;
    /// Place behind the last whole frame.
    pub const HEAD: usize = 17;
}

/// First word of a frame: this in the upper half, the length of what follows in the lower.
pub(crate) const FRAME_MAGIC: u64 = 0x4472_4146 << 32;
/// Bytes of a frame before its body: its first word, `seq`, `drops`.
pub const FRAME_HEADER_BYTES: usize = 24;

/// Why a host dropped a frame. The numbers stand in the read file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum DropReason {
    /// The ring's contents are not frames.
    Framing = 1,
    /// Not a well-formed PROPOSE, ACCEPT or CHANGE.
    Malformed = 2,
    /// Not the next number of the stream.
    Number = 3,
    /// An order larger than the limit.
    TooLarge = 4,
    /// An order of a client that does not exist.
    UnknownClient = 5,
    /// An order whose MAC does not verify, or whose digest is not its own.
    OrderMac = 6,
    /// A CHANGE that R1 does not allow.
    Change = 7,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [DropReason; 7] = [
        DropReason::Framing,
        DropReason::Malformed,
        DropReason::Number,
        DropReason::TooLarge,
        DropReason::UnknownClient,
        DropReason::OrderMac,
        DropReason::Change,
    ];
}

/// State of the trusted link between the own host and another (R8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum LinkState {
    /// Not connected since the own host started.
    Never = 0,
    /// Connected.
    Up = 1,
    /// It was connected, and is not.
    Lost = 2,
}

/// Shape of the two files of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Servers of the cluster.
    pub n: usize,
    /// Whose files.
    pub server: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Ring sizes and the payload bound.
    pub limits: RegisterLimits,
}

/// Why a file is not the one that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The file's size does not fit the configured rings.
    #[error("is {actual} bytes long where the configuration needs {expected}")]
    Size {
        /// What it is.
        actual: u64,
        /// What it should be.
        expected: u64,
    },
    /// The first words are not those of such a file.
    #[error("does not begin as a register file does")]
    Magic,
    /// It was written by another version of this program.
    #[error("has layout version {0} where this program knows {VERSION}")]
    Version(u64),
    /// It belongs to another server or cluster, or has other ring sizes.
    #[error("belongs to another server, cluster or configuration")]
    Other,
}

impl Geometry {
    /// Bytes of the read file that are used.
    pub fn read_bytes(&self) -> u64 {
        HEADER_BYTES + self.n as u64 * self.limits.ring_bytes
    }

    /// Bytes of the write file that are used.
    pub fn write_bytes(&self) -> u64 {
        HEADER_BYTES + self.limits.write_ring_bytes
    }

    /// Bytes of the read file: a device of shared memory has a power of two.
    pub fn read_file_bytes(&self) -> u64 {
        self.read_bytes().next_power_of_two()
    }

    /// Bytes of the write file, likewise.
    pub fn write_file_bytes(&self) -> u64 {
        self.write_bytes().next_power_of_two()
    }

    /// The ring of stream `writer` in the read file.
    pub fn stream_ring(&self, writer: ServerId) -> Ring {
        let bytes = self.limits.ring_bytes;
        let base = (HEADER_BYTES + writer.index() as u64 * bytes) / 8;
        Ring { base: base as usize, bytes }
    }

    /// The ring of the write file.
    pub fn frame_ring(&self) -> Ring {
        Ring { base: (HEADER_BYTES / 8) as usize, bytes: self.limits.write_ring_bytes }
    }

    /// Most records that a stream's ring holds: none is smaller than its stamp.
    pub fn max_records(&self) -> usize {
        self.limits.ring_bytes as usize / (crate::record::HEADER_BYTES + 8 * self.n)
    }

    /// The largest record, in bytes.
    pub fn max_record_bytes(&self) -> usize {
        crate::record::HEADER_BYTES + 8 * self.n + self.limits.max_body_bytes()
    }

    /// Whether the limits are ones that the formats can hold; else a sentence that says why not.
    pub fn check(&self) -> Result<(), String> {
        let ring = |name: &str, bytes: u64, records: u64| {
            let room = self.max_record_bytes() as u64 * records;
            if !bytes.is_power_of_two() || !(MIN_RING_BYTES..=MAX_RING_BYTES).contains(&bytes) {
                Err(format!(
                    "{name} = {bytes} is not a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES}"
                ))
            } else if bytes < room {
                Err(format!(
                    "{name} = {bytes} is too small for {records} records of the largest payload ({room} bytes)"
                ))
            } else {
                Ok(())
            }
        };
        if self.n > MAX_SERVERS || self.n.is_multiple_of(2) {
            return Err(format!("{} servers are not 2f+1 of at most {MAX_SERVERS}", self.n));
        }
        // All batches since the last stable checkpoint have to fit, and what is in flight besides.
        ring("ring_bytes", self.limits.ring_bytes, 8)?;
        ring("write_ring_bytes", self.limits.write_ring_bytes, 2)
    }

    /// Writes the header of an empty read file.
    pub fn format_read<W: WordsMut>(&self, words: &W) {
        words.store(read::VERSION, VERSION, Ordering::Relaxed);
        words.store(read::SERVER, self.server_word(), Ordering::Relaxed);
        words.store(read::RING_BYTES, self.limits.ring_bytes, Ordering::Relaxed);
        for (i, word) in self.cluster_words().enumerate() {
            words.store(read::CLUSTER + i, word, Ordering::Relaxed);
        }
        for server in ServerId::all(self.n) {
            words.store(floor_word(server), floor_to_word(0), Ordering::Relaxed);
        }
        words.store(read::MAGIC, READ_MAGIC, Ordering::Release);
    }

    /// Writes the header of an empty write file.
    pub fn format_write<W: WordsMut>(&self, words: &W) {
        words.store(write::VERSION, VERSION, Ordering::Relaxed);
        words.store(write::MAGIC, WRITE_MAGIC, Ordering::Release);
    }

    /// Whether `words` is this server's read file.
    pub fn check_read<W: Words>(&self, words: &W) -> Result<(), LayoutError> {
        size(words, self.read_file_bytes())?;
        self.check_header(words)
    }

    /// As [`Self::check_read`], of a file that has a header and may have any size.
    pub fn check_header<W: Words>(&self, words: &W) -> Result<(), LayoutError> {
        if words.load(read::MAGIC, Ordering::Acquire) != READ_MAGIC {
            return Err(LayoutError::Magic);
        }
        match words.load(read::VERSION, Ordering::Relaxed) {
            VERSION => {}
            other => return Err(LayoutError::Version(other)),
        }
        let cluster = self
            .cluster_words()
            .enumerate()
            .all(|(i, word)| words.load(read::CLUSTER + i, Ordering::Relaxed) == word);
        let server = words.load(read::SERVER, Ordering::Relaxed) == self.server_word();
        let ring = words.load(read::RING_BYTES, Ordering::Relaxed) == self.limits.ring_bytes;
        if cluster && server && ring { Ok(()) } else { Err(LayoutError::Other) }
    }

    /// Whether `words` has the size of this server's write file. Its contents may be anything.
    pub fn check_write<W: Words>(&self, words: &W) -> Result<(), LayoutError> {
        size(words, self.write_file_bytes())
    }

    fn server_word(&self) -> u64 {
        u64::from(self.server.0) | (self.n as u64) << 16
    }

    fn cluster_words(&self) -> impl Iterator<Item = u64> {
        let (words, _) = self.cluster.0.as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word))
    }
}

fn size<W: Words>(words: &W, expected: u64) -> Result<(), LayoutError> {
    let actual = words.len() as u64 * 8;
    if actual == expected { Ok(()) } else { Err(LayoutError::Size { actual, expected }) }
}

/// A flag of the header that is set. No flipped bit sets one (R6).
pub const SET: u64 = u64::MAX;

/// The word of a stream's state.
pub fn stream_word(writer: ServerId, which: usize) -> usize {
    read::STREAMS + writer.index() * read::STREAM_WORDS + which
}

/// The word of a server's floor.
pub fn floor_word(server: ServerId) -> usize {
    read::FLOORS + server.index()
}

/// A floor as [`read::FLOORS`] has it.
pub fn floor_to_word(floor: u32) -> u64 {
    u64::from(!floor) << 32 | u64::from(floor)
}

/// The floor in a word, if it is whole.
pub fn floor_from_word(word: u64) -> Option<u32> {
    Some(word as u32).filter(|floor| floor_to_word(*floor) == word)
}

/// R6: whether the host whose floor this is was retired.
pub fn is_retired(floor: u32) -> bool {
    floor % 2 == 1
}

/// What [`read::WAITS`] says, for people: whom or what a host that recovers waits for.
pub fn waits_in_words(hosts: u64) -> String {
    let named = (0..u64::BITS).filter(|host| hosts >> host & 1 == 1);
    let named: Vec<String> = named.map(|host| host.to_string()).collect();
    match &named[..] {
        [] => "records that its own stream has seen".to_owned(),
        [one] => format!("host {one}"),
        _ => format!("hosts {}", named.join(", ")),
    }
}

/// The word of a server's hint.
pub fn hint_word(server: ServerId, which: usize) -> usize {
    read::HINTS + server.index() * read::HINT_WORDS + which
}

const _: () = assert!(read::HINTS + MAX_SERVERS * read::HINT_WORDS <= read::STREAMS);
const _: () = assert!(read::STREAMS + MAX_SERVERS * read::STREAM_WORDS <= 512);
const _: () = assert!(read::COUNTERS + read::COUNTERS_LEN <= read::FLOORS);
const _: () = assert!(read::FLOORS + MAX_SERVERS <= read::HINTS);
