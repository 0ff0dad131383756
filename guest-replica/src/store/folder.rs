//! The files of a store: one for each part and one for each manifest, named by their digests.
//!
//! Every file is written under another name and then renamed, so that it is there whole or not at
//! all, and a snapshot's manifest comes after its parts. What no manifest names is deleted.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use protocol::limits::MAX_MANIFEST_BYTES;
use protocol::snapshot::{Entry, Manifest, Snapshot};
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Term};

use super::lock;
use crate::limits::SNAPSHOTS_STORED;

const MANIFEST: &str = "manifest-";
const PART: &str = "part-";
const UNFINISHED: &str = "unfinished";
/// What a file is buffered in as it is written: parts are made of many small pieces.
const BUFFER_BYTES: usize = 256 << 10;

fn hexadecimal(digest: &Digest) -> String {
    digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest_name(digest: &Digest) -> String {
    format!("{MANIFEST}{}", hexadecimal(digest))
}

fn part_name(digest: &Digest) -> String {
    format!("{PART}{}", hexadecimal(digest))
}

/// Makes the folder, for this user alone, if it is not there.
fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Deletes a file, unless it is gone already.
fn delete(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Parts that this process has written, or read and found right: the others are written again.
pub(super) type Sure = Mutex<BTreeSet<Digest>>;

/// A snapshot whose manifest is there.
struct Kept {
    at: (Term, Batch),
    digest: Digest,
    parts: Vec<Digest>,
}

/// A folder with snapshots, for whoever writes into it.
pub(super) struct Folder {
    path: PathBuf,
    /// Whether what is stored must outlive a crash of the machine.
    sync: bool,
    /// In the order of their checkpoints; at most [`SNAPSHOTS_STORED`].
    kept: Vec<Kept>,
    /// There may be parts of a snapshot that could not be stored whole.
    leftovers: bool,
}

impl Folder {
    /// Makes the folder if it is not there, and deletes what is of no use in it.
    pub(super) fn open(path: &Path, n: usize, sync: bool) -> io::Result<Folder> {
        make(path)?;
        delete(&path.join(UNFINISHED))?;
        let mut folder = Folder { path: path.to_owned(), sync, kept: Vec::new(), leftovers: false };
        let mut damaged = false;
        for name in folder.names()?.iter().filter(|name| name.starts_with(MANIFEST)) {
            let found = read_at_most(&path.join(name), MAX_MANIFEST_BYTES)?;
            match Manifest::decode_kept(&found, n) {
                Ok((checkpoint, manifest)) if *name == manifest_name(&checkpoint.digest) => {
                    let parts = manifest.parts.iter().map(|entry| entry.digest).collect();
                    let at = (checkpoint.term, checkpoint.batch);
                    folder.keep(Kept { at, digest: checkpoint.digest, parts })?;
                }
                _ => {
                    damaged = true;
                    delete(&path.join(name))?;
                }
            }
        }
        // The parts that a damaged manifest named are of use still, once another has sent it.
        if !damaged {
            folder.delete_unnamed(&[], &Sure::default())?;
        }
        Ok(folder)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Notes that a manifest is there. If that makes one too many, the oldest goes, but for this
    /// one and for the very first, which is the stable one: nobody counts a claim of it any more.
    fn keep(&mut self, new: Kept) -> io::Result<()> {
        if self.kept.iter().any(|kept| kept.digest == new.digest) {
            return Ok(());
        }
        let place = self.kept.partition_point(|kept| kept.at <= new.at);
        self.kept.insert(place, new);
        if self.kept.len() > SNAPSHOTS_STORED {
            let gone = self.kept.remove(if place == 1 { 2 } else { 1 });
            delete(&self.path.join(manifest_name(&gone.digest)))?;
        }
        Ok(())
    }

    /// Whether a part is there. Somebody may have deleted it, or the folder, meanwhile.
    fn has(&self, entry: &Entry) -> bool {
        let file = fs::metadata(self.path.join(part_name(&entry.digest)));
        file.is_ok_and(|file| file.len() == entry.size)
    }

    /// Stores a snapshot. Returns how many bytes that took, or `None` if it was told to stop.
    pub(super) fn put(
        &mut self,
        snapshot: &Snapshot,
        sure: &Sure,
        stopped: impl Fn() -> bool,
    ) -> io::Result<Option<u64>> {
        let parts: Vec<_> = snapshot.parts().iter().map(|part| part.entry().digest).collect();
        make(&self.path)?;
        // On a full disk they might stand in the way of this one for ever.
        if std::mem::replace(&mut self.leftovers, true) {
            self.delete_unnamed(&parts, sure)?;
        }
        let mut bytes = 0;
        for part in snapshot.parts() {
            let digest = part.entry().digest;
            let known = lock(sure).contains(&digest);
            if known && self.has(&part.entry()) {
                continue;
            }
            if stopped() {
                return Ok(None);
            }
            let pieces = std::iter::once(part.head()).chain(part.bodies());
            self.write(&part_name(&digest), pieces.map(|piece| &piece[..]))?;
            lock(sure).insert(digest);
            bytes += part.entry().size;
        }
        let checkpoint = snapshot.checkpoint();
        let manifest = std::iter::once(&snapshot.manifest()[..]);
        self.write(&manifest_name(&checkpoint.digest), manifest)?;
        if self.sync {
            File::open(&self.path)?.sync_all()?;
        }
        bytes += snapshot.manifest().len() as u64;
        let at = (checkpoint.term, checkpoint.batch);
        let full = self.kept.len() == SNAPSHOTS_STORED;
        self.keep(Kept { at, digest: checkpoint.digest, parts })?;
        self.leftovers = false;
        if full {
            self.delete_unnamed(&[], sure)?;
        }
        Ok(Some(bytes))
    }

    fn write<'a>(&self, name: &str, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let unfinished = self.path.join(UNFINISHED);
        // Half a file helps nobody, and a disk that is full is full for others too.
        self.write_through(&unfinished, name, pieces).inspect_err(|_| drop(delete(&unfinished)))
    }

    fn write_through<'a>(
        &self,
        unfinished: &Path,
        name: &str,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(unfinished)?);
        for piece in pieces {
            file.write_all(piece)?;
        }
        let file = file.into_inner().map_err(|error| error.into_error())?;
        if self.sync {
            file.sync_data()?;
        }
        fs::rename(unfinished, self.path.join(name))
    }

    /// Deletes the snapshots of checkpoints before this one, and what no other names.
    pub(super) fn settle(&mut self, at: (Term, Batch), sure: &Sure) -> io::Result<()> {
        let old = self.kept.partition_point(|kept| kept.at < at);
        for gone in self.kept.drain(..old) {
            delete(&self.path.join(manifest_name(&gone.digest)))?;
        }
        self.delete_unnamed(&[], sure)
    }

    /// Deletes the parts that no manifest here names, but for those of `coming`.
    fn delete_unnamed(&self, coming: &[Digest], sure: &Sure) -> io::Result<()> {
        let named = self.kept.iter().flat_map(|kept| &kept.parts);
        let parts: BTreeSet<_> = named.chain(coming).copied().collect();
        lock(sure).retain(|digest| parts.contains(digest));
        let named: BTreeSet<_> = parts.iter().map(part_name).collect();
        for name in self.names()?.iter().filter(|name| name.starts_with(PART)) {
            if !named.contains(name) {
                delete(&self.path.join(name))?;
            }
        }
        Ok(())
    }
}

/// The bytes of a file, if they are no more than so many; nothing else of it is read.
fn read_at_most(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > max {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The manifest with this digest, as far as its name says so.
pub(super) fn read_manifest(path: &Path, digest: &Digest) -> Option<Vec<u8>> {
    read_at_most(&path.join(manifest_name(digest)), MAX_MANIFEST_BYTES).ok()
}

/// The part with this digest, as far as its name says so, of at most so many bytes.
pub(super) fn read_part(path: &Path, digest: &Digest, size: u64) -> Option<Vec<u8>> {
    read_at_most(&path.join(part_name(digest)), size).ok()
}

/// At most `max` bytes, from byte `from` on, of the manifest or the part with this digest, as far as
/// their names say so, and how long all of it is.
pub(super) fn read_piece(
    path: &Path,
    digest: &Digest,
    from: u64,
    max: usize,
) -> Option<(u64, Vec<u8>)> {
    let open = |name: String| File::open(path.join(name)).ok();
    let mut file = open(part_name(digest)).or_else(|| open(manifest_name(digest)))?;
    let size = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
    if from > size {
        return None;
    }
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(max as u64).read_to_end(&mut bytes).ok()?;
    Some((size, bytes))
}

#[cfg(test)]
mod tests;
