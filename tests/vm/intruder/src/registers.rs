//! Attacks on the register files and the doorbell, through the machine's devices.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_replica::Options;
use nix::libc::O_NONBLOCK;
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Seq, Term};
use shared_registers::layout::{Geometry, HEADER_BYTES, read, write};
use shared_registers::record::{Body, Change, Reason};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, Words, WordsMut};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Looked at this often.
const LOOK: Duration = Duration::from_millis(20);
/// Words of a ring's beginning that are overwritten.
const RING_WORDS: usize = 512;
/// So many rings of the doorbell at once.
const BELLS: usize = 1 << 16;

/// What a guest has of its host.
pub(crate) struct Devices {
    pub(crate) geometry: Geometry,
    pub(crate) read: MappedReadOnly,
    pub(crate) write: MappedReadWrite,
    pub(crate) bell: File,
}

/// Waits for the host agent, and takes them.
pub(crate) fn devices(options: &Options) -> Result<Devices> {
    let paths = Paths::new(&options.dir);
    let cluster = Cluster::load(&paths)?;
    let (me, _) = cluster.server(options.id)?;
    let geometry = cluster.geometry(me);
    let read_path = paths.read_file(me);
    let read = wait_for("the host agent", || {
        let read = MappedReadOnly::map(&File::open(&read_path).ok()?).ok()?;
        geometry.check_read(&read).is_ok().then_some(read)
    })?;
    let write = MappedReadWrite::map(&writable(&paths.write_file(me))?)?;
    let bell = wait_for("the doorbell", || ring(&paths.bell(me)).ok())?;
    Ok(Devices { geometry, read, write, bell })
}

pub(crate) fn attack(options: &Options) -> Result<()> {
    let paths = Paths::new(&options.dir);
    let Devices { geometry, read, write, mut bell } = devices(options)?;
    let (read_path, write_path) =
        (paths.read_file(geometry.server), paths.write_file(geometry.server));
    println!("intruder: {} devices of shared memory", shared_memories()?);
    store_into_read_file(&geometry, &read_path)?;
    write_as_itself(geometry, read, write, &mut bell)?;
    garbage(&geometry, &write_path, &mut bell)?;
    println!("intruder: done with the registers");
    Ok(())
}

fn writable(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn ring(path: &Path) -> Result<File> {
    let mut bell = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
    bell.write_all(&[1])?;
    Ok(bell)
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        thread::sleep(LOOK);
    }
}

/// How many register files this machine has been given.
fn shared_memories() -> Result<usize> {
    let devices = fs::read_dir("/sys/bus/pci/devices")?.filter_map(Result::ok);
    let says = |device: &fs::DirEntry| fs::read_to_string(device.path().join("device"));
    Ok(devices.filter(|device| says(device).is_ok_and(|id| id.trim() == "0x1110")).count())
}

/// Root can map the read file's device for writing. What it stores there must go nowhere.
fn store_into_read_file(geometry: &Geometry, path: &Path) -> Result<()> {
    let map = MappedReadWrite::map(&writable(path)?)?;
    let header = HEADER_BYTES as usize / 8;
    let rings = (0..geometry.n).map(|i| header + i * geometry.limits.ring_bytes as usize / 8);
    let words = (0..header).chain(rings.flat_map(|base| base..base + RING_WORDS));
    let (mut tried, mut changed) = (0, 0);
    for word in words {
        let wanted = !map.load(word, Ordering::SeqCst);
        map.store(word, wanted, Ordering::SeqCst);
        tried += 1;
        changed += usize::from(map.load(word, Ordering::SeqCst) == wanted);
    }
    println!("intruder: {changed} of {tried} stores into the read file took hold");
    Ok(())
}

/// A frame of its own is all that a guest can write, and names no writer: its host stamps it (R2).
fn write_as_itself(
    geometry: Geometry,
    read: MappedReadOnly,
    write: MappedReadWrite,
    bell: &mut File,
) -> Result<()> {
    let me = geometry.server;
    let mut registers = GuestRegisters::attach(geometry, read, write)?;
    let mut body = Vec::new();
    Body::Change(Change { term: Term(0), reason: Reason::HostDown }).encode(&mut body);
    registers.write(Seq(1), &body).context("the write file is full")?;
    let _ = bell.write(&[1]);
    wait_for("the own record", || match registers.next(me) {
        Next::Record(record) => Some(record.stamp.writer),
        _ => None,
    })?;
    println!("intruder: wrote a record");
    Ok(())
}

/// Fills the write file with anything, its header included, and rings like mad.
fn garbage(geometry: &Geometry, path: &Path, bell: &mut File) -> Result<()> {
    let map = MappedReadWrite::map(&writable(path)?)?;
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let ring = geometry.frame_ring();
    for word in 0..ring.bytes as usize / 8 {
        map.store(ring.base + word, next(), Ordering::Relaxed);
    }
    // No frame where there should be one; then heads that cannot be.
    let consumed = map.load(write::HEAD, Ordering::SeqCst);
    map.store(write::HEAD, consumed + 4096, Ordering::SeqCst);
    let flood = vec![7; BELLS];
    for _ in 0..50 {
        let _ = bell.write(&flood);
        thread::sleep(LOOK);
        map.store(write::HEAD, next(), Ordering::SeqCst);
        map.store(write::GUEST_NAP, next(), Ordering::SeqCst);
        map.store(read::MAGIC, next(), Ordering::SeqCst);
    }
    Ok(())
}
