//! The guest's own store of snapshots (section 6): what a guest claims is in its store before, so
//! that whatever is stable outlives all processes.
//!
//! A thread of its own writes it, so that the loop never waits for a disk. Of what waits to be
//! written only the newest is kept. Nothing in the store is trusted: a guest that starts from it
//! checks everything against the digests that `f + 1` claims vouch for, and fetches from others
//! what is missing or damaged; so the folder may be deleted.

mod folder;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::limits::PIECE_BYTES;
use protocol::snapshot::{Entry, Snapshot};
use protocol::transfer::Fetch;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Term};
use shared_registers::record::Checkpoint;

use crate::counters::Counters;
use crate::error::GuestError;
use crate::limits::{STORE_LOG_EVERY, STORE_RETRY_MS};
use folder::{Folder, Sure};

/// What the loop tells the thread. Of each the newest is enough.
#[derive(Default)]
struct Wanted {
    snapshot: Option<Arc<Snapshot>>,
    settled: Option<(Term, Batch)>,
}

/// Whatever is done under one of the locks here is done whole or not at all, so that one under which
/// a thread has panicked is as good as any.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    wanted: Mutex<Wanted>,
    news: Condvar,
    /// What is stored since the loop looked last: one for each that it told of.
    stored: Mutex<Vec<Checkpoint>>,
    /// The loop sleeps on this.
    wake: EventFd,
    stop: AtomicBool,
    bytes: AtomicU64,
    failures: AtomicU64,
    sure: Sure,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        lock(&self.wanted)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A guest's store.
pub(crate) struct Store {
    path: PathBuf,
    shared: Arc<Shared>,
    settled: Option<(Term, Batch)>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store of a cluster of `n` servers; `sync` if it must outlive crashes of the
    /// machine.
    pub(crate) fn open(path: PathBuf, n: usize, sync: bool) -> Result<Store, GuestError> {
        let folder = Folder::open(&path, n, sync)
            .map_err(|source| GuestError::Store { path: path.clone(), source })?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| GuestError::system("make an event")(error.into()))?;
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            news: Condvar::new(),
            stored: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            sure: Mutex::new(BTreeSet::new()),
        });
        let thread = thread::Builder::new().name("store".to_owned()).spawn({
            let (shared, path) = (shared.clone(), path.clone());
            move || work(folder, &path, &shared)
        });
        let thread = thread.map_err(GuestError::system("start the store's thread"))?;
        Ok(Store { path, shared, settled: None, thread: Some(thread) })
    }

    /// Can be read when something is stored.
    pub(crate) fn event(&self) -> impl AsFd + '_ {
        self.shared.wake.as_fd()
    }

    /// Has a snapshot stored; one that waits to be is given up.
    pub(crate) fn put(&self, snapshot: Arc<Snapshot>) {
        self.shared.wanted().snapshot = Some(snapshot);
        self.shared.news.notify_one();
    }

    /// Snapshots of checkpoints before this one may go.
    pub(crate) fn settle(&mut self, at: Option<(Term, Batch)>) {
        if at.is_some() && at > self.settled {
            self.settled = at;
            self.shared.wanted().settled = at;
            self.shared.news.notify_one();
        }
    }

    /// What is stored since this was called last.
    pub(crate) fn take_stored(&self, counters: &mut Counters) -> Vec<Checkpoint> {
        // Nothing to be read is as good.
        let _ = self.shared.wake.read();
        let stored = std::mem::take(&mut *lock(&self.shared.stored));
        counters.snapshots_stored += stored.len() as u64;
        stored
    }

    /// A piece of the manifest or the part of this digest, for another guest, which sees for itself
    /// whether it is damaged.
    pub(crate) fn piece_of(&self, digest: &Digest, from: u64) -> Option<(u64, Vec<u8>)> {
        folder::read_piece(&self.path, digest, from, PIECE_BYTES)
    }

    /// Nothing is claimed any more once the thread is gone, which it never is but by a fault.
    pub(crate) fn check(&self) -> Result<(), GuestError> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => Err(GuestError::StoreThread { path: self.path.clone() }),
        }
    }

    /// Brings what the thread counts into the counters.
    pub(crate) fn count(&self, counters: &mut Counters) {
        counters.snapshot_bytes_stored = self.shared.bytes.load(Ordering::Relaxed);
        counters.snapshot_store_failures = self.shared.failures.load(Ordering::Relaxed);
    }

    /// Offers the wanted manifest to a transfer, if it is here.
    pub(crate) fn offer_manifest(&self, fetch: &mut Fetch, counters: &mut Counters) {
        let Some(bytes) = folder::read_manifest(&self.path, &fetch.wanted().digest) else { return };
        let size = bytes.len() as u64;
        match fetch.offer_manifest(Bytes::from(bytes)) {
            true => counters.snapshot_bytes_loaded += size,
            false => counters.snapshot_files_damaged += 1,
        }
    }

    /// Offers a part to a transfer, if it is here. One that is damaged is written again when it
    /// comes with a snapshot that is to be stored.
    pub(crate) fn offer_part(&self, entry: Entry, fetch: &mut Fetch, counters: &mut Counters) {
        let Entry { digest, size, .. } = entry;
        let Some(bytes) = folder::read_part(&self.path, &digest, size) else { return };
        let right = fetch.offer_part(entry, Bytes::from(bytes));
        let mut sure = lock(&self.shared.sure);
        if right {
            sure.insert(digest);
            counters.snapshot_bytes_loaded += size;
        } else {
            sure.remove(&digest);
            counters.snapshot_files_damaged += 1;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Under the lock, so that the thread does not fall asleep right after it has looked.
        let wanted = self.shared.wanted();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(wanted);
        self.shared.news.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's work.
fn work(mut folder: Folder, path: &Path, shared: &Shared) {
    let mut failed = 0;
    while let Some(wanted) = next(shared) {
        match carry_out(&mut folder, &wanted, shared) {
            Ok(()) => failed = 0,
            Err(error) => {
                if failed % STORE_LOG_EVERY == 0 {
                    tracing::warn!(
                        "cannot store a snapshot in {}: {error}; without it this server claims no \
                         checkpoint, and once fewer than f + 1 do, the cluster stops",
                        path.display()
                    );
                }
                failed += 1;
                shared.failures.fetch_add(1, Ordering::Relaxed);
                retry(wanted, shared);
            }
        }
    }
}

/// Waits for something to do; `None` if the store is to be closed.
fn next(shared: &Shared) -> Option<Wanted> {
    let mut wanted = shared.wanted();
    loop {
        if shared.stopped() {
            return None;
        }
        if wanted.snapshot.is_some() || wanted.settled.is_some() {
            return Some(std::mem::take(&mut *wanted));
        }
        wanted = shared.news.wait(wanted).unwrap_or_else(PoisonError::into_inner);
    }
}

fn carry_out(folder: &mut Folder, wanted: &Wanted, shared: &Shared) -> io::Result<()> {
    let put = |snapshot: &Arc<Snapshot>| {
        let bytes = folder.put(snapshot, &shared.sure, || shared.stopped())?;
        if let Some(bytes) = bytes {
            shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            let checkpoint = snapshot.checkpoint().clone();
            lock(&shared.stored).push(checkpoint);
            let _ = shared.wake.write(1);
        }
        Ok(())
    };
    let put = wanted.snapshot.as_ref().map_or(Ok(()), put);
    // Not before the newer one is there, but also if there is no room for that one.
    let settled = wanted.settled.map_or(Ok(()), |at| folder.settle(at, &shared.sure));
    put.and(settled)
}

/// Waits a while, whatever comes meanwhile (each try may fill a disk to its end), and puts back what
/// could not be carried out, unless something newer came.
fn retry(failed: Wanted, shared: &Shared) {
    let pause = Duration::from_millis(STORE_RETRY_MS);
    let waiting = shared.news.wait_timeout_while(shared.wanted(), pause, |_| !shared.stopped());
    let (mut wanted, _) = waiting.unwrap_or_else(PoisonError::into_inner);
    let Wanted { snapshot, settled } = failed;
    wanted.snapshot = wanted.snapshot.take().or(snapshot);
    wanted.settled = wanted.settled.max(settled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_when_the_thread_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), 3, false).unwrap();
        store.check().unwrap();
        // As if it had panicked.
        store.shared.stop.store(true, Ordering::Relaxed);
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while store.check().is_ok() {
            assert!(std::time::Instant::now() < until, "the thread goes on");
            store.shared.news.notify_one();
            thread::yield_now();
        }
        let said = store.check().unwrap_err().to_string();
        assert!(said.contains(&folder.path().display().to_string()), "{said}");
    }
}
