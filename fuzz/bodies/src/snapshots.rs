//! Snapshots that others sent (section 6). A manifest counts only under the digest that `f + 1`
//! claims name, so what is decoded is right or the work of more than `f` liars. Even so nothing may
//! panic, and one manifest, and one part, has one encoding. And a transfer is attacked by sources
//! that say anything, at any time.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use protocol::application::KeyValue;
use protocol::limits::PIECE_BYTES;
use protocol::messages::ToGuest;
use protocol::reader::Start;
use protocol::replica::Replica;
use protocol::snapshot::{Content, Kind, Manifest, Part, Snapshot};
use protocol::transfer::{self, Fetch, FetchConfig};
use shared_registers::codec::Reader;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Micros, OrderNumber, ServerId};

use crate::acts;
use crate::drafts::{CLUSTER, N};
use crate::replica::config;

const KINDS: [Kind; 3] = [Kind::History, Kind::Clients, Kind::Application];
/// Parts of one snapshot, at most.
const MAX_PARTS: usize = 8;
/// How long a source may be silent.
const SILENCE: Micros = Micros(1000);
/// Honest turns after which a transfer must be done, whatever was before.
const TURNS: usize = 2000;

/// A snapshot as words: a start, four counters, then parts, each `kind u8, head u16, body u16`.
pub(crate) fn snapshot(bytes: &[u8]) {
    let mut from = Reader::new(bytes);
    let Ok(start) = Start::decode(&mut from, N) else { return };
    let mut again = Vec::new();
    start.encode(&mut again);
    assert_eq!(again, bytes[..bytes.len() - from.left()], "a second encoding");
    let Some(content) = content(&mut from) else { return };
    let made = Snapshot::new(&start, &content);
    let (checkpoint, manifest) = (made.checkpoint().clone(), made.manifest().clone());
    let parts = made.parts().to_vec();
    for part in &parts {
        let whole = Bytes::from(part.read_at(0, usize::MAX));
        if let Ok(read) = Part::verified(part.entry(), whole.clone(), &CLUSTER) {
            assert_eq!(read.entry(), part.entry());
            assert_eq!(read.read_at(0, usize::MAX), whole, "a second encoding");
        }
    }
    match Manifest::decode(&manifest, &checkpoint) {
        Ok(read) => assert_eq!(read.start, start),
        Err(_) => {
            assert!(Snapshot::assemble(checkpoint, manifest, parts).is_err());
            return;
        }
    }
    let sent = Snapshot::assemble(checkpoint.clone(), manifest, parts).expect("it was decoded");
    let application = Box::new(KeyValue::default());
    if let Ok(replica) = Replica::from_snapshot(config(0), application, sent) {
        assert_eq!(replica.snapshot().map(|own| own.checkpoint()), Some(&checkpoint));
        assert_eq!(replica.last_delivered(), content.delivered);
    }
}

fn content(from: &mut Reader<'_>) -> Option<Content> {
    let mut counter = || from.u64().ok();
    let (delivered, time) = (OrderNumber(counter()?), Micros(counter()?));
    let (skipped, first) = (counter()?, OrderNumber(counter()?));
    let mut parts = Vec::new();
    while parts.len() < MAX_PARTS {
        let Ok(kind) = from.u8() else { break };
        let (head, body) = (from.u16().ok()?, from.u16().ok()?);
        let head = Bytes::copy_from_slice(from.bytes(usize::from(head)).ok()?);
        let body = Bytes::copy_from_slice(from.bytes(usize::from(body)).ok()?);
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        parts.push(Arc::new(Part::new(kind, head, vec![body])));
    }
    Some(Content { delivered, time, skipped, first, parts })
}

#[derive(Arbitrary, Debug)]
enum Act {
    /// Asks whoever is to be asked.
    Poll,
    /// The oldest request is answered rightly, by whoever was asked, out of the old snapshot or
    /// the new one.
    Answer { new: bool },
    /// It is answered with other bytes, or of another length.
    Alter { byte: u8, xor: u8, total: u8 },
    /// It is not answered.
    Lose,
    /// Somebody sends something of a digest that is wanted or not, from any byte on.
    Say { source: u8, known: bool, from: u16, total: u16, len: u16 },
    /// Somebody says that it has none.
    Gone { source: u8, known: bool },
    /// A link breaks.
    Break { source: u8 },
    /// A newer checkpoint is stable.
    Newer,
    /// Time passes.
    Pass { us: u16 },
}

struct Transfer {
    fetch: Fetch,
    now: Micros,
    old: Snapshot,
    new: Snapshot,
    asked: Vec<(ServerId, Digest, u64)>,
}

/// A transfer from sources that say anything; in the end they are honest, and it has to be done.
pub(crate) fn fetch(bytes: &[u8]) {
    let (old, new) = (sample(8, &[1, 2, 3, 4]), sample(9, &[1, 3, 5, 6]));
    let config = FetchConfig { me: ServerId(0), n: N, cluster: CLUSTER, silence: SILENCE };
    let fetch = Fetch::new(config, old.checkpoint().clone());
    let mut this = Transfer { fetch, now: Micros(0), old, new, asked: Vec::new() };
    acts(&mut Unstructured::new(bytes), |act| this.act(act));
    this.finish();
}

impl Transfer {
    fn act(&mut self, act: Act) {
        let source = |source: u8| ServerId(u16::from(source) % N as u16);
        match act {
            Act::Poll => self.poll(),
            Act::Answer { new } => self.answer(|right| right, new),
            Act::Alter { byte, xor, total } => {
                self.answer(|right| altered(right, byte, xor, total), false)
            }
            Act::Lose => drop(self.asked.pop()),
            Act::Say { source: from_whom, known, from, total, len } => {
                let bytes = vec![7; usize::from(len).min(PIECE_BYTES)].into();
                let (digest, from, total) = (self.digest(known), from.into(), total.into());
                let piece = ToGuest::Piece { digest, from, total, bytes };
                self.fetch.on_message(self.now, source(from_whom), piece);
            }
            Act::Gone { source: from_whom, known } => {
                let gone = ToGuest::Gone { digest: self.digest(known) };
                self.fetch.on_message(self.now, source(from_whom), gone);
            }
            Act::Break { source: gone } => self.fetch.on_lost(self.now, source(gone)),
            Act::Newer => self.fetch.restart(self.new.checkpoint().clone()),
            Act::Pass { us } => self.now = self.now.plus(Micros(us.into())),
        }
        let progress = self.fetch.progress();
        assert!(progress.parts.0 <= progress.parts.1 && progress.bytes.0 <= progress.bytes.1);
    }

    /// A digest that it may be waiting for.
    fn digest(&self, known: bool) -> Digest {
        match self.asked.first() {
            Some((_, digest, _)) if known => *digest,
            _ => Digest([9; 32]),
        }
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        self.fetch.poll(self.now, &mut out);
        for (source, message) in out {
            let ToGuest::Fetch { digest, from } = message else { panic!("it asks {message:?}") };
            assert!(source != ServerId(0) && source.index() < N, "it asks {source}");
            self.asked.push((source, digest, from));
        }
    }

    fn answer(&mut self, change: impl Fn(ToGuest) -> ToGuest, new: bool) {
        if self.asked.is_empty() {
            return;
        }
        let (source, digest, from) = self.asked.remove(0);
        let snapshot = if new { &self.new } else { &self.old };
        let found = snapshot.read_at(&digest, from, PIECE_BYTES);
        let answer = change(transfer::answer(digest, from, found));
        self.fetch.on_message(self.now, source, answer);
    }

    /// From now on everyone has what is wanted, and says so.
    fn finish(&mut self) {
        for _ in 0..TURNS {
            if let Some(done) = self.fetch.snapshot() {
                let right = [&self.old, &self.new].map(Snapshot::checkpoint);
                assert!(right.contains(&done.checkpoint()) && self.fetch.is_complete());
                return;
            }
            self.poll();
            let new = self.fetch.wanted() == self.new.checkpoint();
            let idle = self.asked.is_empty();
            while !self.asked.is_empty() {
                self.answer(|right| right, new);
            }
            if idle {
                let next = self.fetch.next_deadline().expect("it is not done, so it waits");
                self.now = next.max(self.now).plus(Micros(1));
            }
        }
        panic!("a transfer from honest sources does not end");
    }
}

fn altered(right: ToGuest, byte: u8, xor: u8, more: u8) -> ToGuest {
    let ToGuest::Piece { digest, from, total, bytes } = right else { return right };
    let mut bytes = bytes.to_vec();
    let len = bytes.len().max(1);
    if let Some(byte) = bytes.get_mut(usize::from(byte) % len) {
        *byte ^= xor;
    }
    ToGuest::Piece { digest, from, total: total + u64::from(more), bytes: bytes.into() }
}

/// A snapshot of a few application chunks, one of them of several pieces.
fn sample(batch: u64, chunks: &[u8]) -> Snapshot {
    let chunk = |byte: &u8| vec![*byte; usize::from(*byte) * PIECE_BYTES / 2];
    Snapshot::of_chunks(N, batch, chunks.iter().map(chunk))
}
