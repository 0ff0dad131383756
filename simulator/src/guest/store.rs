//! A guest's store of snapshots (section 6), which outlives its guest: a checkpoint is claimed only
//! once its snapshot is there.
//!
//! It takes a while to write one, and what a guest was writing when it died is not there. The disk
//! keeps what the guest has not let go.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::limits::PIECE_BYTES;
use protocol::snapshot::Snapshot;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Micros, ServerId, Term};
use shared_registers::limits::CLAIMS_HELD;
use shared_registers::record::Checkpoint;

/// Snapshots that a disk keeps: as many as hosts count claims of a writer, and the stable one.
pub const SNAPSHOTS_KEPT: usize = CLAIMS_HELD + 1;

/// The disk of a guest's machine. Clones are one disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<VecDeque<Arc<Snapshot>>>>);

impl Disk {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Snapshot>>> {
        self.0.lock().expect("nobody panics while it is held")
    }

    /// Everything on it is gone.
    pub fn wipe(&self) {
        self.kept().clear();
    }

    /// Whether it has a snapshot whose cut covers so many records of a stream.
    pub fn covers(&self, writer: ServerId, upto: u64) -> bool {
        let cut = |snapshot: &Arc<Snapshot>| snapshot.checkpoint().cut[writer.index()];
        self.kept().iter().any(|snapshot| cut(snapshot) >= upto)
    }

    /// A piece of what has this digest, for another guest.
    pub(super) fn piece_of(&self, digest: &Digest, from: u64) -> Option<(u64, Vec<u8>)> {
        self.kept().iter().find_map(|snapshot| snapshot.read_at(digest, from, PIECE_BYTES))
    }

    /// What it has of a checkpoint, and all else, newest first.
    pub(super) fn look_for(
        &self,
        wanted: &Checkpoint,
    ) -> (Option<Arc<Snapshot>>, Vec<Arc<Snapshot>>) {
        let kept = self.kept();
        let found = kept.iter().find(|snapshot| snapshot.checkpoint() == wanted).cloned();
        (found, kept.iter().rev().cloned().collect())
    }
}

fn at(snapshot: &Snapshot) -> (Term, Batch) {
    (snapshot.checkpoint().term, snapshot.checkpoint().batch)
}

/// What a guest that runs writes to its disk.
pub(super) struct Store {
    disk: Disk,
    /// How long it takes to write a snapshot.
    takes: Micros,
    /// What is being written, and until when.
    writing: Option<(Micros, Arc<Snapshot>)>,
    /// The newest of what waits.
    waiting: Option<Arc<Snapshot>>,
    settled: Option<(Term, Batch)>,
}

impl Store {
    pub(super) fn new(disk: Disk, takes: Micros) -> Store {
        Store { disk, takes, writing: None, waiting: None, settled: None }
    }

    pub(super) fn put(&mut self, now: Micros, snapshot: Arc<Snapshot>) {
        match self.writing {
            None => self.writing = Some((now.plus(self.takes), snapshot)),
            Some(_) => self.waiting = Some(snapshot),
        }
    }

    /// What has been written by now.
    pub(super) fn take_stored(&mut self, now: Micros) -> Option<Checkpoint> {
        let (_, snapshot) = self.writing.take_if(|(until, _)| *until <= now)?;
        let next = self.waiting.take();
        self.writing = next.map(|next| (now.plus(self.takes), next));
        let checkpoint = snapshot.checkpoint().clone();
        let mut kept = self.disk.kept();
        kept.retain(|other| other.checkpoint() != &checkpoint);
        let place = kept.partition_point(|other| at(other) <= at(&snapshot));
        kept.insert(place, snapshot);
        if kept.len() > SNAPSHOTS_KEPT {
            // The very first is the stable one.
            kept.remove(if place == 1 { 2 } else { 1 });
        }
        Some(checkpoint)
    }

    /// What lies before this stable checkpoint may go, once what is newer is there.
    pub(super) fn settle(&mut self, settled: Option<(Term, Batch)>) {
        self.settled = self.settled.max(settled);
        if self.writing.is_none()
            && let Some(settled) = self.settled.take()
        {
            self.disk.kept().retain(|snapshot| at(snapshot) >= settled);
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// When something will have been written.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.writing.as_ref().map(|(until, _)| *until)
    }
}
