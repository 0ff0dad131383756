//! What a checkpoint's digest is of (section 6): everything that a replica concludes from the
//! streams up to a batch, in one canonical encoding.
//!
//! A snapshot is taken every few thousand orders and may hold hundreds of megabytes, so it is made
//! of parts, and what has not changed since the last one is neither copied nor hashed again:
//!
//! ```text
//! manifest: tag | Start | delivered u64 | time u64 | skipped u64 | first kept u64 |
//!           parts u32 | per part: kind u8, size u64, digest
//! part:     head | bodies
//! ```
//!
//! The checkpoint's digest is that of the manifest, a part's digest that of its head alone: a head
//! names every body behind it by a digest that was computed when the body came (an order's, a
//! reply's). An application's chunk is all head.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use shared_registers::canary::{Canary, broken};
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::{ClusterId, DIGEST_BYTES, Digest};
use shared_registers::ids::{Batch, Micros, OrderNumber, Seq, Term};
use shared_registers::record::Checkpoint;

use crate::limits::{MAX_PART_BYTES, MAX_PARTS, MAX_SNAPSHOT_BYTES};
use crate::reader::{Base, Mark, Start, WriterStart};
use crate::{history, ledger};

/// How a manifest begins. Another layout gets another number.
const TAG: &[u8; 16] = b"difato snapshot1";
const ENTRY_BYTES: usize = 9 + DIGEST_BYTES;

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A run of retained messages: see [`history`].
    History,
    /// A group of the client table: see [`ledger`].
    Clients,
    /// A chunk of the application's state.
    Application,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::History => 1,
            Kind::Clients => 2,
            Kind::Application => 3,
        }
    }

    fn of(code: u8) -> Result<Kind, Malformed> {
        match code {
            1 => Ok(Kind::History),
            2 => Ok(Kind::Clients),
            3 => Ok(Kind::Application),
            _ => Err(Malformed),
        }
    }
}

/// A part as a manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it holds.
    pub kind: Kind,
    /// Its bytes, bodies included.
    pub size: u64,
    /// The digest of its head.
    pub digest: Digest,
}

/// A part.
#[derive(Clone, Debug)]
pub struct Part {
    entry: Entry,
    head: Bytes,
    bodies: Vec<Bytes>,
}

fn head_digest(kind: Kind, head: &[u8]) -> Digest {
    Digest::of(&[b"difato part\0", &[kind.code()], head])
}

impl Part {
    /// The part of this head, which names these bodies by their digests.
    pub fn new(kind: Kind, head: Bytes, bodies: Vec<Bytes>) -> Part {
        let size = head.len() + bodies.iter().map(Bytes::len).sum::<usize>();
        let entry = Entry { kind, size: size as u64, digest: head_digest(kind, &head) };
        Part { entry, head, bodies }
    }

    /// A part that came as bytes: checks that it is the one that the manifest names, every body.
    pub fn verified(entry: Entry, bytes: Bytes, cluster: &ClusterId) -> Result<Part, Malformed> {
        if bytes.len() as u64 != entry.size {
            return Err(Malformed);
        }
        // The head first: its digest vouches for what its lengths say.
        let head = match entry.kind {
            Kind::History => history::head_bytes(&bytes)?,
            Kind::Clients => ledger::head_bytes(&bytes)?,
            Kind::Application => bytes.len(),
        };
        let named = |head: &[u8]| head_digest(entry.kind, head) == entry.digest;
        if head > bytes.len() || !(named(&bytes[..head]) || broken(Canary::S6Part)) {
            return Err(Malformed);
        }
        let (head, rest) = (bytes.slice(..head), bytes.slice(head..));
        let bodies = match entry.kind {
            Kind::History => history::bodies(&head, &rest, cluster)?,
            Kind::Clients => ledger::bodies(&head, &rest)?,
            Kind::Application => Vec::new(),
        };
        Ok(Part { entry, head, bodies })
    }

    /// As the manifest names it.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// What its digest is of.
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// What its head names.
    pub fn bodies(&self) -> &[Bytes] {
        &self.bodies
    }

    /// At most `max` of its bytes from byte `from` on.
    pub fn read_at(&self, from: u64, max: usize) -> Vec<u8> {
        let (mut out, mut skip) = (Vec::new(), from);
        for piece in std::iter::once(&self.head).chain(&self.bodies) {
            if skip >= piece.len() as u64 {
                skip -= piece.len() as u64;
                continue;
            }
            let piece = &piece[skip as usize..];
            out.extend_from_slice(&piece[..piece.len().min(max - out.len())]);
            skip = 0;
            if out.len() == max {
                break;
            }
        }
        out
    }
}

/// What a snapshot holds besides the reader's start: the same at every replica that has delivered
/// the same.
#[derive(Clone, Debug)]
pub struct Content {
    /// The last order number.
    pub delivered: OrderNumber,
    /// The last delivery time (C2).
    pub time: Micros,
    /// Orders that C2 has skipped.
    pub skipped: u64,
    /// The oldest message that is kept.
    pub first: OrderNumber,
    /// History, client table and application, in this order.
    pub parts: Vec<Arc<Part>>,
}

/// A manifest, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What a reader starts from.
    pub start: Start,
    /// See [`Content`].
    pub delivered: OrderNumber,
    /// See [`Content`].
    pub time: Micros,
    /// See [`Content`].
    pub skipped: u64,
    /// See [`Content`].
    pub first: OrderNumber,
    /// History, client table and application, in this order.
    pub parts: Vec<Entry>,
}

impl Manifest {
    /// The digest that a checkpoint of this manifest names.
    pub fn digest(bytes: &[u8]) -> Digest {
        Digest::of(&[bytes])
    }

    fn encode(start: &Start, content: &Content) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + ENTRY_BYTES * content.parts.len());
        out.extend_from_slice(TAG);
        start.encode(&mut out);
        for number in [content.delivered.0, content.time.0, content.skipped, content.first.0] {
            out.put_u64(number);
        }
        out.put_u32(content.parts.len() as u32);
        for part in &content.parts {
            let entry = part.entry();
            out.push(entry.kind.code());
            out.put_u64(entry.size);
            out.extend_from_slice(&entry.digest.0);
        }
        out
    }

    /// Reads the manifest of a cluster of `n` servers that `checkpoint` names. All else is
    /// malformed, also one whose digest is right but that says something else of the checkpoint.
    pub fn decode(bytes: &[u8], checkpoint: &Checkpoint) -> Result<Manifest, Malformed> {
        if Manifest::digest(bytes) != checkpoint.digest && !broken(Canary::S6Manifest) {
            return Err(Malformed);
        }
        let mut from = Reader::new(bytes);
        if from.array()? != TAG {
            return Err(Malformed);
        }
        let start = Start::decode(&mut from, checkpoint.cut.len())?;
        let same = (start.term, start.batch.0) == (checkpoint.term, checkpoint.batch);
        if !same || start.cut() != checkpoint.cut {
            return Err(Malformed);
        }
        let (delivered, time) = (OrderNumber(from.u64()?), Micros(from.u64()?));
        let (skipped, first) = (from.u64()?, OrderNumber(from.u64()?));
        let count = from.u32()? as usize;
        if count > MAX_PARTS || count > from.left() / ENTRY_BYTES {
            return Err(Malformed);
        }
        let (mut parts, mut total) = (Vec::with_capacity(count), 0u64);
        for _ in 0..count {
            let (kind, size) = (Kind::of(from.u8()?)?, from.u64()?);
            let entry = Entry { kind, size, digest: Digest(*from.array()?) };
            total = total.checked_add(size).ok_or(Malformed)?;
            let in_order = parts.last().is_none_or(|last: &Entry| last.kind <= kind);
            if !in_order || size > MAX_PART_BYTES || total > MAX_SNAPSHOT_BYTES {
                return Err(Malformed);
            }
            parts.push(entry);
        }
        from.end()?;
        Ok(Manifest { start, delivered, time, skipped, first, parts })
    }

    /// Reads a manifest that was kept without its checkpoint, and says which that is. Whether it is
    /// one that anybody claims is another matter.
    pub fn decode_kept(bytes: &[u8], n: usize) -> Result<(Checkpoint, Manifest), Malformed> {
        let mut from = Reader::new(bytes);
        if from.array()? != TAG {
            return Err(Malformed);
        }
        let start = Start::decode(&mut from, n)?;
        let (digest, cut) = (Manifest::digest(bytes), start.cut());
        let checkpoint = Checkpoint { term: start.term, batch: start.batch.0, digest, cut };
        let manifest = Manifest::decode(bytes, &checkpoint)?;
        Ok((checkpoint, manifest))
    }
}

/// A snapshot: what a checkpoint names, whole.
#[derive(Debug)]
pub struct Snapshot {
    checkpoint: Checkpoint,
    delivered: OrderNumber,
    manifest: Bytes,
    parts: Vec<Arc<Part>>,
    /// Places of `parts` by digest, made when the first is asked for.
    by_digest: OnceLock<Vec<(Digest, usize)>>,
}

impl Snapshot {
    /// The snapshot of a reader's start and what was delivered till then.
    pub fn new(start: &Start, content: &Content) -> Snapshot {
        let manifest = Manifest::encode(start, content);
        let digest = Manifest::digest(&manifest);
        let (term, batch) = (start.term, start.batch.0);
        let checkpoint = Checkpoint { term, batch, digest, cut: start.cut() };
        let parts = content.parts.clone();
        let (delivered, by_digest) = (content.delivered, OnceLock::new());
        Snapshot { checkpoint, delivered, manifest: manifest.into(), parts, by_digest }
    }

    /// A snapshot of an application with these chunks, and of nothing else, at a batch that is not 0:
    /// for tests and fuzzers of those who store, send and fetch snapshots.
    pub fn of_chunks(n: usize, batch: u64, chunks: impl IntoIterator<Item = Vec<u8>>) -> Snapshot {
        let (seq, chain) = (Seq(batch), Digest([1; 32]));
        let mark = Mark { seq, chain, history: batch };
        let start = Start {
            term: Term(0),
            opening: Seq(0),
            base: Base { batch: Batch(0), parent: None, chain },
            batch: (Batch(batch), mark),
            floor: (Batch(batch - 1), mark),
            kept: Vec::new(),
            next_dead: false,
            writers: vec![WriterStart { read: seq, change: None, vote: None }; n],
        };
        let part = |chunk: Vec<u8>| Arc::new(Part::new(Kind::Application, chunk.into(), vec![]));
        let parts = chunks.into_iter().map(part).collect();
        let (delivered, first) = (OrderNumber(0), OrderNumber(1));
        Snapshot::new(&start, &Content { delivered, time: Micros(0), skipped: 0, first, parts })
    }

    /// A snapshot that came in pieces: its manifest, which must be the one that `checkpoint` names,
    /// and its parts in the manifest's order, each [verified](Part::verified).
    pub fn assemble(
        checkpoint: Checkpoint,
        manifest: Bytes,
        parts: Vec<Arc<Part>>,
    ) -> Result<Snapshot, Malformed> {
        let Manifest { parts: named, delivered, .. } = Manifest::decode(&manifest, &checkpoint)?;
        if !named.iter().copied().eq(parts.iter().map(|part| part.entry())) {
            return Err(Malformed);
        }
        Ok(Snapshot { checkpoint, delivered, manifest, parts, by_digest: OnceLock::new() })
    }

    /// Its checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The last order number that it covers.
    pub fn delivered(&self) -> OrderNumber {
        self.delivered
    }

    /// Its manifest, encoded.
    pub fn manifest(&self) -> &Bytes {
        &self.manifest
    }

    /// Its parts.
    pub fn parts(&self) -> &[Arc<Part>] {
        &self.parts
    }

    /// What all parts take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.entry.size).sum()
    }

    /// A piece of what has this digest, the manifest or a part: how long all of it is, and at most
    /// `max` bytes from byte `from` on. `None` if it holds no such thing.
    pub fn read_at(&self, digest: &Digest, from: u64, max: usize) -> Option<(u64, Vec<u8>)> {
        if *digest == self.checkpoint.digest {
            let rest = self.manifest.get(usize::try_from(from).ok()?..)?;
            return Some((self.manifest.len() as u64, rest[..rest.len().min(max)].to_vec()));
        }
        let places = self.by_digest.get_or_init(|| {
            let digests = self.parts.iter().map(|part| part.entry.digest);
            let mut places: Vec<_> = digests.enumerate().map(|(at, digest)| (digest, at)).collect();
            places.sort_unstable();
            places
        });
        let place = places.binary_search_by_key(digest, |(digest, _)| *digest).ok()?;
        let part = &self.parts[places[place].1];
        Some((part.entry.size, part.read_at(from, max)))
    }
}
