//! The register files of a server: made on its first start, gone on with later.
//!
//! The read file is the cluster's memory of this server's stream, so it is never made anew where
//! there was one, and never gone on with where a power failure may have eaten its last records
//! (R6): the machine must not have restarted since, unless the agent stopped cleanly before.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use shared_registers::cluster::Paths;
use shared_registers::crypto::Digest;
use shared_registers::host_side::{HostRegisters, ReopenError};
use shared_registers::ids::ServerId;
use shared_registers::layout::{Geometry, read, write};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, Words};

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
    registers.set_header(read::CLEAN, 1);
    read.sync_all()
}

/// Makes or opens the two files of `geometry`'s server. Also returns the read file, to close it.
pub(crate) fn open(
    paths: &Paths,
    geometry: Geometry,
) -> Result<(MappedRegisters, File), AgentError> {
    let path = paths.write_file(geometry.server);
    let write = sized(&path, geometry.write_file_bytes()).map_err(AgentError::file(&path))?;
    let write = MappedReadOnly::map(&write).map_err(AgentError::file(&path))?;
    let path = paths.read_file(geometry.server);
    let boot = boot().map_err(AgentError::file(Path::new(BOOT_ID)))?;
    if path.try_exists().map_err(AgentError::file(&path))? {
        reopen(&path, geometry, write, boot)
    } else {
        create(&path, geometry, write, boot)
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

/// Opens a file, and makes an empty one so large. Another size is for the layout's check to refuse.
fn sized(path: &Path, bytes: u64) -> io::Result<File> {
    let file = open_file(path)?;
    if file.metadata()?.len() == 0 {
        file.set_len(bytes)?;
    }
    Ok(file)
}

/// The file gets its name when it is whole: a read file that exists was made to the end.
fn create(
    path: &Path,
    geometry: Geometry,
    write: MappedReadOnly,
    boot: u64,
) -> Result<(MappedRegisters, File), AgentError> {
    // R3: frames that an earlier run may have admitted must not be admitted anew.
    if write.load(write::HEAD, Ordering::Acquire) != 0 {
        return Err(AgentError::Lost { path: path.to_owned() });
    }
    let new = path.with_extension("new");
    let make = || {
        let file = open_file(&new)?;
        file.set_len(0)?;
        file.set_len(geometry.read_file_bytes())?;
        Ok((MappedReadWrite::map(&file)?, file))
    };
    let (words, file) = make().map_err(AgentError::file(&new))?;
    let registers = HostRegisters::create(geometry, words, write)
        .map_err(|why| AgentError::registers(path, why.into()))?;
    registers.set_header(read::BOOT, boot);
    fs::rename(&new, path).map_err(AgentError::file(path))?;
    Ok((registers, file))
}

fn reopen(
    path: &Path,
    geometry: Geometry,
    write: MappedReadOnly,
    boot: u64,
) -> Result<(MappedRegisters, File), AgentError> {
    let file = open_file(path).map_err(AgentError::file(path))?;
    let words = MappedReadWrite::map(&file).map_err(AgentError::file(path))?;
    let registers = HostRegisters::reopen(geometry, words, write)
        .map_err(|why: ReopenError| AgentError::registers(path, why))?;
    // R6: memory that went down with the machine may have held records that others have seen.
    if registers.header(read::BOOT) != boot && registers.header(read::CLEAN) != 1 {
        return Err(AgentError::Unclean { path: path.to_owned() });
    }
    registers.set_header(read::CLEAN, 0);
    registers.set_header(read::BOOT, boot);
    file.sync_all().map_err(AgentError::file(path))?;
    Ok((registers, file))
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A word that names this boot of the machine.
fn boot() -> io::Result<u64> {
    let digest = Digest::of(&[fs::read(BOOT_ID)?.trim_ascii()]);
    Ok(digest.0[..8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}
