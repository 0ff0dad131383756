//! Two processes over real mapped files, one of which is killed by SIGKILL in the middle of its
//! stores, again and again, and started anew. Whoever reads sees what was there or what came new,
//! each frame and each record whole and once, and never a mixture. Where records are reclaimed and
//! overwritten, lap after lap, a reader may also be told that what it wants is gone.
//!
//! The doomed process kills itself at the n-th word that it stores, with n from a seeded generator:
//! so every place between two stores is met, and a seed meets the same places again.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, raise};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{HostRegisters, Taken};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{Geometry, read, write};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, Ring, Words, WordsMut, padded};

use crate::{body, geometry, record};

const WRITER: ServerId = ServerId(0);
/// Records of all lives together have room here.
const RING_BYTES: u64 = 1 << 23;
/// Or some six records, where they are reclaimed.
const LAP_BYTES: u64 = 1 << 10;
/// A few frames: it wraps all the time.
const WRITE_RING_BYTES: u64 = 1 << 9;
/// Lives of the doomed process.
const LIVES: usize = 200;
/// Words that it stores in a life, at most: some dozen frames or records.
const MAX_STORES: u64 = 1500;

const ROLE: &str = "DIFATO_RINGS_ROLE";
const FOLDER: &str = "DIFATO_RINGS_FOLDER";
const STORES: &str = "DIFATO_RINGS_STORES";

/// A mapped file whose owner dies at its n-th store.
struct Doomed {
    words: MappedReadWrite,
    left: AtomicU64,
}

impl Words for Doomed {
    fn len(&self) -> usize {
        self.words.len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words.load(index, order)
    }
}

impl WordsMut for Doomed {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            raise(Signal::SIGKILL).expect("a process may kill itself");
        }
        self.words.store(index, value, order);
    }
}

fn files() -> Geometry {
    geometry(RING_BYTES, WRITE_RING_BYTES)
}

fn laps() -> Geometry {
    geometry(LAP_BYTES, WRITE_RING_BYTES)
}

/// The body of frame and record `seq`: its size is another for each.
fn body_of(seq: u64) -> Vec<u8> {
    body(seq, 1 + (seq % 13) as usize)
}

fn map(folder: &Path, name: &str) -> MappedReadWrite {
    let file = OpenOptions::new().read(true).write(true).open(folder.join(name)).unwrap();
    MappedReadWrite::map(&file).unwrap()
}

fn map_read_only(folder: &Path, name: &str) -> MappedReadOnly {
    let file = OpenOptions::new().read(true).open(folder.join(name)).unwrap();
    MappedReadOnly::map(&file).unwrap()
}

/// Makes both files, formatted.
fn make(folder: &Path, shape: Geometry) {
    let sizes = [("read", shape.read_file_bytes()), ("write", shape.write_file_bytes())];
    for (name, bytes) in sizes {
        std::fs::File::create(folder.join(name)).unwrap().set_len(bytes).unwrap();
    }
    HostRegisters::create(shape, map(folder, "read"), map(folder, "write")).unwrap();
}

/// What a host does with the next frame (R3): admits it if it is the next, passes over it if it was
/// admitted before. Returns whether there was one.
fn host_turn<R: WordsMut, W: Words>(host: &mut HostRegisters<R, W>) -> bool {
    let next = host.copied(WRITER).0 + 1;
    let body = match host.take() {
        Taken::Nothing => return false,
        Taken::Garbage => panic!("a frame that is not whole"),
        Taken::Frame(frame) => {
            assert_eq!(frame.body, body_of(frame.seq.0), "a mixture of frames");
            assert!(frame.seq.0 <= next, "a frame is lost");
            (frame.seq.0 == next).then(|| frame.body.to_vec())
        }
    };
    if let Some(body) = body {
        let (record, bytes) = record(next, &body);
        host.append(&record, &bytes).expect("a ring for all records");
        host.expose();
    }
    host.consume();
    true
}

/// Reads all records there are; returns how many were read so far.
fn read_all<R: Words, W: WordsMut>(guest: &mut GuestRegisters<R, W>, mut count: u64) -> u64 {
    loop {
        match guest.next(WRITER) {
            Next::Nothing => return count,
            Next::Reclaimed | Next::Damaged => panic!("a record that is not whole"),
            Next::Record(record) => {
                count += 1;
                assert_eq!(record.stamp.seq, Seq(count), "a record is lost or comes twice");
                assert_eq!(record.body, body_of(count), "a mixture of records");
            }
        }
        guest.advance(WRITER);
    }
}

/// The doomed process.
#[test]
#[ignore = "the other process of the tests here, which start it"]
fn doomed() {
    let (Ok(role), Ok(folder), Ok(stores)) =
        (std::env::var(ROLE), std::env::var(FOLDER), std::env::var(STORES))
    else {
        return;
    };
    // Whoever kills the test kills this too.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let folder = PathBuf::from(folder);
    let left = AtomicU64::new(stores.parse().unwrap());
    match role.as_str() {
        "host" => {
            let read = Doomed { words: map(&folder, "read"), left };
            let mut host = HostRegisters::reopen(files(), read, map(&folder, "write")).unwrap();
            host.expose();
            loop {
                if !host_turn(&mut host) {
                    std::thread::yield_now();
                }
            }
        }
        "reclaiming host" => {
            let read = Doomed { words: map(&folder, "read"), left };
            let mut host = HostRegisters::reopen(laps(), read, map(&folder, "write")).unwrap();
            host.expose();
            loop {
                // It waits for nobody who reads.
                let next = host.copied(WRITER).0 + 1;
                let body = body_of(next);
                let (record, bytes) = record(next, &body);
                host.set_stable(&host.exposed_all());
                host.append(&record, &bytes).expect("all is stable");
                host.expose();
            }
        }
        "guest" => guest(&folder, Doomed { words: map(&folder, "write"), left }),
        "careless" => careless(&Doomed { words: map(&folder, "write"), left }),
        _ => panic!("no such role"),
    }
}

/// A guest goes on from where its stream ends (P6), and writes as long as it lives.
fn guest(folder: &Path, write: Doomed) {
    let mut guest = GuestRegisters::attach(files(), map_read_only(folder, "read"), write).unwrap();
    while !guest.drained() {
        std::thread::yield_now();
    }
    let mut written = read_all(&mut guest, 0);
    loop {
        match guest.write(Seq(written + 1), &body_of(written + 1)) {
            Ok(()) => written += 1,
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// Publishes a frame and stores it only then.
fn careless(file: &Doomed) {
    let Ring { base, bytes } = files().frame_ring();
    let mut frame = (0x4472_4146_u64 << 32 | (16 + body_of(1).len() as u64)).to_le_bytes().to_vec();
    frame.extend([1_u64.to_le_bytes(), 0_u64.to_le_bytes()].concat());
    frame.extend(body_of(1));
    file.store(write::HEAD, padded(frame.len()), Ordering::Release);
    Ring { base, bytes }.put(file, 0, &frame);
}

/// Starts the doomed process, calls `turn` until it is dead, and then until nothing is left.
fn live(role: &str, folder: &Path, stores: u64, mut turn: impl FnMut() -> bool) -> ExitStatus {
    /// Not left behind when the test fails.
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["killed_writer::doomed", "--exact", "--ignored", "--quiet"])
        .envs([(ROLE, role), (STORES, &stores.to_string())])
        .env(FOLDER, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    loop {
        let dead = child.0.try_wait().unwrap();
        if !turn() {
            match dead {
                Some(status) => return status,
                None => std::thread::yield_now(),
            }
        }
    }
}

fn lives(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    std::iter::repeat_with(move || 1 + random.next_u64() % MAX_STORES).take(LIVES)
}

#[test]
fn a_guest_reads_old_or_new_while_its_host_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), files());
    let (read, write) = (map_read_only(folder.path(), "read"), map(folder.path(), "write"));
    let mut guest = GuestRegisters::attach(files(), read, write).unwrap();
    let (mut count, mut written) = (0, 0);
    for stores in lives(1) {
        let status = live("host", folder.path(), stores, || {
            let before = (count, written);
            while guest.write(Seq(written + 1), &body_of(written + 1)).is_ok() {
                written += 1;
            }
            count = read_all(&mut guest, count);
            before != (count, written)
        });
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "after {stores} stores");
    }
    assert!(count > 10 * LIVES as u64, "too little happened: {count} records");
}

#[test]
fn a_guest_reads_old_or_new_or_is_told_while_its_reclaiming_host_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), laps());
    let (read, write) = (map_read_only(folder.path(), "read"), map(folder.path(), "write"));
    let mut guest = GuestRegisters::attach(laps(), read, write).unwrap();
    let (mut last, mut count, mut told) = (0, 0, 0);
    for stores in lives(3) {
        // The process takes milliseconds to start and microseconds to die: read all the time.
        let status = live("reclaiming host", folder.path(), stores, || {
            let before = (count, told);
            loop {
                match guest.next(WRITER) {
                    Next::Nothing => break,
                    Next::Damaged => panic!("a mixture of records"),
                    Next::Reclaimed => {
                        let first = guest.first(WRITER);
                        assert!(first.0 > last, "record {} is here", last + 1);
                        // It may be gone again by now.
                        let _ = guest.seek(WRITER, first);
                        (last, told) = (first.0, told + 1);
                        continue;
                    }
                    Next::Record(record) => {
                        let seq = record.stamp.seq.0;
                        assert_eq!(seq, last + 1);
                        assert_eq!(record.body, body_of(seq), "a mixture of records");
                        (last, count) = (seq, count + 1);
                    }
                }
                guest.advance(WRITER);
            }
            before != (count, told)
        });
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "after {stores} stores");
    }
    assert!(count > 5 * LIVES as u64 && told > LIVES as u64 / 10, "{count} read, {told} told");
    assert!(last > 10 * LIVES as u64, "too little happened: {last} records");
}

#[test]
fn a_host_takes_old_or_new_while_its_guest_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), files());
    let (read, write) = (map(folder.path(), "read"), map(folder.path(), "write"));
    let mut host = HostRegisters::reopen(files(), read, write).unwrap();
    for stores in lives(2) {
        let status = live("guest", folder.path(), stores, || host_turn(&mut host));
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "after {stores} stores");
    }
    let count = host.copied(WRITER).0;
    assert!(count > 10 * LIVES as u64, "too little happened: {count} frames");
    assert_eq!(host.header(read::INCARNATION), 0);
}

#[test]
#[should_panic(expected = "a frame that is not whole")]
fn a_guest_that_publishes_before_it_stores_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), files());
    let (read, write) = (map(folder.path(), "read"), map(folder.path(), "write"));
    let mut host = HostRegisters::reopen(files(), read, write).unwrap();
    live("careless", folder.path(), 2, || host_turn(&mut host));
}
