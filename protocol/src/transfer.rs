//! State transfer (section 6): how a guest that finds the records it needs reclaimed gets the
//! snapshot of the stable checkpoint from the others, over the payload network.
//!
//! A manifest or a part is asked for by its digest and comes in [`Piece`](ToGuest::Piece)s. One
//! source at a time sends all of one part, so a part that is not what its digest says is known for
//! what it is: a lie of its sender, who is not asked again. A source that dies, falls silent or has
//! let the part go is replaced by another; what was verified stays, also when a newer checkpoint
//! becomes stable meanwhile and the transfer begins anew with its manifest. Every source works on a
//! part of its own; when none is left for one, it races others for theirs. All race for
//! the manifest, so that a slow one holds nobody up.
//!
//! What is held is bounded by the manifest, which `f + 1` claims vouch for, and one part (or
//! manifest) per source.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Micros, ServerId};
use shared_registers::record::Checkpoint;

use crate::limits::{MAX_MANIFEST_BYTES, PIECE_BYTES, PIECES_IN_FLIGHT};
use crate::messages::ToGuest;
use crate::snapshot::{Entry, Manifest, Part, Snapshot};

/// The answer to a [`ToGuest::Fetch`] of one that has `found` this: how long all of it is, and a
/// piece of it from byte `from` on.
pub fn answer(digest: Digest, from: u64, found: Option<(u64, Vec<u8>)>) -> ToGuest {
    match found {
        Some((total, bytes)) => ToGuest::Piece { digest, from, total, bytes: bytes.into() },
        None => ToGuest::Gone { digest },
    }
}

/// What a transfer is told of its cluster.
#[derive(Clone, Copy, Debug)]
pub struct FetchConfig {
    /// Which server it is for.
    pub me: ServerId,
    /// How many servers there are.
    pub n: usize,
    /// The cluster.
    pub cluster: ClusterId,
    /// A source that sends nothing for so long is left alone for as long, and another is asked.
    pub silence: Micros,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Parts that are there, and all; 0 of 0 before the manifest is.
    pub parts: (usize, usize),
    /// Their bytes.
    pub bytes: (u64, u64),
    /// Times that a source sent what was not what its digest says.
    pub lies: u64,
}

/// What one source is sending.
struct Download {
    digest: Digest,
    /// The part, or `None` for the manifest.
    entry: Option<Entry>,
    got: Vec<u8>,
    /// How long all of it is, once known.
    total: Option<u64>,
    /// Up to which byte it was asked for.
    asked: u64,
    /// When the source counts as silent.
    deadline: Micros,
}

impl Download {
    fn next_piece(&self) -> Option<u64> {
        let window = (self.got.len() + PIECE_BYTES * PIECES_IN_FLIGHT) as u64;
        // The first piece says how long a manifest is; what is empty has one too.
        let end = self.total.unwrap_or(0).max(1);
        (self.asked < window.min(end)).then_some(self.asked)
    }
}

/// A transfer.
pub struct Fetch {
    config: FetchConfig,
    wanted: Checkpoint,
    manifest: Option<(Bytes, Manifest)>,
    /// Verified parts, of this manifest or the one before.
    held: BTreeMap<Digest, Arc<Part>>,
    /// Parts of the manifest that are not held.
    missing: BTreeMap<Digest, Entry>,
    downloads: BTreeMap<ServerId, Download>,
    /// Who lied, and who is left alone until when.
    liars: BTreeSet<ServerId>,
    resting: BTreeMap<ServerId, Micros>,
    /// All others, those that were asked longest ago first: nobody is passed over for ever.
    turns: VecDeque<ServerId>,
    lies: u64,
}

impl Fetch {
    /// A transfer of the snapshot that this stable checkpoint names.
    pub fn new(config: FetchConfig, wanted: Checkpoint) -> Fetch {
        // Not everyone turns to the same one first.
        let (me, n) = (usize::from(config.me.0), config.n);
        let turns = (1..n).map(|offset| ServerId(((me + offset) % n) as u16)).collect();
        Fetch {
            config,
            wanted,
            manifest: None,
            held: BTreeMap::new(),
            missing: BTreeMap::new(),
            downloads: BTreeMap::new(),
            liars: BTreeSet::new(),
            resting: BTreeMap::new(),
            turns,
            lies: 0,
        }
    }

    /// The checkpoint whose snapshot it fetches.
    pub fn wanted(&self) -> &Checkpoint {
        &self.wanted
    }

    /// Takes parts that are at hand: those that the manifest names are not fetched. To be called
    /// before anything came.
    pub fn know(&mut self, parts: impl IntoIterator<Item = Arc<Part>>) {
        self.held.extend(parts.into_iter().map(|part| (part.entry().digest, part)));
    }

    /// A newer checkpoint is stable: begins anew with it, with the parts that are there.
    pub fn restart(&mut self, wanted: Checkpoint) {
        if wanted == self.wanted {
            return;
        }
        self.wanted = wanted;
        self.manifest = None;
        self.missing.clear();
        self.downloads.clear();
        self.resting.clear();
    }

    /// Asks whoever is to be asked. To be called when [`Self::next_deadline`] comes, and after
    /// every [`Self::on_message`].
    pub fn poll(&mut self, now: Micros, out: &mut Vec<(ServerId, ToGuest)>) {
        self.rest_the_silent(now);
        if self.turns.iter().all(|server| self.liars.contains(server)) {
            // Somebody has it: they were compromised then, and may be restarted clean by now.
            let until = now.plus(self.config.silence);
            self.liars.clear();
            self.resting = self.turns.iter().map(|server| (*server, until)).collect();
        }
        for source in self.turns.clone() {
            if !self.liars.contains(&source) && self.engage(now, source) {
                self.turns.retain(|other| *other != source);
                self.turns.push_back(source);
            }
        }
        for (source, download) in &mut self.downloads {
            while let Some(from) = download.next_piece() {
                download.asked = from + PIECE_BYTES as u64;
                out.push((*source, ToGuest::Fetch { digest: download.digest, from }));
            }
        }
    }

    fn rest_the_silent(&mut self, now: Micros) {
        let (silence, resting) = (self.config.silence, &mut self.resting);
        resting.retain(|_, until| now < *until);
        self.downloads.retain(|source, download| {
            if now >= download.deadline {
                resting.insert(*source, now.plus(silence));
            }
            now < download.deadline
        });
    }

    /// Gives an idle source something to send, if there is anything. Returns whether it did.
    fn engage(&mut self, now: Micros, source: ServerId) -> bool {
        if self.downloads.contains_key(&source) || self.resting.contains_key(&source) {
            return false;
        }
        let sent = |digest: &Digest| {
            let of = |download: &&Download| download.digest == *digest;
            self.downloads
                .values()
                .filter(of)
                .map(|download| download.got.len())
                .collect::<Vec<_>>()
        };
        let (digest, entry) = if self.manifest.is_none() {
            // All race: it is small, and nobody knows yet how long it may last.
            (self.wanted.digest, None)
        } else {
            let free = self.missing.values().find(|entry| sent(&entry.digest).is_empty());
            // None is free: race for the one that fewest send, and of these that whoever is furthest
            // still has most of to send. However many are slow on purpose, they hold nobody up.
            let raced = || {
                let left = |entry: &&Entry| {
                    let sent = sent(&entry.digest);
                    let most = sent.iter().max().copied().unwrap_or(0) as u64;
                    (Reverse(sent.len()), entry.size.saturating_sub(most))
                };
                self.missing.values().max_by_key(left)
            };
            let Some(entry) = free.or_else(raced) else { return false };
            (entry.digest, Some(*entry))
        };
        let (total, deadline) = (entry.map(|entry| entry.size), now.plus(self.config.silence));
        let download = Download { digest, entry, got: Vec::new(), total, asked: 0, deadline };
        self.downloads.insert(source, download);
        true
    }

    /// When [`Self::poll`] must be called even if nothing comes before.
    pub fn next_deadline(&self) -> Option<Micros> {
        if self.is_complete() {
            return None;
        }
        let downloads = self.downloads.values().map(|download| download.deadline);
        downloads.chain(self.resting.values().copied()).min()
    }

    /// The link to a source is gone, and with it what it was still to send.
    pub fn on_lost(&mut self, now: Micros, source: ServerId) {
        if self.downloads.remove(&source).is_some() {
            self.resting.insert(source, now.plus(self.config.silence));
        }
    }

    /// Another guest's answer. What was not asked for is ignored.
    pub fn on_message(&mut self, now: Micros, source: ServerId, message: ToGuest) {
        match message {
            ToGuest::Piece { digest, from, total, bytes } => {
                self.on_piece(now, source, digest, (from, total), &bytes);
            }
            ToGuest::Gone { digest } => {
                if self.downloads.get(&source).is_some_and(|download| download.digest == digest) {
                    self.on_lost(now, source);
                }
            }
            ToGuest::Forward(_) | ToGuest::Fetch { .. } => {}
        }
    }

    fn on_piece(
        &mut self,
        now: Micros,
        source: ServerId,
        digest: Digest,
        (from, total): (u64, u64),
        bytes: &[u8],
    ) {
        let Some(download) = self.downloads.get_mut(&source) else { return };
        if download.digest != digest || from != download.got.len() as u64 || from >= download.asked
        {
            return; // Of an earlier try.
        }
        let known = download.total.unwrap_or(total);
        let expected = (PIECE_BYTES as u64).min(known.saturating_sub(from));
        let bound = download.entry.map_or(MAX_MANIFEST_BYTES, |entry| entry.size);
        // A piece is as long as it can be, so that nobody can make a part last for ever.
        if total != known || known > bound || bytes.len() as u64 != expected {
            return self.lied(source);
        }
        download.total = Some(known);
        download.got.extend_from_slice(bytes);
        download.deadline = now.plus(self.config.silence);
        if download.got.len() as u64 == known
            && let Some(download) = self.downloads.remove(&source)
        {
            let bytes = Bytes::from(download.got);
            match download.entry {
                Some(entry) => self.on_part(source, entry, bytes),
                None => self.on_manifest(source, bytes),
            }
        }
    }

    fn on_manifest(&mut self, source: ServerId, bytes: Bytes) {
        if !self.offer_manifest(bytes) {
            self.lied(source);
        }
    }

    /// Takes the manifest from somewhere else, an own store for example. Returns whether it is the
    /// one that is wanted.
    pub fn offer_manifest(&mut self, bytes: Bytes) -> bool {
        let Ok(manifest) = Manifest::decode(&bytes, &self.wanted) else { return false };
        let named: BTreeMap<_, _> =
            manifest.parts.iter().map(|entry| (entry.digest, *entry)).collect();
        self.held.retain(|digest, part| named.get(digest) == Some(&part.entry()));
        let missing = named.into_iter().filter(|(digest, _)| !self.held.contains_key(digest));
        self.missing = missing.collect();
        self.manifest = Some((bytes, manifest));
        self.downloads.clear(); // Whoever raced for it may turn to parts.
        true
    }

    /// Whether the manifest is there.
    pub fn has_manifest(&self) -> bool {
        self.manifest.is_some()
    }

    /// The parts that are still to come; none before the manifest is there.
    pub fn missing(&self) -> impl Iterator<Item = &Entry> {
        self.missing.values()
    }

    fn on_part(&mut self, source: ServerId, entry: Entry, bytes: Bytes) {
        if !self.offer_part(entry, bytes) {
            self.lied(source);
        }
    }

    /// Takes a part from somewhere else, as [`Self::offer_manifest`] does.
    pub fn offer_part(&mut self, entry: Entry, bytes: Bytes) -> bool {
        let Ok(part) = Part::verified(entry, bytes, &self.config.cluster) else { return false };
        if self.missing.remove(&entry.digest).is_some() {
            self.held.insert(entry.digest, Arc::new(part));
        }
        // Whoever raced for it may turn to another.
        self.downloads.retain(|_, download| download.digest != entry.digest);
        true
    }

    fn lied(&mut self, source: ServerId) {
        self.downloads.remove(&source);
        self.liars.insert(source);
        self.lies += 1;
    }

    /// Whether everything is there.
    pub fn is_complete(&self) -> bool {
        self.manifest.is_some() && self.missing.is_empty()
    }

    /// The snapshot, once everything is there.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let (bytes, manifest) = self.manifest.as_ref().filter(|_| self.is_complete())?;
        let parts = manifest.parts.iter().map(|entry| self.held.get(&entry.digest).cloned());
        let parts = parts.collect::<Option<Vec<_>>>()?;
        Snapshot::assemble(self.wanted.clone(), bytes.clone(), parts).ok()
    }

    /// Times that a source sent what was not what its digest says.
    pub fn lies(&self) -> u64 {
        self.lies
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let Some((_, manifest)) = &self.manifest else {
            return Progress { lies: self.lies, ..Progress::default() };
        };
        let done = manifest.parts.iter().filter(|entry| self.held.contains_key(&entry.digest));
        let done = done.fold((0, 0), |(parts, bytes), entry| (parts + 1, bytes + entry.size));
        let all = manifest.parts.iter().map(|entry| entry.size).sum();
        Progress { parts: (done.0, manifest.parts.len()), bytes: (done.1, all), lies: self.lies }
    }
}

#[cfg(test)]
mod tests;
