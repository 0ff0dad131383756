//! A snapshot on disk, for the day on which all guests start again.
//!
//! A guest's memory is the registers and the snapshot of the last stable checkpoint. One that
//! starts again gets the snapshot from the others; but if all of them were stopped there is nobody
//! to ask. So each puts its own into a file when it stops, and now and then before, in a thread of
//! its own.
//!
//! Nothing rests on what the file says: it may be old, cut off, or the work of whoever broke into
//! this guest before it was restarted clean. What is in it counts only if its digests are right and
//! `f + 1` claims in the streams vouch for them, as for a snapshot that others sent. Little-endian:
//!
//! ```text
//! tag | term u64 | batch u64 | digest | servers u16 | cut u64 each | manifest length u32 |
//! manifest | parts, as the manifest names them
//! ```

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use protocol::application::Bytes;
use protocol::limits::{MAX_MANIFEST_BYTES, MAX_PART_BYTES};
use protocol::snapshot::{Manifest, Part, Snapshot};
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::{ClusterId, DIGEST_BYTES, Digest};
use shared_registers::ids::{Batch, Micros, Term};
use shared_registers::record::Checkpoint;

use crate::limits::{SAVE_EVERY, SAVE_PIECE_BYTES, SAVE_SHARE};

const TAG: &[u8; 16] = b"difato saved   1";

/// The file of one guest, and who writes it.
pub(crate) struct Saved {
    path: PathBuf,
    /// The checkpoint whose snapshot was put there last, or tried to.
    last: Option<(Term, Batch)>,
    writer: Option<JoinHandle<Micros>>,
    due: Micros,
}

impl Saved {
    pub(crate) fn new(path: PathBuf) -> Saved {
        Saved { path, last: None, writer: None, due: SAVE_EVERY }
    }

    /// What the file holds, for a cluster of `n` servers.
    pub(crate) fn load(&mut self, n: usize, cluster: &ClusterId) -> Option<Snapshot> {
        match load(&self.path, n, cluster) {
            Ok(snapshot) => {
                self.last = Some(place(&snapshot));
                Some(snapshot)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "{} holds no snapshot", self.path.display());
                None
            }
        }
    }

    /// Saves this snapshot in a thread of its own, if it is time to.
    pub(crate) fn tend(&mut self, now: Micros, snapshot: Option<&Arc<Snapshot>>) {
        if let Some(writer) = self.writer.take_if(|writer| writer.is_finished()) {
            // A large state is saved more seldom.
            let took = writer.join().unwrap_or_default();
            let pause = Micros(took.0.saturating_mul(SAVE_SHARE)).max(SAVE_EVERY);
            self.due = now.plus(pause);
        }
        let Some(snapshot) = snapshot.filter(|snapshot| self.last != Some(place(snapshot))) else {
            return;
        };
        if self.writer.is_some() || now < self.due {
            return;
        }
        self.last = Some(place(snapshot));
        let (path, snapshot) = (self.path.clone(), snapshot.clone());
        let work = move || {
            let start = Instant::now();
            save(&path, &snapshot, true);
            Micros(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
        };
        match thread::Builder::new().name("saver".to_owned()).spawn(work) {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread that saves a snapshot");
                self.due = now.plus(SAVE_EVERY);
            }
        }
    }

    /// Saves this snapshot, unless it is there, and returns when it is done.
    pub(crate) fn finish(mut self, snapshot: Option<&Arc<Snapshot>>) {
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        if let Some(snapshot) = snapshot.filter(|snapshot| self.last != Some(place(snapshot))) {
            // Its process ends, not its machine; and whoever stops it may not wait for a disk.
            save(&self.path, snapshot, false);
        }
    }
}

fn place(snapshot: &Snapshot) -> (Term, Batch) {
    (snapshot.checkpoint().term, snapshot.checkpoint().batch)
}

fn save(path: &Path, snapshot: &Snapshot, sync: bool) {
    let new = path.with_extension("new");
    let done = write(&new, snapshot, sync).and_then(|()| fs::rename(&new, path));
    if let Err(error) = done {
        tracing::warn!(%error, "cannot save a snapshot in {}", path.display());
    }
}

fn write(path: &Path, snapshot: &Snapshot, sync: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Whatever clients sent is in it.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut to = BufWriter::new(file);
    let (checkpoint, manifest) = (snapshot.checkpoint(), snapshot.manifest());
    let mut head = TAG.to_vec();
    head.put_u64(checkpoint.term.0);
    head.put_u64(checkpoint.batch.0);
    head.extend_from_slice(&checkpoint.digest.0);
    head.put_u16(checkpoint.cut.len() as u16);
    checkpoint.cut.iter().for_each(|cut| head.put_u64(*cut));
    head.put_u32(manifest.len() as u32);
    to.write_all(&head)?;
    to.write_all(manifest)?;
    for part in snapshot.parts() {
        let mut from = 0;
        while from < part.entry().size {
            let piece = part.read_at(from, SAVE_PIECE_BYTES);
            to.write_all(&piece)?;
            from += piece.len() as u64;
        }
    }
    let file = to.into_inner()?;
    if sync { file.sync_data() } else { Ok(()) }
}

fn load(path: &Path, n: usize, cluster: &ClusterId) -> io::Result<Snapshot> {
    let mut from = BufReader::new(File::open(path)?);
    let head = take(&mut from, (16 + 16 + DIGEST_BYTES + 2 + 8 * n + 4) as u64)?;
    let (checkpoint, len) = decode_head(&head, n).map_err(|_| damaged())?;
    if len > MAX_MANIFEST_BYTES {
        return Err(damaged());
    }
    let manifest = take(&mut from, len)?;
    let entries = Manifest::decode(&manifest, &checkpoint).map_err(|_| damaged())?.parts;
    let mut parts = Vec::with_capacity(entries.len());
    for entry in entries {
        let bytes = take(&mut from, entry.size.min(MAX_PART_BYTES))?;
        let part = Part::verified(entry, bytes, cluster).map_err(|_| damaged())?;
        parts.push(Arc::new(part));
    }
    Snapshot::assemble(checkpoint, manifest, parts).map_err(|_| damaged())
}

fn decode_head(head: &[u8], n: usize) -> Result<(Checkpoint, u64), Malformed> {
    let mut from = Reader::new(head);
    let tag = from.array()?;
    let (term, batch) = (Term(from.u64()?), Batch(from.u64()?));
    let digest = Digest(*from.array()?);
    if tag != TAG || usize::from(from.u16()?) != n {
        return Err(Malformed);
    }
    let cut = (0..n).map(|_| from.u64()).collect::<Result<_, _>>()?;
    Ok((Checkpoint { term, batch, digest, cut }, u64::from(from.u32()?)))
}

/// So many bytes; no more memory than there are bytes.
fn take(from: &mut impl Read, len: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    let count = from.take(len).read_to_end(&mut bytes)?;
    if count as u64 == len { Ok(bytes.into()) } else { Err(damaged()) }
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it is damaged, or of another cluster")
}

#[cfg(test)]
mod tests {
    use protocol::snapshot::{Content, Kind};
    use shared_registers::ids::OrderNumber;

    use super::*;

    #[test]
    fn what_is_saved_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots").join("1");
        let part = Part::new(Kind::Application, vec![7; 100_000].into(), Vec::new());
        let content = Content {
            delivered: OrderNumber(9),
            time: Micros(1),
            skipped: 0,
            first: OrderNumber(1),
            parts: vec![Arc::new(part)],
        };
        let snapshot = Arc::new(Snapshot::new(&start(), &content));
        let cluster = ClusterId([1; 32]);
        let mut saved = Saved::new(path.clone());
        assert!(saved.load(3, &cluster).is_none());
        saved.tend(Micros(0), Some(&snapshot));
        assert!(saved.writer.is_none(), "not yet");
        saved.tend(SAVE_EVERY, Some(&snapshot));
        assert!(saved.writer.is_some());
        saved.finish(Some(&snapshot));

        let mut saved = Saved::new(path.clone());
        let back = saved.load(3, &cluster).unwrap();
        assert_eq!(
            (back.checkpoint(), back.manifest()),
            (snapshot.checkpoint(), snapshot.manifest())
        );
        assert_eq!(back.parts()[0].head(), snapshot.parts()[0].head());
        assert!(saved.load(5, &cluster).is_none(), "of another cluster");

        let whole = fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(997) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(saved.load(3, &cluster).is_none(), "cut off at {len}");
        }
        for at in (0..whole.len()).step_by(997).chain(0..300) {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            assert!(saved.load(3, &cluster).is_none(), "altered at {at}");
        }
    }

    fn start() -> protocol::reader::Start {
        use protocol::reader::{Base, Mark, WriterStart};
        use shared_registers::ids::Seq;
        let chain = Digest([3; 32]);
        let mark = Mark { seq: Seq(4), chain, history: 5 };
        let writer = WriterStart { read: Seq(6), change: None, vote: None };
        protocol::reader::Start {
            term: Term(0),
            opening: Seq(0),
            base: Base { batch: Batch(0), parent: None, chain },
            batch: (Batch(1), mark),
            floor: (Batch(0), mark),
            kept: Vec::new(),
            next_dead: false,
            writers: vec![writer; 3],
        }
    }
}
