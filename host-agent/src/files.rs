//! The register files of a server: made on its first start, gone on with later, recovered if they
//! are not what they were (R6).
//!
//! The read file is the cluster's memory of this server's stream. So one that is missing, damaged or
//! cut short is not simply made anew, and one is not simply gone on with where a power failure may
//! have eaten its last records: then the host recovers. That a server never had files is said by
//! another file, `fresh`, which whoever made the cluster put there, and which goes with the first
//! start. A file of another server, cluster, version or configuration is somebody's mistake, and
//! refused as it is.
//!
//! A file that is recovered stays where it is, its guest may have it mapped: it is neither cut off
//! nor replaced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use shared_registers::cluster::{Durability, Paths};
use shared_registers::crypto::Digest;
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::ServerId;
use shared_registers::layout::{Geometry, HEADER_BYTES, LayoutError, SET, read};
use shared_registers::words::{MappedReadOnly, MappedReadWrite};

use crate::agent::AgentError;

/// The registers as a process maps them.
pub(crate) type MappedRegisters = HostRegisters<MappedReadWrite, MappedReadOnly>;

/// The lock that makes a server's registers this process's own, as long as it lives.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Takes the lock on `server`'s registers; makes their folder if there is none.
pub(crate) fn lock(paths: &Paths, server: ServerId) -> Result<Lock, AgentError> {
    let folder = paths.registers(server);
    make_folder(&folder)?;
    let file = File::open(&folder).map_err(AgentError::file(&folder))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Lock(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(AgentError::Running { id: server, folder }),
        Err((_, error)) => Err(AgentError::file(&folder)(error.into())),
    }
}

/// A clean stop: whatever happens to the machine from now on, the file on disk is whole.
pub(crate) fn close(registers: &MappedRegisters, read: &File) -> io::Result<()> {
    read.sync_all()?;
    registers.set_header(read::CLEAN, SET);
    read.sync_all()
}

/// How a server's files were found.
pub(crate) struct Opened {
    pub(crate) registers: MappedRegisters,
    /// The read file, to sync and close it.
    pub(crate) read: File,
    /// What is wrong with it, if the host has to recover.
    pub(crate) wrong: Option<String>,
}

/// Makes or opens the two files of `geometry`'s server.
pub(crate) fn open(
    paths: &Paths,
    geometry: Geometry,
    durability: Durability,
) -> Result<Opened, AgentError> {
    let durable = durability == Durability::Disk;
    let path = paths.write_file(geometry.server);
    let write = || {
        let file = sized(&path, geometry).map_err(AgentError::file(&path))?;
        let write = MappedReadOnly::map(&file).map_err(AgentError::file(&path))?;
        geometry.check_write(&write).map_err(|why| AgentError::registers(&path, why.into()))?;
        Ok::<_, AgentError>(write)
    };
    let boot = boot().map_err(AgentError::file(Path::new(BOOT_ID)))?;
    let (read, fresh) = (paths.read_file(geometry.server), paths.fresh(geometry.server));
    let exists = |path: &Path| path.try_exists().map_err(AgentError::file(path));
    let opened = match (exists(&read)?, exists(&fresh)?) {
        (true, _) => reopen(&read, geometry, write, boot)?,
        (false, true) => Ok(create(&read, geometry, write()?, boot)?),
        (false, false) => Err("is missing".to_owned()),
    };
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(wrong) => recover(&read, geometry, write()?, boot, wrong)?,
    };
    // After what is in the file, and before anything new is shown: the next start on another boot goes
    // by this mark, and by the file's name.
    opened.registers = opened.registers.durable(durable);
    opened.read.sync_all().map_err(AgentError::file(&read))?;
    let folder = paths.registers(geometry.server);
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(AgentError::file(&folder))?;
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AgentError::file(&fresh)(error))
        }
        _ => Ok(opened),
    }
}

/// Makes a folder, and those above it, for this user alone.
pub(crate) fn make_folder(path: &Path) -> Result<(), AgentError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(AgentError::file(path))
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Opens the write file, and gives it its size. Whoever may write it may also cut it short or make it
/// longer, and has then lost the frames that were in it, as if it had not written them: no reason to
/// refuse it.
fn sized(path: &Path, geometry: Geometry) -> io::Result<File> {
    let (file, bytes) = (open_file(path)?, geometry.write_file_bytes());
    let found = file.metadata()?.len();
    if found != bytes {
        file.set_len(bytes)?;
    }
    // Others may need what room there is.
    reserve(&file, geometry.write_bytes()).inspect_err(|_| drop(file.set_len(found)))?;
    Ok(file)
}

/// Has the disk keep room for all that is used of a file. A store into a mapped file that finds the
/// disk full kills the process: better to say so before it begins. Not every file system can do this.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes as i64) {
        Err(Errno::EOPNOTSUPP) | Ok(()) => Ok(()),
        Err(error) => {
            let (error, mib) = (io::Error::from(error), bytes.div_ceil(1 << 20));
            let why = format!("there must be room for its {mib} MiB on the disk ({error})");
            Err(io::Error::new(error.kind(), why))
        }
    }
}

/// The file gets its name when it is whole: a read file that exists was made to the end.
fn create(
    path: &Path,
    geometry: Geometry,
    write: MappedReadOnly,
    boot: u64,
) -> Result<Opened, AgentError> {
    let new = path.with_extension("new");
    let make = || {
        let file = open_file(&new)?;
        file.set_len(0)?;
        // Others may need what room there is.
        reserve(&file, geometry.read_bytes()).inspect_err(|_| drop(file.set_len(0)))?;
        file.set_len(geometry.read_file_bytes())?;
        Ok((MappedReadWrite::map(&file)?, file))
    };
    let (words, read) = make().map_err(AgentError::file(&new))?;
    let registers = HostRegisters::create(geometry, words, write)
        .map_err(|why| AgentError::registers(path, why.into()))?;
    registers.set_header(read::BOOT, boot);
    read.sync_all().and_then(|()| fs::rename(&new, path)).map_err(AgentError::file(path))?;
    Ok(Opened { registers, read, wrong: None })
}

fn reopen(
    path: &Path,
    geometry: Geometry,
    write: impl FnOnce() -> Result<MappedReadOnly, AgentError>,
    boot: u64,
) -> Result<Result<Opened, String>, AgentError> {
    let read = open_file(path).map_err(AgentError::file(path))?;
    let actual = read.metadata().map_err(AgentError::file(path))?.len();
    let expected = geometry.read_file_bytes();
    if actual >= HEADER_BYTES {
        let words = MappedReadOnly::map(&read).map_err(AgentError::file(path))?;
        if let Err(why @ (LayoutError::Version(_) | LayoutError::Other)) =
            geometry.check_header(&words)
        {
            return Err(AgentError::registers(path, why.into()));
        }
    }
    if actual != expected {
        return Ok(Err(LayoutError::Size { actual, expected }.to_string()));
    }
    reserve(&read, geometry.read_bytes()).map_err(AgentError::file(path))?;
    let words = MappedReadWrite::map(&read).map_err(AgentError::file(path))?;
    let registers = match HostRegisters::reopen(geometry, words, write()?) {
        Ok(registers) => registers,
        Err(why) => return Ok(Err(why.to_string())),
    };
    // R6: memory that went down with the machine may have held records that others have seen.
    if registers.may_lack_records(boot) {
        let why = "was in use when the machine went down, so its last records may be lost";
        return Ok(Err(why.to_owned()));
    }
    registers.set_header(read::CLEAN, 0);
    registers.set_header(read::BOOT, boot);
    read.sync_all().map_err(AgentError::file(path))?;
    Ok(Ok(Opened { registers, read, wrong: None }))
}

fn recover(
    path: &Path,
    geometry: Geometry,
    write: MappedReadOnly,
    boot: u64,
    wrong: String,
) -> Result<Opened, AgentError> {
    let open = || {
        let file = open_file(path)?;
        if file.metadata()?.len() != geometry.read_file_bytes() {
            file.set_len(geometry.read_file_bytes())?;
        }
        reserve(&file, geometry.read_bytes())?;
        Ok((MappedReadWrite::map(&file)?, file))
    };
    let (words, read) = open().map_err(AgentError::file(path))?;
    let registers = HostRegisters::recover(geometry, words, write)
        .map_err(|why| AgentError::registers(path, why.into()))?;
    registers.set_header(read::BOOT, boot);
    // What was cut off must not come back with the next power failure.
    read.sync_all().map_err(AgentError::file(path))?;
    Ok(Opened { registers, read, wrong: Some(wrong) })
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A word that names this boot of the machine.
fn boot() -> io::Result<u64> {
    let digest = Digest::of(&[fs::read(BOOT_ID)?.trim_ascii()]);
    Ok(digest.0[..8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}
